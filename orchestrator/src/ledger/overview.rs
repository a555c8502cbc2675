//! Counts and pages for people who look on: nothing here is on the path of a batch.

use rusqlite::{OptionalExtension, params};

use super::read::{SessionRow, UsageTotal};
use super::{Ledger, LedgerError};
use crate::elements::{ElementOutcome, PushId};

/// How much of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overview {
    /// Sessions open.
    pub sessions_open: u64,
    /// Messages not yet handed to the channel.
    pub messages_pending: u64,
    /// Pushes that wait or are under way.
    pub pushes_pending: u64,
    /// Pushes after which an element could not be shown to be back where it was.
    pub pushes_needing_repair: u64,
}

impl Ledger {
    /// Counts what there is.
    pub fn overview(&self) -> Result<Overview, LedgerError> {
        let reader = self.reader();
        let count = |query: &str| -> Result<u64, LedgerError> {
            let count: i64 = reader.prepare_cached(query)?.query_row([], |row| row.get(0))?;
            Ok(u64::try_from(count).unwrap_or(0))
        };
        Ok(Overview {
            sessions_open: count("SELECT count(*) FROM sessions WHERE open = 1")?,
            messages_pending: count("SELECT count(*) FROM messages WHERE sent_us IS NULL AND error IS NULL")?,
            pushes_pending: count(
                "SELECT count(*) FROM pushes WHERE state IN ('pending', 'running', 'confirming')",
            )?,
            pushes_needing_repair: count("SELECT count(*) FROM pushes WHERE state = 'needs_repair'")?,
        })
    }

    /// How many sessions are open on an agent.
    pub fn sessions_open_on(&self, agent: &str) -> Result<u64, LedgerError> {
        let count: i64 = self
            .reader()
            .prepare_cached("SELECT count(*) FROM sessions WHERE agent = ?1 AND open = 1")?
            .query_row([agent], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Up to `limit` open sessions after `(agent, session)`, in that order.
    pub fn open_sessions_after(
        &self,
        (agent, session): (&str, &str),
        limit: u32,
    ) -> Result<Vec<SessionRow>, LedgerError> {
        self.sessions_where(
            "open = 1 AND (agent, session) > (?1, ?2) ORDER BY agent, session LIMIT ?3",
            params![agent, session, limit],
        )
    }

    /// Up to `limit` totals after `(subscriber, class, direction)`, in that order; '' is anonymous traffic, and ' NAME' that of a
    /// prefix with a name.
    pub fn usage_after(
        &self,
        (subscriber, class, direction): (&str, &str, &str),
        limit: u32,
    ) -> Result<Vec<UsageTotal>, LedgerError> {
        self.usage_where(
            "(subscriber, class, direction) > (?1, ?2, ?3) ORDER BY subscriber, class, direction LIMIT ?4",
            params![subscriber, class, direction, limit],
        )
    }

    /// An element's part in the last push that touched it; `None`: none ever did.
    pub fn last_part_of(&self, element: &str) -> Result<Option<(PushId, ElementOutcome)>, LedgerError> {
        let found: Option<(String, String)> = self
            .reader()
            .prepare_cached(
                "SELECT push, outcome FROM push_elements WHERE element = ?1 ORDER BY push DESC LIMIT 1",
            )?
            .query_row([element], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        found
            .map(|(push, outcome)| {
                let outcome = serde_json::from_str(&outcome).map_err(|error| LedgerError::Corrupt {
                    what: format!("push {push}"),
                    why: error.to_string(),
                })?;
                Ok((PushId(push), outcome))
            })
            .transpose()
    }
}
