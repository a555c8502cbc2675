//! The real binary, on a capture file, against an orchestrator over real mutual TLS.

use std::collections::BTreeMap;

use crate::support::{Gateway, Ledger, Manners, Orchestrator, PATIENCE, Pki, capture};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use usher_models::setting::{Setting, Settings};
use usher_models::telemetry::push::Step;
use usher_models::telemetry::{self, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_exact_though_streams_break_acknowledgements_are_late_and_batches_come_twice() {
    let pki = Pki::new();
    let manners = Manners { drop_after: Some((3, 2)), acknowledge_every: 3, behind: 1 };
    let (orchestrator, address, _reports) = Orchestrator::serve(&pki, manners).await;
    let mut gateway = Gateway::new(&pki, address, "{capture: {file: traffic.pcap, exit_at_end: true}}");
    let truth = capture(&gateway.path("traffic.pcap"), 4_000);
    gateway.start();

    orchestrator.until("three broken streams", |ledger| ledger.streams > 3).await;
    let names = BTreeMap::from([(2, "a-1"), (3, "b-1"), (4, "")]);
    let expected: BTreeMap<_, _> =
        truth.into_iter().map(|((subscriber, up), sum)| ((names[&subscriber].to_owned(), up), sum)).collect();
    orchestrator.until("every byte told", |ledger| ledger.sums == expected).await;
    let ledger = orchestrator.ledger.lock().unwrap();
    assert!(ledger.repeats > 0 && ledger.gaps == 0, "{ledger:?}");
    assert_eq!((ledger.last.len(), ledger.dry_run), (1, true));
    assert_eq!(ledger.sessions, BTreeMap::from([("a-1".to_owned(), true), ("b-1".to_owned(), true)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_read_to_its_end_and_acknowledged_ends_the_agent() {
    let pki = Pki::new();
    let (orchestrator, address, _reports) = Orchestrator::serve(&pki, Manners::default()).await;
    let mut gateway =
        Gateway::new(&pki, address, "{capture: {file: traffic.pcap, exit_at_end: true, pace: fast}}");
    let truth = capture(&gateway.path("traffic.pcap"), 60_000);
    gateway.start();
    assert_eq!(gateway.ended().await, Some(0));
    let told: u64 = orchestrator.ledger.lock().unwrap().sums.values().map(|(bytes, _)| bytes).sum();
    assert_eq!(told, truth.values().map(|(bytes, _)| bytes).sum::<u64>());
}

async fn answer(reports: &mut mpsc::Receiver<telemetry::Report>, push: &str) -> telemetry::Report {
    let report = tokio::time::timeout(PATIENCE, reports.recv()).await.ok().flatten().expect("an answer");
    assert_eq!(report.push, push);
    report
}

fn video(session: &str, revision: u64, value: &str) -> telemetry::Desired {
    let values = BTreeMap::from([("video".to_owned(), Setting::of_plan(value))]);
    Settings { revision, values }.to_desired(session)
}

fn step(push: &str, step: Step) -> telemetry::Push {
    telemetry::Push { push: push.to_owned(), step: Some(step) }
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmed_settings_outlive_the_agent_and_refused_ones_change_nothing() {
    let pki = Pki::new();
    let (orchestrator, address, mut reports) = Orchestrator::serve(&pki, Manners::default()).await;
    let mut gateway = Gateway::new(&pki, address, "{capture: {file: traffic.pcap}}");
    capture(&gateway.path("traffic.pcap"), 100);
    gateway.start();

    let prepare =
        |desired| Step::Prepare(telemetry::Prepare { desired: vec![desired], confirm_within_ms: 30_000 });
    orchestrator.push(step("p1", prepare(video("a-1", 7, "hd")))).await;
    let prepared = answer(&mut reports, "p1").await;
    assert_eq!((prepared.stage(), prepared.running), (Stage::Prepared, vec![video("a-1", 7, "hd")]));
    orchestrator.push(step("p1", Step::Confirm(telemetry::Confirm {}))).await;
    assert_eq!(answer(&mut reports, "p1").await.stage(), Stage::Confirmed);

    orchestrator.push(step("p2", prepare(video("a-1", 8, "uhd")))).await;
    let refused = answer(&mut reports, "p2").await;
    assert_eq!(refused.stage(), Stage::Refused);
    assert!(refused.error.contains("unknown value `uhd`"), "{}", refused.error);

    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await, Some(0));
    gateway.start();
    orchestrator.until("a second stream", |ledger| ledger.streams == 2).await;
    let read = Step::Read(telemetry::Read { sessions: vec!["a-1".into(), "b-1".into()] });
    orchestrator.push(step("r1", read)).await;
    let running = answer(&mut reports, "r1").await;
    assert_eq!((running.stage(), &running.running[0]), (Stage::Running, &video("a-1", 7, "hd")));
    assert_eq!(running.running[1].settings.len(), 0);

    gateway.signal(Signal::KILL);
    assert_eq!(gateway.ended().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_read_again_when_the_file_changes_and_a_bad_file_changes_nothing() {
    let pki = Pki::new();
    let (orchestrator, address, _reports) = Orchestrator::serve(&pki, Manners::default()).await;
    let mut gateway = Gateway::new(&pki, address, "{capture: {file: traffic.pcap}}");
    capture(&gateway.path("traffic.pcap"), 100);
    gateway.start();
    let states = |wanted: &'static [(&'static str, bool)]| {
        move |ledger: &Ledger| {
            let wanted = wanted.iter().map(|(id, open)| ((*id).to_owned(), *open));
            ledger.sessions == wanted.collect::<BTreeMap<_, _>>()
        }
    };
    orchestrator.until("both open", states(&[("a-1", true), ("b-1", true)])).await;
    gateway.write("sessions.yaml", "sessions: [{id: a-1, prefixes: [10.0.0.2/33]}]");
    let batches = |ledger: &Ledger| ledger.last.values().sum::<u64>();
    let before = batches(&orchestrator.ledger.lock().unwrap());
    orchestrator.until("some seconds", |ledger| batches(ledger) > before + 2).await;
    orchestrator.until("still both open", states(&[("a-1", true), ("b-1", true)])).await;
    gateway.write("sessions.yaml", "sessions: [{id: c-1, keys: [\"imsi:3\"], prefixes: [10.0.0.3/32]}]");
    orchestrator.until("c for b", states(&[("a-1", false), ("b-1", false), ("c-1", true)])).await;
}

#[test]
fn check_says_what_each_limit_of_the_probe_costs() {
    let pki = Pki::new();
    let source = "{probe: {interfaces: [nowhere*], max_flows: 65536, max_subscribers: 1000, max_measured: 16384, max_apps: 65536}}";
    let gateway = Gateway::new(&pki, ([127, 0, 0, 1], 9).into(), source);
    let output = gateway.command("check").output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines: Vec<_> = out.lines().map(words).collect();
    for said in [
        // 160 bytes each.
        "10 MiB for 65536 flows",
        // 1,160 bytes each, and the slot of nobody's; 128 are for prefixes of traffic of no session.
        "1.2 MiB for 1128 subscribers",
        // 128 bytes each: two nodes of a trie.
        "564 KiB for 4512 prefixes",
        // 1,088 bytes each.
        "17 MiB for 16384 classes of sessions measured at one time",
        // 128 bytes each.
        "8 MiB for 65536 apps of subscribers at one time",
        "16 MiB for 16777216 bytes of samples",
    ] {
        assert!(lines.iter().any(|line| line == said), "no `{said}` in\n{out}");
    }
    // Each is cut off at a tenth.
    let size = |line: &str| {
        let (number, rest) = line.split_once(' ')?;
        let shift = ["bytes", "KiB", "MiB"].iter().position(|unit| rest.starts_with(&format!("{unit} ")))?;
        Some(number.parse::<f64>().ok()? * f64::from(1 << (10 * shift)))
    };
    let whole = lines.iter().find_map(|line| line.strip_prefix("memory ")).and_then(size).unwrap();
    let parts: Vec<_> =
        lines.iter().filter(|line| line.contains(" for ")).filter_map(|line| size(line)).collect();
    let sum: f64 = parts.iter().sum();
    assert!(
        parts.len() > 6 && (whole - sum).abs() < 0.1 * f64::from(1 << 20) * 2.0,
        "{sum} of {whole} in\n{out}"
    );
}

#[test]
fn check_says_what_it_found_and_what_it_did_not() {
    let pki = Pki::new();
    let gateway = Gateway::new(&pki, ([127, 0, 0, 1], 9).into(), "{capture: {file: traffic.pcap}}");
    capture(&gateway.path("traffic.pcap"), 100);
    let run = || {
        let output = gateway.command("check").output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run();
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("2 in ") && out.contains("capture file") && out.contains("1 settings, 2 values"),
        "{out}"
    );

    gateway.write("agent.key", "no key");
    let (code, _, err) = run();
    assert!(code == Some(2) && err.contains("agent.key") && err.contains("PRIVATE KEY"), "{err}");
    gateway.write("agent.key", &pki.server.1);
    let (code, _, err) = run();
    assert!(code == Some(2) && err.contains("set up mutual TLS"), "{err}");
    gateway.write("agent.key", &pki.agent.1);

    gateway.write("sessions.yaml", "sessions: [{id: a, keys: [\"imsi:1\"], prefixes: [10.0.0.2/33]}]");
    let (code, _, err) = run();
    assert!(code == Some(2) && err.contains("sessions.yaml:1:"), "{err}");
    std::fs::remove_file(gateway.path("traffic.pcap")).unwrap();
    gateway.write("sessions.yaml", "sessions: [{id: a, keys: [\"imsi:1\"], prefixes: [10.0.0.2/32]}]");
    let (code, _, err) = run();
    assert!(code == Some(2) && err.contains("traffic.pcap"), "{err}");
    assert_eq!(gateway.command("frobnicate").output().unwrap().status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_and_name_nobody() {
    let pki = Pki::new();
    let (orchestrator, address, _reports) = Orchestrator::serve(&pki, Manners::default()).await;
    let mut gateway = Gateway::new(&pki, address, "{capture: {file: traffic.pcap}}");
    capture(&gateway.path("traffic.pcap"), 100);
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let mut config = std::fs::read_to_string(gateway.path("agent.yaml")).expect("the configuration");
    config += "metrics: ";
    gateway.write("agent.yaml", &format!("{config}{port}\n"));
    gateway.start();
    orchestrator.until("three batches", |ledger| ledger.last.values().sum::<u64>() > 2).await;

    let mut stream = tokio::net::TcpStream::connect(port).await.expect("metrics are served");
    let request = "GET /metrics HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("answered");
    for line in [
        "HTTP/1.1 200 OK",
        "usher_agent_sessions 2\n",
        "usher_agent_uplink_connected 1\n",
        "usher_agent_drains_total{result=\"told\"}",
        "usher_agent_spool_limit_bytes 67108864\n",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    assert!(!page.contains("a-1") && !page.contains("10.0.0.") && !page.contains("imsi"), "{page}");
}
