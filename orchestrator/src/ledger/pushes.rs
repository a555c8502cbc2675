//! Pushes and each element's part in them: the queue the executor works off, and what an operator is shown.
//!
//! A push is queued in the SQLite transaction of the input that caused it. At most one push of a subscriber waits at a
//! time, one whose attempts failed included: a newer desire supersedes it, which is also what bounds the queue. The
//! newest desire is never given up.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use usher_models::units::{Micros, SubscriberId};

use super::{Ledger, LedgerError};
use crate::elements::{ElementOutcome, Journal, JournalError, Push, PushId, PushState, Reach};
use crate::engine::io::Desire;

/// The tables of pushes, part of layout 1.
pub(super) const SCHEMA: &str = "
CREATE TABLE pushes (
    id TEXT PRIMARY KEY,
    subscriber TEXT NOT NULL,
    cause TEXT NOT NULL,
    settings TEXT NOT NULL,
    desired_at INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at INTEGER NOT NULL,
    error TEXT,
    finished_at INTEGER
) STRICT;
CREATE INDEX pushes_by_state ON pushes (state, next_at);
CREATE INDEX pushes_by_subscriber ON pushes (subscriber, state);
CREATE TABLE push_elements (
    push TEXT NOT NULL REFERENCES pushes (id) ON DELETE CASCADE,
    element TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (push, element)
) STRICT, WITHOUT ROWID;
";

/// A push as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PushRecord {
    /// What is to be put in force.
    #[serde(flatten)]
    pub push: Push,
    /// How far it is.
    pub state: PushState,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried (again).
    pub next_at: Micros,
    /// What went wrong in the last attempt.
    pub error: Option<String>,
    /// When it came to an end.
    pub finished_at: Option<Micros>,
    /// Each element's part, sorted by name; empty in lists.
    #[serde(default)]
    pub elements: Vec<ElementOutcome>,
}

/// The two kinds of pushes that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// For their turn, or for the next of their attempts.
    Fresh,
    /// All their attempts failed; they are tried on.
    Failing,
}

impl Queue {
    /// The states of its pushes, as SQL.
    const fn states(self) -> &'static str {
        match self {
            Self::Fresh => "'pending'",
            Self::Failing => "'failed', 'needs_repair'",
        }
    }
}

/// Which pushes to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct PushFilter {
    /// Only in this state.
    pub state: Option<PushState>,
    /// Only of this subscriber.
    pub subscriber: Option<SubscriberId>,
}

/// Notes new desired settings as a push to be made, in the transaction of the input that led to them. Returns its id.
pub(super) fn insert_pending(
    transaction: &Transaction<'_>,
    at: Micros,
    desire: &Desire,
) -> Result<String, LedgerError> {
    let push = Push {
        id: PushId::new(),
        subscriber: desire.subscriber.clone(),
        cause: desire.cause.clone(),
        settings: desire.settings.clone(),
        desired_at: at,
    };
    enqueue(transaction, &push)?;
    Ok(push.id.0)
}

impl Ledger {
    /// Queues a push that no input of the engine led to; one of the same subscriber that still waits is superseded.
    pub fn push_enqueue(&self, push: &Push) -> Result<(), LedgerError> {
        let mut writer = self.writer();
        let transaction = writer.transaction()?;
        enqueue(&transaction, push)?;
        Ok(transaction.commit()?)
    }

    /// Up to `limit` pushes of the queue whose time has come, oldest first, and never of a subscriber in `busy`.
    pub fn pushes_due(
        &self,
        queue: Queue,
        now: Micros,
        limit: usize,
        busy: &[SubscriberId],
    ) -> Result<Vec<PushRecord>, LedgerError> {
        Ok(due(&self.reader(), queue, now, limit, busy)?)
    }

    /// When the next push of the queue is due; `None`: nothing waits. Those of subscribers in `busy` do not count.
    pub fn push_next_due(&self, queue: Queue, busy: &[SubscriberId]) -> Result<Option<Micros>, LedgerError> {
        Ok(next_due(&self.reader(), queue, busy)?)
    }

    /// How many pushes are in the queue.
    pub fn pushes_waiting(&self, queue: Queue) -> Result<u64, LedgerError> {
        Ok(waiting(&self.reader(), queue)?)
    }

    /// Pushes that were under way when the process ended, with their elements, oldest first.
    pub fn pushes_interrupted(&self) -> Result<Vec<PushRecord>, LedgerError> {
        Ok(interrupted(&self.reader())?)
    }

    /// Elements on which something provisional of a push of this subscriber may be left, push by push.
    pub fn push_leftovers(
        &self,
        subscriber: &SubscriberId,
    ) -> Result<Vec<(PushId, ElementOutcome)>, LedgerError> {
        Ok(leftovers(&self.reader(), subscriber)?)
    }

    /// One more attempt at a push begins: it is under way, and its attempts are counted.
    pub fn push_begin(&self, id: &PushId) -> Result<(), LedgerError> {
        Ok(begin(&self.writer(), id)?)
    }

    /// A push came to an end, or enters a state of the transaction.
    pub fn push_state(
        &self,
        id: &PushId,
        state: PushState,
        error: Option<&str>,
        at: Micros,
    ) -> Result<(), LedgerError> {
        Ok(set_state(&self.writer(), id, state, error, at)?)
    }

    /// An attempt failed: the push waits in `state` until `next_at`, or is superseded where a newer one of its subscriber
    /// waits. Returns what it was.
    pub fn push_retry_at(
        &self,
        id: &PushId,
        state: PushState,
        error: &str,
        next_at: Micros,
    ) -> Result<PushState, LedgerError> {
        let mut writer = self.writer();
        let transaction = writer.transaction()?;
        let state = retry_at(&transaction, id, state, error, next_at)?;
        transaction.commit()?;
        Ok(state)
    }

    /// One element's part in a push has come so far.
    pub fn push_element(&self, id: &PushId, element: &ElementOutcome) -> Result<(), LedgerError> {
        Ok(set_element(&self.writer(), id, element)?)
    }

    /// Up to `limit` pushes, newest first, without their elements.
    pub fn pushes(&self, filter: &PushFilter, limit: usize) -> Result<Vec<PushRecord>, LedgerError> {
        Ok(list(&self.reader(), filter, limit)?)
    }

    /// One push with its elements.
    pub fn push(&self, id: &PushId) -> Result<Option<PushRecord>, LedgerError> {
        Ok(get(&self.reader(), id)?)
    }

    /// Forgets all but the newest `keep` pushes that have come to an end; those that are tried on stay.
    pub fn push_prune(&self, keep: usize) -> Result<usize, LedgerError> {
        Ok(prune(&self.writer(), keep)?)
    }

    /// Where a subscriber can be reached on gateways: its open sessions.
    pub fn reach_of(&self, subscriber: &SubscriberId) -> Result<Vec<Reach>, LedgerError> {
        let sessions = self.sessions_of(subscriber)?;
        Ok(sessions
            .into_iter()
            .filter(|session| session.open)
            .map(|session| Reach { agent: session.agent, session: session.session })
            .collect())
    }
}

/// What the transaction notes goes straight to the disk.
impl Journal for Ledger {
    fn push(&self, push: &PushId, state: PushState) -> Result<(), JournalError> {
        self.push_state(push, state, None, Micros::now())
            .map_err(|error| JournalError(self.named(error).to_string()))
    }

    fn element(&self, push: &PushId, element: &ElementOutcome) -> Result<(), JournalError> {
        self.push_element(push, element).map_err(|error| JournalError(self.named(error).to_string()))
    }
}

/// Queues a push; one of the same subscriber that still waits is superseded. The same id again changes nothing.
fn enqueue(connection: &Connection, push: &Push) -> rusqlite::Result<()> {
    let queued = connection
        .prepare_cached(
            "INSERT INTO pushes (id, subscriber, cause, settings, desired_at, state, next_at)
             VALUES (?1, ?2, ?3, ?4, ?5, 'pending', ?5) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            push.id.0,
            push.subscriber.0,
            to_json(&push.cause)?,
            to_json(&push.settings)?,
            push.desired_at.get(),
        ])?;
    if queued == 1 {
        connection
            .prepare_cached(
                "UPDATE pushes SET state = 'superseded', finished_at = ?3
                 WHERE subscriber = ?1 AND state IN ('pending', 'failed', 'needs_repair') AND id <> ?2",
            )?
            .execute(params![push.subscriber.0, push.id.0, push.desired_at.get()])?;
    }
    Ok(())
}

/// Up to `limit` pushes of the queue whose time has come, oldest first, and never of a subscriber in `busy`.
fn due(
    connection: &Connection,
    queue: Queue,
    now: Micros,
    limit: usize,
    busy: &[SubscriberId],
) -> rusqlite::Result<Vec<PushRecord>> {
    let busy = to_json(&busy)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM pushes WHERE state IN ({}) AND next_at <= ?1
         AND subscriber NOT IN (SELECT value FROM json_each(?3)) ORDER BY next_at, id LIMIT ?2",
        queue.states()
    ))?;
    statement.query_map(params![now.get(), to_integer(limit), busy], record)?.collect()
}

/// When the next push of the queue is due; `None`: nothing waits. Those of subscribers in `busy` do not count.
fn next_due(
    connection: &Connection,
    queue: Queue,
    busy: &[SubscriberId],
) -> rusqlite::Result<Option<Micros>> {
    let next: Option<i64> = connection
        .prepare_cached(&format!(
            "SELECT min(next_at) FROM pushes WHERE state IN ({})
             AND subscriber NOT IN (SELECT value FROM json_each(?1))",
            queue.states()
        ))?
        .query_row([to_json(&busy)?], |row| row.get(0))?;
    Ok(next.map(Micros::new))
}

/// How many pushes are in the queue.
fn waiting(connection: &Connection, queue: Queue) -> rusqlite::Result<u64> {
    let count: i64 = connection
        .prepare_cached(&format!("SELECT count(*) FROM pushes WHERE state IN ({})", queue.states()))?
        .query_row([], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Pushes that were under way when the process ended, with their elements, oldest first.
fn interrupted(connection: &Connection) -> rusqlite::Result<Vec<PushRecord>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM pushes WHERE state IN ('running', 'confirming') ORDER BY id"
    ))?;
    let mut records: Vec<PushRecord> = statement.query_map([], record)?.collect::<rusqlite::Result<_>>()?;
    for record in &mut records {
        record.elements = elements_of(connection, &record.push.id)?;
    }
    Ok(records)
}

/// Elements on which something provisional of a push of this subscriber may be left, push by push.
fn leftovers(
    connection: &Connection,
    subscriber: &SubscriberId,
) -> rusqlite::Result<Vec<(PushId, ElementOutcome)>> {
    let mut statement = connection.prepare_cached(
        "SELECT push, outcome FROM push_elements JOIN pushes ON pushes.id = push
         WHERE subscriber = ?1 AND pushes.state <> 'done'
         AND push_elements.state IN ('committing', 'enforced', 'unverified') ORDER BY push, element",
    )?;
    statement
        .query_map([&subscriber.0], |row| {
            Ok((PushId(row.get(0)?), from_json(&row.get::<_, String>(1)?, 1)?))
        })?
        .collect()
}

/// The push enters `state`; a final one is stamped with `at`.
fn set_state(
    connection: &Connection,
    id: &PushId,
    state: PushState,
    error: Option<&str>,
    at: Micros,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE pushes SET state = ?2, error = ?3, finished_at = ?4 WHERE id = ?1")?
        .execute(params![id.0, state.name(), error, state.is_final().then_some(at.get())])?;
    Ok(())
}

/// One more attempt begins.
fn begin(connection: &Connection, id: &PushId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE pushes SET state = 'running', attempts = attempts + 1 WHERE id = ?1")?
        .execute([&id.0])?;
    Ok(())
}

/// The attempt failed: the push waits in `state` until `next_at`, or is superseded where a newer one waits.
fn retry_at(
    connection: &Connection,
    id: &PushId,
    state: PushState,
    error: &str,
    next_at: Micros,
) -> rusqlite::Result<PushState> {
    let newer: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM pushes AS newer, pushes AS this WHERE this.id = ?1
             AND newer.subscriber = this.subscriber AND newer.state = 'pending' AND newer.id <> this.id)",
        )?
        .query_row([&id.0], |row| row.get(0))?;
    let state = if newer { PushState::Superseded } else { state };
    connection
        .prepare_cached(
            "UPDATE pushes SET state = ?2, error = ?3, next_at = ?4, finished_at = ?5 WHERE id = ?1",
        )?
        .execute(params![id.0, state.name(), error, next_at.get(), newer.then_some(next_at.get())])?;
    Ok(state)
}

/// One element's part has come so far.
fn set_element(connection: &Connection, id: &PushId, element: &ElementOutcome) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO push_elements (push, element, state, outcome) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (push, element) DO UPDATE SET state = excluded.state, outcome = excluded.outcome",
        )?
        .execute(params![id.0, element.element, element.state.name(), to_json(element)?])?;
    Ok(())
}

/// Up to `limit` pushes, newest first, without their elements.
fn list(connection: &Connection, filter: &PushFilter, limit: usize) -> rusqlite::Result<Vec<PushRecord>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM pushes WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR subscriber = ?2)
         ORDER BY id DESC LIMIT ?3"
    ))?;
    statement
        .query_map(
            params![
                filter.state.map(PushState::name),
                filter.subscriber.as_ref().map(|subscriber| &subscriber.0),
                to_integer(limit),
            ],
            record,
        )?
        .collect()
}

/// One push with its elements.
fn get(connection: &Connection, id: &PushId) -> rusqlite::Result<Option<PushRecord>> {
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM pushes WHERE id = ?1"))?
        .query_row([&id.0], record)
        .optional()?;
    found
        .map(|mut record| {
            record.elements = elements_of(connection, id)?;
            Ok(record)
        })
        .transpose()
}

/// Forgets all but the newest `keep` pushes that have come to an end; those that are tried on stay.
fn prune(connection: &Connection, keep: usize) -> rusqlite::Result<usize> {
    let old =
        "SELECT id FROM pushes WHERE state IN ('done', 'superseded') ORDER BY id DESC LIMIT -1 OFFSET ?1";
    connection
        .prepare_cached(&format!("DELETE FROM push_elements WHERE push IN ({old})"))?
        .execute([to_integer(keep)])?;
    connection.prepare_cached(&format!("DELETE FROM pushes WHERE id IN ({old})"))?.execute([to_integer(keep)])
}

const COLUMNS: &str =
    "id, subscriber, cause, settings, desired_at, state, attempts, next_at, error, finished_at";

fn record(row: &Row<'_>) -> rusqlite::Result<PushRecord> {
    let state: String = row.get(5)?;
    Ok(PushRecord {
        push: Push {
            id: PushId(row.get(0)?),
            subscriber: SubscriberId(row.get(1)?),
            cause: from_json(&row.get::<_, String>(2)?, 2)?,
            settings: from_json(&row.get::<_, String>(3)?, 3)?,
            desired_at: Micros::new(row.get(4)?),
        },
        state: PushState::named(&state)
            .ok_or_else(|| unreadable(5, format!("unknown push state `{state}`")))?,
        attempts: row.get(6)?,
        next_at: Micros::new(row.get(7)?),
        error: row.get(8)?,
        finished_at: row.get::<_, Option<i64>>(9)?.map(Micros::new),
        elements: Vec::new(),
    })
}

fn elements_of(connection: &Connection, id: &PushId) -> rusqlite::Result<Vec<ElementOutcome>> {
    connection
        .prepare_cached("SELECT outcome FROM push_elements WHERE push = ?1 ORDER BY element")?
        .query_map([&id.0], |row| from_json(&row.get::<_, String>(0)?, 0))?
        .collect()
}

fn to_integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

fn unreadable(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use usher_models::setting::{Setting, Settings};

    use super::*;
    use crate::elements::ElementState;
    use crate::engine::io::Cause;

    fn ledger() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn push(id: &str, subscriber: &str, at: i64) -> Push {
        Push {
            id: PushId(id.to_owned()),
            subscriber: SubscriberId(subscriber.to_owned()),
            cause: Cause::Plan,
            settings: Settings {
                revision: 3,
                values: BTreeMap::from([("video".to_owned(), Setting::of_plan("sd"))]),
            },
            desired_at: Micros::new(at),
        }
    }

    fn part(element: &str, state: ElementState) -> ElementOutcome {
        ElementOutcome {
            element: element.to_owned(),
            state,
            changes: Vec::new(),
            started: Micros::new(1),
            enforced: None,
            confirmed: None,
            error: None,
        }
    }

    #[test]
    fn a_newer_desire_supersedes_the_one_that_waits_and_no_other() {
        let ledger = ledger();
        enqueue(&ledger, &push("1", "a", 10)).unwrap();
        enqueue(&ledger, &push("2", "b", 11)).unwrap();
        enqueue(&ledger, &push("3", "a", 12)).unwrap();
        let due = due(&ledger, Queue::Fresh, Micros::new(20), 10, &[]).unwrap();
        assert_eq!(due.iter().map(|record| record.push.id.0.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        assert_eq!(get(&ledger, &PushId("1".into())).unwrap().unwrap().state, PushState::Superseded);
    }

    #[test]
    fn one_under_way_is_not_superseded_but_its_next_attempt_is() {
        let ledger = ledger();
        enqueue(&ledger, &push("1", "a", 10)).unwrap();
        set_state(&ledger, &PushId("1".into()), PushState::Running, None, Micros::new(11)).unwrap();
        enqueue(&ledger, &push("2", "a", 12)).unwrap();
        assert_eq!(get(&ledger, &PushId("1".into())).unwrap().unwrap().state, PushState::Running);
        let id = PushId("1".into());
        let state = retry_at(&ledger, &id, PushState::Pending, "device gone", Micros::new(30)).unwrap();
        assert_eq!(state, PushState::Superseded);
    }

    #[test]
    fn one_whose_attempts_failed_is_tried_on_until_something_newer_is_desired() {
        for state in [PushState::Failed, PushState::NeedsRepair] {
            let ledger = ledger();
            let id = PushId("1".into());
            enqueue(&ledger, &push("1", "a", 10)).unwrap();
            begin(&ledger, &id).unwrap();
            assert_eq!(retry_at(&ledger, &id, state, "device gone", Micros::new(30)).unwrap(), state);
            assert_eq!(get(&ledger, &id).unwrap().unwrap().finished_at, None);
            assert_eq!(next_due(&ledger, Queue::Failing, &[]).unwrap(), Some(Micros::new(30)));
            assert!(due(&ledger, Queue::Failing, Micros::new(29), 10, &[]).unwrap().is_empty());
            assert_eq!(due(&ledger, Queue::Failing, Micros::new(30), 10, &[]).unwrap()[0].push.id, id);
            assert!(due(&ledger, Queue::Fresh, Micros::new(30), 10, &[]).unwrap().is_empty());
            enqueue(&ledger, &push("2", "a", 40)).unwrap();
            assert_eq!(get(&ledger, &id).unwrap().unwrap().state, PushState::Superseded);
            assert_eq!(waiting(&ledger, Queue::Failing).unwrap(), 0);
        }
    }

    #[test]
    fn a_busy_subscriber_and_a_later_time_are_not_due() {
        let ledger = ledger();
        enqueue(&ledger, &push("1", "a", 10)).unwrap();
        enqueue(&ledger, &push("2", "b", 11)).unwrap();
        let busy = [SubscriberId("a".into())];
        assert_eq!(due(&ledger, Queue::Fresh, Micros::new(20), 10, &busy).unwrap().len(), 1);
        assert_eq!(next_due(&ledger, Queue::Fresh, &busy).unwrap(), Some(Micros::new(11)));
        assert!(due(&ledger, Queue::Fresh, Micros::new(9), 10, &[]).unwrap().is_empty());
        assert_eq!(waiting(&ledger, Queue::Fresh).unwrap(), 2);
    }

    #[test]
    fn what_may_be_left_on_an_element_is_remembered_until_it_is_back() {
        let ledger = ledger();
        let first = push("1", "a", 10);
        enqueue(&ledger, &first).unwrap();
        set_state(&ledger, &first.id, PushState::Running, None, Micros::new(11)).unwrap();
        set_element(&ledger, &first.id, &part("netconf:x", ElementState::Committing)).unwrap();
        set_element(&ledger, &first.id, &part("netconf:y", ElementState::Unchanged)).unwrap();
        let left = leftovers(&ledger, &first.subscriber).unwrap();
        assert_eq!(left, [(first.id.clone(), part("netconf:x", ElementState::Committing))]);
        assert_eq!(interrupted(&ledger).unwrap()[0].elements.len(), 2);
        set_element(&ledger, &first.id, &part("netconf:x", ElementState::RolledBack)).unwrap();
        assert!(leftovers(&ledger, &first.subscriber).unwrap().is_empty());
    }

    #[test]
    fn old_pushes_are_forgotten_but_never_one_that_waits_or_is_tried_on() {
        let ledger = ledger();
        for (index, state) in [
            PushState::NeedsRepair,
            PushState::Done,
            PushState::Failed,
            PushState::Superseded,
            PushState::Done,
        ]
        .into_iter()
        .enumerate()
        {
            let push = push(&index.to_string(), &format!("s{index}"), 1);
            enqueue(&ledger, &push).unwrap();
            set_element(&ledger, &push.id, &part("netconf:x", ElementState::Confirmed)).unwrap();
            set_state(&ledger, &push.id, state, None, Micros::new(2)).unwrap();
        }
        enqueue(&ledger, &push("9", "waits", 1)).unwrap();
        assert_eq!(prune(&ledger, 1).unwrap(), 2);
        let left = list(&ledger, &PushFilter::default(), 10).unwrap();
        assert_eq!(
            left.iter().map(|record| record.push.id.0.as_str()).collect::<Vec<_>>(),
            ["9", "4", "2", "0"]
        );
    }

    #[test]
    fn a_push_survives_the_ledger() {
        let ledger = ledger();
        let push = push("1", "a", 10);
        enqueue(&ledger, &push).unwrap();
        enqueue(&ledger, &push).unwrap();
        let record = get(&ledger, &push.id).unwrap().unwrap();
        assert_eq!(record.push, push);
        assert_eq!(record.state, PushState::Pending, "an id queued twice is one push");
    }
}
