//! Shaping: packets above a rate wait in a class of HTB instead of being dropped by the probe.
//!
//! Owns which slot has which classes, and a tree of them on every interface by which packets of a direction leave. What must outlive the agent
//! is with the lanes: the rates, and the minor numbers the probe hands packets to. The trees are what the lanes say; whatever an agent that
//! died has left undone is done by comparing the two. An interface's tree is noted in the directory of the pins (`tree_down_7_pfifo`, an empty
//! directory: a BPF file system has no plain files), so that it is known for ours.
//!
//! Refuses to touch a root that is not ours. Where shaping cannot be, because an interface has no tree or there are no numbers left, the
//! probe's buckets hold the same rates.

mod htb;
mod lengths;
mod plan;
mod trees;
mod way;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use usher_models::wire::{Direction, LANES};

use super::ProbeError;
use super::interfaces::{Interface, Pattern};
use super::lanes::Lanes;
use super::maps::kernel;
pub(super) use trees::uproot_all;
pub use way::MAX_CLASSES;
use way::Way;

/// What is to be shaped, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shaping {
    /// The interfaces towards the internet, on which what subscribers send is shaped. None: it is policed.
    pub uplinks: Vec<Pattern>,
    /// What packets wait in; `None`: the best that the kernel has.
    pub leaf: Option<Leaf>,
    /// Classes of a tree at the most, of [`MAX_CLASSES`].
    pub max_classes: usize,
}

impl Default for Shaping {
    fn default() -> Self {
        Self { uplinks: Vec::new(), leaf: None, max_classes: MAX_CLASSES }
    }
}

/// The queueing discipline in a class, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaf {
    /// tc-cake(8): a queue for each host and flow, kept short.
    Cake,
    /// tc-fq_codel(8): a queue for each flow, kept short.
    FqCodel,
    /// tc-pfifo(8): one queue, cut off at a tenth of a second.
    Pfifo,
}

impl Leaf {
    const ALL: [Self; 3] = [Self::Cake, Self::FqCodel, Self::Pfifo];

    /// Its name, to the kernel and to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cake => "cake",
            Self::FqCodel => "fq_codel",
            Self::Pfifo => "pfifo",
        }
    }

    /// The one that is wanted, or the best there is. Asks the kernel and changes nothing.
    pub fn choose(wanted: Option<Self>) -> Result<Self, ProbeError> {
        let is_there = |leaf: Self| {
            // Every kernel with queueing disciplines has this one.
            if leaf == Self::Pfifo { Ok(true) } else { htb::has(leaf.name()) }
        };
        let doing = "ask for the queueing disciplines there are";
        let candidates = Self::ALL.into_iter().filter(|leaf| wanted.is_none_or(|wanted| wanted == *leaf));
        for leaf in candidates {
            if is_there(leaf).map_err(kernel(doing))? {
                return Ok(leaf);
            }
        }
        Err(ProbeError::NoSuchLeaf { leaf: wanted.unwrap_or(Self::Pfifo).name() })
    }
}

/// How much is shaped, by direction; zero where nothing is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaped {
    /// What packets wait in.
    pub leaf: Leaf,
    /// Classes of each tree.
    pub classes: [usize; 2],
    /// Slots with rates that should be shaped and are policed.
    pub policed: [usize; 2],
}

/// The classes of all slots, and the trees they are in.
#[derive(Debug)]
pub(super) struct Shaper {
    pins: PathBuf,
    leaf: Leaf,
    uplinks: Vec<Pattern>,
    ways: Vec<Way>,
}

impl Shaper {
    /// Takes over what the lanes say of classes.
    pub(super) fn adopt(pins: &Path, settings: &Shaping, lanes: &Lanes) -> Result<Self, ProbeError> {
        let leaf = Leaf::choose(settings.leaf)?;
        let mut directions = vec![Direction::Down];
        if !settings.uplinks.is_empty() {
            directions.push(Direction::Up);
        }
        let adopt = |direction| Way::adopt(direction, settings.max_classes, lanes);
        let ways = directions.into_iter().map(adopt).collect();
        Ok(Self { pins: pins.to_owned(), leaf, uplinks: settings.uplinks.clone(), ways })
    }

    /// Interfaces came or went: those that packets leave by have the trees, the others do not. What fails is tried again by the next call.
    pub(super) fn follow(&mut self, carrying: &[&Interface], present: &[Interface], lanes: &Lanes) {
        for way in &mut self.ways {
            let on = leaving_by(way.direction(), &self.uplinks, carrying, present);
            way.follow(on, (&self.pins, self.leaf), lanes);
        }
    }

    /// A slot has other rates, which the lanes have already: its packets go to classes of these.
    pub(super) fn shape(&mut self, slot: u32, lanes: &Lanes) {
        for way in &mut self.ways {
            way.shape(slot, lanes, self.leaf);
        }
    }

    /// A second has passed: what waits for it is done, as much as there is time for.
    pub(super) fn work(&mut self, lanes: &Lanes) {
        for way in &mut self.ways {
            way.work(lanes, self.leaf);
        }
    }

    /// Whether something should be shaped and is not, for it could not be done.
    pub(super) fn waits(&self) -> bool {
        self.ways.iter().any(Way::waits)
    }

    /// How much is shaped.
    pub(super) fn shaped(&self) -> Shaped {
        let mut shaped = Shaped { leaf: self.leaf, classes: [0; 2], policed: [0; 2] };
        for way in &self.ways {
            let at = way.direction().index();
            (shaped.classes[at], shaped.policed[at]) = way.counts();
        }
        shaped
    }
}

/// What keeps packets from being shaped: those to subscribers on the interfaces that are to carry the probe, those from them on the uplinks.
/// Changes nothing.
pub(super) fn check(
    pins: &Path,
    settings: &Shaping,
    carrying: &[&Interface],
    present: &[Interface],
) -> Result<(), ProbeError> {
    let missing = |uplink: &&Pattern| uplink.is_name() && !present.iter().any(|it| uplink.matches(&it.name));
    if let Some(uplink) = settings.uplinks.iter().find(missing) {
        let present = present.iter().map(|interface| interface.name.clone()).collect();
        return Err(ProbeError::NoInterface { name: uplink.to_string(), present });
    }
    for direction in Direction::BOTH {
        let on = leaving_by(direction, &settings.uplinks, carrying, present)?;
        // Those of a pattern may come later.
        if !on.is_empty() {
            trees::check(direction, &on, pins)?;
        }
    }
    Ok(())
}

/// Ends shaping where it is not wanted any more: the buckets hold what the classes held.
pub(super) fn end(pins: &Path, settings: Option<&Shaping>, lanes: &Lanes) -> Result<(), ProbeError> {
    let shaped = |direction| match (settings, direction) {
        (None, _) => false,
        (Some(_), Direction::Down) => true,
        (Some(settings), Direction::Up) => !settings.uplinks.is_empty(),
    };
    for direction in Direction::BOTH.into_iter().filter(|direction| !shaped(*direction)) {
        for slot in 0..lanes.slots() {
            lanes.set_shapers(slot, direction, &[0; LANES]);
        }
        uproot_all(pins, direction)?;
    }
    Ok(())
}

/// The interfaces by which packets of a direction leave.
fn leaving_by<'a>(
    direction: Direction,
    uplinks: &[Pattern],
    carrying: &[&'a Interface],
    present: &'a [Interface],
) -> Result<Vec<&'a Interface>, ProbeError> {
    if direction == Direction::Down {
        return Ok(carrying.to_vec());
    }
    let is_uplink = |it: &&Interface| uplinks.iter().any(|uplink| uplink.matches(&it.name));
    let found: Vec<&Interface> = present.iter().filter(is_uplink).collect();
    match found.iter().find(|it| carrying.iter().any(|other| other.index == it.index)) {
        Some(both) => Err(ProbeError::UplinkCarriesProbe { name: both.name.clone() }),
        None => Ok(found),
    }
}

/// What packets of a direction are called.
const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Up => "what subscribers send",
        Direction::Down => "what subscribers get",
    }
}
