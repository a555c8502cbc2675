//! The daemon's binary: what it refuses to start with, what it tells systemd, reloads, a kill, and what it tells of its ledger.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::engine::io::{
    Candidate, Decision, DecisionId, Effect, Gate, Mode, Say, Score, Stopped,
};
use usher_orchestrator::ledger::{InputRecord, Ledger};
use usher_orchestrator::pki;

const POLICY: &str = include_str!("../../tests/demo/policy.yaml");
const PROFILES: &str = include_str!("../../tests/demo/profiles.yaml");

/// A directory with everything the daemon needs, and the socket it tells systemd things on.
struct Ground {
    dir: tempfile::TempDir,
    systemd: UnixDatagram,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(&dir.path().join("pki"), &["127.0.0.1".to_owned()], &[]).unwrap();
        let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        // Longer than any start takes; a test that waits this long has failed.
        systemd.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let ground = Self { dir, systemd };
        let config = format!(
            "state_dir: state\npolicy: policy.yaml\nprofiles: profiles.yaml\nagents:\n  listen: 127.0.0.1:0\n  \
             tls: {{certificate: pki/server.pem, key: pki/server.key, ca: pki/ca.pem}}\n  allowed: [gw-1]\nadvice: \
             {{public_url: 'https://a.example', listen: '127.0.0.1:0', outbox: outbox}}\napi: {{socket: api.sock}}\n\
             metrics: {{listen: '127.0.0.1:{}'}}\n",
            free_port()
        );
        ground.write("orchestrator.yaml", &config);
        ground.write("policy.yaml", POLICY);
        ground.write("profiles.yaml", PROFILES);
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn change(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        self.write(name, &text.replace(from, to));
    }

    fn command(&self) -> Command {
        // systemd names the process the watchdog is meant for; only that process knows its number before it starts.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_usher-orchestrator")])
            .args(["--config".as_ref(), self.path("orchestrator.yaml").as_os_str()])
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("WATCHDOG_USEC", "400000")
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped());
        command
    }

    /// What it says and how it ends where it is not to start.
    fn refused(&self) -> (i32, String) {
        let Output { status, stderr, .. } = self.command().output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn start(&self) -> Daemon {
        let mut child = self.command().spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let daemon = Daemon { child, log };
        self.hear("READY=1");
        daemon
    }

    /// Waits until systemd is told this.
    fn hear(&self, expected: &str) {
        let mut buffer = [0; 256];
        loop {
            let length = self.systemd.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == expected) {
                return;
            }
        }
    }
}

/// Killed when dropped.
struct Daemon {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next line of the log with these words in it.
    fn logs(&mut self, words: &str) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(words) {
                return line;
            }
            line.clear();
        }
        panic!("the log ended without `{words}`");
    }

    fn end(mut self) -> i32 {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn each_mistake_is_refused_with_its_place_before_anything_is_made() {
    type Mistake = (&'static str, &'static str, &'static str, &'static str);
    let mistakes: [Mistake; 8] = [
        ("orchestrator.yaml", "state_dir:", "state_directory:", "orchestrator.yaml:1:1: unknown field"),
        ("orchestrator.yaml", "profiles.yaml", "nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("orchestrator.yaml", "pki/ca.pem", "policy.yaml", "policy.yaml cannot be used for agents.tls"),
        (
            "orchestrator.yaml",
            "key: pki/server.key",
            "key: pki/ca.key",
            "ca.key cannot be used for agents.tls",
        ),
        ("orchestrator.yaml", "advice:", "#", "action `roam_pass` of the policy says something"),
        ("policy.yaml", "video_capped > 0.8", "video_capped > ", "policy.yaml:7:"),
        ("policy.yaml", "mode: live", "mode: canary", "needs `guard.canary`"),
        (
            "profiles.yaml",
            "id: sub-b",
            "id: sub-a",
            "profiles.yaml:12:9: subscriber `sub-a` stands here twice",
        ),
    ];
    for (file, from, to, expected) in mistakes {
        let ground = Ground::new();
        ground.change(file, from, to);
        let (code, said) = ground.refused();
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(expected), "expected `{expected}` in:\n{said}");
        assert!(!ground.path("state").exists(), "{file}: {from}");
    }
}

#[test]
fn the_shipped_files_have_no_mistakes() {
    let ground = Ground::new();
    ground.write("policy.yaml", include_str!("../../deploy/policy.yaml"));
    ground.write("profiles.yaml", include_str!("../../deploy/profiles.yaml"));
    let Output { status, stderr, .. } = ground.command().arg("--check").output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    assert!(!ground.path("state").exists());
}

#[test]
fn what_is_taken_by_another_is_named() {
    let ground = Ground::new();
    let _daemon = ground.start();
    let (code, said) = ground.refused();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another usher-orchestrator works in"), "{said}");
}

#[test]
fn systemd_hears_of_its_life_and_its_end() {
    let ground = Ground::new();
    let daemon = ground.start();
    ground.hear("WATCHDOG=1");
    ground.hear("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    ground.hear("STOPPING=1");
    assert_eq!(daemon.end(), 0);
    assert!(!ground.path("api.sock").exists(), "the socket goes with its daemon");
    assert!(wal_is_folded(&ground.path("state")), "a graceful stop leaves one file");
}

fn wal_is_folded(state: &Path) -> bool {
    !state.join("ledger.sqlite-wal").exists()
}

#[test]
fn a_reload_takes_a_good_policy_and_changes_nothing_with_a_bad_one() {
    let ground = Ground::new();
    let mut daemon = ground.start();
    daemon.logs("ready");
    ground.change("policy.yaml", "floor: 0.4", "floor: often");
    daemon.signal(Signal::HUP);
    let refused = daemon.logs("policy and profiles stay as they were");
    assert!(refused.contains("policy.yaml:28:10"), "{refused}");
    ground.change("policy.yaml", "floor: often", "floor: 0.5");
    daemon.signal(Signal::HUP);
    daemon.logs("policy and profiles loaded");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end(), 0);
}

#[test]
fn after_a_kill_the_next_one_starts_where_it_was() {
    let ground = Ground::new();
    let mut daemon = ground.start();
    daemon.logs("ready");
    daemon.signal(Signal::KILL);
    let _ = daemon.child.wait();
    assert!(ground.path("api.sock").exists(), "a killed daemon cleans up nothing");
    let daemon = ground.start();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), 0);
}

/// What `usher` says, and how it ends.
fn usher(ground: &Ground, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
    command.arg("--socket").arg(ground.path("api.sock")).args(arguments).current_dir(ground.dir.path());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn a_policy_on_trial_outlives_a_kill_and_goes_by_itself_and_days_are_recorded_all_the_while() {
    let ground = Ground::new();
    ground.change("orchestrator.yaml", "state_dir: state", "state_dir: state\nrecord: {dir: days}");
    ground.write("new.yaml", &POLICY.replace("floor: 0.4", "floor: 0.5"));
    ground.write("bad.yaml", &POLICY.replace("floor: 0.4", "floor: often"));
    let mut daemon = ground.start();
    let said = |arguments: &[&str]| {
        let (code, said) = usher(&ground, arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    };
    assert_eq!(usher(&ground, &["confirm"]).0, 4);
    let (code, refused) = usher(&ground, &["apply", "bad.yaml"]);
    assert!(code == 4 && refused.contains("bad.yaml:28:10"), "{code} {refused}");
    said(&["apply", "new.yaml", "--confirm-within", "1d"]);
    assert!(said(&["status"]).contains("ON TRIAL until"));
    daemon.signal(Signal::KILL);
    let _ = daemon.child.wait();
    let mut daemon = ground.start();
    assert!(said(&["status"]).contains("ON TRIAL until"), "a kill changes nothing about it");
    assert!(said(&["confirm"]).contains("stays in force"));
    assert!(said(&["status"]).contains("and confirmed"));
    // Back to the file's, unconfirmed.
    said(&["apply", "policy.yaml", "--confirm-within", "1s"]);
    daemon.logs("was not confirmed in time");
    daemon.logs("the policy before is in force again");
    // What was recorded is played again by another process, while the daemon runs.
    let mut record = Command::new(env!("CARGO_BIN_EXE_usher-orchestrator"));
    record.args(["record", "--output", "today.day", "--config", "orchestrator.yaml"]);
    let Output { status, stderr, .. } = record.current_dir(ground.dir.path()).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    assert!(said(&["replay", "today.day"]).contains("the same, bit for bit"));
    assert!(said(&["plan", "--policy", "policy.yaml"]).contains("Would be told"));
    assert_eq!(usher(&ground, &["replay", "policy.yaml"]).0, 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), 0);
}

/// Two days ago `roam_pass` was picked at so many moments, each with a chance of 0.98 and worth 5.0 to the customer: said to 120
/// people, of whom 30 took it up; 6 were held out; of one more the chance was not logged then.
fn two_days_ago(ledger: &Ledger) {
    const DAY: Duration = Duration::from_hours(24);
    let at = Micros::now().before(2 * DAY);
    let decision = |number: usize| {
        let held_out = (120..126).contains(&number);
        let stopped_by = held_out.then(|| Stopped { gate: Gate::Holdout, why: "held out".into() });
        let score = Score { propensity: 0.1, relevance: 1.0, value: 8.0, cost: 3.0, total: 0.5 };
        Decision {
            id: DecisionId(format!("{number:04}")),
            subscriber: SubscriberId("sub-a".into()),
            moment: "roam_bare".into(),
            episode: 1,
            at,
            policy: "7f3a".into(),
            mode: Mode::Live,
            facts: [("sub.roaming".into(), Some(1.0))].into(),
            words: [].into(),
            candidates: vec![Candidate { action: "roam_pass".into(), stopped_by, score: Some(score) }],
            chosen: (!held_out).then(|| "roam_pass".into()),
            probability: 0.98,
            style: None,
        }
    };
    let message = |number: usize| Say {
        decision: DecisionId(format!("{number:04}")),
        subscriber: SubscriberId("sub-a".into()),
        action: "roam_pass".into(),
        text: "A day pass?".into(),
        tap: [("roam_pass".into(), "day".into())].into(),
        tap_seconds: 86_400,
        expires: at.after(DAY / 12),
        regulated: false,
    };
    let said = (0..120).chain([126]);
    let mut effects: Vec<Effect> = (0..127).map(|number| Effect::Decided(decision(number))).collect();
    effects.extend(said.clone().map(|number| Effect::Say(message(number))));
    ledger.apply(&InputRecord { at, effects, ..InputRecord::default() }).unwrap();
    for number in said {
        ledger.message_sent(&DecisionId(format!("{number:04}")), at).unwrap();
    }
    for number in 0..30 {
        let tap = Some(DecisionId(format!("{number:04}")));
        ledger.apply(&InputRecord { at: at.after(DAY / 24), tap, ..InputRecord::default() }).unwrap();
    }
    let old = "UPDATE decisions SET trace = json_remove(trace, '$.probability') WHERE id = '0126'";
    rusqlite::Connection::open(ledger.path()).unwrap().execute_batch(old).unwrap();
}

/// All that is kept, byte for byte; how readers stand to the database's log is no part of it.
fn kept(ground: &Ground) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![ground.path("state")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.to_string_lossy().ends_with("-shm") {
                files.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn looking_at_people_and_at_what_messages_brought_changes_not_a_byte_of_what_is_kept() {
    let ground = Ground::new();
    std::fs::create_dir(ground.path("state")).unwrap();
    two_days_ago(&Ledger::open(&ground.path("state/ledger.sqlite")).unwrap());
    let mut daemon = ground.start();
    daemon.logs("ready");
    let said = |arguments: &[&str]| {
        let (code, said) = usher(&ground, arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    };
    // The engine has something to tell of somebody.
    said(&["complaint", "sub-a"]);
    let before = kept(&ground);
    let explained = said(&["explain", "sub-a", "-o", "json"]);
    for subscriber in ["sub-a", "sub-b", "sub-c"] {
        assert!(said(&["explain", subscriber, "--limit", "1000"]).contains("Moments now"));
        said(&["explain", subscriber, "--at", "2026-01-01T00:00:00Z"]);
    }
    let seen = |explained: &str| {
        let explained: serde_json::Value = serde_json::from_str(explained).unwrap();
        ["facts", "decisions", "moments"].map(|part| explained[part].clone())
    };
    assert_eq!(seen(&explained), seen(&said(&["explain", "sub-a", "-o", "json"])));

    let table = said(&["uplift"]);
    for part in ["roam_pass", "25.0 % (17.2 to 32.8)", "1.25", "1 without a logged probability", "7f3a (127)"]
    {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    let report: serde_json::Value = serde_json::from_str(&said(&["uplift", "-o", "json"])).unwrap();
    let action = &report["actions"][0];
    for (name, expected) in
        [("sent", 120), ("accepted", 30), ("ignored", 90), ("held_out", 6), ("chances", 126)]
    {
        assert_eq!(action[name], expected, "{name} in {report}");
    }
    // 30 of 126, each of which stands for 1 / 0.98 picks, of which 120 of 126 were said.
    let ipw = action["always"]["acceptance_ipw"]["mean"].as_f64().unwrap();
    assert!((ipw - 30.0 / (0.98 * 120.0 / 126.0) / 126.0).abs() < 1e-9, "{ipw}");
    assert!(said(&["uplift", "--since", "2200-01-01T00:00:00Z"]).contains("no message was sent"));
    assert!(said(&["uplift", "--credit", "30m"]).contains("too few"));
    let (code, refused) = usher(&ground, &["uplift", "--policy", "ffff"]);
    assert!(code == 3 && refused.contains("there are those of 7f3a"), "{code} {refused}");
    assert_ne!(usher(&ground, &["uplift", "--credit", "40d"]).0, 0);

    assert!(kept(&ground) == before, "something that is kept was changed by a look");
    said(&["complaint", "sub-b"]);
    assert!(kept(&ground) != before, "what is told to the daemon is kept there");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), 0);
}
