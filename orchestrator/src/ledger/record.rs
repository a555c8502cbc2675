//! The one write: everything an input changed, in one transaction.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use smol_str::SmolStr;
use usher_models::units::{Micros, SubscriberId};
use usher_models::{Class, Direction};

use super::{Journaled, Ledger, LedgerError, PolicyChange, journal, policies, pushes, stored};
use crate::engine::io::{Decision, DecisionId, Effect, Say};

/// Boots remembered of one agent. A boot beyond them is one whose gateway restarted that many times since.
const BOOTS_KEPT: i64 = 16;

/// Apps remembered of one subscriber: the first so many; those that come later are not remembered.
const APPS_KEPT: i64 = 1024;

/// How long a closed session is remembered, so that what is said about it late still finds its subscriber.
const CLOSED_KEPT: std::time::Duration = std::time::Duration::from_hours(24);

/// Offers that somebody said no to.
pub(super) const DECLINES: &str = "CREATE TABLE declines (
    decision TEXT PRIMARY KEY,
    at_us    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;";

/// Everything one input changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputRecord {
    /// When it was applied.
    pub at: Micros,
    /// The batch it was, if it was one.
    pub batch: Option<BatchRecord>,
    /// Sessions that belong to somebody else than before, by a change of the profiles.
    pub reassigned: Vec<Reassigned>,
    /// The link that was accepted.
    pub tap: Option<DecisionId>,
    /// The offer that was declined.
    pub declined: Option<DecisionId>,
    /// The kill switch's new position.
    pub stop: Option<bool>,
    /// Engine rows that changed: the subscriber and its state as JSON.
    pub engine: Vec<(SubscriberId, String)>,
    /// Engine rows that are gone.
    pub engine_gone: Vec<SubscriberId>,
    /// What the engine wants done.
    pub effects: Vec<Effect>,
    /// What the engine was given, and what it answered.
    pub journal: Vec<Journaled>,
    /// The journal begins anew: what is in it was for another engine.
    pub journal_anew: bool,
    /// What becomes of policies that were applied over the file's.
    pub policy: Option<PolicyChange>,
}

/// A session that belongs to somebody else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassigned {
    /// Where it is.
    pub agent: String,
    /// Its id there.
    pub session: String,
    /// Whose it is now; `None`: nobody's that is known.
    pub subscriber: Option<SubscriberId>,
}

/// Which batch of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchMark {
    /// One life of the gateway's counters.
    pub boot: Vec<u8>,
    /// From 1, without a gap, within the boot.
    pub sequence: u64,
}

/// A batch as the ledger keeps it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchRecord {
    /// Name of the agent.
    pub agent: String,
    /// Which one.
    pub mark: BatchMark,
    /// Start of its interval, event time.
    pub start: Micros,
    /// End of its interval, event time.
    pub end: Micros,
    /// Sessions that opened, changed or closed.
    pub sessions: Vec<SessionRecord>,
    /// What it adds to the totals.
    pub usage: Vec<UsageRecord>,
    /// Flows that got their verdict.
    pub apps: Vec<AppRecord>,
    /// What it adds to the bytes of apps.
    pub app_bytes: Vec<AppBytes>,
}

/// A session, its subscriber resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id on the agent.
    pub session: String,
    /// Whose; `None`: none of its keys is known.
    pub subscriber: Option<SubscriberId>,
    /// False: it closed.
    pub open: bool,
    /// Addresses and prefixes in CIDR notation.
    pub prefixes: Vec<String>,
    /// `kind:value`.
    pub keys: Vec<String>,
    /// MCC and MNC; empty where unknown.
    pub serving_plmn: String,
    /// Served by a foreign network.
    pub roaming: bool,
    /// Radio technology; empty where unknown.
    pub rat: String,
    /// IANA name; empty where unknown.
    pub time_zone: String,
    /// When it opened.
    pub since: Micros,
}

/// What is added to the totals of one subscriber, class and direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRecord {
    /// Whose; `None`: anonymous.
    pub subscriber: Option<SubscriberId>,
    /// The name of the prefix that anonymous traffic is from; empty: none.
    pub anonymous: String,
    /// Kind of use.
    pub class: Class,
    /// Which way.
    pub direction: Direction,
    /// Let through, innermost IP bytes.
    pub bytes: u64,
    /// Let through.
    pub packets: u64,
    /// Held back, innermost IP bytes.
    pub dropped_bytes: u64,
    /// Held back.
    pub dropped_packets: u64,
}

/// A flow that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRecord {
    /// Whose; `None`: anonymous.
    pub subscriber: Option<SubscriberId>,
    /// Which app.
    pub app: String,
    /// Its class.
    pub class: Class,
    /// What the verdict rests on.
    pub via: String,
    /// When the verdict came.
    pub at: Micros,
    /// Microseconds from the flow's first packet to the verdict.
    pub verdict_us: u64,
}

/// What is added to the bytes of one app of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppBytes {
    /// Whose.
    pub subscriber: Option<SubscriberId>,
    /// Which app.
    pub app: SmolStr,
    /// Let through, innermost IP bytes, both directions.
    pub bytes: u64,
}

/// What became work for the shells by [`Ledger::apply`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pushes now pending, by id.
    pub pushes: Vec<String>,
    /// Messages now pending.
    pub messages: Vec<DecisionId>,
}

impl Ledger {
    /// Makes everything an input changed durable, or nothing of it.
    ///
    /// A batch must be the next of its boot ([`LedgerError::OutOfOrder`] otherwise); a decision or message that is
    /// there already stays as it is, for the same decision made twice has the same id.
    pub fn apply(&self, record: &InputRecord) -> Result<Applied, LedgerError> {
        let mut writer = self.writer();
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let applied = write(&transaction, record)?;
        transaction.commit()?;
        Ok(applied)
    }

    /// Forgets up to `limit` decisions older than `before`, each with its message and tap. Totals, sessions and what the
    /// engine needs stay. Returns how many it forgot.
    pub fn prune(&self, before: Micros, limit: u32) -> Result<usize, LedgerError> {
        let mut writer = self.writer();
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let old = "SELECT id FROM decisions WHERE at_us < ?1 ORDER BY at_us LIMIT ?2";
        for from in ["messages WHERE decision", "taps WHERE decision", "declines WHERE decision"] {
            transaction.execute(&format!("DELETE FROM {from} IN ({old})"), params![before.get(), limit])?;
        }
        let forgotten = transaction
            .execute(&format!("DELETE FROM decisions WHERE id IN ({old})"), params![before.get(), limit])?;
        transaction.commit()?;
        Ok(forgotten)
    }

    /// Keeps what the engine has learnt, as JSON.
    pub fn keep_learned(&self, learned: &str) -> Result<(), LedgerError> {
        self.writer()
            .execute("INSERT OR REPLACE INTO switches (name, value) VALUES ('learned', ?1)", [learned])?;
        Ok(())
    }

    /// Notes that the channel has taken the message.
    pub fn message_sent(&self, decision: &DecisionId, at: Micros) -> Result<(), LedgerError> {
        self.writer().execute(
            "UPDATE messages SET sent_us = ?2 WHERE decision = ?1 AND sent_us IS NULL",
            params![decision.0, at.get()],
        )?;
        Ok(())
    }

    /// Notes that the message will not be sent, and why.
    pub fn message_failed(&self, decision: &DecisionId, error: &str) -> Result<(), LedgerError> {
        self.writer().execute(
            "UPDATE messages SET error = ?2 WHERE decision = ?1 AND sent_us IS NULL",
            params![decision.0, error],
        )?;
        Ok(())
    }
}

pub(super) fn write(transaction: &Transaction<'_>, record: &InputRecord) -> Result<Applied, LedgerError> {
    if let Some(batch) = &record.batch {
        write_batch(transaction, record.at, batch)?;
    }
    for session in &record.reassigned {
        transaction
            .prepare_cached("UPDATE sessions SET subscriber = ?3 WHERE agent = ?1 AND session = ?2")?
            .execute(params![
                session.agent,
                session.session,
                name_or_anonymous(session.subscriber.as_ref())
            ])?;
    }
    if let Some(decision) = &record.tap {
        transaction
            .prepare_cached("INSERT OR IGNORE INTO taps (decision, at_us) VALUES (?1, ?2)")?
            .execute(params![decision.0, record.at.get()])?;
    }
    if let Some(decision) = &record.declined {
        transaction
            .prepare_cached("INSERT OR IGNORE INTO declines (decision, at_us) VALUES (?1, ?2)")?
            .execute(params![decision.0, record.at.get()])?;
    }
    if let Some(stop) = record.stop {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO switches (name, value) VALUES ('stop', ?1)")?
            .execute([if stop { "true" } else { "false" }])?;
    }
    for (subscriber, state) in &record.engine {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO engine (subscriber, state) VALUES (?1, ?2)")?
            .execute(params![subscriber.0, state])?;
    }
    for subscriber in &record.engine_gone {
        transaction.prepare_cached("DELETE FROM engine WHERE subscriber = ?1")?.execute([&subscriber.0])?;
    }
    journal::write(transaction, record)?;
    if let Some(change) = &record.policy {
        policies::write(transaction, change)?;
    }
    let mut applied = Applied::default();
    for effect in &record.effects {
        match effect {
            Effect::Decided(decision) => write_decision(transaction, decision)?,
            Effect::Desire(desire) => {
                applied.pushes.push(pushes::insert_pending(transaction, record.at, desire)?);
            }
            Effect::Say(say) => {
                write_message(transaction, record.at, say)?;
                applied.messages.push(say.decision.clone());
            }
            Effect::Ask(_) => {}
            Effect::Guarded(state) => {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO switches (name, value) VALUES ('guard', ?1)")?
                    .execute([serde_json::to_string(state)?])?;
            }
            Effect::Withdraw(subscriber) => {
                transaction
                    .prepare_cached(
                        "UPDATE messages SET error = 'consent to advice was withdrawn before it was sent'
                         WHERE subscriber = ?1 AND sent_us IS NULL AND error IS NULL
                         AND coalesce(say ->> '$.regulated', 0) = 0",
                    )?
                    .execute([&subscriber.0])?;
            }
        }
    }
    Ok(applied)
}

fn write_batch(transaction: &Transaction<'_>, at: Micros, batch: &BatchRecord) -> Result<(), LedgerError> {
    mark_batch(transaction, at, batch)?;
    for session in &batch.sessions {
        write_session(transaction, &batch.agent, batch.end, session)?;
    }
    transaction
        .prepare_cached("DELETE FROM sessions WHERE open = 0 AND changed_us < ?1")?
        .execute([batch.end.before(CLOSED_KEPT).get()])?;
    for usage in &batch.usage {
        add_usage(transaction, usage)?;
    }
    for app in &batch.apps {
        write_app(transaction, app)?;
    }
    for bytes in &batch.app_bytes {
        add_app_bytes(transaction, bytes)?;
    }
    Ok(())
}

fn mark_batch(transaction: &Transaction<'_>, at: Micros, batch: &BatchRecord) -> Result<(), LedgerError> {
    let last: Option<i64> = transaction
        .prepare_cached("SELECT sequence FROM batches WHERE agent = ?1 AND boot = ?2")?
        .query_row(params![batch.agent, batch.mark.boot], |row| row.get(0))
        .optional()?;
    // Of a boot not heard of before, any batch is the first: those before it were acknowledged by a ledger since lost.
    let expected = last.map_or(batch.mark.sequence.max(1), |last| u64::try_from(last).unwrap_or(0) + 1);
    if batch.mark.sequence != expected {
        return Err(LedgerError::OutOfOrder {
            agent: batch.agent.clone(),
            sequence: batch.mark.sequence,
            expected,
        });
    }
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO batches (agent, boot, sequence, start_us, end_us, applied_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            batch.agent,
            batch.mark.boot,
            stored(batch.mark.sequence, "batch sequence")?,
            batch.start.get(),
            batch.end.get(),
            at.get(),
        ])?;
    if last.is_none() {
        transaction
            .prepare_cached(
                "DELETE FROM batches WHERE agent = ?1 AND boot NOT IN
                 (SELECT boot FROM batches WHERE agent = ?1 ORDER BY applied_us DESC LIMIT ?2)",
            )?
            .execute(params![batch.agent, BOOTS_KEPT])?;
    }
    Ok(())
}

fn write_session(
    transaction: &Transaction<'_>,
    agent: &str,
    changed: Micros,
    session: &SessionRecord,
) -> Result<(), LedgerError> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO sessions (agent, session, subscriber, open, prefixes, keys, serving_plmn, roaming,
             rat, time_zone, since_us, changed_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            agent,
            session.session,
            name_or_anonymous(session.subscriber.as_ref()),
            session.open,
            serde_json::to_string(&session.prefixes)?,
            serde_json::to_string(&session.keys)?,
            session.serving_plmn,
            session.roaming,
            session.rat,
            session.time_zone,
            session.since.get(),
            changed.get(),
        ])?;
    Ok(())
}

fn write_app(transaction: &Transaction<'_>, app: &AppRecord) -> Result<(), LedgerError> {
    let subscriber = name_or_anonymous(app.subscriber.as_ref());
    let verdict_us = stored(app.verdict_us, "time to a verdict")?;
    let known = transaction
        .prepare_cached(
            "UPDATE apps SET class = ?3, via = ?4, flows = flows + 1, last_us = ?5, verdict_us = ?6
             WHERE subscriber = ?1 AND app = ?2",
        )?
        .execute(params![subscriber, app.app, app.class.name(), app.via, app.at.get(), verdict_us])?;
    if known == 0 {
        transaction
            .prepare_cached(
                "INSERT INTO apps (subscriber, app, class, via, flows, last_us, verdict_us)
                 SELECT ?1, ?2, ?3, ?4, 1, ?5, ?6 WHERE (SELECT count(*) FROM apps WHERE subscriber = ?1) < ?7",
            )?
            .execute(params![
                subscriber,
                app.app,
                app.class.name(),
                app.via,
                app.at.get(),
                verdict_us,
                APPS_KEPT
            ])?;
    }
    Ok(())
}

/// Of apps that a verdict was told of: others are beyond those that are kept.
fn add_app_bytes(transaction: &Transaction<'_>, add: &AppBytes) -> Result<(), LedgerError> {
    transaction
        .prepare_cached(
            "UPDATE apps SET bytes = min(bytes + ?3, 9223372036854775807) WHERE subscriber = ?1 AND app = ?2",
        )?
        .execute(params![
            name_or_anonymous(add.subscriber.as_ref()),
            add.app.as_str(),
            stored(add.bytes, "bytes of an app")?
        ])?;
    Ok(())
}

fn add_usage(transaction: &Transaction<'_>, usage: &UsageRecord) -> Result<(), LedgerError> {
    // An integer sum beyond 2^63 becomes a REAL in SQLite; `min` brings it back to the largest count there is.
    transaction
        .prepare_cached(
            "INSERT INTO usage (subscriber, class, direction, bytes, packets, dropped_bytes, dropped_packets)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (subscriber, class, direction) DO UPDATE SET
             bytes = min(bytes + excluded.bytes, 9223372036854775807),
             packets = min(packets + excluded.packets, 9223372036854775807),
             dropped_bytes = min(dropped_bytes + excluded.dropped_bytes, 9223372036854775807),
             dropped_packets = min(dropped_packets + excluded.dropped_packets, 9223372036854775807)",
        )?
        .execute(params![
            holder(usage.subscriber.as_ref(), &usage.anonymous),
            usage.class.name(),
            usage.direction.name(),
            stored(usage.bytes, "bytes")?,
            stored(usage.packets, "packets")?,
            stored(usage.dropped_bytes, "dropped bytes")?,
            stored(usage.dropped_packets, "dropped packets")?,
        ])?;
    Ok(())
}

fn write_decision(transaction: &Transaction<'_>, decision: &Decision) -> Result<(), LedgerError> {
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO decisions (id, subscriber, at_us, moment, chosen, trace)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            decision.id.0,
            decision.subscriber.0,
            decision.at.get(),
            decision.moment,
            decision.chosen,
            serde_json::to_string(decision)?,
        ])?;
    Ok(())
}

fn write_message(transaction: &Transaction<'_>, at: Micros, say: &Say) -> Result<(), LedgerError> {
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO messages (decision, subscriber, action, at_us, say) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            say.decision.0,
            say.subscriber.0,
            say.action,
            at.get(),
            serde_json::to_string(say)?,
        ])?;
    Ok(())
}

/// Whose totals they are, as the table has it: a subscriber's id, nothing, or after a space, with which no id begins, a name of the
/// anonymous.
pub fn holder<'a>(subscriber: Option<&'a SubscriberId>, anonymous: &str) -> Cow<'a, str> {
    match subscriber {
        Some(subscriber) => Cow::Borrowed(&subscriber.0),
        None if anonymous.is_empty() => Cow::Borrowed(""),
        None => Cow::Owned(format!(" {anonymous}")),
    }
}

fn name_or_anonymous(subscriber: Option<&SubscriberId>) -> &str {
    subscriber.map_or("", |subscriber| &subscriber.0)
}
