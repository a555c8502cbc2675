//! What holds for everybody: the policy laid out for evaluation, plans, countries, organisations, the kill switch.

use std::collections::{BTreeMap, BTreeSet};

use super::guard::{GuardState, Pushed};
use super::io::{Elements, Mode};
use super::layout::{self, Layout};
use super::learning::Learned;
use super::outcome::{best_gauge, shortest_set};
use super::state::OpenSession;
use crate::identity::{Country, Plan};
use crate::policy::{Action, Fact, Known, Measure, Moment, Policy, Read, Source, Stat, Window};

/// Fewest members of an organisation of which anything is told.
const MEMBERS_MIN: usize = 5;

#[derive(Debug)]
pub(super) struct World {
    pub(super) policy: Policy,
    /// Names of the facts, sorted; the layout has them in this order.
    pub(super) facts: Vec<String>,
    pub(super) layout: Layout,
    /// In the order of their names.
    pub(super) moments: Vec<WatchedMoment>,
    /// Moments by grid, as bits.
    on_grid: Vec<u64>,
    /// Grids that moments wait on, as bits.
    pub(super) waited_on: u8,
    /// The fact that says what was used in the last billing cycles, where a plan that suits is asked for.
    pub(super) fit: Option<usize>,
    /// Something reads of trips.
    pub(super) keeps_trips: bool,
    /// Some condition or amount reads of the organisation.
    pub(super) reads_organisations: bool,
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) countries: BTreeMap<String, Country>,
    /// By number.
    pub(super) organisations: BTreeMap<u32, Organisation>,
    pub(super) stopped: bool,
    /// How actions fared.
    pub(super) learned: Learned,
    /// Where the canary stands.
    pub(super) guard: GuardState,
    pub(super) pushed: Pushed,
    pub(super) elements: Elements,
}

/// Members of an organisation, by line.
#[derive(Debug, Default)]
pub(super) struct Organisation {
    pub(super) members: BTreeSet<u32>,
    /// How many of them have moved.
    pub(super) moved: usize,
}

impl Organisation {
    /// `org.NAME`; nothing where there are too few to hide among.
    pub(super) fn read(&self, field: &str) -> Option<Known> {
        #[expect(clippy::cast_precision_loss, reason = "numbers of people")]
        let share = self.moved as f64 / self.members.len() as f64;
        (self.members.len() >= MEMBERS_MIN && field == "moved").then_some(Known::Number(share))
    }
}

/// A moment and what stands around it.
#[derive(Debug)]
pub(super) struct WatchedMoment {
    pub(super) name: String,
    pub(super) moment: Moment,
    /// What its condition reads, in the order of the expression's own list.
    pub(super) reads: Vec<Leaf>,
    /// Indices of the facts it reads; where there are none, it is looked at in our time, else in event time.
    pub(super) facts: Vec<usize>,
    /// It may hold where there is no use at all, so that it has to be looked at without a report.
    pub(super) wakes: bool,
    /// The fact among them that tells how good things are.
    pub(super) gauge: Option<usize>,
    /// How long the shortest of what can be set lasts.
    pub(super) trial: Option<std::time::Duration>,
    /// What can be done about it, in the order of their names.
    pub(super) actions: Vec<(String, Action)>,
}

/// Something a condition reads.
#[derive(Debug)]
pub(super) enum Leaf {
    /// A fact, by index.
    Fact(usize),
    /// Anything else.
    Other(Read),
}

impl WatchedMoment {
    /// Whether the condition holds. What it reads is asked for as it is needed; where it would hold, all of it, for an
    /// expression that reads anything unknown is unknown as a whole.
    pub(super) fn holds(&self, mut read: impl FnMut(&Leaf) -> Option<Known>) -> bool {
        let when = &self.moment.when;
        if let Some(native) = when.native() {
            return native.truth(&mut |place| read(&self.reads[place])) == Some(true)
                && self.reads.iter().all(|leaf| read(leaf).is_some());
        }
        // Expressions ask in the order of their own list.
        let mut leaves = self.reads.iter();
        when.truth(|_| leaves.next().and_then(&mut read)) == Ok(true)
    }
}

impl World {
    pub(super) fn new(
        policy: Policy,
        plans: BTreeMap<String, Plan>,
        countries: BTreeMap<String, Country>,
    ) -> Self {
        let facts: Vec<String> = policy.facts().keys().cloned().collect();
        let mut definitions: Vec<Fact> = policy.facts().values().cloned().collect();
        let fit = policy.asks_for_fit().then(|| {
            let used = Fact {
                source: Source::All,
                measure: Measure::Bytes,
                stat: Stat::Sum,
                window: Window::BillCycle,
            };
            definitions.iter().position(|fact| *fact == used).unwrap_or_else(|| {
                definitions.push(used);
                definitions.len() - 1
            })
        });
        let layout = Layout::new(&definitions, policy.lateness(), fit);
        let moments: Vec<WatchedMoment> = policy
            .moments()
            .iter()
            .map(|(name, moment)| watched(name, moment, &facts, (&layout, fit), &policy))
            .collect();
        let mut on_grid = vec![0; layout.grids.len()];
        for (index, watched) in moments.iter().enumerate() {
            for fact in &watched.facts {
                on_grid[layout.facts[*fact].grid] |= 1 << index;
            }
        }
        let waited_on = (0..on_grid.len()).filter(|grid| on_grid[*grid] != 0);
        let waited_on = waited_on.fold(0, |grids, grid| grids | 1 << grid);
        let reads_organisations = moments
            .iter()
            .any(|watched| watched.moment.when.reads().any(|read| matches!(read, Read::Org(_))));
        let guard = GuardState::of(policy.revision());
        let keeps_trips = policy.asks_for_trips();
        Self {
            policy,
            facts,
            layout,
            moments,
            on_grid,
            waited_on,
            fit,
            keeps_trips,
            reads_organisations,
            plans,
            countries,
            organisations: BTreeMap::new(),
            stopped: false,
            learned: Learned::default(),
            guard,
            pushed: Pushed::default(),
            elements: Elements::default(),
        }
    }

    /// The grids that have a boundary here and the moments that read facts of them, as bits.
    pub(super) fn due_at(&self, boundary: i64) -> (u8, u64) {
        let due = self.layout.grids.iter().zip(&self.on_grid).enumerate();
        let due = due.filter(|(_, (grid, _))| boundary % grid.step == 0);
        due.fold((0, 0), |(grids, moments), (index, (_, on_grid))| (grids | 1 << index, moments | on_grid))
    }

    /// What becomes of decisions now.
    pub(super) fn mode(&self) -> Mode {
        self.mode_of(false)
    }

    /// The same; a roll-back ends no regulated notice.
    pub(super) fn mode_of(&self, regulated: bool) -> Mode {
        match self.policy.guard().mode {
            _ if self.stopped => Mode::Stop,
            // Decided and recorded, so that what would be done can be seen.
            Mode::Live | Mode::Canary if self.guard.rolled_back.is_some() && !regulated => Mode::Plan,
            mode => mode,
        }
    }

    pub(super) fn country(&self, session: &OpenSession) -> Option<&Country> {
        self.countries.get(session.serving_plmn.get(..3)?)
    }
}

fn watched(
    name: &str,
    moment: &Moment,
    facts: &[String],
    (layout, fit): (&Layout, Option<usize>),
    policy: &Policy,
) -> WatchedMoment {
    let reads: Vec<Leaf> = moment
        .when
        .reads()
        .map(|read| match read {
            Read::Fact(name) => {
                facts.binary_search(name).map_or_else(|_| Leaf::Other(read.clone()), Leaf::Fact)
            }
            _ => Leaf::Other(read.clone()),
        })
        .collect();
    let mut read_facts: Vec<usize> = reads
        .iter()
        .filter_map(|leaf| if let Leaf::Fact(fact) = leaf { Some(*fact) } else { None })
        .collect();
    let zero = |place: usize| match &reads[place] {
        Leaf::Fact(_) => Some(Known::Number(0.0)),
        Leaf::Other(_) => None,
    };
    let wakes = !read_facts.is_empty()
        && read_facts.iter().all(|fact| layout::is_zero_without_use(&layout.facts[*fact].fact))
        && moment.when.native().is_none_or(|native| native.may_hold(&zero));
    // What suits changes with what is used.
    if moment.when.reads().any(|read| *read == Read::Sub("fit_saves")) {
        read_facts.extend(fit);
    }
    let mine = policy.actions().iter().filter(|(_, action)| action.at.iter().any(|at| at == name));
    let gauge = best_gauge(read_facts.iter().map(|fact| layout.facts[*fact].fact.measure));
    let actions: Vec<(String, Action)> = mine.map(|(name, action)| (name.clone(), action.clone())).collect();
    WatchedMoment {
        name: name.to_owned(),
        moment: moment.clone(),
        gauge: gauge.map(|at| read_facts[at]),
        trial: shortest_set(actions.iter().map(|(_, action)| &action.kind)),
        facts: read_facts,
        reads,
        wakes,
        actions,
    }
}
