//! Packets cut into fragments by the tests, in every way that a network or an attacker may.

use etherparse::PacketBuilder;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::classify::packet;

/// A whole packet, of either version, whose payload differs from byte to byte.
fn udp_packet(v6: bool, number: u16, length: usize) -> Vec<u8> {
    let payload: Vec<u8> =
        (0..length).map(|at| u8::try_from((at * 7 + usize::from(number)) % 251).unwrap()).collect();
    let mut bytes = Vec::new();
    if v6 {
        PacketBuilder::ipv6([0x20; 16], [0x26; 16], 64).udp(5_000, 443).write(&mut bytes, &payload).unwrap();
    } else {
        PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .udp(5_000, 443)
            .write(&mut bytes, &payload)
            .unwrap();
        bytes[4..6].copy_from_slice(&number.to_be_bytes());
        bytes[6..8].fill(0);
    }
    bytes
}

/// The fragment of a packet's payload from `from` to `to`.
fn cut(packet: &[u8], number: u16, from: usize, to: usize) -> Vec<u8> {
    let v6 = packet[0] >> 4 == 6;
    let (header, payload) = packet.split_at(if v6 { 40 } else { 20 });
    let to = to.min(payload.len());
    let place = u16::try_from(from).unwrap();
    let more = u16::from(to < payload.len());
    let mut header = header.to_vec();
    if v6 {
        header[4..6].copy_from_slice(&u16::try_from(8 + to - from).unwrap().to_be_bytes());
        header[6] = FRAGMENT;
        header.extend([17, 0]);
        header.extend((place | more).to_be_bytes());
        header.extend(u32::from(number).to_be_bytes());
    } else {
        header[2..4].copy_from_slice(&u16::try_from(20 + to - from).unwrap().to_be_bytes());
        header[6..8].copy_from_slice(&((place / 8) | (more << 13)).to_be_bytes());
    }
    [&header, &payload[from..to]].concat()
}

fn cuts(packet: &[u8], number: u16, every: usize) -> Vec<Vec<u8>> {
    let length = packet.len() - if packet[0] >> 4 == 6 { 40 } else { 20 };
    (0..length).step_by(every).map(|from| cut(packet, number, from, from + every)).collect()
}

fn at(seconds: i64) -> Micros {
    Micros::new(1_700_000_000_000_000 + seconds * 1_000_000)
}

fn give_cut(fragments: &mut Fragments, ip: &[u8], wire: usize, seen: Micros) -> Taken {
    let found = frame::packets_in(ip, wire, Layers::default()).next().unwrap().unwrap();
    let fragment = found.fragment().expect("a fragment");
    fragments.take(&found, fragment, seen)
}

fn give(fragments: &mut Fragments, ip: &[u8]) -> Taken {
    give_cut(fragments, ip, ip.len(), at(0))
}

fn fragments() -> Fragments {
    Fragments::new(FragmentLimits::default())
}

fn counter(fragments: &Fragments, name: &str) -> u64 {
    fragments.counters().into_iter().find(|(reason, _)| *reason == name).unwrap().1
}

#[test]
fn fragments_in_any_order_make_their_packet_up() {
    for v6 in [false, true] {
        let whole = udp_packet(v6, 7, 3_000);
        let sent = cuts(&whole, 7, 1_000);
        let bytes = sent.iter().map(Vec::len).sum::<usize>() as u64;
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let mut fragments = fragments();
            let mut gathered = None;
            for number in order {
                assert!(gathered.is_none(), "whole before its last fragment");
                gathered = give(&mut fragments, &sent[number]).whole;
            }
            let gathered = gathered.expect("whole");
            assert_eq!(gathered.ip, whole);
            assert_eq!((gathered.packets, gathered.bytes), (4, bytes));
        }
    }
}

#[test]
fn repeats_and_overlaps_that_agree_do_no_harm() {
    let whole = udp_packet(false, 7, 1_000);
    let mut fragments = fragments();
    for (from, to) in [(0, 400), (0, 400), (320, 640), (80, 240)] {
        assert!(give(&mut fragments, &cut(&whole, 7, from, to)).whole.is_none());
    }
    let gathered = give(&mut fragments, &cut(&whole, 7, 200, 2_000)).whole.unwrap();
    assert_eq!((gathered.ip, gathered.packets), (whole, 5));
}

#[test]
fn fragments_that_contradict_each_other_show_nothing_but_their_ports() {
    let (whole, other) = (udp_packet(false, 7, 1_000), udp_packet(false, 8, 1_000));
    for contradiction in [cut(&other, 7, 400, 800), cut(&other, 7, 0, 80), cut(&whole[..828], 7, 400, 900)] {
        let mut fragments = fragments();
        let contradiction = [&contradiction[..4], &whole[4..6], &contradiction[6..]].concat();
        for fragment in
            [&cut(&whole, 7, 0, 480), &cut(&whole, 7, 480, 960), &contradiction, &cut(&whole, 7, 960, 2_000)]
        {
            assert!(give(&mut fragments, fragment).whole.is_none());
        }
        assert_eq!(counter(&fragments, "fragments_contradictory"), 1);
        let rest = fragments.rest();
        assert_eq!((rest.len(), rest[0].packets), (1, 4));
        let found = rest[0].packets().next().unwrap().unwrap();
        assert_eq!((found.packet.source_port, found.packet.destination_port), (5_000, 443));
        assert_eq!(found.packet.payload, packet::Payload::Hidden);
    }
}

#[test]
fn what_comes_without_its_rest_counts_when_its_time_is_over() {
    let whole = udp_packet(false, 7, 3_000);
    let mut fragments = fragments();
    give(&mut fragments, &cut(&whole, 7, 0, 1_000));
    give_cut(&mut fragments, &cut(&udp_packet(false, 8, 3_000), 8, 1_000, 2_000), 1_020, at(1));
    assert!(fragments.overdue(at(30)).is_empty());
    let overdue = fragments.overdue(at(32));
    assert_eq!(overdue.len(), 2);
    // The first fragment shows as much of the packet as it has, ...
    let found = overdue[0].packets().next().unwrap().unwrap();
    let packet::Payload::Udp(shown) = found.packet.payload else { panic!("{found:?}") };
    assert_eq!((found.packet.source_port, shown), (5_000, &whole[28..1_020]));
    // ... and one without it shows nothing, but is counted.
    let found = overdue[1].packets().next().unwrap().unwrap();
    assert_eq!((found.packet.source_port, found.packet.payload), (0, packet::Payload::Hidden));
    assert_eq!((overdue[1].packets, overdue[1].bytes, overdue[1].seen), (1, 1_020, at(1)));
    assert_eq!((counter(&fragments, "fragments_expired"), fragments.bytes), (2, 0));
}

#[test]
fn fragments_captured_too_short_make_a_packet_as_long_as_it_was() {
    let whole = udp_packet(false, 7, 2_000);
    let mut fragments = fragments();
    let mut gathered = None;
    for fragment in cuts(&whole, 7, 1_000) {
        gathered =
            give_cut(&mut fragments, &fragment[..fragment.len().min(100)], fragment.len(), at(0)).whole;
    }
    let gathered = gathered.expect("whole, by what its fragments say of themselves");
    let found = gathered.packets().next().unwrap().unwrap();
    assert_eq!((found.bytes(), found.ip), (2_028, &whole[..100]));
}

#[test]
fn packets_captured_twice_fragment_by_fragment_count_for_one_flow() {
    let whole = udp_packet(false, 7, 2_000);
    let mut fragments = fragments();
    for fragment in cuts(&whole, 7, 1_000) {
        give(&mut fragments, &fragment);
        give(&mut fragments, &fragment);
    }
    let rest = fragments.rest();
    assert_eq!((rest.len(), rest[0].packets), (1, 1), "the last fragment's repeat came after its packet");
    let found = rest[0].packets().next().unwrap().unwrap();
    assert_eq!((found.packet.source_port, found.packet.destination_port), (5_000, 443));
}

#[test]
fn a_flood_of_fragments_is_bounded_and_every_one_is_counted() {
    let limits = FragmentLimits { datagrams: 50, bytes: 20_000, ..FragmentLimits::default() };
    let mut fragments = Fragments::new(limits);
    let mut counted = 0;
    for number in 0..1_000_u16 {
        let whole = udp_packet(number % 2 == 0, number, 2_000);
        // The last of a datagram of almost the greatest length holds no more than itself.
        let mut last = cut(&whole, number, 1_000, 1_400);
        if number % 3 == 0 && number % 2 != 0 {
            last[6..8].copy_from_slice(&[0x1f, 0xc0]);
        }
        counted += give(&mut fragments, &last).given_up.iter().map(|given_up| given_up.packets).sum::<u64>();
        assert!(fragments.waiting.len() <= 50 && fragments.bytes <= 20_000);
    }
    counted += fragments.rest().iter().map(|rest| rest.packets).sum::<u64>();
    assert_eq!((counted, fragments.bytes), (1_000, 0));
    assert!(counter(&fragments, "fragments_evicted") >= 900);
}

#[test]
fn a_whole_packet_is_no_fragment() {
    assert_eq!(Fragment::of(&udp_packet(false, 7, 100)), None);
    // Nor is one of IPv6 with a fragment header and nothing cut off (RFC 6946).
    let whole = udp_packet(true, 7, 100);
    let atomic = cut(&whole, 7, 0, 2_000);
    assert_eq!(Fragment::of(&atomic), None);
    let found = frame::packets_in(&atomic, atomic.len(), Layers::default()).next().unwrap().unwrap();
    assert_eq!(found.packet.source_port, 5_000);
}

proptest! {
    #[test]
    fn any_cuts_in_any_order_with_repeats_make_the_packet_up_once(
        v6 in any::<bool>(),
        length in 100_usize..4_000,
        places in proptest::collection::vec(any::<Index>(), 1..60),
        overlaps in proptest::collection::vec((any::<Index>(), any::<Index>()), 0..10),
        order in any::<u64>(),
    ) {
        let whole = udp_packet(v6, 7, length);
        let payload = length + 8;
        let mut places: Vec<usize> = places.iter().map(|place| place.index(payload / 8) * 8).collect();
        places.extend([0, payload]);
        places.sort_unstable();
        places.dedup();
        let mut ranges: Vec<_> = places.windows(2).map(|pair| (pair[0], pair[1])).collect();
        prop_assume!(ranges.len() > 1);
        ranges.extend(overlaps.iter().filter_map(|(a, b)| {
            let (a, b) = (a.index(payload / 8) * 8, b.index(payload / 8) * 8);
            (a != b).then_some((a.min(b), a.max(b)))
        }));
        let mut state = order;
        ranges.sort_by_cached_key(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 20
        });
        let mut fragments = fragments();
        let mut wholes = Vec::new();
        for (from, to) in &ranges {
            let taken = give(&mut fragments, &cut(&whole, 7, *from, *to));
            prop_assert!(taken.given_up.is_empty());
            wholes.extend(taken.whole);
        }
        prop_assert!(!wholes.is_empty());
        prop_assert!(wholes.iter().all(|gathered| gathered.ip == whole));
        let late: u64 = fragments.rest().iter().map(|rest| rest.packets).sum();
        prop_assert_eq!(wholes.iter().map(|whole| whole.packets).sum::<u64>() + late, ranges.len() as u64);
        prop_assert_eq!(fragments.bytes, 0);
    }

    #[test]
    fn what_was_ever_contradicted_is_never_shown(
        picks in proptest::collection::vec((any::<bool>(), 0_usize..8, 1_usize..4), 1..40),
    ) {
        let mut other = udp_packet(false, 9, 400);
        let whole = udp_packet(false, 7, 400);
        other[4..6].copy_from_slice(&whole[4..6]);
        let mut fragments = fragments();
        let mut said: Vec<Option<u8>> = vec![None; 408];
        let mut contradicted = false;
        for (which, from, length) in picks {
            let (from, to) = (from * 48, 408.min((from + length) * 48));
            let sent = if which { &other } else { &whole };
            for (said, sent) in said[from..to].iter_mut().zip(&sent[20 + from..]) {
                contradicted |= said.is_some_and(|said| said != *sent);
                *said = Some(*sent);
            }
            if let Some(gathered) = give(&mut fragments, &cut(sent, 7, from, to)).whole {
                prop_assert!(!contradicted);
                prop_assert_eq!(&gathered.ip[20..], said.iter().map(|byte| byte.unwrap()).collect::<Vec<_>>());
                said.fill(None);
            }
        }
    }

    #[test]
    fn any_bytes_as_fragments_are_taken_within_bounds(
        packets in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 60..200), any::<bool>(), 0_u8..3), 0..60),
    ) {
        let limits = FragmentLimits { datagrams: 4, bytes: 1_000, pieces: 3, ..FragmentLimits::default() };
        let mut fragments = Fragments::new(limits);
        let (mut given, mut counted) = (0, 0);
        for (mut bytes, v6, number) in packets {
            if v6 {
                bytes[0] = 0x60;
                bytes[6] = FRAGMENT;
                bytes[8..40].fill(1);
                bytes[44..48].copy_from_slice(&[0, 0, 0, number]);
            } else {
                bytes[0] = 0x45;
                bytes[4..6].copy_from_slice(&[0, number]);
                bytes[9..20].fill(2);
            }
            let Some(Ok(found)) = frame::packets_in(&bytes, bytes.len(), Layers::default()).next() else { continue };
            let Some(fragment) = found.fragment() else { continue };
            given += 1;
            let taken = fragments.take(&found, fragment, at(0));
            counted += taken.given_up.iter().chain(&taken.whole).map(|gathered| gathered.packets).sum::<u64>();
            prop_assert!(fragments.bytes <= 1_000 && fragments.waiting.len() <= 4);
        }
        counted += fragments.rest().iter().map(|rest| rest.packets).sum::<u64>();
        prop_assert_eq!((counted, fragments.bytes), (given, 0));
    }
}
