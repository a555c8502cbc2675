//! Bytes by app of a slot, in lanes: which one a flow is counted in, and what lies in each. Sans-I/O.
//!
//! A capture counts an app's bytes in one lane whatever the flow's class, where the probe has one for each.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use usher_models::wire::{ANONYMOUS, Class, Direction};

use crate::usage::Baseline;
use crate::usage::apps::{AppMoved, Pairs};

/// The lane that a flow's bytes are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane(NonZeroU32);

impl Lane {
    fn at(number: u32) -> Option<Self> {
        number.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

/// Whose the bytes of a lane are, and how many, by direction.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    slot: u32,
    bytes: [u64; 2],
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Apps {
    pairs: Pairs,
    counted: Vec<Counted>,
}

impl Apps {
    /// None yet, of so many at the most.
    pub(super) fn new(most: u32) -> Self {
        Self { pairs: Pairs::new(most), counted: Vec::new() }
    }

    /// How many are counted.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// The lane of a slot's app; `None`: there is no room for it.
    pub(super) fn lane(&mut self, slot: u32, app: &str) -> Option<Lane> {
        let number = self.pairs.lane(slot, Class::Other, app)?.lane;
        let place = usize::try_from(number).ok()?;
        if self.counted.len() <= place {
            self.counted.resize(place + 1, Counted::default());
        }
        self.counted[place].slot = slot;
        Lane::at(number)
    }

    /// Adds to the app in a lane, or to the same app of another slot if it is that one's packet; says which lane the flow is counted in from here
    /// on. What is nobody's is no app's.
    pub(super) fn count(&mut self, lane: Lane, slot: u32, direction: Direction, bytes: u64) -> Lane {
        if slot == ANONYMOUS {
            return lane;
        }
        let Some(lane) = self.of_slot(lane, slot) else { return lane };
        if let Some(counted) = self.counted.get_mut(lane.number() as usize) {
            counted.bytes[direction.index()] += bytes;
        }
        lane
    }

    /// The lane of the same app of a slot; `None`: there is no room for it.
    fn of_slot(&mut self, lane: Lane, slot: u32) -> Option<Lane> {
        if self.counted.get(lane.number() as usize).is_some_and(|counted| counted.slot == slot) {
            return Some(lane);
        }
        let app = Arc::clone(&self.pairs.pair(lane.number())?.app);
        self.lane(slot, &app)
    }

    /// The bytes that are not where the baseline has them, in the order of lanes. What is told entirely and used no more is free from here on.
    pub(super) fn moved(&mut self, baseline: &Baseline) -> Vec<AppMoved> {
        for lane in self.pairs.unused() {
            let counted = usize::try_from(lane).ok().and_then(|place| self.counted.get(place));
            if counted.is_some_and(|counted| counted.bytes == baseline.app(lane)) {
                self.pairs.release(lane);
            }
        }
        let moved = (0_u32..).zip(&self.counted).filter(|(lane, now)| now.bytes != baseline.app(*lane));
        let moved = moved.filter_map(|(lane, now)| {
            let app = Arc::clone(&self.pairs.pair(lane)?.app);
            Some(AppMoved { lane, slot: now.slot, app, now: now.bytes })
        });
        moved.collect()
    }

    /// All flows were looked at: these are the lanes that they are counted in.
    pub(super) fn swept(&mut self, used: impl Iterator<Item = Lane>) {
        let used: BTreeSet<u32> = used.map(Lane::number).collect();
        self.pairs.swept(&used);
    }
}
