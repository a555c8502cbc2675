//! The real binary with the probe in the kernel, killed and started again under traffic: nothing is lost or told twice.
//!
//! Needs root and a kernel that takes the probe. The test runs itself once more in network and mount namespaces of its own,
//! with its own bpf file system, so that whatever happens nothing of it stays behind.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use usher_agent::probe::{Probe, ProbeConfig};

use crate::support::{Gateway, Ledger, Manners, Orchestrator, PATIENCE, Pki, frame};
use rustix::process::Signal;

const INSIDE: &str = "USHER_TEST_INSIDE_NAMESPACES";
const TEST: &str = "probe::a_killed_agent_loses_nothing_and_tells_nothing_twice";

/// Sums by session and direction, as the orchestrator's ledger has them.
type Sums = BTreeMap<(String, bool), (u64, u64)>;

#[test]
fn a_killed_agent_loses_nothing_and_tells_nothing_twice() {
    if std::env::var_os(INSIDE).is_some() {
        return tokio::runtime::Runtime::new().expect("a runtime").block_on(inside());
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("not root: namespaces and BPF need it");
    }
    if let Err(why) = usable() {
        return skipped(&why);
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", TEST, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) runs");
    assert!(status.success(), "{status}");
}

/// Whether this root may make namespaces and load the probe.
fn usable() -> Result<(), String> {
    let namespaces = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        return Err("no network namespace can be made".to_owned());
    }
    let trial = ProbeConfig {
        pin_dir: format!("/sys/fs/bpf/usher-trial-{}", std::process::id()).into(),
        ..ProbeConfig::new("lo")
    };
    let loaded = Probe::load(trial).and_then(|(probe, _)| probe.detach());
    loaded.map_err(|error| format!("the probe cannot be loaded: {error}"))
}

/// Past the test runner, which keeps what passing tests print to itself.
fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {TEST}: {reason}");
    let allowed = std::env::var_os("USHER_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "{TEST} cannot run here ({reason}), and USHER_NO_SKIP=1 allows no test to be left out");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) runs");
    assert!(status.success(), "ip {arguments}");
}

fn mount(kind: &str, at: &str) {
    let status = Command::new("mount").args(["-t", kind, "none", at]).status().expect("mount runs");
    assert!(status.success(), "mount -t {kind} none {at}");
}

/// Sends frames from both sides of a pair until told to stop; returns what it sent.
fn traffic([subscribers, gateway]: [&str; 2], stop: &AtomicBool, sent: &Mutex<Sums>) {
    let open =
        |device: &str| pcap::Capture::from_device(device).and_then(pcap::Capture::open).expect("a device");
    let (mut subscribers, mut gateway) = (open(subscribers), open(gateway));
    // By the last byte of the address, from 2 on: two sessions, which win over a prefix around them, nobody, and a prefix with a name.
    let names = ["a-1", "b-1", "", "anonymous guests"];
    for number in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let who = number % 4;
        let up = number % 5 < 2;
        let frame = frame(2 + u8::try_from(who).expect("small"), up, 80 + number % 1_200);
        let device = if up { &mut subscribers } else { &mut gateway };
        device.sendpacket(frame.as_slice()).expect("a frame is sent");
        let mut sent = sent.lock().expect("no panic");
        let sum = sent.entry((names[who].to_owned(), up)).or_default();
        *sum = (sum.0 + frame.len() as u64 - 14, sum.1 + 1);
        drop(sent);
        if number.is_multiple_of(50) {
            // Traffic has a pace of its own, whatever the agent does.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn pair(gateway: &str, subscribers: &str) {
    ip(&format!("link add {gateway} type veth peer name {subscribers}"));
    ip(&format!("link set {gateway} up"));
    ip(&format!("link set {subscribers} up"));
}

/// Waits until the programs hang in so many places.
async fn until_pinned(links: usize) {
    let pinned = || {
        let pins = std::fs::read_dir("/sys/fs/bpf/usher").into_iter().flatten().flatten();
        pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("link_")).count()
    };
    let hang = async {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while pinned() != links {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, hang).await.expect("the probe follows");
}

async fn inside() {
    mount("sysfs", "/sys");
    mount("bpf", "/sys/fs/bpf");
    for family in ["all", "default"] {
        // No router solicitations: every packet is one of ours.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{family}/disable_ipv6"), "1");
    }
    ip("link set lo up");
    pair("gw0", "sub0");

    let pki = Pki::new();
    let manners = Manners { acknowledge_every: 2, behind: 1, ..Manners::default() };
    let (orchestrator, address, _reports) = Orchestrator::serve(&pki, manners).await;
    let source = "{probe: {interfaces: [gw0, session*], pin_dir: /sys/fs/bpf/usher, max_flows: 1024, max_subscribers: 64}}";
    let mut gateway = Gateway::new(&pki, address, source);
    gateway.start();
    orchestrator.until("the first batch", |ledger| !ledger.last.is_empty()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(Mutex::new(Sums::new()));
    let start = |ends: [&'static str; 2]| {
        let (stop, sent) = (stop.clone(), sent.clone());
        std::thread::spawn(move || traffic(ends, &stop, &sent))
    };
    let mut senders = vec![start(["sub0", "gw0"])];
    for kill in 1..=4 {
        let applied = |ledger: &Ledger| ledger.last.values().sum::<u64>();
        let before = applied(&orchestrator.ledger.lock().expect("no panic"));
        orchestrator.until("two batches more", |ledger| applied(ledger) >= before + 2).await;
        gateway.signal(Signal::KILL);
        assert_eq!(gateway.ended().await, None, "killed {kill} times");
        gateway.start();
        orchestrator.until("a new stream", |ledger| ledger.streams > kill).await;
        if kill == 2 {
            // An interface that only a pattern means, while the agent runs: it is told, and follows.
            pair("session7", "sub7");
            until_pinned(4).await;
            senders.push(start(["sub7", "session7"]));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("the sender ends well");
    }
    let sent = sent.lock().expect("no panic").clone();
    orchestrator.until("what was sent is told", |ledger| ledger.sums == sent).await;
    {
        let ledger = orchestrator.ledger.lock().expect("no panic");
        assert_eq!((ledger.last.len(), ledger.gaps, ledger.dry_run), (1, 0, false));
    }

    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    assert!(std::fs::read_dir("/sys/fs/bpf/usher").is_ok_and(|pins| pins.count() > 0), "counting goes on");
    assert!(gateway.command("detach").status().expect("the agent runs").success());
    let left = std::fs::read_dir("/sys/fs/bpf/usher").map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing stays pinned");
}
