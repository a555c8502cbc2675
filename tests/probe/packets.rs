//! What is counted, for whom, and what is handed up.

use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};
use usher_agent::dataplane::ForApp;
use usher_agent::probe::{Probe, Trial, Verdict};
use usher_agent::usage::Baseline;
use usher_models::units::BitsPerSecond;
use usher_models::wire::{ANONYMOUS, Class, Direction, Enforcement, Gate, Reason, TcpFlags};
use usher_tests::wait::{self, Seen};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// The Ethernet header's bytes.
const LINK: u64 = 14;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn packets_are_counted_to_the_byte_by_slot_class_and_direction() {
    on_a_kernel!("packets_are_counted_to_the_byte_by_slot_class_and_direction");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let (mut up, mut down) = (0, 0);
    for length in 0..40 {
        let frame = tcp(Up, 4000, &vec![1; length * 7]);
        up += frame.len() as u64 - LINK;
        assert_eq!(run(&probe, Up, &frame), Verdict::Pass);
        let frame = tcp(Down, 4000, &vec![1; length * 31]);
        down += frame.len() as u64 - LINK;
        assert_eq!(run(&probe, Down, &frame), Verdict::Pass);
    }
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(up, 40));
    assert_eq!(cell(&probe, SLOT, Class::Other, Down), passed(down, 40));

    assert!(probe.name_flow(&flow(6, 4000, 443), Class::Video, false).expect("names"));
    let frame = tcp(Down, 4000, &[1; 1_000]);
    run(&probe, Down, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Video, Down), passed(frame.len() as u64 - LINK, 1));
    assert_eq!(cell(&probe, SLOT, Class::Video, Up), passed(0, 0));
    assert_eq!(cell(&probe, SLOT, Class::Other, Down), passed(down, 40));
    assert_eq!(everything(&probe).0, 81);
}

#[test]
fn padding_after_the_ip_packet_is_not_usage() {
    on_a_kernel!("padding_after_the_ip_packet_is_not_usage");
    let rig = Rig::new();
    let probe = rig.probe();
    let mut frame = udp(5000, 443, &[1; 4]);
    let bytes = frame.len() as u64 - LINK;
    frame.resize(60, 0);
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 1));
}

#[test]
fn an_unknown_subscriber_is_counted_as_nobody() {
    on_a_kernel!("an_unknown_subscriber_is_counted_as_nobody");
    let rig = Rig::new();
    let probe = rig.load().expect("loads");
    let frame = tcp(Up, 4000, b"x");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Up), passed(frame.len() as u64 - LINK, 1));
}

#[test]
fn the_longest_prefix_decides_whose_a_packet_is() {
    on_a_kernel!("the_longest_prefix_decides_whose_a_packet_is");
    let rig = Rig::new();
    let mut probe = rig.load().expect("loads");
    probe.bind(net("10.0.0.0/8"), 1).expect("binds");
    probe.bind(net("10.0.0.0/24"), 2).expect("binds");
    let frame = tcp(Up, 4000, b"x");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, 2, Class::Other, Up).packets, 1);
    assert_eq!(cell(&probe, 1, Class::Other, Up).packets, 0);
}

#[test]
fn vlan_tags_in_the_frame_are_looked_through() {
    on_a_kernel!("vlan_tags_in_the_frame_are_looked_through");
    let rig = Rig::new();
    let probe = rig.probe();
    let plain = tcp(Up, 4000, b"payload");
    let bytes = plain.len() as u64 - LINK;
    let stacks: [&[(u16, u16)]; 3] =
        [&[(0x8100, 7)], &[(0x88a8, 7), (0x8100, 8)], &[(0x9100, 7), (0x8100, 8)]];
    for (tags, count) in stacks.into_iter().zip(1..) {
        run(&probe, Up, &tagged(&plain, tags));
        assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes * count, count), "{tags:x?}");
    }
    let deep = tagged(&plain, &[(0x8100, 1); 9]);
    assert_eq!(run(&probe, Up, &deep), Verdict::Pass);
    let tally = tally(&probe, Reason::TooManyTags, Up);
    assert_eq!((tally.packets, tally.bytes), (1, deep.len() as u64));
    assert_eq!(everything(&probe).0, 4);
}

#[test]
fn tags_that_the_kernel_keeps_beside_the_frame_change_no_count() {
    on_a_kernel!("tags_that_the_kernel_keeps_beside_the_frame_change_no_count");
    let rig = Rig::new();
    let probe = rig.probe();
    // The outermost tag of a frame that comes in is put beside it before the probe sees it, and stays there where a bridge hands it on.
    let other = Rig::new();
    let bridge = Temporary(rig.interface.replace("ut", "ub"));
    ip(&["link", "add", &bridge.0, "type", "bridge", "mcast_snooping", "0"]);
    ip(&["link", "set", &bridge.0, "addrgenmode", "none", "up"]);
    for rig in [&rig, &other] {
        rig.up();
        ip(&["link", "set", &rig.interface, "master", &bridge.0]);
        wait::until("a port that forwards", SOON, || {
            let file = format!("/sys/class/net/{}/brport/state", rig.interface);
            let state = std::fs::read_to_string(file)?;
            Ok(Seen::when(state.trim() == "3", (), state))
        })
        .expect("forwards");
    }
    let [mut subscribers, mut core] = [&rig, &other].map(|rig| wire(&rig.peer()));
    let mut expected = [passed(0, 0); 2];
    let mut others = 0;
    // The second tag of two is in the frame.
    for tags in [&[(0x8100, 7)][..], &[(0x88a8, 7), (0x8100, 8)]] {
        let mut send = |direction, frame: &[u8]| {
            let from = if direction == Up { &mut subscribers } else { &mut core };
            from.sendpacket(tagged(frame, tags)).expect("sends");
        };
        for (direction, expected) in Direction::BOTH.into_iter().zip(&mut expected) {
            for length in (0..1_000).step_by(99) {
                let frame = tcp(direction, 4_000, &vec![1; length]);
                expected.bytes += frame.len() as u64 - LINK;
                expected.packets += 1;
                send(direction, &frame);
            }
            // What is no IP counts as long as the frame is: so it is seen that a tag is not in it. (The number is one for experiments.)
            let mut no_ip = tcp(direction, 4_000, b"");
            no_ip[12..14].copy_from_slice(&[0x88, 0xb5]);
            send(direction, &no_ip);
            others += (no_ip.len() + 4 * (tags.len() - 1)) as u64;
        }
    }
    let sent = expected[0].packets + expected[1].packets + 4;
    wait::until("all frames", SOON, || {
        let (packets, _) = everything(&probe);
        Ok(Seen::when(packets >= sent, (), packets))
    })
    .expect("arrive");
    for (direction, expected) in Direction::BOTH.into_iter().zip(expected) {
        assert_eq!(cell(&probe, SLOT, Class::Other, direction), expected, "{direction:?}");
        let tally = tally(&probe, Reason::NotIp, direction);
        assert_eq!((tally.packets, tally.bytes), (2, others / 2), "{direction:?}");
    }
}

#[test]
fn counters_go_on_past_four_gigabytes_and_four_billion_packets() {
    const RUNS: u32 = 1_500_000;
    const PAYLOAD: usize = 3_000;
    // As many segments as bytes of payload, each with its headers.
    const PACKETS: u64 = RUNS as u64 * PAYLOAD as u64;
    const BYTES: u64 = PACKETS * 41;
    on_a_kernel!("counters_go_on_past_four_gigabytes_and_four_billion_packets");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = tcp(Down, 4000, &[1; PAYLOAD]);
    let many = |probe: &Probe, frame: &[u8]| {
        let trial = Trial { repeat: RUNS, segment_bytes: 1, ..Trial::once(Down, frame) };
        probe.trial(&trial).expect("runs");
    };
    run(&probe, Down, &frame);
    assert_eq!(probe.count_for_app(&flow(6, 4000, 443), Some("letters")), ForApp::Counted);
    let before = cell(&probe, SLOT, Class::Other, Down);
    many(&probe, &frame);
    let counted = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!((counted.bytes - before.bytes, counted.packets - before.packets), (BYTES, PACKETS));
    let app = &probe.moved_apps(&Baseline::default())[0];
    assert_eq!(app.now[Down.index()], BYTES);

    probe.enforce(SLOT, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    many(&probe, &frame);
    let blocked = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!((blocked.dropped_bytes, blocked.dropped_packets), (BYTES, PACKETS));
    assert_eq!((blocked.bytes, blocked.packets), (counted.bytes, counted.packets));

    probe.unbind(net("10.0.0.2/32")).expect("unbinds");
    many(&probe, &frame);
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Down), passed(BYTES, PACKETS));

    let mut arp = frame;
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    many(&probe, &arp);
    let bytes = u64::from(RUNS) * arp.len() as u64;
    let tally = tally(&probe, Reason::NotIp, Down);
    assert_eq!((tally.packets, tally.bytes), (RUNS.into(), bytes));
    assert!(PACKETS > 1 << 32 && bytes > 1 << 32, "or nothing was tested");
}

#[test]
fn ipv6_is_counted_with_extension_headers_and_without() {
    on_a_kernel!("ipv6_is_counted_with_extension_headers_and_without");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = udp6(Up, 5000, b"hello");
    let mut bytes = frame.len() as u64 - LINK;
    run(&probe, Up, &frame);
    // Hop-by-hop, destination options, then UDP.
    let mut rest = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rest.extend(udp_header(5000, 443, b"again"));
    let frame = ipv6(0, &rest);
    bytes += frame.len() as u64 - LINK;
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 2));
    let taken = samples(&mut probe);
    assert_eq!(taken.len(), 2);
    assert_eq!(taken[0].flow, taken[1].flow, "extension headers do not make another flow");
    assert_eq!((taken[0].flow.subscriber, taken[0].flow.remote), (SUBSCRIBER6, SERVER6));
    assert_eq!((taken[0].flow.subscriber_port, taken[0].flow.remote_port), (5000, 443));
}

#[test]
fn an_ipv6_packet_that_does_not_say_its_length_is_as_long_as_what_is_there() {
    on_a_kernel!("an_ipv6_packet_that_does_not_say_its_length_is_as_long_as_what_is_there");
    let rig = Rig::new();
    let probe = rig.probe();
    // Hop-by-hop options of padding alone, which Linux takes for a jumbogram's, then UDP.
    let mut rest = vec![17, 0, 1, 4, 0, 0, 0, 0];
    rest.extend(udp_header(5000, 443, &[0; 1_400]));
    let mut frame = ipv6(0, &rest);
    frame[18..20].fill(0);
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(frame.len() as u64 - LINK, 1));
    // Without such options one that says nothing has nothing.
    let mut frame = udp6(Up, 5000, &[0; 1_400]);
    frame[18..20].fill(0);
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 2);
    assert_eq!(tally(&probe, Reason::BadTransport, Up).packets, 1);
}

#[test]
fn all_fragments_of_a_packet_count_for_its_flow() {
    on_a_kernel!("all_fragments_of_a_packet_count_for_its_flow");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let mut first = udp(5000, 443, &[1; 64]);
    first[20] = 0x20;
    let mut later = udp(5000, 443, &[1; 64]);
    later[21] = 9;
    run(&probe, Up, &first);
    run(&probe, Up, &later);
    // The same in IPv6, where the fragment header is an extension.
    let mut rest = vec![17, 0, 0, 1, 0, 0, 0, 9];
    rest.extend(udp_header(6000, 443, &[1; 64]));
    let first6 = ipv6(44, &rest);
    rest[2] = 1;
    let later6 = ipv6(44, &rest);
    run(&probe, Up, &first6);
    run(&probe, Up, &later6);
    let bytes = [&first, &later, &first6, &later6].iter().map(|frame| frame.len() as u64 - LINK).sum();
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 4));
    let ports: Vec<_> = samples(&mut probe).iter().map(|sample| sample.flow.subscriber_port).collect();
    assert_eq!(ports, [5000, 6000], "only first fragments are handed up");

    // What the first one is, the later ones are.
    assert!(probe.name_flow(&flow(17, 5000, 443), Class::Bulk, false).expect("names"));
    for fragment in [&first, &later] {
        run(&probe, Up, fragment);
    }
    assert_eq!(cell(&probe, SLOT, Class::Bulk, Up).packets, 2);
    // A later one whose first has not been seen is a flow without ports.
    later[18] = 77;
    run(&probe, Up, &later);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 5);
    assert!(probe.name_flow(&flow(17, 0, 0), Class::Bulk, false).expect("names"));
}

#[test]
fn a_super_packet_counts_its_segments_and_their_headers() {
    on_a_kernel!("a_super_packet_counts_its_segments_and_their_headers");
    let rig = Rig::new();
    let probe = rig.probe();
    let frame = tcp(Down, 4000, &[1; 3_100]);
    run_super(&probe, Down, &frame, 500);
    // Six full segments and one of 100 bytes, each with 40 bytes of headers.
    assert_eq!(cell(&probe, SLOT, Class::Other, Down), passed(3_100 + 7 * 40, 7));
}

#[test]
fn hostile_frames_pass_and_are_counted_by_reason() {
    on_a_kernel!("hostile_frames_pass_and_are_counted_by_reason");
    let rig = Rig::new();
    let probe = rig.probe();
    let good = tcp(Up, 4000, b"payload");
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let mut arp = good.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let cases: [(Reason, Vec<u8>); 13] = [
        (Reason::NotIp, arp),
        (Reason::BadIp, with(14, 0x55)),
        (Reason::BadIp, with(14, 0x44)),
        (Reason::BadIp, with(17, 19)),
        (Reason::TruncatedIp, with(16, 0xff)),
        // In a VLAN, for the kernel's test run takes no frame that says IP and is too short for it.
        (Reason::TruncatedIp, tagged(&good, &[(0x8100, 1)])[..18 + 19].to_vec()),
        (Reason::TruncatedIp, tagged(&ipv6(17, &[]), &[(0x8100, 1)])[..18 + 39].to_vec()),
        (Reason::TruncatedLink, tagged(&good, &[(0x8100, 1)])[..17].to_vec()),
        (Reason::BadIp, {
            let mut spoofed = udp6(Up, 1, b"x");
            spoofed[22..38].copy_from_slice(&mapped(SUBSCRIBER));
            spoofed
        }),
        (Reason::BadTransport, with(46, 0x40)),
        (Reason::BadTransport, with(46, 0xf0)),
        (Reason::BadTransport, ipv6(17, &[0, 1, 0, 2, 0, 8])),
        (Reason::Extensions, {
            let options = [60, 0, 1, 4, 0, 0, 0, 0];
            ipv6(60, &options.repeat(9))
        }),
    ];
    for (reason, frame) in &cases {
        let before = tally(&probe, *reason, Up);
        assert_eq!(run(&probe, Up, frame), Verdict::Pass, "{reason:?}");
        let after = tally(&probe, *reason, Up);
        assert_eq!(after.packets - before.packets, 1, "{reason:?}: {frame:02x?}");
        assert_eq!(after.bytes - before.bytes, frame.len() as u64, "{reason:?}");
    }
    assert_eq!(everything(&probe).0, cases.len() as u64, "each is counted in one place");
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 4, "what has addresses has a subscriber");
}

#[test]
fn every_cut_of_a_packet_passes_and_is_counted_once() {
    on_a_kernel!("every_cut_of_a_packet_passes_and_is_counted_once");
    let rig = Rig::new();
    let probe = rig.probe();
    let mut count = 0;
    for whole in [tcp(Up, 4000, b"payload"), udp6(Up, 5000, b"payload"), ipv6(0, &[0, 9, 1, 4, 0, 0, 0, 0])] {
        // The kernel's test run takes no frame of an Ethernet header alone, nor IP that is too short for it but in a VLAN.
        let whole = tagged(&whole, &[(0x88a8, 1), (0x8100, 2)]);
        for end in 15..whole.len() {
            assert_eq!(run(&probe, Up, &whole[..end]), Verdict::Pass);
            count += 1;
        }
    }
    assert_eq!(everything(&probe).0, count);
}

#[test]
fn first_bytes_are_handed_up_until_the_budget_or_the_verdict() {
    on_a_kernel!("first_bytes_are_handed_up_until_the_budget_or_the_verdict");
    let rig = Rig::new();
    let mut probe = rig.probe();
    run(&probe, Up, &tcp(Up, 4000, b""));
    assert_eq!(samples(&mut probe), [], "a bare acknowledgement shows nothing");
    for _ in 0..10 {
        run(&probe, Up, &tcp(Up, 4000, b"hello"));
    }
    let taken = samples(&mut probe);
    assert_eq!(taken.len(), 4, "the budget");
    assert_eq!(taken[0].flow, flow(6, 4000, 443));
    assert_eq!((taken[0].slot, taken[0].direction), (SLOT, Up));
    assert_eq!(*taken[0].packet, tcp(Up, 4000, b"hello")[14..]);
    assert!(taken[0].first_packet <= taken[0].seen);
    assert!(usher_models::units::Micros::now().since(taken[0].seen) < Duration::from_mins(1));

    run(&probe, Down, &tcp(Down, 4001, b"hello"));
    assert_eq!(samples(&mut probe).len(), 1);
    probe.name_flow(&flow(6, 4001, 443), Class::Web, false).expect("names");
    run(&probe, Down, &tcp(Down, 4001, b"hello"));
    assert_eq!(samples(&mut probe), [], "the verdict");
}

#[test]
fn the_ends_of_a_connection_are_handed_up_and_a_new_one_on_its_ports_begins_anew() {
    on_a_kernel!("the_ends_of_a_connection_are_handed_up_and_a_new_one_on_its_ports_begins_anew");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let opening = tcp_with(TcpFlags::SYN, Up);
    let answer = tcp_with(TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0), Down);
    let (end, reset) = (tcp_with(TcpFlags::FIN, Up), tcp_with(TcpFlags::RST, Down));
    let all = [(Up, &opening), (Down, &answer), (Up, &end), (Down, &reset)];
    for (direction, frame) in all {
        run(&probe, direction, frame);
    }
    let taken = samples(&mut probe);
    let packets: Vec<_> = taken.iter().map(|sample| &*sample.packet).collect();
    assert_eq!(packets, all.map(|(_, frame)| &frame[14..]));
    run(&probe, Up, &tcp(Up, 4000, b"hello"));
    assert_eq!(samples(&mut probe), [], "the budget");

    run(&probe, Up, &opening);
    run(&probe, Up, &tcp(Up, 4000, b"hello"));
    let again = samples(&mut probe);
    assert_eq!(again.len(), 2, "a budget of its own");
    probe.name_flow(&flow(6, 4000, 443), Class::Web, false).expect("names");
    run(&probe, Down, &answer);
    assert_eq!(samples(&mut probe), [], "the verdict");
    run(&probe, Up, &opening);
    assert_eq!(samples(&mut probe).len(), 1);
    assert_eq!(cell(&probe, SLOT, Class::Web, Up).packets, 1, "the class holds until the next verdict");
}

#[test]
fn names_asked_for_are_handed_up_without_end() {
    on_a_kernel!("names_asked_for_are_handed_up_without_end");
    let rig = Rig::new();
    let mut probe = rig.probe();
    for _ in 0..20 {
        run(&probe, Up, &udp(5000, 53, b"query"));
    }
    assert_eq!(samples(&mut probe).len(), 20);
}

#[test]
fn a_long_packet_is_handed_up_to_the_configured_length() {
    on_a_kernel!("a_long_packet_is_handed_up_to_the_configured_length");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = udp(5000, 443, &[7; 3_000]);
    run(&probe, Up, &frame);
    let taken = samples(&mut probe);
    assert_eq!(*taken[0].packet, frame[14..14 + 2_048]);
}

#[test]
fn a_full_ring_costs_samples_and_no_usage() {
    on_a_kernel!("a_full_ring_costs_samples_and_no_usage");
    let mut rig = Rig::new();
    rig.settings.ring_bytes = 1 << 16;
    // No limit: the ring is.
    rig.settings.sample_rate = BitsPerSecond(0);
    let mut probe = rig.probe();
    for _ in 0..100 {
        run(&probe, Up, &udp(5000, 53, &[1; 1_000]));
    }
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 100);
    let lost = tally(&probe, Reason::SampleLost, Up).packets;
    assert_eq!(samples(&mut probe).len() as u64 + lost, 100);
    assert!(lost > 0);
}

#[test]
fn one_subscriber_does_not_fill_the_ring_for_all() {
    on_a_kernel!("one_subscriber_does_not_fill_the_ring_for_all");
    let mut rig = Rig::new();
    // So slow that nothing comes after the burst, however long the test takes.
    rig.settings.sample_rate = BitsPerSecond(64_000);
    let mut probe = rig.probe();
    for _ in 0..1_000 {
        run(&probe, Up, &udp(5000, 53, &[1; 1_000]));
    }
    assert!(tally(&probe, Reason::SampleRationed, Up).packets > 500);
    run(&probe, Up, &tcp_of([10, 0, 0, 3], b"hello"));
    let taken = samples(&mut probe);
    assert_eq!(*taken.last().expect("some").packet, tcp_of([10, 0, 0, 3], b"hello")[14..]);
    assert_eq!(tally(&probe, Reason::SampleLost, Up).packets, 0);
}

#[test]
fn a_full_flow_table_costs_a_label_and_no_byte() {
    on_a_kernel!("a_full_flow_table_costs_a_label_and_no_byte");
    let mut rig = Rig::new();
    rig.settings.max_flows = 8;
    let mut probe = rig.probe();
    let mut bytes = 0;
    for port in 0..200 {
        let frame = tcp(Up, 1_000 + port, b"x");
        bytes += frame.len() as u64 - LINK;
        run(&probe, Up, &frame);
    }
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 200));
    let unknown = tally(&probe, Reason::FlowTableFull, Up).packets;
    assert!((200 - 16..=200 - 8).contains(&unknown), "{unknown} found no place of 16");
    let named = (1_000..1_200)
        .filter(|port| probe.name_flow(&flow(6, *port, 443), Class::Web, false).expect("asks"))
        .count();
    assert_eq!(named as u64, 200 - unknown, "each flow is in the table or was told not to be");
}

#[test]
fn what_finds_no_place_is_enforced_and_moves_with_its_session_all_the_same() {
    on_a_kernel!("what_finds_no_place_is_enforced_and_moves_with_its_session_all_the_same");
    let mut rig = Rig::new();
    rig.settings.max_flows = 1;
    let mut probe = rig.probe();
    for port in 0..64 {
        run(&probe, Up, &tcp(Up, 1_000 + port, b"x"));
    }
    let before = tally(&probe, Reason::FlowTableFull, Up).packets;
    run(&probe, Up, &tcp(Up, 1_063, b"x"));
    assert_eq!(tally(&probe, Reason::FlowTableFull, Up).packets, before + 1);
    probe.bind(net("10.0.0.2/32"), 5).expect("moves");
    run(&probe, Up, &tcp(Up, 1_063, b"x"));
    assert_eq!(cell(&probe, 5, Class::Other, Up).packets, 1);
    probe.enforce(5, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    assert_eq!(run(&probe, Up, &tcp(Up, 1_063, b"x")), Verdict::Drop);
    assert_eq!(cell(&probe, 5, Class::Other, Up).dropped_packets, 1);
    assert_eq!(everything(&probe).0, 67);
}

#[test]
fn the_packet_in_a_tunnel_is_the_subscribers() {
    on_a_kernel!("the_packet_in_a_tunnel_is_the_subscribers");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let inner = tcp(Up, 4000, b"hello");
    let bytes = inner.len() as u64 - LINK;
    run(&probe, Up, &gtpu(&inner[14..]));
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 1));
    let taken = samples(&mut probe);
    assert_eq!(taken[0].flow, flow(6, 4000, 443));
    assert_eq!(taken[0].packet, &inner[14..]);
    // The same flow, whatever it comes in.
    probe.name_flow(&flow(6, 4000, 443), Class::Web, false).expect("names");
    run(&probe, Up, &tagged(&gtpu(&inner[14..]), &[(0x88a8, 1), (0x8100, 2)]));
    run(&probe, Up, &inner);
    assert_eq!(cell(&probe, SLOT, Class::Web, Up), passed(2 * bytes, 2));
}

#[test]
fn of_packets_in_packets_the_outermost_with_a_session_counts_else_the_innermost() {
    on_a_kernel!("of_packets_in_packets_the_outermost_with_a_session_counts_else_the_innermost");
    let rig = Rig::new();
    let mut probe = rig.probe();
    // The subscriber's own tunnel, with addresses inside that are nobody's.
    let mut inside = Vec::new();
    etherparse::PacketBuilder::ipv4([192, 168, 0, 1], [192, 168, 0, 2], 64)
        .udp(5, 6)
        .write(&mut inside, b"secret")
        .expect("writes");
    let mut outside = Vec::new();
    etherparse::PacketBuilder::ipv4(SUBSCRIBER, SERVER, 64)
        .write(&mut outside, etherparse::IpNumber::IPV4, &inside)
        .expect("writes");
    let frame = gtpu(&outside);
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(outside.len() as u64, 1));
    probe.unbind(net("10.0.0.2/32")).expect("unbinds");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Up), passed(inside.len() as u64, 1));
    // Once the outermost is a session's, it counts, of all three.
    probe.bind(net("172.16.0.1/32"), 5).expect("binds");
    probe.bind(net("10.0.0.2/32"), SLOT).expect("binds");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, 5, Class::Other, Up), passed(frame.len() as u64 - LINK, 1));
}

#[test]
fn who_wraps_anothers_addresses_wraps_them_for_itself() {
    on_a_kernel!("who_wraps_anothers_addresses_wraps_them_for_itself");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let neighbour = [10, 0, 0, 3];
    probe.bind(net("10.0.0.3/32"), 5).expect("binds");
    for (direction, ends, inner_ends) in
        [(Up, [SUBSCRIBER, SERVER], [neighbour, SERVER]), (Down, [SERVER, SUBSCRIBER], [SERVER, neighbour])]
    {
        let mut inside = Vec::new();
        etherparse::PacketBuilder::ipv4(inner_ends[0], inner_ends[1], 64)
            .udp(5, 6)
            .write(&mut inside, b"forged")
            .expect("writes");
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
            .ipv4(ends[0], ends[1], 64)
            .write(&mut frame, etherparse::IpNumber::IPV4, &inside)
            .expect("writes");
        run(&probe, direction, &frame);
        assert_eq!(cell(&probe, SLOT, Class::Other, direction), passed(frame.len() as u64 - LINK, 1));
        assert_eq!(cell(&probe, 5, Class::Other, direction), passed(0, 0));
    }
    let protocols: Vec<_> = samples(&mut probe).iter().map(|sample| sample.flow.protocol).collect();
    assert_eq!(protocols, [4, 4], "the tunnel is what the classifier is shown");
}

#[test]
fn segments_in_a_tunnel_have_its_headers_each() {
    on_a_kernel!("segments_in_a_tunnel_have_its_headers_each");
    let rig = Rig::new();
    let probe = rig.probe();
    let inner = tcp(Up, 4000, &[1; 3_100]);
    run_super(&probe, Up, &gtpu(&inner[14..]), 500);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(3_100 + 7 * 40, 7));
}

#[test]
fn a_session_of_a_slot_that_is_not_there_is_nobodys_and_counted_as_such() {
    on_a_kernel!("a_session_of_a_slot_that_is_not_there_is_nobodys_and_counted_as_such");
    let rig = Rig::new();
    let probe = rig.load().expect("loads");
    // No agent binds one: the table is written to past it.
    let table = MapData::from_pin(rig.settings.pin_dir.join("sessions")).expect("pinned");
    let mut sessions: LpmTrie<MapData, [u8; 16], u32> = Map::LpmTrie(table).try_into().expect("a trie");
    sessions.insert(&Key::new(128, mapped(SUBSCRIBER)), probe.slots(), 0).expect("writes");
    let frame = tcp(Up, 4_000, b"hello");
    let bytes = frame.len() as u64 - LINK;
    assert_eq!(run(&probe, Up, &frame), Verdict::Pass);
    let counted = tally(&probe, Reason::NoSuchSlot, Up);
    assert_eq!((counted.packets, counted.bytes), (1, bytes));
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Up), passed(bytes, 1));
    assert_eq!(everything(&probe), (1, bytes), "and in no other slot's place");
}
