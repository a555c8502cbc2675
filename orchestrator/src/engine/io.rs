//! What goes into the engine and what comes out. Every input is serialisable, so that a day can be kept and replayed.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;
use usher_models::setting::Settings;
use usher_models::units::{Bytes, Micros, SubscriberId};
use usher_models::{Class, Direction};

pub use super::guard::{Group, GuardState};
use crate::identity::{Country, Plan, Profile};

/// One thing that happened. The time it happened at is passed beside it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A profile that is new or has changed.
    Profile(Profile),
    /// A profile that is gone: what was set is taken back, and the subscriber forgotten.
    ProfileGone(SubscriberId),
    /// All plans and countries, where one is new or has changed.
    Tariffs {
        /// By name.
        plans: BTreeMap<String, Plan>,
        /// By mobile country code.
        countries: BTreeMap<String, Country>,
    },
    /// A batch of an agent, deduplicated, its sessions resolved to subscribers.
    Observed(Observed),
    /// The person tapped the link of a message.
    Tapped(DecisionId),
    /// The kill switch: true stops every decision; what was set still ends in time.
    Stop(bool),
    /// Time passes.
    Tick,
    /// The person said no to the message.
    Declined(DecisionId),
    /// The person withdrew consent to messages (STOP), or gives it back.
    Consent {
        /// Who.
        subscriber: SubscriberId,
        /// False: nothing further is sent, whatever the profile says.
        advice: bool,
    },
    /// The person complained.
    Complaint(SubscriberId),
    /// A push that a decision led to is done, or failed for the first time.
    Pushed {
        /// The decision.
        decision: DecisionId,
        /// It is in force.
        ok: bool,
    },
    /// The operator goes on after the guard took everything back: the canary begins anew.
    Resume,
    /// The partner of an offer was asked: what it can be had for now, or why it cannot.
    Answered {
        /// The decision that waits for it.
        decision: DecisionId,
        /// Why not, in words for an operator.
        offer: Result<LiveOffer, String>,
    },
    /// Another policy is in force from here on, beside these plans, with which it was checked.
    Policy {
        /// Its file's name, for messages.
        file_name: String,
        /// What stands in the file.
        text: String,
        /// All plans, by name.
        plans: BTreeMap<String, Plan>,
        /// All countries, by mobile country code.
        countries: BTreeMap<String, Country>,
    },
    /// What accepts settings is this from here on.
    Elements(Elements),
}

/// What accepts settings, by the operator's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Elements {
    /// Names of the settings that gateways accept; `None`: all.
    pub gateways: Option<BTreeSet<String>>,
    /// The same of every other element, by its name as `netconf:bng-1`.
    pub others: BTreeMap<String, BTreeSet<String>>,
}

/// What one agent saw in `[start, end)`, event time.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Observed {
    /// The agent's name.
    pub agent: String,
    /// Start of the interval.
    pub start: Micros,
    /// End of the interval.
    pub end: Micros,
    /// Sessions of known subscribers that opened, changed or closed.
    pub sessions: Vec<SessionSeen>,
    /// Usage of known subscribers; the records of one line stand together.
    pub usage: Vec<UsageSeen>,
    /// Flows of known subscribers that were recognised.
    #[serde(default)]
    pub named: Vec<NamedSeen>,
    /// Bytes by app of known subscribers: one record for each line and app, those of one line together.
    #[serde(default)]
    pub apps: Vec<AppUsageSeen>,
}

/// The number of a subscriber's line in an engine: see [`Engine::line`](super::Engine::line).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Line(pub u32);

/// A flow of a subscriber that was recognised.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NamedSeen {
    /// Whose it is.
    pub line: Line,
    /// Which app.
    pub app: String,
    /// Kind of use.
    pub class: Class,
    /// When, event time.
    pub at: Micros,
    /// Whether its bytes are told as its app's from then on.
    #[serde(default)]
    pub counted: bool,
}

/// What a subscriber moved in one app.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AppUsageSeen {
    /// Whose it is.
    pub line: Line,
    /// Which app.
    pub app: SmolStr,
    /// Let through, both directions.
    pub bytes: Bytes,
}

/// A session of a known subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionSeen {
    /// Whose it is.
    pub subscriber: SubscriberId,
    /// Its id on the agent.
    pub session: String,
    /// False: it closed.
    pub open: bool,
    /// MCC and MNC; empty where unknown.
    pub serving_plmn: String,
    /// Served by a foreign network.
    pub roaming: bool,
    /// IANA name; empty where unknown.
    pub time_zone: String,
    /// Radio technology; empty where unknown.
    #[serde(default)]
    pub rat: String,
}

/// Usage of one subscriber in one class and direction.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct UsageSeen {
    /// Whose it is.
    pub line: Line,
    /// Kind of use.
    pub class: Class,
    /// Which way.
    pub direction: DirectionName,
    /// Let through.
    pub bytes: Bytes,
    /// Let through.
    pub packets: u64,
    /// Held back by enforcement.
    pub dropped_packets: u64,
    /// Share of the interval at the enforced rate, 0 to 1; `None` where no rate is enforced.
    pub at_cap: Option<f32>,
    /// How good it was.
    #[serde(default)]
    pub quality: Quality,
}

/// How good a use was, as far as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Quality {
    /// Round-trip time, milliseconds.
    #[serde(default)]
    pub rtt_ms: Option<f32>,
    /// Share of packets lost, 0 to 1.
    #[serde(default)]
    pub loss: Option<f32>,
    /// Quality of outcome, 0 to 100.
    #[serde(default)]
    pub qoo: Option<f32>,
}

/// A direction as it stands in records of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectionName {
    /// From the subscriber.
    Up,
    /// To the subscriber.
    Down,
}

impl From<Direction> for DirectionName {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Up => Self::Up,
            Direction::Down => Self::Down,
        }
    }
}

/// What the shell is to carry out, in order. All effects of one input are made durable together, then carried out.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// A moment fired and a decision, perhaps to do nothing, was made.
    Decided(Decision),
    /// The settings a subscriber is to have have changed: bring the elements there.
    Desire(Desire),
    /// Send a message. Its contact is already counted against the budget.
    Say(Say),
    /// What is not sent yet to this subscriber must not be sent.
    Withdraw(SubscriberId),
    /// The canary went a step on, or everything was taken back.
    Guarded(GuardState),
    /// Ask a partner before its offer is made. Not made durable: without an answer there is no offer.
    Ask(AskPartner),
}

/// A question to a partner. It does not say whom the offer is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AskPartner {
    /// The decision that waits for the answer.
    pub decision: DecisionId,
    /// Whom to ask.
    pub partner: String,
    /// What is to be offered.
    pub action: String,
    /// An answer later than this is none.
    pub until: Micros,
}

/// What a partner can do now.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LiveOffer {
    /// It can be had.
    pub in_stock: bool,
    /// What it adds to the bill.
    pub price: f64,
}

/// What some effects are, in sixteen bytes (BLAKE3): the same bytes, the same effects, in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of what one input led to; `None`: nothing.
    pub fn of(effects: &[Effect]) -> Option<Self> {
        if effects.is_empty() {
            return None;
        }
        let bytes = postcard::to_allocvec(effects).expect("numbers, words and lists can be packed");
        Some(Self::of_bytes(&[&bytes]))
    }

    /// Of bytes, one after the other.
    pub fn of_bytes(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(digest)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// New desired settings of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desire {
    /// Whose.
    pub subscriber: SubscriberId,
    /// All of them, not a change.
    pub settings: Settings,
    /// Why they changed.
    pub cause: Cause,
}

/// Why settings changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The plan's own, at the start of a session or after a profile change.
    Plan,
    /// A decision set them.
    Decision(DecisionId),
    /// The person tapped the message of this decision.
    Tap(DecisionId),
    /// The time of a setting was up.
    Expiry,
    /// The profile is gone: what was set is taken back.
    Gone,
    /// The guard took back what decisions had set.
    RolledBack,
}

/// A message to a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Say {
    /// The decision it comes from; also what a tap names.
    pub decision: DecisionId,
    /// To whom.
    pub subscriber: SubscriberId,
    /// The action's name.
    pub action: String,
    /// The text, placeholders filled in.
    pub text: String,
    /// What a tap sets: name -> value. For the page.
    pub tap: BTreeMap<String, String>,
    /// For how many seconds from the tap; zero where a tap sets nothing, or orders what stays.
    pub tap_seconds: u64,
    /// When the link ends.
    pub expires: Micros,
    /// The law asks for it: it is sent whatever the person said about messages.
    #[serde(default)]
    pub regulated: bool,
}

/// `hash(subscriber, moment, episode, policy revision)` in hex: the same decision made twice has the same id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct DecisionId(pub String);

impl std::fmt::Display for DecisionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
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
    pub at: Micros,
    /// Revision of the policy that decided.
    pub policy: String,
    /// `guard.mode` at the time. Only `live` and `canary` decisions are carried out.
    pub mode: Mode,
    /// The numbers its condition read (`video_capped`, `sub.roaming`: truth is 1); `None`: unknown.
    pub facts: BTreeMap<String, Option<f64>>,
    /// The words it read (`plan.video`).
    #[serde(default)]
    pub words: BTreeMap<String, String>,
    /// Every action at this moment, with the first gate that stopped it.
    pub candidates: Vec<Candidate>,
    /// The action taken; `None`: nothing was worth doing.
    pub chosen: Option<String>,
    /// The chance with which this action, in this style, was to be picked, or nothing: 1 where no chance was in it. What
    /// keeps a pick from being carried out (`holdout`, the guard) does not change it.
    #[serde(default = "certain")]
    pub probability: f64,
    /// The style of its message, where it has several.
    #[serde(default)]
    pub style: Option<String>,
}

const fn certain() -> f64 {
    1.0
}

impl Decision {
    /// The action, where it is really done.
    pub fn carried_out(&self) -> Option<&str> {
        self.chosen.as_deref().filter(|_| matches!(self.mode, Mode::Live | Mode::Canary))
    }
}

impl Decision {
    /// The id the same decision has under another policy: of the same moment and episode of the same subscriber.
    pub fn id_under(&self, policy: &str) -> DecisionId {
        super::choose::decision_id(&self.subscriber, &self.moment, self.episode, policy)
    }
}

/// `guard.mode`: what becomes of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing is chosen: the kill switch.
    Stop,
    /// Decisions are made and recorded, none is carried out.
    Plan,
    /// Decisions are carried out.
    Live,
    /// Decisions are carried out for a share of the subscribers, which grows.
    Canary,
}

/// What a tap on the message of a decision meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapState {
    /// It can be taken up.
    Open,
    /// It was: doing it again changes nothing.
    Used,
    /// The person said no to it.
    Declined,
    /// Its time is over.
    Expired,
    /// No message of this decision is known.
    Unknown,
}

/// One action weighed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Candidate {
    /// Its name.
    pub action: String,
    /// The first gate that stopped it; `None`: it passed them all.
    pub stopped_by: Option<Stopped>,
    /// Score terms, where it got that far.
    pub score: Option<Score>,
}

/// A gate and what it said.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stopped {
    /// Which.
    pub gate: Gate,
    /// Why, in words for an operator.
    pub why: String,
}

/// What an action must pass, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// `guard.mode`, or the kill switch.
    Guard,
    /// `policy.eligible` and the action's `if`.
    Eligible,
    /// `policy.suitable`.
    Suitable,
    /// `policy.consent`.
    Consent,
    /// `policy.contact.budget`.
    Budget,
    /// `policy.contact.same_action`.
    SameAction,
    /// `policy.contact.quiet`.
    Quiet,
    /// `policy.backoff`.
    Backoff,
    /// `choose.floor`.
    Floor,
    /// Another action scored higher, or was tried instead.
    Outscored,
    /// `choose.holdout`: for this person nothing is done this quarter.
    Holdout,
    /// `guard.canary`: this person's turn has not come.
    Canary,
    /// `guard.pushes`: enough was pushed for now.
    Pushes,
    /// The partner of an offer did not answer, has none, or wants more for it.
    Partner,
}

/// score = propensity * relevance * (value - cost)
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Score {
    /// Chance that it helps (`set`) or is taken up (`say`), 0 to 1.
    pub propensity: f64,
    /// The moment's weight.
    pub relevance: f64,
    /// Worth to the customer.
    pub value: f64,
    /// Added to the bill.
    pub cost: f64,
    /// The product.
    pub total: f64,
}
