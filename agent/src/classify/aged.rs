//! A map of bounded size that makes room by forgetting what was touched longest ago.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use foldhash::quality::RandomState;

/// At most `capacity` entries; the oldest goes first. Look-up O(1), insertion and removal O(log n).
#[derive(Debug, Clone)]
pub(crate) struct Aged<K, V> {
    capacity: usize,
    clock: u64,
    entries: HashMap<K, (u64, V), RandomState>,
    /// By age: the first is the oldest.
    ages: BTreeMap<u64, K>,
}

impl<K: Clone + Eq + Hash, V> Aged<K, V> {
    /// An empty map of at most `capacity` entries; at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), clock: 0, entries: HashMap::default(), ages: BTreeMap::new() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of `key`, which keeps its age.
    pub(crate) fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The value of `key`, which keeps its age.
    pub(crate) fn get_mut<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Puts `value` in as the youngest; returns what had to go for lack of room, never an older value of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        self.remove(&key);
        let evicted = if self.entries.len() >= self.capacity { self.pop_oldest() } else { None };
        self.clock += 1;
        self.ages.insert(self.clock, key.clone());
        self.entries.insert(key, (self.clock, value));
        evicted
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (age, value) = self.entries.remove(key)?;
        self.ages.remove(&age);
        Some(value)
    }

    /// The oldest entry.
    pub(crate) fn oldest(&self) -> Option<(&K, &V)> {
        let key = self.ages.values().next()?;
        Some((key, self.get(key)?))
    }

    /// Takes the oldest entry out.
    pub(crate) fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.ages.pop_first()?;
        let (_, value) = self.entries.remove(&key)?;
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut aged = Aged::new(2);
        assert_eq!(aged.insert("a", 1), None);
        assert_eq!(aged.insert("b", 2), None);
        assert_eq!(aged.insert("a", 3), None, "an entry put in again is young again");
        assert_eq!(aged.insert("c", 4), Some(("b", 2)));
        assert_eq!((aged.get("a"), aged.get("b"), aged.get("c")), (Some(&3), None, Some(&4)));
        assert_eq!(aged.oldest(), Some((&"a", &3)));
        assert_eq!(aged.remove(&"a"), Some(3));
        assert_eq!(aged.len(), 1);
        assert_eq!(aged.pop_oldest(), Some(("c", 4)));
        assert_eq!(aged.pop_oldest(), None);
    }
}
