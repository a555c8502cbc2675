//! What must survive the agent: one file, one transaction for each thing that happened.
//!
//! Holds the counters' baseline, the sessions' slots, the spool of batches the orchestrator has not acknowledged, and
//! settings, confirmed and provisional. A drain writes its batches and the new baseline together, so that an agent
//! killed at any instant has either told a byte and remembers it, or neither.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | layout, the store's id, the boot's generation, last sequence, last drain |
//! | `boots` | generation | the boot's id as told |
//! | `told` | page of slots | counters told so far |
//! | `told_apps` | page of lanes | bytes by app told so far |
//! | `sessions` | session | its slot, facts and times |
//! | `batches` | generation, sequence | an encoded batch |
//! | `settings` | session | confirmed settings |
//! | `pushes` | push | held until a deadline, or how it ended |
//!
//! The spool is bounded by the bytes of its batches. The file itself is larger by redb's overhead and does not shrink.

#[cfg(test)]
mod crash_tests;
mod encoding;
mod error;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use usher_models::units::Micros;

pub use error::StoreError;

use crate::config::Size;
use crate::dataplane::Boot;
use crate::uplink::settings::{Change, Kept, PushRecord};
use crate::usage::apps::AppMoved;
use crate::usage::{Account, Baseline, Counted, Drained, Moved, Restored};

/// Version of the tables and of what is in them. Of version 1, which had a row for each slot, everything is taken over.
const LAYOUT: u32 = 2;

/// How many pushes that have ended are remembered, so that a step that is repeated gets the same answer.
const MAX_ENDED: usize = 4_096;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const BOOTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("boots");
const TOLD: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("told");
const TOLD_APPS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("told_apps");
const TOLD_IN_1: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("baseline");
const SESSIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sessions");
const BATCHES: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("batches");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
const PUSHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pushes");

/// A batch's place in the spool: the generation of its boot, and its sequence in that boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Rises with each boot.
    pub generation: u32,
    /// Rises with each batch of a boot.
    pub sequence: u64,
}

impl Position {
    const fn key(self) -> (u32, u64) {
        (self.generation, self.sequence)
    }

    const fn of((generation, sequence): (u32, u64)) -> Self {
        Self { generation, sequence }
    }
}

/// The open file. One process at a time can have it open.
#[derive(Debug)]
pub struct Store {
    db: Database,
    id: [u8; 16],
    fresh: bool,
    limit: u64,
    spooled: AtomicU64,
    generation: AtomicU32,
}

impl Store {
    /// Opens or makes the file `agent.redb` in the state directory, which is made too.
    pub fn open(state_dir: &Path, limit: Size) -> Result<Self, StoreError> {
        // Keys of subscribers stand in it: for nobody else's eyes.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|source| StoreError::Directory { directory: state_dir.to_owned(), source })?;
        let path = state_dir.join("agent.redb");
        let fresh = !path.try_exists().map_err(|source| StoreError::made(&path, source))?;
        if fresh {
            // Half a file is no file: it gets its name when it is whole.
            let new = state_dir.join("agent.redb.new");
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::made(&new, error));
                }
                _ => {}
            }
            let db = Database::create(&new).map_err(|error| StoreError::opening(&new, error))?;
            drop(Self::with(db, limit, fresh)?);
            std::fs::rename(&new, &path)
                .and_then(|()| std::fs::File::open(state_dir)?.sync_all())
                .map_err(|source| StoreError::made(&path, source))?;
        }
        let db = Database::open(&path).map_err(|error| StoreError::opening(&path, error))?;
        Self::with(db, limit, fresh)
    }

    fn with(db: Database, limit: Size, fresh: bool) -> Result<Self, StoreError> {
        let transaction = db.begin_write()?;
        let (id, generation, spooled);
        {
            let mut meta = transaction.open_table(META)?;
            let layout = encoding::number::<4>(&meta, "layout")?.map(u32::from_le_bytes);
            match layout {
                None => {
                    meta.insert("id", uuid::Uuid::new_v4().as_bytes().as_slice())?;
                }
                Some(1) => Self::take_over_1(&transaction)?,
                Some(LAYOUT) => {}
                Some(found) => return Err(StoreError::Layout { found, expected: LAYOUT }),
            }
            meta.insert("layout", LAYOUT.to_le_bytes().as_slice())?;
            id = encoding::number::<16>(&meta, "id")?.ok_or(StoreError::broken("meta", "id"))?;
            generation = encoding::number::<4>(&meta, "generation")?.map_or(0, u32::from_le_bytes);
            let batches = transaction.open_table(BATCHES)?;
            let mut bytes = 0;
            for entry in batches.iter()? {
                bytes += entry?.1.value().len() as u64;
            }
            spooled = bytes;
            transaction.open_table(BOOTS)?;
            transaction.open_table(TOLD)?;
            transaction.open_table(TOLD_APPS)?;
            transaction.open_table(SESSIONS)?;
            transaction.open_table(SETTINGS)?;
            transaction.open_table(PUSHES)?;
        }
        transaction.commit()?;
        let generation = AtomicU32::new(generation);
        Ok(Self { db, id, fresh, limit: limit.0, spooled: AtomicU64::new(spooled), generation })
    }

    /// Puts the rows of layout 1 on pages.
    fn take_over_1(transaction: &WriteTransaction) -> Result<(), StoreError> {
        let mut moved = Vec::new();
        for entry in transaction.open_table(TOLD_IN_1)?.iter()? {
            let (slot, row) = entry?;
            let usage =
                encoding::decode_row(row.value()).ok_or(StoreError::broken("baseline", slot.value()))?;
            moved.extend(Baseline::default().moved(slot.value(), &usage));
        }
        transaction.delete_table(TOLD_IN_1)?;
        Self::write_told(transaction, &Baseline::default(), (&moved, &[]))
    }

    fn write_told(
        transaction: &WriteTransaction,
        before: &Baseline,
        (moved, apps): (&[Moved], &[AppMoved]),
    ) -> Result<(), StoreError> {
        let mut told = transaction.open_table(TOLD)?;
        for (page, slots) in before.pages(moved) {
            told.insert(page, encoding::encode_page(slots).as_slice())?;
        }
        let mut told = transaction.open_table(TOLD_APPS)?;
        for (page, lanes) in before.app_pages(apps) {
            told.insert(page, encoding::encode_app_page(lanes).as_slice())?;
        }
        Ok(())
    }

    /// Takes up the books of this life of the counters, or begins new ones.
    ///
    /// The boot that is told is bound to this very file: with another file, the same counters are another boot, so that
    /// a sequence never starts again under a boot that was told before. `counted` is asked only where the file is new but
    /// the counters may not be: what stands there was some earlier file's to tell, and becomes the baseline.
    pub fn begin(
        &self,
        counters: Boot,
        now: Micros,
        counted: impl FnOnce() -> Counted,
    ) -> Result<Restored, StoreError> {
        let boot = Boot(std::array::from_fn(|byte| counters.0[byte] ^ self.id[byte]));
        let transaction = self.db.begin_write()?;
        let restored;
        {
            let mut meta = transaction.open_table(META)?;
            let mut boots = transaction.open_table(BOOTS)?;
            let generation = encoding::number::<4>(&meta, "generation")?.map_or(0, u32::from_le_bytes);
            let known = boots.get(generation)?.is_some_and(|known| known.value() == boot.0);
            if !known {
                let generation = generation + 1;
                boots.insert(generation, boot.0.as_slice())?;
                meta.insert("generation", generation.to_le_bytes().as_slice())?;
                meta.insert("sequence", 0_u64.to_le_bytes().as_slice())?;
                meta.insert("drained", now.get().to_le_bytes().as_slice())?;
                transaction.open_table(TOLD)?.retain(|_, _| false)?;
                transaction.open_table(TOLD_APPS)?.retain(|_, _| false)?;
                if self.fresh {
                    let Counted { slots, apps } = counted();
                    Self::write_told(&transaction, &Baseline::default(), (&slots, &apps))?;
                }
                self.generation.store(generation, Ordering::Relaxed);
            }
            let mut baseline = Vec::new();
            for entry in transaction.open_table(TOLD)?.iter()? {
                let (page, bytes) = entry?;
                encoding::decode_page(page.value(), bytes.value(), &mut baseline)
                    .ok_or(StoreError::broken("told", page.value()))?;
            }
            let mut apps = Vec::new();
            for entry in transaction.open_table(TOLD_APPS)?.iter()? {
                let (page, bytes) = entry?;
                encoding::decode_app_page(page.value(), bytes.value(), &mut apps)
                    .ok_or(StoreError::broken("told_apps", page.value()))?;
            }
            let sessions = transaction.open_table(SESSIONS)?;
            restored = Restored {
                boot,
                sequence: encoding::number::<8>(&meta, "sequence")?.map_or(0, u64::from_le_bytes),
                drained: Micros::new(
                    encoding::number::<8>(&meta, "drained")?.map_or(now.get(), i64::from_le_bytes),
                ),
                baseline,
                apps,
                accounts: encoding::all(&sessions, "sessions")?
                    .into_iter()
                    .map(|(_, account)| account)
                    .collect(),
            };
        }
        transaction.commit()?;
        Ok(restored)
    }

    /// Whether there is room for another drain. If not, the counters wait: nothing is lost but resolution in time.
    pub fn has_room(&self) -> bool {
        self.spooled() < self.limit
    }

    /// Bytes of batches that wait for their acknowledgement.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::Relaxed)
    }

    /// Batches, baseline and freed slots of one drain, in one transaction. `before` is the baseline that the drain moves.
    pub fn drained(&self, drained: &Drained, before: &Baseline) -> Result<u64, StoreError> {
        let generation = self.generation.load(Ordering::Relaxed);
        let mut written = 0;
        let transaction = self.db.begin_write()?;
        {
            let mut batches = transaction.open_table(BATCHES)?;
            for batch in &drained.batches {
                written += batch.bytes.len() as u64;
                batches.insert((generation, batch.sequence), batch.bytes.as_slice())?;
            }
            Self::write_told(&transaction, before, (&drained.moved, &drained.apps))?;
            let mut sessions = transaction.open_table(SESSIONS)?;
            for id in &drained.released {
                sessions.remove(id.as_str())?;
            }
            let mut meta = transaction.open_table(META)?;
            if let Some(last) = drained.batches.last() {
                meta.insert("sequence", last.sequence.to_le_bytes().as_slice())?;
            }
            meta.insert("drained", drained.until.get().to_le_bytes().as_slice())?;
        }
        transaction.commit()?;
        self.spooled.fetch_add(written, Ordering::Relaxed);
        Ok(written)
    }

    /// Sessions that opened, changed or closed.
    pub fn sessions(&self, changed: &[Account]) -> Result<(), StoreError> {
        let transaction = self.db.begin_write()?;
        {
            let mut sessions = transaction.open_table(SESSIONS)?;
            for account in changed {
                sessions.insert(account.facts.id.as_str(), encoding::json(account)?.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Up to `most` batches after `position`, oldest first, as they go up.
    pub fn batches_after(
        &self,
        position: Position,
        most: usize,
    ) -> Result<Vec<(Position, Vec<u8>)>, StoreError> {
        let batches = self.db.begin_read()?.open_table(BATCHES)?;
        let after = (std::ops::Bound::Excluded(position.key()), std::ops::Bound::Unbounded);
        let mut found = Vec::new();
        for entry in batches.range::<(u32, u64)>(after)?.take(most) {
            let (key, bytes) = entry?;
            found.push((Position::of(key.value()), bytes.value().to_vec()));
        }
        Ok(found)
    }

    /// The place of a batch the orchestrator names; `None`: its boot is not of this file.
    pub fn position(&self, boot: &[u8], sequence: u64) -> Result<Option<Position>, StoreError> {
        let boots = self.db.begin_read()?.open_table(BOOTS)?;
        for entry in boots.iter()?.rev() {
            let (generation, known) = entry?;
            if known.value() == boot {
                return Ok(Some(Position { generation: generation.value(), sequence }));
            }
        }
        Ok(None)
    }

    /// Everything up to and including `position` is the orchestrator's now. Returns how many batches went.
    ///
    /// Not synced by itself: if it is forgotten, batches are sent again, and the orchestrator applies them once.
    pub fn acknowledged(&self, position: Position) -> Result<usize, StoreError> {
        let mut transaction = self.db.begin_write()?;
        transaction
            .set_durability(Durability::None)
            .map_err(|error| StoreError::Database(Box::new(error.into())))?;
        let (mut gone, mut bytes) = (0, 0);
        {
            let mut batches = transaction.open_table(BATCHES)?;
            for entry in batches.extract_from_if(..=position.key(), |_, _| true)? {
                bytes += entry?.1.value().len() as u64;
                gone += 1;
            }
            // A boot whose batches have all gone is not needed any more, the running one excepted.
            let oldest = batches.first()?.map_or(u32::MAX, |(key, _)| key.value().0);
            let running = self.generation.load(Ordering::Relaxed);
            let mut boots = transaction.open_table(BOOTS)?;
            boots.retain(|generation, _| generation >= oldest.min(running))?;
        }
        transaction.commit()?;
        self.spooled.fetch_sub(bytes, Ordering::Relaxed);
        Ok(gone)
    }

    /// Settings as the last agent left them.
    pub fn settings(&self) -> Result<Kept, StoreError> {
        let transaction = self.db.begin_read()?;
        Ok(Kept {
            confirmed: encoding::all(&transaction.open_table(SETTINGS)?, "settings")?.into_iter().collect(),
            pushes: encoding::all(&transaction.open_table(PUSHES)?, "pushes")?.into_iter().collect(),
        })
    }

    /// One step of a push, in one transaction.
    pub fn change(&self, change: &Change) -> Result<(), StoreError> {
        let transaction = self.db.begin_write()?;
        {
            let mut settings = transaction.open_table(SETTINGS)?;
            for (session, confirmed) in &change.settings {
                match confirmed {
                    Some(confirmed) => {
                        settings.insert(session.as_str(), encoding::json(confirmed)?.as_slice())?;
                    }
                    None => {
                        settings.remove(session.as_str())?;
                    }
                }
            }
            let mut pushes = transaction.open_table(PUSHES)?;
            for (push, record) in &change.pushes {
                match record {
                    Some(record) => {
                        pushes.insert(push.as_str(), encoding::json::<PushRecord>(record)?.as_slice())?;
                    }
                    None => {
                        pushes.remove(push.as_str())?;
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// How many ended pushes are worth remembering.
    pub const fn max_ended() -> usize {
        MAX_ENDED
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use usher_models::telemetry;
    use usher_models::wire::{Cell, Class, Direction};

    use super::*;
    use crate::usage::Encoded;

    fn batch(sequence: u64) -> Drained {
        let batch = telemetry::Batch { sequence, ..telemetry::Batch::default() };
        Drained {
            batches: vec![Encoded { sequence, bytes: batch.encode_to_vec() }],
            moved: vec![],
            apps: vec![],
            released: vec![],
            until: Micros::new(1),
            backwards: 0,
            masks: [0; 8],
        }
    }

    fn told(store: &Store, sequence: u64) {
        store.drained(&batch(sequence), &Baseline::default()).unwrap();
    }

    fn store(directory: &Path) -> Store {
        Store::open(directory, Size(10)).unwrap()
    }

    #[test]
    fn batches_of_an_earlier_boot_stay_before_those_of_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let first = store.begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap().boot;
        told(&store, 1);
        told(&store, 2);
        let again = store.begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap();
        assert_eq!((again.boot, again.sequence), (first, 2));
        let second = store.begin(Boot([2; 16]), Micros::new(0), Counted::default).unwrap();
        assert_eq!(second.sequence, 0);
        told(&store, 1);
        let places = |store: &Store| {
            let batches = store.batches_after(Position::default(), 9).unwrap();
            batches.into_iter().map(|(at, _)| at.key()).collect::<Vec<_>>()
        };
        assert_eq!(places(&store), [(1, 1), (1, 2), (2, 1)]);
        let last = store.position(&first.0, 2).unwrap().unwrap();
        assert_eq!(store.acknowledged(last).unwrap(), 2);
        assert_eq!(places(&store), [(2, 1)]);
        assert_eq!(store.position(&first.0, 2).unwrap(), None);
        assert_eq!(store.position(&second.boot.0, 0).unwrap().map(Position::key), Some((2, 0)));
    }

    #[test]
    fn the_spool_is_full_at_its_limit_and_has_room_again_after_an_acknowledgement() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        store.begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap();
        let mut sequence = 0;
        while store.has_room() {
            sequence += 1;
            told(&store, sequence);
        }
        let spooled = store.spooled();
        assert!(spooled >= 10);
        drop(store);
        let store = self::store(directory.path());
        assert_eq!(store.spooled(), spooled);
        store.acknowledged(Position { generation: 1, sequence }).unwrap();
        assert_eq!(store.spooled(), 0);
    }

    #[test]
    fn a_new_file_beside_counters_that_go_on_tells_another_boot_and_nothing_twice() {
        let counted = || {
            let now = Cell { bytes: 700, ..Cell::default() };
            Counted {
                slots: vec![Moved { slot: 3, class: Class::Video, direction: Direction::Down, now }],
                apps: vec![AppMoved { lane: 300, slot: 3, app: "streams".into(), now: [9, 0] }],
            }
        };
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        let first = store(one.path()).begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap();
        let second = store(two.path()).begin(Boot([1; 16]), Micros::new(0), counted).unwrap();
        assert_ne!(first.boot, second.boot);
        assert_eq!((second.baseline, second.apps), (counted().slots, vec![(300, [9, 0])]));
    }

    #[test]
    fn a_second_agent_on_the_same_file_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let _first = store(directory.path());
        let error = Store::open(directory.path(), Size(10)).unwrap_err().to_string();
        assert!(error.contains("another agent"), "{error}");
    }

    #[test]
    fn a_file_of_another_layout_is_refused_with_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let transaction = store.db.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("layout", 9_u32.to_le_bytes().as_slice()).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = Store::open(directory.path(), Size(10)).unwrap_err().to_string();
        assert!(error.contains("layout 9") && error.contains("expected 2"), "{error}");
    }

    #[test]
    fn a_file_of_the_layout_before_is_taken_over_whole() {
        let directory = tempfile::tempdir().unwrap();
        let first = {
            let store = store(directory.path());
            let first = store.begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap();
            told(&store, 1);
            let transaction = store.db.begin_write().unwrap();
            {
                let mut meta = transaction.open_table(META).unwrap();
                meta.insert("layout", 1_u32.to_le_bytes().as_slice()).unwrap();
                let mut rows = transaction.open_table(TOLD_IN_1).unwrap();
                for slot in [0, 3, 700] {
                    let mut row = vec![0b1000, 0];
                    for counter in [u64::from(slot) + 5, 2, 0, 0] {
                        row.extend(counter.to_le_bytes());
                    }
                    rows.insert(slot, row.as_slice()).unwrap();
                }
            }
            transaction.commit().unwrap();
            first
        };
        for _ in 0..2 {
            let store = store(directory.path());
            let again = store.begin(Boot([1; 16]), Micros::new(0), Counted::default).unwrap();
            assert_eq!((again.boot, again.sequence), (first.boot, 1));
            let told: Vec<_> = again.baseline.iter().map(|told| (told.slot, told.now.bytes)).collect();
            assert_eq!(told, [(0, 5), (3, 8), (700, 705)]);
            assert!(
                again
                    .baseline
                    .iter()
                    .all(|told| (told.class, told.direction) == (Class::Video, Direction::Down))
            );
        }
    }
}
