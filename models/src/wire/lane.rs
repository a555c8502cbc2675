//! What is counted and enforced of a subscriber slot, lane by lane.

use super::{Cell, Class, Direction, Dscp, Rate};

/// Rates apply per class, and once more over the whole line: the lane after the classes.
pub const LANES: usize = Class::COUNT + 1;

/// The lane of the whole line.
pub const LINE: usize = Class::COUNT;

/// Records of one slot: each lane in each direction.
pub const SLOT_LANES: usize = LANES * 2;

/// A class of a subscriber slot in one direction: its counters, its rate and its bucket, on one cache line.
///
/// The probe adds to `cell` and moves `empty_at` on, atomically; the agent writes the rest. The [`LINE`]'s `cell` stays zero, and so
/// does that of every lane of [`super::ANONYMOUS`], whose packets come on all CPUs at once and are counted by CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Lane {
    /// What was let through and held back.
    pub cell: Cell,
    /// When the bucket is empty again, in the ticks of [`Rate`].
    pub empty_at: u64,
    /// As [`Rate::bits_per_second`]; only for people and read-back.
    pub bits_per_second: u64,
    /// As [`Rate::cost`].
    pub cost: u64,
    /// As [`Rate::burst`], in units of [`Rate::BURST_UNIT`] ticks.
    pub burst: u32,
    /// An [`Action`].
    pub action: Action,
}

impl Lane {
    /// The place of a slot's lane in the map, which has `slots` of them: lane by lane, for what passes at one time is of a few of
    /// them, and is then in few pages.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "lanes are few")]
    pub const fn place(slots: u32, slot: u32, lane: usize, direction: Direction) -> u32 {
        ((lane * 2 + direction.index()) as u32).wrapping_mul(slots).wrapping_add(slot)
    }
}

/// What happens to a packet of a lane besides its bucket, as the probe reads it in one word.
///
/// From the lowest bit: gate 2, line limited 1, marked 1, code point 6 from bit 8 on, and from bit 16 on the minor number of the class
/// that shapes the lane's packets; 0, which is no class's: none does, and the buckets hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Action(pub u32);

impl Action {
    const GATE: u32 = 3;
    const LINE_LIMITED: u32 = 4;
    const MARKED: u32 = 8;
    const DSCP: u32 = 8;
    const SHAPER: u32 = 16;

    /// That of a gate, in a slot whose line is limited in this direction or not.
    pub const fn new(gate: Gate, line_limited: bool) -> Self {
        Self(gate as u32 | if line_limited { Self::LINE_LIMITED } else { 0 })
    }

    /// The same with a code point for what passes.
    #[must_use]
    pub const fn with_mark(self, mark: Option<Dscp>) -> Self {
        match mark {
            Some(dscp) => Self(self.0 | Self::MARKED | (dscp.get() as u32) << Self::DSCP),
            None => self,
        }
    }

    /// The same with the minor number of the class that shapes what passes; 0 for none.
    #[must_use]
    pub const fn with_shaper(self, minor: u16) -> Self {
        Self(self.0 & ((1 << Self::SHAPER) - 1) | (minor as u32) << Self::SHAPER)
    }

    /// The minor number of the class that shapes what passes; 0 for none.
    #[inline]
    pub const fn shaper(self) -> u16 {
        (self.0 >> Self::SHAPER) as u16
    }

    /// The slot's gate.
    #[inline]
    pub const fn gate(self) -> Gate {
        Gate::from_u32(self.0 & Self::GATE)
    }

    /// Whether the rate of the [`LINE`] holds too.
    #[inline]
    pub const fn line_limited(self) -> bool {
        self.0 & Self::LINE_LIMITED != 0
    }

    /// The code point that packets let through are given.
    #[inline]
    pub const fn mark(self) -> Option<Dscp> {
        if self.0 & Self::MARKED != 0 { Some(Dscp::of_bits(self.0 >> Self::DSCP)) } else { None }
    }
}

/// The major number of the tree of classes that shapes packets of a direction: its qdisc's handle, by which it is recognised, and the
/// upper half of a packet's priority where the lower half is the minor number of a class in it.
#[inline]
pub const fn tree(direction: Direction) -> u16 {
    match direction {
        Direction::Up => 0x5553,
        Direction::Down => 0x5554,
    }
}

/// What enforcement does with one subscriber slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// What happens to the whole line before any class is looked at.
    pub gate: Gate,
    /// `[lane][direction]`: the classes in their order, then the whole line.
    pub rates: [[Rate; 2]; LANES],
    /// `[class][direction]`: the code point that packets let through are given; `None`: the one they come with.
    pub marks: [[Option<Dscp>; 2]; Class::COUNT],
}

impl Enforcement {
    /// The same with `rate` in one lane and direction.
    #[must_use]
    pub const fn with_rate(mut self, lane: usize, direction: Direction, rate: Rate) -> Self {
        self.rates[lane][direction.index()] = rate;
        self
    }

    /// The same with another gate.
    #[must_use]
    pub const fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// The same with a code point for one class and direction.
    #[must_use]
    pub const fn with_mark(mut self, class: Class, direction: Direction, dscp: Dscp) -> Self {
        self.marks[class.index()][direction.index()] = Some(dscp);
        self
    }

    /// What the probe is told for one lane and direction.
    pub fn action(&self, lane: usize, direction: Direction) -> Action {
        let line_limited = self.rates[LINE][direction.index()].limits();
        let mark = self.marks.get(lane).and_then(|marks| marks[direction.index()]);
        Action::new(self.gate, line_limited).with_mark(mark)
    }
}

/// The roaming gate of a subscriber slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Gate {
    /// Traffic passes; the rates apply.
    #[default]
    Pass = 0,
    /// As [`Gate::Pass`]: what limits is the rate of the lane [`LINE`], the number tells people why it is there.
    Limit = 1,
    /// Nothing passes.
    Block = 2,
}

impl Gate {
    /// The gate of a record's number; a number of no gate is [`Gate::Pass`], for forwarding goes first.
    pub const fn from_u32(number: u32) -> Self {
        match number {
            1 => Self::Limit,
            2 => Self::Block,
            _ => Self::Pass,
        }
    }
}

const _: () = {
    assert!(size_of::<Lane>() == 64);
    assert!(core::mem::offset_of!(Lane, empty_at) == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_keeps_the_gate_the_line_the_mark_and_the_shaper() {
        for gate in [Gate::Pass, Gate::Limit, Gate::Block] {
            for limited in [false, true] {
                for mark in [None, Dscp::new(0), Dscp::new(46), Dscp::new(63)] {
                    for shaper in [0, 1, u16::MAX] {
                        let action = Action::new(gate, limited).with_mark(mark).with_shaper(shaper);
                        assert_eq!((action.gate(), action.line_limited()), (gate, limited));
                        assert_eq!((action.mark(), action.shaper()), (mark, shaper));
                        assert_eq!(action.with_shaper(0), Action::new(gate, limited).with_mark(mark));
                    }
                }
            }
        }
    }

    #[test]
    fn every_lane_has_its_place() {
        let mut expected = 0;
        for lane in 0..LANES {
            for direction in Direction::BOTH {
                for slot in 0..3 {
                    assert_eq!(Lane::place(3, slot, lane, direction), expected);
                    expected += 1;
                }
            }
        }
    }
}
