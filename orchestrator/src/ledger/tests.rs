//! The ledger beside a slow, obvious reference: whatever comes, in whatever order, and wherever the power is cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use usher_models::setting::Settings;
use usher_models::units::{Micros, SubscriberId};
use usher_models::{Class, Direction};

use super::*;
use crate::engine::Learned;
use crate::engine::io::{Cause, Decision, DecisionId, Desire, Effect, Mode, Say};

fn usage(subscriber: Option<&str>, bytes: u64) -> UsageRecord {
    UsageRecord {
        subscriber: subscriber.map(|name| SubscriberId(name.into())),
        anonymous: String::new(),
        class: Class::Video,
        direction: Direction::Down,
        bytes,
        packets: 1,
        dropped_bytes: 0,
        dropped_packets: 0,
    }
}

fn batch(boot: u8, sequence: u64, usage: Vec<UsageRecord>) -> InputRecord {
    let batch = BatchRecord {
        agent: "gw1".into(),
        mark: BatchMark { boot: vec![boot; 16], sequence },
        usage,
        ..BatchRecord::default()
    };
    InputRecord { at: Micros::new(i64::from(boot) << 32), batch: Some(batch), ..InputRecord::default() }
}

fn session(name: &str, subscriber: Option<&str>, open: bool) -> SessionRecord {
    SessionRecord {
        session: name.into(),
        subscriber: subscriber.map(|name| SubscriberId(name.into())),
        open,
        prefixes: vec!["10.0.0.2/32".into()],
        keys: vec!["imsi:001010000000001".into()],
        serving_plmn: "00101".into(),
        roaming: false,
        rat: "eutran".into(),
        time_zone: "Europe/Berlin".into(),
        since: Micros::new(1),
    }
}

fn say(id: &str) -> Say {
    Say {
        decision: DecisionId(id.into()),
        subscriber: SubscriberId("line-b".into()),
        action: "roam_pass".into(),
        text: "You're in Testland.".into(),
        tap: BTreeMap::new(),
        tap_seconds: 86_400,
        regulated: false,
        expires: Micros::new(99),
    }
}

fn totals(ledger: &Ledger) -> BTreeMap<String, u64> {
    let name = |subscriber: Option<SubscriberId>| subscriber.map_or(String::new(), |subscriber| subscriber.0);
    ledger.usage().unwrap().into_iter().map(|total| (name(total.subscriber), total.bytes.0)).collect()
}

#[tokio::test]
async fn a_full_disk_is_told_once_with_the_file_and_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = Ledger::open(&path).unwrap();
    // Not a page more than there are.
    ledger.writer().pragma_update(None, "max_page_count", 1).unwrap();
    let mut many = batch(1, 1, Vec::new());
    many.engine = vec![(SubscriberId("line-a".into()), "x".repeat(1 << 20))];
    let error = ledger.with(move |ledger| ledger.apply(&many)).await.unwrap_err();
    let told = format!("{:#}", anyhow::Error::from(error));
    let expected = format!(
        "ledger {} cannot be written: database or disk is full: free space on its disk, and start again",
        path.display()
    );
    assert_eq!(told, expected);
    assert_eq!(ledger.engine_row(&SubscriberId("line-a".into())).unwrap(), None, "nothing was changed");
}

#[test]
fn a_batch_is_applied_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    ledger.apply(&batch(1, 1, vec![usage(Some("line-a"), 10), usage(None, 3)])).unwrap();
    for wrong in [1, 3, 0] {
        let error = ledger.apply(&batch(1, wrong, vec![usage(Some("line-a"), 100)])).unwrap_err();
        assert!(matches!(error, LedgerError::OutOfOrder { expected: 2, .. }), "{error}");
    }
    ledger.apply(&batch(1, 2, vec![usage(Some("line-a"), 20)])).unwrap();
    ledger.apply(&batch(2, 1, vec![usage(Some("line-a"), 5)])).unwrap();
    assert_eq!(totals(&ledger), BTreeMap::from([(String::new(), 3), ("line-a".into(), 35)]));
    let newest = ledger.last_batch("gw1", None).unwrap();
    assert_eq!(newest, Some(BatchMark { boot: vec![2; 16], sequence: 1 }));
    let first = ledger.last_batch("gw1", Some(&[1; 16])).unwrap();
    assert_eq!(first, Some(BatchMark { boot: vec![1; 16], sequence: 2 }));
    assert_eq!(ledger.agents().unwrap()[0].sequence, 1);
}

#[test]
fn a_total_at_its_limit_stays_there_and_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    let most = u64::try_from(i64::MAX).unwrap();
    ledger.apply(&batch(1, 1, vec![usage(Some("line-a"), most), usage(Some("line-b"), 1)])).unwrap();
    ledger.apply(&batch(1, 2, vec![usage(Some("line-a"), 7), usage(Some("line-b"), 1)])).unwrap();
    assert_eq!(totals(&ledger), BTreeMap::from([("line-a".into(), most), ("line-b".into(), 2)]));
    let error =
        ledger.apply(&batch(1, 3, vec![usage(Some("line-b"), 1), usage(None, most + 1)])).unwrap_err();
    assert!(matches!(error, LedgerError::TooLarge { .. }), "{error}");
    assert_eq!(totals(&ledger)["line-b"], 2, "nothing of a refused record is kept");
}

#[test]
fn what_was_learnt_comes_back_and_a_row_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    assert_eq!(ledger.learned().unwrap(), None);
    let none = serde_json::to_string(&Learned::default()).unwrap();
    ledger.keep_learned(&none).unwrap();
    assert_eq!(ledger.learned().unwrap(), Some(Learned::default()));
    ledger.keep_learned(&none[..none.len() - 1]).unwrap();
    let told = ledger.learned().unwrap_err().to_string();
    assert!(told.contains("what was learnt cannot be read"), "{told}");
}

#[test]
fn sessions_are_found_by_id_and_by_subscriber_also_after_they_closed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    let mut first = batch(1, 1, Vec::new());
    first.batch.as_mut().unwrap().sessions =
        vec![session("s1", Some("line-a"), true), session("s2", None, true)];
    ledger.apply(&first).unwrap();
    let mut second = batch(1, 2, Vec::new());
    second.batch.as_mut().unwrap().sessions = vec![session("s1", Some("line-a"), false)];
    ledger.apply(&second).unwrap();
    let line_a = SubscriberId("line-a".into());
    assert_eq!(ledger.subscriber_of("gw1", "s1").unwrap(), Some(line_a.clone()));
    assert_eq!(ledger.subscriber_of("gw1", "s2").unwrap(), None);
    assert_eq!(ledger.sessions_of(&line_a).unwrap().len(), 1);
    let open: Vec<_> = ledger.open_sessions().unwrap().into_iter().map(|row| row.session).collect();
    assert_eq!(open, ["s2"]);
    let reassigned =
        Reassigned { agent: "gw1".into(), session: "s2".into(), subscriber: Some(line_a.clone()) };
    ledger.apply(&InputRecord { reassigned: vec![reassigned], ..InputRecord::default() }).unwrap();
    assert_eq!(ledger.subscriber_of("gw1", "s2").unwrap(), Some(line_a));
}

#[test]
fn a_message_is_pending_until_it_is_sent_and_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    let record = InputRecord { effects: vec![Effect::Say(say("d1"))], ..InputRecord::default() };
    assert_eq!(ledger.apply(&record).unwrap().messages, [DecisionId("d1".into())]);
    assert_eq!(ledger.pending_messages(10).unwrap()[0].say, say("d1"));
    ledger.message_sent(&DecisionId("d1".into()), Micros::new(5)).unwrap();
    ledger.apply(&record).unwrap();
    ledger.message_failed(&DecisionId("d1".into()), "late").unwrap();
    assert!(ledger.pending_messages(10).unwrap().is_empty());
    let message = ledger.message(&DecisionId("d1".into())).unwrap().unwrap();
    assert_eq!((message.state, message.tapped), (MessageState::Sent(Micros::new(5)), None));
    let tap = |at| InputRecord {
        at: Micros::new(at),
        tap: Some(DecisionId("d1".into())),
        ..InputRecord::default()
    };
    ledger.apply(&tap(7)).unwrap();
    ledger.apply(&tap(8)).unwrap();
    assert_eq!(ledger.tapped(&DecisionId("d1".into())).unwrap(), Some(Micros::new(7)));
}

#[test]
fn old_decisions_are_forgotten_with_their_messages_and_new_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    for (id, at) in [("d1", 10), ("d2", 20), ("d3", 30)] {
        let decision = Decision {
            id: DecisionId(id.into()),
            subscriber: SubscriberId("line-b".into()),
            moment: "roam_bare".into(),
            episode: 1,
            at: Micros::new(at),
            policy: "p".into(),
            mode: Mode::Live,
            facts: BTreeMap::new(),
            words: BTreeMap::new(),
            candidates: Vec::new(),
            chosen: Some("roam_pass".into()),
            probability: 1.0,
            style: None,
        };
        let effects = vec![Effect::Decided(decision), Effect::Say(say(id))];
        let tap = Some(DecisionId(id.into()));
        ledger.apply(&InputRecord { tap, effects, ..InputRecord::default() }).unwrap();
    }
    assert_eq!(ledger.prune(Micros::new(30), 1).unwrap(), 1);
    assert_eq!(ledger.prune(Micros::new(30), 9).unwrap(), 1);
    assert_eq!(ledger.prune(Micros::new(30), 9).unwrap(), 0);
    let left: Vec<_> = ledger.decisions(None, 9).unwrap().into_iter().map(|row| row.decision.id.0).collect();
    assert_eq!(left, ["d3"]);
    assert_eq!(ledger.messages(None, 9).unwrap().len(), 1);
    assert_eq!(ledger.tapped(&DecisionId("d1".into())).unwrap(), None);
}

#[test]
fn the_kill_switch_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let ledger = Ledger::open(&path).unwrap();
    assert!(!ledger.stopped().unwrap());
    ledger.apply(&InputRecord { stop: Some(true), ..InputRecord::default() }).unwrap();
    drop(ledger);
    assert!(Ledger::open(&path).unwrap().stopped().unwrap());
}

/// The files as a process killed at this moment leaves them, the log cut off after `keep` bytes.
fn cut(from: &Path, to: &Path, keep: impl Fn(usize) -> usize) {
    let wal = |path: &Path| path.with_extension("sqlite-wal");
    fs::copy(from, to).unwrap();
    let mut log = fs::read(wal(from)).unwrap_or_default();
    log.truncate(keep(log.len()));
    fs::write(wal(to), log).unwrap();
}

/// One input of each kind the engine task writes: usage, a session, engine state, a push and a message.
fn full(sequence: u64, bytes: u64) -> InputRecord {
    let mut record = batch(1, sequence, vec![usage(Some("line-a"), bytes), usage(None, bytes / 2)]);
    record.batch.as_mut().unwrap().sessions = vec![session(&format!("s{sequence}"), Some("line-a"), true)];
    record.engine = vec![(SubscriberId("line-a".into()), format!("{{\"revision\":{sequence}}}"))];
    record.effects = vec![
        Effect::Desire(Desire {
            subscriber: SubscriberId("line-a".into()),
            settings: Settings { revision: sequence, ..Settings::default() },
            cause: Cause::Plan,
        }),
        Effect::Say(say(&format!("d{sequence}"))),
    ];
    record
}

#[test]
fn a_kill_before_the_commit_leaves_nothing_of_an_input() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = Ledger::open(&path).unwrap();
    ledger.apply(&full(1, 100)).unwrap();
    let copy = dir.path().join("copy.sqlite");
    {
        let mut writer = ledger.writer();
        let transaction = writer.transaction().unwrap();
        record::write(&transaction, &full(2, 50)).unwrap();
        cut(&path, &copy, |length| length);
        transaction.commit().unwrap();
    }
    let before = Ledger::open(&copy).unwrap();
    assert_eq!(totals(&before)["line-a"], 100);
    assert_eq!(before.last_batch("gw1", None).unwrap().unwrap().sequence, 1);
    assert_eq!(before.pending_messages(10).unwrap().len(), 1);
    // The agent was never acknowledged: it sends the batch again.
    before.apply(&full(2, 50)).unwrap();
    assert_eq!(totals(&before), totals(&ledger));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Duplicates, gaps, several boots and restarts: the totals are those of the distinct batches in order.
    #[test]
    fn totals_are_those_of_each_batch_once(
        deliveries in proptest::collection::vec((1_u8..3, 1_u64..6, 0_u64..1000, any::<bool>()), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let mut ledger = Ledger::open(&path).unwrap();
        let mut reference: (BTreeMap<u8, u64>, u64) = (BTreeMap::new(), 0);
        for (boot, sequence, bytes, restart) in deliveries {
            let next = reference.0.get(&boot).is_none_or(|last| last + 1 == sequence);
            let applied = ledger.apply(&batch(boot, sequence, vec![usage(Some("line-a"), bytes)]));
            prop_assert_eq!(applied.is_ok(), next);
            if next {
                reference.0.insert(boot, sequence);
                reference.1 += bytes;
            }
            if restart {
                drop(ledger);
                ledger = Ledger::open(&path).unwrap();
            }
        }
        prop_assert_eq!(totals(&ledger).get("line-a").copied().unwrap_or(0), reference.1);
    }

    /// Wherever the log ends, what is there is whole inputs, from the first on.
    #[test]
    fn a_log_cut_anywhere_holds_whole_inputs(
        amounts in proptest::collection::vec(1_u64..1000, 1..8),
        cut_at in 0.0_f64..1.0,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let ledger = Ledger::open(&path).unwrap();
        for (bytes, sequence) in amounts.iter().zip(1..) {
            ledger.apply(&full(sequence, *bytes)).unwrap();
        }
        let copy = dir.path().join("copy.sqlite");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "a position in a small file")]
        cut(&path, &copy, |length| (length as f64 * cut_at) as usize);
        let Ok(survived) = Ledger::open(&copy) else {
            return Err(TestCaseError::fail("a cut log must open"));
        };
        let last = survived.last_batch("gw1", None).unwrap().map_or(0, |mark| mark.sequence);
        let kept = usize::try_from(last).unwrap();
        let expected: u64 = amounts[..kept].iter().sum();
        prop_assert_eq!(totals(&survived).get("line-a").copied().unwrap_or(0), expected);
        prop_assert_eq!(survived.sessions_on("gw1").unwrap().len(), kept);
        prop_assert_eq!(survived.pending_messages(100).unwrap().len(), kept);
        let revision = survived.engine_row(&SubscriberId("line-a".into())).unwrap();
        prop_assert_eq!(revision, (kept > 0).then(|| format!("{{\"revision\":{kept}}}")));
    }
}

#[test]
fn anonymous_usage_with_a_name_is_counted_apart_and_listed_between_the_rest_of_it_and_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    let named = |name: &str, bytes| UsageRecord { anonymous: name.into(), ..usage(None, bytes) };
    let all = vec![usage(Some("line-a"), 10), named("guests", 4), usage(None, 3), named("guests", 2)];
    ledger.apply(&batch(1, 1, all)).unwrap();
    let mut told = Vec::new();
    let mut after = (String::new(), String::new(), String::new());
    loop {
        let page = ledger.usage_after((&after.0, &after.1, &after.2), 1).unwrap();
        let Some(total) = page.first() else { break };
        let holder = holder(total.subscriber.as_ref(), total.anonymous.as_deref().unwrap_or_default());
        after = (holder.into_owned(), total.class.to_string(), "down".to_owned());
        told.push((total.subscriber.clone().map(|id| id.0), total.anonymous.clone(), total.bytes.0));
    }
    let a = Some("line-a".to_owned());
    assert_eq!(told, [(None, None, 3), (None, Some("guests".to_owned()), 6), (a, None, 10)]);
    assert_eq!(ledger.usage_of(None).unwrap().len(), 1);
}
