//! Decisions, the messages they send, and the explanation made of them.

use std::collections::BTreeMap;

use usher_models::units::SubscriberId;

use super::{Push, Session, SettingRow, Subscriber, Time};
use crate::engine::explain::MomentSeen;
use crate::engine::io::{Candidate, DecisionId, Mode};
use crate::ledger::{DecisionRow, MessageRow, MessageState};

/// What was chosen for one moment of one subscriber, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Decision {
    /// Its id.
    pub id: DecisionId,
    /// About whom.
    pub subscriber: SubscriberId,
    /// The moment that fired.
    pub moment: String,
    /// How often it has fired for this subscriber, from 1.
    pub episode: u64,
    /// When.
    pub at: Time,
    /// Revision of the policy that decided.
    pub policy: String,
    /// `stop`, `plan` or `live`; only `live` decisions are carried out.
    pub mode: Mode,
    /// The numbers its condition read (truth is 1); null: unknown.
    pub facts: BTreeMap<String, Option<f64>>,
    /// The words it read.
    #[serde(default)]
    pub words: BTreeMap<String, String>,
    /// Every action at this moment, with the first gate that stopped it.
    pub candidates: Vec<Candidate>,
    /// The action taken; null: nothing was worth doing.
    pub chosen: Option<String>,
    /// The chance with which that, in this style, was to be picked: 1 where no chance was in it.
    pub probability: f64,
    /// The style of its message, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
    /// What became of its message, where it sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Sending>,
    /// When its link was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tapped: Option<Time>,
    /// When the person said no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declined: Option<Time>,
    /// The push that carried it out, itself or after the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
}

impl From<DecisionRow> for Decision {
    fn from(row: DecisionRow) -> Self {
        let decision = row.decision;
        Self {
            id: decision.id,
            subscriber: decision.subscriber,
            moment: decision.moment,
            episode: decision.episode,
            at: decision.at.into(),
            policy: decision.policy,
            mode: decision.mode,
            facts: decision.facts,
            words: decision.words,
            candidates: decision.candidates,
            chosen: decision.chosen,
            probability: decision.probability,
            style: decision.style,
            message: row.message.map(Sending::from),
            tapped: row.tapped.map(Time::from),
            declined: row.declined.map(Time::from),
            push: None,
        }
    }
}

/// Where a message stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sending {
    /// To be handed to the channel.
    Pending,
    /// The channel has it.
    Sent(Time),
    /// Not sent, and why.
    Failed(String),
}

impl From<MessageState> for Sending {
    fn from(state: MessageState) -> Self {
        match state {
            MessageState::Pending => Self::Pending,
            MessageState::Sent(at) => Self::Sent(at.into()),
            MessageState::Failed(why) => Self::Failed(why),
        }
    }
}

/// A message to a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// The decision it comes from.
    pub decision: DecisionId,
    /// To whom.
    pub subscriber: SubscriberId,
    /// The action's name.
    pub action: String,
    /// What is said.
    pub text: String,
    /// What a tap sets.
    pub tap: BTreeMap<String, String>,
    /// For how many seconds from the tap.
    pub tap_seconds: u64,
    /// When it was decided.
    pub at: Time,
    /// When its link ends.
    pub expires: Time,
    /// Where it stands.
    pub state: Sending,
    /// When its link was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tapped: Option<Time>,
    /// When the person said no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declined: Option<Time>,
}

impl From<MessageRow> for Message {
    fn from(row: MessageRow) -> Self {
        Self {
            decision: row.say.decision,
            subscriber: row.say.subscriber,
            action: row.say.action,
            text: row.say.text,
            tap: row.say.tap,
            tap_seconds: row.say.tap_seconds,
            at: row.at.into(),
            expires: row.say.expires.into(),
            state: row.state.into(),
            tapped: row.tapped.map(Time::from),
            declined: row.declined.map(Time::from),
        }
    }
}

/// Why something was, or was not, done for a subscriber.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Explanation {
    /// The line.
    pub subscriber: Subscriber,
    /// The time it is about.
    pub at: Time,
    /// In a few plain sentences, the most telling first.
    pub summary: Vec<String>,
    /// Its open sessions (as they are now).
    pub sessions: Vec<Session>,
    /// Its settings (as they are now).
    pub settings: Vec<SettingRow>,
    /// The time facts and moments are of: now, or `at` where a recorded day reaches there.
    pub seen_at: Time,
    /// What conditions would read of it then; null: unknown.
    pub facts: BTreeMap<String, Option<f64>>,
    /// Where each moment stood then, and what each action would have come to.
    pub stands: Vec<MomentSeen>,
    /// Moments that have fired for it (as they are now).
    pub moments: Vec<FiredMoment>,
    /// Its decisions up to `at`, newest first, each with the push that carried it out.
    pub decisions: Vec<Decision>,
}

/// A moment that has fired for a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FiredMoment {
    /// Its name.
    pub moment: String,
    /// How often.
    pub episodes: u64,
    /// It does not fire again before this.
    pub silent_until: Time,
}
