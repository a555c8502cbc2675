//! A policy as the engine uses it.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::Class;

use super::expr::Expression;
use crate::document::Span;
use crate::engine::io::Mode;

/// A windowed number about one subscriber, in event time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Whose traffic.
    pub source: Source,
    /// What of it.
    pub measure: Measure,
    /// Made how.
    pub stat: Stat,
    /// Over which time.
    pub window: Window,
}

/// Which part of a subscriber's traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// All of it: `all`, and `access` for what is about the line itself.
    All,
    /// One class.
    Class(Class),
    /// What is used while a foreign network serves the subscriber.
    Roaming,
    /// One app. Its bytes are those from each flow's verdict on; unknown where a flow was told of whose bytes are not.
    App(String),
}

/// What is measured. A share or a quality that no report carries is unknown, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Share of time at the enforced rate, 0 to 1; no use is 0.
    AtCap,
    /// Bytes let through, both directions.
    Bytes,
    /// Packets let through, both directions.
    Packets,
    /// Packets held back by enforcement, both directions.
    Drops,
    /// Share of packets lost, 0 to 1.
    Loss,
    /// Round-trip time, milliseconds.
    RttMs,
    /// Quality of outcome, 0 to 100.
    Qoo,
    /// Use of the line's rate upwards, 0 to 1: needs the plan's number `up_bps`.
    UpUtil,
    /// Use of the line's rate downwards, 0 to 1: needs the plan's number `down_bps`.
    DownUtil,
    /// Flows recognised: `count` of them, and `distinct` apps among them.
    Flows,
    /// What use abroad adds to the bill: bytes at the country's `price_per_mb`, nothing while a pass is in force. The `sum` of it
    /// is known from the first byte on, for it can only be more.
    Spend,
}

impl Measure {
    /// Whether time without a report says nothing, instead of zero.
    pub const fn is_sampled(self) -> bool {
        matches!(self, Self::Loss | Self::RttMs | Self::Qoo)
    }

    /// Whether it adds up over time, so that `mean`, `min`, `max` and `last` are per second.
    pub const fn is_amount(self) -> bool {
        matches!(self, Self::Bytes | Self::Packets | Self::Drops | Self::Spend)
    }
}

/// How a window becomes a number. Of amounts (`bytes`, `packets`, `drops`), all but `sum`, `count` and `distinct` are per
/// second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stat {
    /// Over the whole window; time without use is zero. Of qualities: over the time that was told of.
    Mean,
    /// The amount in the window; of shares and qualities the seconds of it.
    Sum,
    /// The least of the reports; zero where there was time without use.
    Min,
    /// The most of the reports; zero without use.
    Max,
    /// The latest report; zero without use in the last step.
    Last,
    /// How many reports had use.
    Count,
    /// Exponentially weighted mean: a step's weight is 1 - 2^(-dt/half_life).
    Ewma {
        /// After which a step counts half.
        half_life: Duration,
    },
    /// The value that so many percent of the reports with use stay at or below; within 3 % of it (milliseconds), 6 % (per
    /// second), or 0.2 % of the whole scale (shares and scores).
    Percentile(u8),
    /// How many different ones, estimated: within 1 up to 10 of them, 15 % up to 100.
    Distinct,
}

/// A window in event time, always [start, end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Moves on by `every`, of which `over` is a multiple.
    Sliding {
        /// Its length.
        over: Duration,
        /// Its step.
        every: Duration,
    },
    /// Begins anew after each `over`, counted from the epoch; known from its beginning on.
    Tumbling {
        /// Its length.
        over: Duration,
    },
    /// From one billing day to the next, at local midnight where the subscriber lives.
    BillCycle,
    /// No end (`ewma`): step by step.
    Endless {
        /// The step.
        every: Duration,
    },
}

/// Step at which windows without a step of their own are looked at.
pub(super) const STEP: Duration = Duration::from_mins(1);
/// Step of `ewma`.
pub(super) const EWMA_STEP: Duration = Duration::from_secs(10);

impl Window {
    /// How often the number changes.
    pub fn every(self) -> Duration {
        match self {
            Self::Sliding { every, .. } | Self::Endless { every } => every,
            Self::Tumbling { over } => over.min(STEP),
            Self::BillCycle => STEP,
        }
    }
}

/// A situation worth looking at.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The condition, a bool.
    pub when: Expression,
    /// How long it must have been true.
    pub hold: Duration,
    /// How long it is silent after it fired.
    pub rearm: Rearm,
}

/// How long a moment is silent after it fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rearm {
    /// For so long.
    After(Duration),
    /// Until the subscriber's next billing day.
    BillCycle,
    /// Until the next trip: once for each country that is gone to.
    Trip,
}

/// What can be done about moments.
#[derive(Debug, Clone)]
pub struct Action {
    /// At which moments.
    pub at: Vec<String>,
    /// What it does.
    pub kind: ActionKind,
    /// The law asks for it: it needs no consent, no bargain and no budget, and nothing is weighed against it.
    pub regulated: bool,
    /// Adds to `policy.eligible`.
    pub only_if: Option<Expression>,
    /// Worth to the customer.
    pub value: Amount,
    /// Added to the bill.
    pub cost: Amount,
}

/// What an action does.
#[derive(Debug, Clone)]
pub enum ActionKind {
    /// Reconfigures.
    Set(Change),
    /// Advises; a tap reconfigures, where it says so.
    Say {
        /// The message, with placeholders.
        template: String,
        /// The same by style, where the action has several texts.
        styles: BTreeMap<String, String>,
        /// What a tap sets.
        tap: Option<Change>,
    },
}

/// Settings for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// By setting name.
    pub values: BTreeMap<String, String>,
    /// Where each name stands, in the same order.
    pub(crate) places: Vec<Span>,
    /// For how long.
    pub lasts: Lasts,
}

/// How long a change holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// For so long.
    For(Duration),
    /// Until the subscriber's next billing day.
    BillCycle,
    /// It stays: an order of [`ORDERS`], which the operator's back office carries into the profile.
    Stays,
}

/// What a tap may order for good: a plan, and a partner's service in place of an add-on.
pub const ORDERS: [&str; 2] = ["addon_swap", "plan"];

/// A number, or an expression that gives one.
#[derive(Debug, Clone)]
pub enum Amount {
    /// Written as a number.
    Fixed(f64),
    /// Written in CEL, a double.
    Computed(Expression),
}

/// What an action must pass.
#[derive(Debug, Clone)]
pub struct Rules {
    /// About the subscriber; `None`: everybody.
    pub eligible: Option<Expression>,
    /// About the bargain.
    pub suitable: Expression,
    /// Consent needed to set.
    pub consent_to_set: Purpose,
    /// Consent needed to say.
    pub consent_to_say: Purpose,
    /// About messages.
    pub contact: Contact,
    /// Silence after what the person answered, or did not.
    pub backoff: Backoff,
}

/// How long to keep silent after an answer; `None`: no longer than before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    /// About an action after its message ran out untapped.
    pub ignored: Option<Duration>,
    /// About an action after a no to its message.
    pub declined: Option<Duration>,
    /// About everything after a complaint.
    pub complaint: Option<Duration>,
}

/// What a person agrees to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Silent reconfiguration.
    Service,
    /// Messages.
    Advice,
}

/// Bounds on messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// All messages to one person.
    pub budget: Option<Quota>,
    /// Messages of one action to one person.
    pub same_action: Option<Quota>,
    /// When not to write, at the place where the person is.
    pub quiet: Option<Quiet>,
    /// How long a link lives.
    pub expire: Duration,
}

/// At most so many in any such time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub count: u32,
    /// In how long.
    pub per: Duration,
}

/// Local hours without messages: from one to the other, over midnight where the first is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// First quiet minute of the day.
    pub from: u16,
    /// First minute after.
    pub to: u16,
}

impl Quiet {
    /// Whether this minute of the local day is quiet.
    pub const fn covers(self, minute: u16) -> bool {
        if self.from <= self.to {
            self.from <= minute && minute < self.to
        } else {
            self.from <= minute || minute < self.to
        }
    }
}

/// score = propensity * relevance * (value - cost)
#[derive(Debug, Clone, PartialEq)]
pub struct Choose {
    /// Weight of a moment that is not named.
    pub relevance_default: f64,
    /// Weights by moment.
    pub relevance: BTreeMap<String, f64>,
    /// Best score below this: do nothing.
    pub floor: f64,
    /// What is believed of messages before anything is learnt.
    pub prior_say: Prior,
    /// The same of reconfigurations.
    pub prior_set: Prior,
    /// What moves the priors; `None`: they stand.
    pub learning: Option<Learning>,
    /// Styles of messages, in the file's order.
    pub styles: Vec<String>,
    /// Share of decisions at which any message that may be sent is, instead of the best.
    pub explore: f64,
    /// Share of subscribers for whom nothing is carried out, quarter by quarter.
    pub holdout: f64,
    /// Makes those other people than elsewhere.
    pub salt: String,
}

impl Default for Choose {
    fn default() -> Self {
        Self {
            relevance_default: 1.0,
            relevance: BTreeMap::new(),
            floor: 0.0,
            prior_say: Prior { good: 2.0, bad: 18.0 },
            prior_set: Prior { good: 8.0, bad: 2.0 },
            learning: None,
            styles: Vec::new(),
            explore: 0.0,
            holdout: 0.0,
            salt: String::new(),
        }
    }
}

/// A Beta distribution: as if so many had turned out well, and so many badly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// Above zero.
    pub good: f64,
    /// Above zero.
    pub bad: f64,
}

impl Prior {
    /// The chance it stands for.
    pub fn mean(self) -> f64 {
        self.good / self.weight()
    }

    /// Against how much evidence it holds its own.
    pub fn weight(self) -> f64 {
        self.good + self.bad
    }
}

/// How outcomes move the priors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learning {
    /// After which an outcome counts half.
    pub half_life: Duration,
    /// How long after a decision an outcome is its.
    pub credit: Duration,
}

/// What is allowed at all.
#[derive(Debug, Clone)]
pub struct Guard {
    /// What becomes of decisions.
    pub mode: Mode,
    /// Most pushes of decisions.
    pub pushes: PushBudgets,
    /// How a new policy comes into force.
    pub canary: Canary,
    /// When everything is taken back.
    pub rollback: Option<Expression>,
}

impl Guard {
    /// Whether outcomes are watched.
    pub fn watches(&self) -> bool {
        self.mode == Mode::Canary || self.rollback.is_some()
    }
}

/// Most pushes that decisions may lead to; what a tap or an end leads to is not bounded by them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushBudgets {
    /// To one gateway.
    pub element: Option<Quota>,
    /// For one subscriber.
    pub subscriber: Option<Quota>,
    /// Of all.
    pub all: Option<Quota>,
}

/// Steps by which a policy reaches everybody.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// Shares of the subscribers, rising, 0 to 1.
    pub steps: Vec<f64>,
    /// How long a step lasts at least.
    pub bake: Duration,
    /// Fewest samples on each side that tell anything.
    pub samples_min: u64,
}

impl Default for Canary {
    fn default() -> Self {
        Self { steps: vec![1.0], bake: Duration::from_mins(10), samples_min: 200 }
    }
}
