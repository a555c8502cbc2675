//! What can go wrong with the store.

use std::fmt;
use std::path::{Path, PathBuf};

/// The store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be made.
    #[error("make the state directory {}: {source}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be made.
    #[error("make {}: {source}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is another process's at the moment.
    #[error("open {}: another agent has it open; stop it, or give this one its own `state_dir`", .0.display())]
    InUse(PathBuf),
    /// The file cannot be opened.
    #[error("open {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<redb::DatabaseError>,
    },
    /// Written by another version of the agent.
    #[error(
        "read the state file: it has layout {found}, expected {expected}; run the agent that wrote it, or move it away"
    )]
    Layout {
        /// As found.
        found: u32,
        /// As needed.
        expected: u32,
    },
    /// An entry that cannot be read.
    #[error(
        "read the state file: entry {entry} of table `{table}` is damaged; move the file away to start anew"
    )]
    Broken {
        /// Where.
        table: &'static str,
        /// Which.
        entry: String,
    },
    /// Reading or writing failed: full disk, I/O error.
    #[error("use the state file: {0}")]
    Database(Box<redb::Error>),
}

impl StoreError {
    pub(super) fn broken(table: &'static str, entry: impl fmt::Display) -> Self {
        Self::Broken { table, entry: entry.to_string() }
    }

    pub(super) fn made(path: &Path, source: std::io::Error) -> Self {
        Self::Make { path: path.to_owned(), source }
    }

    pub(super) fn opening(path: &Path, error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse(path.to_owned()),
            error => Self::Open { path: path.to_owned(), source: Box::new(error) },
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);
