//! What the bench tells its driver program: one record, shared by both sides.

/// How packets are made to differ. In memory, the numbers one after another.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Plan {
    /// The turn to begin with; the driver counts on from it.
    pub turn: u32,
    /// [`IPV4`], [`IPV6`] or [`GTPU`].
    pub shape: u32,
    /// How many flows there are, less one; flows are a power of two.
    pub flow_mask: u32,
    /// How many subscribers have them.
    pub subscribers: u32,
    /// [`DOWN`], [`BOTH`] or [`UP`].
    pub ways: u32,
    /// Added to a flow's number in its remote address: other flows of the same subscribers.
    pub remote_offset: u32,
}

/// Ethernet, IPv4, TCP.
pub const IPV4: u32 = 0;
/// Ethernet, IPv6, TCP.
pub const IPV6: u32 = 1;
/// Ethernet, IPv4, UDP, GTP-U without options, IPv4, TCP.
pub const GTPU: u32 = 2;

/// All packets go down.
pub const DOWN: u32 = 0;
/// They go up and down in turns.
pub const BOTH: u32 = 1;
/// All go up.
pub const UP: u32 = 2;

/// Bytes before the subscriber's IP header in a frame without a tunnel.
pub const PLAIN_AT: usize = 14;
/// The same in a frame of [`GTPU`].
pub const GTPU_AT: usize = 14 + 20 + 8 + 8;
/// The subscriber with number 0, 10.0.0.1, to which the number is added. In IPv6 it has 2001:db8:NUMBER::/64.
pub const SUBSCRIBER: u32 = 0x0a00_0001;
/// The server of the flow with number 0, 198.18.0.0, to which the number is added. In IPv6 it is the last word.
pub const REMOTE: u32 = 0xc612_0000;
