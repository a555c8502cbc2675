//! An API with a real ledger behind it, filled with one evening, and the built `usher` to ask it.

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
    self, About, ApiState, Ask, GuardNow, Live, LiveAgent, LiveElement, LiveUplink, Metrics, Refused,
};
use usher_orchestrator::elements::{Change, ElementOutcome, ElementState, PushId, PushState};
use usher_orchestrator::engine::explain::Seen;
use usher_orchestrator::engine::io::{
    Candidate, Cause, Decision, DecisionId, Desire, Effect, Gate, GuardState, Mode, Say, Score, Stopped,
};
use usher_orchestrator::identity::{Consent, Profile};
use usher_orchestrator::ledger::{
    AppBytes, AppRecord, BatchMark, BatchRecord, InputRecord, Ledger, SessionRecord, UsageRecord,
};
use usher_orchestrator::pki;

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef-good";

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

    fn policy_file(&self) -> PathBuf {
        PathBuf::from("/nowhere/policy.yaml")
    }

    fn days(&self) -> Option<PathBuf> {
        None
    }

    fn has_advice(&self) -> bool {
        true
    }

    fn subscribers(&self) -> usize {
        self.profiles.len()
    }

    fn profile(&self, id: &SubscriberId) -> Option<Profile> {
        self.profiles.get(id).cloned()
    }

    fn of_key(&self, key: &str) -> Option<SubscriberId> {
        let mut profiles = self.profiles.values();
        profiles.find(|profile| profile.keys.contains(key)).map(|profile| profile.id.clone())
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
        bill_day: 1,
        moved: false,
        offer: usher_orchestrator::identity::Offer::default(),
        complaint_open: false,
        organisation: None,
        time_zone: None,
    };
    (id, profile)
}

pub(crate) struct Site {
    runtime: Option<Runtime>,
    state: tempfile::TempDir,
    remote: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) metrics: Metrics,
    pub(crate) push: String,
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
    pub(crate) fn new(remote: bool) -> Self {
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

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    pub(crate) fn usher(&self, arguments: &[&str]) -> Output {
        usher().arg("--socket").arg(self.file("api.sock")).args(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let output = self.usher(arguments);
        assert_eq!(code(&output), 0, "usher {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.says(&all)).unwrap()
    }

    pub(crate) fn afar(&self, token: Option<&str>) -> Output {
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

pub(crate) fn usher() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
    for variable in ["USHER_SOCKET", "USHER_URL", "USHER_TOKEN_FILE", "USHER_CA"] {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn private(path: &Path, content: &str) {
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
            Ask::Consent { subscriber, advice, answer } => {
                let effects = if advice { Vec::new() } else { vec![Effect::Withdraw(subscriber)] };
                ledger.apply(&InputRecord { effects, ..InputRecord::default() }).unwrap();
                let _ = answer.send(true);
            }
            Ask::Guard { answer } => {
                let _ = answer.send(GuardNow { state: GuardState::default(), share: 1.0, steps: 1 });
            }
            Ask::Complaint { answer, .. } => {
                let _ = answer.send(true);
            }
            Ask::Apply { answer, .. } => drop(answer.send(Err(Refused::InForce))),
            Ask::Confirm { answer } | Ask::Revert { answer } => {
                let _ = answer.send(Err(Refused::NotOnTrial));
            }
            Ask::Look { answer, .. } => {
                let facts = BTreeMap::from([("video_capped".into(), None)]);
                let _ = answer.send(Some(Seen { facts, moments: Vec::new() }));
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
        anonymous: String::new(),
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
        app_bytes: vec![AppBytes {
            subscriber: Some(SubscriberId("line-a".into())),
            app: "streams".into(),
            bytes: 1_400_000,
        }],
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
        probability: 1.0,
        style: None,
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
            regulated: false,
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
