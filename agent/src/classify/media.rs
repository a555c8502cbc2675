//! RTP and RTCP (RFC 3550), and SRTP, whose headers are in clear (RFC 3711, 3.1), by what holds from packet to packet.
//!
//! Owns the continuity of a source: one SSRC in one direction, whose sequence numbers go on and whose time stamps do not
//! leap. Any packet's version bits are right one time in four, so a single one proves nothing. Refuses to say whose it is.

use usher_models::Class;
use usher_models::wire::Direction;

use super::signature::{Signature, Whose};

/// Sources looked at in one flow: audio and video, both ways, and one that is none.
const MAX_SOURCES: usize = 5;
/// Packets that must follow on each other.
const ENOUGH: u8 = 4;
/// Sequence numbers that may be lost between two packets of a source.
const MAX_LOST: u16 = 50;
/// Clock ticks between two packets of a source: ten seconds of video's 90 kHz (RFC 3551, 5).
const MAX_TICKS: u32 = 900_000;
/// MPEG transport streams (RFC 3551, 6): television.
const MP2T: u8 = 33;

/// What is known of a flow's sources.
#[derive(Debug, Default)]
pub(crate) struct Media {
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    direction: Direction,
    ssrc: u32,
    sequence: u16,
    ticks: u32,
    seen: u8,
}

impl Media {
    /// Takes a datagram in; what the flow is, once enough packets follow on each other.
    pub(crate) fn push(&mut self, direction: Direction, datagram: &[u8]) -> Option<Signature> {
        let Some(header) = Header::read(datagram) else {
            return self.is_reported(direction, datagram).then_some(CALL);
        };
        let known =
            self.sources.iter_mut().find(|known| known.direction == direction && known.ssrc == header.ssrc);
        let Some(source) = known else {
            if self.sources.len() < MAX_SOURCES {
                let Header { ssrc, sequence, ticks, .. } = header;
                self.sources.push(Source { direction, ssrc, sequence, ticks, seen: 1 });
            }
            return None;
        };
        let ahead = header.sequence.wrapping_sub(source.sequence);
        if ahead == 0 || ahead > u16::MAX - MAX_LOST {
            return None; // a repeat, or one that was overtaken
        }
        let ticks = header.ticks.wrapping_sub(source.ticks);
        // Video sends frames out of their order: the stamps go back a little (RFC 3550, 5.1).
        let follows = ahead <= MAX_LOST && (ticks <= MAX_TICKS || ticks.wrapping_neg() <= MAX_TICKS);
        source.seen = if follows { source.seen.saturating_add(1) } else { 1 };
        (source.sequence, source.ticks) = (header.sequence, header.ticks);
        (source.seen >= ENOUGH).then_some(if header.kind == MP2T { TELEVISION } else { CALL })
    }

    /// Whether an RTCP packet speaks of a source that was seen: its own sender's, or of the other direction.
    fn is_reported(&self, direction: Direction, datagram: &[u8]) -> bool {
        let Some(reporter) = rtcp(datagram) else { return false };
        self.sources
            .iter()
            .any(|known| known.direction == direction && known.ssrc == reporter && known.seen + 2 >= ENOUGH)
    }
}

/// Whether a datagram may be RTP (RFC 7983, 7): worth a look at those after it.
pub(crate) fn may_be(datagram: &[u8]) -> bool {
    Header::read(datagram).is_some() || rtcp(datagram).is_some()
}

const CALL: Signature = Signature { app: "rtp", class: Class::Call, whose: Whose::Many };
const TELEVISION: Signature = Signature { app: "rtp", class: Class::Video, whose: Whose::Many };

/// RFC 3550, 5.1.
struct Header {
    kind: u8,
    sequence: u16,
    ticks: u32,
    ssrc: u32,
}

impl Header {
    fn read(datagram: &[u8]) -> Option<Self> {
        let &[flags, kind, s0, s1, t0, t1, t2, t3, r0, r1, r2, r3] = datagram.first_chunk::<12>()?;
        let contributors = usize::from(flags & 0x0f);
        let is_rtcp = (192..=223).contains(&kind); // RFC 5761, 4
        if flags >> 6 != 2 || is_rtcp || datagram.len() < 12 + contributors * 4 {
            return None;
        }
        Some(Self {
            kind: kind & 0x7f,
            sequence: u16::from_be_bytes([s0, s1]),
            ticks: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([r0, r1, r2, r3]),
        })
    }
}

/// The sender of an RTCP packet (RFC 3550, 6.4): a report or a feedback message whose length fits.
fn rtcp(datagram: &[u8]) -> Option<u32> {
    let &[flags, 200..=207, high, low, r0, r1, r2, r3] = datagram.first_chunk::<8>()? else { return None };
    let length = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
    (flags >> 6 == 2 && length >= 8 && length <= datagram.len())
        .then_some(u32::from_be_bytes([r0, r1, r2, r3]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rtp(kind: u8, sequence: u16, ticks: u32, ssrc: u32) -> Vec<u8> {
        let [s0, s1] = sequence.to_be_bytes();
        [&[0x80, kind, s0, s1][..], &ticks.to_be_bytes(), &ssrc.to_be_bytes(), &[7; 40]].concat()
    }

    fn last(media: &mut Media, packets: &[(Direction, Vec<u8>)]) -> Option<Signature> {
        packets.iter().map(|(direction, bytes)| media.push(*direction, bytes)).last().flatten()
    }

    #[test]
    fn packets_of_one_source_that_follow_on_each_other_are_media() {
        let voice = |n: u16| (Direction::Up, rtp(111, 65_534_u16.wrapping_add(n), u32::from(n) * 960, 9));
        let voice: Vec<_> = (0..4).map(voice).collect();
        assert_eq!(last(&mut Media::default(), &voice[..3]), None);
        assert_eq!(last(&mut Media::default(), &voice), Some(CALL));
        let television: Vec<_> = (0..4).map(|n| (Direction::Down, rtp(33, n, 0, 1))).collect();
        assert_eq!(last(&mut Media::default(), &television), Some(TELEVISION));
    }

    #[test]
    fn version_bits_alone_are_nothing() {
        for change in 0..4 {
            let packet = |n: u16| match change {
                0 => (Direction::Up, rtp(0, n * 1_000, 0, 1)),
                1 => (Direction::Up, rtp(0, n, u32::from(n) << 28, 1)),
                2 => (Direction::Up, rtp(0, n, 0, u32::from(n))),
                _ => (if n.is_multiple_of(2) { Direction::Up } else { Direction::Down }, rtp(0, 5, 0, 1)),
            };
            let packets: Vec<_> = (1..30).map(packet).collect();
            assert_eq!(last(&mut Media::default(), &packets), None, "{change}");
        }
    }

    #[test]
    fn a_report_by_a_source_that_was_seen_is_proof() {
        let report = (Direction::Up, [&[0x80, 200, 0, 1, 0, 0, 0, 9][..], &[0; 8]].concat());
        let two = [(Direction::Up, rtp(96, 1, 0, 9)), (Direction::Up, rtp(96, 2, 0, 9))];
        assert_eq!(last(&mut Media::default(), std::slice::from_ref(&report)), None);
        assert_eq!(last(&mut Media::default(), &[&two[..], &[report]].concat()), Some(CALL));
    }

    proptest! {
        #[test]
        fn losses_and_swaps_are_survived(
            start: u16, ssrc: u32, kind in 0_u8..72, lost in proptest::collection::vec(1_u16..5, 12..20),
            swaps in proptest::collection::vec(any::<bool>(), 20),
        ) {
            let mut at = start;
            let mut packets: Vec<_> = lost.iter().map(|lost| {
                at = at.wrapping_add(*lost);
                rtp(kind, at, u32::from(at.wrapping_sub(start)) * 160, ssrc)
            }).collect();
            for (pair, swap) in packets.chunks_exact_mut(2).zip(swaps) {
                if swap {
                    pair.swap(0, 1);
                }
            }
            let mut media = Media::default();
            prop_assert!(packets.iter().any(|packet| media.push(Direction::Down, packet).is_some()));
        }

        #[test]
        fn random_datagrams_are_no_media_and_no_panic(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..60),
        ) {
            let mut media = Media::default();
            for packet in &packets {
                may_be(packet);
                prop_assert_eq!(media.push(Direction::Up, packet), None);
                prop_assert!(media.sources.len() <= MAX_SOURCES);
            }
        }
    }
}
