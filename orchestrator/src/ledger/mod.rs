//! What must survive: batch marks, usage totals, sessions, engine state, decisions, pushes, messages, taps.
//!
//! Owns one SQLite file (WAL, `synchronous=FULL`: a transaction that returned is on the disk). Every input of the
//! engine is one transaction, [`Ledger::apply`]: the batch's mark, what it added and every effect it led to become
//! durable together or not at all. Refuses to decide anything, and refuses a file of a newer layout.
//!
//! Its methods block; async callers go through [`Ledger::with`]. Writers take one connection, readers another, so
//! that a long listing never holds up a batch.

mod choices;
#[cfg(test)]
mod fuse;
mod journal;
mod open;
mod overview;
mod policies;
pub mod pushes;
mod read;
mod record;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode};

#[cfg(test)]
pub(crate) use fuse::Fuse;
pub use journal::Journaled;
pub use overview::Overview;
pub use policies::{AppliedPolicy, PolicyChange};
pub use read::{AgentSeen, AppSeen, DecisionRow, MessageRow, MessageState, SessionRow, UsageTotal};
pub use record::{
    AppBytes, AppRecord, Applied, BatchMark, BatchRecord, InputRecord, Reassigned, SessionRecord,
    UsageRecord, holder,
};

/// Layout this build writes, kept in the file's `user_version`.
pub const LAYOUT: i64 = 5;

/// Why the ledger could not do what was asked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another layout than this build knows.
    #[error(
        "ledger {path} has layout {found}, this build knows up to {LAYOUT}: run the newer usher-orchestrator that wrote it, \
         or give this one another state_dir"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
    /// A file that is a database of something else.
    #[error("{path} is a database, but no ledger of usher's: give another state_dir")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or made.
    #[error("ledger {path} cannot be opened: {why}{}", .remedy.map_or(String::new(), |remedy| format!(": {remedy}")))]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
        /// What helps, where it is known.
        remedy: Option<&'static str>,
    },
    /// The disk under the file is full, broken or read-only.
    #[error("ledger {path} cannot be written: {why}: {remedy}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
        /// What helps.
        remedy: &'static str,
    },
    /// A batch that is not the next one of its boot.
    #[error("batch {sequence} of agent {agent} is not the next one: expected {expected}")]
    OutOfOrder {
        /// Whose.
        agent: String,
        /// What came.
        sequence: u64,
        /// What was due.
        expected: u64,
    },
    /// A count that would pass what the ledger can hold (2^63).
    #[error("{what} is beyond what the ledger can hold")]
    TooLarge {
        /// Which number.
        what: &'static str,
    },
    /// A row that cannot be read back.
    #[error("ledger row of {what} cannot be read: {why}")]
    Corrupt {
        /// Which.
        what: String,
        /// Why.
        why: String,
    },
    /// The database refused. What it said is in the message, so it is no source: it would be printed twice.
    #[error("ledger: {why}")]
    Database {
        /// What it said.
        why: String,
        /// What helps, where the disk is at fault.
        remedy: Option<&'static str>,
    },
    /// A record that cannot be written as JSON.
    #[error("ledger: record cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
    /// The blocking task was cancelled, which only happens while the process stops.
    #[error("ledger: stopped while at work")]
    Stopped,
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database { why: error.to_string(), remedy: remedy(&error) }
    }
}

/// What helps where the disk is at fault.
fn remedy(error: &rusqlite::Error) -> Option<&'static str> {
    match error.sqlite_error_code()? {
        ErrorCode::DiskFull => Some("free space on its disk, and start again"),
        ErrorCode::SystemIoFailure => Some("mend its disk, or free space there, and start again"),
        ErrorCode::ReadOnly => Some("make the file, its directory and its disk writable, and start again"),
        _ => None,
    }
}

/// A handle on the ledger; clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Closed before the writer, which then folds the log into the file.
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
    #[cfg(test)]
    fuse: Fuse,
}

impl Ledger {
    /// Opens the file, makes it where there is none, brings an older layout to this build's.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let (writer, reader) = open::open(path)?;
        let shared = Shared {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            #[cfg(test)]
            fuse: Fuse::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The same, of a process that is killed where `fuse` says.
    #[cfg(test)]
    pub(crate) fn open_with_fuse(path: &Path, fuse: Fuse) -> Result<Self, LedgerError> {
        let (writer, reader) = open::open(path)?;
        let (writer, reader) = (Mutex::new(writer), Mutex::new(reader));
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), writer, reader, fuse }) })
    }

    /// A durable step is about to be taken: here tests kill the process.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests hang on to it"))]
    pub(crate) fn durable_step(&self) {
        #[cfg(test)]
        self.shared.fuse.burn();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Runs `work` where blocking is allowed.
    pub async fn with<T, F>(&self, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, LedgerError> + Send + 'static,
    {
        let ledger = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&ledger)).await;
        done.map_err(|_| LedgerError::Stopped)?.map_err(|error| self.named(error))
    }

    /// The error with the file's name, where it is the disk's.
    fn named(&self, error: LedgerError) -> LedgerError {
        match error {
            LedgerError::Database { why, remedy: Some(remedy) } => {
                LedgerError::Disk { path: self.shared.path.clone(), why, remedy }
            }
            other => other,
        }
    }

    /// How many handles share it, work under way included.
    #[cfg(test)]
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// The connection writes go through. A panic while it was held rolled its transaction back, so it stays usable.
    fn writer(&self) -> MutexGuard<'_, Connection> {
        self.durable_step();
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection reads go through.
    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.shared.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SQLite holds signed integers; a count beyond them is refused, never wrapped.
fn stored(count: u64, what: &'static str) -> Result<i64, LedgerError> {
    i64::try_from(count).map_err(|_| LedgerError::TooLarge { what })
}
