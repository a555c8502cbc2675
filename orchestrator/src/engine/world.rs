//! What holds for everybody: the policy laid out for evaluation, plans, countries, the kill switch.

use std::collections::BTreeMap;
use std::time::Duration;

use super::io::Mode;
use super::state::OpenSession;
use crate::identity::{Country, Plan};
use crate::policy::{Action, Fact, Moment, Policy, Read};

#[derive(Debug)]
pub(super) struct World {
    pub(super) policy: Policy,
    /// In the order of their names.
    pub(super) facts: Vec<(String, Fact)>,
    /// In the order of their names.
    pub(super) moments: Vec<WatchedMoment>,
    /// Distinct steps of the facts, micros.
    steps: Vec<i64>,
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) countries: BTreeMap<String, Country>,
    pub(super) stopped: bool,
}

/// A moment and what stands around it.
#[derive(Debug)]
pub(super) struct WatchedMoment {
    pub(super) name: String,
    pub(super) moment: Moment,
    /// Indices of the facts it reads; where there are none, it is looked at in our time, else in event time.
    pub(super) facts: Vec<usize>,
    /// What can be done about it, in the order of their names.
    pub(super) actions: Vec<(String, Action)>,
}

impl World {
    pub(super) fn new(
        policy: Policy,
        plans: BTreeMap<String, Plan>,
        countries: BTreeMap<String, Country>,
    ) -> Self {
        let facts: Vec<(String, Fact)> =
            policy.facts().iter().map(|(name, fact)| (name.clone(), fact.clone())).collect();
        let moments = policy
            .moments()
            .iter()
            .map(|(name, moment)| {
                let index = |read: &Read| match read {
                    Read::Fact(name) => facts.iter().position(|(known, _)| known == name),
                    _ => None,
                };
                let mine = policy.actions().iter().filter(|(_, action)| action.at.contains(name));
                WatchedMoment {
                    name: name.clone(),
                    moment: moment.clone(),
                    facts: moment.when.reads().filter_map(index).collect(),
                    actions: mine.map(|(name, action)| (name.clone(), action.clone())).collect(),
                }
            })
            .collect();
        let mut steps: Vec<i64> = facts.iter().map(|(_, fact)| micros(fact.every)).collect();
        steps.sort_unstable();
        steps.dedup();
        Self { policy, facts, moments, steps, plans, countries, stopped: false }
    }

    /// The first boundary of any fact after this time.
    pub(super) fn boundary_after(&self, time: i64) -> Option<i64> {
        self.steps.iter().map(|step| (time.div_euclid(*step) + 1).saturating_mul(*step)).min()
    }

    /// The shortest time between two boundaries.
    pub(super) fn finest_step(&self) -> Option<i64> {
        self.steps.first().copied()
    }

    /// What becomes of decisions now.
    pub(super) fn mode(&self) -> Mode {
        if self.stopped { Mode::Stop } else { self.policy.guard().mode }
    }

    pub(super) fn country(&self, session: &OpenSession) -> Option<&Country> {
        self.countries.get(session.serving_plmn.get(..3)?)
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).max(1)
}
