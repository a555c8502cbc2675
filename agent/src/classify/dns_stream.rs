//! DNS on a flow that is not told about yet, or that goes on over TCP (RFC 7766, 8): messages after their lengths, several in
//! a connection, cut into segments anywhere.
//!
//! Owns the finding of messages in both directions' streams. Refuses to judge what they say. Bounded as every stream is.

use usher_models::wire::{Direction, TcpFlags};

use super::dns::Message;
use super::packet::Segment;
use super::stream::Beginning;

/// Shortest message: its header.
const MIN_MESSAGE: usize = 12;
/// Most messages that are none before the flow is taken for something else.
const MAX_MALFORMED: u8 = 4;

/// A conversation of DNS messages.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    /// Where the client's stream begins, once known.
    pub(crate) start: Option<u32>,
    sides: [Option<Side>; 2],
    malformed: u8,
}

#[derive(Debug)]
struct Side {
    stream: Beginning,
    /// How many bytes of it were messages.
    read: usize,
}

impl Conversation {
    /// A conversation whose TCP handshake may have shown where the client's stream begins.
    pub(crate) fn at(start: Option<u32>) -> Self {
        Self { start, ..Self::default() }
    }

    /// Bytes of the network in memory.
    pub(crate) fn held(&self) -> usize {
        self.sides.iter().flatten().map(|side| side.stream.held()).sum()
    }

    /// A datagram was no message; whether more may be waited for.
    pub(crate) fn malformed(&mut self) -> bool {
        self.malformed += 1;
        self.malformed < MAX_MALFORMED
    }

    /// The messages that a segment completes, and whether more may be waited for.
    pub(crate) fn segment(&mut self, direction: Direction, segment: &Segment<'_>) -> (Vec<Message>, bool) {
        let sequence = segment.sequence.wrapping_add(u32::from(segment.flags.any(TcpFlags::SYN)));
        let mut messages = Vec::new();
        if segment.bytes.is_empty() && !segment.flags.any(TcpFlags::SYN) {
            return (messages, true);
        }
        let side = self.sides[direction.index()]
            .get_or_insert_with(|| Side { stream: Beginning::at(sequence), read: 0 });
        let within = side.stream.push(sequence, segment.bytes).is_ok();
        while let Some((prefix, rest)) =
            side.stream.bytes().get(side.read..).and_then(<[u8]>::split_first_chunk::<2>)
        {
            let length = usize::from(u16::from_be_bytes(*prefix));
            if length < MIN_MESSAGE {
                return (messages, false);
            }
            let Some(bytes) = rest.get(..length) else { break };
            side.read += 2 + length;
            match Message::parse(bytes) {
                Some(message) => messages.push(message),
                None if self.malformed + 1 < MAX_MALFORMED => self.malformed += 1,
                None => return (messages, false),
            }
        }
        (messages, within)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dns::tests::query;
    use super::*;

    fn segment(sequence: u32, bytes: &[u8]) -> Segment<'_> {
        Segment { sequence, acknowledgement: 0, flags: TcpFlags::ACK, bytes }
    }

    fn prefixed(message: &[u8]) -> Vec<u8> {
        [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    #[test]
    fn what_is_no_dns_ends_the_conversation() {
        let mut conversation = Conversation::default();
        assert!(!conversation.segment(Direction::Up, &segment(1, b"\0\x02hi")).1);
        let mut conversation = Conversation::default();
        let junk = prefixed(&[0xff; 20]).repeat(4);
        assert!(!conversation.segment(Direction::Up, &segment(1, &junk)).1);
        // However many of them one segment completes.
        let mut conversation = Conversation::default();
        let junk = prefixed(&[0xff; MIN_MESSAGE]).repeat(1_000);
        assert!(!conversation.segment(Direction::Up, &segment(1, &junk)).1);
    }

    proptest! {
        #[test]
        fn messages_cut_anywhere_and_swapped_are_all_found(
            names in proptest::collection::vec("[a-z]{1,9}\\.test", 1..6),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
            swap in any::<bool>(),
        ) {
            let stream: Vec<u8> = names.iter().flat_map(|name| prefixed(&query(name))).collect();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            places.dedup();
            let mut segments: Vec<_> = places
                .windows(2)
                .map(|cut| segment(100 + u32::try_from(cut[0]).unwrap(), &stream[cut[0]..cut[1]]))
                .collect();
            if swap {
                // The first shows where the stream begins.
                segments[1..].reverse();
            }
            let mut conversation = Conversation::default();
            let mut found = Vec::new();
            for segment in &segments {
                let (messages, more) = conversation.segment(Direction::Down, segment);
                prop_assert!(more);
                found.extend(messages.into_iter().filter_map(|message| message.question));
            }
            prop_assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), names);
        }

        #[test]
        fn any_segments_are_read_within_bounds(
            segments in proptest::collection::vec(
                (any::<bool>(), 0_u32..9_000, proptest::collection::vec(any::<u8>(), 0..900)), 0..60),
        ) {
            let mut conversation = Conversation::default();
            for (down, sequence, bytes) in &segments {
                let direction = if *down { Direction::Down } else { Direction::Up };
                if !conversation.segment(direction, &segment(*sequence, bytes)).1 {
                    break;
                }
                prop_assert!(conversation.held() <= 4 * super::super::stream::MAX_BYTES);
            }
        }
    }
}
