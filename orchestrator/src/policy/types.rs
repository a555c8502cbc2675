//! A policy as the engine uses it. What is not evaluated yet is not represented here: it stands among
//! [`Policy::unsupported`](super::Policy::unsupported), and no engine is made from a policy that has any.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::Class;

use super::expr::Expression;
use crate::document::Span;
use crate::engine::io::Mode;

/// A windowed number about one subscriber, in event time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Whose traffic; `None`: all of it.
    pub class: Option<Class>,
    /// What of it.
    pub measure: Measure,
    /// Made how.
    pub stat: Stat,
    /// Length of the window.
    pub over: Duration,
    /// How often it moves on; `over` is a multiple of it.
    pub every: Duration,
}

/// What is measured of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Share of time at the enforced rate, 0 to 1; no use is 0.
    AtCap,
    /// Bytes let through, both directions.
    Bytes,
    /// Packets let through, both directions.
    Packets,
    /// Packets held back by enforcement, both directions.
    Drops,
}

/// How a window becomes a number. Of amounts (`bytes`, `packets`, `drops`), `mean`, `min`, `max` and `last` are per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stat {
    /// Over the whole window; time without use is zero.
    Mean,
    /// The amount in the window.
    Sum,
    /// The least of the reports; zero where there was time without use.
    Min,
    /// The most of the reports; zero without use.
    Max,
    /// The latest report; zero without use.
    Last,
    /// How many reports had use.
    Count,
}

/// A situation worth looking at.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The condition, a bool.
    pub when: Expression,
    /// How long it must have been true.
    pub hold: Duration,
    /// How long it is silent after it fired.
    pub rearm: Duration,
}

/// What can be done about moments.
#[derive(Debug, Clone)]
pub struct Action {
    /// At which moments.
    pub at: Vec<String>,
    /// What it does.
    pub kind: ActionKind,
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
    pub duration: Duration,
}

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
    /// Silence about an action after its message ran out untapped.
    pub after_ignored: Option<Duration>,
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
    /// Chance that a message is taken up: mean of the Beta prior.
    pub propensity_say: f64,
    /// Chance that a reconfiguration helps: mean of the Beta prior.
    pub propensity_set: f64,
}

/// What is allowed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// What becomes of decisions.
    pub mode: Mode,
}
