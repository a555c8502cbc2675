//! All of an engine in one file: taken in no time, written at leisure, read back whole.
//!
//! ```text
//! | "USHRSNAP" | format | position | policy | what is small | pages, 64 lines each | nothing | checksum |
//! ```
//!
//! Each part is its length (32 bits) and its bytes (postcard). The checksum (BLAKE3) is over everything before it: a file
//! that was not written to its end, or not as this build writes, is refused and never misread.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use usher_models::units::Micros;

use super::clock::Clock;
use super::feed::Waiting;
use super::guard::{GuardState, Pushed};
use super::io::{DecisionId, Elements, Line};
use super::learning::Learned;
use super::listed::{Crossing, Listed};
use super::moments::is_any_under_way;
use super::pages::{Page, Pages};
use super::roster::{Cards, Roster};
use super::state::SubscriberState;
use super::world::World;
use super::{Counters, Engine};
use crate::identity::{Country, Plan};
use crate::policy::{Policy, PolicyErrors};

/// What a snapshot begins with.
const MAGIC: &[u8; 8] = b"USHRSNAP";
/// Rises with each change of what is written.
const FORMAT: u32 = 7;
/// No part is longer: a page is some 30 kB, what waits may be more.
const PART_MAX: usize = 1 << 30;

/// Why a snapshot cannot be read. What it would have told is to be had by other means, or begins anew.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file is no snapshot of this build's.
    #[error("is no snapshot of format {FORMAT}")]
    Foreign,
    /// It is not whole.
    #[error("is cut off or damaged")]
    Damaged,
    /// The policy it was taken under is none to this build.
    #[error("is of a policy that this build does not run:\n{0}")]
    Policy(PolicyErrors),
    /// It cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// An engine at one moment. Holds on to memory that the engine changes only by copy.
#[derive(Debug)]
pub struct Snapshot {
    /// The last input of the journal that is in it.
    pub position: u64,
    /// Its file's name and what stands in it.
    policy: (String, String),
    head: Vec<u8>,
    pages: Vec<Arc<Page>>,
}

/// What is small, or common to all.
#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    cards: Cards,
    clock: Clock,
    waiting: Waiting,
    boundary: Option<i64>,
    crossing: Option<Crossing>,
    listed: Listed,
    agenda: Vec<(Micros, u32)>,
    stopped: bool,
    learned: Learned,
    guard: GuardState,
    pushed: Pushed,
    elements: Elements,
    plans: BTreeMap<String, Plan>,
    countries: BTreeMap<String, Country>,
    now: Micros,
    counters: Counters,
    pages: usize,
}

impl Engine {
    /// Everything as it is now, after the input at `position` of the journal. Between two steps; takes microseconds a
    /// thousand subscribers.
    pub fn snapshot(&self, position: u64) -> Snapshot {
        let head = Head {
            cards: self.cards.clone(),
            clock: self.clock.clone(),
            waiting: self.waiting.clone(),
            boundary: self.boundary,
            crossing: self.crossing.clone(),
            listed: self.listed.clone(),
            agenda: self.agenda.iter().copied().collect(),
            stopped: self.world.stopped,
            learned: self.world.learned.clone(),
            guard: self.world.guard.clone(),
            pushed: self.world.pushed.clone(),
            elements: self.world.elements.clone(),
            plans: self.world.plans.clone(),
            countries: self.world.countries.clone(),
            now: self.now,
            counters: self.counters,
            pages: self.pages.share().len(),
        };
        Snapshot {
            position,
            policy: (self.world.policy.file_name().to_owned(), self.world.policy.text().to_owned()),
            head: postcard::to_allocvec(&head).expect("numbers, words and lists can be packed"),
            pages: self.pages.share(),
        }
    }

    /// An engine as it was when the snapshot was taken, under the policy of then, and at which position of the journal.
    pub fn from_snapshot(file: impl Read) -> Result<(Self, u64), SnapshotError> {
        let mut file = Checked { inner: file, hasher: blake3::Hasher::new() };
        let mut magic = [0; 8];
        file.exact(&mut magic)?;
        if magic != *MAGIC || file.word()? != FORMAT {
            return Err(SnapshotError::Foreign);
        }
        let mut part = Vec::new();
        let mut position = [0; 8];
        file.exact(&mut position)?;
        file.part(&mut part)?;
        let (file_name, text): (String, String) = unpack(&part)?;
        let policy = Policy::parse(&file_name, &text).map_err(SnapshotError::Policy)?;
        file.part(&mut part)?;
        let head: Head = unpack(&part)?;
        let world = World::new(policy, head.plans, head.countries);
        let mut pages = Vec::with_capacity(head.pages.min(1 << 20));
        for _ in 0..head.pages {
            file.part(&mut part)?;
            let page: Page = unpack(&part)?;
            if !page.fits(&world.layout) {
                return Err(SnapshotError::Damaged);
            }
            pages.push(page);
        }
        let expected = *file.hasher.finalize().as_bytes();
        let mut found = [0; 32];
        file.inner.read_exact(&mut found).map_err(cut_off)?;
        if found != expected {
            return Err(SnapshotError::Damaged);
        }
        let pages = Pages::restore(world.layout.groups.len(), pages);
        let mut engine = Self::with_world(world);
        engine.roster = Roster::restore(&pages);
        (engine.cards, engine.clock, engine.waiting) = (head.cards, head.clock, head.waiting);
        (engine.boundary, engine.now, engine.counters) = (head.boundary, head.now, head.counters);
        let grids = engine.world.layout.grids.len();
        if head.agenda.iter().any(|(_, line)| pages.get(Line(*line)).is_none())
            || !head.listed.fits(grids, pages.len())
            || head.crossing.as_ref().is_some_and(|crossing| !crossing.fits(pages.len()))
        {
            return Err(SnapshotError::Damaged);
        }
        (engine.crossing, engine.listed) = (head.crossing, head.listed);
        engine.due = head.agenda.iter().map(|(due, line)| (*line, *due)).collect();
        engine.agenda = head.agenda.into_iter().collect();
        engine.world.stopped = head.stopped;
        engine.world.learned = head.learned;
        (engine.world.guard, engine.world.pushed) = (head.guard, head.pushed);
        engine.world.elements = head.elements;
        engine.index(&pages)?;
        engine.pages = pages;
        Ok((engine, u64::from_le_bytes(position)))
    }

    /// What is worked out from the seats.
    pub(super) fn index(&mut self, pages: &Pages) -> Result<(), SnapshotError> {
        for line in pages.lines() {
            let Some(seat) = pages.get(line) else { continue };
            if is_any_under_way(seat.phases.as_deref()) {
                self.holding.insert(line);
            }
            if seat.card.organisation != 0 {
                let organisation = self.world.organisations.entry(seat.card.organisation).or_default();
                organisation.members.insert(line.0);
                organisation.moved += usize::from(seat.card.has_moved());
            }
            let decisions = SubscriberState::decisions_of(pages.state(line)).ok_or(SnapshotError::Damaged)?;
            self.by_decision
                .extend(decisions.into_iter().map(|decision: DecisionId| (decision, Line(line.0))));
        }
        Ok(())
    }
}

impl Snapshot {
    /// Writes it out.
    pub fn write(&self, file: impl Write) -> io::Result<()> {
        let mut file = Hashed { inner: file, hasher: blake3::Hasher::new() };
        file.all(MAGIC)?;
        file.all(&FORMAT.to_le_bytes())?;
        file.all(&self.position.to_le_bytes())?;
        file.part(&postcard::to_allocvec(&self.policy).map_err(io::Error::other)?)?;
        file.part(&self.head)?;
        for page in &self.pages {
            file.part(&postcard::to_allocvec(&**page).map_err(io::Error::other)?)?;
        }
        let checksum = *file.hasher.finalize().as_bytes();
        file.inner.write_all(&checksum)?;
        file.inner.flush()
    }
}

fn unpack<T: serde::de::DeserializeOwned>(part: &[u8]) -> Result<T, SnapshotError> {
    postcard::from_bytes(part).map_err(|_| SnapshotError::Damaged)
}

fn cut_off(error: io::Error) -> SnapshotError {
    if error.kind() == io::ErrorKind::UnexpectedEof { SnapshotError::Damaged } else { error.into() }
}

struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashed<W> {
    fn all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }

    fn part(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.all(&length.to_le_bytes())?;
        self.all(bytes)
    }
}

struct Checked<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Checked<R> {
    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.inner.read_exact(bytes).map_err(cut_off)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn word(&mut self) -> Result<u32, SnapshotError> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn part(&mut self, bytes: &mut Vec<u8>) -> Result<(), SnapshotError> {
        let length = self.word()? as usize;
        if length > PART_MAX {
            return Err(SnapshotError::Damaged);
        }
        bytes.clear();
        (&mut self.inner).take(length as u64).read_to_end(bytes)?;
        if bytes.len() != length {
            return Err(SnapshotError::Damaged);
        }
        self.hasher.update(bytes);
        Ok(())
    }
}
