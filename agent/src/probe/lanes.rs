//! Counters and rates of the subscriber slots, in the memory the programs work on.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{Acquire, Release};

use aya::Ebpf;
use usher_models::wire::{
    Action, Cell, Class, Direction, Enforcement, LANES, LINE, Lane, Rate, SLOT_LANES, SlotUsage,
};

use super::ProbeError;
use super::mapped::Mapped;

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
                let at = self.place(slot, class.index(), direction) + offset_of!(Lane, cell);
                *cell = Cell {
                    bytes: self.read(at + offset_of!(Cell, bytes)),
                    packets: self.read(at + offset_of!(Cell, packets)),
                    dropped_bytes: self.read(at + offset_of!(Cell, dropped_bytes)),
                    dropped_packets: self.read(at + offset_of!(Cell, dropped_packets)),
                };
            }
        }
        Ok(usage)
    }

    /// Puts enforcement of a slot in force; classes that shape it stay for now. A bucket of another rate begins empty: what was owed at the old rate would hold the
    /// new one back.
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

/// A burst as the programs have it; a longer one than fits is the longest that does.
fn units(burst: u64) -> u32 {
    u32::try_from(burst.div_ceil(Rate::BURST_UNIT)).unwrap_or(u32::MAX)
}
