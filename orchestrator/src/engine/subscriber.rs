//! One subscriber in memory: the durable state, and what is rebuilt from traffic.

use usher_models::setting::{Setting, Settings};
use usher_models::units::{Micros, SubscriberId};

use super::clock::Clock;
use super::io::{Cause, Desire};
use super::state::{OpenSession, SubscriberState};
use super::window::Window;
use super::world::World;
use crate::identity::Profile;
use crate::policy::{Fact, Known, Read};

/// Where a moment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its condition has not been looked at since something it may read changed.
    Unchecked,
    /// Its condition did not hold.
    Idle,
    /// Its condition has held since then.
    Holding(Micros),
    /// It fired and keeps silent.
    Silent,
}

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) state: SubscriberState,
    /// When it is next to be looked at without an input of its own.
    pub(super) due: Option<Micros>,
    /// By fact; empty until the first report.
    pub(super) windows: Vec<Window>,
    /// By fact, at the last boundary.
    pub(super) facts: Vec<Option<f64>>,
    /// By moment.
    pub(super) phases: Vec<Phase>,
    /// A session has been open since then, without a break.
    pub(super) present_since: Option<Micros>,
}

impl Subscriber {
    pub(super) fn new(world: &World, state: SubscriberState) -> Self {
        // Sessions kept over a restart were open all along; whether the agents told of it is the clock's to say.
        let present_since = state.open_sessions().next().map(|_| Micros::new(i64::MIN));
        Self {
            state,
            due: None,
            windows: Vec::new(),
            facts: vec![None; world.facts.len()],
            phases: vec![Phase::Unchecked; world.moments.len()],
            present_since,
        }
    }

    /// The session that says where the person is: a roaming one before others.
    pub(super) fn whereabouts(&self) -> Option<&OpenSession> {
        let mut sessions = self.state.open_sessions();
        let first = sessions.next()?;
        Some(if first.roaming { first } else { sessions.find(|session| session.roaming).unwrap_or(first) })
    }

    /// Whether all that happened in the window before `boundary` was seen.
    pub(super) fn covered(&self, fact: &Fact, clock: &Clock, boundary: Micros) -> bool {
        let from = boundary.before(fact.over);
        self.present_since.is_some_and(|since| since <= from)
            && self.state.sessions.keys().all(|agent| clock.covers(agent, from, boundary))
    }

    /// What an expression reads, as of now.
    pub(super) fn read(&self, world: &World, profile: &Profile, read: &Read) -> Option<Known> {
        match read {
            Read::Fact(name) => {
                let index = world.facts.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
                self.facts[index].map(Known::Number)
            }
            Read::Plan(field) => {
                let plan = world.plans.get(&profile.plan)?;
                let setting = plan.settings.get(field).map(|value| Known::Word(value.clone()));
                setting.or_else(|| plan.numbers.get(field).map(|number| Known::Number(*number)))
            }
            Read::Sub(field) => self.read_field(world, profile, field),
            Read::Org(_) | Read::Value | Read::Cost | Read::Outcome(_) => None,
        }
    }

    fn read_field(&self, world: &World, profile: &Profile, field: &str) -> Option<Known> {
        let session = self.whereabouts();
        let country = || session.filter(|session| session.roaming).and_then(|session| world.country(session));
        match field {
            "active" => Some(Known::Truth(profile.active)),
            "complaint_open" => Some(Known::Truth(profile.complaint_open)),
            "addons" => Some(Known::Words(profile.addons.clone())),
            "roaming" => session.map(|session| Known::Truth(session.roaming)),
            "roam_pass" => {
                let overlay = self.state.overlays.get("roam_pass").map(|overlay| &overlay.value);
                let base = world.plans.get(&profile.plan).and_then(|plan| plan.settings.get("roam_pass"));
                Some(Known::Truth(overlay.or(base).is_some_and(|value| value != "none")))
            }
            "roam_expected" => country().map(|country| Known::Number(country.expected_per_day)),
            "roam_price" => country().map(|country| Known::Number(country.pass_price)),
            _ => None,
        }
    }

    /// Ends what is over. True: something was.
    pub(super) fn expire(&mut self, now: Micros) -> bool {
        let before = self.state.overlays.len();
        self.state.overlays.retain(|_, overlay| overlay.until > now);
        self.state.overlays.len() < before
    }

    /// New desired settings, where they differ from the last, or where `again` asks for them all the same: a session
    /// that opens has to be brought there too. Nothing for somebody never seen.
    pub(super) fn reconcile(
        &mut self,
        world: &World,
        profile: &Profile,
        cause: Cause,
        again: bool,
    ) -> Option<Desire> {
        if self.state.revision == 0 && self.state.open_sessions().next().is_none() {
            return None;
        }
        let plan = world.plans.get(&profile.plan)?;
        let wanted = plan
            .settings
            .iter()
            .map(|(name, base)| {
                let setting = match self.state.overlays.get(name) {
                    Some(overlay) => Setting {
                        value: overlay.value.clone(),
                        until: Some(overlay.until),
                        otherwise: base.clone(),
                    },
                    None => Setting::of_plan(base.clone()),
                };
                (name.clone(), setting)
            })
            .collect();
        if self.state.desired == wanted && self.state.revision > 0 && !again {
            return None;
        }
        self.state.desired = wanted;
        self.state.revision += 1;
        Some(self.desire(&profile.id, cause))
    }

    /// What takes back all that was set, for somebody who is gone, whose plan may be gone too. Nothing where no element
    /// was ever asked for more than the plan gives.
    pub(super) fn take_back(&mut self, id: &SubscriberId) -> Option<Desire> {
        let desired = &mut self.state.desired;
        if desired.values().all(|setting| setting.until.is_none()) {
            return None;
        }
        for setting in desired.values_mut() {
            *setting = Setting::of_plan(setting.otherwise.clone());
        }
        self.state.revision += 1;
        Some(self.desire(id, Cause::Gone))
    }

    fn desire(&self, id: &SubscriberId, cause: Cause) -> Desire {
        Desire { subscriber: id.clone(), settings: self.settings(), cause }
    }

    /// The last desired settings.
    pub(super) fn settings(&self) -> Settings {
        Settings { revision: self.state.revision, values: self.state.desired.clone() }
    }

    /// Something a condition may read has changed, other than a fact.
    pub(super) fn recheck(&mut self) {
        for phase in &mut self.phases {
            if *phase == Phase::Idle {
                *phase = Phase::Unchecked;
            }
        }
    }
}
