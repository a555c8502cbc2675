//! Records shared by the probe in the kernel and the agent, byte for byte.
//!
//! Everything here is `#[repr(C)]`, free of padding, valid for any bit pattern, and asserted at compile time. Times are
//! the kernel's monotonic nanoseconds, lengths are bytes, ports are in host order.
//!
//! A change of layout changes [`LAYOUT`]: an agent never reads maps of another layout.

mod flow;
mod rate;
mod reason;

pub use flow::{
    Binding, Config, FirstBytes, Flow, GENERATION_NONE, MAX_FIRST_BYTES, PREFIX_BITS, UNLIMITED_SAMPLES,
};
pub use rate::Rate;
pub use reason::{Reason, Tally};

/// Version of every record below; kept in the pinned maps and compared before any of them is read.
pub const LAYOUT: u32 = 1;

/// Kinds of use, a small fixed set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Not named yet, or of no kind below.
    #[default]
    Other = 0,
    /// Streams to watch.
    Video = 1,
    /// Voice and video calls.
    Call = 2,
    /// Interactive games.
    Game = 3,
    /// Pages.
    Web = 4,
    /// Social networks and messages.
    Social = 5,
    /// Downloads, updates, backups, file sharing.
    Bulk = 6,
    /// What keeps the network and the device going: DNS, NTP, ...
    System = 7,
}

impl Class {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Other, Self::Video, Self::Call, Self::Game, Self::Web, Self::Social, Self::Bulk, Self::System];

    /// Its place in arrays by class.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The class of a record's byte; a number of no class is [`Class::Other`].
    pub const fn from_u8(number: u8) -> Self {
        if (number as usize) < Self::COUNT { Self::ALL[number as usize] } else { Self::Other }
    }
}

/// Which way a packet goes, seen from the subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the subscriber.
    Up = 0,
    /// To the subscriber.
    Down = 1,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }

    /// Its place in arrays by direction.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Both directions of a 5-tuple, told apart by who is the subscriber. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    /// The subscriber's address.
    pub subscriber: [u8; 16],
    /// The other end's address.
    pub remote: [u8; 16],
    /// The subscriber's port; 0 where the protocol has none or a fragment does not show it.
    pub subscriber_port: u16,
    /// The other end's port; 0 likewise.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 3],
}

/// In as few and as wide pieces as there are: of all that is done with a packet in user space, finding its flow costs most.
impl core::hash::Hash for FlowKey {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.subscriber));
        state.write_u128(u128::from_ne_bytes(self.remote));
        let ports = u64::from(self.subscriber_port) << 16 | u64::from(self.remote_port);
        let [a, b, c] = self.zero;
        let rest = u64::from(u32::from_ne_bytes([self.protocol, a, b, c]));
        state.write_u64(rest << 32 | ports);
    }
}

/// Counters of one subscriber slot in one class and direction. Only ever rise, for as long as the maps live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cell {
    /// Innermost IP bytes let through.
    pub bytes: u64,
    /// Packets let through; a GSO super-packet counts its segments.
    pub packets: u64,
    /// Innermost IP bytes held back by enforcement.
    pub dropped_bytes: u64,
    /// Packets held back by enforcement.
    pub dropped_packets: u64,
}

/// All counters of one subscriber slot, by class and direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotUsage {
    /// `[class][direction]`.
    pub cells: [[Cell; 2]; Class::COUNT],
}

/// Rates apply per class, and once more over the whole line: the lane after the classes.
pub const LANES: usize = Class::COUNT + 1;

/// The lane of the whole line.
pub const LINE: usize = Class::COUNT;

/// Who a packet of no known session belongs to.
pub const ANONYMOUS: u32 = 0;

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Cell>() == 32);
    assert!(size_of::<SlotUsage>() == 512);
};

/// What enforcement does with one subscriber slot. Written by the agent, read by the probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Enforcement {
    /// A [`Gate`]'s number: what happens to the whole line before any class is looked at.
    pub gate: u32,
    /// Not zero where any rate is set: the probe reads no rate and no clock for a slot without. See [`Enforcement::new`].
    pub limited: u32,
    /// `[lane][direction]`: the classes in their order, then the whole line.
    pub rates: [[Rate; 2]; LANES],
}

impl Enforcement {
    /// The record of a gate and rates.
    pub fn new(gate: Gate, rates: [[Rate; 2]; LANES]) -> Self {
        let limited = rates.iter().flatten().any(Rate::limits);
        Self { gate: gate as u32, limited: u32::from(limited), rates }
    }

    /// The same with `rate` in one lane and direction.
    #[must_use]
    pub fn with_rate(mut self, lane: usize, direction: Direction, rate: Rate) -> Self {
        self.rates[lane][direction.index()] = rate;
        Self::new(Gate::from_u32(self.gate), self.rates)
    }

    /// The same with another gate.
    #[must_use]
    pub fn with_gate(self, gate: Gate) -> Self {
        Self::new(gate, self.rates)
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

/// The times of a subscriber slot's token buckets, `[lane][direction]`, in the ticks of [`Rate`]. Written by the probe alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Buckets {
    /// When each bucket is empty again.
    pub empty_at: [[u64; 2]; LANES],
    /// The same for the bytes handed to the agent, see [`Config::sample_rate`].
    pub samples_empty_at: u64,
}

const _: () = {
    assert!(size_of::<Enforcement>() == 8 + LANES * 2 * 24);
    assert!(size_of::<Buckets>() == LANES * 2 * 8 + 8);
};
