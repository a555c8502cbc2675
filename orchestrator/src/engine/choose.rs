//! One moment of one subscriber: every action weighed, the first gate that stops each, the best that passes.

use std::collections::BTreeMap;

use usher_models::units::{Micros, SubscriberId};

use super::io::{Candidate, Decision, DecisionId, Gate, Mode, Score, Stopped};
use super::subscriber::Subscriber;
use super::world::{WatchedMoment, World};
use crate::identity::{Country, Profile};
use crate::policy::{Action, ActionKind, Amount, Expression, Known, Purpose, Read, Unknown};

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
        let mut candidates: Vec<Candidate> =
            watched.actions.iter().map(|(name, action)| self.weigh(watched, name, action)).collect();
        let total = |candidate: &Candidate| candidate.score.map_or(f64::NEG_INFINITY, |score| score.total);
        // Of equals the first by name.
        let best = candidates
            .iter()
            .filter(|candidate| candidate.stopped_by.is_none())
            .fold(None, |best: Option<&Candidate>, candidate| match best {
                Some(best) if total(best) >= total(candidate) => Some(best),
                _ => Some(candidate),
            })
            .map(|best| (best.action.clone(), total(best)));
        for candidate in &mut candidates {
            if let Some((name, score)) = &best
                && candidate.stopped_by.is_none()
                && candidate.action != *name
            {
                let why = format!("`{name}` scores {score:.3}");
                candidate.stopped_by = Some(Stopped { gate: Gate::Outscored, why });
            }
        }
        let policy = self.world.policy.revision();
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
            id: decision_id(&self.profile.id, &watched.name, episode, policy),
            subscriber: self.profile.id.clone(),
            moment: watched.name.clone(),
            episode,
            at: self.now,
            policy: policy.to_owned(),
            mode: self.world.mode(),
            facts,
            words,
            candidates,
            chosen: best.map(|(name, _)| name),
        }
    }

    fn weigh(&self, watched: &WatchedMoment, name: &str, action: &Action) -> Candidate {
        let value = self.amount(&action.value);
        let cost = self.amount(&action.cost);
        let score = match (&value, &cost) {
            (Ok(value), Ok(cost)) => Some(self.score(&watched.name, action, *value, *cost)),
            _ => None,
        };
        let stopped = self.gates(name, action, value, cost, score);
        let stopped_by = stopped.err().map(|(gate, why)| Stopped { gate, why });
        Candidate { action: name.to_owned(), stopped_by, score }
    }

    fn score(&self, moment: &str, action: &Action, value: f64, cost: f64) -> Score {
        let choose = self.world.policy.choose();
        let propensity = match action.kind {
            ActionKind::Set(_) => choose.propensity_set,
            ActionKind::Say { .. } => choose.propensity_say,
        };
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
        if self.world.mode() == Mode::Stop {
            let why = if self.world.stopped { "the kill switch is on" } else { "`guard.mode` is stop" };
            return Err((Gate::Guard, why.to_owned()));
        }
        let rules = self.world.policy.rules();
        for condition in rules.eligible.iter().chain(&action.only_if) {
            holds(condition, Gate::Eligible, |read| self.read(read))?;
        }
        self.feasible(action).map_err(|why| (Gate::Eligible, why))?;

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

    /// Whether it can be done at all: a setting must have something to return to, a message all its words.
    fn feasible(&self, action: &Action) -> Result<(), String> {
        let change = match &action.kind {
            ActionKind::Set(change) => Some(change),
            ActionKind::Say { tap, template } => {
                self.fill(template)?;
                tap.as_ref()
            }
        };
        let plan = &self.profile.plan;
        let base = self.world.plans.get(plan).ok_or_else(|| format!("the plan `{plan}` is unknown"))?;
        match change.and_then(|change| change.values.keys().find(|name| !base.settings.contains_key(*name))) {
            Some(name) => Err(format!("the plan `{plan}` gives no `{name}` to return to")),
            None => Ok(()),
        }
    }

    /// The message with its placeholders filled in.
    pub(super) fn fill(&self, template: &str) -> Result<String, String> {
        let mut text = template.to_owned();
        if text.contains('{') {
            let session = self.subscriber.whereabouts();
            let country = session.and_then(|session| self.world.country(session));
            let country = country.ok_or("the country the message speaks of is not known")?;
            text = text
                .replace("{country}", &country.name)
                .replace("{price}", &price(country.pass_price, country))
                .replace("{expected}", &price(country.expected_per_day, country));
        }
        Ok(text)
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

fn price(amount: f64, country: &Country) -> String {
    if country.currency.is_empty() {
        format!("{amount:.2}")
    } else {
        format!("{amount:.2} {}", country.currency)
    }
}
