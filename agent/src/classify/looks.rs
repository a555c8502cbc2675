//! What a flow's packets are like, seen in a few short looks: a conversation, a stream or a transfer, whoever sends it.
//!
//! Owns when a flow is looked at and what its packets' sizes and times then say. A look is a handful of packets in a row,
//! some time after the verdict: most flows are over by then and cost nothing, and a live probe, which hands packets out
//! only while it is asked to, can give as much as a file. Refuses bytes of payloads.

use std::time::Duration;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::Direction;

use super::media;
use super::packet::Segment;
use crate::dataplane::Sample;

/// From the verdict to the first look, and from each to the next.
pub(crate) const AFTER: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Packets of a look. All looks together stay within what the probe hands out of a flow, first bytes included.
pub(crate) const PACKETS: u8 = 4;
/// A look that waits longer for its first packet found the flow idle.
const PROMPT: Duration = Duration::from_millis(250);
/// Looks that must agree: eight seconds of the flow.
const ENOUGH: u8 = 4;

/// What a conversation's packets look like: voice every 20 to 60 ms and video between, no packet of either as large as a
/// transfer's (RTP over UDP keeps below 1,200 bytes), and both parties in nearly every look.
const MAX_GAP: Duration = Duration::from_millis(80);
const MAX_SILENCE: Duration = Duration::from_millis(200);
const MIN_TALK: u64 = 40;
const MAX_TALK: u32 = 1_240;
/// How much larger the packets of one direction may be: one party shows a picture, the other does not.
const MAX_RATIO: u64 = 12;

/// What a transfer's packets look like: nearly all one way, large, and this fast.
const MIN_SHARE_PERCENT: u64 = 95;
const MIN_LARGE: u64 = 900;
const MIN_BYTES_PER_SECOND: u64 = 120_000;

/// Whose packets are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An app to look at: what streams in it is video.
    Network,
    /// An app to talk by: what streams in it are files.
    Messenger,
    /// A protocol of calls, which may carry files (RFC 8831) or one party's stream as well.
    CallProtocol,
}

/// What the looks at one flow found.
#[derive(Debug)]
pub(crate) struct Looks {
    kind: Kind,
    /// Looks begun, and of them those that found the flow busy at once.
    begun: u8,
    prompt: u8,
    /// Packets still wanted of this look.
    wanted: u8,
    /// When this look began.
    since: Micros,
    /// The last packet of this look, and which ways its packets went.
    last: Option<Micros>,
    went: [bool; 2],
    /// Looks that saw packets both ways.
    two_way: u8,
    /// From packet to packet within looks.
    gaps: u32,
    gap_time: Duration,
    longest_gap: Duration,
    largest: u32,
    /// From the beginnings of looks to their last packets.
    watched: Duration,
    ways: [Way; 2],
    /// Packets of RTP among them.
    media: u32,
}

#[derive(Debug, Default)]
struct Way {
    packets: u64,
    bytes: u64,
    /// First and last TCP sequence number, and when: between looks, they count the bytes that nobody looked at.
    first: Option<(u32, Micros)>,
    last: Option<(u32, Micros)>,
}

/// A packet as far as it is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Glimpse {
    pub(crate) direction: Direction,
    pub(crate) seen: Micros,
    /// Bytes of payload.
    pub(crate) bytes: u32,
    /// TCP's sequence number.
    pub(crate) sequence: Option<u32>,
    /// Whether it looks like RTP or RTCP.
    pub(crate) media: bool,
}

impl Glimpse {
    pub(crate) fn of_datagram(sample: &Sample<'_>, datagram: &[u8]) -> Self {
        let bytes = u32::try_from(datagram.len()).unwrap_or(u32::MAX);
        let media = media::may_be(datagram);
        Self { direction: sample.direction, seen: sample.seen, bytes, sequence: None, media }
    }

    pub(crate) fn of_segment(sample: &Sample<'_>, segment: &Segment<'_>) -> Self {
        let bytes = u32::try_from(segment.bytes.len()).unwrap_or(u32::MAX);
        let sequence = Some(segment.sequence);
        Self { direction: sample.direction, seen: sample.seen, bytes, sequence, media: false }
    }
}

impl Looks {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            begun: 0,
            prompt: 0,
            wanted: 0,
            since: Micros::new(0),
            last: None,
            went: [false; 2],
            two_way: 0,
            gaps: 0,
            gap_time: Duration::ZERO,
            longest_gap: Duration::ZERO,
            largest: 0,
            watched: Duration::ZERO,
            ways: [Way::default(), Way::default()],
            media: 0,
        }
    }

    /// Begins a look. False where the last one saw no packet: the flow is over, or rests.
    pub(crate) fn begin(&mut self, now: Micros) -> bool {
        if self.begun > 0 && self.last.is_none() {
            return false;
        }
        self.begun += 1;
        (self.wanted, self.since, self.last, self.went) = (PACKETS, now, None, [false; 2]);
        true
    }

    /// Whether packets are wanted now.
    pub(crate) fn is_open(&self) -> bool {
        self.wanted > 0
    }

    /// The next look, and when.
    pub(crate) fn next(&self) -> Option<Duration> {
        AFTER.get(usize::from(self.begun)).copied()
    }

    /// Takes a packet in.
    pub(crate) fn see(&mut self, glimpse: Glimpse) {
        if self.wanted == 0 || glimpse.bytes == 0 {
            return;
        }
        self.wanted -= 1;
        match self.last {
            None => self.prompt += u8::from(glimpse.seen.since(self.since) <= PROMPT),
            Some(last) => {
                let gap = glimpse.seen.since(last);
                self.gaps += 1;
                self.gap_time += gap;
                self.longest_gap = self.longest_gap.max(gap);
            }
        }
        self.last = Some(glimpse.seen);
        self.largest = self.largest.max(glimpse.bytes);
        self.went[glimpse.direction.index()] = true;
        if self.wanted == 0 {
            self.watched += glimpse.seen.since(self.since);
            self.two_way += u8::from(self.went == [true; 2]);
        }
        self.media += u32::from(glimpse.media);
        let way = &mut self.ways[glimpse.direction.index()];
        way.packets += 1;
        way.bytes += u64::from(glimpse.bytes);
        if let Some(sequence) = glimpse.sequence {
            way.first.get_or_insert((sequence, glimpse.seen));
            way.last = Some((sequence, glimpse.seen));
        }
    }

    /// The class that the packets show, where they show another than the app has by name.
    pub(crate) fn class(&self) -> Option<Class> {
        if self.wanted > 0 || self.begun < ENOUGH {
            return None;
        }
        if self.is_talk() {
            return Some(Class::Call);
        }
        match (self.kind, self.one_way()?) {
            (Kind::Network, Direction::Down) => Some(Class::Video),
            (Kind::CallProtocol, _) if self.media > 0 => None,
            _ => Some(Class::Bulk),
        }
    }

    /// Steady packets of a voice's size both ways.
    fn is_talk(&self) -> bool {
        let [up, down] = &self.ways;
        let (Some(up_mean), Some(down_mean)) = (up.mean(), down.mean()) else { return false };
        let (less, more) = (up_mean.min(down_mean), up_mean.max(down_mean));
        self.prompt == self.begun
            && self.two_way + 1 >= self.begun
            && less >= MIN_TALK
            && self.largest <= MAX_TALK
            && more <= less * MAX_RATIO
            && self.longest_gap <= MAX_SILENCE
            && self.gaps > 0
            && self.gap_time / self.gaps <= MAX_GAP
    }

    /// The direction in which nearly everything goes, in large packets and fast.
    fn one_way(&self) -> Option<Direction> {
        let bytes = self.ways.iter().map(|way| way.bytes).sum::<u64>();
        [Direction::Up, Direction::Down].into_iter().find(|direction| {
            let way = &self.ways[direction.index()];
            way.bytes * 100 >= bytes * MIN_SHARE_PERCENT
                && way.mean().is_some_and(|mean| mean >= MIN_LARGE)
                && self.rate(way).is_some_and(|rate| rate >= MIN_BYTES_PER_SECOND)
        })
    }

    /// Bytes a second: by TCP's own count from the first look to the last, else by those of the looks.
    fn rate(&self, way: &Way) -> Option<u64> {
        let (bytes, time) = match (way.first, way.last) {
            (Some((first, since)), Some((last, until))) => {
                (u64::from(last.wrapping_sub(first)), until.since(since))
            }
            _ => (way.bytes, self.watched),
        };
        bytes.saturating_mul(1_000_000).checked_div(u64::try_from(time.as_micros()).ok()?)
    }
}

impl Way {
    fn mean(&self) -> Option<u64> {
        self.bytes.checked_div(self.packets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What four looks find in a flow that sends packets of `bytes` each way every so many milliseconds.
    fn look(kind: Kind, ways: [(i64, u32); 2], tcp: bool) -> Option<Class> {
        let mut looks = Looks::new(kind);
        let mut packets: Vec<(i64, Direction, u32, u32)> = Vec::new();
        for (direction, (every, bytes)) in [Direction::Up, Direction::Down].into_iter().zip(ways) {
            let count = if every == 0 { 0 } else { 10_000 / every };
            packets
                .extend((0..count).map(|n| (n * every, direction, bytes, u32::try_from(n).unwrap() * bytes)));
        }
        packets.sort_by_key(|(at, ..)| *at);
        let mut at = 0;
        while let Some(after) = looks.next() {
            at += i64::try_from(after.as_millis()).unwrap();
            if !looks.begin(Micros::new(at * 1_000)) {
                break;
            }
            for (seen, direction, bytes, sequence) in packets.iter().filter(|(seen, ..)| *seen >= at) {
                looks.see(Glimpse {
                    direction: *direction,
                    seen: Micros::new(seen * 1_000),
                    bytes: *bytes,
                    sequence: tcp.then_some(*sequence),
                    media: false,
                });
                if !looks.is_open() {
                    break;
                }
            }
            if let Some(class) = looks.class() {
                return Some(class);
            }
        }
        None
    }

    #[test]
    fn steady_small_packets_both_ways_are_a_call_in_any_app() {
        for kind in [Kind::Network, Kind::Messenger, Kind::CallProtocol] {
            for tcp in [false, true] {
                assert_eq!(look(kind, [(20, 120), (20, 110)], tcp), Some(Class::Call), "voice");
                assert_eq!(look(kind, [(60, 90), (60, 75)], tcp), Some(Class::Call), "slow voice");
                assert_eq!(
                    look(kind, [(20, 130), (10, 1_000)], tcp),
                    Some(Class::Call),
                    "one shows a picture"
                );
            }
        }
    }

    #[test]
    fn what_goes_one_way_is_video_in_a_network_and_a_file_in_a_messenger() {
        for tcp in [false, true] {
            let (down, up) = ([(0, 0), (5, 1_350)], [(5, 1_350), (0, 0)]);
            assert_eq!(look(Kind::Network, down, tcp), Some(Class::Video));
            assert_eq!(look(Kind::Network, up, tcp), Some(Class::Bulk));
            assert_eq!(look(Kind::Messenger, down, tcp), Some(Class::Bulk));
            assert_eq!(look(Kind::CallProtocol, down, tcp), Some(Class::Bulk));
            // Acknowledgements of the protocol's own come back, smaller than any voice.
            assert_eq!(look(Kind::Messenger, [(25, 30), (5, 1_350)], tcp), Some(Class::Bulk));
        }
    }

    #[test]
    fn chat_and_idling_stay_what_they_are() {
        for tcp in [false, true] {
            assert_eq!(look(Kind::Messenger, [(900, 200), (700, 300)], tcp), None);
            assert_eq!(
                look(Kind::Messenger, [(100, 200), (40, 1_400)], tcp),
                None,
                "pages in one connection"
            );
            assert_eq!(look(Kind::Network, [(0, 0), (200, 1_350)], tcp), None, "a slow trickle");
            assert_eq!(look(Kind::Network, [(0, 0), (0, 0)], tcp), None);
        }
    }

    proptest! {
        #[test]
        fn looks_stay_within_what_the_probe_hands_out(
            packets in proptest::collection::vec((any::<bool>(), 0_i64..20_000_000, 0_u32..70_000, any::<Option<u32>>()), 0..200),
        ) {
            let mut looks = Looks::new(Kind::Network);
            let mut wanted = 0;
            let mut packets = packets.into_iter();
            while looks.next().is_some() && looks.begin(Micros::new(0)) {
                for (down, seen, bytes, sequence) in packets.by_ref() {
                    wanted += u32::from(bytes > 0);
                    let direction = if down { Direction::Down } else { Direction::Up };
                    looks.see(Glimpse { direction, seen: Micros::new(seen), bytes, sequence, media: false });
                    if !looks.is_open() {
                        break;
                    }
                }
                looks.class();
            }
            prop_assert!(wanted <= 16);
        }
    }
}
