//! The records of quality, in the memory the programs work on: what was added since the last look, and clearing those nobody adds to.
//!
//! What was told of a record is remembered here alone. An agent that ends forgets it, and the next one begins where the records stand: what was
//! measured in between is lost, which no counter of bytes is.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use aya::Ebpf;
use usher_models::units::Micros;
use usher_models::wire::{Quality, QualityCounts, ROUND_TRIP_BUCKETS};

use super::ProbeError;
use super::mapped::Mapped;
use crate::dataplane::Measured;

/// All records.
pub(super) struct Qualities {
    memory: Mapped,
    records: usize,
    told: HashMap<usize, Told>,
}

/// A record as it was told.
struct Told {
    record: Box<Quality>,
    /// When something was last added to it.
    changed: Micros,
}

impl Qualities {
    /// The records as they stand: what is in them was measured for an agent before this one.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        name: &'static str,
        records: u32,
        now: Micros,
    ) -> Result<Self, ProbeError> {
        let memory = Mapped::take::<Quality>(ebpf, name, records)?;
        let records = usize::try_from(records).unwrap_or(usize::MAX);
        let mut this = Self { memory, records, told: HashMap::new() };
        let _ = this.since_last(now);
        Ok(this)
    }

    /// What was measured since the last call.
    pub(super) fn since_last(&mut self, now: Micros) -> Vec<Measured> {
        let mut measured = Vec::new();
        for place in 0..self.records {
            let owner = self.word(place);
            let Some((slot, class)) = Quality::owned(owner) else { continue };
            let counts = self.counts(place);
            let before = self.told.get(&place).filter(|told| told.record.owner == owner);
            if before.is_some_and(|told| told.record.counts == counts) {
                continue;
            }
            // Counted in this order: a round trip that comes meanwhile is in the buckets before it is among the counts, and is told next time.
            let record = Box::new(Quality { owner, counts, zero: 0, round_trips: self.round_trips(place) });
            let none = Quality::NONE;
            let before = before.map_or(&none, |told| &told.record);
            measured.push(Measured::between(slot, class, before, &record));
            self.told.insert(place, Told { record, changed: now });
        }
        measured
    }

    /// Clears records that nothing was added to for `idle`; says how many are in use then.
    pub(super) fn sweep(&mut self, now: Micros, idle: Duration) -> usize {
        for place in 0..self.records {
            let owner = self.word(place);
            let over = match self.told.get(&place) {
                Some(told) => told.record.owner == owner && now.since(told.changed) >= idle,
                None => false,
            };
            // An agent that ended while it cleared a record left it to the next one.
            if over || owner == Quality::CLEARING {
                self.clear(place, owner);
            }
        }
        self.told.len()
    }

    /// Frees a record. A packet that found it just before may add to it just after: it is then another's, one at the most.
    fn clear(&mut self, place: usize, owner: u64) {
        let at = place * size_of::<Quality>();
        let Some(word) = self.memory.u64(at) else { return };
        if word.compare_exchange(owner, Quality::CLEARING, AcqRel, Acquire).is_err() {
            return;
        }
        for at in (at + 8..at + size_of::<Quality>()).step_by(8) {
            if let Some(word) = self.memory.u64(at) {
                word.store(0, Relaxed);
            }
        }
        word.store(Quality::FREE, Release);
        self.told.remove(&place);
    }

    fn word(&self, place: usize) -> u64 {
        self.memory.u64(place * size_of::<Quality>()).map_or(Quality::FREE, |word| word.load(Acquire))
    }

    fn half(&self, at: usize) -> u32 {
        self.memory.u32(at).map_or(0, |word| word.load(Acquire))
    }

    fn counts(&self, place: usize) -> [QualityCounts; 2] {
        std::array::from_fn(|direction| {
            let at = place * size_of::<Quality>()
                + offset_of!(Quality, counts)
                + direction * size_of::<QualityCounts>();
            QualityCounts {
                segments: self.half(at + offset_of!(QualityCounts, segments)),
                retransmitted: self.half(at + offset_of!(QualityCounts, retransmitted)),
                reordered: self.half(at + offset_of!(QualityCounts, reordered)),
                round_trips: self.half(at + offset_of!(QualityCounts, round_trips)),
                windows: self.half(at + offset_of!(QualityCounts, windows)),
                irregular: self.half(at + offset_of!(QualityCounts, irregular)),
            }
        })
    }

    fn round_trips(&self, place: usize) -> [[u32; ROUND_TRIP_BUCKETS]; 2] {
        let at = place * size_of::<Quality>() + offset_of!(Quality, round_trips);
        std::array::from_fn(|side| {
            std::array::from_fn(|bucket| self.half(at + (side * ROUND_TRIP_BUCKETS + bucket) * 4))
        })
    }
}
