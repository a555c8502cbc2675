//! Bytes by app: exact both ways, each slot's own, through full tables, agents that die and maps of the layout before.

use std::io::Read as _;
use std::mem::offset_of;
use std::time::Duration;

use aya::EbpfLoader;
use aya::maps::{Array, MapData};
use usher_agent::dataplane::ForApp;
use usher_agent::probe::{Trial, Verdict, Xdp};
use usher_agent::usage::Baseline;
use usher_models::units::Micros;
use usher_models::wire::{Class, Config, Direction, Enforcement, FlowKey, Gate, LAYOUT};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// The object of layout 4, as it was committed.
static LAYOUT_4: &[u8] = include_bytes!("former/layout-4.o.gz");

/// Who used which app, and how many bytes up and down, since the baseline; which is moved there.
pub(crate) fn told(probe: &Whole, baseline: &mut Baseline) -> Vec<(u32, String, [u64; 2])> {
    let mut told = Vec::new();
    for moved in probe.moved_apps(baseline) {
        let before = baseline.app(moved.lane);
        told.push((moved.slot, moved.app.to_string(), [0, 1].map(|way| moved.now[way] - before[way])));
        baseline.set_app(moved.lane, moved.now);
    }
    told.sort_unstable();
    told
}

pub(crate) fn used(slot: u32, app: &str, bytes: [u64; 2]) -> (u32, String, [u64; 2]) {
    (slot, app.to_owned(), bytes)
}

#[test]
fn a_named_flows_bytes_are_its_apps_both_ways_from_then_on() {
    on_a_kernel!("a_named_flows_bytes_are_its_apps_both_ways_from_then_on");
    a_named_flow_is_its_apps(Xdp::Off);
}

#[test]
fn the_driver_counts_a_named_flows_bytes_for_its_app_as_traffic_control_does() {
    on_a_kernel!("the_driver_counts_a_named_flows_bytes_for_its_app_as_traffic_control_does", tcx);
    a_named_flow_is_its_apps(Xdp::Native);
}

fn a_named_flow_is_its_apps(xdp: Xdp) {
    let mut rig = Rig::new();
    rig.settings.xdp = xdp;
    // What goes up is met by the driver's program where there is one.
    let run = |probe: &Whole, direction, frame: &[u8]| {
        let in_driver = xdp == Xdp::Native && direction == Up;
        let trial = Trial { in_driver, ..Trial::once(direction, frame) };
        probe.trial(&trial).expect("the program runs").verdict
    };
    let mut probe = rig.probe();
    let mut baseline = Baseline::default();
    let frames = |port| [tcp(Up, port, b"hello"), tcp(Down, port, &[1; 900])];
    for port in [4000, 4001] {
        let [up, down] = frames(port);
        run(&probe, Up, &up);
        run(&probe, Down, &down);
    }
    assert_eq!(probe.count_for_app(&flow(6, 4000, 443), Some("streams")), ForApp::Counted);
    assert_eq!(told(&probe, &mut baseline), [], "what was before it had a name is not told apart");
    for _ in 0..3 {
        for port in [4000, 4001] {
            let [up, down] = frames(port);
            run(&probe, Up, &up);
            run(&probe, Down, &down);
        }
    }
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [3 * 45, 3 * 940])]);
    assert_eq!(told(&probe, &mut baseline), []);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 8, "usage is what it was");

    // A super-packet's segments each have the headers; what is held back is no app's; what gets another class goes on.
    run_super(&probe, Down, &tcp(Down, 4000, &[1; 3_000]), 1_000);
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [0, 3 * 1_040])]);
    probe.enforce(SLOT, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    assert_eq!(run(&probe, Up, &frames(4000)[0]), Verdict::Drop);
    assert_eq!(told(&probe, &mut baseline), []);
    probe.enforce(SLOT, &Enforcement::default()).expect("writes");
    probe.name_flow(&flow(6, 4000, 443), Class::Video, false).expect("names");
    run(&probe, Up, &frames(4000)[0]);
    assert_eq!(told(&probe, &mut baseline), [], "until the verdict's app is told, too");
    assert_eq!(probe.count_for_app(&flow(6, 4000, 443), Some("streams")), ForApp::Counted);
    run(&probe, Up, &frames(4000)[0]);
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [45, 0])], "in its new class");

    // A second flow of the app is counted with the first; one that turns out to be another's, or nobody's, is not.
    assert_eq!(probe.count_for_app(&flow(6, 4001, 443), Some("streams")), ForApp::Counted);
    run(&probe, Up, &frames(4001)[0]);
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [45, 0])]);
    assert_eq!(probe.apps(), 2, "of two classes");
    assert_eq!(probe.count_for_app(&flow(6, 4001, 443), Some("chat")), ForApp::Counted);
    run(&probe, Up, &frames(4001)[0]);
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "chat", [45, 0])]);
    assert_eq!(probe.count_for_app(&flow(6, 4001, 443), None), ForApp::Not);
    run(&probe, Up, &frames(4001)[0]);
    assert_eq!(told(&probe, &mut baseline), []);
    assert_eq!(probe.count_for_app(&flow(6, 4999, 443), Some("chat")), ForApp::Not, "no such flow");
    run(&probe, Up, &tcp_of([10, 0, 0, 9], b"hello"));
    let stranger = FlowKey { subscriber: mapped([10, 0, 0, 9]), ..flow(6, 4000, 443) };
    assert_eq!(probe.count_for_app(&stranger, Some("chat")), ForApp::Not, "nobody's");
}

#[test]
fn an_address_that_moves_takes_no_byte_of_an_app_along() {
    on_a_kernel!("an_address_that_moves_takes_no_byte_of_an_app_along");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let mut baseline = Baseline::default();
    let frame = tcp(Up, 4000, b"hello");
    run(&probe, Up, &frame);
    probe.count_for_app(&flow(6, 4000, 443), Some("streams"));
    run(&probe, Up, &frame);
    probe.bind(net("10.0.0.2/32"), 5).expect("moves");
    run(&probe, Up, &frame);
    assert_eq!(
        told(&probe, &mut baseline),
        [used(SLOT, "streams", [45, 0])],
        "neither's until the next sweep"
    );
    probe.sweep(Micros::now()).expect("sweeps");
    run(&probe, Up, &frame);
    assert_eq!(told(&probe, &mut baseline), [used(5, "streams", [45, 0])]);
    probe.unbind(net("10.0.0.2/32")).expect("unbinds");
    run(&probe, Up, &frame);
    probe.sweep(Micros::now()).expect("sweeps");
    run(&probe, Up, &frame);
    assert_eq!(told(&probe, &mut baseline), [], "nobody's");
    probe.bind(net("10.0.0.2/32"), 5).expect("comes back");
    run(&probe, Up, &frame);
    assert_eq!(told(&probe, &mut baseline), []);
    probe.sweep(Micros::now()).expect("sweeps");
    run(&probe, Up, &frame);
    assert_eq!(told(&probe, &mut baseline), [used(5, "streams", [45, 0])]);
}

#[test]
fn where_no_app_finds_room_a_name_is_lost_and_no_byte_and_room_comes_back() {
    on_a_kernel!("where_no_app_finds_room_a_name_is_lost_and_no_byte_and_room_comes_back");
    let mut rig = Rig::new();
    rig.settings.max_apps = 1;
    rig.settings.flow_idle = Duration::from_mins(1);
    let mut probe = rig.probe();
    let mut baseline = Baseline::default();
    let frame = |port| tcp(Up, port, b"hello");
    for port in [4000, 4001] {
        run(&probe, Up, &frame(port));
    }
    assert_eq!(probe.count_for_app(&flow(6, 4000, 443), Some("streams")), ForApp::Counted);
    assert_eq!(probe.count_for_app(&flow(6, 4001, 443), Some("chat")), ForApp::Full);
    for port in [4000, 4001] {
        run(&probe, Up, &frame(port));
    }
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(4 * 45, 4));
    // The first flow goes, as it is idle; what it moved is told first, however often it is looked at before.
    let began = Micros::now();
    for second in (10..=200).step_by(10) {
        run(&probe, Up, &frame(4001));
        probe.sweep(began.after(Duration::from_secs(second))).expect("sweeps");
        assert_eq!(probe.moved_apps(&baseline).len(), 1, "not told yet");
    }
    assert_eq!(probe.apps(), 1);
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [45, 0])]);
    assert_eq!(told(&probe, &mut baseline), []);
    assert_eq!(probe.apps(), 0, "told, and used no more");
    assert_eq!(probe.count_for_app(&flow(6, 4001, 443), Some("chat")), ForApp::Counted);
    run(&probe, Up, &frame(4001));
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "chat", [45, 0])], "from where the counters stood");
}

#[test]
fn the_next_agent_goes_on_with_the_apps_of_the_one_that_died() {
    on_a_kernel!("the_next_agent_goes_on_with_the_apps_of_the_one_that_died");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let mut baseline = Baseline::default();
    let long = "a".repeat(64);
    for (port, app) in [(4000, "streams"), (4001, &long)] {
        run(&probe, Up, &tcp(Up, port, b"hello"));
        probe.count_for_app(&flow(6, port, 443), Some(app));
        run(&probe, Up, &tcp(Up, port, b"hello"));
    }
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, &long, [45, 0]), used(SLOT, "streams", [45, 0])]);
    run(&probe, Up, &tcp(Up, 4000, b"hello"));
    drop(probe);

    let mut probe = rig.load().expect("adopts");
    run(&probe, Up, &tcp(Up, 4000, b"hello"));
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, "streams", [90, 0])]);
    assert_eq!(probe.apps(), 2);
    run(&probe, Up, &tcp(Up, 4002, b"hello"));
    probe.count_for_app(&flow(6, 4002, 443), Some(&long));
    run(&probe, Up, &tcp(Up, 4002, b"hello"));
    assert_eq!(told(&probe, &mut baseline), [used(SLOT, &long, [45, 0])]);
    assert_eq!(probe.apps(), 2, "the same lane");
}

#[test]
fn maps_of_the_layout_without_apps_are_taken_along_with_their_flows() {
    on_a_kernel!("maps_of_the_layout_without_apps_are_taken_along_with_their_flows", tcx);
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = tcp(Up, 4000, b"hello");
    run(&probe, Up, &frame);
    probe.name_flow(&flow(6, 4000, 443), Class::Video, false).expect("names");
    let boot = probe.boot();
    drop(probe);
    // Layout 4 had all maps but this one, with the same records but for the config, which was shorter by what these need.
    let former = {
        let config = MapData::from_pin(rig.settings.pin_dir.join("config")).expect("is pinned");
        let map = aya::maps::Map::Array(config);
        let config: Array<MapData, [u8; size_of::<Config>()]> = map.try_into().expect("an array");
        let mut bytes = config.get(&0, 0).expect("reads");
        assert_eq!(bytes[..4], LAYOUT.to_ne_bytes());
        bytes[..4].copy_from_slice(&4_u32.to_ne_bytes());
        bytes
    };
    for pin in ["apps", "config"] {
        std::fs::remove_file(rig.settings.pin_dir.join(pin)).expect("is pinned");
    }
    let mut object = Vec::new();
    flate2::read::GzDecoder::new(LAYOUT_4).read_to_end(&mut object).expect("whole");
    let mut ebpf = EbpfLoader::new()
        .map_pin_path("usher_config", rig.settings.pin_dir.join("config"))
        .load(&object)
        .expect("the former object loads");
    let map = ebpf.map_mut("usher_config").expect("there");
    let mut config: Array<&mut MapData, [u8; offset_of!(Config, app_mask)]> =
        map.try_into().expect("an array");
    config.set(0, *former.first_chunk().expect("longer"), 0).expect("writes");
    drop(ebpf);

    let mut probe = rig.load().expect("migrates");
    assert_eq!(probe.boot(), boot, "the same life of the counters");
    assert_eq!(
        probe.count_for_app(&flow(6, 4000, 443), Some("streams")),
        ForApp::Counted,
        "the flow is known"
    );
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 1);
    assert_eq!(cell(&probe, SLOT, Class::Video, Up).packets, 1);
    assert_eq!(told(&probe, &mut Baseline::default()), [used(SLOT, "streams", [45, 0])]);
    probe.detach().expect("detaches");
}
