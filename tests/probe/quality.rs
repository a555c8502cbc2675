//! What is measured, in the kernel: the very programs, on connections whose segments are made up here.

use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use usher_agent::dataplane::Measured;
use usher_agent::probe::Probe;
use usher_models::units::Micros;
use usher_models::wire::{Class, Direction, Quality, Reason, TcpFlags};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// How long answers here take, at the least.
const ANSWER: Duration = Duration::from_millis(20);

/// A TCP segment of the flow between the subscriber's port 4000 and the server's 443.
#[derive(Clone, Copy)]
struct Segment {
    direction: Direction,
    flags: TcpFlags,
    sequence: u32,
    acknowledgement: u32,
    stamps: Option<[u32; 2]>,
    payload: usize,
}

impl Segment {
    fn data(direction: Direction, sequence: u32, payload: usize) -> Self {
        Self { direction, flags: TcpFlags::ACK, sequence, acknowledgement: 0, stamps: None, payload }
    }

    fn frame(&self) -> Vec<u8> {
        let (from, to, source, destination) = match self.direction {
            Up => (SUBSCRIBER, SERVER, 4_000, 443),
            Down => (SERVER, SUBSCRIBER, 443, 4_000),
        };
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(from, to, 64)
            .tcp(source, destination, self.sequence, 1_000)
            .ack(self.acknowledgement);
        let options = self.stamps.map_or(vec![], |[value, echoed]| {
            let mut options = vec![1, 1, 8, 10];
            options.extend(value.to_be_bytes());
            options.extend(echoed.to_be_bytes());
            options
        });
        let mut frame = Vec::new();
        tcp.options_raw(&options).expect("fits").write(&mut frame, &vec![0; self.payload]).expect("writes");
        frame[14 + 20 + 13] = self.flags.0;
        frame
    }

    fn pass(&self, probe: &Probe) {
        run(probe, self.direction, &self.frame());
    }
}

/// What was measured of the class, since the last look.
fn measured(probe: &mut Probe, class: Class) -> Measured {
    let mut all = probe.measured(Micros::now());
    all.retain(|measured| (measured.slot, measured.class) == (SLOT, class));
    let nothing = || Measured::between(SLOT, class, &Quality::NONE, &Quality::NONE);
    all.pop().unwrap_or_else(nothing)
}

/// Segments, sent again, overtaken, of a direction.
fn counts(measured: &Measured, direction: Direction) -> (u32, u32, u32) {
    let counts = measured.counts[direction.index()];
    (counts.segments, counts.retransmitted, counts.reordered)
}

/// Lets `ask` pass, waits, and lets `answer` pass; the one round trip that was measured is on the side where `ask` is answered, and as long.
fn round_trip(probe: &mut Probe, ask: Segment, answer: Segment) {
    let _ = probe.measured(Micros::now());
    let begin = Instant::now();
    ask.pass(probe);
    let asked = Instant::now();
    std::thread::sleep(ANSWER);
    answer.pass(probe);
    let longest = begin.elapsed();
    let shortest = asked.elapsed().min(ANSWER);
    let measured = measured(probe, Class::Other);
    let mut found = (0..2).flat_map(|side| {
        measured.round_trips[side]
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(move |(bucket, count)| (side, bucket, *count))
    });
    let (side, bucket, count) = found.next().expect("a round trip was measured");
    assert_eq!((side, count, found.next()), (ask.direction.index(), 1, None));
    let (from, to) = (Quality::bucket_from(bucket), Quality::bucket_from(bucket + 1));
    assert!(Duration::from_micros(to) > shortest, "{to} us is less than {shortest:?}");
    assert!(Duration::from_micros(from) <= longest, "{from} us is more than {longest:?}");
}

#[test]
fn time_stamps_tell_the_round_trip_time_of_each_side() {
    on_a_kernel!("time_stamps_tell_the_round_trip_time_of_each_side");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let stamped = |direction, value, echoed, payload| Segment {
        stamps: Some([value, echoed]),
        ..Segment::data(direction, value * 1_000, payload)
    };
    stamped(Up, 10, 0, 100).pass(&probe);
    round_trip(&mut probe, stamped(Up, 11, 0, 100), stamped(Down, 70, 11, 0));
    round_trip(&mut probe, stamped(Down, 71, 11, 500), stamped(Up, 12, 71, 0));
}

#[test]
fn a_handshake_and_acknowledgements_tell_it_without_time_stamps() {
    on_a_kernel!("a_handshake_and_acknowledgements_tell_it_without_time_stamps");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let both = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);
    let syn = Segment { flags: TcpFlags::SYN, ..Segment::data(Up, 99, 0) };
    let answer = Segment { flags: both, acknowledgement: 100, ..Segment::data(Down, 499, 0) };
    round_trip(&mut probe, syn, answer);
    Segment { acknowledgement: 500, ..Segment::data(Up, 100, 0) }.pass(&probe);
    assert_eq!(measured(&mut probe, Class::Other).counts[Down.index()].round_trips, 1, "the other side's");
    round_trip(
        &mut probe,
        Segment::data(Down, 500, 100),
        Segment { acknowledgement: 600, ..Segment::data(Up, 100, 0) },
    );
}

#[test]
fn a_handshake_of_quic_and_a_calls_windows_are_measured() {
    on_a_kernel!("a_handshake_of_quic_and_a_calls_windows_are_measured");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let initial = [0xc0, 0, 0, 0, 1, 8, 0, 0, 0, 0];
    run(&probe, Up, &udp6(Up, 5_000, &initial));
    std::thread::sleep(ANSWER);
    run(&probe, Down, &udp6(Down, 5_000, &initial));
    let found = measured(&mut probe, Class::Other);
    assert_eq!(found.counts.map(|counts| counts.round_trips), [1, 0]);
    let bucket = found.round_trips[0].iter().position(|count| *count > 0).expect("one");
    assert!(Quality::bucket_from(bucket + 1) > 20_000, "bucket {bucket}");

    let call = udp(6_000, 3_478, b"0123456789");
    run(&probe, Up, &call);
    assert!(probe.name_flow(&flow(17, 6_000, 3_478), Class::Call, false).expect("names"));
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        run(&probe, Up, &call);
        std::thread::sleep(Duration::from_millis(10));
    }
    let windows = measured(&mut probe, Class::Call).counts[0].windows;
    // Two seconds are 14 windows, of which the first eight say what is usual.
    assert!((1..=14).contains(&windows), "{windows}");
}

#[test]
fn what_is_sent_again_is_counted_once_for_each_time_and_what_carries_nothing_is_not() {
    on_a_kernel!("what_is_sent_again_is_counted_once_for_each_time_and_what_carries_nothing_is_not");
    let rig = Rig::new();
    let mut probe = rig.probe();
    // Across the end of the numbers.
    let start = u32::MAX - 2_500;
    for number in 0..10 {
        Segment::data(Down, start.wrapping_add(number * 1_000), 1_000).pass(&probe);
    }
    let again = Segment::data(Down, start.wrapping_add(2_000), 1_000);
    again.pass(&probe);
    again.pass(&probe);
    Segment::data(Down, start.wrapping_add(9_999), 1).pass(&probe);
    for _ in 0..5 {
        Segment::data(Up, 1, 0).pass(&probe);
    }
    let measured = measured(&mut probe, Class::Other);
    assert_eq!(counts(&measured, Down), (12, 2, 0));
    assert_eq!(counts(&measured, Up), (0, 0, 0));
}

#[test]
fn a_segment_that_fills_a_hole_at_once_was_overtaken_and_one_that_does_later_was_sent_again() {
    on_a_kernel!("a_segment_that_fills_a_hole_at_once_was_overtaken_and_one_that_does_later_was_sent_again");
    let rig = Rig::new();
    let mut probe = rig.probe();
    // With a round trip of that much behind it, half of it is patience.
    round_trip(
        &mut probe,
        Segment { flags: TcpFlags::SYN, ..Segment::data(Up, 0, 0) },
        Segment { flags: TcpFlags(0x12), acknowledgement: 1, ..Segment::data(Down, 999, 0) },
    );
    std::thread::sleep(ANSWER);
    Segment { acknowledgement: 1_000, ..Segment::data(Up, 1, 0) }.pass(&probe);
    let _ = probe.measured(Micros::now());
    for number in [0, 2, 1, 4] {
        Segment::data(Down, 1_000 + number * 100, 100).pass(&probe);
    }
    std::thread::sleep(ANSWER * 2);
    Segment::data(Down, 1_300, 100).pass(&probe);
    assert_eq!(counts(&measured(&mut probe, Class::Other), Down), (5, 1, 1));
}

#[test]
fn a_super_packet_counts_its_segments_also_when_it_is_sent_again() {
    on_a_kernel!("a_super_packet_counts_its_segments_also_when_it_is_sent_again");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = Segment::data(Down, 1_000, 3_100).frame();
    run_super(&probe, Down, &frame, 500);
    run_super(&probe, Down, &frame, 500);
    assert_eq!(counts(&measured(&mut probe, Class::Other), Down), (14, 7, 0));
}

#[test]
fn what_is_held_back_shows_as_lost_when_it_comes_again() {
    on_a_kernel!("what_is_held_back_shows_as_lost_when_it_comes_again");
    let rig = Rig::new();
    let mut probe = rig.probe();
    Segment::data(Down, 0, 100).pass(&probe);
    let block = usher_models::wire::Enforcement::default().with_gate(usher_models::wire::Gate::Block);
    probe.enforce(SLOT, &block).expect("enforces");
    Segment::data(Down, 100, 100).pass(&probe);
    probe.enforce(SLOT, &usher_models::wire::Enforcement::default()).expect("enforces");
    Segment::data(Down, 200, 100).pass(&probe);
    std::thread::sleep(ANSWER);
    Segment::data(Down, 100, 100).pass(&probe);
    assert_eq!(counts(&measured(&mut probe, Class::Other), Down), (3, 1, 0));
}

#[test]
fn a_flow_is_measured_in_its_turn_and_nobody_is_not() {
    on_a_kernel!("a_flow_is_measured_in_its_turn_and_nobody_is_not");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let mut turns = [0; 8];
    for (turn, seen) in turns.iter_mut().enumerate() {
        probe.next_turn([3; Class::COUNT]).expect("turns");
        Segment::data(Down, u32::try_from(turn).expect("few") * 100, 100).pass(&probe);
        *seen = counts(&measured(&mut probe, Class::Other), Down).0;
    }
    assert_eq!(turns.iter().sum::<u32>(), 2, "{turns:?}");
    assert_eq!(turns[..4], turns[4..], "every fourth");
    assert_eq!(cell(&probe, SLOT, Class::Other, Down).packets, 8, "all are counted");

    let other = Rig::new();
    let mut nobodys = other.load().expect("loads");
    Segment::data(Down, 0, 100).pass(&nobodys);
    assert_eq!(nobodys.measured(Micros::now()), []);
}

#[test]
fn a_measurement_that_finds_no_room_is_lost_and_counted_and_no_byte_is() {
    on_a_kernel!("a_measurement_that_finds_no_room_is_lost_and_counted_and_no_byte_is");
    let mut rig = Rig::new();
    rig.settings.max_measured = 1;
    let mut probe = rig.probe();
    for class in Class::ALL {
        Segment::data(Down, 0, 100).pass(&probe);
        assert!(probe.name_flow(&flow(6, 4_000, 443), class, false).expect("names"));
        Segment::data(Down, 100, 100).pass(&probe);
        Segment::data(Down, 200, 100).pass(&probe);
        assert!(cell(&probe, SLOT, class, Down).packets >= 2);
    }
    let measured = probe.measured(Micros::now());
    assert_eq!(measured.len(), 4, "there are as many records as a group has");
    assert!(tally(&probe, Reason::QualityFull, Down).packets >= 4 * 2);
    assert_eq!(everything(&probe).0, 3 * Class::COUNT as u64);

    // Records nobody adds to are given away after a while.
    let later = Micros::now().after(rig.settings.flow_idle * 2);
    probe.sweep(later).expect("sweeps");
    Segment::data(Down, 300, 100).pass(&probe);
    assert_eq!(probe.measured(later).len(), 1);
}

#[test]
fn the_next_agent_begins_where_the_records_stand() {
    on_a_kernel!("the_next_agent_begins_where_the_records_stand");
    let rig = Rig::new();
    let probe = rig.probe();
    for number in 0..5 {
        Segment::data(Down, number * 100, 100).pass(&probe);
    }
    drop(probe);
    let mut next = rig.load().expect("adopts");
    assert_eq!(next.measured(Micros::now()), []);
    Segment::data(Down, 500, 100).pass(&next);
    Segment::data(Down, 500, 100).pass(&next);
    assert_eq!(counts(&measured(&mut next, Class::Other), Down), (2, 1, 0));
}
