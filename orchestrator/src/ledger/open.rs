//! Opening the file: pragmas, the check that it is ours and of a layout we know, and the steps from older layouts.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{LAYOUT, LedgerError, journal, policies, pushes, record, remedy};

/// `application_id` of a ledger: "USHR".
const APPLICATION: i64 = 0x5553_4852;

/// A step from one layout to the next. The first makes an empty file a ledger.
const STEPS: [&[&str]; 5] = [
    &[include_str!("schema.sql"), pushes::SCHEMA],
    &[journal::SCHEMA],
    &[record::DECLINES],
    &[journal::EFFECTS, policies::SCHEMA],
    &["ALTER TABLE apps ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0"],
];

/// Longest wait for another process (a backup) that holds the file.
const BUSY: Duration = Duration::from_secs(5);

/// A connection for writing and one for reading.
pub(super) fn open(path: &Path) -> Result<(Connection, Connection), LedgerError> {
    let failed = |error: rusqlite::Error| LedgerError::Open {
        path: path.to_owned(),
        why: error.to_string(),
        remedy: remedy(&error),
    };
    let mut writer = Connection::open(path).map_err(failed)?;
    writer.busy_timeout(BUSY).map_err(failed)?;
    let layout: i64 = writer.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let application: i64 =
        writer.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    let tables: i64 =
        writer.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION && (application != 0 || tables != 0) {
        return Err(LedgerError::Foreign { path: path.to_owned() });
    }
    if layout > LAYOUT {
        return Err(LedgerError::Newer { path: path.to_owned(), found: layout });
    }
    writer.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
    writer.pragma_update(None, "synchronous", "full").map_err(failed)?;
    writer.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    migrate(&mut writer, layout).map_err(failed)?;
    let reader =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(failed)?;
    reader.busy_timeout(BUSY).map_err(failed)?;
    Ok((writer, reader))
}

/// Every step still to go, in one transaction: a crash in the middle leaves the old layout.
fn migrate(writer: &mut Connection, from: i64) -> rusqlite::Result<()> {
    if from == LAYOUT {
        return Ok(());
    }
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (step, layout) in STEPS.iter().zip(1_i64..) {
        if layout > from {
            for statements in *step {
                transaction.execute_batch(statements)?;
            }
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn a_ledger_of_a_newer_layout_is_refused_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        drop(Ledger::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", LAYOUT + 1).unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(matches!(error, LedgerError::Newer { found, .. } if found == LAYOUT + 1), "{error}");
        assert!(error.to_string().contains("this build knows up to 5"), "{error}");
        let layout: i64 = Connection::open(&path)
            .unwrap()
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(layout, LAYOUT + 1);
    }

    #[test]
    fn a_database_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.sqlite");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Foreign { .. })));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(
            &path,
            "not a database, but long enough to have a header of a hundred bytes or so ".repeat(4),
        )
        .unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(error.to_string().contains("notes.txt"), "{error}");
        let told = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(told.matches("not a database").count(), 1, "{told}");
    }

    #[test]
    fn a_ledger_opens_again_and_syncs_fully() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        drop(Ledger::open(&path).unwrap());
        let ledger = Ledger::open(&path).unwrap();
        let writer = ledger.writer();
        let journal: String = writer.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        let synchronous: i64 = writer.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", 2));
    }
}
