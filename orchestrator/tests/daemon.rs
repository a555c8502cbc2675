//! The daemon's binary: what it refuses to start with, what it tells systemd, reloads, and a kill.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
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
