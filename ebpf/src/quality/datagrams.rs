//! What one UDP datagram after another tells of the path: QUIC's handshake and spin bit, and whether a call's packets come evenly.
//!
//! QUIC (RFC 9000): the time from the first datagram of a connection, a long header of type Initial, to the server's first that is neither a Retry nor
//! a Version Negotiation, and on to the client's next, which that one made it send. By datagrams: what is in them is encrypted, and a
//! server's first holds its whole flight or the beginning of it. Then the spin bit of short headers (RFC 9312, 3.8.2): an edge that the other side
//! gives back. Ends that do not spin it keep it as it is, or set it by chance; so an edge counts where it is the one the other side has to make, and
//! takes at least a quarter of the handshake's time.
//!
//! Calls: the datagrams of a window of 134 ms, held against how many there are as a rule. A call that is served well sends and gets about as many in
//! each; one that is not has gaps and bursts.
//!
//! Each direction has a [`Half`] that only its own datagrams write, as in [`super::segments`]. Compiles for the kernel and for the host.

use super::segments::{Measured, Ticks};

/// Nanoseconds in a window, as a power of two: 134 ms.
const WINDOW_SHIFT: u32 = 27;
/// Windows after which how many datagrams are usual is known.
const WARM: u8 = 8;
/// Windows in a row without a datagram from which on the call has paused, and begins anew.
const PAUSE: u16 = 20;

/// QUIC's spin bit, in a short header (RFC 9000, 17.3.1).
const SPIN: u8 = 0x20;
/// The bits that say which header it is: long, and fixed.
const LONG: u8 = 0x80;
const FIXED: u8 = 0x40;

/// The direction has sent an Initial, or answered one.
const OPENED: u8 = 1;
/// The latest spin bit.
const SPINS: u8 = 2;
/// An edge was seen, at `edge_at`, which waits for its answer.
const EDGE: u8 = 4;

/// What one direction has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Half {
    /// When the latest edge of the spin bit, or of the handshake, was seen; 0: none waits.
    edge_at: Ticks,
    /// The round trip that this direction's handshake answered, in 64 ticks; 0: none.
    handshake: u16,
    flags: u8,
    turn: u8,
    /// The window of the latest datagram, as far as it fits.
    window: u16,
    /// Datagrams in it so far.
    count: u16,
    /// How many there are in one as a rule, in sixteenths.
    usual: u16,
    /// Windows that made up the rule, up to [`WARM`].
    warm: u8,
}

impl Half {
    #[inline(always)]
    pub const fn of([quic, call, _]: [u64; 3]) -> Self {
        Self {
            edge_at: quic as u32,
            handshake: (quic >> 32) as u16,
            flags: (quic >> 48) as u8,
            turn: (quic >> 56) as u8,
            window: call as u16,
            count: (call >> 16) as u16,
            usual: (call >> 32) as u16,
            warm: (call >> 48) as u8,
        }
    }

    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [
            (self.turn as u64) << 56
                | (self.flags as u64) << 48
                | (self.handshake as u64) << 32
                | self.edge_at as u64,
            (self.warm as u64) << 48
                | (self.usual as u64) << 32
                | (self.count as u64) << 16
                | self.window as u64,
            0,
        ]
    }

    #[inline(always)]
    const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The beginning of a datagram's payload.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// Its first byte.
    pub first: u8,
    /// The four after it, where the header is a long one: the version.
    pub version: u32,
    /// Whether the subscriber sent it. Only subscribers open connections here.
    pub up: bool,
}

/// What a datagram told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// How long it took from a datagram of the other direction to this one, which answers it; 0: it answers none.
    pub round_trip: Ticks,
    /// Windows of a call that are over.
    pub windows: u32,
    /// Those in which as many datagrams as usual did not come.
    pub irregular: u32,
}

/// Version 2's numbers of its types of long headers are one further (RFC 9369, 3.2).
const VERSION_2: u32 = 0x6b33_43cf;

/// The type of a long header, by version 1's numbers: 0 is Initial, 3 is Retry.
#[inline(always)]
const fn kind(datagram: &Datagram) -> u8 {
    let kind = datagram.first >> 4 & 3;
    if datagram.version == VERSION_2 { kind.wrapping_sub(1) & 3 } else { kind }
}

/// Takes a datagram of what may be QUIC in.
#[inline(always)]
pub fn take_quic(
    own: Half,
    other: &Half,
    datagram: &Datagram,
    turn: &Measured,
    now: impl Fn() -> Ticks,
) -> (Half, Told) {
    // What waited in a turn that is over may have been answered in one that was not seen.
    let old = |half: &Half| !turn.always && half.turn != turn.turn;
    let other = &if old(other) { Half { edge_at: 0, ..*other } } else { *other };
    let mut own = if old(&own) { Half { edge_at: 0, ..own } } else { own };
    own.turn = turn.turn;
    let mut told = Told::default();
    if datagram.first & LONG != 0 {
        if datagram.version != 0 && datagram.first & FIXED != 0 {
            handshake(&mut own, other, datagram, &mut told, &now);
        }
    } else if datagram.first & FIXED != 0 {
        spin(&mut own, other, datagram, &mut told, &now);
    }
    (own, told)
}

#[inline(always)]
fn handshake(own: &mut Half, other: &Half, datagram: &Datagram, told: &mut Told, now: &impl Fn() -> Ticks) {
    let kind = kind(datagram);
    if datagram.up && !own.is(OPENED) {
        if kind == 0 {
            own.flags |= OPENED;
            own.edge_at = now() | 1;
        }
        return;
    }
    // The server's first, and then the client's first after it.
    if kind != 3 && own.handshake == 0 && other.is(OPENED) && other.edge_at != 0 {
        let at = now() | 1;
        answered(own, at.wrapping_sub(other.edge_at), told);
        own.flags |= OPENED;
        own.edge_at = at;
    }
}

#[inline(always)]
fn answered(own: &mut Half, ticks: Ticks, told: &mut Told) {
    told.round_trip = ticks.max(1);
    let coarse = (ticks >> 6).max(1);
    own.handshake = if coarse > 0xffff { 0xffff } else { coarse as u16 };
}

#[inline(always)]
fn spin(own: &mut Half, other: &Half, datagram: &Datagram, told: &mut Told, now: &impl Fn() -> Ticks) {
    let value = datagram.first & SPIN != 0;
    if own.is(SPINS) == value {
        return;
    }
    own.flags ^= SPINS;
    // A client sends the opposite of what it got, a server what it got: any other edge is nobody's answer.
    let expected = if datagram.up { !other.is(SPINS) } else { other.is(SPINS) };
    let at = now() | 1;
    own.edge_at = at;
    own.flags |= EDGE;
    if value != expected || !other.is(EDGE) || other.edge_at == 0 {
        return;
    }
    let ticks = at.wrapping_sub(other.edge_at);
    if own.handshake != 0 && ticks >> 4 >= own.handshake as Ticks {
        told.round_trip = ticks.max(1);
    }
}

/// Takes a datagram of a call in, that passes at so many nanoseconds: those of the kernel's last tick are exact enough.
#[inline(always)]
pub fn take_call(own: Half, turn: &Measured, now_ns: u64) -> (Half, Told) {
    let mut own = own;
    let mut told = Told::default();
    let window = (now_ns >> WINDOW_SHIFT) as u16;
    let passed = window.wrapping_sub(own.window);
    own.turn = turn.turn;
    if own.count != 0 && passed == 0 {
        own.count = own.count.saturating_add(1);
        return (own, told);
    }
    let unseen = passed > PAUSE || (passed > 1 && !turn.always);
    if own.count != 0 && !unseen {
        over(&mut own, &mut told);
        // Those in between had none.
        let empty = passed as u32 - 1;
        if own.warm >= WARM {
            told.windows += empty;
            told.irregular += empty;
        }
    }
    own.window = window;
    own.count = 1;
    (own, told)
}

/// The window of the latest datagrams is over.
#[inline(always)]
fn over(own: &mut Half, told: &mut Told) {
    let count = if own.count > 0xfff { 0xfff0 } else { own.count << 4 };
    if own.warm < WARM {
        // The first of them is not a whole one: the mean begins with the second.
        own.usual = if own.warm < 2 { count } else { mean(own.usual, count) };
        own.warm += 1;
        return;
    }
    told.windows = 1;
    told.irregular = (count.abs_diff(own.usual) > own.usual / 2) as u32;
    own.usual = mean(own.usual, count);
}

/// The mean, of which the latest is an eighth.
#[inline(always)]
const fn mean(usual: u16, count: u16) -> u16 {
    (usual as u32 - (usual as u32 >> 3) + (count as u32 >> 3)) as u16
}
