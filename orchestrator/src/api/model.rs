//! What the API answers in, version 1. Times are RFC 3339 in UTC, amounts are bytes and packets, rates bits per second.
//!
//! Shared by server and CLI. Owns the outward names, so that the ledger's layout can change behind them.

use std::collections::BTreeMap;

use usher_models::Class;
use usher_models::units::{Micros, SubscriberId};

use crate::elements::{Change, ElementOutcome, ElementState, PushState};
use crate::engine::io::{Candidate, Cause, DecisionId, DirectionName, Mode};
use crate::identity::{Consent, Profile};
use crate::ledger::pushes::PushRecord;
use crate::ledger::{AppSeen, DecisionRow, MessageRow, MessageState, SessionRow, UsageTotal};

/// A point in time, written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Time(pub jiff::Timestamp);

/// `2026-11-21 20:15:04Z`: to the second, in UTC, and it says so.
impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}Z", self.0.strftime("%Y-%m-%d %H:%M:%S"))
    }
}

impl From<Micros> for Time {
    fn from(micros: Micros) -> Self {
        let clamped = if micros.get() < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_microsecond(micros.get()).unwrap_or(clamped))
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Page<T> {
    /// What was asked for, at most `limit`.
    pub items: Vec<T>,
    /// There is more: ask with `after` set to this. Absent at the end, and where a listing is only ever the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is wrong, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// One lowercase sentence that names the thing and the remedy.
    pub error: String,
}

/// The daemon as a whole.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// When it started.
    pub started: Time,
    /// The kill switch: no decision is made while it is on.
    pub stopped: bool,
    /// `stop`, `plan`, `canary` or `live`, as the policy has it.
    pub mode: String,
    /// Revision of the policy in force.
    pub policy: String,
    /// Subscribers known.
    pub subscribers: usize,
    /// Sessions open.
    pub sessions_open: u64,
    /// Agents with an uplink now.
    pub agents_connected: usize,
    /// Agents that are let in.
    pub agents_allowed: usize,
    /// Pushes that wait.
    pub pushes_pending: u64,
    /// Pushes after which an element could not be shown to be back where it was.
    pub pushes_needing_repair: u64,
    /// Messages still to be handed to the channel.
    pub messages_pending: u64,
}

/// What the kill switch did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Switched {
    /// Its position now.
    pub stopped: bool,
    /// False: it was there already.
    pub changed: bool,
}

/// A customer line.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Subscriber {
    /// Its pseudonym.
    pub id: SubscriberId,
    /// Its tariff.
    pub plan: String,
    /// Add-ons held.
    pub addons: Vec<String>,
    /// In service.
    pub active: bool,
    /// A complaint is being handled.
    pub complaint_open: bool,
    /// What the person agreed to.
    pub consent: Consent,
    /// Employer or household.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organisation: Option<String>,
}

impl From<&Profile> for Subscriber {
    fn from(profile: &Profile) -> Self {
        Self {
            id: profile.id.clone(),
            plan: profile.plan.clone(),
            addons: profile.addons.iter().cloned().collect(),
            active: profile.active,
            complaint_open: profile.complaint_open,
            consent: profile.consent,
            organisation: profile.organisation.clone(),
        }
    }
}

/// All that is known of one line.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SubscriberDetail {
    /// The line.
    #[serde(flatten)]
    pub subscriber: Subscriber,
    /// Linked keys as `kind:value`.
    pub keys: Vec<String>,
    /// Its sessions, open and lately closed.
    pub sessions: Vec<Session>,
    /// Its settings.
    pub settings: Vec<SettingRow>,
    /// What it used.
    pub usage: Vec<Usage>,
    /// Apps seen, last used first.
    pub apps: Vec<App>,
    /// Its newest decisions.
    pub decisions: Vec<Decision>,
    /// Its newest messages.
    pub messages: Vec<Message>,
    /// Its newest pushes, without their elements.
    pub pushes: Vec<Push>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Session {
    /// Whose; absent: nobody known.
    pub subscriber: Option<SubscriberId>,
    /// The agent that sees it.
    pub agent: String,
    /// Its id there.
    pub session: String,
    /// False: it closed.
    pub open: bool,
    /// Addresses and prefixes.
    pub prefixes: Vec<String>,
    /// MCC and MNC; empty where unknown.
    pub serving_plmn: String,
    /// Served by a foreign network.
    pub roaming: bool,
    /// Radio technology; empty where unknown.
    pub rat: String,
    /// IANA name; empty where unknown.
    pub time_zone: String,
    /// When it opened.
    pub since: Time,
    /// When it was last reported.
    pub changed: Time,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        Self {
            subscriber: row.subscriber,
            agent: row.agent,
            session: row.session,
            open: row.open,
            prefixes: row.prefixes,
            serving_plmn: row.serving_plmn,
            roaming: row.roaming,
            rat: row.rat,
            time_zone: row.time_zone,
            since: row.since.into(),
            changed: row.changed.into(),
        }
    }
}

/// One setting of one subscriber, as last desired.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SettingRow {
    /// Whose.
    pub subscriber: SubscriberId,
    /// Its name.
    pub setting: String,
    /// Its value now.
    pub value: String,
    /// When it ends by itself; absent: it is what the plan gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// What comes after `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Revision of the subscriber's settings.
    pub revision: u64,
    /// The push that brings it to the elements.
    pub push: String,
    /// How far that push is; `done`: every element holds it.
    pub state: PushState,
}

/// The settings a push brings, at `now`.
pub fn settings_of(record: &PushRecord, now: Micros) -> Vec<SettingRow> {
    let settings = &record.push.settings;
    settings
        .values
        .iter()
        .map(|(name, setting)| {
            let until = setting.until.filter(|until| *until > now);
            SettingRow {
                subscriber: record.push.subscriber.clone(),
                setting: name.clone(),
                value: setting.at(now).to_owned(),
                until: until.map(Time::from),
                then: until.map(|_| setting.otherwise.clone()),
                revision: settings.revision,
                push: record.push.id.0.clone(),
                state: record.state,
            }
        })
        .collect()
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// It has an uplink now.
    pub connected: bool,
    /// Since when; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Of its software; absent: not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// It touches no packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// The last batch applied; absent: none ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_batch: Option<LastBatch>,
    /// Sessions open on it.
    pub sessions_open: u64,
}

/// The last batch applied of an agent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastBatch {
    /// Life of the probe's counters, in hex.
    pub boot: String,
    /// Number within that life.
    pub sequence: u64,
    /// End of the interval it is about.
    pub end: Time,
    /// When it was applied.
    pub applied: Time,
}

/// Something that accepts settings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Element {
    /// `gateway:NAME` or `netconf:NAME`.
    pub name: String,
    /// `gateway` or `netconf`.
    pub kind: String,
    /// Where it is; absent: behind its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Setting names it accepts; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Vec<String>>,
    /// Nothing is ever sent to it.
    pub dry_run: bool,
    /// Its part in the last push that touched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastPart>,
}

/// An element's part in the last push that touched it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastPart {
    /// The push.
    pub push: String,
    /// How far it came.
    pub state: ElementState,
    /// When the push turned to it.
    pub at: Time,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All that was counted of one subscriber, class and direction.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Whose; absent: anonymous traffic.
    pub subscriber: Option<SubscriberId>,
    /// Kind of use.
    pub class: Class,
    /// Which way.
    pub direction: DirectionName,
    /// Let through.
    pub bytes: u64,
    /// Let through.
    pub packets: u64,
    /// Held back by enforcement.
    pub dropped_bytes: u64,
    /// Held back by enforcement.
    pub dropped_packets: u64,
}

impl From<UsageTotal> for Usage {
    fn from(total: UsageTotal) -> Self {
        Self {
            subscriber: total.subscriber,
            class: total.class,
            direction: total.direction,
            bytes: total.bytes.0,
            packets: total.packets,
            dropped_bytes: total.dropped_bytes.0,
            dropped_packets: total.dropped_packets,
        }
    }
}

/// An app a subscriber was seen to use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct App {
    /// Its name in the catalogue.
    pub app: String,
    /// Its class.
    pub class: Class,
    /// What the last verdict rested on.
    pub via: String,
    /// Flows so far.
    pub flows: u64,
    /// When the last verdict came.
    pub last: Time,
    /// From the last such flow's first packet to its verdict.
    pub verdict_us: u64,
}

impl From<AppSeen> for App {
    fn from(seen: AppSeen) -> Self {
        Self {
            app: seen.app,
            class: seen.class,
            via: seen.via,
            flows: seen.flows,
            last: seen.last.into(),
            verdict_us: seen.verdict_us,
        }
    }
}

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
    /// What became of its message, where it sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Sending>,
    /// When its link was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tapped: Option<Time>,
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
            message: row.message.map(Sending::from),
            tapped: row.tapped.map(Time::from),
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
        }
    }
}

/// A transaction over the elements that reach a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Push {
    /// Its id.
    pub id: String,
    /// Whose settings.
    pub subscriber: SubscriberId,
    /// Why they changed.
    pub cause: Cause,
    /// How far it is.
    pub state: PushState,
    /// Revision of the settings.
    pub revision: u64,
    /// All of them.
    pub settings: BTreeMap<String, PushedSetting>,
    /// When the change was desired.
    pub desired: Time,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next; absent: not again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Time>,
    /// When it came to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// What went wrong in the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Each element's part; empty in listings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements: Vec<Part>,
}

/// One setting within a push.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PushedSetting {
    /// In force until `until`.
    pub value: String,
    /// When it ends by itself; absent: it is what the plan gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// In force after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
}

/// One element's part in a push.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// The element.
    pub element: String,
    /// How far it came.
    pub state: ElementState,
    /// What changed, or would have.
    pub changes: Vec<Change>,
    /// When the push turned to it.
    pub started: Time,
    /// When it was read back holding the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<Time>,
    /// When they were made permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Time>,
    /// What went wrong on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<ElementOutcome> for Part {
    fn from(outcome: ElementOutcome) -> Self {
        Self {
            element: outcome.element,
            state: outcome.state,
            changes: outcome.changes,
            started: outcome.started.into(),
            enforced: outcome.enforced.map(Time::from),
            confirmed: outcome.confirmed.map(Time::from),
            error: outcome.error,
        }
    }
}

impl From<PushRecord> for Push {
    fn from(record: PushRecord) -> Self {
        let settings = record.push.settings;
        Self {
            id: record.push.id.0,
            subscriber: record.push.subscriber,
            cause: record.push.cause,
            state: record.state,
            revision: settings.revision,
            settings: settings
                .values
                .into_iter()
                .map(|(name, setting)| {
                    let pushed = PushedSetting {
                        value: setting.value,
                        until: setting.until.map(Time::from),
                        then: setting.until.map(|_| setting.otherwise),
                    };
                    (name, pushed)
                })
                .collect(),
            desired: record.push.desired_at.into(),
            attempts: record.attempts,
            next: (record.state == PushState::Pending).then(|| record.next_at.into()),
            finished: record.finished_at.map(Time::from),
            error: record.error,
            elements: record.elements.into_iter().map(Part::from).collect(),
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
    /// What conditions would read of it (now); null: unknown.
    pub facts: BTreeMap<String, Option<f64>>,
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

/// A policy to be checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LintRequest {
    /// Name of the file, for the messages.
    #[serde(default)]
    pub name: Option<String>,
    /// Its text.
    pub policy: String,
    /// Text of the profiles it is to work with.
    #[serde(default)]
    pub profiles: Option<String>,
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lint {
    /// Nothing is.
    pub ok: bool,
    /// Revision of the policy, where it can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// All mistakes, in the order of the file.
    pub mistakes: Vec<Mistake>,
}

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mistake {
    /// In which.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}
