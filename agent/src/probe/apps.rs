//! Bytes by app, in the memory the programs count them in: whose each lane is, and what has moved.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use usher_models::wire::{ANONYMOUS, AppLane, Class, MAX_APP_NAME};

use super::ProbeError;
use super::mapped::Mapped;
use crate::usage::Baseline;
use crate::usage::apps::{self, AppMoved, Given, Pairs};

const NAME_WORDS: usize = MAX_APP_NAME / size_of::<u64>();

/// All lanes of apps. The thread that names flows takes them, the one that drains gives them back.
pub(super) struct AppLanes {
    memory: Mapped,
    /// Never held for longer than it takes to look at what has changed.
    pairs: Mutex<Pairs>,
}

impl AppLanes {
    /// With the pairs that an agent before this one has left.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str, most: u32) -> Result<Self, ProbeError> {
        let lanes = apps::lanes(most);
        let memory = Mapped::take::<AppLane>(ebpf, name, lanes)?;
        let mut pairs = Pairs::new(most);
        for lane in 0..lanes {
            if let Some(Owner { slot, class, choice, app }) = owner(&memory, lane)
                && AppLane::place(lanes - 1, slot, class, choice) == lane
            {
                pairs.take(lane, choice, (slot, class, &app));
            }
        }
        Ok(Self { memory, pairs: Mutex::new(pairs) })
    }

    fn pairs(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of an app of a slot in a class; `None`: there is no room for it.
    pub(super) fn lane(&self, slot: u32, class: Class, app: &str) -> Option<Given> {
        if slot == ANONYMOUS || app.is_empty() || app.len() > MAX_APP_NAME {
            return None;
        }
        let mut pairs = self.pairs();
        let given = pairs.lane(slot, class, app)?;
        if given.is_new {
            self.own(given, slot, class, app);
        }
        Some(given)
    }

    /// The lane of the same app as another lane's, of another slot or in another class.
    pub(super) fn lane_of_same_app(&self, lane: u32, slot: u32, class: Class) -> Option<Given> {
        let app = self.pairs().pair(lane).map(|pair| pair.app.clone())?;
        self.lane(slot, class, &app)
    }

    /// How many are counted.
    pub(super) fn len(&self) -> usize {
        self.pairs().len()
    }

    /// All flows were looked at: these are the lanes that any is counted in.
    pub(super) fn swept(&self, used: &BTreeSet<u32>) {
        self.pairs().swept(used);
    }

    /// The bytes that are not where the baseline has them, in the order of lanes. What is told entirely and used no more is free from here on.
    pub(super) fn moved(&self, baseline: &Baseline) -> Vec<AppMoved> {
        let taken: Vec<u32> = self.pairs().taken().collect();
        let now = taken.into_iter().map(|lane| (lane, self.bytes(lane)));
        let risen: Vec<_> = now.filter(|(lane, now)| *now != baseline.app(*lane)).collect();
        let mut pairs = self.pairs();
        for lane in pairs.unused() {
            if self.bytes(lane) == baseline.app(lane) {
                self.own(Given { lane, choice: 0, is_new: true }, ANONYMOUS, Class::Other, "");
                pairs.release(lane);
            }
        }
        let moved = |(lane, now)| {
            let pair = pairs.pair(lane)?;
            Some(AppMoved { lane, slot: pair.slot, app: pair.app.clone(), now })
        };
        risen.into_iter().filter_map(moved).collect()
    }

    fn bytes(&self, lane: u32) -> [u64; 2] {
        let at = place(lane) + offset_of!(AppLane, bytes);
        [at, at + size_of::<u64>()].map(|at| self.memory.u64(at).map_or(0, |word| word.load(Acquire)))
    }

    /// Writes whose a lane is, the slot first taken away and last put down: without it the rest means nothing.
    fn own(&self, Given { lane, choice, .. }: Given, slot: u32, class: Class, app: &str) {
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
        let length = u8::try_from(app.len()).unwrap_or_default();
        store(offset_of!(AppLane, class), u32::from_ne_bytes([class as u8, choice, length, 0]));
        store(offset_of!(AppLane, slot), slot);
    }
}

/// Bytes from the beginning of the map to a lane.
fn place(lane: u32) -> usize {
    usize::try_from(lane).map_or(usize::MAX / 2, |lane| lane * size_of::<AppLane>())
}

/// Whose a lane is, as it was written.
struct Owner {
    slot: u32,
    class: Class,
    choice: u8,
    app: String,
}

/// `None`: nobody's.
fn owner(memory: &Mapped, lane: u32) -> Option<Owner> {
    let at = place(lane);
    let slot = memory.u32(at + offset_of!(AppLane, slot))?.load(Acquire);
    let what = memory.u32(at + offset_of!(AppLane, class))?.load(Acquire);
    let [class, choice, length, _] = what.to_ne_bytes();
    let words = memory.u64s(at + offset_of!(AppLane, name), NAME_WORDS)?;
    let mut name: Vec<u8> = words.iter().flat_map(|word| word.load(Acquire).to_ne_bytes()).collect();
    name.truncate(Some(usize::from(length)).filter(|length| (1..=MAX_APP_NAME).contains(length))?);
    let app = String::from_utf8(name).ok()?;
    (slot != ANONYMOUS).then_some(Owner { slot, class: Class::from_u8(class), choice, app })
}
