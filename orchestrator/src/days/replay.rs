//! A day played again: under its own policy, where every input must lead to what it led to, bit for bit; and beside it under
//! another one, for the difference.
//!
//! Under another policy the same traffic comes, and people answer where the same message was sent to them for the same reason;
//! what they would have done with other messages, and what other settings would have done to their traffic, no replay knows.
//! Nothing is pushed, sent or written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;

use usher_models::units::{Micros, SubscriberId};

use super::{Day, DayError, Entry};
use crate::api::model::Time;
use crate::engine::Engine;
use crate::engine::io::{Cause, Decision, DecisionId, Desire, Digest, Effect, Input};
use crate::policy::{Policy, PolicyErrors};

/// Messages whose taps are followed under the other policy, at most; further taps come to nothing there.
const MESSAGES_MAX: usize = 1 << 20;
const MINUTE: i64 = 60_000_000;

/// Why a day was not played to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file.
    #[error(transparent)]
    Day(#[from] DayError),
    /// The other policy does not fit the plans of the day.
    #[error("{0}")]
    Policy(PolicyErrors),
}

/// What a replay says.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// When the day began.
    pub began: Time,
    /// When its last input was.
    pub ended: Time,
    /// Whether the day is over; else it is still being written.
    pub finished: bool,
    /// Version of the daemon that wrote it.
    pub version: String,
    /// Inputs played.
    pub inputs: u64,
    /// Usage records in them.
    pub usage_records: u64,
    /// Digest of every effect, as recorded.
    pub recorded: String,
    /// The same, as replayed.
    pub replayed: String,
    /// The first input that led to something else; absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// What was done under the day's own policy.
    pub under: Tally,
    /// What another would have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Other>,
}

/// An input that led to something else than when it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// Its place in the journal.
    pub position: u64,
    /// When it was.
    pub at: Time,
}

/// What a policy did in a day.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Its revision.
    pub policy: String,
    /// Decisions made.
    pub decisions: u64,
    /// Of them, to do nothing.
    pub nothing: u64,
    /// Subscribers whose settings a decision or a tap changed.
    pub subscribers_changed: u64,
    /// Subscribers who were sent a message.
    pub subscribers_told: u64,
    /// Subscribers left alone.
    pub subscribers_left_alone: u64,
    /// Pushes, those of plans and expiries included.
    pub pushes: u64,
    /// Most pushes of one minute.
    pub pushes_per_minute_peak: u64,
    /// Which minute that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_at: Option<Time>,
    /// Messages.
    pub messages: u64,
    /// Times each moment fired.
    pub moments: BTreeMap<String, u64>,
    /// Times each action was chosen.
    pub actions: BTreeMap<String, u64>,
}

/// What another policy would have done, and to whom.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Other {
    /// In all.
    pub under: Tally,
    /// Facts go on where they were; false: they are other facts, which began anew with the day.
    pub windows_go_on: bool,
    /// Settings would be changed that were not.
    pub would_be_changed: Whom,
    /// Settings would not be changed that were.
    pub no_longer_changed: Whom,
    /// Would be sent a message, and were not.
    pub would_be_told: Whom,
    /// Would not be sent a message, and were.
    pub no_longer_told: Whom,
    /// Would be left alone, and were not.
    pub would_be_left_alone: Whom,
}

/// Some subscribers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Whom {
    /// How many.
    pub count: u64,
    /// The first of them, in order.
    pub first: Vec<SubscriberId>,
}

/// Plays a day, beside it under `other`; `names` is how many subscribers are named of each kind.
pub fn replay<R: Read>(mut day: Day<R>, other: Option<Policy>, names: usize) -> Result<Report, ReplayError> {
    let mut engine = day.engine()?;
    let began = day.about.began;
    let mut beside = match other {
        Some(policy) => Some(Beside::of(&engine, policy).map_err(ReplayError::Policy)?),
        None => None,
    };
    let mut own = Player::default();
    let (mut recorded, mut replayed) = (Digest([0; 16]), Digest([0; 16]));
    let (mut ended, mut usage_records, mut difference) = (began, 0, None);
    while let Some(Entry { position, at, input, effects: expected }) = day.next_entry()? {
        if let Input::Observed(observed) = &input {
            usage_records += observed.usage.len() as u64;
        }
        if let Some(beside) = &mut beside {
            beside.step(at, &input);
        }
        let effects = engine.step(at, input);
        let found = Digest::of(&effects);
        if found != expected && difference.is_none() {
            difference = Some(Difference { position, at: at.into() });
        }
        // What left for the ledger is no part of a replay.
        engine.take_dirty();
        (recorded, replayed) = (chain(recorded, expected), chain(replayed, found));
        if let Some(beside) = &mut beside {
            beside.hear(&effects);
        }
        own.take(at, &effects);
        ended = ended.max(at);
    }
    let subscribers = engine.subscribers() as u64;
    let under = own.tally(engine.policy().revision(), subscribers);
    Ok(Report {
        began: began.into(),
        ended: ended.into(),
        finished: day.is_finished(),
        version: day.about.version.clone(),
        inputs: day.entries(),
        usage_records,
        recorded: recorded.to_string(),
        replayed: replayed.to_string(),
        difference,
        under,
        other: beside.map(|beside| beside.other(&own, names)),
    })
}

/// Plays a day up to `until` and gives the engine as it was then.
pub fn engine_at<R: Read>(mut day: Day<R>, until: Micros) -> Result<Engine, DayError> {
    let mut engine = day.engine()?;
    while let Some(Entry { at, input, .. }) = day.next_entry()? {
        if at > until {
            break;
        }
        engine.step(at, input);
        engine.take_dirty();
    }
    Ok(engine)
}

fn chain(before: Digest, effects: Option<Digest>) -> Digest {
    effects.map_or(before, |effects| Digest::of_bytes(&[&before.0, &effects.0]))
}

/// Counts what an engine does.
#[derive(Debug, Default)]
struct Player {
    tally: Tally,
    changed: HashSet<SubscriberId>,
    told: HashSet<SubscriberId>,
    /// The minute pushes are being counted of, and how many so far.
    minute: (i64, u64),
}

impl Player {
    fn take(&mut self, at: Micros, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Decided(decision) => self.decided(decision),
                Effect::Desire(desire) => self.desired(at, desire),
                Effect::Say(say) => {
                    self.tally.messages += 1;
                    self.told.insert(say.subscriber.clone());
                }
                Effect::Withdraw(_) | Effect::Guarded(_) | Effect::Ask(_) => {}
            }
        }
    }

    fn decided(&mut self, decision: &Decision) {
        self.tally.decisions += 1;
        *self.tally.moments.entry(decision.moment.clone()).or_default() += 1;
        match &decision.chosen {
            Some(action) => *self.tally.actions.entry(action.clone()).or_default() += 1,
            None => self.tally.nothing += 1,
        }
    }

    fn desired(&mut self, at: Micros, desire: &Desire) {
        self.tally.pushes += 1;
        if matches!(desire.cause, Cause::Decision(_) | Cause::Tap(_)) {
            self.changed.insert(desire.subscriber.clone());
        }
        let minute = at.get().div_euclid(MINUTE);
        if minute != self.minute.0 {
            self.minute = (minute, 0);
        }
        self.minute.1 += 1;
        if self.minute.1 > self.tally.pushes_per_minute_peak {
            self.tally.pushes_per_minute_peak = self.minute.1;
            self.tally.peak_at = Some(Micros::new(minute * MINUTE).into());
        }
    }

    fn tally(&self, policy: &str, subscribers: u64) -> Tally {
        let reached = self.changed.union(&self.told).count() as u64;
        Tally {
            policy: policy.to_owned(),
            subscribers_changed: self.changed.len() as u64,
            subscribers_told: self.told.len() as u64,
            subscribers_left_alone: subscribers.saturating_sub(reached),
            ..self.tally.clone()
        }
    }
}

/// The engine under the other policy.
#[derive(Debug)]
struct Beside {
    engine: Engine,
    windows_go_on: bool,
    player: Player,
    /// What the day's messages were for, by their decision: the same message has another id under another policy.
    messages: HashMap<DecisionId, DecisionId>,
}

impl Beside {
    fn of(engine: &Engine, policy: Policy) -> Result<Self, PolicyErrors> {
        let before = engine.policy();
        let windows_go_on = before.facts() == policy.facts() && before.lateness() == policy.lateness();
        let engine = engine.tried_under(policy)?;
        Ok(Self { engine, windows_go_on, player: Player::default(), messages: HashMap::new() })
    }

    fn step(&mut self, at: Micros, input: &Input) {
        let input = match input {
            Input::Policy { .. } => return,
            Input::Tapped(decision) => Input::Tapped(self.messages.get(decision).unwrap_or(decision).clone()),
            Input::Declined(decision) => {
                Input::Declined(self.messages.get(decision).unwrap_or(decision).clone())
            }
            other => other.clone(),
        };
        let effects = self.engine.step(at, input);
        self.engine.take_dirty();
        self.player.take(at, &effects);
    }

    /// Hears what was done under the day's own policy.
    fn hear(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Decided(decision) = effect
                && decision.chosen.is_some()
                && self.messages.len() < MESSAGES_MAX
            {
                let here = decision.id_under(self.engine.policy().revision());
                self.messages.insert(decision.id.clone(), here);
            }
        }
    }

    fn other(self, own: &Player, names: usize) -> Other {
        let player = &self.player;
        let whom = |mut all: Vec<&SubscriberId>| {
            all.sort_unstable();
            let first = all.iter().take(names).map(|id| (*id).clone()).collect();
            Whom { count: all.len() as u64, first }
        };
        let beyond = |a: &HashSet<SubscriberId>, b: &HashSet<SubscriberId>| -> Whom {
            whom(a.difference(b).collect())
        };
        let reached = own.changed.union(&own.told);
        let left = reached.filter(|id| !player.changed.contains(*id) && !player.told.contains(*id));
        Other {
            under: player.tally(self.engine.policy().revision(), self.engine.subscribers() as u64),
            windows_go_on: self.windows_go_on,
            would_be_changed: beyond(&player.changed, &own.changed),
            no_longer_changed: beyond(&own.changed, &player.changed),
            would_be_told: beyond(&player.told, &own.told),
            no_longer_told: beyond(&own.told, &player.told),
            would_be_left_alone: whom(left.collect()),
        }
    }
}
