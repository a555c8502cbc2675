//! Sessions that move, agents that die, maps that are not ours.

use std::process::Command;
use std::time::Duration;

use usher_agent::probe::{Attach, Pattern, ProbeConfig, ProbeError, Verdict};
use usher_agent::usage::Baseline;
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, Class, Direction, Enforcement, Gate};
use usher_tests::process::Running;
use usher_tests::wait::{self, Seen};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

#[test]
fn a_moved_address_takes_its_running_flows_to_the_new_slot_at_once() {
    on_a_kernel!("a_moved_address_takes_its_running_flows_to_the_new_slot_at_once");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = tcp(Up, 4000, b"x");
    run(&probe, Up, &frame);
    run(&probe, Up, &frame);
    probe.bind(net("10.0.0.2/32"), 5).expect("moves");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 2);
    assert_eq!(cell(&probe, 5, Class::Other, Up).packets, 1);
    probe.unbind(net("10.0.0.2/32")).expect("unbinds");
    probe.unbind(net("10.0.0.2/32")).expect("once more is no error");
    run(&probe, Up, &frame);
    assert_eq!(cell(&probe, ANONYMOUS, Class::Other, Up).packets, 1);
    assert_eq!(cell(&probe, 5, Class::Other, Up).packets, 1);
}

#[test]
fn what_has_moved_since_a_baseline_is_found_and_nothing_else() {
    on_a_kernel!("what_has_moved_since_a_baseline_is_found_and_nothing_else");
    let mut rig = Rig::new();
    rig.settings.max_subscribers = 600;
    let mut probe = rig.probe();
    let last = probe.slots() - 1;
    let all = ANONYMOUS..probe.slots();
    let mut baseline = Baseline::default();
    assert_eq!(probe.moved(&baseline, all.clone()).expect("reads"), []);
    probe.bind(net("10.0.0.3/32"), last).expect("binds");
    for round in 1..=2_u64 {
        run(&probe, Up, &tcp(Up, 4000, b"x"));
        run(&probe, Down, &tcp(Down, 4000, b"xy"));
        run(&probe, Up, &tcp_of([10, 0, 0, 3], b"x"));
        run(&probe, Up, &tcp_of([10, 0, 0, 9], b"x"));
        let moved = probe.moved(&baseline, all.clone()).expect("reads");
        let places: Vec<_> =
            moved.iter().map(|moved| (moved.slot, moved.direction, moved.now.packets)).collect();
        assert_eq!(
            places,
            [(ANONYMOUS, Up, round), (SLOT, Up, round), (SLOT, Down, round), (last, Up, round)]
        );
        for found in &moved {
            assert_eq!(found.now, cell(&probe, found.slot, found.class, found.direction));
            baseline.set(found);
        }
        assert_eq!(probe.moved(&baseline, all.clone()).expect("reads"), []);
    }
    let none = Baseline::default();
    assert_eq!(probe.moved(&none, SLOT + 1..last).expect("reads"), [], "no others than asked");
    assert_eq!(probe.moved(&none, last..u32::MAX).expect("reads").len(), 1, "nor beyond what there is");
}

#[test]
fn a_moved_address_is_enforced_as_its_new_owner() {
    on_a_kernel!("a_moved_address_is_enforced_as_its_new_owner");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let frame = tcp(Down, 4000, b"x");
    probe.enforce(5, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    assert_eq!(run(&probe, Down, &frame), Verdict::Pass);
    probe.bind(net("10.0.0.2/32"), 5).expect("moves");
    assert_eq!(run(&probe, Down, &frame), Verdict::Drop);
}

#[test]
fn the_next_agent_adopts_counters_flows_sessions_and_enforcement() {
    on_a_kernel!("the_next_agent_adopts_counters_flows_sessions_and_enforcement");
    let rig = Rig::new();
    let mut probe = rig.probe();
    run(&probe, Up, &tcp(Up, 4000, b"x"));
    probe.name_flow(&flow(6, 4000, 443), Class::Game, false).expect("names");
    probe.enforce(7, &Enforcement::default().with_gate(Gate::Block)).expect("writes");
    probe.set_bypass(true).expect("writes");
    let boot = probe.boot();
    drop(probe);

    let mut probe = rig.load().expect("adopts");
    assert_eq!(probe.boot(), boot);
    assert!(probe.bypass());
    run(&probe, Up, &tcp(Up, 4000, b"x"));
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 1);
    assert_eq!(cell(&probe, SLOT, Class::Game, Up).packets, 1);
    assert_eq!(probe.enforcement(7).expect("reads").gate, Gate::Block);
    let mut bindings = probe.bindings().expect("lists");
    bindings.sort_unstable();
    assert_eq!(bindings, [(net("10.0.0.2/32"), SLOT), (net("2001:db8:1::/48"), SLOT)]);
    assert!(samples(&mut probe).len() <= 1, "what the former agent did not read is still there, once");
    probe.detach().expect("detaches");

    let probe = rig.load().expect("begins anew");
    assert_ne!(probe.boot(), boot, "counters that began anew are another life");
    assert_eq!(everything(&probe), (0, 0));
    probe.detach().expect("detaches");
}

#[test]
fn an_interface_made_again_is_attached_to_again() {
    on_a_kernel!("an_interface_made_again_is_attached_to_again");
    let rig = Rig::new();
    let probe = rig.probe();
    let boot = probe.boot();
    run(&probe, Up, &tcp(Up, 4000, b"x"));
    drop(probe);
    rig.remove_interface();
    rig.make_interface();
    let probe = rig.load().expect("attaches to the new one");
    assert_eq!(probe.boot(), boot);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 1);
    probe.detach().expect("detaches");
}

#[test]
fn clsact_serves_where_tcx_is_not_wanted_and_either_takes_over_from_the_other() {
    on_a_kernel!("clsact_serves_where_tcx_is_not_wanted_and_either_takes_over_from_the_other", tcx);
    let mut rig = Rig::new();
    let boot = rig.probe().boot();
    for attach in [Attach::Clsact, Attach::Clsact, Attach::Auto, Attach::Clsact] {
        rig.settings.attach = attach;
        let probe = rig.load().expect("attaches");
        assert_eq!(probe.boot(), boot);
        let shown = Command::new("tc")
            .args(["filter", "show", "dev", &rig.interface, "ingress"])
            .output()
            .expect("tc runs");
        let filters = String::from_utf8_lossy(&shown.stdout).matches("handle 0x1 usher_up").count();
        assert_eq!(
            filters,
            usize::from(attach == Attach::Clsact),
            "{}",
            String::from_utf8_lossy(&shown.stdout)
        );
        let pins = pins(&rig);
        assert_eq!(pins.iter().any(|pin| pin.starts_with("link_up_")), attach == Attach::Auto, "{pins:?}");
        assert_eq!(
            pins.iter().any(|pin| pin.starts_with("filter_up_")),
            attach == Attach::Clsact,
            "{pins:?}"
        );
    }
    rig.load().expect("adopts").detach().expect("detaches");
}

#[test]
fn maps_of_another_size_are_refused_and_left_alone() {
    on_a_kernel!("maps_of_another_size_are_refused_and_left_alone");
    let rig = Rig::new();
    let probe = rig.probe();
    let boot = probe.boot();
    run(&probe, Up, &tcp(Up, 4000, b"x"));
    drop(probe);
    let settings = ProbeConfig { max_subscribers: 32, ..rig.settings.clone() };
    let error = usher_agent::probe::Probe::load(settings).expect_err("another size");
    let text = error.to_string();
    assert!(matches!(error, ProbeError::OtherSize { pinned: 16, ours: 32, .. }), "{text}");
    assert!(text.contains("16") && text.contains("32") && text.contains("rations"), "{text}");
    let probe = rig.load().expect("still there");
    assert_eq!(probe.boot(), boot);
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 1);
}

#[test]
fn two_agents_do_not_share_pins() {
    on_a_kernel!("two_agents_do_not_share_pins");
    let rig = Rig::new();
    let probe = rig.probe();
    let error = rig.load().expect_err("the first one has them");
    assert!(matches!(error, ProbeError::InUse { .. }), "{error}");
    let error =
        usher_agent::probe::Probe::remove(&rig.settings).expect_err("it is not another one's to remove");
    assert!(matches!(error, ProbeError::InUse { .. }), "{error}");
    run(&probe, Up, &tcp(Up, 4000, b"x"));
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 1);
    drop(probe);
    drop(rig.load().expect("the first one is gone"));
    usher_agent::probe::Probe::remove(&rig.settings).expect("removes what nobody has");
    assert!(!rig.settings.pin_dir.exists());
    usher_agent::probe::Probe::remove(&rig.settings).expect("and nothing, where nothing is");
}

#[test]
fn idle_flows_are_forgotten_and_busy_ones_are_not() {
    on_a_kernel!("idle_flows_are_forgotten_and_busy_ones_are_not");
    let mut rig = Rig::new();
    rig.settings.flow_idle = Duration::from_mins(1);
    let mut probe = rig.probe();
    let began = Micros::now();
    run(&probe, Up, &tcp(Up, 1, b"x"));
    run(&probe, Up, &tcp(Up, 2, b"x"));
    for second in (10..=120).step_by(10) {
        run(&probe, Up, &tcp(Up, 2, b"x"));
        let swept = probe.sweep(began.after(Duration::from_secs(second))).expect("sweeps");
        // Flow 1 was last seen before the first sweep, 10 s in.
        let expected = match second {
            ..70 => (2, 0),
            70 => (1, 1),
            _ => (1, 0),
        };
        assert_eq!((swept.kept, swept.forgotten), expected, "after {second} s");
    }
    assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, 14, "usage outlives its flow");
}

#[test]
fn slots_and_prefixes_out_of_bounds_are_refused() {
    on_a_kernel!("slots_and_prefixes_out_of_bounds_are_refused");
    let rig = Rig::new();
    let mut probe = rig.load().expect("loads");
    for slot in [ANONYMOUS, 16, u32::MAX] {
        assert!(matches!(probe.bind(net("10.0.0.1/32"), slot), Err(ProbeError::NoSuchSlot { .. })));
    }
    assert!(matches!(probe.usage(16), Err(ProbeError::NoSuchSlot { slot: 16, slots: 16 })));
    for host in 0..16 {
        probe.bind(net(&format!("10.0.0.{host}/32")), 1).expect("fits");
    }
    let error = probe.bind(net("10.0.0.99/32"), 1).expect_err("full");
    assert!(error.to_string().contains("10.0.0.99/32") && error.to_string().contains("16"), "{error}");
    probe.bind(net("10.0.0.3/32"), 2).expect("one that is there may still move");
}

#[test]
fn a_missing_interface_is_named() {
    on_a_kernel!("a_missing_interface_is_named");
    let rig = Rig::new();
    let settings = ProbeConfig { interfaces: vec![Pattern::new("usher-nowhere")], ..rig.settings.clone() };
    let error = usher_agent::probe::Probe::load(settings).expect_err("no such interface");
    assert!(error.to_string().contains("usher-nowhere") && error.to_string().contains("lo"), "{error}");
    assert!(!rig.settings.pin_dir.exists());
}

#[test]
fn a_probe_that_cannot_be_loaded_leaves_nothing_behind() {
    on_a_kernel!("a_probe_that_cannot_be_loaded_leaves_nothing_behind");
    let rig = Rig::new();
    let settings = ProbeConfig { max_prefixes: 0, ..rig.settings.clone() };
    usher_agent::probe::Probe::load(settings).expect_err("a map without entries");
    assert!(!rig.settings.pin_dir.exists());
}

#[tokio::test]
async fn waiting_for_a_sample_ends_when_one_comes_and_loses_none_when_given_up() {
    on_a_kernel!("waiting_for_a_sample_ends_when_one_comes_and_loses_none_when_given_up");
    let rig = Rig::new();
    let mut probe = rig.probe();
    for round in 0..3 {
        tokio::select! {
            biased;
            sample = probe.next_sample() => panic!("nothing was sent: {sample:?}"),
            () = tokio::task::yield_now() => {}
        }
        run(&probe, Up, &tcp(Up, 4000 + round, b"hello"));
        run(&probe, Up, &tcp(Up, 4000 + round, b"hello"));
        for _ in 0..2 {
            let wait = tokio::time::timeout(Duration::from_secs(5), probe.next_sample());
            let sample = wait.await.expect("it comes").expect("a probe does not end");
            assert_eq!(sample.flow, flow(6, 4000 + round, 443));
        }
    }
}

/// Set where a test runs itself once more, to be disturbed: the file into which it writes its thread's number once it is ready.
const DISTURBED: &str = "USHER_TEST_DISTURBED";

/// The verifier gives up where a signal reaches the thread; an agent may be told to read its files again at any time.
#[test]
fn signals_in_the_middle_of_loading_do_not_keep_the_probe_from_it() {
    use rustix::process::{Pid, Signal, kill_process};
    use tokio::signal::unix::{SignalKind, signal};

    const NAME: &str = "signals_in_the_middle_of_loading_do_not_keep_the_probe_from_it";
    on_a_kernel!("signals_in_the_middle_of_loading_do_not_keep_the_probe_from_it");
    if let Some(ready) = std::env::var_os(DISTURBED) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _handled = {
            let _inside = runtime.enter();
            signal(SignalKind::user_defined1()).expect("is handled")
        };
        let rig = Rig::new();
        std::fs::write(ready, rustix::thread::gettid().to_string()).expect("says so");
        rig.load().expect("loads").detach().expect("detaches");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ready = folder.path().join("ready");
    let mut itself = Command::new(std::env::current_exe().expect("this test"));
    itself.args(["--exact", &format!("life::{NAME}")]).env(DISTURBED, &ready);
    let mut disturbed = Running::start("disturbed", itself, folder.path()).expect("starts");
    let thread = wait::until("the other being ready", Duration::from_mins(1), || {
        disturbed.expect_running()?;
        let thread =
            std::fs::read_to_string(&ready).ok().and_then(|thread| Pid::from_raw(thread.parse().ok()?));
        Ok(thread.map_or_else(|| Seen::NotYet(disturbed.printed()), Seen::Done))
    })
    .expect("is ready");
    for _ in 0..12 {
        // A signal for a process is given to the thread by whose number the process was named.
        kill_process(thread, Signal::USR1).expect("is there");
        std::thread::sleep(Duration::from_millis(15));
    }
    let status = disturbed.wait(Duration::from_mins(1)).expect("ends");
    assert!(status.success(), "{}", disturbed.printed());
}
