//! Bytes by app, in the memory the programs count them in: whose each lane is, and what has moved.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use usher_models::wire::{ANONYMOUS, AppLane, MAX_APP_NAME};

use super::ProbeError;
use super::mapped::Mapped;
use crate::usage::Baseline;
use crate::usage::apps::{AppMoved, Pairs};

const NAME_WORDS: usize = MAX_APP_NAME / size_of::<u64>();

/// All lanes of apps. The thread that names flows takes them, the one that drains gives them back.
pub(super) struct AppLanes {
    memory: Mapped,
    /// Never held for longer than it takes to look at what has changed.
    pairs: Mutex<Pairs>,
}

impl AppLanes {
    /// With the pairs that an agent before this one has left.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str, lanes: u32) -> Result<Self, ProbeError> {
        let memory = Mapped::take::<AppLane>(ebpf, name, lanes)?;
        let mut pairs = Pairs::new(lanes.saturating_sub(1));
        for lane in 1..lanes {
            if let Some((slot, app)) = owner(&memory, lane) {
                pairs.take(lane, slot, &app);
            }
        }
        Ok(Self { memory, pairs: Mutex::new(pairs) })
    }

    fn pairs(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of an app of a slot; `None`: all are others'.
    pub(super) fn lane(&self, slot: u32, app: &str) -> Option<u32> {
        if slot == ANONYMOUS || app.is_empty() || app.len() > MAX_APP_NAME {
            return None;
        }
        let mut pairs = self.pairs();
        let (lane, is_new) = pairs.lane(slot, app)?;
        if is_new {
            self.own(lane, slot, app);
        }
        Some(lane)
    }

    /// The lane of the same app of another slot.
    pub(super) fn lane_of_same_app(&self, lane: u32, slot: u32) -> Option<u32> {
        let app = self.pairs().pair(lane).map(|pair| pair.app.clone())?;
        self.lane(slot, &app)
    }

    /// Whose slot's a lane is, as the programs see it.
    pub(super) fn slot(&self, lane: u32) -> u32 {
        self.memory.u32(place(lane) + offset_of!(AppLane, slot)).map_or(ANONYMOUS, |word| word.load(Acquire))
    }

    /// Lanes that are an app's, and the one after the last that ever was.
    pub(super) fn counts(&self) -> (usize, usize) {
        let pairs = self.pairs();
        (pairs.len(), usize::try_from(pairs.end()).unwrap_or(usize::MAX))
    }

    /// All flows were looked at: `used` says in which lanes any is counted.
    pub(super) fn swept(&self, used: &[bool]) {
        self.pairs().swept(used);
    }

    /// The bytes that are not where the baseline has them, in the order of lanes. What is told entirely and used no more is free from here on.
    pub(super) fn moved(&self, baseline: &Baseline) -> Vec<AppMoved> {
        let end = self.pairs().end();
        let now = (1..end).map(|lane| (lane, self.bytes(lane)));
        let risen: Vec<_> = now.filter(|(lane, now)| *now != baseline.app(*lane)).collect();
        let mut pairs = self.pairs();
        for lane in pairs.unused() {
            if self.bytes(lane) == baseline.app(lane) {
                self.own(lane, ANONYMOUS, "");
                pairs.release(lane);
            }
        }
        let moved = |(lane, now)| {
            let pair = pairs.pair(lane);
            let (slot, app) =
                pair.map_or_else(|| (ANONYMOUS, "".into()), |pair| (pair.slot, pair.app.clone()));
            AppMoved { lane, slot, app, now }
        };
        risen.into_iter().map(moved).collect()
    }

    fn bytes(&self, lane: u32) -> [u64; 2] {
        let at = place(lane) + offset_of!(AppLane, bytes);
        [at, at + size_of::<u64>()].map(|at| self.memory.u64(at).map_or(0, |word| word.load(Acquire)))
    }

    /// Writes whose a lane is, the slot first taken away and last put down: without it the rest means nothing.
    fn own(&self, lane: u32, slot: u32, app: &str) {
        let at = place(lane);
        let store = |field: usize, value: u32| {
            if let Some(word) = self.memory.u32(at + field) {
                word.store(value, Release);
            }
        };
        store(offset_of!(AppLane, slot), ANONYMOUS);
        let mut name = [0; MAX_APP_NAME];
        name[..app.len()].copy_from_slice(app.as_bytes());
        for (number, bytes) in name.as_chunks().0.iter().enumerate() {
            let field = offset_of!(AppLane, name) + number * size_of::<u64>();
            if let Some(word) = self.memory.u64(at + field) {
                word.store(u64::from_ne_bytes(*bytes), Release);
            }
        }
        store(offset_of!(AppLane, length), u32::try_from(app.len()).unwrap_or_default());
        store(offset_of!(AppLane, slot), slot);
    }
}

/// Bytes from the beginning of the map to a lane.
fn place(lane: u32) -> usize {
    usize::try_from(lane).map_or(usize::MAX / 2, |lane| lane * size_of::<AppLane>())
}

/// The slot and app of a lane as they were written; `None`: nobody's.
fn owner(memory: &Mapped, lane: u32) -> Option<(u32, String)> {
    let at = place(lane);
    let slot = memory.u32(at + offset_of!(AppLane, slot))?.load(Acquire);
    let length = memory.u32(at + offset_of!(AppLane, length))?.load(Acquire);
    let words = memory.u64s(at + offset_of!(AppLane, name), NAME_WORDS)?;
    let mut name: Vec<u8> = words.iter().flat_map(|word| word.load(Acquire).to_ne_bytes()).collect();
    name.truncate(usize::try_from(length).ok().filter(|length| (1..=MAX_APP_NAME).contains(length))?);
    let app = String::from_utf8(name).ok()?;
    (slot != ANONYMOUS).then_some((slot, app))
}
