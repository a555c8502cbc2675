//! A memory that many subscribers have together, each with a share that no other can take.
//!
//! Owns who makes room: whoever is at its own bound loses its own oldest entry; where all together are at theirs, the one who
//! was silent longest. Addresses of no known session have a quarter for themselves, so that a flood of forged ones costs no
//! subscriber anything.

use std::borrow::Borrow;
use std::hash::Hash;

use super::aged::Aged;
use super::answers::Asker;

/// Bounds of a memory.
#[derive(Debug, Clone, Copy)]
pub struct ShareLimits {
    /// Subscribers with anything in it.
    pub askers: usize,
    /// Entries of one of them.
    pub each: usize,
    /// Entries of all of them together.
    pub total: usize,
}

/// Entries by subscriber and key.
#[derive(Debug)]
pub(crate) struct Shares<K, V> {
    known: Pool<K, V>,
    anonymous: Pool<K, V>,
    /// Entries forgotten for lack of room.
    pub(crate) evicted: u64,
}

#[derive(Debug)]
struct Pool<K, V> {
    limits: ShareLimits,
    askers: Aged<Asker, Aged<K, V>>,
    total: usize,
}

impl<K: Clone + Eq + Hash, V> Shares<K, V> {
    /// An empty memory.
    pub(crate) fn new(limits: ShareLimits) -> Self {
        let quarter = ShareLimits { askers: limits.askers / 4, total: limits.total / 4, ..limits };
        Self { known: Pool::new(limits), anonymous: Pool::new(quarter), evicted: 0 }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.known.total + self.anonymous.total
    }

    /// Puts an entry in as its asker's youngest.
    pub(crate) fn insert(&mut self, asker: Asker, key: K, value: V) {
        self.evicted += self.pool_mut(asker).insert(asker, key, value);
    }

    /// The asker's entry of that key.
    pub(crate) fn get<Q: ?Sized + Eq + Hash>(&self, asker: Asker, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.pool(asker).askers.get(&asker)?.get(key)
    }

    /// Forgets all that is the asker's.
    pub(crate) fn forget(&mut self, asker: Asker) {
        let pool = self.pool_mut(asker);
        if let Some(entries) = pool.askers.remove(&asker) {
            pool.total -= entries.len();
        }
    }

    /// Forgets what `is_over`, oldest first, until something is not; the rest goes for lack of room in time.
    pub(crate) fn expire(&mut self, is_over: impl Fn(&V) -> bool) {
        for pool in [&mut self.known, &mut self.anonymous] {
            let passed = |entries: &Aged<K, V>| entries.oldest().is_none_or(|(_, value)| is_over(value));
            while let Some((asker, _)) = pool.askers.oldest().filter(|(_, entries)| passed(entries)) {
                let asker = *asker;
                pool.drop_oldest_of(asker);
            }
        }
    }

    fn pool(&self, asker: Asker) -> &Pool<K, V> {
        if matches!(asker, Asker::Slot(_)) { &self.known } else { &self.anonymous }
    }

    fn pool_mut(&mut self, asker: Asker) -> &mut Pool<K, V> {
        if matches!(asker, Asker::Slot(_)) { &mut self.known } else { &mut self.anonymous }
    }
}

impl<K: Clone + Eq + Hash, V> Pool<K, V> {
    fn new(limits: ShareLimits) -> Self {
        Self { limits, askers: Aged::new(limits.askers), total: 0 }
    }

    /// Returns how many entries had to go.
    fn insert(&mut self, asker: Asker, key: K, value: V) -> u64 {
        let mut gone = 0;
        let mut entries = self.askers.remove(&asker).unwrap_or_else(|| Aged::new(self.limits.each));
        let before = entries.len();
        gone += usize::from(entries.insert(key, value).is_some());
        self.total = self.total - before + entries.len();
        if let Some((_, others)) = self.askers.insert(asker, entries) {
            self.total -= others.len();
            gone += others.len();
        }
        // The asker who was silent longest loses its oldest entry, never the one that was just put in.
        while self.total > self.limits.total.max(1) {
            let Some(silent) = self.askers.oldest().map(|(asker, _)| *asker) else { break };
            gone += self.drop_oldest_of(silent);
        }
        gone as u64
    }

    /// Returns how many entries went: one, or none where there was none.
    fn drop_oldest_of(&mut self, asker: Asker) -> usize {
        let Some(entries) = self.askers.get_mut(&asker) else { return 0 };
        let popped = usize::from(entries.pop_oldest().is_some());
        let is_empty = entries.len() == 0;
        self.total -= popped;
        if is_empty {
            self.askers.remove(&asker);
        }
        popped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ShareLimits = ShareLimits { askers: 16, each: 8, total: 1_000 };

    #[test]
    fn a_flood_costs_who_makes_it_and_nobody_else() {
        let mut shares = Shares::new(LIMITS);
        shares.insert(Asker::Slot(1), 0, "quiet");
        for number in 0..10_000_u32 {
            shares.insert(Asker::Slot(2), number, "flood");
            let [a, b, c, d] = number.to_be_bytes();
            shares.insert(
                Asker::Anonymous([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                number,
                "forged",
            );
        }
        assert_eq!(shares.get(Asker::Slot(1), &0), Some(&"quiet"));
        assert_eq!(shares.len(), 1 + 8 + 4);
        assert_eq!(shares.evicted, 10_000 - 8 + 10_000 - 4);
    }

    #[test]
    fn at_the_bound_of_all_the_longest_silent_loses_its_oldest() {
        let mut shares = Shares::new(ShareLimits { total: 3, ..LIMITS });
        let entries = [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5)];
        for (slot, key) in entries {
            shares.insert(Asker::Slot(slot), key, ());
        }
        let left = entries.iter().filter(|(slot, key)| shares.get(Asker::Slot(*slot), key).is_some());
        assert_eq!(left.map(|(_, key)| *key).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!((shares.len(), shares.evicted), (3, 2));
        shares.forget(Asker::Slot(3));
        assert_eq!(shares.len(), 1);
    }

    #[test]
    fn what_is_over_goes_and_an_entry_put_in_again_needs_no_room() {
        let mut shares = Shares::new(LIMITS);
        for (key, until) in [(1, 10), (1, 20), (2, 30)] {
            shares.insert(Asker::Slot(1), key, until);
        }
        assert_eq!((shares.len(), shares.evicted), (2, 0));
        shares.expire(|until| *until <= 19);
        assert_eq!(shares.len(), 2);
        shares.expire(|until| *until <= 20);
        assert_eq!((shares.get(Asker::Slot(1), &1), shares.get(Asker::Slot(1), &2)), (None, Some(&30)));
        shares.expire(|_| true);
        assert_eq!(shares.len(), 0);
    }
}
