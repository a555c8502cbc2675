//! One moment of one subscriber: every action weighed, the first gate that stops each, the best that passes.

use std::collections::BTreeMap;

use usher_models::units::{Micros, SubscriberId};

use super::io::{Candidate, Decision, DecisionId, Gate, Mode, Score, Stopped};
use super::learning::Of;
use super::luck;
use super::subscriber::Subscriber;
use super::world::{WatchedMoment, World};
use crate::identity::Profile;
use crate::policy::{Action, ActionKind, Amount, Change, Choose, Expression, Known, Purpose, Read, Unknown};

/// Who and when.
pub(super) struct Case<'c> {
    pub(super) world: &'c World,
    pub(super) profile: &'c Profile,
    pub(super) subscriber: &'c Subscriber,
    pub(super) now: Micros,
}

/// The id of a decision: the same moment of the same episode under the same policy is the same decision.
pub(super) fn decision_id(subscriber: &SubscriberId, moment: &str, episode: u64, policy: &str) -> DecisionId {
    let mut hasher = blake3::Hasher::new();
    for part in [subscriber.0.as_bytes(), moment.as_bytes(), &episode.to_le_bytes(), policy.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    DecisionId(hasher.finalize().to_hex()[..32].to_owned())
}

impl Case<'_> {
    /// Weighs every action of the moment.
    pub(super) fn decide(&self, watched: &WatchedMoment, episode: u64) -> Decision {
        let policy = self.world.policy.revision();
        let id = decision_id(&self.profile.id, &watched.name, episode, policy);
        let mut candidates: Vec<Candidate> =
            watched.actions.iter().map(|(name, action)| self.weigh(watched, name, action)).collect();
        let (mut picked, mut probability) = self.pick(watched, &mut candidates, &id);
        let mut style = None;
        if let Some(index) = picked {
            if let Some((drawn, chance)) = self.style(&watched.actions[index], &id) {
                probability *= chance;
                style = Some(drawn);
            }
            let sets = match &watched.actions[index].1.kind {
                ActionKind::Set(change) => Some(change),
                ActionKind::Say { .. } => None,
            };
            if !watched.actions[index].1.regulated
                && let Err((gate, why)) = self.withheld(sets)
            {
                candidates[index].stopped_by = Some(Stopped { gate, why });
                picked = None;
            }
        }
        let mut facts = BTreeMap::new();
        let mut words = BTreeMap::new();
        for read in watched.moment.when.reads() {
            match self.read(read) {
                Some(Known::Word(word)) => drop(words.insert(read.to_string(), word)),
                Some(Known::Words(list)) => {
                    let list: Vec<String> = list.into_iter().collect();
                    words.insert(read.to_string(), list.join(", "));
                }
                known => drop(facts.insert(read.to_string(), known.and_then(|known| known.number()))),
            }
        }
        Decision {
            id,
            subscriber: self.profile.id.clone(),
            moment: watched.name.clone(),
            episode,
            at: self.now,
            policy: policy.to_owned(),
            mode: self.world.mode_of(picked.is_some_and(|index| watched.actions[index].1.regulated)),
            facts,
            words,
            candidates,
            chosen: picked.map(|index| watched.actions[index].0.clone()),
            probability,
            style,
        }
    }

    /// The best of those that passed every gate; now and then, instead, any message that passed those of the policy, whatever
    /// its score, so that what is believed of it can change. Which, and with which chance.
    fn pick(
        &self,
        watched: &WatchedMoment,
        candidates: &mut [Candidate],
        id: &DecisionId,
    ) -> (Option<usize>, f64) {
        let total = |candidate: &Candidate| candidate.score.map_or(f64::NEG_INFINITY, |score| score.total);
        let passed = |candidate: &Candidate| candidate.stopped_by.is_none();
        // Of equals the first by name.
        let best = candidates.iter().enumerate().filter(|(_, candidate)| passed(candidate)).fold(
            None,
            |best: Option<(usize, f64)>, (index, candidate)| match best {
                Some((_, score)) if score >= total(candidate) => best,
                _ => Some((index, total(candidate))),
            },
        );
        let best = best.map(|(index, _)| index);
        let Choose { explore, salt, .. } = self.world.policy.choose();
        let says = |index: usize| matches!(watched.actions[index].1.kind, ActionKind::Say { .. });
        let may_be_tried = |(index, candidate): (usize, &Candidate)| {
            let below_floor =
                candidate.stopped_by.as_ref().is_some_and(|stopped| stopped.gate == Gate::Floor);
            (says(index) && (passed(candidate) || below_floor)).then_some(index)
        };
        let tried: Vec<usize> = match best {
            Some(best) if !says(best) => Vec::new(),
            _ if *explore == 0.0 => Vec::new(),
            _ => candidates.iter().enumerate().filter_map(may_be_tried).collect(),
        };
        let (mut picked, mut probability) = (best, 1.0);
        if !tried.is_empty() {
            #[expect(clippy::cast_precision_loss, reason = "a handful of actions")]
            let share = explore / tried.len() as f64;
            let draw = luck::draw("explore", salt, &[id.0.as_bytes()]);
            if draw < *explore {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "which of a handful"
                )]
                let which = ((draw / share) as usize).min(tried.len() - 1);
                picked = Some(tried[which]);
            }
            let by_chance = if picked.is_some_and(|picked| tried.contains(&picked)) { share } else { 0.0 };
            probability = by_chance + if picked == best { 1.0 - explore } else { 0.0 };
        }
        if let Some(index) = picked {
            candidates[index].stopped_by = None;
            let why = if picked == best {
                format!("`{}` scores {:.3}", watched.actions[index].0, total(&candidates[index]))
            } else {
                format!("`{}` was tried instead", watched.actions[index].0)
            };
            for (_, other) in candidates.iter_mut().enumerate().filter(|(other, _)| *other != index) {
                if other.stopped_by.is_none() {
                    other.stopped_by = Some(Stopped { gate: Gate::Outscored, why: why.clone() });
                }
            }
        }
        (picked, probability)
    }

    /// In which style to say it, and the chance it was drawn with; `None`: there is but one text.
    fn style(&self, (name, action): &(String, Action), id: &DecisionId) -> Option<(String, f64)> {
        let ActionKind::Say { styles, .. } = &action.kind else { return None };
        if styles.is_empty() {
            return None;
        }
        let names: Vec<&str> = styles.keys().map(String::as_str).collect();
        let choose = self.world.policy.choose();
        let own = &self.subscriber.state.told.styles;
        let of = (name.as_str(), &*self.segment());
        let chances = self.world.learned.style_chances(of, &names, own, choose, self.now);
        let mut draw = luck::draw("style", &choose.salt, &[id.0.as_bytes()]);
        let last = names.len() - 1;
        let drawn = chances.iter().position(|chance| {
            draw -= chance;
            draw < 0.0
        });
        let drawn = drawn.unwrap_or(last);
        Some((names[drawn].to_owned(), chances[drawn]))
    }

    /// What keeps a pick from being carried out.
    fn withheld(&self, sets: Option<&Change>) -> Result<(), (Gate, String)> {
        if let Some((at, why)) = &self.world.guard.rolled_back {
            return Err((Gate::Guard, format!("taken back at {at}: {why}")));
        }
        if self.world.is_held_out(&self.profile.id, self.now) {
            let why = format!("held out in {}, to compare others with", quarter(self.now));
            return Err((Gate::Holdout, why));
        }
        self.guarded(sets)
    }

    /// Among whom outcomes are pooled: a plan, at home or abroad.
    pub(super) fn segment(&self) -> String {
        let abroad = self.subscriber.state.whereabouts().is_some_and(|session| session.roaming);
        format!("{}{}", self.profile.plan, if abroad { " abroad" } else { "" })
    }

    fn weigh(&self, watched: &WatchedMoment, name: &str, action: &Action) -> Candidate {
        let value = self.amount(&action.value);
        let cost = self.amount(&action.cost);
        let score = match (&value, &cost) {
            _ if action.regulated => None,
            (Ok(value), Ok(cost)) => Some(self.score(&watched.name, (name, action), *value, *cost)),
            _ => None,
        };
        let stopped = self.gates(name, action, value, cost, score);
        let stopped_by = stopped.err().map(|(gate, why)| Stopped { gate, why });
        Candidate { action: name.to_owned(), stopped_by, score }
    }

    fn score(&self, moment: &str, (name, action): (&str, &Action), value: f64, cost: f64) -> Score {
        let choose = self.world.policy.choose();
        let prior = match action.kind {
            ActionKind::Set(_) => choose.prior_set,
            ActionKind::Say { .. } => choose.prior_say,
        };
        let of = Of { action: name, segment: &self.segment(), style: "" };
        let propensity = self.world.learned.propensity(of, prior, choose, self.now);
        let relevance = choose.relevance.get(moment).copied().unwrap_or(choose.relevance_default);
        Score { propensity, relevance, value, cost, total: propensity * relevance * (value - cost) }
    }

    /// The gates in their order; the first that does not open is the reason.
    fn gates(
        &self,
        name: &str,
        action: &Action,
        value: Result<f64, Unknown>,
        cost: Result<f64, Unknown>,
        score: Option<Score>,
    ) -> Result<(), (Gate, String)> {
        self.not_stopped()?;
        let rules = self.world.policy.rules();
        let eligible = rules.eligible.as_ref().filter(|_| !action.regulated);
        for condition in eligible.into_iter().chain(&action.only_if) {
            holds(condition, Gate::Eligible, |read| self.read(read))?;
        }
        self.feasible(action).map_err(|why| (Gate::Eligible, why))?;
        if action.regulated {
            return Ok(());
        }

        let value = value.map_err(|why| (Gate::Suitable, format!("its value is unknown: {why}")))?;
        let cost = cost.map_err(|why| (Gate::Suitable, format!("its cost is unknown: {why}")))?;
        holds(&rules.suitable, Gate::Suitable, |read| match read {
            Read::Value => Some(Known::Number(value)),
            Read::Cost => Some(Known::Number(cost)),
            _ => self.read(read),
        })?;

        let purpose = match action.kind {
            ActionKind::Set(_) => rules.consent_to_set,
            ActionKind::Say { .. } => rules.consent_to_say,
        };
        self.consented(purpose)?;
        if matches!(action.kind, ActionKind::Say { .. }) {
            self.contact_gates(name)?;
        }
        let floor = self.world.policy.choose().floor;
        match score {
            Some(score) if score.total >= floor => Ok(()),
            Some(score) => Err((Gate::Floor, format!("scores {:.3}, below {floor}", score.total))),
            None => Err((Gate::Floor, "has no score".to_owned())),
        }
    }

    fn not_stopped(&self) -> Result<(), (Gate, String)> {
        if self.world.mode() == Mode::Stop {
            let why = if self.world.stopped { "the kill switch is on" } else { "`guard.mode` is stop" };
            return Err((Gate::Guard, why.to_owned()));
        }
        Ok(())
    }

    fn consented(&self, purpose: Purpose) -> Result<(), (Gate, String)> {
        let (consented, word) = match purpose {
            Purpose::Service => (self.profile.consent.service, "service"),
            Purpose::Advice => (self.profile.consent.advice, "advice"),
        };
        if !consented {
            return Err((Gate::Consent, format!("no consent to {word}")));
        }
        if purpose == Purpose::Advice
            && let Some(at) = self.subscriber.state.told.stop
        {
            return Err((Gate::Consent, format!("consent to {word} was withdrawn at {at}")));
        }
        Ok(())
    }

    /// Whether a message that was picked a moment ago may still be sent, whatever was said or done meanwhile.
    pub(super) fn may_still_say(&self, name: &str) -> Result<(), (Gate, String)> {
        self.not_stopped()?;
        self.consented(self.world.policy.rules().consent_to_say)?;
        self.contact_gates(name)?;
        self.withheld(None)
    }

    fn amount(&self, amount: &Amount) -> Result<f64, Unknown> {
        match amount {
            Amount::Fixed(number) => Ok(*number),
            Amount::Computed(expression) => expression.number(|read| self.read(read)),
        }
    }

    fn read(&self, read: &Read) -> Option<Known> {
        self.subscriber.read(self.world, self.profile, read)
    }
}

impl World {
    /// Whether nothing is done for this person in this quarter, wherever and by whatever policy.
    pub(super) fn is_held_out(&self, id: &SubscriberId, now: Micros) -> bool {
        let Choose { holdout, salt, .. } = self.policy.choose();
        *holdout > 0.0 && luck::draw("holdout", salt, &[id.0.as_bytes(), quarter(now).as_bytes()]) < *holdout
    }
}

/// Opens the gate where the condition holds.
fn holds(
    condition: &Expression,
    gate: Gate,
    lookup: impl FnMut(&Read) -> Option<Known>,
) -> Result<(), (Gate, String)> {
    match condition.truth(lookup) {
        Ok(true) => Ok(()),
        Ok(false) => Err((gate, format!("`{}` is false", condition.source()))),
        Err(unknown) => Err((gate, format!("`{}` is unknown: {unknown}", condition.source()))),
    }
}

/// `2026-Q4`, UTC.
fn quarter(now: Micros) -> String {
    let timestamp = jiff::Timestamp::from_microsecond(now.get()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let date = jiff::tz::TimeZone::UTC.to_datetime(timestamp).date();
    format!("{}-Q{}", date.year(), (date.month() + 2) / 3)
}
