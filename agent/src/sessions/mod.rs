//! Who is behind an address.
//!
//! Owns the sessions file (YAML or CSV), its checks, and what changed between two readings of it. Refuses half-good files:
//! on any error the sessions stay what they were.
//!
//! ```yaml
//! sessions:
//!   - id: a-1                        # unique in the file, stable for the life of the session
//!     keys: [imsi:001010000000001]   # who the subscriber is, as kind:value
//!     prefixes: [10.0.0.2/32]        # no two sessions share an address
//!     plmn: "00101"                  # serving network, MCC and MNC; optional
//!     rat: nr                        # optional
//!     time_zone: Europe/Paris        # optional
//! ```
//!
//! As CSV the first line names the columns (`id,keys,prefixes,plmn,rat,time_zone`, any order, the last three optional);
//! several keys or prefixes stand in one field, separated by spaces or `;`.

mod check;
mod csv_file;
mod yaml_file;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use crate::place::Place;

/// Largest sessions file that is read.
const MAX_FILE: u64 = 256 * 1024 * 1024;
/// Most sessions of a file.
pub const MAX_SESSIONS: usize = 1_000_000;
/// Most prefixes of a session.
pub const MAX_PREFIXES: usize = 64;
/// Most keys of a session.
pub const MAX_KEYS: usize = 32;

/// A binding of addresses to a subscriber, with its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Unique on the agent, stable for the life of the session.
    pub id: String,
    /// Keys that identify the subscriber, as `kind:value`.
    pub keys: Vec<String>,
    /// Addresses and prefixes, without host bits; none twice, at least one.
    pub prefixes: Vec<IpNet>,
    /// Serving network: MCC followed by MNC (3GPP TS 23.003 clause 2.2); `None` where unknown.
    pub plmn: Option<String>,
    /// Whether the serving network is known and none of the home networks.
    pub roaming: bool,
    /// Radio access, as the file has it.
    pub rat: Option<String>,
    /// IANA name of the time zone where the person is.
    pub time_zone: Option<String>,
}

/// A sessions file that cannot be used; nothing of it was taken over.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// The file cannot be read.
    #[error("read sessions {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any sessions file.
    #[error("read sessions {path}: larger than {MAX_FILE} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file's name does not tell its form.
    #[error("read sessions {path}: the name must end in .yaml, .yml or .csv", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// Something in the file is not as expected.
    #[error("{place}: {message}")]
    Wrong {
        /// Where.
        place: Place,
        /// What is wrong, and what was expected.
        message: String,
    },
    /// Two sessions have one id.
    #[error("{place}: session id `{id}` is given already at {first}: ids must be unique")]
    DuplicateId {
        /// The second.
        place: Place,
        /// The first.
        first: Place,
        /// The id of both.
        id: String,
    },
    /// Two sessions share addresses.
    #[error(transparent)]
    Overlap(Box<Overlap>),
}

/// Two sessions that share addresses.
#[derive(Debug, thiserror::Error)]
#[error(
    "{place}: prefix {prefix} of session `{id}` overlaps {other_prefix} of session `{other_id}` at {other}: an address belongs to one session"
)]
pub struct Overlap {
    /// The later of the two in the file.
    pub place: Place,
    /// Its session.
    pub id: String,
    /// Its prefix.
    pub prefix: IpNet,
    /// The earlier of the two.
    pub other: Place,
    /// Its session.
    pub other_id: String,
    /// Its prefix.
    pub other_prefix: IpNet,
}

/// All sessions of a file, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    by_id: BTreeMap<String, Session>,
}

/// What changed between two readings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sessions that are new.
    pub opened: Vec<Session>,
    /// Sessions that changed: as they were, and as they are.
    pub changed: Vec<(Session, Session)>,
    /// Sessions that are gone, as they were.
    pub closed: Vec<Session>,
}

impl Sessions {
    /// Reads a file, YAML or CSV by its name's ending.
    pub fn load(path: &Path, home_plmns: &[String]) -> Result<Self, SessionsError> {
        let file = path.display().to_string();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("yaml" | "yml") => Self::from_yaml(&file, &read(path)?, home_plmns),
            Some("csv") => Self::from_csv(&file, &read(path)?, home_plmns),
            _ => Err(SessionsError::Form { path: path.to_owned() }),
        }
    }

    /// Reads YAML text that came from `file`.
    pub fn from_yaml(file: &str, text: &str, home_plmns: &[String]) -> Result<Self, SessionsError> {
        let file: Arc<str> = file.into();
        check::sessions(&yaml_file::rows(&file, text)?, &file, home_plmns)
    }

    /// Reads CSV text (RFC 4180) that came from `file`.
    pub fn from_csv(file: &str, text: &str, home_plmns: &[String]) -> Result<Self, SessionsError> {
        let file: Arc<str> = file.into();
        check::sessions(&csv_file::rows(&file, text)?, &file, home_plmns)
    }

    /// The session of an id.
    pub fn get(&self, id: &str) -> Option<&Session> {
        self.by_id.get(id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.by_id.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.changed.is_empty() && self.closed.is_empty()
    }
}

/// What must happen to come from `old` to `new`. Prefixes may move between sessions: unbind closed and changed ones first.
pub fn diff(old: &Sessions, new: &Sessions) -> Changes {
    let mut changes = Changes::default();
    for session in new.iter() {
        match old.get(&session.id) {
            None => changes.opened.push(session.clone()),
            Some(before) if before != session => changes.changed.push((before.clone(), session.clone())),
            Some(_) => {}
        }
    }
    changes.closed = old.iter().filter(|session| new.get(&session.id).is_none()).cloned().collect();
    changes
}

fn read(path: &Path) -> Result<String, SessionsError> {
    let failed = |source| SessionsError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(SessionsError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
