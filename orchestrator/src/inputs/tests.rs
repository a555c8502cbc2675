//! The engine task on a real ledger: killed at any instant, restarted, sent the same again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proptest::prelude::*;
use tokio::sync::oneshot;
use usher_models::Class;

use super::*;
use crate::agents::Usage;
use crate::days::{self, Day, RecordConfig, replay};
use crate::engine::io::{DecisionId, DirectionName};
use crate::ledger::{Ledger, SessionRecord};
use crate::metrics::{self, Metrics, Shown};
use crate::{advice, api};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use usher_models::units::{Micros, SubscriberId};

pub(crate) const POLICY: &str = include_str!("../../../tests/demo/policy.yaml");
pub(crate) const PROFILES: &str = include_str!("../../../tests/demo/profiles.yaml");
mod crash;

const BOOT: [u8; 16] = [7; 16];

pub(crate) fn book(profiles: &str) -> Arc<Book> {
    let policy = Policy::parse("policy.yaml", POLICY).unwrap();
    let directory = Directory::parse("profiles.yaml", profiles).unwrap();
    Arc::new(Book { policy, directory: Arc::new(directory) })
}

/// A running engine task and everything that leads into it.
pub(crate) struct Rig {
    pub(crate) inbox: Inbox,
    pub(crate) ledger: Ledger,
    pub(crate) metrics: Metrics,
    advice: mpsc::Sender<advice::Ask>,
    api: mpsc::Sender<api::Ask>,
    book_in_force: watch::Receiver<Arc<Book>>,
    shown: Shown,
    task: JoinHandle<Result<(), TaskError>>,
    _stop: watch::Sender<bool>,
}

impl Rig {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, PROFILES).await
    }

    async fn start_with(dir: &Path, profiles: &str) -> Self {
        Self::start_recording(dir, profiles, None).await
    }

    async fn start_recording(dir: &Path, profiles: &str, record: Option<RecordConfig>) -> Self {
        let ledger = Ledger::open(&dir.join("ledger.sqlite")).unwrap();
        let mut registry = metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let started = Self::with_book(book(profiles), ledger, metrics, registry, Bells::default(), record);
        started.await.unwrap()
    }

    async fn with_book(
        book: Arc<Book>,
        ledger: Ledger,
        metrics: Metrics,
        registry: Registry,
        bells: Bells,
        record: Option<RecordConfig>,
    ) -> Result<Self, TaskError> {
        let (in_force, book_in_force) = watch::channel(book.clone());
        let elements = crate::elements::ElementsConfig::default().accepted();
        let task =
            EngineTask::restore(book, in_force, ledger.clone(), metrics.clone(), bells, elements, record)
                .await?;
        let (inbox, requests) = Inbox::new();
        let (advice, advice_queue) = mpsc::channel(4);
        let (api, api_queue) = mpsc::channel(4);
        let (stop, stopped) = watch::channel(false);
        let queues = Queues { requests, advice: advice_queue, api: api_queue };
        let task = tokio::spawn(task.run(queues, stopped));
        let shown = Shown::new(registry);
        Ok(Self { inbox, ledger, metrics, advice, api, book_in_force, shown, task, _stop: stop })
    }

    /// Ends it without a word, as a kill does.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        // A transaction that was on its way to the disk is over, one way or the other, once a process is gone.
        while self.ledger.handles() > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// The same, where other parts of the process hold the ledger too.
    pub(crate) async fn kill_unheard(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn tap(&self, decision: &DecisionId) -> advice::Tapped {
        let (answer, tapped) = oneshot::channel();
        let ask = advice::Ask::Tap { decision: decision.clone(), at: Micros::now(), answer };
        self.advice.send(ask).await.unwrap();
        tapped.await.unwrap()
    }

    async fn turn(&self, stop: bool) -> bool {
        let (answer, changed) = oneshot::channel();
        self.api.send(api::Ask::Stop { stop, answer }).await.unwrap();
        changed.await.unwrap()
    }

    async fn facts(&self, subscriber: &str) -> BTreeMap<String, Option<f64>> {
        let (answer, facts) = oneshot::channel();
        let subscriber = SubscriberId(subscriber.to_owned());
        self.api.send(api::Ask::Look { subscriber, answer }).await.unwrap();
        let mut facts = facts.await.unwrap().unwrap_or_default().facts;
        // What is of the person goes by our clock.
        facts.retain(|name, _| !name.starts_with("sub."));
        facts
    }

    fn totals(&self) -> BTreeMap<Option<String>, u64> {
        let rows = self.ledger.usage().unwrap();
        rows.into_iter().map(|row| (row.subscriber.map(|id| id.0), row.bytes.0)).collect()
    }
}

fn session(id: &str, imsi: &str, roaming: bool) -> SessionRecord {
    SessionRecord {
        session: id.into(),
        subscriber: None,
        open: true,
        prefixes: vec!["10.0.0.2/32".into()],
        keys: vec![format!("imsi:{imsi}")],
        serving_plmn: if roaming { "26201".into() } else { "00101".into() },
        roaming,
        rat: "eutran".into(),
        time_zone: String::new(),
        since: Micros::now(),
    }
}

fn usage(session: &str, bytes: u64) -> (String, Usage) {
    (session.to_owned(), Usage::video(bytes, Some(0.2)))
}

fn batch(sequence: u64, sessions: Vec<SessionRecord>, usage: Vec<(String, Usage)>) -> Batch {
    let now = Micros::now();
    let batch = Batch {
        agent: "gw-1".into(),
        mark: BatchMark { boot: BOOT.to_vec(), sequence },
        start: now.before(Duration::from_secs(1)),
        end: now,
        timed: true,
        sessions,
        ..Batch::default()
    };
    batch.with_usage(usage)
}

fn open_all(sequence: u64) -> Batch {
    let sessions = vec![
        session("s-a", "001010000000001", false),
        session("s-b", "001010000000002", true),
        session("s-x", "999990000000009", false),
    ];
    batch(sequence, sessions, Vec::new())
}

#[tokio::test]
async fn a_batch_is_acknowledged_again_but_applied_once_and_a_gap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    let second = || batch(2, Vec::new(), vec![usage("s-a", 100), usage("s-x", 7), usage("nobody", 3)]);
    assert_eq!(rig.inbox.batch(second()).await.unwrap().sequence, 2);
    assert_eq!(rig.inbox.batch(second()).await.unwrap().sequence, 2);
    let gap = rig.inbox.batch(batch(4, Vec::new(), vec![usage("s-a", 1)])).await;
    assert_eq!(gap, Err(Refusal::Gap { got: 4, expected: 3 }));
    assert_eq!(rig.totals(), BTreeMap::from([(None, 10), (Some("sub-a".into()), 100)]));
    assert_eq!(rig.metrics.batches_duplicate.get(), 1);
    rig.kill().await;
    let rig = Rig::start(dir.path()).await;
    assert_eq!(rig.inbox.batch(second()).await.unwrap().sequence, 2);
    // Whose session it is was told before the restart.
    rig.inbox.batch(batch(3, Vec::new(), vec![usage("s-a", 11)])).await.unwrap();
    assert_eq!(rig.totals()[&Some("sub-a".into())], 111);
}

#[tokio::test]
async fn a_roamer_is_written_to_once_and_taps_once_also_over_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    let message = rig.ledger.pending_messages(9).unwrap().remove(0);
    assert_eq!(message.say.subscriber, SubscriberId("sub-b".into()));
    let decision = message.say.decision.clone();
    for sequence in 2..5 {
        rig.kill().await;
        rig = Rig::start(dir.path()).await;
        rig.inbox.batch(open_all(sequence)).await.unwrap();
    }
    assert_eq!(rig.ledger.messages(None, 9).unwrap().len(), 1);
    assert_eq!(rig.tap(&DecisionId("0".repeat(32))).await, advice::Tapped::Unknown);
    assert!(rig.turn(true).await);
    assert!(!rig.turn(true).await);
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Stopped);
    rig.kill().await;
    rig = Rig::start(dir.path()).await;
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Stopped, "the kill switch survives");
    assert!(rig.turn(false).await);
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Accepted);
    let settings = |rig: &Rig| rig.ledger.engine_row(&SubscriberId("sub-b".into())).unwrap().unwrap();
    let after = settings(&rig);
    assert!(after.contains("\"roam_pass\""), "{after}");
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Already);
    rig.kill().await;
    rig = Rig::start(dir.path()).await;
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Already);
    assert_eq!(settings(&rig), after);
}

#[tokio::test]
async fn metrics_name_moments_and_actions_but_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    rig.inbox.batch(batch(2, Vec::new(), vec![usage("s-a", 100), usage("nobody", 3)])).await.unwrap();
    let decision = rig.ledger.pending_messages(9).unwrap().remove(0).say.decision;
    rig.tap(&decision).await;
    let text = rig.shown.text().unwrap();
    for line in [
        "usher_orchestrator_batches_applied_total 2",
        "usher_orchestrator_decisions_total{moment=\"roam_bare\",outcome=\"roam_pass\"} 1",
        "usher_orchestrator_effects_total{reason=\"say\"} 1",
        "usher_orchestrator_taps_total{reason=\"accepted\"} 1",
        "usher_orchestrator_records_ignored_total{reason=\"session_unknown\"} 1",
        "usher_orchestrator_ledger_transaction_seconds_count",
    ] {
        assert!(text.contains(line), "no `{line}` in:\n{text}");
    }
    for secret in ["sub-", "s-a", "imsi", "00101000", "10.0.0", &decision.0] {
        assert!(!text.contains(secret), "`{secret}` in:\n{text}");
    }
}

#[tokio::test]
async fn new_profiles_take_sessions_along_and_bad_ones_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    let more = format!("{PROFILES}  - {{id: sub-x, keys: [\"imsi:999990000000009\"], plan: basic}}\n");
    rig.inbox.book(book(&more)).await.unwrap().unwrap();
    rig.inbox.batch(batch(2, Vec::new(), vec![usage("s-x", 5)])).await.unwrap();
    assert_eq!(rig.totals(), BTreeMap::from([(Some("sub-x".into()), 5)]));
    assert_eq!(rig.ledger.subscriber_of("gw-1", "s-x").unwrap(), Some(SubscriberId("sub-x".into())));
    // A plan without the settings the policy returns to.
    let bad = more.replace("video: sd, ", "");
    let mistakes = rig.inbox.book(book(&bad)).await.unwrap().unwrap_err();
    assert!(mistakes.to_string().contains("video"), "{mistakes}");
    rig.inbox.batch(batch(3, Vec::new(), vec![usage("s-x", 5)])).await.unwrap();
    assert_eq!(rig.totals(), BTreeMap::from([(Some("sub-x".into()), 10)]));
}

#[tokio::test]
async fn somebody_taken_out_of_the_profiles_is_put_back_and_not_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    let roamer = SubscriberId("sub-b".into());
    let decision = rig.ledger.pending_messages(9).unwrap().remove(0).say.decision;
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Accepted);
    let (before, rest) = PROFILES.split_once("  - id: sub-b").unwrap();
    let (_, after) = rest.split_once("  # Consent").unwrap();
    let without = format!("{before}  # Consent{after}");
    rig.inbox.book(book(&without)).await.unwrap().unwrap();
    assert_eq!(rig.ledger.engine_row(&roamer).unwrap(), None);
    let filter = crate::ledger::pushes::PushFilter { subscriber: Some(roamer.clone()), state: None };
    let pushes = |rig: &Rig| rig.ledger.pushes(&filter, 100).unwrap();
    let back = pushes(&rig).remove(0).push;
    assert_eq!(back.cause, crate::engine::io::Cause::Gone);
    assert!(back.settings.values.values().all(|setting| setting.until.is_none()), "{back:?}");
    let made = pushes(&rig).len();
    rig.kill().await;
    let rig = Rig::start_with(dir.path(), &without).await;
    assert_eq!(rig.ledger.engine_row(&roamer).unwrap(), None);
    assert_eq!(pushes(&rig).len(), made);
    assert_eq!(rig.tap(&decision).await, advice::Tapped::Already);
}

#[tokio::test]
async fn a_ledger_lost_behind_an_agent_is_counted_and_does_not_lock_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    assert_eq!(rig.inbox.batch(batch(9, Vec::new(), vec![usage("", 5)])).await.unwrap().sequence, 9);
    assert_eq!(rig.metrics.batches_missing.get(), 8);
    assert_eq!(rig.inbox.batch(batch(8, Vec::new(), vec![usage("", 5)])).await.unwrap().sequence, 9);
    assert_eq!(rig.totals(), BTreeMap::from([(None, 5)]));
}

#[tokio::test]
async fn what_cannot_be_dated_is_counted_but_is_no_fact() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    let undated = Batch { timed: false, ..batch(2, Vec::new(), vec![usage("s-a", 5)]) };
    rig.inbox.batch(undated).await.unwrap();
    let total = &rig.ledger.usage_of(Some(&SubscriberId("sub-a".into()))).unwrap()[0];
    assert_eq!((total.bytes.0, total.class, total.direction), (5, Class::Video, DirectionName::Down));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// An agent that sends until it is acknowledged, and a process killed before, during and after any batch: every byte
    /// counts once, everybody is written to at most once, revisions only rise.
    #[test]
    fn kills_at_any_instant_lose_and_double_nothing(
        amounts in proptest::collection::vec((0_u64..1000, 0_u8..4), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut rig = Rig::start(dir.path()).await;
            rig.inbox.batch(open_all(1)).await.unwrap();
            let mut expected = 0;
            for ((bytes, kill), sequence) in amounts.iter().zip(2..) {
                let bytes = *bytes;
                let next = move || batch(sequence, Vec::new(), vec![usage("s-a", bytes), usage("s-b", 1)]);
                for _ in 0..*kill {
                    // Sent, and the process is gone before, while or after it applies it: which, is up to the scheduler.
                    let sent = rig.inbox.clone();
                    let sending = tokio::spawn(async move { sent.batch(next()).await });
                    for _ in 0..*kill * 3 {
                        tokio::task::yield_now().await;
                    }
                    rig.kill().await;
                    sending.abort();
                    rig = Rig::start(dir.path()).await;
                }
                assert_eq!(rig.inbox.batch(next()).await.unwrap().sequence, sequence);
                expected += bytes;
            }
            assert_eq!(rig.totals().get(&Some("sub-a".to_owned())).copied().unwrap_or(0), expected);
            assert_eq!(rig.totals()[&Some("sub-b".to_owned())], amounts.len() as u64);
            assert_eq!(rig.ledger.messages(None, 100).unwrap().len(), 1);
            let pushes = rig.ledger.pushes(&crate::ledger::pushes::PushFilter::default(), 100).unwrap();
            let revisions: Vec<_> =
                pushes.iter().map(|push| (push.push.subscriber.clone(), push.push.settings.revision)).collect();
            let distinct: BTreeSet<_> = revisions.iter().collect();
            assert_eq!(distinct.len(), revisions.len(), "no revision is pushed twice: {revisions:?}");
        });
    }
}

/// The second that batch `sequence` tells of, so many seconds before now, which is the same for all of a test.
fn second(sequence: u64, now: Micros, at_cap: f32) -> Batch {
    let start = now.before(Duration::from_secs(36 - sequence));
    let batch = Batch {
        agent: "gw-1".into(),
        mark: BatchMark { boot: BOOT.to_vec(), sequence },
        start,
        end: start.after(Duration::from_secs(1)),
        timed: true,
        sessions: if sequence == 1 { open_all(1).sessions } else { Vec::new() },
        ..Batch::default()
    };
    batch.with_usage([("s-a".to_owned(), Usage::video(1_000, Some(at_cap)))])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Windows, holds and silences of an engine that is killed again and again are those of one that never was.
    #[test]
    fn windows_survive_kills_at_any_instant(
        seconds in proptest::collection::vec((0_u8..=4, 0_u8..4), 8..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (dir, whole_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let now = Micros::now();
            let whole = Rig::start(whole_dir.path()).await;
            let mut rig = Rig::start(dir.path()).await;
            rig.inbox.batch(second(1, now, 0.5)).await.unwrap();
            whole.inbox.batch(second(1, now, 0.5)).await.unwrap();
            for ((quarters, kill), sequence) in seconds.iter().zip(2..) {
                let next = || second(sequence, now, f32::from(*quarters) / 4.0);
                for _ in 0..*kill {
                    let (sent, batch) = (rig.inbox.clone(), next());
                    let sending = tokio::spawn(async move { sent.batch(batch).await });
                    for _ in 0..*kill * 3 {
                        tokio::task::yield_now().await;
                    }
                    rig.kill().await;
                    sending.abort();
                    rig = Rig::start(dir.path()).await;
                }
                assert_eq!(rig.inbox.batch(next()).await.unwrap().sequence, sequence);
                whole.inbox.batch(next()).await.unwrap();
                assert_eq!(rig.facts("sub-a").await, whole.facts("sub-a").await, "after batch {sequence}");
            }
            assert!(rig.facts("sub-a").await["video_capped"].is_some());
            let decisions = |rig: &Rig| -> Vec<_> {
                let rows = rig.ledger.decisions(None, 100).unwrap().into_iter();
                rows.map(|row| (row.decision.id, row.decision.facts, row.decision.chosen)).collect()
            };
            let (mut found, mut expected) = (decisions(&rig), decisions(&whole));
            found.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(found, expected);
        });
    }
}

fn recording(dir: &Path) -> RecordConfig {
    let keep = Duration::from_hours(24);
    RecordConfig { dir: dir.join("days"), keep, max_gb: 1 }
}

fn with_floor(floor: &str) -> Arc<Book> {
    let mut other = Book::clone(&book(PROFILES));
    other.policy = Policy::parse("policy.yaml", &POLICY.replace("floor: 0.4", floor)).unwrap();
    Arc::new(other)
}

/// Everything recorded of a ledger, up to now, as one day.
fn exported(dir: &Path) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    days::export(&dir.join("days"), &dir.join("ledger.sqlite"), &mut file).unwrap().unwrap();
    file.into_inner()
}

#[tokio::test]
async fn a_day_with_kills_in_it_replays_bit_for_bit_and_says_what_another_policy_would_do() {
    let dir = tempfile::tempdir().unwrap();
    let start = async || Rig::start_recording(dir.path(), PROFILES, Some(recording(dir.path()))).await;
    let mut rig = start().await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    for sequence in 2..6 {
        rig.inbox.batch(batch(sequence, Vec::new(), vec![usage("s-a", 100)])).await.unwrap();
        rig.kill().await;
        rig = start().await;
    }
    let day = exported(dir.path());
    let report = replay::replay(Day::open(&day[..]).unwrap(), None, 9).unwrap();
    assert_eq!(report.difference, None);
    assert_eq!(report.recorded, report.replayed);
    assert!(report.finished && report.usage_records >= 4 && report.under.decisions >= 1, "{report:?}");
    assert_eq!((report.under.subscribers_told, report.under.messages), (1, 1));
    // Nobody is written to where nothing is ever worth it.
    let never = with_floor("floor: 1000000.0").policy.clone();
    let report = replay::replay(Day::open(&day[..]).unwrap(), Some(never), 9).unwrap();
    let other = report.other.unwrap();
    assert!(other.windows_go_on);
    assert_eq!(other.no_longer_told.first, [SubscriberId("sub-b".into())]);
    assert_eq!((other.would_be_told.count, other.under.messages), (0, 0));
    // Replaying touched nothing.
    assert_eq!(exported(dir.path()), day);
    rig.kill().await;
}

#[tokio::test]
async fn another_policy_begins_another_day_and_both_replay() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start_recording(dir.path(), PROFILES, Some(recording(dir.path()))).await;
    rig.inbox.batch(open_all(1)).await.unwrap();
    rig.inbox.book(with_floor("floor: 0.5")).await.unwrap().unwrap();
    rig.inbox.batch(batch(2, Vec::new(), vec![usage("s-a", 100)])).await.unwrap();
    while days::listed(&dir.path().join("days")).unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    let files = days::listed(&dir.path().join("days")).unwrap();
    let first = std::fs::File::open(&files[0].path).unwrap();
    let report = replay::replay(Day::open(first).unwrap(), None, 0).unwrap();
    assert!(report.finished && report.difference.is_none(), "{report:?}");
    assert_eq!(report.under.messages, 1, "the day before has all of its inputs");
    let report = replay::replay(Day::open(&exported(dir.path())[..]).unwrap(), None, 0).unwrap();
    assert!(report.difference.is_none() && report.under.policy != book(PROFILES).policy.revision());
    rig.kill().await;
}

#[tokio::test]
async fn facts_go_on_under_another_policy_with_the_same_facts() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let now = Micros::now();
    for sequence in 1..20 {
        rig.inbox.batch(second(sequence, now, 0.5)).await.unwrap();
    }
    let before = rig.facts("sub-a").await;
    assert!(before.values().any(Option::is_some), "{before:?}");
    rig.inbox.book(with_floor("floor: 0.5")).await.unwrap().unwrap();
    assert_eq!(rig.facts("sub-a").await, before);
    let (ledger, mut registry) = (rig.ledger.clone(), metrics::registry());
    rig.kill_unheard().await;
    // And where the file was changed while nobody was there.
    let metrics = Metrics::register(&mut registry);
    let other = with_floor("floor: 0.6");
    let revision = other.policy.revision().to_owned();
    let rig = Rig::with_book(other, ledger, metrics, registry, Bells::default(), None).await.unwrap();
    assert_eq!((rig.facts("sub-a").await, rig.in_force()), (before, revision));
    rig.kill().await;
}

impl Rig {
    async fn apply(&self, floor: &str, within: Duration) -> Result<Micros, api::Refused> {
        let (answer, applied) = oneshot::channel();
        let policy = Box::new(with_floor(floor).policy.clone());
        self.api.send(api::Ask::Apply { policy, confirm_within: within, answer }).await.unwrap();
        applied.await.unwrap()
    }

    async fn confirm(&self) -> Result<(), api::Refused> {
        let (answer, confirmed) = oneshot::channel();
        self.api.send(api::Ask::Confirm { answer }).await.unwrap();
        confirmed.await.unwrap()
    }

    fn in_force(&self) -> String {
        self.book_in_force.borrow().policy.revision().to_owned()
    }
}

#[tokio::test]
async fn an_applied_policy_survives_kills_until_its_time_is_up_and_for_good_once_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let of = |floor: &str| with_floor(floor).policy.revision().to_owned();
    let rig = Rig::start(dir.path()).await;
    let file = rig.in_force();
    assert_eq!(rig.confirm().await, Err(api::Refused::NotOnTrial));
    rig.apply("floor: 0.5", Duration::from_hours(1)).await.unwrap();
    assert_eq!(rig.in_force(), of("floor: 0.5"));
    assert_eq!(rig.apply("floor: 0.5", Duration::from_hours(1)).await, Err(api::Refused::InForce));
    rig.kill().await;
    let rig = Rig::start(dir.path()).await;
    assert_eq!(rig.in_force(), of("floor: 0.5"), "on trial over a kill");
    rig.confirm().await.unwrap();
    // Another on top, whose time is up while nobody is there.
    rig.apply("floor: 0.6", Duration::ZERO).await.unwrap();
    rig.kill().await;
    let rig = Rig::start(dir.path()).await;
    assert_eq!(rig.in_force(), of("floor: 0.5"), "the one confirmed is back");
    // And whose time is up while it runs.
    rig.apply("floor: 0.7", Duration::from_millis(1)).await.unwrap();
    let mut in_force = rig.book_in_force.clone();
    in_force.wait_for(|book| book.policy.revision() == of("floor: 0.5")).await.unwrap();
    assert_eq!(rig.confirm().await, Err(api::Refused::NotOnTrial));
    // What the file says later has the last word.
    rig.inbox.book(book(PROFILES)).await.unwrap().unwrap();
    assert_eq!(rig.in_force(), of("floor: 0.5"), "the file says what it said");
    rig.inbox.book(with_floor("floor: 0.8")).await.unwrap().unwrap();
    assert_eq!(rig.in_force(), of("floor: 0.8"));
    rig.kill().await;
    assert_eq!(
        Rig::start(dir.path()).await.in_force(),
        file,
        "this one reads the old file, which is newer now"
    );
}
