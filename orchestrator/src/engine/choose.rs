//! One moment of one subscriber: every action weighed, the first gate that stops each, the best that passes.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use usher_models::units::{Micros, SubscriberId};

use super::io::{Candidate, Decision, DecisionId, Gate, Mode, Score, Stopped};
use super::state::{MAX_CONTACTS, SentMessage};
use super::subscriber::Subscriber;
use super::world::{WatchedMoment, World};
use crate::identity::{Country, Profile};
use crate::policy::{Action, ActionKind, Amount, Expression, Known, Purpose, Quota, Read, Unknown};

/// How long a message is remembered beyond its link, so that a late tap is told the right thing.
pub(crate) const REMEMBERED: std::time::Duration = std::time::Duration::from_hours(7 * 24);

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

    fn contact_gates(&self, name: &str) -> Result<(), (Gate, String)> {
        let rules = self.world.policy.rules();
        let contacts = &self.subscriber.state.contacts;
        if contacts.len() >= MAX_CONTACTS {
            return Err((Gate::Budget, format!("{MAX_CONTACTS} messages are still remembered")));
        }
        let sent = |quota: Quota, action: Option<&str>| {
            let since = self.now.before(quota.per);
            let counts = |contact: &&SentMessage| {
                contact.at > since && action.is_none_or(|action| contact.action == action)
            };
            let count = contacts.iter().filter(counts).count();
            let seconds = quota.per.as_secs();
            let why = format!("{count} in the last {}, at most {}", describe(seconds), quota.count);
            if count < quota.count as usize { Ok(()) } else { Err(why) }
        };
        if let Some(quota) = rules.contact.budget {
            sent(quota, None).map_err(|why| (Gate::Budget, format!("messages: {why}")))?;
        }
        if let Some(quota) = rules.contact.same_action {
            sent(quota, Some(name))
                .map_err(|why| (Gate::SameAction, format!("messages of `{name}`: {why}")))?;
        }
        if let Some(quiet) = rules.contact.quiet {
            let (zone, from) = self.time_zone();
            let local = local_minute(self.now, &zone);
            if quiet.covers(local) {
                let why = format!("it is {:02}:{:02} there ({from})", local / 60, local % 60);
                return Err((Gate::Quiet, why));
            }
        }
        if let Some(backoff) = rules.after_ignored {
            let ignored = contacts
                .iter()
                .filter(|contact| contact.action == name && !contact.used && contact.expires <= self.now);
            if let Some(last) = ignored.map(|contact| contact.expires).max()
                && self.now < last.after(backoff)
            {
                let why = format!("a message of `{name}` ran out untapped at {last}");
                return Err((Gate::Backoff, why));
            }
        }
        Ok(())
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

    /// Where the person is now, else where they live, else UTC.
    fn time_zone(&self) -> (TimeZone, String) {
        let session = self.subscriber.whereabouts().map(|session| session.time_zone.as_str());
        for name in session.into_iter().chain(self.profile.time_zone.as_deref()) {
            if let Ok(zone) = TimeZone::get(name) {
                return (zone, name.to_owned());
            }
        }
        (TimeZone::UTC, "UTC, for want of a time zone".to_owned())
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

/// Forgets messages that no rule and no late tap asks about any more; gives their decisions.
pub(super) fn forget_contacts(
    world: &World,
    contacts: &mut Vec<SentMessage>,
    now: Micros,
) -> Vec<DecisionId> {
    let rules = world.policy.rules();
    let quotas = [rules.contact.budget, rules.contact.same_action];
    let longest = quotas.into_iter().flatten().map(|quota| quota.per).max().unwrap_or_default();
    let after_link = REMEMBERED.max(rules.after_ignored.unwrap_or_default());
    let mut forgotten = Vec::new();
    contacts.retain(|contact| {
        let keep = contact.at.after(longest) > now || contact.expires.after(after_link) > now;
        if !keep {
            forgotten.push(contact.decision.clone());
        }
        keep
    });
    forgotten
}

fn local_minute(now: Micros, zone: &TimeZone) -> u16 {
    let timestamp = jiff::Timestamp::from_microsecond(now.get()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let time = zone.to_datetime(timestamp).time();
    u16::try_from(i16::from(time.hour()) * 60 + i16::from(time.minute())).unwrap_or_default()
}

fn price(amount: f64, country: &Country) -> String {
    if country.currency.is_empty() {
        format!("{amount:.2}")
    } else {
        format!("{amount:.2} {}", country.currency)
    }
}

/// `7d`, `90m`, `30s`: the largest unit that divides it.
fn describe(seconds: u64) -> String {
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds >= unit && seconds.is_multiple_of(unit) {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}
