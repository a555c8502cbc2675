//! What one TCP segment after another tells of the path: round-trip times, and segments that were sent again or came late.
//!
//! Each direction of a flow has a [`Half`], three words that only its own segments write; so two CPUs with a direction each undo nothing
//! of each other's. The other direction's segments only take the answer they are off the half that waited for it.
//!
//! A round trip is from a segment to what answers it: with time stamps from the first segment of a time stamp to its echo (RFC 7323, 4), else
//! from new bytes to what acknowledges them, if nothing was sent again meanwhile (Karn); so handshakes are measured as well. Segments without
//! payload begin none, for nothing answers them. A peer that delays its acknowledgements adds to it.
//!
//! A segment below the highest sequence number seen was sent before, or fills a hole: one that was lost before the probe saw it, or that was
//! overtaken. Overtaken it is where it comes within half the path's round-trip time after the hole was seen, for the sender cannot have
//! known of the loss by then; that is the shortest time lately (RFC 8985, 6.2, takes it too), for an acknowledgement that was delayed
//! tells of the peer and not of the path. Keep-alives and window probes, which repeat one byte or none (RFC 9293, 3.8.4), are no segments that were lost.
//!
//! Compiles for the kernel and for the host. Times are [`Ticks`].

use usher_models::wire::{TcpFlags, Turn};

/// The monotonic clock in units of 1,024 ns. Wraps after 73 minutes.
pub type Ticks = u32;

/// Nanoseconds in a tick, as a power of two.
pub const TICK_SHIFT: u32 = 10;

/// How late a segment may be and still have been overtaken, where no round-trip time is known: 3 ms.
const OVERTAKEN_WITHIN: Ticks = 2_930;

/// Sequence numbers are known up to `next`.
const KNOWN: u8 = 1;
/// While nothing waits, `mark` is the latest time stamp.
const WATCHING: u8 = 2;
/// Other time stamps were sent since the one that waits.
const MOVED: u8 = 4;
/// Measured in every turn, when last written.
const ALWAYS: u8 = 8;

/// What waits is an echo of a time stamp, not an acknowledgement: the lowest bit of its time.
const ECHO: Ticks = 1;

/// What one direction has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Half {
    /// What waits for its answer, see [`Waiting`].
    pub waiting: Waiting,
    /// The sequence number after the highest seen.
    next: u32,
    /// Where the latest hole began.
    hole: u32,
    /// When it was seen; 0: there is none.
    hole_at: Ticks,
    /// The shortest round trip lately that this direction's segments answered, in 64 ticks; 0: none yet.
    round_trip: u16,
    /// In which turn the last segment was measured.
    turn: u8,
    flags: u8,
}

/// A segment that waits for its answer: what the answer says, and when the segment was seen, with [`ECHO`]. A time of zero is that none waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    mark: u32,
    since: Ticks,
}

impl Waiting {
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self { mark: word as u32, since: (word >> 32) as u32 }
    }

    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.since as u64) << 32 | self.mark as u64
    }

    #[inline(always)]
    const fn for_echo(mark: u32, now: Ticks) -> Self {
        Self { mark, since: now | ECHO }
    }

    #[inline(always)]
    const fn for_acknowledgement(mark: u32, now: Ticks) -> Self {
        let since = now & !ECHO;
        Self { mark, since: if since == 0 { 2 } else { since } }
    }

    /// The same, answered.
    #[inline(always)]
    pub const fn over(self) -> Self {
        Self { mark: self.mark, since: 0 }
    }

    #[inline(always)]
    const fn waits(self) -> bool {
        self.since != 0
    }

    #[inline(always)]
    const fn echo(self) -> bool {
        self.since & ECHO != 0
    }
}

impl Half {
    #[inline(always)]
    pub const fn of([waiting, sequence, rest]: [u64; 3]) -> Self {
        Self {
            waiting: Waiting::of(waiting),
            next: sequence as u32,
            hole: (sequence >> 32) as u32,
            hole_at: rest as u32,
            round_trip: (rest >> 32) as u16,
            turn: (rest >> 48) as u8,
            flags: (rest >> 56) as u8,
        }
    }

    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [
            self.waiting.word(),
            (self.hole as u64) << 32 | self.next as u64,
            (self.flags as u64) << 56
                | (self.turn as u64) << 48
                | (self.round_trip as u64) << 32
                | self.hole_at as u64,
        ]
    }

    /// Whether all since its last segment was measured.
    #[inline(always)]
    const fn goes_on(&self, now: &Measured) -> bool {
        self.turn == now.turn
            || now.always && self.flags & ALWAYS != 0 && now.turn.wrapping_sub(self.turn) <= Turn::PATIENCE
    }

    #[inline(always)]
    const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The turn of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Its number, as far as it fits.
    pub turn: u8,
    /// Whether the flow is measured in every turn.
    pub always: bool,
}

/// A TCP segment, or a super-packet of several.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: TcpFlags,
    pub payload_bytes: u32,
    /// Payload of each segment of a super-packet; 0: it is none.
    pub segment_bytes: u32,
    pub stamps: Stamps,
}

/// The time stamp of a segment and the one it echoes, where it has them. No `Option`, for the verifier refuses what is nothing to be carried
/// about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stamps {
    pub there: bool,
    pub value: u32,
    pub echoed: u32,
}

/// What a segment told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Segments that take sequence numbers.
    pub segments: u32,
    /// Those that had been sent before.
    pub retransmitted: u32,
    /// Those that were overtaken.
    pub reordered: u32,
    /// How long it took from a segment of the other direction to this one, which answers it; 0: it answers none.
    pub round_trip: Ticks,
    /// The other direction waits no more.
    pub answers: bool,
}

/// Whether `a` comes after `b` (RFC 9293, 3.4).
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Takes a segment in: of its own direction's half what it is next, and what the segment told.
#[inline(always)]
pub fn take(
    own: Half,
    other: &Half,
    segment: &Segment,
    turn: &Measured,
    now: impl Fn() -> Ticks,
) -> (Half, Told) {
    let mut own = if own.goes_on(turn) {
        own
    } else {
        // What passed meanwhile was not seen: only what does not age is still true.
        Half { round_trip: own.round_trip, ..Half::default() }
    };
    own.turn = turn.turn;
    own.flags = own.flags & !ALWAYS | if turn.always { ALWAYS } else { 0 };
    let mut told = Told::default();
    answer(&mut own, other, segment, turn, &mut told, &now);

    let begins = segment.flags.any(TcpFlags::SYN);
    let ends = segment.flags.any(TcpFlags::FIN);
    let taken = segment.payload_bytes + begins as u32 + ends as u32;
    let mut fresh = false;
    if taken != 0 {
        fresh = place(&mut own, other, segment, taken, &mut told, &now);
    }
    wait(&mut own, segment, taken, fresh, &now);
    (own, told)
}

/// Whether the segment is what the other direction waits for, or shows that it will not come.
#[inline(always)]
fn answer(
    own: &mut Half,
    other: &Half,
    segment: &Segment,
    turn: &Measured,
    told: &mut Told,
    now: &impl Fn() -> Ticks,
) {
    let waiting = other.waiting;
    if !waiting.waits() || !segment.flags.any(TcpFlags::ACK) {
        return;
    }
    let said = if waiting.echo() {
        if !segment.stamps.there {
            return;
        }
        segment.stamps.echoed
    } else {
        segment.acknowledgement
    };
    if after(waiting.mark, said) {
        return;
    }
    told.answers = true;
    // An echo that is past the one waited for is another segment's; an acknowledgement that is past it is its as well.
    if (waiting.echo() && said != waiting.mark) || !other.goes_on(turn) {
        return;
    }
    let round_trip = now().wrapping_sub(waiting.since).max(1);
    told.round_trip = round_trip;
    let coarse = (round_trip >> 6).clamp(1, 0xffff) as u16;
    own.round_trip = if own.round_trip == 0 || coarse < own.round_trip {
        coarse
    } else {
        // A path that has grown longer is followed, one answer that was late is not.
        own.round_trip + (coarse - own.round_trip) / 16
    };
}

/// Finds the segment's place among those before it; whether all of it is new and in order.
#[inline(always)]
fn place(
    own: &mut Half,
    other: &Half,
    segment: &Segment,
    taken: u32,
    told: &mut Told,
    now: &impl Fn() -> Ticks,
) -> bool {
    let begin = segment.sequence;
    let end = begin.wrapping_add(taken);
    let segments = count(taken, segment);
    let opens = segment.flags.any(TcpFlags::SYN) && !(own.is(KNOWN) && own.next == end);
    if !own.is(KNOWN) || opens {
        if opens {
            // A new connection, perhaps on the ports of an old one.
            own.waiting = own.waiting.over();
            own.flags &= !(WATCHING | MOVED);
        }
        own.flags |= KNOWN;
        own.next = end;
        own.hole_at = 0;
        told.segments = segments;
        // The first segment that is seen of a connection that goes on may have been sent before.
        return opens;
    }
    let next = own.next;
    if !after(end, next) {
        if segment.payload_bytes <= 1 && begin == next.wrapping_sub(1) && taken == segment.payload_bytes {
            return false;
        }
        told.segments = segments;
        let at = now();
        if own.hole_at != 0 && !after(own.hole, begin) && at.wrapping_sub(own.hole_at) <= patience(own, other)
        {
            told.reordered = segments;
        } else {
            told.retransmitted = segments;
            forget(own);
        }
        return false;
    }
    told.segments = segments;
    own.next = end;
    if begin == next {
        return true;
    }
    if after(begin, next) {
        // A hole that is young yet goes on: of several at a time the time of the first is kept, so that what fills it late is told.
        let at = now() | 1;
        if own.hole_at == 0 || at.wrapping_sub(own.hole_at) > patience(own, other) {
            own.hole = next;
            own.hole_at = at;
        }
    } else {
        told.retransmitted = count(next.wrapping_sub(begin), segment).min(segments);
        forget(own);
    }
    false
}

/// What waits for an acknowledgement could have either of two.
#[inline(always)]
fn forget(own: &mut Half) {
    if !own.waiting.echo() {
        own.waiting = own.waiting.over();
        own.flags &= !WATCHING;
    }
}

/// How long after a hole was seen what fills it may have been overtaken.
#[inline(always)]
fn patience(own: &Half, other: &Half) -> Ticks {
    if own.round_trip == 0 || other.round_trip == 0 {
        OVERTAKEN_WITHIN
    } else {
        (own.round_trip as Ticks + other.round_trip as Ticks) << 5
    }
}

/// Segments that so many bytes, or a flag that takes a number, came in.
#[inline(always)]
fn count(taken: u32, segment: &Segment) -> u32 {
    if segment.segment_bytes == 0 { 1 } else { taken.div_ceil(segment.segment_bytes).max(1) }
}

/// Lets the segment wait for its answer, if nothing does and its answer can be told from others'.
#[inline(always)]
fn wait(own: &mut Half, segment: &Segment, taken: u32, fresh: bool, now: &impl Fn() -> Ticks) {
    let waits = own.waiting.waits();
    let stamp = segment.stamps.value;
    if !segment.stamps.there || segment.flags.any(TcpFlags::SYN) {
        if !waits && fresh {
            own.flags &= !(WATCHING | MOVED);
            own.waiting = Waiting::for_acknowledgement(segment.sequence.wrapping_add(taken), now());
        }
    } else if waits {
        if own.waiting.echo() && stamp != own.waiting.mark {
            own.flags |= MOVED;
        }
    } else {
        let known = own.is(WATCHING) && !own.is(MOVED);
        own.flags = own.flags & !MOVED | WATCHING;
        if !known || after(stamp, own.waiting.mark) {
            let waiting = Waiting { mark: stamp, since: 0 };
            own.waiting = if known && taken != 0 { Waiting::for_echo(stamp, now()) } else { waiting };
        }
    }
}
