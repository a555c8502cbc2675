//! The same flows through the probe and from a file: the agent says the same of them, for the same code runs.
//!
//! Needs root and a kernel that takes the probe. The test runs itself once more in network and mount namespaces of its own,
//! with its own bpf file system: nothing of it stays behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use usher_tests::process::{self, Running};
use usher_tests::skip;
use usher_tests::wait::{self, Seen};

use super::cases::{self, Case};
use super::wrap::{self, Wrap};

const INSIDE: &str = "USHER_TEST_INSIDE_NAMESPACES";
const TEST: &str = "live::live_and_from_a_file_flows_get_the_same_verdicts";
/// More than a flow's first bytes may take, after which the agent concludes it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest packet of an Ethernet line.
const MTU: usize = 1_500;

/// Verdicts, and how many flows got each: app, class, what it rests on.
type Verdicts = BTreeMap<[String; 3], usize>;

#[test]
fn live_and_from_a_file_flows_get_the_same_verdicts() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if let Some(reason) = skip::why_no_probe() {
        return skip::skipped(TEST, &reason);
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn inside() {
    let shell = |script: &str| process::run(&mut process::command("sh", ["-ec", script])).unwrap();
    // No router solicitations: every packet is one of ours.
    shell(
        "mount -t sysfs none /sys; mount -t bpf none /sys/fs/bpf; \
         for kind in all default; do echo 1 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done; ip link set lo up; \
         ip link add access type veth peer name line; ip link set access up; ip link set line up",
    );
    // What is in tunnels is for the tests of the parsers; what no line carries stays in files; and the probe hands up
    // fragments as they come, which a capture puts together.
    let mut cases: Vec<Case> = cases::all();
    cases.retain(|case| {
        let plain = |packet: &Vec<u8>| packet.len() <= MTU && !is_fragment(packet);
        case.wrap == Wrap::Ethernet && case.packets.iter().all(plain)
    });
    let folder = tempfile::tempdir().unwrap();
    let capture = folder.path().join("generated.pcap");
    std::fs::write(&capture, wrap::recording(&cases)).unwrap();
    let from_file = classified(&capture);
    assert!(from_file.values().sum::<usize>() >= cases.len() * 9 / 10, "most are named: {from_file:?}");

    let mut agent = start(folder.path());
    let open = |device: &str| pcap::Capture::from_device(device).and_then(pcap::Capture::open).unwrap();
    let (mut from_client, mut from_server) = (open("line"), open("access"));
    for (case, packet) in cases.iter().flat_map(|case| case.packets.iter().map(move |packet| (case, packet)))
    {
        let device = if is_up(packet) { &mut from_client } else { &mut from_server };
        device.sendpacket(case.wrap.frame(packet)).unwrap();
    }
    wait::until("the verdicts of the file", PATIENCE, || {
        agent.expect_running()?;
        let live = named(&agent.printed());
        Ok(Seen::when(live == from_file, (), differences(&live, &from_file)))
    })
    .unwrap();
    agent.stop(Duration::from_secs(20)).unwrap();
}

/// Whether the client of the cases sends it.
fn is_up(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[12..16] == [10, 0, 0, 2],
        _ => packet[8..24] == [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    }
}

fn is_fragment(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[6] & 0x3f != 0 || packet[7] != 0,
        _ => packet[6] == 44,
    }
}

/// The agent on the probe, ready.
fn start(folder: &Path) -> Running {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("certificate.pem"), identity.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), identity.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("sessions.yaml"), "sessions: []\n").unwrap();
    let config = "agent: gw-test
source: {probe: {interface: access, pin_dir: /sys/fs/bpf/usher-live}}
sessions: sessions.yaml
home_plmns: [\"00101\"]
uplink: {orchestrator: \"https://localhost:9\", ca: certificate.pem, certificate: certificate.pem, key: key.pem}
state_dir: state
log: {format: json, level: \"info,usher_agent=debug\"}
";
    std::fs::write(folder.join("agent.yaml"), config).unwrap();
    let program = process::built_program("usher-agent").unwrap();
    let mut command = process::command(program, ["run", "--config", "agent.yaml"]);
    command.current_dir(folder);
    let mut agent = Running::start("agent", command, folder).unwrap();
    wait::until("the agent's start", PATIENCE, || {
        agent.expect_running()?;
        Ok(Seen::when(agent.printed().contains("sessions in force"), (), agent.last_words()))
    })
    .unwrap();
    agent
}

/// What the log says of flows.
fn named(log: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        if line["fields"]["message"] == "flow named" {
            *verdicts.entry(verdict(&line["fields"])).or_default() += 1;
        }
    }
    verdicts
}

/// What `usher-agent classify` says of them.
fn classified(capture: &Path) -> Verdicts {
    let program = process::built_program("usher-agent").unwrap();
    let arguments = ["classify", "--format", "json", capture.to_str().unwrap()];
    let mut verdicts = Verdicts::new();
    for line in process::run(&mut process::command(program, arguments)).unwrap().lines() {
        let flow: Value = serde_json::from_str(line).unwrap();
        if flow["via"].is_string() {
            *verdicts.entry(verdict(&flow)).or_default() += 1;
        }
    }
    verdicts
}

fn verdict(told: &Value) -> [String; 3] {
    ["app", "class", "via"].map(|field| told[field].as_str().unwrap_or_default().to_owned())
}

fn differences(live: &Verdicts, from_file: &Verdicts) -> String {
    let mut differences = String::new();
    for verdict in live.keys().chain(from_file.keys()).collect::<BTreeSet<_>>() {
        let (live, from_file) = (live.get(verdict), from_file.get(verdict));
        if live != from_file {
            let _ = write!(differences, "{verdict:?}: live {live:?}, file {from_file:?}; ");
        }
    }
    differences
}
