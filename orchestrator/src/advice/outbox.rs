//! The channel `outbox`: one file a message in a directory, for the operator's own sender to pick up.
//!
//! A file is named after its decision and appears whole or not at all; delivering twice leaves one file. A sender that
//! removes files after sending keeps the names it has sent: after a crash a message may be written once more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use usher_models::units::{Micros, SubscriberId};

use super::Metrics;
use super::link::Links;
use crate::engine::io::{DecisionId, Say};

/// Messages that may wait unless the operator says otherwise.
const WAITING_MAX: usize = 100_000;

/// One message, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The decision it comes from; also the file's name.
    pub decision: DecisionId,
    /// The subscriber's pseudonym; the operator's sender knows the number behind it.
    pub to: SubscriberId,
    /// What to say.
    pub text: String,
    /// What to open to accept.
    pub link: String,
    /// When the link ends: RFC 3339, UTC. Not worth sending after that.
    pub expires: jiff::Timestamp,
}

impl Message {
    /// The message of a [`Say`], with its link. The same `say` always gives the same message.
    pub fn of(say: &Say, links: &Links) -> Self {
        Self {
            decision: say.decision.clone(),
            to: say.subscriber.clone(),
            text: say.text.clone(),
            link: links.sign(&say.decision, say.expires),
            expires: jiff::Timestamp::from_microsecond(say.expires.get()).unwrap_or(jiff::Timestamp::MAX),
        }
    }

    /// When the link ends.
    pub fn expires(&self) -> Micros {
        Micros::new(self.expires.as_microsecond())
    }
}

/// What a delivery did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// The file was written.
    Written,
    /// It was there already; nothing was changed.
    Already,
}

/// Why a message is not in the outbox. Trying again later is right in each case but the first.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The decision's id cannot be a file name.
    #[error("decision id `{0}` cannot name a file: expected letters, digits, `-` and `_`, at most 128")]
    Name(DecisionId),
    /// Nobody picks the messages up.
    #[error("the outbox {path} holds {waiting} messages already: see to the sender that empties it")]
    Full {
        /// The directory.
        path: PathBuf,
        /// Files in it.
        waiting: usize,
    },
    /// The file system refused.
    #[error("cannot write to the outbox {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A directory of messages to send.
#[derive(Debug)]
pub struct Outbox {
    directory: PathBuf,
    waiting_max: usize,
    /// At least as many as there are: a sender may have removed some since.
    waiting: AtomicUsize,
    metrics: Metrics,
}

impl Outbox {
    /// Opens the directory, making it (mode 0750) where it is missing, and clears away what a crash left half written.
    pub fn open(directory: &Path, metrics: Metrics) -> Result<Self, OutboxError> {
        let error = |source| OutboxError::Io { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(error)?;
        for entry in fs::read_dir(directory).map_err(error)? {
            let entry = entry.map_err(error)?;
            if is_half_written(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).map_err(error)?;
            }
        }
        let outbox = Self {
            directory: directory.to_owned(),
            waiting_max: WAITING_MAX,
            waiting: AtomicUsize::new(0),
            metrics,
        };
        outbox.waiting.store(outbox.count().map_err(error)?, Ordering::Relaxed);
        Ok(outbox)
    }

    /// The same outbox with room for at most `waiting_max` messages.
    #[must_use]
    pub fn with_room_for(mut self, waiting_max: usize) -> Self {
        self.waiting_max = waiting_max;
        self
    }

    /// Puts a message into the outbox. Returns once it would survive a power cut. Blocks on the disk.
    pub fn deliver(&self, message: &Message) -> Result<Delivered, OutboxError> {
        let delivered = self.write(message);
        match &delivered {
            Ok(Delivered::Written) => self.metrics.outbox_delivered.inc(),
            Ok(Delivered::Already) => self.metrics.outbox_repeated.inc(),
            Err(_) => self.metrics.outbox_failed.inc(),
        };
        delivered
    }

    fn write(&self, message: &Message) -> Result<Delivered, OutboxError> {
        let id = &message.decision.0;
        let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > 128 || !id.chars().all(named) {
            return Err(OutboxError::Name(message.decision.clone()));
        }
        let path = self.directory.join(format!("{id}.json"));
        let error = |source| OutboxError::Io { path: path.clone(), source };
        if path.try_exists().map_err(error)? {
            return Ok(Delivered::Already);
        }
        self.check_room()?;
        let mut text = serde_json::to_vec_pretty(message).map_err(|e| error(e.into()))?;
        text.push(b'\n');
        let half = self.directory.join(format!(".{id}.half"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&half)
            .map_err(error)?;
        file.write_all(&text).map_err(error)?;
        file.sync_all().map_err(error)?;
        fs::rename(&half, &path).map_err(error)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(error)?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Delivered::Written)
    }

    fn check_room(&self) -> Result<(), OutboxError> {
        if self.waiting.load(Ordering::Relaxed) < self.waiting_max {
            return Ok(());
        }
        // The sender has probably taken some: look before refusing.
        let waiting =
            self.count().map_err(|source| OutboxError::Io { path: self.directory.clone(), source })?;
        self.waiting.store(waiting, Ordering::Relaxed);
        if waiting < self.waiting_max {
            return Ok(());
        }
        Err(OutboxError::Full { path: self.directory.clone(), waiting })
    }

    fn count(&self) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            count += usize::from(Path::new(&name).extension().is_some_and(|extension| extension == "json"));
        }
        Ok(count)
    }
}

fn is_half_written(name: &str) -> bool {
    name.starts_with('.') && Path::new(name).extension().is_some_and(|extension| extension == "half")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn message(id: &str) -> Message {
        let say = Say {
            decision: DecisionId(id.into()),
            subscriber: SubscriberId("line-7".into()),
            action: "roam_pass".into(),
            text: "You're in Testland. A day pass is 3.00.".into(),
            tap: BTreeMap::new(),
            tap_seconds: 86_400,
            regulated: false,
            expires: Micros::new(1_700_000_000_000_000),
        };
        Message::of(&say, &Links::with_key([1; 32], "https://usher.example"))
    }

    fn files(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_message_delivered_again_and_again_is_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(directory.path(), Metrics::default()).unwrap();
        let message = message("ab01");
        assert_eq!(outbox.deliver(&message).unwrap(), Delivered::Written);
        let first = fs::read(directory.path().join("ab01.json")).unwrap();
        assert_eq!(outbox.deliver(&message).unwrap(), Delivered::Already);
        let reopened = Outbox::open(directory.path(), Metrics::default()).unwrap();
        assert_eq!(reopened.deliver(&message).unwrap(), Delivered::Already);
        assert_eq!(files(directory.path()), ["ab01.json"]);
        assert_eq!(fs::read(directory.path().join("ab01.json")).unwrap(), first);
        assert_eq!(serde_json::from_slice::<Message>(&first).unwrap(), message);
        let json: serde_json::Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(json["expires"], "2023-11-14T22:13:20Z");
        assert_eq!(json["to"], "line-7");
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_no_message_and_the_next_delivery_heals_it() {
        let directory = tempfile::tempdir().unwrap();
        // What a process killed in the middle leaves: half a file under the temporary name.
        fs::write(directory.path().join(".ab01.half"), b"{\"decision\": \"ab").unwrap();
        let outbox = Outbox::open(directory.path(), Metrics::default()).unwrap();
        assert!(files(directory.path()).is_empty(), "half a message is never seen");
        fs::write(
            directory.path().join(".ab01.half"),
            b"{\"decision\": \"ab and much more than the message will have".repeat(50),
        )
        .unwrap();
        assert_eq!(outbox.deliver(&message("ab01")).unwrap(), Delivered::Written);
        assert_eq!(files(directory.path()), ["ab01.json"]);
        let read: Message =
            serde_json::from_slice(&fs::read(directory.path().join("ab01.json")).unwrap()).unwrap();
        assert_eq!(read, message("ab01"));
    }

    #[test]
    fn a_full_outbox_refuses_until_the_sender_has_taken_some() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(directory.path(), Metrics::default()).unwrap().with_room_for(2);
        outbox.deliver(&message("a1")).unwrap();
        outbox.deliver(&message("a2")).unwrap();
        assert!(matches!(outbox.deliver(&message("a3")), Err(OutboxError::Full { waiting: 2, .. })));
        assert_eq!(
            outbox.deliver(&message("a2")).unwrap(),
            Delivered::Already,
            "what is there needs no room"
        );
        fs::remove_file(directory.path().join("a1.json")).unwrap();
        assert_eq!(outbox.deliver(&message("a3")).unwrap(), Delivered::Written);
    }

    #[test]
    fn an_id_that_would_leave_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(directory.path(), Metrics::default()).unwrap();
        for id in ["", "../up", "a/b", ".hidden", "a\0b", &"x".repeat(129)] {
            assert!(matches!(outbox.deliver(&message(id)), Err(OutboxError::Name(_))), "{id:?}");
        }
        assert!(files(directory.path()).is_empty());
    }
}
