//! Large maps, and full ones.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Instant;

use aya::maps::MapData;
use ipnet::{IpNet, Ipv4Net};
use usher_agent::probe::{ProbeError, Verdict, memory};
use usher_models::wire::{ANONYMOUS, Class, Direction, Enforcement, Gate, Reason};
use usher_tests::process;

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// Sessions of a large gateway.
const SUBSCRIBERS: u32 = 200_000;
/// More fragmented packets than are told apart at a time.
const PACKETS: u16 = 10_000;

/// What the kernel says that a pinned map takes.
fn memlock(pin: &std::path::Path) -> u64 {
    let map = MapData::from_pin(pin).expect("a map");
    let file = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(file).expect("the kernel tells");
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).expect("it is told");
    line.trim().parse().expect("a number")
}

#[test]
fn a_million_flows_and_two_hundred_thousand_subscribers_fit_and_cost_what_check_says() {
    on_a_kernel!("a_million_flows_and_two_hundred_thousand_subscribers_fit_and_cost_what_check_says");
    let mut rig = Rig::new();
    rig.settings.max_flows = 1 << 20;
    rig.settings.max_subscribers = SUBSCRIBERS + 1;
    rig.settings.max_prefixes = 4 * SUBSCRIBERS;
    let began = Instant::now();
    let mut probe = rig.load().expect("loads");
    process::say(&format!("loaded in {:?}", began.elapsed()));
    let address = |slot: u32| (0x0a00_0000 + slot).to_be_bytes();
    for slot in 1..=SUBSCRIBERS {
        let net = Ipv4Net::new(address(slot).into(), 32).expect("a host");
        probe.bind(IpNet::V4(net), slot).expect("fits");
    }
    process::say(&format!("{SUBSCRIBERS} sessions bound after {:?}", began.elapsed()));

    // The first and the last, and the last one's enforcement.
    for slot in [1, SUBSCRIBERS] {
        let frame = tcp_of(address(slot), b"hello");
        assert_eq!(run(&probe, Up, &frame), Verdict::Pass);
        assert_eq!(cell(&probe, slot, Class::Other, Up), passed(frame.len() as u64 - 14, 1));
    }
    probe.enforce(SUBSCRIBERS, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    assert_eq!(run(&probe, Up, &tcp_of(address(SUBSCRIBERS), b"hello")), Verdict::Drop);
    let error = probe.bind(net("10.200.0.1/32"), SUBSCRIBERS + 1).expect_err("one too many");
    assert!(matches!(error, ProbeError::NoSuchSlot { .. }), "{error}");

    let said = memory(&rig.settings, 2);
    let mut taken = 0;
    for pin in pins(&rig).into_iter().filter(|pin| !pin.contains('_')) {
        let bytes = memlock(&rig.settings.pin_dir.join(&pin));
        process::say(&format!("{bytes:>12} bytes of {pin}"));
        taken += bytes;
    }
    let expected: u64 = said.iter().map(|cost| cost.bytes).sum();
    process::say(&format!("{taken} bytes taken, {expected} said at the most: {said:?}"));
    // Only a quarter of the prefixes are bound.
    assert!(taken < expected && expected - taken < expected / 4, "{taken} of {expected}");
    probe.detach().expect("detaches");
}

#[test]
fn a_full_session_table_costs_a_name_and_no_byte() {
    on_a_kernel!("a_full_session_table_costs_a_name_and_no_byte");
    let mut rig = Rig::new();
    rig.settings.max_prefixes = 2;
    let mut probe = rig.probe();
    let error = probe.bind(net("10.0.0.3/32"), 4).expect_err("full");
    assert!(matches!(error, ProbeError::SessionsFull { limit: 2, .. }), "{error}");
    let frame = tcp_of([10, 0, 0, 3], b"hello");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Up), passed(frame.len() as u64 - 14, 1));
    // One that goes makes room, and the next packet is the new one's.
    probe.unbind(net("2001:db8:1::/48")).expect("unbinds");
    probe.bind(net("10.0.0.3/32"), 4).expect("fits");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, 4, Class::Other, Up).packets, 1);
}

#[test]
fn more_fragmented_packets_than_are_told_apart_cost_ports_and_no_byte() {
    on_a_kernel!("more_fragmented_packets_than_are_told_apart_cost_ports_and_no_byte");
    let rig = Rig::new();
    let probe = rig.probe();
    let mut bytes = 0;
    let mut fragment = |identification: u16, later: bool| {
        let mut frame = udp(5_000, 443, &[1; 64]);
        frame[18..20].copy_from_slice(&identification.to_be_bytes());
        frame[20] = if later { 0 } else { 0x20 };
        frame[21] = if later { 9 } else { 0 };
        bytes += frame.len() as u64 - 14;
        run(&probe, Down, &frame);
    };
    (0..PACKETS).for_each(|identification| fragment(identification, false));
    (0..PACKETS).for_each(|identification| fragment(identification, true));
    let nobody = cell(&probe, ANONYMOUS, Class::Other, Down);
    assert_eq!(nobody, passed(bytes, 2 * u64::from(PACKETS)), "sent from the subscriber's address, down");
    assert_eq!(tally(&probe, Reason::FlowTableFull, Down).packets, 0);
}
