//! Pushes in the ledger: one row each, from pending to its outcome.

use rusqlite::{Transaction, params};
use usher_models::units::Micros;

use super::{LedgerError, stored};
use crate::engine::io::Desire;

/// The table of pushes, part of layout 1.
pub(super) const SCHEMA: &str = "
CREATE TABLE pushes (
    id         TEXT PRIMARY KEY,
    subscriber TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    at_us      INTEGER NOT NULL,
    changed_us INTEGER NOT NULL,
    desire     TEXT    NOT NULL,
    record     TEXT    NOT NULL DEFAULT '{}'
) STRICT, WITHOUT ROWID;
CREATE INDEX pushes_of_subscriber ON pushes (subscriber, revision);
CREATE INDEX pushes_by_state ON pushes (state, at_us);
CREATE INDEX pushes_by_time ON pushes (at_us);
";

/// Notes new desired settings as a push to be made, in the transaction of the input that led to them. The newest desire
/// wins: one of the same subscriber that was not begun yet is superseded. Returns the push's id.
pub(super) fn insert_pending(
    transaction: &Transaction<'_>,
    at: Micros,
    desire: &Desire,
) -> Result<String, LedgerError> {
    transaction
        .prepare_cached(
            "UPDATE pushes SET state = 'superseded', changed_us = ?2 WHERE subscriber = ?1 AND state = 'pending'",
        )?
        .execute(params![desire.subscriber.0, at.get()])?;
    let id = uuid::Uuid::now_v7().to_string();
    transaction
        .prepare_cached(
            "INSERT INTO pushes (id, subscriber, revision, state, at_us, changed_us, desire)
             VALUES (?1, ?2, ?3, 'pending', ?4, ?4, ?5)",
        )?
        .execute(params![
            id,
            desire.subscriber.0,
            stored(desire.settings.revision, "settings revision")?,
            at.get(),
            serde_json::to_string(desire)?,
        ])?;
    Ok(id)
}
