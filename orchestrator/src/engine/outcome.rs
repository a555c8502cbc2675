//! What became of decisions: messages taken up or not, and quality that rose after a `set`, or for nothing.
//!
//! ```text
//!   say carried out -> SentMessage -- tapped: good --- declined, or its time for credit is up: not --> learned
//!   a moment with a `set` fires -> Trial, treated or not -- its time is up: the gauge again -------> learned
//! ```
//!
//! The *gauge* of a moment is the first of the facts its condition reads that tells how good things are: QoO, else the share of
//! time at the cap, else loss, else round-trip time. A moment without one teaches nothing about what is set at it.

use std::time::Duration;

use usher_models::units::Micros;

use super::io::{Decision, Line};
use super::learning::Of;
use super::look::Look;
use super::state::{SentMessage, Told, Trial};
use super::world::WatchedMoment;
use super::{Engine, Opened, clock};
use crate::policy::{ActionKind, Change, Lasts, Learning, Measure};

/// Most trials of one subscriber under way; for further ones there is no room, and they are not judged.
const TRIALS_MAX: usize = 8;
/// Rises of fewer points, of a hundred, are none.
const RISE_MIN: f64 = 1.0;

/// How good a value of a measure is, in points from 0 to 100; `None`: it does not tell.
pub(super) fn points(measure: Measure, value: f64) -> Option<f64> {
    match measure {
        Measure::Qoo => Some(value),
        Measure::AtCap | Measure::Loss => Some(100.0 * (1.0 - value)),
        // A tenth of a second is half as good as none.
        Measure::RttMs => Some(100.0 / (1.0 + value.max(0.0) / 100.0)),
        _ => None,
    }
}

/// Which of these measures tells most of how good things are.
pub(super) fn best_gauge(measures: impl Iterator<Item = Measure>) -> Option<usize> {
    let rank = |measure: Measure| {
        [Measure::Qoo, Measure::AtCap, Measure::Loss, Measure::RttMs].iter().position(|it| *it == measure)
    };
    let ranked = measures.enumerate().filter_map(|(index, measure)| Some((rank(measure)?, index)));
    ranked.min().map(|(_, index)| index)
}

impl SentMessage {
    /// When an answer still to come is no longer its.
    pub(super) fn judged_at(&self, learning: Learning) -> Micros {
        self.expires.min(self.at.after(learning.credit))
    }
}

impl Engine {
    /// Learns from one message, once.
    pub(super) fn judge_message(&mut self, told: &mut Told, contact: &mut SentMessage, taken_up: bool) {
        let Some(learning) = self.world.policy.choose().learning else { return };
        if std::mem::replace(&mut contact.judged, true) {
            return;
        }
        let in_time = self.now < contact.judged_at(learning);
        let outcome = (f64::from(u8::from(taken_up && in_time)), 1.0);
        let of = Of { action: &contact.action, segment: &contact.segment, style: &contact.style };
        let has_room = self.world.learned.learn(of, outcome, self.now, learning.half_life);
        self.counters.segments_full += u64::from(!has_room);
        if !contact.style.is_empty() {
            let own = told.styles.entry(contact.style.clone()).or_default();
            own.add(outcome.0, outcome.1, self.now, learning.half_life);
        }
    }

    /// Judges what is due, messages and trials.
    pub(super) fn judge(&mut self, opened: &mut Opened) {
        let now = self.now;
        if let Some(learning) = self.world.policy.choose().learning {
            let state = &mut opened.subscriber.state;
            for contact in &mut state.contacts {
                if !contact.judged && contact.judged_at(learning) <= now {
                    // One that was tapped was judged then.
                    self.judge_message(&mut state.told, contact, false);
                    opened.changed = true;
                }
            }
        }
        let trials = &mut opened.subscriber.state.trials;
        if trials.iter().all(|trial| trial.due > now) {
            return;
        }
        let (over, under_way) = std::mem::take(trials).into_iter().partition(|trial| trial.due <= now);
        *trials = under_way;
        opened.changed = true;
        let over: Vec<Trial> = over;
        for trial in over {
            self.judge_trial(opened.line, &trial);
        }
    }

    fn judge_trial(&mut self, line: Line, trial: &Trial) {
        let Some(index) = self.world.moments.iter().position(|watched| watched.name == trial.moment) else {
            return;
        };
        let Some(after) = self.gauge(line, index) else { return };
        let rise = after - f64::from(trial.before) / 1_000.0;
        let is_better = rise > RISE_MIN;
        let now = self.now;
        self.guard_gauged(!trial.action.is_empty(), rise);
        let Some(Learning { half_life, credit }) = self.world.policy.choose().learning else { return };
        let learned = &mut self.world.learned;
        if trial.action.is_empty() {
            learned.learn_control(&trial.moment, is_better, now, credit);
        } else if let Some(outcome) = learned.against_control(&trial.moment, is_better, now, credit) {
            let of = Of { action: &trial.action, segment: &trial.segment, style: "" };
            let has_room = learned.learn(of, outcome, now, half_life);
            self.counters.segments_full += u64::from(!has_room);
        }
    }

    /// How good things are for a subscriber by the gauge of a moment, in points; `None`: unknown, or not told of lately.
    fn gauge(&mut self, line: Line, index: usize) -> Option<f64> {
        let (fact, boundary) = (self.world.moments[index].gauge?, self.boundary?);
        let placed = &self.world.layout.facts[fact];
        let still = clock::AGENT_IDLE + self.world.policy.lateness() + placed.fact.window.every();
        if self.now.since(Micros::new(boundary)) >= still {
            return None;
        }
        let measure = placed.fact.measure;
        let (page, seat) = self.pages.page_mut(line);
        let mut look = Look {
            world: &self.world,
            cards: &self.cards,
            clock: &self.clock,
            cycles: &mut self.cycles,
            page,
            seat,
            boundary,
            now: self.now,
            opened: None,
        };
        points(measure, look.fact(fact)?)
    }

    /// A moment has fired and something was set for it, or nothing was done: what it leads to is looked at in its time.
    pub(super) fn begin_trial(
        &mut self,
        opened: &mut Opened,
        index: usize,
        decision: &Decision,
        segment: String,
    ) {
        let watched = &self.world.moments[index];
        let Some((fact, lasts)) = watched.gauge.zip(watched.trial) else { return };
        let learning = self.world.policy.choose().learning;
        if learning.is_none() && !self.world.policy.guard().watches() {
            return;
        }
        let known = opened.subscriber.facts.get(fact).copied().flatten();
        let Some(before) = known.and_then(|value| points(self.world.layout.facts[fact].fact.measure, value))
        else {
            return;
        };
        let action = match decision.carried_out() {
            None => String::new(),
            Some(action) if watched.sets(action) => action.to_owned(),
            Some(_) => return,
        };
        let trials = &mut opened.subscriber.state.trials;
        if trials.len() >= TRIALS_MAX {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "thousandths of a hundred points")]
        let before = (before * 1_000.0).round() as i32;
        let due = self.now.after(learning.map_or(lasts, |learning| lasts.min(learning.credit)));
        trials.push(Trial { moment: watched.name.clone(), action, segment, before, due });
        opened.changed = true;
    }
}

impl WatchedMoment {
    /// Whether an action of this name reconfigures.
    fn sets(&self, name: &str) -> bool {
        let mut actions = self.actions.iter();
        actions.any(|(other, action)| other == name && matches!(action.kind, ActionKind::Set(_)))
    }
}

/// How long the shortest of what is set at a moment lasts; `None`: nothing is.
pub(super) fn shortest_set<'a>(kinds: impl Iterator<Item = &'a ActionKind>) -> Option<Duration> {
    let sets = kinds.filter_map(|kind| match kind {
        ActionKind::Set(Change { lasts: Lasts::For(duration), .. }) => Some(*duration),
        _ => None,
    });
    sets.min()
}
