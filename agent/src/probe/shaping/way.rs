//! The classes of one direction: which slot has which, and that every tree of the direction has them.
//!
//! Of a slot whose rates change, the new classes are made before packets go to them; the old ones are removed a second or more after none do,
//! so that what waits in them leaves as it would have.
//!
//! The kernel walks all classes of a tree for each that is made or removed: 0.3 us for each there is. So no more of that is done in a second
//! than takes [`BUDGET`]; slots that wait for their turn are policed, which is the same rate.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use usher_models::wire::{Direction, LANES, Rate, tree};

use super::plan::{Class, Minors, Plan};
use super::{Leaf, name, trees};
use crate::probe::ProbeError;
use crate::probe::interfaces::Interface;
use crate::probe::lanes::Lanes;

/// Numbers that no class has: none's, those of the trees and of clsact, whose handles a queue in such a class could not have.
const RESERVED: [u16; 4] = [0, tree(Direction::Up), tree(Direction::Down), u16::MAX];

/// The most classes that shape packets of a direction: on each interface by which they leave. HTB has no numbers for more.
pub const MAX_CLASSES: usize = (1 << 16) - RESERVED.len();

/// How long classes may be made and removed in a second.
const BUDGET: Duration = Duration::from_millis(200);

const NONE: Minors = [0; LANES];

/// One direction.
#[derive(Debug)]
pub(super) struct Way {
    direction: Direction,
    /// Classes that there may be.
    max_classes: usize,
    /// Every tree's classes, by minor number.
    classes: BTreeMap<u16, Class>,
    /// Those of them that packets do not go to any more.
    retired: BTreeSet<u16>,
    /// The number given out last: one that is free again is not taken at once, for packets may be on their way to it.
    last: u16,
    /// The interfaces that have the tree.
    trees: BTreeSet<u32>,
    /// Slots that are policed although they should be shaped.
    policed: BTreeSet<u32>,
    /// Why nothing is shaped; `None`: it is.
    why_not: Option<String>,
    /// Whether a tree may not have the classes it should.
    uncertain: bool,
    /// Of this second's budget.
    spent: Duration,
}

impl Way {
    /// Takes over what the lanes say. Not shaped yet: the trees are to be looked at.
    pub(super) fn adopt(direction: Direction, max_classes: usize, lanes: &Lanes) -> Self {
        let mut classes = BTreeMap::new();
        for slot in 0..lanes.slots() {
            let found = lanes.shapers(slot, direction);
            if found == NONE {
                continue;
            }
            let plan = Plan::new(&lanes.rates(slot, direction));
            let free = |number: &u16| !RESERVED.contains(number) && !classes.contains_key(number);
            match plan.numbers(&found).filter(|numbers| numbers.iter().all(free)) {
                Some(numbers) => classes.extend(plan.classes(&numbers)),
                // Half done: policed until it is done again.
                None => lanes.set_shapers(slot, direction, &NONE),
            }
        }
        Self {
            direction,
            max_classes: max_classes.min(MAX_CLASSES),
            last: classes.last_key_value().map_or(0, |(number, _)| *number),
            classes,
            retired: BTreeSet::new(),
            trees: BTreeSet::new(),
            policed: BTreeSet::new(),
            why_not: Some(String::new()),
            uncertain: false,
            spent: Duration::ZERO,
        }
    }

    pub(super) const fn direction(&self) -> Direction {
        self.direction
    }

    /// Classes of each tree, and slots that are policed although they should be shaped.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.classes.len(), self.policed.len())
    }

    /// Whether the trees are to be looked at again soon.
    pub(super) const fn waits(&self) -> bool {
        self.why_not.is_some() || self.uncertain
    }

    /// Packets leave by these interfaces from now on: each has the tree, or all packets are policed.
    pub(super) fn follow(
        &mut self,
        on: Result<Vec<&Interface>, ProbeError>,
        (pins, leaf): (&Path, Leaf),
        lanes: &Lanes,
    ) {
        if std::mem::take(&mut self.uncertain) {
            self.trees.clear();
        }
        match on.and_then(|on| self.grow(&on, (pins, leaf), lanes)) {
            Ok(()) => {
                if self.why_not.take().is_some() {
                    tracing::info!(leaf = leaf.name(), "{} is shaped", name(self.direction));
                    self.policed = limited(lanes, self.direction);
                    self.policed.retain(|slot| lanes.shapers(*slot, self.direction) == NONE);
                }
            }
            Err(error) => {
                let why = error.to_string();
                if self.why_not.as_ref() != Some(&why) {
                    tracing::error!("{} is policed and not shaped: {why}", name(self.direction));
                    self.why_not = Some(why);
                    self.police_all(lanes);
                }
                // What fails here is tried again with the rest.
                let _ = trees::uproot_all(pins, self.direction);
            }
        }
    }

    fn grow(
        &mut self,
        on: &[&Interface],
        (pins, leaf): (&Path, Leaf),
        lanes: &Lanes,
    ) -> Result<(), ProbeError> {
        let wanted: BTreeSet<u32> = on.iter().map(|interface| interface.index).collect();
        trees::uproot(pins, self.direction, |interface| wanted.contains(&interface))?;
        let standing = trees::check(self.direction, on, pins)?;
        self.trees.retain(|interface| standing.contains(interface));
        for interface in &standing - &self.trees {
            if let Some(over) = trees::adopt(interface, self.direction, &self.classes, (pins, leaf))? {
                self.retired.extend(over.iter().map(|(number, _)| *number));
                self.classes.extend(over);
                self.trees.insert(interface);
            }
        }
        let bare = &wanted - &self.trees;
        if !bare.is_empty() {
            // To give it all classes at once would take too long: all begin again, with none.
            if !self.classes.is_empty() {
                self.police_all(lanes);
                trees::uproot_all(pins, self.direction)?;
            }
            for interface in &wanted - &self.trees {
                trees::plant(interface, self.direction, pins, leaf)?;
                self.trees.insert(interface);
            }
        }
        // How large packets may be changes while a tree stands.
        on.iter().try_for_each(|interface| trees::count_ip(interface, self.direction))
    }

    /// Whatever keeps one interface's packets from being shaped: the buckets know no interfaces, so they hold everybody's.
    fn police_all(&mut self, lanes: &Lanes) {
        for slot in 0..lanes.slots() {
            lanes.set_shapers(slot, self.direction, &NONE);
        }
        self.policed = limited(lanes, self.direction);
        self.classes.clear();
        self.retired.clear();
        self.trees.clear();
    }

    /// A second has passed: removes classes of no use any more, and shapes slots that wait for it.
    pub(super) fn work(&mut self, lanes: &Lanes, leaf: Leaf) {
        self.spent = Duration::ZERO;
        let began = Instant::now();
        // Those in others first.
        for inner in [true, false] {
            let mut of_turn = self.retired.clone();
            of_turn.retain(|number| {
                self.classes.get(number).is_some_and(|class| class.parent.is_some() == inner)
            });
            for number in of_turn {
                if began.elapsed() >= BUDGET {
                    break;
                }
                self.unset(number);
            }
        }
        self.spent = began.elapsed();
        if self.why_not.is_some() {
            return;
        }
        for slot in self.policed.clone() {
            // There may be many that no class is left for.
            if self.classes.len() >= self.max_classes || began.elapsed() >= BUDGET {
                break;
            }
            self.shape(slot, lanes, leaf);
        }
    }

    /// Puts a slot's packets into classes of its rates; where that cannot be now, into the buckets.
    pub(super) fn shape(&mut self, slot: u32, lanes: &Lanes, leaf: Leaf) {
        let plan = Plan::new(&lanes.rates(slot, self.direction));
        let found = lanes.shapers(slot, self.direction);
        let next = if self.why_not.is_some() { None } else { self.classes_of(&plan, &found, leaf) };
        match next {
            Some(_) => self.policed.remove(&slot),
            None => self.policed.insert(slot),
        };
        let next = next.unwrap_or(NONE);
        lanes.set_shapers(slot, self.direction, &next);
        self.retired.extend(found.into_iter().filter(|number| *number != 0 && !next.contains(number)));
    }

    /// The classes of a plan, made or changed where that is needed; `None` where that cannot be now.
    fn classes_of(&mut self, plan: &Plan, found: &Minors, leaf: Leaf) -> Option<Minors> {
        if let Some(numbers) = plan.numbers(found) {
            return self.set(&plan.classes(&numbers), leaf).then(|| plan.minors(&numbers));
        }
        if plan.len() == 0 {
            return Some(NONE);
        }
        if self.spent >= BUDGET {
            return None;
        }
        let began = Instant::now();
        let numbers = self.free(plan.len())?;
        let made = self.set(&plan.classes(&numbers), leaf);
        if !made {
            self.retired.extend(numbers.iter().filter(|number| self.classes.contains_key(number)));
        }
        self.spent += began.elapsed();
        made.then(|| plan.minors(&numbers))
    }

    /// Numbers for so many classes, if there are as many.
    fn free(&mut self, count: usize) -> Option<Vec<u16>> {
        if self.classes.len() + count > self.max_classes {
            return None;
        }
        let mut numbers = Vec::with_capacity(count);
        while numbers.len() < count {
            self.last = self.last.wrapping_add(1);
            if !RESERVED.contains(&self.last) && !self.classes.contains_key(&self.last) {
                numbers.push(self.last);
            }
        }
        Some(numbers)
    }

    /// Makes or changes classes in every tree; false where that failed.
    fn set(&mut self, classes: &[(u16, Class)], leaf: Leaf) -> bool {
        for (number, class) in classes {
            if self.classes.get(number) == Some(class) {
                continue;
            }
            self.classes.insert(*number, *class);
            let set = self.in_trees(|tree, direction| trees::set(tree, direction, (*number, class), leaf));
            if let Err(error) = set {
                tracing::error!("a class that shapes packets could not be set, they are policed: {error}");
                self.uncertain = true;
                return false;
            }
        }
        true
    }

    /// Removes a class from every tree, with all that still waits in it.
    fn unset(&mut self, number: u16) {
        if let Err(error) = self.in_trees(|tree, direction| trees::unset(tree, direction, number)) {
            tracing::warn!("a class that shapes nothing any more stays for now: {error}");
            return;
        }
        self.retired.remove(&number);
        self.classes.remove(&number);
    }

    /// Does something in every tree; one whose interface is gone has no packets.
    fn in_trees(&self, mut each: impl FnMut(u32, Direction) -> io::Result<()>) -> io::Result<()> {
        self.trees.iter().try_for_each(|tree| match each(*tree, self.direction) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => done,
        })
    }
}

/// The slots with a rate in a direction.
fn limited(lanes: &Lanes, direction: Direction) -> BTreeSet<u32> {
    let limits = |slot: &u32| lanes.rates(*slot, direction).iter().any(Rate::limits);
    (0..lanes.slots()).filter(limits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(classes: impl IntoIterator<Item = u16>) -> Way {
        let class = Class { parent: None, rate: 1, ceiling: 1, queues: true };
        Way {
            direction: Direction::Down,
            max_classes: MAX_CLASSES,
            classes: classes.into_iter().map(|number| (number, class)).collect(),
            last: 0,
            trees: BTreeSet::new(),
            policed: BTreeSet::new(),
            retired: BTreeSet::new(),
            spent: Duration::ZERO,
            why_not: None,
            uncertain: false,
        }
    }

    #[test]
    fn numbers_are_given_out_in_turn_and_none_that_is_reserved_or_taken() {
        let mut way = way([1, 3]);
        assert_eq!(way.free(2), Some(vec![2, 4]));
        assert_eq!(way.free(1), Some(vec![5]), "not one that packets may be on their way to");
        way.last = u16::MAX - 2;
        assert_eq!(way.free(3), Some(vec![u16::MAX - 1, 2, 4]));
        way.last = tree(Direction::Up) - 1;
        assert_eq!(way.free(1), Some(vec![tree(Direction::Down) + 1]));
    }

    #[test]
    fn where_there_are_fewer_numbers_left_than_a_slot_needs_it_gets_none() {
        let taken = (0..=u16::MAX).filter(|number| !RESERVED.contains(number) && *number != 77);
        let mut way = way(taken);
        assert_eq!(way.classes.len(), MAX_CLASSES - 1);
        assert_eq!(way.free(2), None);
        assert_eq!(way.free(1), Some(vec![77]));
    }
}
