//! What the engine was given since its last snapshot, in the transactions that hold what it led to.

use rusqlite::{Transaction, params};

use super::record::InputRecord;
use super::{Ledger, LedgerError, stored};

pub(super) const SCHEMA: &str = "
-- Inputs of the engine since its last snapshot, oldest first: with the snapshot they make the engine again.
CREATE TABLE journal (
    position INTEGER PRIMARY KEY,
    input    BLOB    NOT NULL
) STRICT;
";

impl Ledger {
    /// The last position ever written; 0: none.
    pub fn journal_end(&self) -> Result<u64, LedgerError> {
        let end: i64 = self
            .reader()
            .prepare_cached("SELECT coalesce(max(position), 0) FROM journal")?
            .query_row([], |row| row.get(0))?;
        Ok(end.unsigned_abs())
    }

    /// Whether the input at `position` is still there.
    pub fn journal_has(&self, position: u64) -> Result<bool, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached("SELECT 1 FROM journal WHERE position = ?1")?;
        Ok(query.exists([stored(position, "position")?])?)
    }

    /// Up to `most` inputs after `position`, oldest first.
    pub fn journal_after(&self, position: u64, most: u32) -> Result<Vec<(u64, Vec<u8>)>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT position, input FROM journal WHERE position > ?1 ORDER BY position LIMIT ?2",
        )?;
        let rows = query.query_map(params![stored(position, "position")?, most], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets inputs before `position`: a snapshot holds what they led to. The one at it stays, so that positions go on
    /// from there.
    pub fn journal_forget(&self, position: u64) -> Result<(), LedgerError> {
        let position = stored(position, "position")?;
        self.writer().prepare_cached("DELETE FROM journal WHERE position < ?1")?.execute([position])?;
        Ok(())
    }
}

pub(super) fn write(transaction: &Transaction<'_>, record: &InputRecord) -> Result<(), LedgerError> {
    if record.journal_anew {
        transaction.prepare_cached("DELETE FROM journal")?.execute([])?;
    }
    for (position, input) in &record.journal {
        transaction
            .prepare_cached("INSERT INTO journal (position, input) VALUES (?1, ?2)")?
            .execute(params![stored(*position, "position")?, input])?;
    }
    Ok(())
}
