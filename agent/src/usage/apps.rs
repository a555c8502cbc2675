//! Which slot's use of which app is counted in which lane. Sans-I/O: counters are the data plane's.
//!
//! A slot, class and app with a flow is a *pair* of user and use: it gets a free one of the lanes where its slot and class may have one
//! ([`AppLane::place`]), and keeps it while flows are counted in it. A lane that no flow is counted in any more, and that everything is told of, is free
//! for another pair.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use usher_models::wire::{AppLane, Class};

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

/// A slot and what it uses.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The slot.
    pub slot: u32,
    /// The class that its flows are of.
    pub class: Class,
    /// The app's id.
    pub app: Arc<str>,
    /// Which of the places of slot and class the lane is at.
    choice: u8,
    /// Sweeps that found no flow of it, one after the other.
    unused: u8,
    /// Whether a flow was to be counted for it since the last sweep.
    asked: bool,
}

/// A lane that is a pair's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Its place among all.
    pub lane: u32,
    /// The choice that leads there.
    pub choice: u8,
    /// It has just become the pair's.
    pub is_new: bool,
}

/// All lanes.
#[derive(Debug)]
pub struct Pairs {
    mask: u32,
    most: usize,
    by_app: HashMap<Arc<str>, HashMap<(u32, Class), u32>>,
    by_lane: BTreeMap<u32, Pair>,
    /// Those that may be another pair's once everything is told of them.
    unused: BTreeSet<u32>,
}

/// Lanes there are where so many pairs are wanted: a power of two. Where more than four in five are taken, some find no room.
pub const fn lanes(pairs: u32) -> u32 {
    if pairs < 2 { 1 } else { pairs.next_power_of_two() }
}

impl Pairs {
    /// None yet, of so many at the most.
    pub fn new(most: u32) -> Self {
        Self {
            mask: lanes(most) - 1,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            by_app: HashMap::new(),
            by_lane: BTreeMap::new(),
            unused: BTreeSet::new(),
        }
    }

    /// The lane of a slot's app in a class; `None`: it has none, and there is no room for it.
    pub fn lane(&mut self, slot: u32, class: Class, app: &str) -> Option<Given> {
        if let Some(lane) = self.by_app.get(app).and_then(|pairs| pairs.get(&(slot, class))).copied()
            && let Some(pair) = self.by_lane.get_mut(&lane)
        {
            pair.asked = true;
            self.unused.remove(&lane);
            return Some(Given { lane, choice: pair.choice, is_new: false });
        }
        if self.by_lane.len() >= self.most {
            return None;
        }
        let places =
            (1..=AppLane::CHOICES).map(|choice| (AppLane::place(self.mask, slot, class, choice), choice));
        let (lane, choice) = { places }.find(|(lane, _)| !self.by_lane.contains_key(lane))?;
        self.take(lane, choice, (slot, class, app));
        Some(Given { lane, choice, is_new: true })
    }

    /// Makes a lane a pair's, as the agent before this one did.
    pub fn take(&mut self, lane: u32, choice: u8, (slot, class, app): (u32, Class, &str)) {
        let app = self.by_app.get_key_value(app).map_or_else(|| Arc::from(app), |(app, _)| Arc::clone(app));
        self.by_app.entry(Arc::clone(&app)).or_default().insert((slot, class), lane);
        self.by_lane.insert(lane, Pair { slot, class, app, choice, unused: 0, asked: true });
    }

    /// Whose a lane is.
    pub fn pair(&self, lane: u32) -> Option<&Pair> {
        self.by_lane.get(&lane)
    }

    /// Lanes that are a pair's, in their order.
    pub fn taken(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_lane.keys().copied()
    }

    /// How many lanes are a pair's.
    pub fn len(&self) -> usize {
        self.by_lane.len()
    }

    /// Whether no lane is a pair's.
    pub fn is_empty(&self) -> bool {
        self.by_lane.is_empty()
    }

    /// All flows were looked at: these are the lanes that any is counted in.
    pub fn swept(&mut self, used: &BTreeSet<u32>) {
        for (lane, pair) in &mut self.by_lane {
            let is_used = pair.asked || used.contains(lane);
            pair.unused = if is_used { 0 } else { pair.unused.saturating_add(1) };
            pair.asked = false;
            if pair.unused >= UNUSED_SWEEPS {
                self.unused.insert(*lane);
            }
        }
    }

    /// Lanes that may be another pair's once everything is told of them.
    pub fn unused(&self) -> Vec<u32> {
        self.unused.iter().copied().collect()
    }

    /// Makes a lane nobody's.
    pub fn release(&mut self, lane: u32) {
        self.unused.remove(&lane);
        let Some(pair) = self.by_lane.remove(&lane) else { return };
        if let Some(pairs) = self.by_app.get_mut(&pair.app) {
            pairs.remove(&(pair.slot, pair.class));
            if pairs.is_empty() {
                self.by_app.remove(&pair.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIDEO: Class = Class::Video;

    #[test]
    fn a_pair_keeps_its_lane_while_flows_are_counted_in_it() {
        let mut pairs = Pairs::new(3);
        let streams = pairs.lane(5, VIDEO, "streams").unwrap();
        let chat = pairs.lane(5, VIDEO, "chat").unwrap();
        let third = pairs.lane(6, Class::Web, "streams").unwrap();
        assert!(streams.is_new && chat.is_new && third.is_new);
        assert_eq!(pairs.lane(6, VIDEO, "chat"), None, "full");
        assert_eq!(pairs.lane(5, VIDEO, "streams"), Some(Given { is_new: false, ..streams }));
        let used = BTreeSet::from([streams.lane, third.lane]);
        pairs.swept(&used);
        pairs.swept(&used);
        assert_eq!(pairs.unused(), Vec::<u32>::new(), "asked for before the first of the two");
        pairs.swept(&used);
        assert_eq!(pairs.unused(), [chat.lane]);
        pairs.lane(5, VIDEO, "chat");
        assert_eq!(pairs.unused(), Vec::<u32>::new());
        for _ in 0..3 {
            pairs.swept(&BTreeSet::from([streams.lane]));
        }
        assert_eq!(pairs.unused().len(), 2);
        pairs.release(chat.lane);
        pairs.release(chat.lane);
        assert_eq!(pairs.len(), 2);
        assert!(pairs.lane(6, VIDEO, "chat").is_some_and(|given| given.is_new));
        assert!(pairs.pair(chat.lane).is_none_or(|pair| pair.slot == 6));
    }

    #[test]
    fn nearly_all_of_four_fifths_find_room_each_at_a_place_of_its_own() {
        let mut pairs = Pairs::new(4_096);
        let mut lanes = BTreeSet::new();
        let apps = ["a", "b", "c", "d"];
        let mut without = 0;
        for number in 0..3_276_u32 {
            let class = Class::from_u8(u8::try_from(number % 8).unwrap());
            match pairs.lane(1 + number / 8, class, apps[number as usize % 4]) {
                Some(given) => {
                    let slot = 1 + number / 8;
                    assert_eq!(AppLane::place(4_095, slot, class, given.choice), given.lane);
                    assert!((1..=AppLane::CHOICES).contains(&given.choice) && lanes.insert(given.lane));
                }
                None => without += 1,
            }
        }
        assert!(without < 33, "{without} of 3,276");
        assert_eq!(pairs.taken().collect::<BTreeSet<_>>(), lanes);
    }

    #[test]
    fn none_are_counted_where_there_is_room_for_none() {
        assert_eq!(Pairs::new(0).lane(1, VIDEO, "streams"), None);
    }
}
