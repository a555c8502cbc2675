//! The operator's CLI against a real API: the built `usher`, a real socket or TLS, a real ledger.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use usher_models::setting::{Setting, Settings};
use usher_models::units::{Micros, SubscriberId};
use usher_models::{Class, Direction};
use usher_orchestrator::api::{
    self, About, ApiState, Ask, Live, LiveAgent, LiveElement, LiveUplink, Metrics,
};
use usher_orchestrator::elements::{Change, ElementOutcome, ElementState, PushId, PushState};
use usher_orchestrator::engine::io::{
    Candidate, Cause, Decision, DecisionId, Desire, Effect, Gate, Mode, Say, Score, Stopped,
};
use usher_orchestrator::identity::{Consent, Profile};
use usher_orchestrator::ledger::{
    AppRecord, BatchMark, BatchRecord, InputRecord, Ledger, SessionRecord, UsageRecord,
};
use usher_orchestrator::pki;

const TOKEN: &str = "0123456789abcdef0123456789abcdef-good";

/// The parts of a running daemon the API asks.
struct Daemon {
    started: Micros,
    profiles: BTreeMap<SubscriberId, Profile>,
}

impl Live for Daemon {
    fn about(&self) -> About {
        About { started: self.started, policy: "7f3a".into(), mode: "live".into() }
    }

    fn agents(&self) -> Vec<LiveAgent> {
        let uplink = LiveUplink { since: self.started, version: "0.1.0".into(), dry_run: false };
        vec![
            LiveAgent { name: "gw-1".into(), uplink: Some(uplink) },
            LiveAgent { name: "gw-2".into(), uplink: None },
        ]
    }

    fn elements(&self) -> Vec<LiveElement> {
        let one = |name: &str, address: Option<&str>, settings| LiveElement {
            name: name.into(),
            address: address.map(str::to_owned),
            settings,
            dry_run: false,
        };
        vec![
            one("gateway:gw-1", None, None),
            one("netconf:bng-1", Some("192.0.2.9:830"), Some(vec!["video".into()])),
        ]
    }

    fn subscribers(&self) -> usize {
        self.profiles.len()
    }

    fn profile(&self, id: &SubscriberId) -> Option<Profile> {
        self.profiles.get(id).cloned()
    }

    fn profiles_after(&self, after: Option<&SubscriberId>, limit: usize) -> Vec<Profile> {
        let beyond = self.profiles.values().filter(|profile| after.is_none_or(|after| profile.id > *after));
        beyond.take(limit).cloned().collect()
    }
}

fn profile(id: &str, consent: Consent) -> (SubscriberId, Profile) {
    let id = SubscriberId(id.into());
    let profile = Profile {
        keys: BTreeSet::from([format!("imsi:00101{}", id.0.len())]),
        id: id.clone(),
        plan: "basic".into(),
        addons: BTreeSet::new(),
        consent,
        active: true,
        complaint_open: false,
        organisation: None,
        time_zone: None,
    };
    (id, profile)
}

struct Site {
    runtime: Option<Runtime>,
    state: tempfile::TempDir,
    remote: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    metrics: Metrics,
    push: String,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Site {
    fn new(remote: bool) -> Self {
        let runtime = Runtime::new().unwrap();
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&state.path().join("ledger.sqlite")).unwrap();
        let push = fill(&ledger);
        let (asks, asked) = mpsc::channel(4);
        runtime.spawn(engine(ledger.clone(), asked));
        let both = Consent { service: true, advice: true };
        let none = Consent { service: false, advice: false };
        let profiles = [profile("line-a", both), profile("line-b", both), profile("line c/ü", none)];
        let live = Arc::new(Daemon { started: Micros::now(), profiles: profiles.into_iter().collect() });
        let metrics = Metrics::default();
        let state_of_api = ApiState { ledger, asks, live, metrics: metrics.clone() };
        let folder = state.path().to_owned();
        if remote {
            pki::init(&folder.join("pki"), &["127.0.0.1".into()], &[]).unwrap();
            private(&folder.join("token"), TOKEN);
        }
        let doors = runtime.block_on(async {
            let (certificate, key) = (folder.join("pki/server.pem"), folder.join("pki/server.key"));
            let token_file = folder.join("token");
            let remote = remote.then(|| api::Remote {
                address: "127.0.0.1:0".parse().unwrap(),
                certificate: &certificate,
                key: &key,
                token_file: &token_file,
            });
            api::bind(&folder.join("api.sock"), remote).await.unwrap()
        });
        let remote = doors.remote_address();
        let (stop, stopped) = oneshot::channel::<()>();
        runtime.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            api::serve(doors, state_of_api, stopped).await;
        });
        Self { runtime: Some(runtime), state, remote, stop: Some(stop), metrics, push }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    fn usher(&self, arguments: &[&str]) -> Output {
        usher().arg("--socket").arg(self.file("api.sock")).args(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.usher(arguments);
        assert_eq!(code(&output), 0, "usher {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.says(&all)).unwrap()
    }

    fn afar(&self, token: Option<&str>) -> Output {
        let mut command = usher();
        command.arg("--url").arg(format!("https://{}", self.remote.unwrap()));
        command.arg("--ca").arg(self.file("pki/ca.pem"));
        if let Some(token) = token {
            std::fs::write(self.file("mine"), token).unwrap();
            command.arg("--token-file").arg(self.file("mine"));
        }
        command.args(["status"]).output().unwrap()
    }
}

fn usher() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
    for variable in ["USHER_SOCKET", "USHER_URL", "USHER_TOKEN_FILE", "USHER_CA"] {
        command.env_remove(variable);
    }
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn private(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The engine task's answer to the kill switch, on the same ledger.
async fn engine(ledger: Ledger, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Stop { stop, answer } => {
                let changed = ledger.stopped().unwrap() != stop;
                let record = InputRecord { at: Micros::now(), stop: Some(stop), ..InputRecord::default() };
                ledger.apply(&record).unwrap();
                let _ = answer.send(changed);
            }
            Ask::Facts { answer, .. } => {
                let _ = answer.send(BTreeMap::from([("video_capped".into(), None)]));
            }
        }
    }
}

/// What the gateway saw: line-a at home, line-b abroad.
fn batch(at: Micros) -> BatchRecord {
    let session = |id: &str, subscriber: &str, roaming| SessionRecord {
        session: id.into(),
        subscriber: Some(SubscriberId(subscriber.into())),
        open: true,
        prefixes: vec!["10.0.0.2/32".into()],
        keys: vec!["imsi:001010000000001".into()],
        serving_plmn: if roaming { "99901" } else { "00101" }.into(),
        roaming,
        rat: "nr".into(),
        time_zone: "Europe/Berlin".into(),
        since: at,
    };
    let usage = |subscriber: Option<&str>, bytes| UsageRecord {
        subscriber: subscriber.map(|id| SubscriberId(id.into())),
        class: Class::Video,
        direction: Direction::Down,
        bytes,
        packets: 1000,
        dropped_bytes: 0,
        dropped_packets: 0,
    };
    BatchRecord {
        agent: "gw-1".into(),
        mark: BatchMark { boot: vec![1; 16], sequence: 1 },
        start: at,
        end: at,
        sessions: vec![session("s1", "line-a", false), session("s2", "line-b", true)],
        usage: vec![usage(Some("line-a"), 1_500_000), usage(None, 42)],
        apps: vec![AppRecord {
            subscriber: Some(SubscriberId("line-a".into())),
            app: "streams".into(),
            class: Class::Video,
            via: "sni".into(),
            at,
            verdict_us: 3_000,
        }],
    }
}

/// An evening: line-a got HD, line-b was written to, line c was left alone for want of consent.
fn fill(ledger: &Ledger) -> String {
    let at = Micros::now().before(Duration::from_mins(5));
    let passed = |action: &str| Candidate {
        action: action.into(),
        stopped_by: None,
        score: Some(Score { propensity: 0.8, relevance: 1.0, value: 2.0, cost: 0.0, total: 1.6 }),
    };
    let decided = |id: &str, subscriber: &str, moment: &str, candidates: Vec<Candidate>| Decision {
        id: DecisionId(id.into()),
        subscriber: SubscriberId(subscriber.into()),
        moment: moment.into(),
        episode: 1,
        at,
        policy: "7f3a".into(),
        mode: Mode::Live,
        facts: BTreeMap::from([("video_capped".into(), Some(0.97)), ("call_qoo".into(), None)]),
        words: BTreeMap::from([("plan.video".into(), "sd".into())]),
        chosen: candidates.iter().find(|one| one.stopped_by.is_none()).map(|one| one.action.clone()),
        candidates,
    };
    let stopped = Candidate {
        action: "hd_evening".into(),
        stopped_by: Some(Stopped { gate: Gate::Consent, why: "no consent to `service`".into() }),
        score: None,
    };
    let hd = Setting {
        value: "hd".into(),
        until: Some(Micros::now().after(Duration::from_hours(3))),
        otherwise: "sd".into(),
    };
    let effects = vec![
        Effect::Decided(decided("aa01", "line-a", "hd_starved", vec![passed("hd_evening")])),
        Effect::Desire(Desire {
            subscriber: SubscriberId("line-a".into()),
            settings: Settings { revision: 2, values: BTreeMap::from([("video".into(), hd)]) },
            cause: Cause::Decision(DecisionId("aa01".into())),
        }),
        Effect::Decided(decided("bb01", "line-b", "roam_bare", vec![passed("roam_pass")])),
        Effect::Say(Say {
            decision: DecisionId("bb01".into()),
            subscriber: SubscriberId("line-b".into()),
            action: "roam_pass".into(),
            text: "You're in Testland.".into(),
            tap: BTreeMap::from([("roam_pass".into(), "day".into())]),
            tap_seconds: 86_400,
            expires: Micros::now().after(Duration::from_hours(2)),
        }),
        Effect::Decided(decided("cc01", "line c/ü", "hd_starved", vec![stopped])),
    ];
    let record = InputRecord { at, batch: Some(batch(at)), effects, ..InputRecord::default() };
    let push = PushId(ledger.apply(&record).unwrap().pushes[0].clone());
    ledger.push_begin(&push).unwrap();
    let part = ElementOutcome {
        element: "netconf:bng-1".into(),
        state: ElementState::Confirmed,
        changes: vec![Change {
            path: "qos/video".into(),
            from: Some("sd-profile".into()),
            to: Some("hd-profile".into()),
        }],
        started: at,
        enforced: Some(at.after(Duration::from_millis(120))),
        confirmed: Some(at.after(Duration::from_millis(150))),
        error: None,
    };
    ledger.push_element(&push, &part).unwrap();
    ledger.push_state(&push, PushState::Done, None, at.after(Duration::from_millis(160))).unwrap();
    ledger.message_sent(&DecisionId("bb01".into()), at).unwrap();
    push.0
}

#[test]
fn every_listing_prints_a_table_json_and_yaml() {
    let site = Site::new(false);
    for (kind, seen, items) in [
        ("subscribers", "line-a", 3),
        ("sessions", "10.0.0.2/32", 2),
        ("settings", "hd", 1),
        ("agents", "connected", 2),
        ("elements", "192.0.2.9:830", 2),
        ("usage", "1.5 MB", 2),
        ("decisions", "policy.consent", 3),
        ("messages", "You're in Testland.", 1),
    ] {
        let table = site.says(&["get", kind]);
        assert!(table.contains(seen), "{kind}:\n{table}");
        assert!(!table.contains('\u{1b}'), "no colours where nobody looks: {table:?}");
        assert_eq!(site.json(&["get", kind])["items"].as_array().unwrap().len(), items, "{kind}");
        assert!(site.says(&["get", kind, "-o", "yaml"]).starts_with("items:"), "{kind}");
    }
    assert!(site.says(&["get", "usage"]).contains("(anonymous)"));
}

#[test]
fn listings_are_narrowed_and_paged() {
    let site = Site::new(false);
    let sessions = site.json(&["get", "sessions", "--subscriber", "line-b"]);
    assert_eq!(sessions["items"][0]["roaming"], true);
    let first = site.json(&["get", "subscribers", "--limit", "2"]);
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let next = first["next"].as_str().unwrap();
    let rest = site.json(&["get", "subscribers", "--limit", "2", "--after", next]);
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let usage = site.json(&["get", "usage", "--limit", "1"]);
    let rest = site.json(&["get", "usage", "--after", usage["next"].as_str().unwrap()]);
    assert_eq!(rest["items"][0]["subscriber"], "line-a");
    let sessions = site.json(&["get", "sessions", "--limit", "1"]);
    let rest = site.json(&["get", "sessions", "--after", sessions["next"].as_str().unwrap()]);
    assert_eq!(rest["items"][0]["session"], "s2");
}

#[test]
fn one_thing_is_described_whole_even_with_an_awkward_name() {
    let site = Site::new(false);
    let sheet = site.says(&["describe", "subscriber", "line-a"]);
    for part in ["Plan:", "basic", "10.0.0.2/32", "streams", "hd_starved", "1.5 MB"] {
        assert!(sheet.contains(part), "{part} in\n{sheet}");
    }
    assert!(site.says(&["describe", "subscriber", "line c/ü"]).contains("service no, advice no"));
    assert!(site.says(&["describe", "agent", "gw-2"]).contains("none"));
    assert!(site.says(&["describe", "element", "netconf:bng-1"]).contains("confirmed"));
    assert!(site.says(&["describe", "decision", "aa01"]).contains("score 1.6 = propensity 0.8"));
}

#[test]
fn a_push_shows_each_elements_steps_and_changes() {
    let site = Site::new(false);
    assert!(site.says(&["push", "list", "--state", "done"]).contains("video=hd"));
    assert!(site.says(&["push", "list", "--state", "failed"]).contains("no pushes"));
    let sheet = site.says(&["push", "show", &site.push]);
    for part in [
        "decision aa01",
        "netconf:bng-1",
        "- qos/video: sd-profile",
        "+ qos/video: hd-profile",
        "Enforced:   120 ms after",
        "done",
    ] {
        assert!(sheet.contains(part), "{part} in\n{sheet}");
    }
    assert_eq!(site.says(&["describe", "push", &site.push]), sheet);
}

#[test]
fn explain_says_what_was_done_and_why_nothing_was_and_changes_nothing() {
    let site = Site::new(false);
    let ledger =
        || ["ledger.sqlite", "ledger.sqlite-wal"].map(|name| std::fs::read(site.file(name)).unwrap());
    let before = ledger();
    let done = site.says(&["explain", "line-a"]);
    for part in [
        "hd_evening was chosen; push",
        "is done",
        "video_capped = 0.97",
        "plan.video = sd",
        "call_qoo unknown",
    ] {
        assert!(done.contains(part), "{part} in\n{done}");
    }
    let said = site.says(&["explain", "line-b"]);
    assert!(said.contains("has not been tapped"), "{said}");
    let nothing = site.says(&["explain", "line c/ü"]);
    for part in [
        "nothing was done, because hd_evening was stopped by policy.consent (no consent to `service`)",
        "No session is open",
    ] {
        assert!(nothing.contains(part), "{part} in\n{nothing}");
    }
    let earlier = site.json(&["explain", "line-a", "--at", "2020-01-01T00:00:00Z"]);
    assert_eq!(earlier["decisions"].as_array().unwrap().len(), 0);
    assert!(earlier["summary"][0].as_str().unwrap().contains("No moment has fired"));
    assert!(ledger() == before, "not a byte of the ledger has changed");
}

#[test]
fn the_kill_switch_stops_and_resumes_and_says_so() {
    let site = Site::new(false);
    assert!(site.says(&["status"]).contains("running"));
    assert!(site.says(&["stop"]).starts_with("Stopped"));
    assert!(site.says(&["stop"]).contains("already"));
    assert_eq!(site.json(&["status"])["stopped"], true);
    assert!(site.says(&["status"]).contains("STOPPED"));
    assert!(site.says(&["explain", "line-a"]).contains("Usher is stopped"));
    assert_eq!(site.json(&["resume"]), serde_json::json!({"stopped": false, "changed": true}));
}

#[test]
fn exit_codes_tell_scripts_what_happened() {
    let site = Site::new(false);
    for (arguments, expected, message) in [
        (&["describe", "subscriber", "nobody"][..], 3, "no subscriber `nobody`"),
        (&["push", "show", "x"], 3, "no push `x`"),
        (&["explain", "nobody"], 3, "no subscriber"),
        (&["get", "agents", "--subscriber", "line-a"], 2, "no filter `subscriber`"),
        (&["get", "sessions", "--after", "x"], 2, "`next` of the page before"),
        (&["get", "planets"], 2, "possible values"),
        (&["explain", "line-a", "--at", "yesterday"], 2, "--at"),
    ] {
        let output = site.usher(arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let gone = usher().args(["--socket", "/nowhere/usher.sock", "status"]).output().unwrap();
    assert_eq!(code(&gone), 5);
    assert!(text(&gone.stderr).contains("is usher-orchestrator running?"), "{}", text(&gone.stderr));
}

#[test]
fn from_afar_only_the_right_token_opens_and_only_the_right_authority_is_trusted() {
    let site = Site::new(true);
    let good = site.afar(Some(&format!("{TOKEN}\n")));
    assert_eq!(code(&good), 0, "{}", text(&good.stderr));
    for wrong in ["", "0123456789abcdef0123456789abcdef-evil", &TOKEN[..30]] {
        let refused = site.afar(Some(wrong));
        assert_eq!(code(&refused), 4, "{}", text(&refused.stderr));
        assert!(refused.stdout.is_empty());
    }
    assert_eq!(site.metrics.refused.get(), 3);
    assert_eq!(code(&site.afar(None)), 2, "without a token nothing is even asked");
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), &["127.0.0.1".into()], &[]).unwrap();
    std::fs::copy(other.path().join("ca.pem"), site.file("pki/ca.pem")).unwrap();
    let stranger = site.afar(Some(TOKEN));
    assert_eq!(code(&stranger), 5, "{}", text(&stranger.stderr));
}

#[test]
fn a_token_file_that_others_can_read_or_that_can_be_guessed_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    pki::init(folder.path(), &["127.0.0.1".into()], &[]).unwrap();
    let (certificate, key) = (folder.path().join("server.pem"), folder.path().join("server.key"));
    let token_file = folder.path().join("token");
    let runtime = Runtime::new().unwrap();
    let bind = || {
        let remote = api::Remote {
            address: "127.0.0.1:0".parse().unwrap(),
            certificate: &certificate,
            key: &key,
            token_file: &token_file,
        };
        runtime
            .block_on(api::bind(&folder.path().join("s"), Some(remote)))
            .map(drop)
            .map_err(|e| e.to_string())
    };
    private(&token_file, TOKEN);
    assert_eq!(bind(), Ok(()));
    std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bind().unwrap_err().contains("others can read it"));
    private(&token_file, "hunter2");
    assert!(bind().unwrap_err().contains("at least 32"));
}

#[test]
fn lint_needs_no_orchestrator_and_shows_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, "version: 1\nfacts:\n  lateness: soon\n").unwrap();
    let lint = |more: &[&str]| usher().arg("lint").arg(&policy).args(more).output().unwrap();
    let output = lint(&[]);
    assert_eq!(code(&output), 4);
    let shown = text(&output.stdout);
    assert!(shown.contains(":3:13") && shown.contains("lateness: soon"), "{shown}");
    let output = lint(&["-o", "json"]);
    assert_eq!(code(&output), 4);
    let lint_json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(lint_json["ok"], false);
    let places = lint_json["mistakes"].as_array().unwrap();
    assert!(places.iter().any(|one| one["line"] == 3 && one["column"] == 13), "{places:?}");
    let missing = usher().args(["lint", "/nowhere.yaml"]).output().unwrap();
    assert_eq!(code(&missing), 1);
}

#[test]
fn certificates_are_made_once_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki").to_string_lossy().into_owned();
    let init = || usher().args(["pki", "init", "--dir", &dir, "--agent", "gw-1"]).output().unwrap();
    let made = init();
    assert_eq!(code(&made), 0, "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("agent-gw-1.pem"), "{}", text(&made.stdout));
    assert_eq!(code(&init()), 4);
    let more = usher().args(["pki", "agent", "gw-2", "--dir", &dir]).output().unwrap();
    assert_eq!(code(&more), 0, "{}", text(&more.stderr));
    assert_eq!(code(&usher().args(["pki", "agent", "Gw 3", "--dir", &dir]).output().unwrap()), 2);
}

#[test]
fn completion_and_help_are_there_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = usher().args(["completion", shell]).output().unwrap();
        assert_eq!(code(&script), 0);
        assert!(text(&script.stdout).contains("explain"), "{shell}");
    }
    for command in [
        &["status"][..],
        &["get"],
        &["describe"],
        &["explain"],
        &["lint"],
        &["push"],
        &["push", "list"],
        &["push", "show"],
        &["stop"],
        &["resume"],
        &["pki"],
        &["pki", "init"],
        &["pki", "agent"],
        &["completion"],
    ] {
        let help = usher().args(command).arg("--help").output().unwrap();
        assert_eq!(code(&help), 0);
        assert!(text(&help.stdout).contains("Example"), "{command:?}:\n{}", text(&help.stdout));
    }
    assert!(text(&usher().arg("--help").output().unwrap().stdout).contains("Exit codes:"));
}
