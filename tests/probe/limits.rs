//! Large maps, and full ones.

use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Instant;

use aya::maps::{Array, Map, MapData};
use ipnet::{IpNet, Ipv4Net};
use usher_agent::dataplane::ForApp;
use usher_agent::probe::{Probe, ProbeError, Verdict, memory};
use usher_agent::usage::Baseline;
use usher_models::units::Micros;
use usher_models::wire::{
    ANONYMOUS, Class, Direction, Enforcement, Fingerprint, FlowLine, FlowState, Gate, Reason,
};
use usher_tests::process;

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// Sessions of a large gateway.
const SUBSCRIBERS: u32 = 200_000;
/// More fragmented packets than are told apart at a time.
const PACKETS: u16 = 10_000;

/// The subscriber's ports of flows that are to be found again.
const PORTS: Range<u16> = 1_000..1_400;

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
fn the_flow_table_makes_room_for_more_flows_and_none_of_them_loses_its_name() {
    on_a_kernel!("the_flow_table_makes_room_for_more_flows_and_none_of_them_loses_its_name");
    let mut rig = Rig::new();
    rig.settings.max_flows = 1 << 20;
    let mut probe = rig.probe();
    let first = probe.make_room().expect("asks");
    let web = |probe: &Probe| cell(probe, SLOT, Class::Web, Up).packets;
    for port in PORTS {
        run(&probe, Up, &tcp(Up, port, b"x"));
        assert!(probe.name_flow(&flow(6, port, 443), Class::Web, true).expect("asks"));
    }
    assert_eq!(probe.count_for_app(&flow(6, PORTS.start, 443), Some("letters")), ForApp::Counted);
    let began = Micros::now();
    let mut table = table(&rig);
    let lines = FlowLine::lines(first);
    let crowd = crowd(&mut table, lines, 60_000);
    // What an agent has left that was killed while it moved flows: nobody is to find it.
    let mut found = (0..lines).map(|line| table.get(&line, 0).expect("a line"));
    let copied = found.find(|line| line[..8] != [0; 8]).expect("a flow");
    (lines..2 * lines).for_each(|line| table.set(line, copied, 0).expect("writes"));

    let moving = Instant::now();
    let room = probe.make_room().expect("grows");
    process::say(&format!("of {crowd} flows those that had to were moved in {:?}", moving.elapsed()));
    assert_eq!(room, 2 * first, "so many flows crowd where there is room for {first}");
    assert_eq!(probe.make_room().expect("asks"), room, "and do not where there is room for twice as many");
    let kept = probe.sweep(Micros::now()).expect("sweeps").kept;
    assert_eq!(kept, crowd + PORTS.len(), "each is in one place, and nothing else is in any");
    drop(samples(&mut probe));
    let before = web(&probe);
    for port in PORTS {
        run(&probe, Up, &tcp(Up, port, b"x"));
    }
    assert_eq!(web(&probe) - before, PORTS.len() as u64, "all that were named still are");
    let first_seen = samples(&mut probe).iter().map(|sample| sample.first_packet).max();
    assert!(first_seen.is_some_and(|at| at < began), "and the probe knows still when they began");
    assert_eq!(probe.moved_apps(&Baseline::default()).len(), 1);
    assert_eq!(tally(&probe, Reason::FlowTableFull, Up).packets, 0);

    // The next agent looks where this one did.
    drop(probe);
    let mut probe = rig.load().expect("is adopted");
    assert_eq!(probe.make_room().expect("asks"), room);
    let before = web(&probe);
    run(&probe, Up, &tcp(Up, PORTS.start, b"x"));
    assert_eq!(web(&probe) - before, 1);
    assert!(probe.name_flow(&flow(6, PORTS.start, 443), Class::Video, false).expect("asks"));
    run(&probe, Up, &tcp(Up, PORTS.start, b"x"));
    assert_eq!(cell(&probe, SLOT, Class::Video, Up).packets, 1);
    probe.detach().expect("detaches");
}

#[test]
fn flows_that_found_no_place_are_room_that_is_made() {
    on_a_kernel!("flows_that_found_no_place_are_room_that_is_made");
    let mut rig = Rig::new();
    rig.settings.max_flows = 1 << 20;
    let mut probe = rig.probe();
    let first = probe.make_room().expect("asks");
    let mut table = table(&rig);
    let lines = FlowLine::lines(first);
    assert_eq!(crowd(&mut table, lines, usize::MAX), lines as usize * 4, "every place is somebody's");
    run(&probe, Up, &tcp(Up, 1_000, b"x"));
    assert_eq!(tally(&probe, Reason::FlowTableFull, Up).packets, 1);
    assert!(!probe.name_flow(&flow(6, 1_000, 443), Class::Web, false).expect("asks"));
    assert!(probe.make_room().expect("grows") > first);
    run(&probe, Up, &tcp(Up, 1_000, b"x"));
    assert_eq!(tally(&probe, Reason::FlowTableFull, Up).packets, 1, "it found a place");
    assert!(probe.name_flow(&flow(6, 1_000, 443), Class::Web, false).expect("asks"));
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 2, "and was counted all the while");
    probe.detach().expect("detaches");
}

/// The flow table as it is pinned, line by line.
fn table(rig: &Rig) -> Array<MapData, [u8; 64]> {
    let table = MapData::from_pin(rig.settings.pin_dir.join("flows")).expect("pinned");
    Map::Array(table).try_into().expect("an array of lines")
}

/// Enters so many flows of nobody's in the first `lines`, each where it would be looked for, or as many as find a place; says how many.
fn crowd(table: &mut Array<MapData, [u8; 64]>, lines: u32, flows: usize) -> usize {
    let mut all: Vec<_> = (0..lines).map(|line| table.get(&line, 0).expect("a line")).collect();
    let mut entered = 0;
    let numbers = (1..40 * u64::from(lines)).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for flow in numbers.filter_map(Fingerprint::read) {
        if entered == flows {
            break;
        }
        let line = &mut all[usize::try_from(flow.line(lines - 1)).expect("small")];
        if let Some(way) = line.chunks_exact_mut(16).find(|way| way[..8] == [0; 8]) {
            let state = FlowState::default().bound(flow, ANONYMOUS, FlowState::time(1, 1));
            way[..8].copy_from_slice(&flow.get().to_ne_bytes());
            way[8..].copy_from_slice(&state.0.to_ne_bytes());
            entered += 1;
        }
    }
    for (at, line) in (0..).zip(all) {
        table.set(at, line, 0).expect("writes");
    }
    entered
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
