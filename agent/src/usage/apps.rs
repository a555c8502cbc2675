//! Which slot's use of which app is counted in which lane. Sans-I/O: counters are the data plane's.
//!
//! A pair of slot and app gets the lowest free lane when a flow is first counted for it, and keeps it while flows are. A lane that no
//! flow is counted in any more, and that everything is told of, is free for another pair.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Sweeps through which no flow was counted in a lane until it may be another pair's: whatever packet was on its way is counted by then.
const UNUSED_SWEEPS: u8 = 2;

/// Bytes by app that are not where the baseline has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMoved {
    /// The lane they are counted in.
    pub lane: u32,
    /// Whose they are.
    pub slot: u32,
    /// Of which app.
    pub app: Arc<str>,
    /// Where they stand now, by direction.
    pub now: [u64; 2],
}

/// A slot and one of the apps it uses.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The slot.
    pub slot: u32,
    /// The app's id.
    pub app: Arc<str>,
    /// Sweeps that found no flow of it, one after the other.
    unused: u8,
    /// Whether a flow was to be counted for it since the last sweep.
    asked: bool,
}

/// All lanes: from 1 on, so that 0 is none.
#[derive(Debug)]
pub struct Pairs {
    lanes: u32,
    by_app: HashMap<Arc<str>, HashMap<u32, u32>>,
    /// By lane, up to the highest that was ever a pair's.
    by_lane: Vec<Option<Pair>>,
    /// Of those, the ones that are no pair's.
    free: BTreeSet<u32>,
    /// Those that may be another pair's once everything is told of them.
    unused: BTreeSet<u32>,
}

impl Pairs {
    /// None yet, of so many at the most.
    pub fn new(most: u32) -> Self {
        Self {
            lanes: most,
            by_app: HashMap::new(),
            by_lane: vec![None],
            free: BTreeSet::new(),
            unused: BTreeSet::new(),
        }
    }

    /// The lane of a pair, and whether it has just become the pair's; `None`: all are others'.
    pub fn lane(&mut self, slot: u32, app: &str) -> Option<(u32, bool)> {
        if let Some(lane) = self.by_app.get(app).and_then(|by_slot| by_slot.get(&slot)) {
            if let Some(pair) =
                usize::try_from(*lane).ok().and_then(|lane| self.by_lane.get_mut(lane)?.as_mut())
            {
                pair.asked = true;
                self.unused.remove(lane);
            }
            return Some((*lane, false));
        }
        let lane =
            self.free.first().copied().or_else(|| Some(self.end()).filter(|lane| *lane <= self.lanes))?;
        self.take(lane, slot, app);
        Some((lane, true))
    }

    /// Makes a lane a pair's, for the agent before this one did.
    pub fn take(&mut self, lane: u32, slot: u32, app: &str) {
        let app = self.by_app.get_key_value(app).map_or_else(|| Arc::from(app), |(app, _)| Arc::clone(app));
        self.free.extend(self.end()..lane);
        self.free.remove(&lane);
        let place = usize::try_from(lane).unwrap_or(usize::MAX);
        if self.by_lane.len() <= place {
            self.by_lane.resize(place + 1, None);
        }
        self.by_app.entry(Arc::clone(&app)).or_default().insert(slot, lane);
        self.by_lane[place] = Some(Pair { slot, app, unused: 0, asked: true });
    }

    /// Whose a lane is.
    pub fn pair(&self, lane: u32) -> Option<&Pair> {
        self.by_lane.get(usize::try_from(lane).ok()?)?.as_ref()
    }

    /// The lane after the last that was ever a pair's.
    pub fn end(&self) -> u32 {
        u32::try_from(self.by_lane.len()).unwrap_or(u32::MAX)
    }

    /// Lanes that are a pair's.
    pub fn len(&self) -> usize {
        self.by_lane.len() - 1 - self.free.len()
    }

    /// Whether no lane is a pair's.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All flows were looked at: `used` says, by lane, whether any is counted in it.
    pub fn swept(&mut self, used: &[bool]) {
        for (lane, pair) in self.by_lane.iter_mut().enumerate() {
            let Some(pair) = pair else { continue };
            let is_used = pair.asked || used.get(lane).copied().unwrap_or_default();
            pair.unused = if is_used { 0 } else { pair.unused.saturating_add(1) };
            pair.asked = false;
            if let Some(lane) = u32::try_from(lane).ok().filter(|_| pair.unused >= UNUSED_SWEEPS) {
                self.unused.insert(lane);
            }
        }
    }

    /// Lanes that may be another pair's once everything is told of them.
    pub fn unused(&self) -> Vec<u32> {
        self.unused.iter().copied().collect()
    }

    /// Makes a lane nobody's.
    pub fn release(&mut self, lane: u32) {
        let place = usize::try_from(lane).unwrap_or(usize::MAX);
        let Some(pair) = self.by_lane.get_mut(place).and_then(Option::take) else { return };
        self.free.insert(lane);
        self.unused.remove(&lane);
        if let Some(by_slot) = self.by_app.get_mut(&pair.app) {
            by_slot.remove(&pair.slot);
            if by_slot.is_empty() {
                self.by_app.remove(&pair.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_keeps_its_lane_while_flows_are_counted_in_it() {
        let mut pairs = Pairs::new(3);
        assert_eq!(pairs.lane(5, "streams"), Some((1, true)));
        assert_eq!(pairs.lane(5, "chat"), Some((2, true)));
        assert_eq!(pairs.lane(6, "streams"), Some((3, true)));
        assert_eq!(pairs.lane(6, "chat"), None, "full");
        assert_eq!(pairs.lane(5, "streams"), Some((1, false)));
        assert_eq!((pairs.len(), pairs.end()), (3, 4));
        let mut used = [false, true, false, true];
        pairs.swept(&used);
        pairs.swept(&used);
        assert_eq!(pairs.unused(), Vec::<u32>::new(), "asked for before the first of the two");
        pairs.swept(&used);
        assert_eq!(pairs.unused(), [2]);
        pairs.lane(5, "chat");
        assert_eq!(pairs.unused(), Vec::<u32>::new());
        used[1] = false;
        for _ in 0..3 {
            pairs.swept(&used);
        }
        assert_eq!(pairs.unused(), [1, 2]);
        pairs.release(2);
        pairs.release(1);
        pairs.release(1);
        assert_eq!((pairs.lane(6, "chat"), pairs.len()), (Some((1, true)), 2), "the lowest");
        assert!(pairs.pair(2).is_none() && pairs.pair(9).is_none());
    }

    #[test]
    fn lanes_of_an_agent_before_leave_the_others_free() {
        let mut pairs = Pairs::new(4);
        assert!(pairs.is_empty());
        pairs.take(3, 7, "streams");
        assert_eq!(pairs.lane(7, "streams"), Some((3, false)));
        let lanes: Vec<_> = (0..4).map(|slot| pairs.lane(slot, "chat").map(|(lane, _)| lane)).collect();
        assert_eq!(lanes, [Some(1), Some(2), Some(4), None]);
    }
}
