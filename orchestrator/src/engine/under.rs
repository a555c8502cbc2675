//! The same people, sessions, settings and messages under another policy: what becomes of an engine when its policy
//! changes ([`Input::Policy`](super::io::Input::Policy)), and how a recorded day is played under another one.
//!
//! Lines keep their numbers, so that what is addressed to a line still finds it. Windows go on where the facts are the same;
//! else they begin anew, and are unknown until they are covered.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Engine;
use super::calendar::Cycles;
use super::clock::Clock;
use super::feed::Waiting;
use super::io::Line;
use super::listed::{Lines, Listed};
use super::moments::Phase;
use super::pages::{Pages, Phases};
use super::roster::Roster;
use super::state::SubscriberState;
use super::world::World;
use crate::identity::{Country, Plan};
use crate::policy::{Policy, PolicyErrors};

impl Engine {
    /// An engine that goes on where this one is, under a policy that was checked beside these plans. What the change leads
    /// to shows in the effects of its first step.
    pub(super) fn under(
        &self,
        policy: Policy,
        plans: BTreeMap<String, Plan>,
        countries: BTreeMap<String, Country>,
    ) -> Self {
        let before = &self.world.policy;
        let windows_go_on = before.facts() == policy.facts()
            && before.lateness() == policy.lateness()
            && before.asks_for_fit() == policy.asks_for_fit();
        let mut world = World::new(policy, plans, countries);
        world.stopped = self.world.stopped;
        let groups = world.layout.groups.len();
        let mut pages = if windows_go_on {
            self.pages.clone()
        } else {
            let pages = self.pages.share();
            Pages::restore(groups, pages.iter().map(|page| page.without_blocks(groups)).collect())
        };
        for line in pages.lines() {
            if pages.get(line).is_none() {
                continue;
            }
            let state = self.state(line);
            let phases = self.phases_under(&world, line, &state, windows_go_on);
            if pages.seat(line).phases != phases {
                pages.seat_mut(line).phases = phases;
            }
        }
        let (clock, waiting) = if windows_go_on {
            (self.clock.clone(), self.waiting.clone())
        } else {
            (Clock::of_the_same(&self.clock), Waiting::default())
        };
        let listed = Listed::new(world.layout.grids.len());
        // Everything by name: whatever an engine comes to hold has to be thought of here.
        let mut engine = Self {
            roster: Roster::restore(&pages),
            cards: self.cards.clone(),
            pages: Pages::new(groups),
            clock,
            cycles: Cycles::default(),
            boundary: self.boundary.filter(|_| windows_go_on),
            crossing: self.crossing.clone().filter(|_| windows_go_on),
            listed: if windows_go_on { self.listed.clone() } else { listed },
            holding: Lines::default(),
            most_looks: self.most_looks,
            waiting,
            agenda: BTreeSet::new(),
            due: HashMap::default(),
            again: Vec::new(),
            put_off: Vec::new(),
            by_decision: BTreeMap::new(),
            dirty: self.dirty.clone(),
            gone: self.gone.clone(),
            lost: self.lost.clone(),
            unsettled: pages.lines().filter(|line| pages.get(*line).is_some()).collect(),
            now: self.now,
            counters: self.counters,
            world,
        };
        engine.learn_from(self.learned().clone());
        engine.guard_from(self.guard().clone());
        engine.world.pushed = self.world.pushed.clone();
        engine.world.elements = self.world.elements.clone();
        engine.index(&pages).expect("these seats are an engine's own");
        engine.pages = pages;
        engine
    }

    /// The same under a policy that has not been checked; refused where it does not fit the plans.
    pub fn tried_under(&self, policy: Policy) -> Result<Self, PolicyErrors> {
        policy.check(&self.world.plans)?;
        Ok(self.under(policy, self.world.plans.clone(), self.world.countries.clone()))
    }

    /// Where the moments of the other policy stand: silent as long as they were to be, by name; under way where the
    /// condition is the same and is still looked at in the same time.
    fn phases_under(
        &self,
        world: &World,
        line: Line,
        state: &SubscriberState,
        windows_go_on: bool,
    ) -> Option<Box<Phases>> {
        let mut phases = Phases::new();
        let before = self.pages.seat(line).phases.as_deref();
        for (index, watched) in world.moments.iter().enumerate() {
            let Ok(index) = u8::try_from(index) else { break };
            let same = self.world.moments.iter().position(|known| {
                known.name == watched.name && known.moment.when.source() == watched.moment.when.source()
            });
            let known = same.and_then(|same| before?.get(&u8::try_from(same).ok()?)).copied();
            let phase = match (known, state.moments.get(&watched.name)) {
                (Some(Phase::Holding(since)), _) if windows_go_on || watched.facts.is_empty() => {
                    Some(Phase::Holding(since))
                }
                (_, Some(fired)) => Some(Phase::Silent(fired.silent_until)),
                _ => None,
            };
            if let Some(phase) = phase {
                phases.insert(index, phase);
            }
        }
        (!phases.is_empty()).then(|| Box::new(phases))
    }
}
