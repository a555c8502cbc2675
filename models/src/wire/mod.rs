//! Records shared by the probe in the kernel and the agent, byte for byte.
//!
//! Everything here is `#[repr(C)]`, free of padding, valid for any bit pattern, and asserted at compile time. Times are
//! the kernel's monotonic nanoseconds, lengths are bytes, ports are in host order.
//!
//! A change of layout changes [`LAYOUT`]: an agent never reads maps of another layout.

mod app;
mod dscp;
mod flow;
mod lane;
mod quality;
mod rate;
mod reason;
mod telling;

pub use app::{AppLane, MAX_APP_NAME};
pub use dscp::Dscp;
pub use flow::{
    Config, Fingerprint, FirstBytes, Flow, FlowDetails, FlowLine, FlowState, HashKeys, KEY_WORDS,
    MAX_FIRST_BYTES, PREFIX_BITS, WAYS,
};
pub use lane::{Action, Enforcement, Gate, LANES, LINE, Lane, SLOT_LANES, tree};
pub use quality::{QUALITY_WAYS, Quality, QualityCounts, ROUND_TRIP_BUCKETS, Turn};
pub use rate::Rate;
pub use reason::{Reason, Tally};
pub use telling::{TcpFlags, tells, tells_without_end};

/// Version of every record below; kept in the pinned maps and compared before any of them is read.
pub const LAYOUT: u32 = 5;

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

/// Who a packet of no known session belongs to.
pub const ANONYMOUS: u32 = 0;

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Cell>() == 32);
    assert!(size_of::<SlotUsage>() == 512);
};
