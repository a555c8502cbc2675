//! Records shared by the probe in the kernel and the agent, byte for byte.
//!
//! Everything here is `#[repr(C)]`, free of padding, valid for any bit pattern, and asserted at compile time. Times are
//! the kernel's monotonic nanoseconds, lengths are bytes, ports are in host order.
//!
//! A change of layout changes [`LAYOUT`]: an agent never reads maps of another layout.

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

    /// Its place in arrays by direction.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Both directions of a 5-tuple, told apart by who is the subscriber. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Zero.
    pub zero: u32,
    /// `[lane][direction]`: the classes in their order, then the whole line.
    pub rates: [[Rate; 2]; LANES],
}

/// The roaming gate of a subscriber slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Gate {
    /// Traffic passes; the rates apply.
    #[default]
    Pass = 0,
    /// Traffic is held to the rate of the lane [`LINE`]; classes' rates apply too.
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

/// A token bucket's shape, as the kernel computes with it. All zero: no limit.
///
/// The bucket is a generic cell rate algorithm (ITU-T I.371, Annex A) on one 64-bit time: a packet of `n` bytes moves the
/// bucket's time on by `n * cost >> COST_SHIFT` ticks and passes if that time is not more than `burst` ticks ahead of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// The rate as configured, for people and read-back; bits per second.
    pub bits_per_second: u64,
    /// Ticks a byte costs, shifted left by [`Rate::COST_SHIFT`].
    pub cost: u64,
    /// Ticks the bucket may run ahead.
    pub burst: u64,
}

impl Rate {
    /// Ticks per nanosecond as a shift: 1/64 ns, so that a byte at 100 Gbit/s still costs 5.12 ticks and u64 lasts 9 years.
    pub const TICK_SHIFT: u32 = 6;
    /// Fraction bits of [`Rate::cost`].
    pub const COST_SHIFT: u32 = 18;

    /// No limit.
    pub const UNLIMITED: Self = Self { bits_per_second: 0, cost: 0, burst: 0 };
}

const _: () = {
    assert!(size_of::<Rate>() == 24);
    assert!(size_of::<Enforcement>() == 8 + LANES * 2 * 24);
};
