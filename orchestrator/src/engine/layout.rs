//! Where each fact of a policy lies in a subscriber's memory: compiled once, when the policy is.
//!
//! Facts of one source that live about as long share a *block*, allocated while there is something in it. Facts of one
//! step share a *grid*: the times at which they change. A block is a run of 32-bit words:
//!
//! ```text
//! | owner | last use, s | fact: oldest pane, [total,] pane, pane, ... | fact: ... |
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::Class;

use crate::policy::{Fact, Measure, Source, Stat, Window};

/// How far ahead of the next boundary, beyond the lateness, an agent's report may be before it has to wait.
pub(super) const SLACK: Duration = Duration::from_secs(5);
/// Blocks that live longer than this are kept apart from those that live shorter.
const LONG: i64 = 3_600_000_000;
/// Words before the facts of a block.
pub(super) const HEADER: usize = 2;
/// Words of a total: which window, and two numbers.
pub(super) const TOTAL: usize = 5;
/// Whole billing cycles remembered.
pub(super) const CYCLES: usize = 3;
/// A billing cycle is no longer than this.
const LONGEST_CYCLE: i64 = 32 * 86_400_000_000;
/// The cycles remembered, and the one that runs, are no longer than this.
const LONGEST_REMEMBERED: i64 = 4 * LONGEST_CYCLE;
const _: () = assert!(CYCLES == 3, "one less than the cycles above");
/// After so many half-lives nothing is left of a mean.
const HALF_LIVES: i64 = 24;

/// What a pane keeps of the reports in it, and how many words it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Amount, or seconds at the full share.
    Sum,
    /// The same, and the seconds told of.
    SumAndSeconds,
    /// The least, and the seconds told of.
    Min,
    /// The most.
    Max,
    /// The latest, of those that ended together the highest, and when it ended.
    Last,
    /// Reports with use.
    Count,
    /// 64 bits of hashes.
    Bits,
    /// Nothing: the samples lie elsewhere.
    Samples,
}

impl Keeps {
    const fn words(self) -> usize {
        match self {
            Self::Samples => 0,
            Self::Sum | Self::Max | Self::Count => 1,
            Self::SumAndSeconds | Self::Min | Self::Bits => 2,
            Self::Last => 3,
        }
    }
}

/// How panes make a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The last so many panes.
    Ring {
        /// How many.
        panes: u32,
    },
    /// Panes are added to a total that begins anew every so many micros.
    Tumbling {
        /// Micros.
        over: i64,
    },
    /// The same, with the subscriber's billing cycle.
    Cycle,
    /// Panes are blended into a mean.
    Ewma {
        /// Micros.
        half_life: i64,
    },
}

/// A fact and where it lies.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) fact: Fact,
    pub(super) keeps: Keeps,
    pub(super) shape: Shape,
    /// Index of its grid.
    pub(super) grid: usize,
    /// Index of its group.
    pub(super) group: usize,
    /// Micros of a pane.
    pub(super) step: i64,
    /// First word in its block.
    pub(super) offset: usize,
    /// Words of one pane.
    pub(super) pane_words: usize,
    /// Words of the total, after the oldest pane's number; none in a ring.
    pub(super) total_words: usize,
    /// Panes there is room for: the window's, and those that are not closed yet.
    pub(super) room: u32,
    /// After so long without use it is as if there never was any, micros.
    pub(super) lingers: i64,
}

impl Placed {
    /// For how long after a use the number may change by itself, micros.
    fn changes_for(&self) -> i64 {
        let fades = matches!(self.shape, Shape::Ewma { .. }) && !self.fact.measure.is_sampled();
        if matches!(self.shape, Shape::Ring { .. }) || fades { self.lingers } else { 2 * self.step }
    }

    pub(super) const fn words(&self) -> usize {
        1 + self.total_words + self.pane_words * self.room as usize
    }
}

/// Facts that change at the same times.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    /// Micros between two boundaries.
    pub(super) step: i64,
    /// Facts on it.
    pub(super) facts: Vec<usize>,
}

/// Facts of one source that live about as long.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) facts: Vec<usize>,
    /// Words of a block.
    pub(super) words: usize,
    /// Words of a fresh block.
    pub(super) fresh: Vec<u32>,
    /// After so long without use a block is given back, micros.
    pub(super) lingers: i64,
    /// Grids its facts are on, as bits.
    pub(super) grids: u8,
    /// For how long after a use its facts on a grid may still change, micros.
    pub(super) keeps: Vec<(usize, i64)>,
}

/// The layout of a policy.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// In the order of their names, as in the policy.
    pub(super) facts: Vec<Placed>,
    /// Finest first.
    pub(super) grids: Vec<Grid>,
    pub(super) groups: Vec<Group>,
    /// Groups fed by all traffic.
    pub(super) of_all: Vec<usize>,
    /// Groups fed by a class, by its index.
    pub(super) of_class: [Vec<usize>; Class::ALL.len()],
    /// Groups fed by use abroad.
    pub(super) of_roaming: Vec<usize>,
    /// Groups fed by an app.
    pub(super) of_app: BTreeMap<String, Vec<usize>>,
    /// How far after the next boundary a report may end and still have its panes, micros.
    pub(super) reach: i64,
}

impl Layout {
    /// `remembered`: of this fact, over billing cycles, the last [`CYCLES`] whole ones are kept as well.
    pub(super) fn new(facts: &[Fact], lateness: Duration, remembered: Option<usize>) -> Self {
        let reach = micros(lateness) + micros(SLACK);
        let mut steps: Vec<i64> = facts.iter().map(|fact| micros(fact.window.every())).collect();
        steps.sort_unstable();
        steps.dedup();
        let mut grids: Vec<Grid> = steps.iter().map(|step| Grid { step: *step, facts: Vec::new() }).collect();
        let mut layout = Self {
            facts: Vec::new(),
            grids: Vec::new(),
            groups: Vec::new(),
            of_all: Vec::new(),
            of_class: std::array::from_fn(|_| Vec::new()),
            of_roaming: Vec::new(),
            of_app: BTreeMap::new(),
            reach,
        };
        let mut by_key: BTreeMap<(Source, bool), usize> = BTreeMap::new();
        for (index, fact) in facts.iter().enumerate() {
            let placed = place(fact, &steps, reach, remembered == Some(index));
            let key = (fact.source.clone(), placed.lingers > LONG);
            let group = *by_key.entry(key).or_insert_with(|| layout.open_group(&fact.source));
            grids[placed.grid].facts.push(index);
            let of = &mut layout.groups[group];
            let placed = Placed { group, offset: of.words, ..placed };
            of.words += placed.words();
            of.lingers = of.lingers.max(placed.lingers);
            of.facts.push(index);
            of.grids |= 1 << placed.grid;
            match of.keeps.iter_mut().find(|(grid, _)| *grid == placed.grid) {
                Some((_, keeps)) => *keeps = placed.changes_for().max(*keeps),
                None => of.keeps.push((placed.grid, placed.changes_for())),
            }
            of.fresh.resize(of.words, 0);
            layout.facts.push(placed);
        }
        layout.grids = grids;
        layout
    }

    fn open_group(&mut self, source: &Source) -> usize {
        let group = self.groups.len();
        self.groups.push(Group {
            facts: Vec::new(),
            words: HEADER,
            fresh: vec![0; HEADER],
            lingers: 0,
            grids: 0,
            keeps: Vec::new(),
        });
        match source {
            Source::All => self.of_all.push(group),
            Source::Class(class) => self.of_class[class.index()].push(group),
            Source::Roaming => self.of_roaming.push(group),
            Source::App(app) => self.of_app.entry(app.clone()).or_default().push(group),
        }
        group
    }

    /// The first boundary of any grid after this time.
    pub(super) fn boundary_after(&self, time: i64) -> Option<i64> {
        let next = |grid: &Grid| (time.div_euclid(grid.step) + 1).saturating_mul(grid.step);
        self.grids.iter().map(next).min()
    }
}

fn place(fact: &Fact, steps: &[i64], reach: i64, remembered: bool) -> Placed {
    let step = micros(fact.window.every());
    let sampled = fact.measure.is_sampled();
    let keeps = match fact.stat {
        Stat::Mean | Stat::Sum if sampled => Keeps::SumAndSeconds,
        Stat::Ewma { .. } => Keeps::SumAndSeconds,
        Stat::Mean | Stat::Sum => Keeps::Sum,
        Stat::Min => Keeps::Min,
        Stat::Max => Keeps::Max,
        Stat::Last => Keeps::Last,
        Stat::Count => Keeps::Count,
        Stat::Percentile(_) => Keeps::Samples,
        Stat::Distinct => Keeps::Bits,
    };
    // Open at a time is what may come up to `reach` after the next boundary of the finest grid; where that grid's
    // boundaries are not among this one's, one pane more is begun.
    let finest = steps.first().copied().unwrap_or(step);
    let begun = if step % finest == 0 { (reach - 1) / step + 2 } else { reach / step + 3 };
    let open = u32::try_from(begun).unwrap_or(u32::MAX);
    let (shape, room, lingers) = match (fact.window, fact.stat) {
        (_, Stat::Ewma { half_life }) => {
            let half_life = micros(half_life);
            (Shape::Ewma { half_life }, open, half_life.saturating_mul(HALF_LIVES))
        }
        (Window::Sliding { over, .. }, _) => {
            let panes = u32::try_from(micros(over) / step).unwrap_or(u32::MAX);
            (Shape::Ring { panes }, panes.saturating_add(open), micros(over))
        }
        (Window::Tumbling { over }, _) => (Shape::Tumbling { over: micros(over) }, open, micros(over)),
        (Window::BillCycle | Window::Endless { .. }, _) if remembered => {
            (Shape::Cycle, open, LONGEST_REMEMBERED)
        }
        (Window::BillCycle | Window::Endless { .. }, _) => (Shape::Cycle, open, LONGEST_CYCLE),
    };
    let total_words = match shape {
        Shape::Ring { .. } => 0,
        Shape::Tumbling { .. } | Shape::Cycle => TOTAL + if remembered { CYCLES } else { 0 },
        // The last pane blended in, and the mean.
        Shape::Ewma { .. } => 3,
    };
    Placed {
        fact: fact.clone(),
        keeps,
        shape,
        grid: steps.binary_search(&step).unwrap_or_default(),
        group: 0,
        step,
        offset: 0,
        pane_words: keeps.words(),
        total_words,
        room,
        lingers: lingers.saturating_add(step),
    }
}

/// Whether the fact is a number where there was no use: then it is zero.
pub(super) fn is_zero_without_use(fact: &Fact) -> bool {
    match fact.stat {
        Stat::Count | Stat::Distinct => true,
        Stat::Percentile(_) => false,
        _ => !fact.measure.is_sampled() && fact.measure != Measure::Flows,
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).max(1)
}
