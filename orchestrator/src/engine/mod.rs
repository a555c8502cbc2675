//! Facts -> moments -> decisions, sans-I/O. Time is an argument; the same inputs give the same effects.
//!
//! ```text
//! step(at, input) -> [effects]
//!     Observed -> sessions (a new one: Desire) -> windows -> watermark -> boundaries -> moments that read facts
//!     Profile, Tariffs, Tapped, Stop -> what it changes
//!     any -> what is due by now: expiries, holds, rearms -> moments that read no fact
//!     a moment fires -> candidates through the gates -> Decided, then Desire or Say
//! ```
//!
//! Owns the desired settings of every subscriber and their revision. Refuses clocks, files, sockets and luck: whatever
//! is ordered here is ordered by time, then subscriber, then name. Durable state leaves by [`Engine::take_dirty`] and
//! comes back by [`Engine::restore`]; windows do not survive, so facts are unknown until they are full again.

pub(crate) mod choose;
mod clock;
pub mod io;
mod moments;
mod state;
mod subscriber;
#[cfg(test)]
mod tests;
mod window;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use usher_models::Class;
use usher_models::setting::Settings;
use usher_models::units::{Micros, SubscriberId};

use self::clock::{Clock, Verdict};
use self::io::{Cause, DecisionId, Effect, Input, Observed, SessionSeen, TapState, UsageSeen};
pub use self::state::{
    Fired, MAX_CONTACTS, MAX_SESSIONS, OpenSession, Overlay, SentMessage, SubscriberState,
};
use self::subscriber::Subscriber;
use self::window::{Report, Window};
use self::world::World;
use crate::identity::{Directory, Profile};
use crate::policy::{Policy, PolicyErrors};

/// What the engine has counted since it was made. Each only rises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Usage of which something was too late for its window.
    pub late: u64,
    /// Batches that ended too far in the future, or before they started: their usage was not applied.
    pub misdated: u64,
    /// Sessions and usage of subscribers without a profile.
    pub strangers: u64,
    /// Sessions beyond [`MAX_SESSIONS`] of one subscriber.
    pub sessions_refused: u64,
    /// Moments that fired.
    pub fired: u64,
    /// Messages sent.
    pub said: u64,
    /// New desired settings.
    pub desired: u64,
    /// Boundaries of windows skipped because event time jumped.
    pub boundaries_skipped: u64,
}

/// The engine. One task owns it.
#[derive(Debug)]
pub struct Engine {
    world: World,
    profiles: BTreeMap<SubscriberId, Profile>,
    subscribers: BTreeMap<SubscriberId, Subscriber>,
    clock: Clock,
    /// The last boundary looked at, event time.
    boundary: Option<i64>,
    /// When whom to look at without an input of their own.
    agenda: BTreeSet<(Micros, SubscriberId)>,
    by_decision: BTreeMap<DecisionId, SubscriberId>,
    dirty: BTreeSet<SubscriberId>,
    now: Micros,
    counters: Counters,
}

impl Engine {
    /// An engine for a policy; refused where the policy asks for what is not evaluated yet, or does not fit the plans.
    pub fn new(policy: Policy, directory: &Directory) -> Result<Self, PolicyErrors> {
        policy.check(directory.plans())?;
        Ok(Self {
            world: World::new(policy, directory.plans().clone(), directory.countries().clone()),
            profiles: directory.profiles().map(|profile| (profile.id.clone(), profile.clone())).collect(),
            subscribers: BTreeMap::new(),
            clock: Clock::default(),
            boundary: None,
            agenda: BTreeSet::new(),
            by_decision: BTreeMap::new(),
            dirty: BTreeSet::new(),
            now: Micros::new(i64::MIN),
            counters: Counters::default(),
        })
    }

    /// Takes back what [`Engine::take_dirty`] gave. Before the first step; what changed meanwhile, or ran out, shows in
    /// the effects of the first step.
    pub fn restore(&mut self, id: SubscriberId, state: SubscriberState) {
        self.by_decision.extend(state.contacts.iter().map(|contact| (contact.decision.clone(), id.clone())));
        let mut subscriber = Subscriber::new(&self.world, state);
        let at_once = Micros::new(i64::MIN);
        subscriber.due = Some(at_once);
        self.agenda.insert((at_once, id.clone()));
        self.subscribers.insert(id, subscriber);
    }

    /// Takes in one thing that happened and gives what is to be done, in order. Time that goes back stands still.
    pub fn step(&mut self, at: Micros, input: Input) -> Vec<Effect> {
        self.now = self.now.max(at);
        let mut effects = Vec::new();
        match input {
            Input::Profile(profile) => {
                let id = profile.id.clone();
                self.profiles.insert(id.clone(), profile);
                self.look_at(&id, Cause::Plan, false, &mut effects);
            }
            Input::ProfileGone(id) => {
                self.profiles.remove(&id);
                self.look_at(&id, Cause::Gone, false, &mut effects);
            }
            Input::Tariffs { plans, countries } => {
                self.world.plans = plans;
                self.world.countries = countries;
                let everybody: Vec<SubscriberId> = self.subscribers.keys().cloned().collect();
                for id in everybody {
                    self.look_at(&id, Cause::Plan, false, &mut effects);
                }
            }
            Input::Observed(observed) => self.observe(&observed, &mut effects),
            Input::Tapped(decision) => self.tap(&decision, &mut effects),
            Input::Stop(stop) => self.world.stopped = stop,
            Input::Tick => {}
        }
        self.catch_up(&mut effects);
        self.cross_boundaries(&mut effects);
        effects
    }

    /// Durable state that changed since the last call, to be made durable together with the effects of the step. `None`:
    /// the subscriber is forgotten.
    pub fn take_dirty(&mut self) -> Vec<(SubscriberId, Option<SubscriberState>)> {
        let dirty = std::mem::take(&mut self.dirty);
        let state = |id: SubscriberId| {
            let state = self.subscribers.get(&id).map(|subscriber| subscriber.state.clone());
            (id, state)
        };
        dirty.into_iter().map(state).collect()
    }

    /// When [`Input::Tick`] is next of use; `None`: not before another input.
    pub fn next_due(&self) -> Option<Micros> {
        let agenda = self.agenda.first().map(|(due, _)| *due);
        [agenda, self.clock.next_idle(self.now)].into_iter().flatten().min()
    }

    /// What a tap on the message of a decision would meet.
    pub fn tap_state(&self, decision: &DecisionId, at: Micros) -> TapState {
        match self.contact(decision) {
            None => TapState::Unknown,
            Some(contact) if contact.used => TapState::Used,
            Some(contact) if contact.expires <= at => TapState::Expired,
            Some(_) => TapState::Open,
        }
    }

    /// The message of a decision, while it is remembered.
    pub fn contact(&self, decision: &DecisionId) -> Option<&SentMessage> {
        let id = self.by_decision.get(decision)?;
        self.subscribers.get(id)?.state.contacts.iter().find(|contact| contact.decision == *decision)
    }

    /// The facts of a subscriber at the last boundary, and the numbers conditions read of the subscriber (`sub.*`; truth
    /// is 1); `None`: unknown. Empty for somebody unknown.
    pub fn facts_of(&self, id: &SubscriberId, at: Micros) -> BTreeMap<String, Option<f64>> {
        const FIELDS: [&str; 6] =
            ["active", "complaint_open", "roam_expected", "roam_pass", "roam_price", "roaming"];
        let Some(profile) = self.profiles.get(id) else { return BTreeMap::new() };
        let mut facts: BTreeMap<String, Option<f64>> =
            self.world.facts.iter().map(|(name, _)| (name.clone(), None)).collect();
        let nobody = Subscriber::new(&self.world, SubscriberState::default());
        let subscriber = self.subscribers.get(id).unwrap_or(&nobody);
        for ((name, fact), value) in self.world.facts.iter().zip(&subscriber.facts) {
            // A fact is as old as its last boundary; long after, it says nothing of now.
            let still = clock::AGENT_IDLE + self.world.policy.lateness() + fact.every;
            let fresh = self.boundary.is_some_and(|boundary| at.since(Micros::new(boundary)) < still);
            facts.insert(name.clone(), value.filter(|_| fresh));
        }
        for field in FIELDS {
            let read = crate::policy::Read::Sub(field);
            let known = subscriber.read(&self.world, profile, &read);
            facts.insert(read.to_string(), known.and_then(|known| known.number()));
        }
        facts
    }

    /// The desired settings of a subscriber; revision 0: none yet.
    pub fn settings_of(&self, id: &SubscriberId) -> Option<Settings> {
        self.subscribers.get(id).map(Subscriber::settings)
    }

    /// The durable state of a subscriber.
    pub fn state_of(&self, id: &SubscriberId) -> Option<&SubscriberState> {
        self.subscribers.get(id).map(|subscriber| &subscriber.state)
    }

    /// What is known of a subscriber.
    pub fn profile(&self, id: &SubscriberId) -> Option<&Profile> {
        self.profiles.get(id)
    }

    /// All subscribers with a profile, in the order of their ids.
    pub fn profiles(&self) -> impl Iterator<Item = &Profile> {
        self.profiles.values()
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.world.policy
    }

    /// What becomes of decisions now: the policy's mode, or stop.
    pub fn mode(&self) -> io::Mode {
        self.world.mode()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn observe(&mut self, observed: &Observed, effects: &mut Vec<Effect>) {
        for session in &observed.sessions {
            self.session(&observed.agent, observed.start, session, effects);
        }
        match self.clock.observe(&observed.agent, observed.start, observed.end, self.now) {
            Verdict::Good => self.usage(observed),
            // A batch of sessions alone may have an empty interval; nothing is lost with it.
            Verdict::Empty if observed.usage.is_empty() => {}
            Verdict::Empty | Verdict::Ahead => self.counters.misdated += 1,
        }
    }

    fn session(&mut self, agent: &str, since: Micros, seen: &SessionSeen, effects: &mut Vec<Effect>) {
        if !self.profiles.contains_key(&seen.subscriber) {
            self.counters.strangers += 1;
            return;
        }
        let subscriber = self
            .subscribers
            .entry(seen.subscriber.clone())
            .or_insert_with(|| Subscriber::new(&self.world, SubscriberState::default()));
        let sessions = &mut subscriber.state.sessions;
        if !seen.open {
            let Some(on_agent) = sessions.get_mut(agent) else { return };
            if on_agent.remove(&seen.session).is_none() {
                return;
            }
            if on_agent.is_empty() {
                sessions.remove(agent);
            }
            if sessions.is_empty() {
                subscriber.present_since = None;
            }
            self.dirty.insert(seen.subscriber.clone());
            self.look_at(&seen.subscriber, Cause::Plan, false, effects);
            return;
        }
        let open = OpenSession {
            serving_plmn: seen.serving_plmn.clone(),
            roaming: seen.roaming,
            time_zone: seen.time_zone.clone(),
        };
        let count: usize = sessions.values().map(BTreeMap::len).sum();
        let before = sessions.get(agent).and_then(|sessions| sessions.get(&seen.session));
        if before == Some(&open) {
            return;
        }
        let new = before.is_none();
        if new && count >= MAX_SESSIONS {
            self.counters.sessions_refused += 1;
            return;
        }
        sessions.entry(agent.to_owned()).or_default().insert(seen.session.clone(), open);
        subscriber.present_since.get_or_insert(since);
        self.dirty.insert(seen.subscriber.clone());
        self.look_at(&seen.subscriber, Cause::Plan, new, effects);
    }

    /// Usage into windows: one report per class and one for all, whatever the sessions and directions.
    fn usage(&mut self, observed: &Observed) {
        if self.world.facts.is_empty() {
            return;
        }
        let mut reports: BTreeMap<&SubscriberId, BTreeMap<Option<usize>, Report>> = BTreeMap::new();
        for usage in &observed.usage {
            let of = reports.entry(&usage.subscriber).or_default();
            for class in [None, Some(usage.class.index())] {
                let blank = Report { start: observed.start, end: observed.end, ..Report::default() };
                add_usage(of.entry(class).or_insert(blank), usage);
            }
        }
        for (id, of) in reports {
            if !self.profiles.contains_key(id) {
                self.counters.strangers += 1;
                continue;
            }
            let Some(subscriber) = self.subscribers.get_mut(id) else { continue };
            subscriber.windows.resize_with(self.world.facts.len(), Window::default);
            let mut late = false;
            for ((_, fact), window) in self.world.facts.iter().zip(&mut subscriber.windows) {
                if let Some(report) = of.get(&fact.class.map(Class::index)) {
                    late |= !window.add(fact, report, self.boundary.map(Micros::new));
                }
            }
            self.counters.late += u64::from(late);
        }
    }

    fn tap(&mut self, decision: &DecisionId, effects: &mut Vec<Effect>) {
        if self.tap_state(decision, self.now) != TapState::Open {
            return;
        }
        let Some(id) = self.by_decision.get(decision).cloned() else { return };
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let Some(contact) =
            subscriber.state.contacts.iter_mut().find(|contact| contact.decision == *decision)
        else {
            return;
        };
        contact.used = true;
        let until = self.now.after(std::time::Duration::from_secs(contact.tap_seconds));
        for (name, value) in &contact.tap {
            subscriber.state.overlays.insert(name.clone(), Overlay { value: value.clone(), until });
        }
        self.dirty.insert(id.clone());
        self.look_at(&id, Cause::Tap(decision.clone()), false, effects);
    }
}

fn add_usage(report: &mut Report, usage: &UsageSeen) {
    #[expect(clippy::cast_precision_loss, reason = "a second's traffic is far below 2^53")]
    let number = |count: u64| count as f64;
    report.bytes += number(usage.bytes.0);
    report.packets += number(usage.packets);
    report.drops += number(usage.dropped_packets);
    report.at_cap = report.at_cap.max(usage.at_cap.unwrap_or(0.0).clamp(0.0, 1.0));
}
