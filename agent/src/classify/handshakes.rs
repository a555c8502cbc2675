//! Where TCP connections begin, between their handshake and their first byte.
//!
//! Owns one table of fixed size and nothing for a flow: a handshake writes its place over whatever stood there, so a flood
//! of them costs some connections the knowledge of their first sequence number, which their first bytes mostly show again.

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use usher_models::wire::{Direction, FlowKey};

/// Places, of 16 bytes each; a power of two.
const PLACES: usize = 32_768;

/// Handshakes seen lately.
#[derive(Debug)]
pub(crate) struct Handshakes {
    /// A flow's hash, and what is known of it; zero where nothing is.
    places: Vec<[u64; 2]>,
    state: RandomState,
}

/// What a handshake showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// The client's direction.
    pub(crate) client: Direction,
    /// The sequence number of its first byte.
    pub(crate) start: u32,
    /// Whether the server took part.
    pub(crate) answered: bool,
}

const KNOWN: u64 = 1 << 34;
const ANSWERED: u64 = 1 << 33;
const DOWN: u64 = 1 << 32;

impl Handshakes {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), state: RandomState::default() }
    }

    /// A packet of a flow's handshake was seen.
    pub(crate) fn note(&mut self, flow: &FlowKey, handshake: Handshake) {
        if self.places.is_empty() {
            self.places = vec![[0; 2]; PLACES];
        }
        let hash = self.state.hash_one(flow);
        let mut known = KNOWN | u64::from(handshake.start);
        if handshake.answered {
            known |= ANSWERED;
        }
        if handshake.client == Direction::Down {
            known |= DOWN;
        }
        if let Some(place) = self.place(hash) {
            *place = [hash, known];
        }
    }

    /// Takes out what the flow's handshake showed, if no other has taken its place.
    pub(crate) fn take(&mut self, flow: &FlowKey) -> Option<Handshake> {
        let hash = self.state.hash_one(flow);
        let place = self.place(hash)?;
        let [owner, known] = *place;
        if owner != hash || known & KNOWN == 0 {
            return None;
        }
        *place = [0; 2];
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is the sequence number")]
        let start = known as u32;
        let client = if known & DOWN == 0 { Direction::Up } else { Direction::Down };
        Some(Handshake { client, start, answered: known & ANSWERED != 0 })
    }

    fn place(&mut self, hash: u64) -> Option<&mut [u64; 2]> {
        let place = usize::try_from(hash % PLACES as u64).unwrap_or_default();
        self.places.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_handshake_is_told_once_as_it_was_seen(start: u32, down: bool, answered: bool, port: u16) {
            let flow = FlowKey {
                subscriber: [1; 16],
                remote: [2; 16],
                subscriber_port: port,
                remote_port: 443,
                protocol: 6,
                zero: [0; 3],
            };
            let client = if down { Direction::Down } else { Direction::Up };
            let handshake = Handshake { client, start, answered };
            let mut handshakes = Handshakes::new();
            prop_assert_eq!(handshakes.take(&flow), None);
            handshakes.note(&flow, handshake);
            let other = FlowKey { subscriber_port: port.wrapping_add(1), ..flow };
            prop_assert_eq!(handshakes.take(&other), None);
            prop_assert_eq!(handshakes.take(&flow), Some(handshake));
            prop_assert_eq!(handshakes.take(&flow), None);
        }
    }
}
