//! What others may ask of the ledger. Listings are bounded by the caller and newest first.

use rusqlite::{OptionalExtension, Row, params};
use usher_models::Class;
use usher_models::units::{Bytes, Micros, SubscriberId};

use super::{BatchMark, Ledger, LedgerError};
use crate::engine::Learned;
use crate::engine::io::{Decision, DecisionId, DirectionName, Say};

/// A session as last reported.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SessionRow {
    /// Where it is.
    pub agent: String,
    /// Its id there.
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
    /// When it was last reported.
    pub changed: Micros,
}

/// All that was ever counted of one subscriber, class and direction.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UsageTotal {
    /// Whose; `None`: anonymous.
    pub subscriber: Option<SubscriberId>,
    /// The name of the prefix that anonymous traffic is from, where it has one.
    pub anonymous: Option<String>,
    /// Kind of use.
    pub class: Class,
    /// Which way.
    pub direction: DirectionName,
    /// Let through.
    pub bytes: Bytes,
    /// Let through.
    pub packets: u64,
    /// Held back.
    pub dropped_bytes: Bytes,
    /// Held back.
    pub dropped_packets: u64,
}

/// An app a subscriber was seen to use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AppSeen {
    /// Its name in the catalogue.
    pub app: String,
    /// Its class.
    pub class: Class,
    /// What the last verdict rested on.
    pub via: String,
    /// Flows so far.
    pub flows: u64,
    /// Innermost IP bytes let through so far, both directions, from each flow's verdict on.
    pub bytes: Bytes,
    /// When the last verdict came.
    pub last: Micros,
    /// Microseconds from the last such flow's first packet to its verdict.
    pub verdict_us: u64,
}

/// A decision with its whole trace.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DecisionRow {
    /// The trace.
    pub decision: Decision,
    /// What became of its message, where it sent one.
    pub message: Option<MessageState>,
    /// When its link was accepted.
    pub tapped: Option<Micros>,
    /// When it was declined.
    pub declined: Option<Micros>,
}

/// Where a message stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// To be sent.
    Pending,
    /// Taken by the channel.
    Sent(Micros),
    /// Not sent, and why.
    Failed(String),
}

/// A message, and so a contact with a person.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MessageRow {
    /// What is said.
    pub say: Say,
    /// When it was decided.
    pub at: Micros,
    /// Where it stands.
    pub state: MessageState,
    /// When its link was accepted.
    pub tapped: Option<Micros>,
    /// When it was declined.
    pub declined: Option<Micros>,
}

/// An agent and the last of its batches that was applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AgentSeen {
    /// Its name.
    pub agent: String,
    /// The boot, in hex.
    pub boot: String,
    /// The batch.
    pub sequence: u64,
    /// End of its interval, event time.
    pub end: Micros,
    /// When it was applied.
    pub applied: Micros,
}

impl Ledger {
    /// The last batch applied of an agent: of its newest boot where none is named. `None`: none yet.
    pub fn last_batch(&self, agent: &str, boot: Option<&[u8]>) -> Result<Option<BatchMark>, LedgerError> {
        let reader = self.reader();
        let row = |row: &Row<'_>| Ok(BatchMark { boot: row.get(0)?, sequence: count(row, 1)? });
        Ok(match boot {
            Some(boot) => reader
                .prepare_cached("SELECT boot, sequence FROM batches WHERE agent = ?1 AND boot = ?2")?
                .query_row(params![agent, boot], row)
                .optional()?,
            None => reader
                .prepare_cached(
                    "SELECT boot, sequence FROM batches WHERE agent = ?1 ORDER BY applied_us DESC, end_us DESC LIMIT 1",
                )?
                .query_row([agent], row)
                .optional()?,
        })
    }

    /// Every agent that ever had a batch applied.
    pub fn agents(&self) -> Result<Vec<AgentSeen>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT agent, lower(hex(boot)), sequence, end_us, max(applied_us) FROM batches GROUP BY agent ORDER BY agent",
        )?;
        let rows = query.query_map([], |row| {
            Ok(AgentSeen {
                agent: row.get(0)?,
                boot: row.get(1)?,
                sequence: count(row, 2)?,
                end: micros(row, 3)?,
                applied: micros(row, 4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whose a session is, closed ones of the last day included. `None`: no such session, or nobody known.
    pub fn subscriber_of(&self, agent: &str, session: &str) -> Result<Option<SubscriberId>, LedgerError> {
        let subscriber: Option<String> = self
            .reader()
            .prepare_cached("SELECT subscriber FROM sessions WHERE agent = ?1 AND session = ?2")?
            .query_row([agent, session], |row| row.get(0))
            .optional()?;
        Ok(subscriber.and_then(known))
    }

    /// Every session that is known, open and lately closed.
    pub fn sessions(&self) -> Result<Vec<SessionRow>, LedgerError> {
        self.sessions_where("1", params![])
    }

    /// The last batch applied of every boot of every agent.
    pub fn batch_marks(&self) -> Result<Vec<(String, BatchMark)>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached("SELECT boot, sequence, agent FROM batches")?;
        let rows = query.query_map([], |row| {
            Ok((row.get(2)?, BatchMark { boot: row.get(0)?, sequence: count(row, 1)? }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Every session that is open.
    pub fn open_sessions(&self) -> Result<Vec<SessionRow>, LedgerError> {
        self.sessions_where("open = 1 ORDER BY agent, session", params![])
    }

    /// The sessions of a subscriber, open and lately closed.
    pub fn sessions_of(&self, subscriber: &SubscriberId) -> Result<Vec<SessionRow>, LedgerError> {
        self.sessions_where("subscriber = ?1 ORDER BY agent, session", params![subscriber.0])
    }

    /// Every session of an agent, open and lately closed.
    pub fn sessions_on(&self, agent: &str) -> Result<Vec<SessionRow>, LedgerError> {
        self.sessions_where("agent = ?1 ORDER BY agent, session", params![agent])
    }

    pub(super) fn sessions_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<SessionRow>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(&format!(
            "SELECT agent, session, subscriber, open, prefixes, keys, serving_plmn, roaming, rat, time_zone, since_us,
             changed_us FROM sessions WHERE {condition}"
        ))?;
        let mut rows = query.query(values)?;
        let mut sessions = Vec::new();
        while let Some(row) = rows.next()? {
            let session: String = row.get(1)?;
            sessions.push(SessionRow {
                agent: row.get(0)?,
                subscriber: known(row.get(2)?),
                open: row.get(3)?,
                prefixes: decoded(&row.get::<_, String>(4)?, || format!("session {session}"))?,
                keys: decoded(&row.get::<_, String>(5)?, || format!("session {session}"))?,
                serving_plmn: row.get(6)?,
                roaming: row.get(7)?,
                rat: row.get(8)?,
                time_zone: row.get(9)?,
                since: micros(row, 10)?,
                changed: micros(row, 11)?,
                session,
            });
        }
        Ok(sessions)
    }

    /// The totals of everyone, anonymous traffic included.
    pub fn usage(&self) -> Result<Vec<UsageTotal>, LedgerError> {
        self.usage_where("1 ORDER BY subscriber, class, direction", params![])
    }

    /// The totals of a subscriber; of anonymous traffic for `None`.
    pub fn usage_of(&self, subscriber: Option<&SubscriberId>) -> Result<Vec<UsageTotal>, LedgerError> {
        self.usage_where(
            "subscriber = ?1 ORDER BY class, direction",
            params![subscriber.map_or("", |subscriber| &subscriber.0)],
        )
    }

    pub(super) fn usage_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<UsageTotal>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(&format!(
            "SELECT subscriber, class, direction, bytes, packets, dropped_bytes, dropped_packets FROM usage
             WHERE {condition}"
        ))?;
        let mut rows = query.query(values)?;
        let mut totals = Vec::new();
        while let Some(row) = rows.next()? {
            let mut subscriber: String = row.get(0)?;
            let anonymous = subscriber.strip_prefix(' ').map(str::to_owned);
            if anonymous.is_some() {
                subscriber.clear();
            }
            totals.push(UsageTotal {
                anonymous,
                class: class(&row.get::<_, String>(1)?)?,
                direction: direction(&row.get::<_, String>(2)?)?,
                bytes: Bytes(count(row, 3)?),
                packets: count(row, 4)?,
                dropped_bytes: Bytes(count(row, 5)?),
                dropped_packets: count(row, 6)?,
                subscriber: known(subscriber),
            });
        }
        Ok(totals)
    }

    /// The apps a subscriber was seen to use, last used first.
    pub fn apps_of(&self, subscriber: &SubscriberId) -> Result<Vec<AppSeen>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT app, class, via, flows, last_us, verdict_us, bytes FROM apps WHERE subscriber = ?1 ORDER BY last_us DESC, app",
        )?;
        let mut rows = query.query([&subscriber.0])?;
        let mut apps = Vec::new();
        while let Some(row) = rows.next()? {
            apps.push(AppSeen {
                app: row.get(0)?,
                class: class(&row.get::<_, String>(1)?)?,
                via: row.get(2)?,
                flows: count(row, 3)?,
                last: micros(row, 4)?,
                verdict_us: count(row, 5)?,
                bytes: Bytes(count(row, 6)?),
            });
        }
        Ok(apps)
    }

    /// One decision with its trace.
    pub fn decision(&self, id: &DecisionId) -> Result<Option<DecisionRow>, LedgerError> {
        Ok(self.decisions_where("id = ?1", params![id.0])?.into_iter().next())
    }

    /// The last `limit` decisions, of one subscriber or of all, newest first.
    pub fn decisions(
        &self,
        subscriber: Option<&SubscriberId>,
        limit: u32,
    ) -> Result<Vec<DecisionRow>, LedgerError> {
        match subscriber {
            Some(subscriber) => self.decisions_where(
                "decisions.subscriber = ?1 ORDER BY decisions.at_us DESC, id LIMIT ?2",
                params![subscriber.0, limit],
            ),
            None => self.decisions_where("1 ORDER BY decisions.at_us DESC, id LIMIT ?1", params![limit]),
        }
    }

    fn decisions_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<DecisionRow>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(&format!(
            "SELECT trace, messages.decision, sent_us, error, taps.at_us, id, declines.at_us FROM decisions
             LEFT JOIN messages ON messages.decision = id LEFT JOIN taps ON taps.decision = id
             LEFT JOIN declines ON declines.decision = id WHERE {condition}"
        ))?;
        let mut rows = query.query(values)?;
        let mut decisions = Vec::new();
        while let Some(row) = rows.next()? {
            let id: String = row.get(5)?;
            let message = match row.get::<_, Option<String>>(1)? {
                Some(_) => Some(message_state(row, 2)?),
                None => None,
            };
            decisions.push(DecisionRow {
                decision: decoded(&row.get::<_, String>(0)?, || format!("decision {id}"))?,
                message,
                tapped: row.get::<_, Option<i64>>(4)?.map(Micros::new),
                declined: row.get::<_, Option<i64>>(6)?.map(Micros::new),
            });
        }
        Ok(decisions)
    }

    /// One message.
    pub fn message(&self, decision: &DecisionId) -> Result<Option<MessageRow>, LedgerError> {
        Ok(self.messages_where("messages.decision = ?1", params![decision.0])?.into_iter().next())
    }

    /// The last `limit` messages, to one subscriber or to all, newest first: the contacts with people.
    pub fn messages(
        &self,
        subscriber: Option<&SubscriberId>,
        limit: u32,
    ) -> Result<Vec<MessageRow>, LedgerError> {
        match subscriber {
            Some(subscriber) => self.messages_where(
                "subscriber = ?1 ORDER BY messages.at_us DESC, messages.decision LIMIT ?2",
                params![subscriber.0, limit],
            ),
            None => self
                .messages_where("1 ORDER BY messages.at_us DESC, messages.decision LIMIT ?1", params![limit]),
        }
    }

    /// Messages still to be sent, oldest first.
    pub fn pending_messages(&self, limit: u32) -> Result<Vec<MessageRow>, LedgerError> {
        self.messages_where(
            "sent_us IS NULL AND error IS NULL ORDER BY messages.at_us, messages.decision LIMIT ?1",
            params![limit],
        )
    }

    fn messages_where(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<MessageRow>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(&format!(
            "SELECT say, messages.at_us, sent_us, error, taps.at_us, messages.decision, declines.at_us FROM messages
             LEFT JOIN taps ON taps.decision = messages.decision
             LEFT JOIN declines ON declines.decision = messages.decision WHERE {condition}"
        ))?;
        let mut rows = query.query(values)?;
        let mut messages = Vec::new();
        while let Some(row) = rows.next()? {
            let id: String = row.get(5)?;
            messages.push(MessageRow {
                say: decoded(&row.get::<_, String>(0)?, || format!("message {id}"))?,
                at: micros(row, 1)?,
                state: message_state(row, 2)?,
                tapped: row.get::<_, Option<i64>>(4)?.map(Micros::new),
                declined: row.get::<_, Option<i64>>(6)?.map(Micros::new),
            });
        }
        Ok(messages)
    }

    /// When the link of this decision was accepted; `None`: not yet.
    pub fn tapped(&self, decision: &DecisionId) -> Result<Option<Micros>, LedgerError> {
        let at: Option<i64> = self
            .reader()
            .prepare_cached("SELECT at_us FROM taps WHERE decision = ?1")?
            .query_row([&decision.0], |row| row.get(0))
            .optional()?;
        Ok(at.map(Micros::new))
    }

    /// The engine's state of every subscriber, as JSON.
    pub fn engine_rows(&self) -> Result<Vec<(SubscriberId, String)>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached("SELECT subscriber, state FROM engine ORDER BY subscriber")?;
        let rows = query.query_map([], |row| Ok((SubscriberId(row.get(0)?), row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The engine's state of one subscriber, as JSON.
    pub fn engine_row(&self, subscriber: &SubscriberId) -> Result<Option<String>, LedgerError> {
        Ok(self
            .reader()
            .prepare_cached("SELECT state FROM engine WHERE subscriber = ?1")?
            .query_row([&subscriber.0], |row| row.get(0))
            .optional()?)
    }

    /// Where the canary last stood, as JSON.
    pub fn guard(&self) -> Result<Option<String>, LedgerError> {
        self.switch("guard")
    }

    /// The kill switch: true stops every decision.
    pub fn stopped(&self) -> Result<bool, LedgerError> {
        Ok(self.switch("stop")?.as_deref() == Some("true"))
    }

    /// What the engine has learnt, as of the last time it was kept.
    pub fn learned(&self) -> Result<Option<Learned>, LedgerError> {
        self.switch("learned")?.map(|learned| decoded(&learned, || "what was learnt".to_owned())).transpose()
    }

    fn switch(&self, name: &str) -> Result<Option<String>, LedgerError> {
        let value = self
            .reader()
            .prepare_cached("SELECT value FROM switches WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        Ok(value)
    }
}

/// '' stands for nobody.
fn known(subscriber: String) -> Option<SubscriberId> {
    (!subscriber.is_empty()).then_some(SubscriberId(subscriber))
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn micros(row: &Row<'_>, column: usize) -> rusqlite::Result<Micros> {
    row.get(column).map(Micros::new)
}

fn message_state(row: &Row<'_>, sent_at: usize) -> rusqlite::Result<MessageState> {
    Ok(match (row.get::<_, Option<i64>>(sent_at)?, row.get::<_, Option<String>>(sent_at + 1)?) {
        (Some(at), _) => MessageState::Sent(Micros::new(at)),
        (None, Some(error)) => MessageState::Failed(error),
        (None, None) => MessageState::Pending,
    })
}

fn class(name: &str) -> Result<Class, LedgerError> {
    name.parse().map_err(|error| LedgerError::Corrupt { what: "usage".to_owned(), why: format!("{error}") })
}

fn direction(name: &str) -> Result<DirectionName, LedgerError> {
    match name {
        "up" => Ok(DirectionName::Up),
        "down" => Ok(DirectionName::Down),
        other => Err(LedgerError::Corrupt { what: "usage".to_owned(), why: format!("direction `{other}`") }),
    }
}

pub(super) fn decoded<T: serde::de::DeserializeOwned>(
    json: &str,
    what: impl FnOnce() -> String,
) -> Result<T, LedgerError> {
    serde_json::from_str(json).map_err(|error| LedgerError::Corrupt { what: what(), why: error.to_string() })
}
