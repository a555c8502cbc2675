//! Gates, rates and the bypass.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use usher_agent::probe::{Trial, Verdict};
use usher_models::wire::{Class, Direction, Enforcement, Gate, LINE, Rate, TcpFlags};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

const FRAME_BYTES: u64 = 40 + 1_000;

fn frame() -> Vec<u8> {
    tcp(Down, 4000, &[1; 1_000])
}

/// Offers packets of so many bytes until one is held back half a second later or more; the bytes that a rate and its burst let pass of them.
fn offered(rate: Rate, burst: u64, bytes: u64, mut passes: impl FnMut() -> bool) -> RangeInclusive<u64> {
    let began = Instant::now();
    let mut last_drop = Duration::ZERO;
    while last_drop < Duration::from_millis(500) {
        let at = began.elapsed();
        if !passes() {
            last_drop = at;
        }
    }
    // The burst, what the time brought until it was all used, one packet over, and a tick of the slowest clock either way.
    let tick = Duration::from_millis(10);
    let brought =
        |time: Duration| u64::try_from(time.as_micros()).expect("short") * rate.bits_per_second / 8_000_000;
    burst + brought(last_drop.saturating_sub(tick)) - bytes
        ..=burst + brought(began.elapsed() + tick) + 2 * bytes
}

#[test]
fn a_blocked_roamer_gets_nothing_through_and_it_is_counted_as_dropped() {
    on_a_kernel!("a_blocked_roamer_gets_nothing_through_and_it_is_counted_as_dropped");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let blocked = Enforcement::default().with_gate(Gate::Block);
    probe.enforce(SLOT, &blocked).expect("writes");
    assert_eq!(probe.enforcement(SLOT).expect("reads back"), blocked);
    assert_eq!(run(&probe, Down, &frame()), Verdict::Drop);
    let counted = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!((counted.packets, counted.bytes), (0, 0));
    assert_eq!((counted.dropped_packets, counted.dropped_bytes), (1, FRAME_BYTES));
    assert_eq!(samples(&mut probe), [], "what nobody receives names nothing");

    for _ in 0..10 {
        run(&probe, Down, &frame());
    }
    probe.enforce(SLOT, &Enforcement::default()).expect("writes");
    assert_eq!(run(&probe, Down, &frame()), Verdict::Pass);
    assert_eq!(samples(&mut probe).len(), 1, "what was held back used up no sample");
}

#[test]
fn a_blocked_roamer_reaches_nothing_and_is_reached_by_nothing() {
    on_a_kernel!("a_blocked_roamer_reaches_nothing_and_is_reached_by_nothing");
    let rig = Rig::new();
    let mut probe = rig.probe();
    probe.enforce(SLOT, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    let frames = [
        (Up, udp(5_000, 53, b"a name, please")),
        (Up, tcp_with(TcpFlags::SYN, Up)),
        (Down, tcp(Down, 4_000, b"hello")),
        (Up, udp6(Up, 5_000, b"hello")),
        (Down, udp6(Down, 5_000, b"hello")),
        (Up, tagged(&tcp(Up, 4_000, b"hello"), &[(0x8100, 7)])),
        (Up, gtpu(&tcp(Up, 4_000, b"hello")[14..])),
    ];
    for (direction, frame) in &frames {
        assert_eq!(run(&probe, *direction, frame), Verdict::Drop);
    }
    let [up, down] = [Up, Down].map(|direction| cell(&probe, SLOT, Class::Other, direction));
    assert_eq!((up.packets, up.dropped_packets, down.packets, down.dropped_packets), (0, 5, 0, 2));
    assert_eq!(samples(&mut probe), []);
}

#[test]
fn a_gate_holds_for_its_slot_only() {
    on_a_kernel!("a_gate_holds_for_its_slot_only");
    let rig = Rig::new();
    let mut probe = rig.probe();
    probe.enforce(SLOT + 1, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    assert_eq!(run(&probe, Down, &frame()), Verdict::Pass);
}

#[test]
fn what_cannot_be_read_as_transport_is_blocked_all_the_same() {
    on_a_kernel!("what_cannot_be_read_as_transport_is_blocked_all_the_same");
    let rig = Rig::new();
    let mut probe = rig.probe();
    probe.enforce(SLOT, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    let options = [60, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(run(&probe, Up, &ipv6(60, &options.repeat(9))), Verdict::Drop);
    assert_eq!(run(&probe, Up, &ipv6(17, &[1, 2, 3])), Verdict::Drop);
}

#[test]
fn a_rate_lets_its_burst_through_and_then_what_time_brings() {
    on_a_kernel!("a_rate_lets_its_burst_through_and_then_what_time_brings");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let rate = Rate::per_second(8_000_000, 1_000_000);
    probe.enforce(SLOT, &Enforcement::default().with_rate(Class::Other.index(), Down, rate)).expect("writes");
    let frame = frame();
    let due = offered(rate, 1_000_000, FRAME_BYTES, || run(&probe, Down, &frame) == Verdict::Pass);
    let passed = cell(&probe, SLOT, Class::Other, Down).bytes;
    assert!(due.contains(&passed), "{passed} not in {due:?}");

    assert_eq!(run(&probe, Up, &tcp(Up, 4000, b"x")), Verdict::Pass, "the other direction is free");
}

#[test]
fn a_burst_of_gigabytes_passes_whole_and_no_more_of_it() {
    const BURST: u64 = 6_000_000_000;
    /// As many segments as bytes of payload, each with its headers.
    const BYTES: u64 = 3_000 * 41;
    on_a_kernel!("a_burst_of_gigabytes_passes_whole_and_no_more_of_it");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let rate = Rate::per_second(16_000_000, BURST);
    probe.enforce(SLOT, &Enforcement::default().with_rate(Class::Other.index(), Down, rate)).expect("writes");
    let frame = tcp(Down, 4000, &[1; 3_000]);
    let trial = Trial { repeat: 1_000, segment_bytes: 1, ..Trial::once(Down, &frame) };
    let due = offered(rate, BURST, BYTES, || probe.trial(&trial).expect("runs").verdict == Verdict::Pass);
    let passed = cell(&probe, SLOT, Class::Other, Down).bytes;
    assert!(due.contains(&passed), "{passed} not in {due:?}");
}

#[test]
fn rates_and_gates_hold_where_the_agent_is_gone() {
    const BLOCKED: u32 = 5;
    on_a_kernel!("rates_and_gates_hold_where_the_agent_is_gone");
    let rig = Rig::new();
    let mut probe = rig.probe();
    // Two roamers: one gets little, the other nothing.
    let rate = Rate::per_second(8_000_000, 100_000);
    let limited = Enforcement::default().with_gate(Gate::Limit).with_rate(LINE, Down, rate);
    probe.enforce(SLOT, &limited).expect("writes");
    probe.bind(net("10.0.0.3/32"), BLOCKED).expect("binds");
    probe.enforce(BLOCKED, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    drop(probe);

    rig.up();
    let (mut inside, mut outside) = (wire(&rig.interface), wire(&rig.peer()));
    let (frame, blocked) = (frame(), tcp_of([10, 0, 0, 3], b"hello"));
    let (mut sent, mut held_back) = (0, 0);
    let due = offered(rate, 100_000, FRAME_BYTES, || {
        if sent % 1_000 == 0 {
            outside.sendpacket(blocked.as_slice()).expect("sends");
        }
        // What is held back on its way out is told to who sent it.
        let passes = inside.sendpacket(frame.as_slice()).is_ok();
        sent += 1;
        held_back += u64::from(!passes);
        passes
    });
    // What is on its way arrives before the interface is down.
    ip(&["link", "set", &rig.peer(), "down"]);
    let arrived = interface_counters(&rig.peer())[1];

    let probe = rig.load().expect("adopts");
    let counted = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!((counted.packets, counted.dropped_packets), (sent - held_back, held_back));
    assert_eq!(arrived, counted.packets);
    assert!(due.contains(&counted.bytes), "{counted:?} not in {due:?}");
    let counted = cell(&probe, BLOCKED, Class::Other, Up);
    assert_eq!((counted.packets, counted.dropped_packets), (0, sent.div_ceil(1_000)));
    assert_eq!(probe.enforcement(SLOT).expect("reads"), limited);
}

#[test]
fn the_line_limits_all_classes_together() {
    on_a_kernel!("the_line_limits_all_classes_together");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let rate = Rate::per_second(64_000, 10_000);
    let limited = Enforcement::default().with_gate(Gate::Limit).with_rate(LINE, Down, rate);
    probe.enforce(SLOT, &limited).expect("writes");
    run(&probe, Down, &tcp(Down, 1, b"x"));
    run(&probe, Down, &tcp(Down, 2, b"x"));
    probe.name_flow(&flow(6, 1, 443), Class::Video, false).expect("names");
    probe.name_flow(&flow(6, 2, 443), Class::Web, false).expect("names");
    for _ in 0..20 {
        run(&probe, Down, &tcp(Down, 1, &[1; 960]));
        run(&probe, Down, &tcp(Down, 2, &[1; 960]));
    }
    let video = cell(&probe, SLOT, Class::Video, Down);
    let web = cell(&probe, SLOT, Class::Web, Down);
    assert!((10..=12).contains(&(video.packets + web.packets)), "{video:?} {web:?}");
    assert_eq!(video.packets + video.dropped_packets, 20);
}

#[test]
fn a_class_has_its_own_rate() {
    on_a_kernel!("a_class_has_its_own_rate");
    let rig = Rig::new();
    let mut probe = rig.probe();
    run(&probe, Down, &frame());
    probe.name_flow(&flow(6, 4000, 443), Class::Video, false).expect("names");
    let rate = Rate::per_second(64_000, 5_000);
    probe.enforce(SLOT, &Enforcement::default().with_rate(Class::Video.index(), Down, rate)).expect("writes");
    for _ in 0..20 {
        run(&probe, Down, &frame());
        assert_eq!(run(&probe, Down, &tcp(Down, 9, &[1; 1_000])), Verdict::Pass, "another class is free");
    }
    assert!(cell(&probe, SLOT, Class::Video, Down).dropped_packets >= 13);
}

#[test]
fn a_raised_rate_does_not_wait_for_the_old_ones_debt() {
    on_a_kernel!("a_raised_rate_does_not_wait_for_the_old_ones_debt");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let lane = Class::Other.index();
    let slow = Enforcement::default().with_rate(lane, Down, Rate::per_second(8_000, 1_000_000));
    probe.enforce(SLOT, &slow).expect("writes");
    while run(&probe, Down, &frame()) == Verdict::Pass {}
    let fast = slow.with_rate(lane, Down, Rate::per_second(8_000_000, 10_000));
    probe.enforce(SLOT, &fast).expect("writes");
    assert_eq!(run(&probe, Down, &frame()), Verdict::Pass);
}

#[test]
fn the_bypass_turns_enforcement_off_and_counting_stays() {
    on_a_kernel!("the_bypass_turns_enforcement_off_and_counting_stays");
    let rig = Rig::new();
    let mut probe = rig.probe();
    probe.enforce(SLOT, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    probe.set_bypass(true).expect("writes");
    assert!(probe.bypass());
    assert_eq!(run(&probe, Down, &frame()), Verdict::Pass);
    assert_eq!(cell(&probe, SLOT, Class::Other, Down), passed(FRAME_BYTES, 1));
    probe.set_bypass(false).expect("writes");
    assert_eq!(run(&probe, Down, &frame()), Verdict::Drop);
}

#[test]
fn many_cpus_at_once_do_not_exceed_a_rate() {
    on_a_kernel!("many_cpus_at_once_do_not_exceed_a_rate");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let rate = Rate::per_second(64_000, 50_000);
    probe.enforce(SLOT, &Enforcement::default().with_rate(Class::Other.index(), Down, rate)).expect("writes");
    let frame = frame();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let trial = Trial { repeat: 20_000, ..Trial::once(Down, &frame) };
                probe.trial(&trial).expect("runs");
            });
        }
    });
    let counted = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!(counted.packets + counted.dropped_packets, 80_000, "no packet is lost to another CPU");
    // 50,000 bytes are 49 packets; one over for each CPU, and some for the time it took.
    assert!((49..=70).contains(&counted.packets), "{counted:?}");
}
