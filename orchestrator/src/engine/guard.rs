//! What is let through of what was chosen: push budgets, the canary's share, and the way back.
//!
//! ```text
//!   Step(0) --bake over, enough samples, rollback false--> Step(1) ... --> the last step, looked at again every bake
//!      '------------- rollback true, at any step ------------------------> RolledBack --operator--> Step(0)
//! ```
//!
//! *Treated* are those a decision was carried out for, *control* those for whom one was made and withheld (`holdout`,
//! `canary`), since the step began. What too few samples tell is unknown: a step with anything unknown goes on, and is never
//! passed. Where what is known makes the rollback expression true whatever the rest is, that is enough to roll back.

use std::collections::{BTreeSet, VecDeque};

use usher_models::units::{Micros, SubscriberId};

use super::Engine;
use super::choose::Case;
use super::io::{Cause, Decision, Effect, Elements, Gate, Mode};
use super::luck;
use super::subscriber::Subscriber;
use super::world::World;
use crate::policy::{Canary, Change, Expression, Known, Quota, Read};

/// Where a policy's canary stands. What an operator sees, and what must survive a restart.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardState {
    /// Revision of the policy it is about.
    pub policy: String,
    /// Which step, from 0.
    pub step: usize,
    /// Since when; `None`: nothing has happened yet.
    pub since: Option<Micros>,
    /// When and why everything was taken back.
    pub rolled_back: Option<(Micros, String)>,
    /// Those something was done for, since the step began.
    pub treated: Group,
    /// Those for whom it was withheld.
    pub control: Group,
    /// Pushes of decisions that ended or failed for the first time.
    pub pushes: u64,
    /// Those that failed.
    pub push_errors: u64,
}

/// What was seen of one of the two groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Decisions.
    pub decisions: u64,
    /// Complaints.
    pub complaints: u64,
    /// How many gauges were looked at again.
    pub gauged: u64,
    /// By how many points they rose, all together.
    pub rises: f64,
}

impl GuardState {
    pub(super) fn of(policy: &str) -> Self {
        Self { policy: policy.to_owned(), ..Self::default() }
    }

    /// One of the numbers the rollback expression reads; `None`: too few samples.
    fn outcome(&self, name: &str, samples_min: u64) -> Option<f64> {
        let (treated, control) = (&self.treated, &self.control);
        let enough = |counts: &[u64]| counts.iter().all(|count| *count >= samples_min.max(1));
        #[expect(clippy::cast_precision_loss, reason = "numbers of people")]
        let share = |part: u64, of: u64| part as f64 / of as f64;
        #[expect(clippy::cast_precision_loss, reason = "numbers of people")]
        let mean = |group: &Group| group.rises / group.gauged as f64;
        match name {
            "qoe_delta" => enough(&[treated.gauged, control.gauged]).then(|| mean(treated) - mean(control)),
            "push_error" => enough(&[self.pushes]).then(|| share(self.push_errors, self.pushes)),
            "complaint_delta" => enough(&[treated.decisions, control.decisions]).then(|| {
                share(treated.complaints, treated.decisions) - share(control.complaints, control.decisions)
            }),
            _ => None,
        }
    }

    /// What the expression says of what is known; `None`: that is not enough to say.
    pub(super) fn judge(&self, rollback: &Expression, samples_min: u64) -> Option<bool> {
        let read = |read: &Read| match read {
            Read::Outcome(name) => self.outcome(name, samples_min).map(Known::Number),
            _ => None,
        };
        match rollback.native() {
            // Of `a || b` one true side is enough; for a no, all of it must be known.
            Some(native) => {
                let places: Vec<&Read> = rollback.reads().collect();
                let said = native.truth(&mut |place| read(places[place]));
                said.filter(|said| *said || places.iter().all(|place| read(place).is_some()))
            }
            None => rollback.truth(read).ok(),
        }
    }

    /// The numbers with what they were, for people.
    fn describe(&self, rollback: &Expression, samples_min: u64) -> String {
        let names = rollback.reads().filter_map(|read| match read {
            Read::Outcome(name) => Some((*name, self.outcome(name, samples_min)?)),
            _ => None,
        });
        let known: Vec<String> = names.map(|(name, value)| format!("{name} = {value:.4}")).collect();
        format!("`{}` with {}", rollback.source(), known.join(", "))
    }

    fn begin(&mut self, step: usize, now: Micros) {
        *self = Self { policy: std::mem::take(&mut self.policy), step, since: Some(now), ..Self::default() };
    }
}

/// Pushes of the last while, to keep within the budgets. Oldest first.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Pushed {
    all: VecDeque<Micros>,
    /// By element.
    elements: std::collections::BTreeMap<String, VecDeque<Micros>>,
}

/// Whether one more is within a quota; forgets what it no longer looks back on.
fn has_room(pushed: &VecDeque<Micros>, quota: Quota, now: Micros) -> bool {
    let since = now.before(quota.per);
    pushed.iter().rev().take_while(|at| **at > since).count() < quota.count as usize
}

fn note(pushed: &mut VecDeque<Micros>, quota: Quota, now: Micros) {
    while pushed.len() >= quota.count.max(1) as usize {
        pushed.pop_front();
    }
    pushed.push_back(now);
}

impl World {
    /// The share of people that something is done for now.
    fn share(&self) -> f64 {
        let canary = self.canary();
        if self.policy.guard().mode == Mode::Canary {
            canary.steps.get(self.guard.step).or(canary.steps.last()).copied().unwrap_or(1.0)
        } else {
            1.0
        }
    }

    fn canary(&self) -> &Canary {
        &self.policy.guard().canary
    }

    /// The elements that a change of this subscriber's settings is pushed to, by name.
    pub(super) fn elements_of(&self, subscriber: &Subscriber, change: &Change) -> Vec<String> {
        let takes = |accepted: &BTreeSet<String>| change.values.keys().any(|name| accepted.contains(name));
        let Elements { gateways, others } = &self.elements;
        let gateways = subscriber.state.sessions.keys().filter(|_| gateways.as_ref().is_none_or(takes));
        let others = others.iter().filter(|(_, accepted)| takes(accepted));
        gateways.map(|agent| format!("gateway:{agent}")).chain(others.map(|(name, _)| name.clone())).collect()
    }

    /// Whether this person is among the canary's share.
    fn is_treated(&self, id: &SubscriberId) -> bool {
        let parts = [id.0.as_bytes(), self.policy.revision().as_bytes()];
        luck::draw("canary", &self.policy.choose().salt, &parts) < self.share()
    }
}

impl Case<'_> {
    /// Whether the guard lets something be done for this person at all, and a push of this change.
    pub(super) fn guarded(&self, sets: Option<&Change>) -> Result<(), (Gate, String)> {
        let world = self.world;
        if !world.is_treated(&self.profile.id) {
            let share = 100.0 * world.share();
            return Err((Gate::Canary, format!("not among the {share} % of step {}", world.guard.step + 1)));
        }
        sets.map_or(Ok(()), |change| self.push_gates(change).map_err(|why| (Gate::Pushes, why)))
    }

    fn push_gates(&self, change: &Change) -> Result<(), String> {
        let budgets = self.world.policy.guard().pushes;
        let full = |what: &str, quota: Quota| {
            format!("{what}: {} in {:?} were pushed already", quota.count, quota.per)
        };
        let state = &self.subscriber.state;
        if let Some(quota) = budgets.subscriber {
            let since = self.now.before(quota.per);
            if state.pushed.iter().filter(|at| **at > since).count() >= quota.count as usize {
                return Err(full("this subscriber", quota));
            }
        }
        if let Some(quota) = budgets.element {
            for element in self.world.elements_of(self.subscriber, change) {
                let pushed = self.world.pushed.elements.get(&element);
                if pushed.is_some_and(|pushed| !has_room(pushed, quota, self.now)) {
                    return Err(full(&element, quota));
                }
            }
        }
        match budgets.all {
            Some(quota) if !has_room(&self.world.pushed.all, quota, self.now) => Err(full("all", quota)),
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// Where the canary stands.
    pub fn guard(&self) -> &GuardState {
        &self.world.guard
    }

    /// The share of people that something is done for now, 0 to 1, and in how many steps it grows.
    pub fn guard_share(&self) -> (f64, usize) {
        let is_canary = self.world.policy.guard().mode == Mode::Canary;
        let steps = if is_canary { self.world.canary().steps.len() } else { 1 };
        (if self.mode() == Mode::Stop { 0.0 } else { self.world.share() }, steps)
    }

    /// Takes up where an earlier engine of the same policy stood. Before the first step.
    pub fn guard_from(&mut self, state: GuardState) {
        if state.policy == self.world.policy.revision() {
            self.world.guard = state;
        }
    }

    /// A decision was made: to which group it belongs.
    pub(super) fn guard_decided(&mut self, decision: &Decision) {
        let withheld = decision.candidates.iter().filter_map(|candidate| candidate.stopped_by.as_ref());
        let guard = &mut self.world.guard;
        if decision.carried_out().is_some() {
            guard.treated.decisions += 1;
        } else if withheld.into_iter().any(|stopped| matches!(stopped.gate, Gate::Holdout | Gate::Canary)) {
            guard.control.decisions += 1;
        }
    }

    /// A push of a decision goes out to these elements.
    pub(super) fn guard_pushes(&mut self, subscriber: &mut Subscriber, elements: Vec<String>) {
        let budgets = self.world.policy.guard().pushes;
        let now = self.now;
        if let Some(quota) = budgets.subscriber {
            let pushed = &mut subscriber.state.pushed;
            let since = now.before(quota.per);
            pushed.retain(|at| *at > since);
            pushed.push(now);
        }
        let pushed = &mut self.world.pushed;
        if let Some(quota) = budgets.element {
            for element in elements {
                note(pushed.elements.entry(element).or_default(), quota, now);
            }
        }
        if let Some(quota) = budgets.all {
            note(&mut pushed.all, quota, now);
        }
    }

    /// A gauge was looked at again.
    pub(super) fn guard_gauged(&mut self, treated: bool, rise: f64) {
        let guard = &mut self.world.guard;
        let group = if treated { &mut guard.treated } else { &mut guard.control };
        group.gauged += 1;
        group.rises += rise;
    }

    /// Somebody complained.
    pub(super) fn guard_complaint(&mut self, id: &SubscriberId) {
        let treated = self.world.is_treated(id) && !self.world.is_held_out(id, self.now);
        let guard = &mut self.world.guard;
        if treated { guard.treated.complaints += 1 } else { guard.control.complaints += 1 }
    }

    /// A push of a decision ended, or failed for the first time.
    pub(super) fn guard_pushed(&mut self, ok: bool) {
        self.world.guard.pushes += 1;
        self.world.guard.push_errors += u64::from(!ok);
    }

    /// An operator has seen it and goes on: the canary begins anew.
    pub(super) fn guard_resume(&mut self, effects: &mut Vec<Effect>) {
        if self.world.guard.rolled_back.is_some() {
            self.world.guard.begin(0, self.now);
            effects.push(Effect::Guarded(self.world.guard.clone()));
        }
    }

    /// When the step's time is over.
    pub(super) fn guard_due(&self) -> Option<Micros> {
        let guarded = matches!(self.mode(), Mode::Canary | Mode::Live) && self.world.policy.guard().watches();
        let since = self.world.guard.since.filter(|_| guarded)?;
        let due = since.after(self.world.canary().bake);
        (due > self.now).then_some(due)
    }

    /// Goes a step on, or back, where it is time.
    pub(super) fn guard_turn(&mut self, effects: &mut Vec<Effect>) {
        let policy_guard = self.world.policy.guard();
        if !policy_guard.watches() || !matches!(self.mode(), Mode::Canary | Mode::Live) {
            return;
        }
        let now = self.now;
        let Some(since) = self.world.guard.since else {
            self.world.guard.since = Some(now);
            effects.push(Effect::Guarded(self.world.guard.clone()));
            return;
        };
        let Canary { steps, bake, samples_min } = policy_guard.canary.clone();
        let said = match &policy_guard.rollback {
            Some(rollback) => self.world.guard.judge(rollback, samples_min),
            None => (self.world.guard.treated.decisions >= samples_min).then_some(false),
        };
        match said {
            Some(true) => self.roll_back(effects),
            Some(false) if now.since(since) >= bake => {
                let last = if policy_guard.mode == Mode::Canary { steps.len().saturating_sub(1) } else { 0 };
                let next = (self.world.guard.step + 1).min(last);
                self.world.guard.begin(next, now);
                effects.push(Effect::Guarded(self.world.guard.clone()));
            }
            _ => {}
        }
    }

    /// Takes back everything decisions have set. What a person tapped for stays: it was asked for.
    fn roll_back(&mut self, effects: &mut Vec<Effect>) {
        let canary = self.world.canary();
        let why = self
            .world
            .policy
            .guard()
            .rollback
            .as_ref()
            .map_or_else(String::new, |rollback| self.world.guard.describe(rollback, canary.samples_min));
        self.world.guard.rolled_back = Some((self.now, why));
        effects.push(Effect::Guarded(self.world.guard.clone()));
        for line in self.pages.lines() {
            if self.pages.state(line).is_empty() {
                continue;
            }
            let mut opened = self.open(line);
            let overlays = &mut opened.subscriber.state.overlays;
            let before = overlays.len();
            overlays.retain(|_, overlay| overlay.tapped);
            if overlays.len() < before {
                opened.changed = true;
                self.look_at_opened(&mut opened, Cause::RolledBack, false, effects);
                self.close(&opened);
            }
        }
    }
}
