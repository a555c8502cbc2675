//! What was told of the counters already: where each of them stood at the last drain.
//!
//! Lies as the counters themselves do, one class and direction after the other, so that finding what has moved is one walk through
//! both. Grows to the highest slot that ever counted anything in a class and direction.

use usher_models::wire::{Cell, Class, Direction, SlotUsage};

use super::apps::AppMoved;

/// Counters of a slot.
pub const CELLS: usize = Class::COUNT * Direction::BOTH.len();

/// Slots, or lanes of apps, that are stored together.
pub const PAGE: u32 = 256;

/// The class and direction of each of a slot's counters, in their order.
pub fn cells() -> impl Iterator<Item = (Class, Direction)> {
    Class::ALL.into_iter().flat_map(|class| Direction::BOTH.map(|direction| (class, direction)))
}

/// A counter that is not where the baseline has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Whose it is.
    pub slot: u32,
    /// What it counts.
    pub class: Class,
    /// Which way.
    pub direction: Direction,
    /// Where it stands now.
    pub now: Cell,
}

/// Where the counters stood.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    lanes: [Vec<Cell>; CELLS],
    /// Bytes by app, by lane and direction.
    apps: Vec<[u64; 2]>,
}

impl Baseline {
    /// The counters of all slots in one class and direction, from slot 0 on; those beyond the end are zero.
    pub fn lane(&self, class: Class, direction: Direction) -> &[Cell] {
        &self.lanes[place(class, direction)]
    }

    /// One counter.
    pub fn cell(&self, slot: u32, class: Class, direction: Direction) -> Cell {
        cell(self.lane(class, direction), slot)
    }

    /// All counters of a slot.
    pub fn slot(&self, slot: u32) -> SlotUsage {
        let mut usage = SlotUsage::default();
        for (to, lane) in usage.cells.iter_mut().flatten().zip(&self.lanes) {
            *to = cell(lane, slot);
        }
        usage
    }

    /// A counter was told.
    pub fn set(&mut self, moved: &Moved) {
        let lane = &mut self.lanes[place(moved.class, moved.direction)];
        let slot = usize::try_from(moved.slot).unwrap_or(usize::MAX);
        if lane.len() <= slot {
            lane.resize(slot + 1, Cell::default());
        }
        lane[slot] = moved.now;
    }

    /// Bytes by direction of the app that is counted in a lane.
    pub fn app(&self, lane: u32) -> [u64; 2] {
        usize::try_from(lane).ok().and_then(|lane| self.apps.get(lane)).copied().unwrap_or_default()
    }

    /// Bytes of an app were told.
    pub fn set_app(&mut self, lane: u32, bytes: [u64; 2]) {
        let lane = usize::try_from(lane).unwrap_or(usize::MAX);
        if self.apps.len() <= lane {
            self.apps.resize(lane + 1, [0; 2]);
        }
        self.apps[lane] = bytes;
    }

    /// The pages of lanes that `moved`, which is in the order of lanes, touches, each with all its lanes that ever counted anything, as
    /// they are after it.
    pub fn app_pages(
        &self,
        moved: &[AppMoved],
    ) -> impl Iterator<Item = (u32, impl Iterator<Item = (u32, [u64; 2])>)> {
        moved.chunk_by(|one, next| one.lane / PAGE == next.lane / PAGE).filter_map(move |moved| {
            let number = moved.first()?.lane / PAGE;
            let mut moved = moved.iter().peekable();
            let lanes = (0..PAGE).map(move |within| {
                let lane = number * PAGE + within;
                let now = moved.next_if(|moved| moved.lane == lane).map(|moved| moved.now);
                (lane, now.unwrap_or_else(|| self.app(lane)))
            });
            Some((number, lanes.filter(|(_, bytes)| *bytes != [0; 2])))
        })
    }

    /// The counters of `usage` that are not where this has them.
    pub fn moved(&self, slot: u32, usage: &SlotUsage) -> impl Iterator<Item = Moved> + use<'_> {
        let now = usage.cells.into_iter().flatten();
        now.zip(cells())
            .filter(move |(now, (class, direction))| *now != self.cell(slot, *class, *direction))
            .map(move |(now, (class, direction))| Moved { slot, class, direction, now })
    }

    /// The pages that `moved`, which is in the order of slots, touches, each with all its slots that ever counted anything, as they
    /// are after it.
    pub fn pages(
        &self,
        moved: &[Moved],
    ) -> impl Iterator<Item = (u32, impl Iterator<Item = (u32, SlotUsage)>)> {
        moved.chunk_by(|one, next| one.slot / PAGE == next.slot / PAGE).filter_map(move |moved| {
            let number = moved.first()?.slot / PAGE;
            let mut moved = moved.iter().peekable();
            let slots = (0..PAGE).map(move |within| {
                let slot = number * PAGE + within;
                let mut usage = self.slot(slot);
                while let Some(moved) = moved.next_if(|moved| moved.slot == slot) {
                    usage.cells[moved.class.index()][moved.direction.index()] = moved.now;
                }
                (slot, usage)
            });
            Some((number, slots.filter(|(_, usage)| *usage != SlotUsage::default())))
        })
    }
}

const fn place(class: Class, direction: Direction) -> usize {
    class.index() * Direction::BOTH.len() + direction.index()
}

fn cell(lane: &[Cell], slot: u32) -> Cell {
    usize::try_from(slot).ok().and_then(|slot| lane.get(slot)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn readings() -> impl Strategy<Value = Vec<(u32, usize, u64)>> {
        proptest::collection::vec((0..3 * PAGE, 0..CELLS, 1..100_u64), 0..40)
    }

    /// Counters by slot, risen by each of the readings.
    fn count(counters: &mut std::collections::BTreeMap<u32, SlotUsage>, readings: &[(u32, usize, u64)]) {
        for (slot, at, packets) in readings {
            let cell = &mut counters.entry(*slot).or_default().cells[at / 2][at % 2];
            cell.packets += packets;
            cell.bytes += packets * 100;
        }
    }

    proptest! {
        #[test]
        fn pages_hold_what_was_told_and_what_is_told_now(before in readings(), after in readings()) {
            let mut counters = std::collections::BTreeMap::new();
            let mut baseline = Baseline::default();
            count(&mut counters, &before);
            for (slot, usage) in &counters {
                let moved: Vec<_> = baseline.moved(*slot, usage).collect();
                for moved in &moved {
                    baseline.set(moved);
                }
            }
            for (slot, usage) in &counters {
                prop_assert_eq!(baseline.slot(*slot), *usage);
                prop_assert_eq!(baseline.moved(*slot, usage).count(), 0);
            }
            count(&mut counters, &after);
            let moved: Vec<_> =
                counters.iter().flat_map(|(slot, usage)| baseline.moved(*slot, usage).collect::<Vec<_>>()).collect();
            let touched: std::collections::BTreeSet<u32> = after.iter().map(|(slot, ..)| slot / PAGE).collect();
            let pages: Vec<_> =
                baseline.pages(&moved).map(|(page, slots)| (page, slots.collect::<Vec<_>>())).collect();
            prop_assert_eq!(pages.iter().map(|(page, _)| *page).collect::<Vec<_>>(), touched.into_iter().collect::<Vec<_>>());
            for (page, slots) in pages {
                let expected: Vec<_> =
                    counters.range(page * PAGE..(page + 1) * PAGE).map(|(slot, usage)| (*slot, *usage)).collect();
                prop_assert_eq!(slots, expected);
            }
        }
    }
}
