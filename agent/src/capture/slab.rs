//! Flows in memory: each one entry of a slab, found by its two ends in whichever order.
//!
//! Owns the entries' places and the index over them, four bytes and a tag a flow. The hash is keyed at random, so that nobody
//! can choose flows that collide, and is the same for both directions of a flow, so that one look-up finds it. Refuses to
//! bound anything: the table does.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use usher_models::wire::{Direction, FlowKey};

use super::flow::Flow;

/// Where a flow is, as long as it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

/// The flows of a table.
#[derive(Debug, Default)]
pub(super) struct Slab {
    entries: Vec<Option<Flow>>,
    vacant: Vec<u32>,
    index: HashTable<u32>,
    keys: RandomState,
}

impl Slab {
    /// How many flows are held.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The hash of a flow, and of the one whose ends are the other way round.
    pub(super) fn hash(&self, key: &FlowKey) -> u64 {
        hash(&self.keys, key)
    }

    /// The flow of exactly these ends.
    pub(super) fn find(&self, hash: u64, key: &FlowKey) -> Option<Place> {
        let wanted = Ends::of(key);
        let place = self.index.find(hash, |place| ends(&self.entries, *place) == Some(wanted))?;
        Some(Place(*place))
    }

    /// A flow between the ends of `up`, and which way a packet goes in it that goes up in `up`.
    pub(super) fn find_either(&self, hash: u64, up: &FlowKey) -> Option<(Place, Direction)> {
        let up = Ends::of(up);
        let down = up.mirrored();
        let is_meant =
            |place: &u32| ends(&self.entries, *place).is_some_and(|held| held.is(up) | held.is(down));
        let place = *self.index.find(hash, is_meant)?;
        let direction = if ends(&self.entries, place)?.is(up) { Direction::Up } else { Direction::Down };
        Some((Place(place), direction))
    }

    /// The flow at a place.
    pub(super) fn get(&self, place: Place) -> Option<&Flow> {
        self.entries.get(place.0 as usize)?.as_ref()
    }

    /// As [`Self::get`].
    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Flow> {
        self.entries.get_mut(place.0 as usize)?.as_mut()
    }

    /// Takes in a flow that is not held yet; `hash` is its key's. `None` past 2^32 of them.
    pub(super) fn insert(&mut self, hash: u64, flow: Flow) -> Option<Place> {
        let place = match self.vacant.pop() {
            Some(place) => place,
            None => u32::try_from(self.entries.len()).ok()?,
        };
        if self.entries.len() == place as usize {
            self.entries.push(None);
        }
        let Self { entries, index, keys, .. } = self;
        index.insert_unique(hash, place, |place| {
            entries[*place as usize].as_ref().map_or(0, |flow| self::hash(keys, &flow.key))
        });
        entries[place as usize] = Some(flow);
        Some(Place(place))
    }

    /// Takes out the flows that are meant, about in the order they came.
    pub(super) fn extract(&mut self, mut is_meant: impl FnMut(&Flow) -> bool) -> Vec<Flow> {
        let mut extracted = Vec::new();
        for (place, entry) in (0..).zip(&mut self.entries) {
            let Some(flow) = entry.take_if(|flow| is_meant(flow)) else { continue };
            if let Ok(entry) = self.index.find_entry(hash(&self.keys, &flow.key), |other| *other == place) {
                entry.remove();
            }
            self.vacant.push(place);
            extracted.push(flow);
        }
        extracted
    }

    /// All flows, about in the order they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.entries.iter().flatten()
    }
}

fn hash(keys: &RandomState, key: &FlowKey) -> u64 {
    let end = |address: [u8; 16], port: u16| {
        let mut hasher = keys.build_hasher();
        hasher.write_u128(u128::from_ne_bytes(address));
        hasher.write_u32(u32::from(port) << 8 | u32::from(key.protocol));
        hasher.finish()
    };
    keys.hash_one(end(key.subscriber, key.subscriber_port).wrapping_add(end(key.remote, key.remote_port)))
}

fn ends(entries: &[Option<Flow>], place: u32) -> Option<Ends> {
    entries.get(place as usize)?.as_ref().map(|flow| Ends::of(&flow.key))
}

/// A key as it is compared: in few pieces and without a branch, for the direction of a packet is not to be foretold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    addresses: [u128; 2],
    ports: [u16; 2],
    protocol: u8,
}

impl Ends {
    fn of(key: &FlowKey) -> Self {
        Self {
            addresses: [key.subscriber, key.remote].map(u128::from_ne_bytes),
            ports: [key.subscriber_port, key.remote_port],
            protocol: key.protocol,
        }
    }

    const fn mirrored(self) -> Self {
        let ([a, b], [a_port, b_port]) = (self.addresses, self.ports);
        Self { addresses: [b, a], ports: [b_port, a_port], ..self }
    }

    fn is(self, other: Self) -> bool {
        let addresses = (self.addresses[0] ^ other.addresses[0]) | (self.addresses[1] ^ other.addresses[1]);
        let ports = (self.ports[0] ^ other.ports[0]) | (self.ports[1] ^ other.ports[1]);
        (addresses | u128::from(ports) | u128::from(self.protocol ^ other.protocol)) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use usher_models::units::Micros;

    use super::super::layer::Layers;
    use super::*;

    fn key(subscriber: u8, remote: u8, protocol: u8) -> FlowKey {
        FlowKey {
            subscriber: [subscriber; 16],
            remote: [remote; 16],
            subscriber_port: u16::from(subscriber) % 2,
            remote_port: u16::from(remote) % 2,
            protocol,
            zero: [0; 3],
        }
    }

    const fn mirrored(key: &FlowKey) -> FlowKey {
        FlowKey {
            subscriber: key.remote,
            remote: key.subscriber,
            subscriber_port: key.remote_port,
            remote_port: key.subscriber_port,
            ..*key
        }
    }

    proptest! {
        /// Beside a plain list of keys.
        #[test]
        fn flows_are_found_from_both_sides_until_they_are_taken_out(
            steps in proptest::collection::vec((0_u8..6, 0_u8..6, 6_u8..8, any::<bool>()), 0..200),
        ) {
            let mut slab = Slab::default();
            let mut held: Vec<FlowKey> = Vec::new();
            for (subscriber, remote, protocol, takes) in steps {
                let key = key(subscriber, remote, protocol);
                let hash = slab.hash(&key);
                prop_assert_eq!(hash, slab.hash(&mirrored(&key)));
                prop_assert_eq!(slab.find(hash, &key).is_some(), held.contains(&key));
                let either = held.contains(&key) || held.contains(&mirrored(&key));
                prop_assert_eq!(slab.find_either(hash, &key).is_some(), either);
                if takes {
                    let taken = slab.extract(|flow| flow.key == key);
                    prop_assert_eq!(taken.len(), usize::from(held.contains(&key)));
                    held.retain(|other| *other != key);
                } else if !held.contains(&key) {
                    let flow = Flow::new(key, &Layers::default(), Micros::new(0));
                    let place = slab.insert(hash, flow).unwrap();
                    prop_assert_eq!(slab.find(hash, &key), Some(place));
                    held.push(key);
                }
                prop_assert_eq!(slab.len(), held.len());
                prop_assert_eq!(slab.iter().count(), held.len());
            }
        }
    }
}
