//! What the API answers in, version 1. Times are RFC 3339 in UTC, amounts are bytes and packets, rates bits per second.
//!
//! Shared by server and CLI. Owns the outward names, so that the ledger's layout can change behind them.

mod decision;
mod policy;
mod push;

use usher_models::Class;
use usher_models::units::{Micros, SubscriberId};

pub use self::decision::{Decision, Explanation, FiredMoment, Message, Sending};
pub use self::policy::{ApplyRequest, FilePolicy, OnTrial, PolicySource, PolicyStanding};
pub use self::push::{Part, Push, PushedSetting, SettingRow, settings_of};
use crate::api::GuardNow;
use crate::elements::ElementState;
use crate::engine::io::DirectionName;
use crate::identity::{Consent, Profile};
use crate::ledger::{AppSeen, SessionRow, UsageTotal};

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
    /// Where the canary stands, where there is one, or where everything was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// Revision of the policy in force.
    pub policy: String,
    /// Where it comes from, and until when it is in force.
    pub standing: PolicyStanding,
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

/// Where the canary stands.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Guard {
    /// Which step, from 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// The share of subscribers something is done for, 0 to 1.
    pub share: f64,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why everything was taken back, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<String>,
    /// Decisions of this step that were carried out.
    pub treated_decisions: u64,
    /// Decisions of this step that were withheld.
    pub control_decisions: u64,
    /// Gauges of the former that were looked at again.
    pub treated_judged: u64,
    /// Gauges of the latter.
    pub control_judged: u64,
    /// Pushes of this step.
    pub pushes: u64,
    /// Those that failed at first.
    pub push_errors: u64,
}

impl From<GuardNow> for Guard {
    fn from(now: GuardNow) -> Self {
        let GuardNow { state, share, steps } = now;
        Self {
            step: state.step + 1,
            steps,
            share,
            since: state.since.map(Time::from),
            rolled_back: state.rolled_back.map(|(at, why)| format!("at {at}: {why}")),
            treated_decisions: state.treated.decisions,
            control_decisions: state.control.decisions,
            treated_judged: state.treated.gauged,
            control_judged: state.control.gauged,
            pushes: state.pushes,
            push_errors: state.push_errors,
        }
    }
}

/// What the kill switch did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Switched {
    /// Its position now.
    pub stopped: bool,
    /// False: it was there already.
    pub changed: bool,
}

/// What a person told the operator was taken down.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Who it was.
    pub subscriber: SubscriberId,
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
    /// The name that a gateway's operator gave the prefix it is from; only of anonymous traffic, and absent for the rest of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<String>,
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
            anonymous: total.anonymous,
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
    /// Innermost IP bytes let through so far, both directions, from each flow's verdict on.
    #[serde(default)]
    pub bytes: u64,
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
            bytes: seen.bytes.0,
            last: seen.last.into(),
            verdict_us: seen.verdict_us,
        }
    }
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
    /// Nothing is, or nothing but warnings.
    pub ok: bool,
    /// Revision of the policy, where it can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// All mistakes, then all warnings, each in the order of the file.
    pub mistakes: Vec<Mistake>,
}

/// How much a mistake matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file cannot be used.
    #[default]
    Error,
    /// It can, and is most likely not what was meant.
    Warning,
}

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mistake {
    /// In which.
    pub file: String,
    /// Whether the file can be used all the same.
    #[serde(default)]
    pub severity: Severity,
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
