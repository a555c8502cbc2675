//! True for `hold` -> fires once -> silent for `rearm`.
//!
//! ```text
//!   Idle --condition true--> Holding(since) --for hold--> fire --> Silent --rearm over--> Idle
//!    ^---- false or unknown -----'
//! ```
//!
//! A moment that reads facts lives in event time and is looked at on the boundaries of windows; one that reads none
//! lives in our time and is looked at when something it may read changes, or when its time has come. A condition that
//! stays true fires again after `rearm`, as a new episode.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::units::{Micros, SubscriberId};

use super::Engine;
use super::choose::{Case, forget_contacts};
use super::io::{Cause, Decision, Desire, Effect, Mode, Say};
use super::state::{Fired, Overlay, SentMessage};
use super::subscriber::Phase;
use super::world::{World, micros};
use crate::policy::ActionKind;

/// Most moments remembered of one subscriber, those of policies past included: their episodes must not come again.
const MAX_FIRED: usize = 1_024;
/// Most boundaries looked at in one step; event time that jumps further skips the oldest.
const MAX_BOUNDARIES: i64 = 1_000;

impl Engine {
    /// Everybody whose time has come.
    pub(super) fn catch_up(&mut self, effects: &mut Vec<Effect>) {
        while let Some((due, _)) = self.agenda.first()
            && *due <= self.now
            && let Some((_, id)) = self.agenda.pop_first()
        {
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.due = None;
            }
            self.look_at(&id, Cause::Plan, false, effects);
        }
    }

    /// Brings one subscriber up to date: what is over ends, desired settings follow, moments without facts are looked
    /// at. `again`: a session opened, so the settings are desired anew even if they are the same.
    pub(super) fn look_at(
        &mut self,
        id: &SubscriberId,
        cause: Cause,
        again: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.profiles.contains_key(id) {
            self.forget(id, effects);
            return;
        }
        let Some(subscriber) = self.subscribers.get_mut(id) else { return };
        let expired = subscriber.expire(self.now);
        let forgotten = forget_contacts(&self.world, &mut subscriber.state.contacts, self.now);
        if expired || !forgotten.is_empty() {
            self.dirty.insert(id.clone());
        }
        for decision in forgotten {
            self.by_decision.remove(&decision);
        }
        if let Some(profile) = self.profiles.get(id) {
            let cause = if expired && cause == Cause::Plan { Cause::Expiry } else { cause };
            if let Some(desire) = subscriber.reconcile(&self.world, profile, cause, again) {
                self.dirty.insert(id.clone());
                self.counters.desired += 1;
                effects.push(Effect::Desire(desire));
            }
            subscriber.recheck();
            for index in 0..self.world.moments.len() {
                if self.world.moments[index].facts.is_empty() {
                    self.check_moment(id, index, self.now, effects);
                }
            }
        }
        self.plan_next_look(id);
    }

    /// Somebody without a profile, gone now or while the process was down: what was set is taken back, nothing is kept.
    fn forget(&mut self, id: &SubscriberId, effects: &mut Vec<Effect>) {
        let Some(mut subscriber) = self.subscribers.remove(id) else { return };
        if let Some(desire) = subscriber.take_back(id) {
            self.counters.desired += 1;
            effects.push(Effect::Desire(desire));
        }
        if let Some(due) = subscriber.due {
            self.agenda.remove(&(due, id.clone()));
        }
        for contact in &subscriber.state.contacts {
            self.by_decision.remove(&contact.decision);
        }
        self.dirty.insert(id.clone());
    }

    fn plan_next_look(&mut self, id: &SubscriberId) {
        let Some(subscriber) = self.subscribers.get_mut(id) else { return };
        let ends = subscriber.state.overlays.values().map(|overlay| overlay.until);
        let moments = self.world.moments.iter().zip(&subscriber.phases).filter_map(|(watched, phase)| {
            if !watched.facts.is_empty() {
                return None;
            }
            match phase {
                Phase::Holding(since) => Some(since.after(watched.moment.hold)),
                Phase::Silent => subscriber.state.moments.get(&watched.name).map(|fired| fired.silent_until),
                Phase::Unchecked | Phase::Idle => None,
            }
        });
        let due = ends.chain(moments).min();
        if due != subscriber.due {
            if let Some(old) = subscriber.due.take() {
                self.agenda.remove(&(old, id.clone()));
            }
            if let Some(due) = due {
                self.agenda.insert((due, id.clone()));
            }
            subscriber.due = due;
        }
    }

    /// Walks event time from boundary to boundary up to the watermark.
    pub(super) fn cross_boundaries(&mut self, effects: &mut Vec<Effect>) {
        let Some(watermark) = self.clock.advance(self.now, self.world.policy.lateness()) else { return };
        let Some(last) = self.boundary else {
            // What came before the first report is nobody's to judge.
            self.boundary = Some(watermark.get());
            return;
        };
        let mut boundary = self.skip_to(last, watermark);
        while let Some(next) = self.world.boundary_after(boundary).filter(|next| *next <= watermark.get()) {
            boundary = next;
            self.boundary = Some(boundary);
            self.cross(Micros::new(boundary), effects);
        }
    }

    /// From where to walk on: where event time jumped, the oldest boundaries are left out, and no condition counts as
    /// having held over them.
    fn skip_to(&mut self, last: i64, watermark: Micros) -> i64 {
        let Some(step) = self.world.finest_step() else { return last };
        let from = watermark.get().saturating_sub(step.saturating_mul(MAX_BOUNDARIES));
        if last >= from {
            return last;
        }
        self.counters.boundaries_skipped += u64::try_from((from - last) / step).unwrap_or(0);
        for subscriber in self.subscribers.values_mut() {
            for (watched, phase) in self.world.moments.iter().zip(&mut subscriber.phases) {
                if !watched.facts.is_empty() && matches!(phase, Phase::Holding(_)) {
                    *phase = Phase::Unchecked;
                }
            }
        }
        from
    }

    /// Facts, then the moments that read them, of everybody, at one boundary.
    fn cross(&mut self, boundary: Micros, effects: &mut Vec<Effect>) {
        let mut changed = vec![false; self.world.facts.len()];
        let ids: Vec<SubscriberId> = self
            .subscribers
            .iter_mut()
            .filter_map(|(id, subscriber)| {
                let mut look = false;
                changed.fill(false);
                for (index, (_, fact)) in self.world.facts.iter().enumerate() {
                    if boundary.get() % micros(fact.every) != 0 {
                        continue;
                    }
                    // The window is closed even where it is unknown: closing is what forgets.
                    let value =
                        subscriber.windows.get_mut(index).map_or(0.0, |window| window.close(fact, boundary));
                    let value = subscriber.covered(fact, &self.clock, boundary).then_some(value);
                    changed[index] = subscriber.facts[index] != value;
                    subscriber.facts[index] = value;
                }
                for (watched, phase) in self.world.moments.iter().zip(&mut subscriber.phases) {
                    if *phase == Phase::Idle && watched.facts.iter().any(|index| changed[*index]) {
                        *phase = Phase::Unchecked;
                    }
                    look |= !watched.facts.is_empty() && *phase != Phase::Idle;
                }
                look.then(|| id.clone())
            })
            .collect();
        for id in ids {
            for index in 0..self.world.moments.len() {
                if !self.world.moments[index].facts.is_empty() {
                    self.check_moment(&id, index, boundary, effects);
                }
            }
            self.plan_next_look(&id);
        }
    }

    /// One moment of one subscriber at `clock`, in the time the moment lives in.
    fn check_moment(&mut self, id: &SubscriberId, index: usize, clock: Micros, effects: &mut Vec<Effect>) {
        let Some(profile) = self.profiles.get(id) else { return };
        let Some(subscriber) = self.subscribers.get_mut(id) else { return };
        let watched = &self.world.moments[index];
        if subscriber.phases[index] == Phase::Idle {
            return;
        }
        let fired = subscriber.state.moments.get(&watched.name);
        if fired.is_some_and(|fired| fired.silent_until > clock) {
            subscriber.phases[index] = Phase::Silent;
            return;
        }
        let when = &watched.moment.when;
        if when.truth(|read| subscriber.read(&self.world, profile, read)) != Ok(true) {
            subscriber.phases[index] = Phase::Idle;
            return;
        }
        let since = match subscriber.phases[index] {
            Phase::Holding(since) => since,
            _ => clock,
        };
        if clock.since(since) < watched.moment.hold {
            subscriber.phases[index] = Phase::Holding(since);
            return;
        }
        let episode = fired.map_or(0, |fired| fired.episodes) + 1;
        let silent_until = clock.after(watched.moment.rearm);
        subscriber.state.moments.insert(watched.name.clone(), Fired { episodes: episode, silent_until });
        forget_moments(&self.world, &mut subscriber.state.moments);
        subscriber.phases[index] = Phase::Silent;
        self.dirty.insert(id.clone());
        self.counters.fired += 1;
        let case = Case { world: &self.world, profile, subscriber, now: self.now };
        let decision = case.decide(watched, episode);
        self.carry_out(index, decision, effects);
    }

    fn carry_out(&mut self, index: usize, decision: Decision, effects: &mut Vec<Effect>) {
        let (id, subscriber_id) = (decision.id.clone(), decision.subscriber.clone());
        let chosen = decision.chosen.clone().filter(|_| decision.mode == Mode::Live);
        effects.push(Effect::Decided(decision));
        let Some(chosen) = chosen else { return };
        let Some((name, action)) = self.world.moments[index].actions.iter().find(|(name, _)| *name == chosen)
        else {
            return;
        };
        let Some(profile) = self.profiles.get(&subscriber_id) else { return };
        let Some(subscriber) = self.subscribers.get_mut(&subscriber_id) else { return };
        match &action.kind {
            ActionKind::Set(change) => {
                let until = self.now.after(change.duration);
                for (name, value) in &change.values {
                    subscriber.state.overlays.insert(name.clone(), Overlay { value: value.clone(), until });
                }
                let desire: Option<Desire> =
                    subscriber.reconcile(&self.world, profile, Cause::Decision(id), false);
                self.counters.desired += u64::from(desire.is_some());
                effects.extend(desire.map(Effect::Desire));
                subscriber.recheck();
            }
            ActionKind::Say { template, tap } => {
                let case = Case { world: &self.world, profile, subscriber, now: self.now };
                // The gates have filled it in once: it can be filled in.
                let Ok(text) = case.fill(template) else { return };
                let expires = self.now.after(self.world.policy.rules().contact.expire);
                let tap_seconds = tap.as_ref().map_or(Duration::ZERO, |tap| tap.duration).as_secs();
                let tap = tap.as_ref().map(|tap| tap.values.clone()).unwrap_or_default();
                subscriber.state.contacts.push(SentMessage {
                    decision: id.clone(),
                    action: name.clone(),
                    at: self.now,
                    expires,
                    tap: tap.clone(),
                    tap_seconds,
                    used: false,
                });
                self.by_decision.insert(id.clone(), subscriber_id.clone());
                self.counters.said += 1;
                let action = name.clone();
                effects.push(Effect::Say(Say {
                    decision: id,
                    subscriber: subscriber_id,
                    action,
                    text,
                    tap,
                    tap_seconds,
                    expires,
                }));
            }
        }
    }
}

/// Keeps the moments of the policy in force and the latest of others.
fn forget_moments(world: &World, moments: &mut BTreeMap<String, Fired>) {
    while moments.len() > MAX_FIRED {
        let past = |name: &str| !world.policy.moments().contains_key(name);
        let oldest =
            moments.iter().filter(|(name, _)| past(name)).min_by_key(|(_, fired)| fired.silent_until);
        let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
        moments.remove(&oldest);
    }
}
