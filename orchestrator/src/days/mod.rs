//! A recorded day: what the engine was when it began, and everything it was given since, in one file.
//!
//! ```text
//! | "USHERDAY" | format | length of the snapshot | about | the engine's snapshot | entries, one an input | end |
//! ```
//!
//! An entry is its length (32 bits), its bytes (postcard) and a check: the digest of the check before it and the bytes, so
//! that an entry that is cut off, changed, left out or moved is found. A length of zero is the end of a day that is over,
//! and is followed by the number of entries. A file that a daemon still writes ends after any entry.
//!
//! Owns the file ([`Day`], [`DayWriter`]), the folder a daemon keeps days in ([`Keeper`]) and what a day says when it is
//! played again ([`replay`]). Refuses to misread: another format, and any byte that is not as it was written, is an error that
//! says where. Nothing here changes an engine or a ledger that is in use.

mod keeper;
pub mod replay;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Seek, SeekFrom, Write};

use usher_models::units::Micros;

pub use self::keeper::{DayFile, Keeper, RecordConfig, Recorded, export, listed};
use crate::document::Issues;
use crate::engine::Engine;
use crate::engine::io::{Digest, Input};
use crate::engine::snapshot::{Snapshot, SnapshotError};
use crate::ledger::{Journaled, LedgerError};
use crate::policy::Policy;

/// What a day begins with.
const MAGIC: &[u8; 8] = b"USHERDAY";
/// Rises with each change of what is written.
const FORMAT: u32 = 1;
/// Where the length of the snapshot stands.
const LENGTH_AT: u64 = 12;
/// No entry and no heading is longer: a batch of an agent is a few megabytes at the most.
const PART_MAX: u32 = 256 << 20;

/// What stands at the head of a day.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct About {
    /// Of the daemon that wrote it.
    pub version: String,
    /// When the snapshot was taken.
    pub began: Micros,
    /// The last input of the journal that is in the snapshot.
    pub position: u64,
    /// The policy's file name.
    pub policy_file: String,
    /// The policy in force all day.
    pub policy: String,
    /// Its revision.
    pub revision: String,
}

/// One input of a day.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place in the journal.
    pub position: u64,
    /// When it was stepped.
    pub at: Micros,
    /// What it was.
    pub input: Input,
    /// The digest of what it led to.
    pub effects: Option<Digest>,
}

/// Why a day cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum DayError {
    /// Not a day at all.
    #[error("is no recorded day: expected a file of `usher-orchestrator record`")]
    Foreign,
    /// Of another version.
    #[error("is of format {0}, this build reads {FORMAT}: replay it with the version that wrote it")]
    OtherFormat(u32),
    /// It ends where it should go on.
    #[error(
        "is cut off after {0} inputs: if a daemon is writing it, try again; else take another copy of it with \
         `usher-orchestrator record`"
    )]
    CutOff(u64),
    /// Some byte is not as it was written.
    #[error("is damaged after {0} inputs: take another copy of it with `usher-orchestrator record`")]
    Damaged(u64),
    /// The snapshot it begins with.
    #[error("begins with a snapshot that {0}")]
    Snapshot(#[from] SnapshotError),
    /// The policy it was recorded under is none to this build.
    #[error("was recorded under a policy that this build does not run:\n{0}")]
    Policy(Issues),
    /// The ledger a day is taken from.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It cannot be read or written at all.
    #[error("cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// An entry as it stands in the file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Packed<'a> {
    position: u64,
    effects: Option<Digest>,
    #[serde(borrow)]
    input: &'a [u8],
}

/// A day that is being read.
#[derive(Debug)]
pub struct Day<R> {
    /// Its head.
    pub about: About,
    file: R,
    /// As it stands in the file.
    snapshot_length: u64,
    check: Digest,
    position: u64,
    entries: u64,
    finished: bool,
    part: Vec<u8>,
}

impl<R: Read> Day<R> {
    /// Reads the head. What follows is the snapshot: [`Day::engine`] takes it, or `skip_engine` goes past it.
    pub fn open(mut file: R) -> Result<Self, DayError> {
        let mut head = [0; 20];
        let length = fill(&mut file, &mut head)?;
        let (Some(magic), Some(format)) = (head.get(..8), word(&head[8..12])) else {
            return Err(DayError::Foreign);
        };
        if length < 12 || magic != MAGIC {
            return Err(DayError::Foreign);
        }
        if format != FORMAT {
            return Err(DayError::OtherFormat(format));
        }
        let mut snapshot_length = [0; 8];
        snapshot_length.copy_from_slice(&head[12..]);
        let mut part = Vec::new();
        let mut size = [0; 4];
        if length < 20 || fill(&mut file, &mut size)? < 4 {
            return Err(DayError::CutOff(0));
        }
        let mut check = [0; 16];
        if !take(&mut file, u32::from_le_bytes(size), &mut part)? || fill(&mut file, &mut check)? < 16 {
            return Err(DayError::CutOff(0));
        }
        if Digest(check) != Digest::of_bytes(&[&part]) {
            return Err(DayError::Damaged(0));
        }
        let about: About = postcard::from_bytes(&part).map_err(|_| DayError::Damaged(0))?;
        Ok(Self {
            position: about.position,
            about,
            file,
            snapshot_length: u64::from_le_bytes(snapshot_length),
            check: Digest(check),
            entries: 0,
            finished: false,
            part,
        })
    }

    /// The policy of the day.
    pub fn policy(&self) -> Result<Policy, DayError> {
        Policy::parse(&self.about.policy_file, &self.about.policy).map_err(DayError::Policy)
    }

    /// The engine as it was when the day began. Once, and before the first entry.
    pub fn engine(&mut self) -> Result<Engine, DayError> {
        let mut counted = Counted { inner: &mut self.file, bytes: 0 };
        let (engine, position) = Engine::from_snapshot(&mut counted)?;
        if counted.bytes != self.snapshot_length || position != self.about.position {
            return Err(DayError::Damaged(0));
        }
        Ok(engine)
    }

    /// The next input; `None`: there is no more.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, DayError> {
        let Some(row) = self.next_row()? else { return Ok(None) };
        let damaged = |_| DayError::Damaged(self.entries - 1);
        let (at, input) = postcard::from_bytes(&row.input).map_err(damaged)?;
        Ok(Some(Entry { position: row.position, at, input, effects: row.effects }))
    }

    /// The same as the journal had it.
    fn next_row(&mut self) -> Result<Option<Journaled>, DayError> {
        if self.finished {
            return Ok(None);
        }
        let mut size = [0; 4];
        match fill(&mut self.file, &mut size)? {
            0 => return Ok(None),
            4 => {}
            _ => return Err(DayError::CutOff(self.entries)),
        }
        let size = u32::from_le_bytes(size);
        if size == 0 {
            return self.end().map(|()| None);
        }
        let mut check = [0; 16];
        if !take(&mut self.file, size, &mut self.part)? || fill(&mut self.file, &mut check)? < 16 {
            return Err(if size > PART_MAX {
                DayError::Damaged(self.entries)
            } else {
                DayError::CutOff(self.entries)
            });
        }
        if Digest(check) != Digest::of_bytes(&[&self.check.0, &self.part]) {
            return Err(DayError::Damaged(self.entries));
        }
        let damaged = DayError::Damaged(self.entries);
        let Ok(packed) = postcard::from_bytes::<Packed<'_>>(&self.part) else { return Err(damaged) };
        if packed.position != self.position + 1 {
            return Err(damaged);
        }
        (self.position, self.check) = (packed.position, Digest(check));
        self.entries += 1;
        Ok(Some(Journaled {
            position: packed.position,
            input: packed.input.to_owned(),
            effects: packed.effects,
        }))
    }

    fn end(&mut self) -> Result<(), DayError> {
        let mut end = [0; 24];
        if fill(&mut self.file, &mut end)? < end.len() {
            return Err(DayError::CutOff(self.entries));
        }
        let count = self.entries.to_le_bytes();
        if end[..8] != count || end[8..] != Digest::of_bytes(&[&self.check.0, &count]).0 {
            return Err(DayError::Damaged(self.entries));
        }
        self.finished = true;
        Ok(())
    }

    /// Whether the day is over: there is an end after the last entry read.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Inputs read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

impl<R: Read + Seek> Day<R> {
    /// Goes past the snapshot.
    fn skip_engine(&mut self) -> Result<(), DayError> {
        let length = i64::try_from(self.snapshot_length).map_err(|_| DayError::Damaged(0))?;
        self.file.seek(SeekFrom::Current(length))?;
        Ok(())
    }
}

/// A day that is being written.
#[derive(Debug)]
pub struct DayWriter<W> {
    file: W,
    check: Digest,
    position: u64,
    entries: u64,
}

impl<W: Write + Seek> DayWriter<W> {
    /// Begins a day with an engine as it is now.
    pub fn begin(mut file: W, about: &About, snapshot: &Snapshot) -> io::Result<Self> {
        let head = postcard::to_allocvec(about).map_err(io::Error::other)?;
        let check = Digest::of_bytes(&[&head]);
        file.write_all(MAGIC)?;
        file.write_all(&FORMAT.to_le_bytes())?;
        file.write_all(&[0; 8])?;
        file.write_all(&u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes())?;
        file.write_all(&head)?;
        file.write_all(&check.0)?;
        let begins = file.stream_position()?;
        snapshot.write(&mut file)?;
        let ends = file.stream_position()?;
        file.seek(SeekFrom::Start(LENGTH_AT))?;
        file.write_all(&(ends - begins).to_le_bytes())?;
        file.seek(SeekFrom::Start(ends))?;
        Ok(Self { file, check, position: about.position, entries: 0 })
    }

    /// The input that comes after the last one.
    pub fn entry(&mut self, row: &Journaled) -> io::Result<()> {
        let packed = Packed { position: row.position, effects: row.effects, input: &row.input };
        let bytes = postcard::to_allocvec(&packed).map_err(io::Error::other)?;
        let check = Digest::of_bytes(&[&self.check.0, &bytes]);
        let mut part = Vec::with_capacity(bytes.len() + 20);
        part.extend(u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes());
        part.extend(bytes);
        part.extend(check.0);
        self.file.write_all(&part)?;
        (self.check, self.position) = (check, row.position);
        self.entries += 1;
        Ok(())
    }

    /// The day is over. Gives the file back.
    pub fn finish(mut self) -> io::Result<W> {
        let count = self.entries.to_le_bytes();
        self.file.write_all(&[0; 4])?;
        self.file.write_all(&count)?;
        self.file.write_all(&Digest::of_bytes(&[&self.check.0, &count]).0)?;
        self.file.flush()?;
        Ok(self.file)
    }
}

/// Reads until the buffer is full or there is no more; how far it came.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a part of so many bytes; false: there are fewer, or it is too long to be one.
fn take(file: &mut impl Read, size: u32, part: &mut Vec<u8>) -> io::Result<bool> {
    part.clear();
    if size > PART_MAX {
        return Ok(false);
    }
    // Memory comes with the bytes, not with what a damaged length says.
    file.take(u64::from(size)).read_to_end(part)?;
    Ok(part.len() == size as usize)
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}
