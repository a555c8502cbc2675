//! How a stream reaches who listens: cut, shuffled, overlapped, repeated, lost, and with junk between.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::traffic::{End, SEGMENT, Segment};

/// Sequence number of the client's SYN.
pub(crate) const SYN: u32 = u32::MAX - 300;

/// A part of a stream, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) from: usize,
    pub(crate) bytes: Vec<u8>,
}

/// A stream cut up by proptest, in the order of its arrival.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    /// Places of cuts.
    places: Vec<Index>,
    /// Each part begins so many bytes earlier than it had to, and comes once or twice.
    extras: Vec<(usize, bool)>,
    /// Keys to sort by.
    order: Vec<u16>,
}

/// Up to so many cuts.
pub(crate) fn cuts(most: usize) -> impl Strategy<Value = Cuts> {
    (
        proptest::collection::vec(any::<Index>(), 0..=most),
        proptest::collection::vec((0_usize..200, proptest::bool::weighted(0.2)), most + 1),
        proptest::collection::vec(any::<u16>(), 2 * most + 2),
    )
        .prop_map(|(places, extras, order)| Cuts { places, extras, order })
}

impl Cuts {
    /// The stream's parts; all of it, in whatever order.
    pub(crate) fn apply(&self, stream: &[u8]) -> Vec<Part> {
        let mut places: Vec<usize> = self.places.iter().map(|place| place.index(stream.len())).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        places.dedup();
        let mut parts = Vec::new();
        for (pair, (overlap, twice)) in places.windows(2).zip(&self.extras) {
            let from = pair[0].saturating_sub(*overlap);
            for (number, bytes) in stream[from..pair[1]].chunks(SEGMENT).enumerate() {
                let part = Part { from: from + number * SEGMENT, bytes: bytes.to_vec() };
                parts.extend(std::iter::repeat_n(part, 1 + usize::from(*twice)));
            }
        }
        let mut order = self.order.iter();
        parts.sort_by_cached_key(|_| order.next().copied().unwrap_or_default());
        parts
    }
}

/// The packets of a connection whose client says these parts; with its handshake or without.
pub(crate) fn packets(client: End, server: End, handshake: bool, parts: &[Part]) -> Vec<Vec<u8>> {
    let syn = Segment { sequence: SYN, syn: true, acknowledgement: None, bytes: &[] };
    let answer = Segment { sequence: 899, syn: true, acknowledgement: Some(SYN.wrapping_add(1)), bytes: &[] };
    let mut packets = Vec::new();
    if handshake {
        packets.push(syn.packet(client, server));
        packets.push(answer.packet(server, client));
    }
    packets.extend(parts.iter().map(|part| packet(client, server, part)));
    packets
}

/// A part as the packet it is sent in.
pub(crate) fn packet(client: End, server: End, part: &Part) -> Vec<u8> {
    let sequence = SYN.wrapping_add(1).wrapping_add_signed(i32::try_from(part.from.cast_signed()).unwrap());
    Segment { sequence, syn: false, acknowledgement: Some(900), bytes: &part.bytes }.packet(client, server)
}

/// How many bytes from the first on came with these parts.
pub(crate) fn beginning(parts: &[Part]) -> usize {
    let mut ranges: Vec<_> = parts.iter().map(|part| (part.from, part.from + part.bytes.len())).collect();
    ranges.sort_unstable();
    ranges.into_iter().fold(0, |end, (from, to)| if from <= end { end.max(to) } else { end })
}
