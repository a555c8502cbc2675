//! Policies that an operator applied over the one in the file: at most one that was confirmed, and one on trial.
//!
//! A row changes in the transaction that puts the policy in force, so that after a kill the next process runs what the
//! last one did, and knows until when.

use rusqlite::{Row, Transaction, params};
use usher_models::units::Micros;

use super::{Ledger, LedgerError};

pub(super) const SCHEMA: &str = "
-- Policies put in force over the file's. `confirm_by_us` NULL: it was confirmed; else it is on trial until then.
CREATE TABLE policies (
    on_trial      INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    text          TEXT    NOT NULL,
    in_place_of   TEXT    NOT NULL,
    at_us         INTEGER NOT NULL,
    confirm_by_us INTEGER
) STRICT;
";

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedPolicy {
    /// Its file's name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Revision of the file's policy when it was applied: with another one in the file, the file has the last word.
    pub in_place_of: String,
    /// When it was put in force.
    pub at: Micros,
    /// It goes at this time unless it is confirmed; `None`: it was.
    pub confirm_by: Option<Micros>,
}

/// What becomes of applied policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyChange {
    /// One comes into force, on trial, in place of another on trial.
    Try(AppliedPolicy),
    /// The one on trial stays.
    Confirm,
    /// The one on trial goes.
    Revert,
    /// The file has the last word: all go.
    Forget,
}

impl Ledger {
    /// The policy that was confirmed, and the one on trial.
    pub fn policies(&self) -> Result<(Option<AppliedPolicy>, Option<AppliedPolicy>), LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT on_trial, name, text, in_place_of, at_us, confirm_by_us FROM policies ORDER BY on_trial",
        )?;
        let (mut confirmed, mut on_trial) = (None, None);
        for row in query.query_map([], read)? {
            let (is_on_trial, policy) = row?;
            *(if is_on_trial { &mut on_trial } else { &mut confirmed }) = Some(policy);
        }
        Ok((confirmed, on_trial))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<(bool, AppliedPolicy)> {
    let policy = AppliedPolicy {
        name: row.get(1)?,
        text: row.get(2)?,
        in_place_of: row.get(3)?,
        at: Micros::new(row.get(4)?),
        confirm_by: row.get::<_, Option<i64>>(5)?.map(Micros::new),
    };
    Ok((row.get(0)?, policy))
}

pub(super) fn write(transaction: &Transaction<'_>, change: &PolicyChange) -> Result<(), LedgerError> {
    match change {
        PolicyChange::Try(policy) => {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO policies VALUES (1, ?1, ?2, ?3, ?4, ?5)")?
                .execute(params![
                    policy.name,
                    policy.text,
                    policy.in_place_of,
                    policy.at.get(),
                    policy.confirm_by.map(Micros::get)
                ])?;
        }
        PolicyChange::Confirm => {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO policies SELECT 0, name, text, in_place_of, at_us, NULL FROM policies
                     WHERE on_trial = 1",
                )?
                .execute([])?;
            transaction.prepare_cached("DELETE FROM policies WHERE on_trial = 1")?.execute([])?;
        }
        PolicyChange::Revert => {
            transaction.prepare_cached("DELETE FROM policies WHERE on_trial = 1")?.execute([])?;
        }
        PolicyChange::Forget => {
            transaction.prepare_cached("DELETE FROM policies")?.execute([])?;
        }
    }
    Ok(())
}
