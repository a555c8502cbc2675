//! What the engine was given since its last snapshot, in the transactions that hold what it led to.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Transaction, params};

use super::record::InputRecord;
use super::{Ledger, LedgerError, stored};
use crate::engine::io::Digest;

pub(super) const SCHEMA: &str = "
-- Inputs of the engine since its last snapshot, oldest first: with the snapshot they make the engine again.
CREATE TABLE journal (
    position INTEGER PRIMARY KEY,
    input    BLOB    NOT NULL
) STRICT;
";

/// Since layout 4: what the engine answered each input with, so that a replay can be held to it.
pub(super) const EFFECTS: &str = "ALTER TABLE journal ADD COLUMN effects BLOB";

/// An input as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journaled {
    /// Its place; one higher than that of the input before, but where another engine begins.
    pub position: u64,
    /// When it was stepped, and the input, encoded.
    pub input: Vec<u8>,
    /// The digest of what it led to; `None`: nothing.
    pub effects: Option<Digest>,
}

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
    pub fn journal_after(&self, position: u64, most: u32) -> Result<Vec<Journaled>, LedgerError> {
        after(&self.reader(), position, most)
    }

    /// The same of a ledger that a running daemon has open, at `path`; nothing in it is touched.
    pub fn journal_of(path: &Path, position: u64, most: u32) -> Result<Vec<Journaled>, LedgerError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        after(&Connection::open_with_flags(path, flags)?, position, most)
    }

    /// Forgets inputs before `position`: a snapshot holds what they led to. The one at it stays, so that positions go on
    /// from there.
    pub fn journal_forget(&self, position: u64) -> Result<(), LedgerError> {
        let position = stored(position, "position")?;
        self.writer().prepare_cached("DELETE FROM journal WHERE position < ?1")?.execute([position])?;
        Ok(())
    }
}

fn after(reader: &Connection, position: u64, most: u32) -> Result<Vec<Journaled>, LedgerError> {
    let mut query = reader.prepare_cached(
        "SELECT position, input, effects FROM journal WHERE position > ?1 ORDER BY position LIMIT ?2",
    )?;
    let rows = query.query_map(params![stored(position, "position")?, most], |row| {
        let effects: Option<[u8; 16]> = row.get(2)?;
        let position = row.get::<_, i64>(0)?.unsigned_abs();
        Ok(Journaled { position, input: row.get(1)?, effects: effects.map(Digest) })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn write(transaction: &Transaction<'_>, record: &InputRecord) -> Result<(), LedgerError> {
    if record.journal_anew {
        transaction.prepare_cached("DELETE FROM journal")?.execute([])?;
    }
    for row in &record.journal {
        let effects = row.effects.map(|digest| digest.0);
        transaction
            .prepare_cached("INSERT INTO journal (position, input, effects) VALUES (?1, ?2, ?3)")?
            .execute(params![stored(row.position, "position")?, row.input, effects])?;
    }
    Ok(())
}
