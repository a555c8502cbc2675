//! A map of bounded size in which a crowd of strangers pushes out other strangers, and nobody who has settled.
//!
//! Owns who goes when there is no room: the newcomer who came first. An entry is a newcomer until [`Held::settle`] says
//! that it has shown itself once more, so a scan or a flood, each of whose flows is seen once, displaces nothing but itself.
//! The settled have at most three quarters of the room; the one who settled first is a newcomer again when they need more.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::quality::RandomState;

/// At most `capacity` entries. Every operation is O(1).
#[derive(Debug)]
pub(crate) struct Held<K, V> {
    capacity: usize,
    places: HashMap<K, u32, RandomState>,
    nodes: Vec<Node<K, V>>,
    free: Vec<u32>,
    queues: [Queue; 2],
}

#[derive(Debug)]
struct Node<K, V> {
    /// `None` in a free place.
    entry: Option<(K, V)>,
    rank: Rank,
    older: u32,
    younger: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Newcomer,
    Settled,
}

/// The ends of a list through the nodes.
#[derive(Debug)]
struct Queue {
    oldest: u32,
    youngest: u32,
    len: usize,
}

const NOBODY: u32 = u32::MAX;

impl<K: Clone + Eq + Hash, V> Held<K, V> {
    /// An empty map of at most `capacity` entries; at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        const EMPTY: Queue = Queue { oldest: NOBODY, youngest: NOBODY, len: 0 };
        Self {
            capacity: capacity.clamp(1, NOBODY as usize),
            places: HashMap::default(),
            nodes: Vec::new(),
            free: Vec::new(),
            queues: [EMPTY; 2],
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let place = *self.places.get(key)?;
        self.value(place).map(|(_, value)| value)
    }

    /// The value of `key`.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = *self.places.get(key)?;
        self.nodes.get_mut(place as usize)?.entry.as_mut().map(|(_, value)| value)
    }

    /// Puts `value` in as the youngest newcomer; returns who had to go for lack of room, never an older value of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        self.remove(&key);
        let evicted = if self.len() >= self.capacity { self.pop_oldest() } else { None };
        let node =
            Node { entry: Some((key.clone(), value)), rank: Rank::Newcomer, older: NOBODY, younger: NOBODY };
        let place = if let Some(place) = self.free.pop() {
            self.nodes[place as usize] = node;
            place
        } else {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).unwrap_or(NOBODY)
        };
        self.places.insert(key, place);
        self.append(place, Rank::Newcomer);
        evicted
    }

    /// `key` has shown itself again. Who has settled stays where it is.
    pub(crate) fn settle(&mut self, key: &K) {
        let Some(&place) = self.places.get(key) else { return };
        if self.nodes[place as usize].rank == Rank::Settled {
            return;
        }
        self.unlink(place);
        self.append(place, Rank::Settled);
        let settled = &self.queues[Rank::Settled as usize];
        if settled.len > self.capacity / 4 * 3 {
            let first = settled.oldest;
            self.unlink(first);
            self.append(first, Rank::Newcomer);
        }
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.places.remove(key)?;
        self.take(place).map(|(_, value)| value)
    }

    /// The first of the newcomers and the first of the settled.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (&K, &V)> {
        self.queues.iter().filter_map(|queue| self.value(queue.oldest)).map(|(key, value)| (key, value))
    }

    /// Takes out the newcomer who came first, or where there is none who settled first.
    pub(crate) fn pop_oldest(&mut self) -> Option<(K, V)> {
        let newcomers = self.queues[Rank::Newcomer as usize].oldest;
        let place = if newcomers == NOBODY { self.queues[Rank::Settled as usize].oldest } else { newcomers };
        self.pop(place)
    }

    /// Takes out the first of those who are more, newcomers or settled.
    pub(crate) fn pop_from_crowd(&mut self) -> Option<(K, V)> {
        let [newcomers, settled] = &self.queues;
        let crowd = if newcomers.len >= settled.len { newcomers } else { settled };
        self.pop(crowd.oldest)
    }

    fn pop(&mut self, place: u32) -> Option<(K, V)> {
        let (key, value) = self.take(place)?;
        self.places.remove(&key);
        Some((key, value))
    }

    fn value(&self, place: u32) -> Option<&(K, V)> {
        self.nodes.get(place as usize)?.entry.as_ref()
    }

    fn take(&mut self, place: u32) -> Option<(K, V)> {
        let entry = self.nodes.get_mut(place as usize)?.entry.take()?;
        self.unlink(place);
        self.free.push(place);
        Some(entry)
    }

    fn append(&mut self, place: u32, rank: Rank) {
        let queue = &mut self.queues[rank as usize];
        let before = std::mem::replace(&mut queue.youngest, place);
        queue.len += 1;
        let node = &mut self.nodes[place as usize];
        (node.rank, node.older, node.younger) = (rank, before, NOBODY);
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.younger = place,
            None => queue.oldest = place,
        }
    }

    fn unlink(&mut self, place: u32) {
        let Node { rank, older, younger, .. } = self.nodes[place as usize];
        let queue = &mut self.queues[rank as usize];
        queue.len -= 1;
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.younger = younger,
            None => queue.oldest = younger,
        }
        match self.nodes.get_mut(younger as usize) {
            Some(younger) => younger.older = older,
            None => queue.youngest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_newcomer_makes_room_before_the_settled() {
        let mut held = Held::new(4);
        for key in ["a", "b", "c"] {
            assert_eq!(held.insert(key, 1), None);
        }
        held.settle(&"a");
        assert_eq!(held.insert("d", 1), None);
        assert_eq!(held.insert("e", 1), Some(("b", 1)));
        assert_eq!(held.insert("c", 2), None, "another value of the same key needs no room");
        assert_eq!(held.insert("f", 1), Some(("d", 1)));
        assert_eq!(held.get(&"a"), Some(&1));
        assert_eq!(held.oldest().map(|(key, _)| *key).collect::<Vec<_>>(), ["e", "a"]);
        assert_eq!(held.remove(&"e"), Some(1));
        assert_eq!(
            [(); 4].map(|()| held.pop_oldest().map(|(key, _)| key)),
            [Some("c"), Some("f"), Some("a"), None]
        );
    }

    #[test]
    fn a_crowd_displaces_itself() {
        let mut held = Held::new(1_000);
        for number in 0..700_u32 {
            held.insert(number, ());
            held.settle(&number);
        }
        for number in 1_000..1_001_000 {
            held.insert(number, ());
        }
        assert!((0..700).all(|number| held.get(&number).is_some()));
        assert_eq!(held.len(), 1_000);
        assert_eq!(held.pop_from_crowd(), Some((0, ())), "of 300 newcomers and 700 settled");
    }

    #[test]
    fn the_settled_leave_room_for_newcomers() {
        let mut held = Held::new(8);
        for number in 0..100 {
            held.insert(number, ());
            held.settle(&number);
        }
        assert_eq!(held.queues[Rank::Settled as usize].len, 6);
        held.insert(200, ());
        assert!(held.get(&99).is_some(), "who settled last stays");
    }

    proptest! {
        #[test]
        fn whatever_is_done_it_is_a_map_of_bounded_size(
            capacity in 1_usize..9,
            steps in proptest::collection::vec((0_u8..5, 0_u8..12), 0..200),
        ) {
            let mut held = Held::new(capacity);
            let mut model: HashMap<u8, usize> = HashMap::new();
            for (number, (step, key)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        if let Some((gone, value)) = held.insert(key, number) {
                            prop_assert_eq!(model.remove(&gone), Some(value));
                        }
                        model.insert(key, number);
                    }
                    2 => held.settle(&key),
                    3 => prop_assert_eq!(held.remove(&key), model.remove(&key)),
                    _ => {
                        let popped = if key % 2 == 0 { held.pop_oldest() } else { held.pop_from_crowd() };
                        prop_assert_eq!(popped.is_some(), !model.is_empty());
                        if let Some((gone, value)) = popped {
                            prop_assert_eq!(model.remove(&gone), Some(value));
                        }
                    }
                }
                prop_assert!(held.len() <= capacity);
                prop_assert_eq!(held.len(), model.len());
                prop_assert_eq!(held.queues[0].len + held.queues[1].len, model.len());
                for (key, value) in &model {
                    prop_assert_eq!(held.get(key), Some(value));
                }
            }
        }
    }
}
