//! Counters and rates of the subscriber slots, in the memory the programs work on.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Release};

use aya::Ebpf;
use usher_models::wire::{
    Action, Cell, Class, Direction, Enforcement, LANES, LINE, Lane, Rate, SLOT_LANES, SlotUsage,
};

use super::ProbeError;
use super::mapped::Mapped;
use crate::usage::{Baseline, CELLS, Moved, cells};

/// Slots looked at together: what is noted of them fits a core's own cache, and their lanes of one kind are a few pages.
const BLOCK: u32 = 256;
const LANE_WORDS: usize = size_of::<Lane>() / size_of::<u64>();

/// All lanes of all slots.
pub(super) struct Lanes {
    memory: Mapped,
    slots: u32,
}

impl Lanes {
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str, slots: u32) -> Result<Self, ProbeError> {
        let lanes = slots.saturating_mul(u32::try_from(SLOT_LANES).unwrap_or(u32::MAX));
        Ok(Self { memory: Mapped::take::<Lane>(ebpf, name, lanes)?, slots })
    }

    /// The counters of a slot.
    pub(super) fn usage(&self, slot: u32) -> Result<SlotUsage, ProbeError> {
        self.check(slot)?;
        let mut usage = SlotUsage::default();
        for (class, cells) in Class::ALL.into_iter().zip(&mut usage.cells) {
            for (direction, cell) in Direction::BOTH.into_iter().zip(cells) {
                *cell = self.lanes(slot, class, direction, 1).next().unwrap_or_default();
            }
        }
        Ok(usage)
    }

    /// Adds the counters of these slots that are not where the baseline has them, in the order of slots.
    ///
    /// Walks lane by lane, as memory lies, through a block of slots at a time, and then slot by slot through those where something moved:
    /// what moves in between is told, or is there the next time.
    pub(super) fn moved(&self, baseline: &Baseline, slots: Range<u32>, moved: &mut Vec<Moved>) {
        let end = slots.end.min(self.slots);
        for first in (slots.start..end).step_by(BLOCK as usize) {
            let count = BLOCK.min(end - first) as usize;
            let mut risen = [0_u16; BLOCK as usize];
            for (bit, (class, direction)) in cells().enumerate() {
                let told = baseline.lane(class, direction).get(first as usize..).unwrap_or_default();
                let told = told.iter().copied().chain(std::iter::repeat(Cell::default()));
                for ((now, told), risen) in
                    self.lanes(first, class, direction, count).zip(told).zip(&mut risen)
                {
                    *risen |= u16::from(now != told) << bit;
                }
            }
            for (slot, risen) in (first..).zip(risen).filter(|(_, risen)| *risen != 0) {
                for (_, (class, direction)) in cells().enumerate().filter(|(bit, _)| risen & (1 << bit) != 0)
                {
                    let now = self.lanes(slot, class, direction, 1).next().unwrap_or_default();
                    moved.push(Moved { slot, class, direction, now });
                }
            }
        }
    }

    /// The counters of a class and direction, of so many slots from the first on.
    fn lanes(
        &self,
        first: u32,
        class: Class,
        direction: Direction,
        count: usize,
    ) -> impl Iterator<Item = Cell> {
        let words = self.memory.u64s(self.place(first, class.index(), direction), count * LANE_WORDS);
        words.unwrap_or_default().as_chunks::<LANE_WORDS>().0.iter().map(|lane| Cell {
            bytes: lane[word(offset_of!(Cell, bytes))].load(Acquire),
            packets: lane[word(offset_of!(Cell, packets))].load(Acquire),
            dropped_bytes: lane[word(offset_of!(Cell, dropped_bytes))].load(Acquire),
            dropped_packets: lane[word(offset_of!(Cell, dropped_packets))].load(Acquire),
        })
    }

    /// Puts enforcement of a slot in force; classes that shape it stay for now. A bucket of another rate begins empty: what was owed at
    /// the old rate would hold the new one back.
    pub(super) fn enforce(&self, slot: u32, enforcement: &Enforcement) -> Result<(), ProbeError> {
        self.check(slot)?;
        for (lane, rates) in enforcement.rates.iter().enumerate() {
            for (direction, rate) in Direction::BOTH.into_iter().zip(rates) {
                let at = self.place(slot, lane, direction);
                if self.rate(at) != *rate {
                    self.write(at + offset_of!(Lane, bits_per_second), rate.bits_per_second);
                    self.write_half(at + offset_of!(Lane, burst), units(rate.burst));
                    self.write(at + offset_of!(Lane, cost), rate.cost);
                    self.write(at + offset_of!(Lane, empty_at), 0);
                }
                let shaper = self.action(slot, lane, direction).shaper();
                self.write_half(
                    at + offset_of!(Lane, action),
                    enforcement.action(lane, direction).with_shaper(shaper).0,
                );
            }
        }
        Ok(())
    }

    /// Slots there are.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// The rates of a slot in a direction, lane by lane.
    pub(super) fn rates(&self, slot: u32, direction: Direction) -> [Rate; LANES] {
        std::array::from_fn(|lane| self.rate(self.place(slot, lane, direction)))
    }

    /// The minor numbers of the classes that shape a slot's packets in a direction, lane by lane; 0 for none.
    pub(super) fn shapers(&self, slot: u32, direction: Direction) -> [u16; LANES] {
        std::array::from_fn(|lane| self.action(slot, lane, direction).shaper())
    }

    /// Hands a slot's packets in a direction to these classes from now on, or to the buckets.
    pub(super) fn set_shapers(&self, slot: u32, direction: Direction, minors: &[u16; LANES]) {
        for (lane, minor) in minors.iter().enumerate() {
            let at = self.place(slot, lane, direction) + offset_of!(Lane, action);
            self.write_half(at, Action(self.read_half(at)).with_shaper(*minor).0);
        }
    }

    /// What is in force for a slot, as the programs find it.
    pub(super) fn enforcement(&self, slot: u32) -> Result<Enforcement, ProbeError> {
        self.check(slot)?;
        let mut enforcement = Enforcement::default();
        for (lane, rates) in enforcement.rates.iter_mut().enumerate() {
            for (direction, rate) in Direction::BOTH.into_iter().zip(rates) {
                *rate = self.rate(self.place(slot, lane, direction));
            }
        }
        for (class, marks) in enforcement.marks.iter_mut().enumerate() {
            for (direction, mark) in Direction::BOTH.into_iter().zip(marks) {
                *mark = self.action(slot, class, direction).mark();
            }
        }
        let mut gates = (0..LANES)
            .flat_map(|lane| Direction::BOTH.map(|direction| self.action(slot, lane, direction).gate()));
        enforcement.gate = gates.next().unwrap_or_default();
        debug_assert!(LINE < LANES && gates.all(|gate| gate == enforcement.gate));
        Ok(enforcement)
    }

    fn action(&self, slot: u32, lane: usize, direction: Direction) -> Action {
        Action(self.read_half(self.place(slot, lane, direction) + offset_of!(Lane, action)))
    }

    fn rate(&self, at: usize) -> Rate {
        Rate {
            bits_per_second: self.read(at + offset_of!(Lane, bits_per_second)),
            cost: self.read(at + offset_of!(Lane, cost)),
            burst: u64::from(self.read_half(at + offset_of!(Lane, burst))) * Rate::BURST_UNIT,
        }
    }

    /// Bytes from the beginning of the map to a lane.
    fn place(&self, slot: u32, lane: usize, direction: Direction) -> usize {
        let place = Lane::place(self.slots, slot, lane, direction);
        usize::try_from(place).map_or(usize::MAX, |place| place.saturating_mul(size_of::<Lane>()))
    }

    fn check(&self, slot: u32) -> Result<(), ProbeError> {
        if slot < self.slots { Ok(()) } else { Err(ProbeError::NoSuchSlot { slot, slots: self.slots }) }
    }

    fn read(&self, at: usize) -> u64 {
        self.memory.u64(at).map_or(0, |word| word.load(Acquire))
    }

    fn read_half(&self, at: usize) -> u32 {
        self.memory.u32(at).map_or(0, |word| word.load(Acquire))
    }

    fn write(&self, at: usize, value: u64) {
        if let Some(word) = self.memory.u64(at) {
            word.store(value, Release);
        }
    }

    fn write_half(&self, at: usize, value: u32) {
        if let Some(word) = self.memory.u32(at) {
            word.store(value, Release);
        }
    }
}

/// The word of a lane that a number of its counters is.
const fn word(of_cell: usize) -> usize {
    (offset_of!(Lane, cell) + of_cell) / size_of::<u64>()
}

const _: () = assert!(CELLS == u16::BITS as usize, "a bit for each of a slot's counters");

/// A burst as the programs have it; a longer one than fits is the longest that does.
fn units(burst: u64) -> u32 {
    u32::try_from(burst.div_ceil(Rate::BURST_UNIT)).unwrap_or(u32::MAX)
}
