//! What the probe tells of segments and datagrams, on the host: the kernel's source itself, on connections made up here, whose truth is known.

use proptest::prelude::*;
use usher_models::wire::TcpFlags;

#[path = "../ebpf/src/quality/datagrams.rs"]
#[expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    unreachable_pub,
    reason = "the probe's file, held to the kernel's needs"
)]
mod datagrams;
#[path = "../ebpf/src/quality/segments.rs"]
#[expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_lossless,
    clippy::trivially_copy_pass_by_ref,
    clippy::struct_field_names,
    dead_code,
    unreachable_pub,
    reason = "the probe's file, held to the kernel's needs"
)]
mod segments;

use datagrams::{Datagram, take_call, take_quic};
use segments::{Half, Measured, Segment, Stamps, Ticks, Told, take};

const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const FIN_ACK: TcpFlags = TcpFlags(0x11);

/// Half of the round-trip time of connections here, longer than which nothing was overtaken, in ticks.
const PATIENCE: Ticks = 2_930;

/// A connection as the probe keeps it.
struct Connection {
    halves: [[u64; 3]; 2],
    turn: Measured,
    sum: Told,
    round_trips: Vec<(usize, Ticks)>,
}

impl Connection {
    fn new() -> Self {
        let turn = Measured { turn: 200, always: true };
        Self { halves: [[0; 3]; 2], turn, sum: Told::default(), round_trips: Vec::new() }
    }

    /// A segment of a direction passes at a time.
    fn pass(&mut self, direction: usize, at: Ticks, segment: &Segment) -> Told {
        let other = Half::of(self.halves[1 - direction]);
        let (own, told) = take(Half::of(self.halves[direction]), &other, segment, &self.turn, || at);
        assert_eq!(Half::of(own.words()), own, "survives the table");
        self.halves[direction] = own.words();
        if told.answers {
            self.halves[1 - direction][0] = other.waiting.over().word();
        }
        self.sum.segments += told.segments;
        self.sum.retransmitted += told.retransmitted;
        self.sum.reordered += told.reordered;
        if told.round_trip != 0 {
            self.round_trips.push((1 - direction, told.round_trip));
        }
        told
    }

    fn counts(&self) -> (u32, u32, u32) {
        (self.sum.segments, self.sum.retransmitted, self.sum.reordered)
    }
}

fn data(sequence: u32, payload_bytes: u32) -> Segment {
    Segment {
        sequence,
        acknowledgement: 0,
        flags: ACK,
        payload_bytes,
        segment_bytes: 0,
        stamps: Stamps::default(),
    }
}

fn acknowledging(acknowledgement: u32) -> Segment {
    Segment { acknowledgement, ..data(7, 0) }
}

fn stamped(stamp: u32, echoed: u32, payload_bytes: u32) -> Segment {
    Segment {
        stamps: Stamps { there: true, value: stamp, echoed },
        ..data(stamp.wrapping_mul(1_000), payload_bytes)
    }
}

#[test]
fn a_handshake_measures_both_sides() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &Segment { flags: TcpFlags::SYN, ..data(u32::MAX, 0) });
    connection.pass(1, 41_000, &Segment { flags: SYN_ACK, acknowledgement: 0, ..data(500, 0) });
    connection.pass(0, 51_000, &Segment { acknowledgement: 501, ..data(0, 0) });
    assert_eq!(connection.round_trips, [(0, 40_000), (1, 10_000)]);
    // Each time is right to two ticks, the last bit of one saying what it is of.
    assert_eq!(connection.counts(), (2, 0, 0));
}

#[test]
fn a_handshake_that_is_sent_again_measures_nothing_and_counts_as_lost() {
    let mut connection = Connection::new();
    let syn = Segment { flags: TcpFlags::SYN, ..data(99, 0) };
    connection.pass(0, 1_000, &syn);
    connection.pass(0, 1_000_000, &syn);
    connection.pass(1, 1_040_000, &Segment { flags: SYN_ACK, acknowledgement: 100, ..data(500, 0) });
    assert_eq!(connection.round_trips, []);
    assert_eq!(connection.counts(), (3, 1, 0));
}

#[test]
fn a_new_connection_on_old_ports_begins_anew() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &data(5_000, 100));
    connection.pass(0, 2_000, &Segment { flags: TcpFlags::SYN, ..data(77, 0) });
    connection.pass(0, 3_000, &data(78, 100));
    assert_eq!(connection.counts(), (3, 0, 0));
}

#[test]
fn time_stamps_measure_from_the_first_of_a_stamp_to_its_echo() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &stamped(10, 0, 100));
    connection.pass(0, 2_000, &stamped(11, 0, 100));
    connection.pass(0, 2_500, &Segment { sequence: 11_100, ..stamped(11, 0, 100) });
    connection.pass(1, 3_000, &stamped(90, 10, 0));
    assert_eq!(connection.round_trips, [], "an echo of what came before");
    connection.pass(1, 22_000, &stamped(91, 11, 0));
    assert_eq!(connection.round_trips, [(0, 20_000 - 1)]);
    connection.pass(1, 23_000, &stamped(92, 11, 0));
    assert_eq!(connection.round_trips.len(), 1, "an echo is one answer");
}

#[test]
fn an_echo_that_was_passed_over_measures_nothing() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &stamped(10, 0, 100));
    connection.pass(0, 2_000, &stamped(11, 0, 100));
    connection.pass(0, 3_000, &stamped(12, 0, 100));
    connection.pass(1, 50_000, &stamped(90, 12, 0));
    connection.pass(1, 51_000, &stamped(90, 11, 0));
    assert_eq!(connection.round_trips, []);
}

#[test]
fn acknowledgements_measure_where_there_are_no_time_stamps_but_not_what_was_sent_twice() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &data(0, 100));
    connection.pass(0, 2_000, &data(100, 100));
    connection.pass(1, 9_000, &acknowledging(100));
    connection.pass(1, 12_000, &acknowledging(200));
    assert_eq!(connection.round_trips, [(0, 10_000)]);
    connection.pass(0, 20_000, &data(200, 100));
    connection.pass(0, 900_000, &data(200, 100));
    connection.pass(1, 910_000, &acknowledging(300));
    assert_eq!(connection.round_trips.len(), 1);
    assert_eq!(connection.counts(), (4, 1, 0));
}

#[test]
fn what_carries_nothing_new_is_no_loss() {
    let mut connection = Connection::new();
    connection.pass(0, 1_000, &data(1_000, 100));
    for at in 2..20 {
        // Keep-alives with a byte and without, and acknowledgements, with blocks of SACK or without: they carry nothing.
        connection.pass(0, at * 100_000, &data(1_099, 1));
        connection.pass(0, at * 100_000 + 1, &data(1_099, 0));
        connection.pass(0, at * 100_000 + 2, &data(1_100, 0));
    }
    assert_eq!(connection.counts(), (1, 0, 0));
    let end = Segment { flags: FIN_ACK, ..data(1_100, 0) };
    connection.pass(0, 5_000_000, &end);
    connection.pass(0, 6_000_000, &end);
    assert_eq!(connection.counts(), (3, 1, 0), "the end is a segment, and was sent again");
}

#[test]
fn a_super_packet_is_its_segments() {
    let mut connection = Connection::new();
    let large = |sequence, payload_bytes| Segment { segment_bytes: 1_000, ..data(sequence, payload_bytes) };
    connection.pass(0, 1_000, &large(0, 9_500));
    assert_eq!(connection.counts(), (10, 0, 0));
    connection.pass(0, 100_000, &large(7_000, 2_500));
    assert_eq!(connection.counts(), (13, 3, 0));
    connection.pass(0, 200_000, &large(7_500, 4_000));
    assert_eq!(connection.counts(), (17, 5, 0), "two of four reach into what was sent");
}

#[test]
fn what_passed_unmeasured_is_not_held_against_what_follows() {
    let mut connection = Connection::new();
    connection.turn.always = false;
    connection.pass(0, 1_000, &data(1_000, 100));
    connection.turn.turn += 8;
    connection.pass(1, 9_000_000, &acknowledging(1_100));
    connection.pass(0, 9_000_000, &data(500, 100));
    assert_eq!((connection.counts(), connection.round_trips.len()), ((2, 0, 0), 0));
    connection.pass(0, 9_900_000, &data(500, 100));
    assert_eq!(connection.counts(), (3, 1, 0));
}

#[test]
fn what_is_sent_again_a_round_trip_later_is_lost_also_after_an_acknowledgement_that_was_delayed() {
    let mut connection = Connection::new();
    // The path takes 10,000 and 2,000 ticks; the peer delays the last acknowledgement by 40,000.
    connection.pass(0, 1_000, &Segment { flags: TcpFlags::SYN, ..data(99, 0) });
    connection.pass(1, 11_000, &Segment { flags: SYN_ACK, acknowledgement: 100, ..data(6, 0) });
    connection.pass(0, 13_000, &Segment { acknowledgement: 7, ..data(100, 0) });
    connection.pass(0, 14_000, &data(100, 100));
    connection.pass(1, 64_000, &acknowledging(200));
    connection.pass(0, 65_000, &data(300, 100));
    connection.pass(0, 77_000, &data(200, 100));
    assert_eq!(connection.round_trips, [(0, 10_000), (1, 2_000), (0, 50_000)]);
    assert_eq!(connection.counts(), (5, 1, 0));
}

/// What becomes of a segment on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Arrives,
    /// Lost before the probe sees it.
    LostBefore,
    /// Lost behind it.
    LostBehind,
}

proptest! {
    /// A sender sends what was lost again a round trip later, as often as it takes; nothing is overtaken. No segment is of a byte, which looks
    /// like a keep-alive when it comes again.
    #[test]
    fn every_segment_that_is_sent_again_is_counted_and_no_other(
        start: u32,
        segments in proptest::collection::vec(
            (2_u32..3_000, proptest::collection::vec(0_u8..8, 4)), 1..120,
        ),
        gap in 1_u32..40,
    ) {
        let round_trip = PATIENCE * 3;
        // Times at which something is sent, with the number of tries before.
        let mut due: Vec<(Ticks, usize, usize)> = (0..).zip(0..segments.len()).map(|(turn, number)| (turn * gap, number, 0)).collect();
        let mut connection = Connection::new();
        let mut begins = vec![start];
        for (bytes, _) in &segments {
            begins.push(begins.last().expect("one").wrapping_add(*bytes));
        }
        // The handshake, so that the probe knows where the first one begins.
        connection.pass(0, 1, &Segment { flags: TcpFlags::SYN, ..data(start.wrapping_sub(1), 0) });
        let (mut passed, mut again, mut highest) = (1, 0, None);
        while !due.is_empty() {
            due.sort_unstable();
            let (at, number, tries) = due.remove(0);
            let fate = match segments[number].1.get(tries) {
                Some(0) => Fate::LostBefore,
                Some(1) => Fate::LostBehind,
                _ => Fate::Arrives,
            };
            if fate != Fate::Arrives {
                due.push((at + round_trip, number, tries + 1));
            }
            if fate == Fate::LostBefore {
                continue;
            }
            passed += 1;
            connection.pass(0, at + 10, &data(begins[number], segments[number].0));
            // One that was lost before the probe, and behind which nothing came yet, is the first of its kind to whoever looks on.
            again += u32::from(tries > 0 && Some(number) <= highest);
            highest = highest.max(Some(number));
        }
        prop_assert_eq!(connection.counts(), (passed, again, 0));
    }

    /// Segments change places on their way, and none is lost.
    #[test]
    fn every_segment_that_is_overtaken_is_counted_and_none_is_lost(
        start: u32,
        late in proptest::collection::vec(0_u8..6, 1..100),
    ) {
        let mut order: Vec<(usize, usize)> = late.iter().enumerate().map(|(number, late)| {
            // One in six comes three places later.
            (number + if *late == 0 { 3 } else { 0 }, number)
        }).collect();
        order.sort_unstable();
        let mut connection = Connection::new();
        connection.pass(0, 1, &Segment { flags: TcpFlags::SYN, ..data(start.wrapping_sub(1), 0) });
        let (mut highest, mut overtaken) = (None, 0);
        for (at, (_, number)) in (10..).zip(&order) {
            overtaken += u32::from(highest.is_some_and(|highest| *number < highest));
            highest = highest.max(Some(*number));
            let sequence = start.wrapping_add(u32::try_from(*number).expect("few") * 1_000);
            connection.pass(0, at, &data(sequence, 1_000));
        }
        let passed = u32::try_from(order.len()).expect("few") + 1;
        prop_assert_eq!(connection.counts(), (passed, 0, overtaken));
    }

    #[test]
    fn no_segments_whatever_make_more_of_them_than_there_are(
        segments in proptest::collection::vec(any::<(bool, u32, u32, u8, u16, u16, (bool, u32, u32), u32)>(), 0..200),
    ) {
        let mut connection = Connection::new();
        for (down, sequence, acknowledgement, flags, payload, each, stamps, at) in segments {
            let segment = Segment {
                sequence, acknowledgement, flags: TcpFlags(flags), payload_bytes: payload.into(),
                segment_bytes: each.into(),
                stamps: Stamps { there: stamps.0, value: stamps.1, echoed: stamps.2 },
            };
            let told = connection.pass(down.into(), at, &segment);
            prop_assert!(told.retransmitted + told.reordered <= told.segments);
            prop_assert!(told.segments <= u32::from(payload) + 2);
        }
    }
}

/// A connection of QUIC, or a call, as the probe keeps it.
struct Datagrams {
    halves: [[u64; 3]; 2],
    turn: Measured,
    round_trips: Vec<(usize, Ticks)>,
}

impl Datagrams {
    fn new() -> Self {
        Self { halves: [[0; 3]; 2], turn: Measured { turn: 9, always: true }, round_trips: Vec::new() }
    }

    fn quic(&mut self, direction: usize, at: Ticks, first: u8, version: u32) {
        let datagram = Datagram { first, version, up: direction == 0 };
        let other = datagrams::Half::of(self.halves[1 - direction]);
        let own = datagrams::Half::of(self.halves[direction]);
        let (own, told) = take_quic(own, &other, &datagram, &self.turn, || at);
        assert_eq!(datagrams::Half::of(own.words()), own, "survives the table");
        self.halves[direction] = own.words();
        if told.round_trip != 0 {
            self.round_trips.push((1 - direction, told.round_trip));
        }
    }

    /// Windows that were told, and those that were irregular, of so many datagrams in each.
    fn call(&mut self, datagrams: &[u64]) -> (u32, u32) {
        let (mut windows, mut irregular) = (0, 0);
        for (window, count) in (1_u64..).zip(datagrams) {
            for number in 0..*count {
                let at = (window << 27) + (number << 27) / count;
                let own = datagrams::Half::of(self.halves[0]);
                let (own, told) = take_call(own, &self.turn, at);
                assert_eq!(datagrams::Half::of(own.words()), own, "survives the table");
                self.halves[0] = own.words();
                windows += told.windows;
                irregular += told.irregular;
            }
        }
        (windows, irregular)
    }
}

/// First bytes of QUIC's headers of version 1, and of version 2 of the same types.
const INITIAL: [u8; 2] = [0xc0, 0xd0];
const HANDSHAKE: [u8; 2] = [0xe0, 0xf0];
const RETRY: [u8; 2] = [0xf0, 0xc0];
const VERSIONS: [u32; 2] = [1, 0x6b33_43cf];

#[test]
fn a_handshake_of_quic_measures_both_sides_once() {
    for kind in 0..2 {
        let mut connection = Datagrams::new();
        let version = VERSIONS[kind];
        connection.quic(0, 1_001, INITIAL[kind], version);
        connection.quic(0, 1_101, INITIAL[kind], version);
        connection.quic(1, 41_001, INITIAL[kind], version);
        connection.quic(1, 41_101, HANDSHAKE[kind], version);
        connection.quic(0, 51_001, INITIAL[kind], version);
        connection.quic(0, 51_101, HANDSHAKE[kind], version);
        connection.quic(1, 91_001, 0x40, 0);
        assert_eq!(connection.round_trips, [(0, 40_000), (1, 10_000)], "version {version:x}");
    }
}

#[test]
fn a_retry_and_a_version_negotiation_are_no_handshake() {
    let mut connection = Datagrams::new();
    connection.quic(0, 1_001, INITIAL[0], 1);
    connection.quic(1, 2_001, RETRY[0], 1);
    connection.quic(1, 3_001, 0xc0, 0);
    assert_eq!(connection.round_trips, []);
}

#[test]
fn the_spin_bit_measures_both_sides_where_both_ends_spin_it() {
    let mut connection = Datagrams::new();
    for (direction, at, first) in [(0, 1, 0xc0), (1, 40_001, 0xc0), (0, 50_001, 0xe0)] {
        connection.quic(direction, at, first, 1);
    }
    connection.round_trips.clear();
    let mut at = 100_001;
    for spin in [0x60, 0x40, 0x60] {
        connection.quic(0, at, spin, 0);
        connection.quic(0, at + 10, spin, 0);
        connection.quic(1, at + 40_000, spin, 0);
        at += 50_000;
    }
    assert_eq!(connection.round_trips, [(0, 40_000), (1, 10_000), (0, 40_000), (1, 10_000), (0, 40_000)]);
}

#[test]
fn a_spin_bit_that_does_not_spin_measures_nothing() {
    let mut connection = Datagrams::new();
    for (direction, at, first) in [(0, 1, 0xc0), (1, 40_001, 0xc0), (0, 50_001, 0xe0)] {
        connection.quic(direction, at, first, 1);
    }
    connection.round_trips.clear();
    // Set by chance, on datagrams that follow each other closely.
    let mut random = 12_345_u32;
    for number in 0..1_000 {
        random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let spin = 0x40 | ((random >> 16 & 1) as u8 * 0x20);
        connection.quic((random >> 20 & 1) as usize, 100_001 + number * 100, spin, 0);
    }
    assert_eq!(connection.round_trips, []);
}

#[test]
fn a_call_that_goes_evenly_is_regular_and_one_with_gaps_and_bursts_is_not() {
    let even: Vec<u64> = (0..50).map(|window| 6 + window % 2).collect();
    let (windows, irregular) = Datagrams::new().call(&even);
    assert!(windows >= 40 && irregular == 0, "{irregular} of {windows}");

    let uneven: Vec<u64> = (0..50).map(|window| if window % 5 == 4 { 26 } else { 1 }).collect();
    let (windows, irregular) = Datagrams::new().call(&uneven);
    assert!(irregular * 2 > windows, "{irregular} of {windows}");

    let mut gap = vec![6; 30];
    gap.extend([0, 0, 0, 6, 6]);
    let (_, irregular) = Datagrams::new().call(&gap);
    assert_eq!(irregular, 3, "the windows of the gap");

    let mut pause = vec![6; 30];
    pause.extend([0; 100]);
    pause.extend([6; 5]);
    assert_eq!(Datagrams::new().call(&pause).1, 0, "a call that paused is no worse for it");
}

proptest! {
    #[test]
    fn no_datagrams_whatever_measure_longer_than_they_took(
        datagrams in proptest::collection::vec(any::<(bool, u8, u32, u16)>(), 0..200),
    ) {
        let mut connection = Datagrams::new();
        let mut at: Ticks = 1;
        for (down, first, version, gap) in datagrams {
            at += Ticks::from(gap);
            connection.quic(down.into(), at, first, version);
        }
        prop_assert!(connection.round_trips.iter().all(|(_, ticks)| *ticks <= at));
    }
}
