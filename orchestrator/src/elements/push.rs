//! A push and what became of it, as the ledger, the API and the CLI see it.

use std::fmt;

use usher_models::setting::Settings;
use usher_models::units::{Micros, SubscriberId};

use crate::engine::io::Cause;

/// Names a push everywhere: in the ledger, on the agents' uplinks, and as NETCONF's persist id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PushId(pub String);

impl PushId {
    /// A new one; ids made later sort later.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

impl Default for PushId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for PushId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One transaction that is to bring every element that reaches a subscriber to the desired settings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Push {
    /// Its id.
    pub id: PushId,
    /// Whose settings.
    pub subscriber: SubscriberId,
    /// Why they changed.
    pub cause: Cause,
    /// All of them, not a change.
    pub settings: Settings,
    /// When the change was desired (the moment, the tap, the expiry): what `enforced` is measured from.
    pub desired_at: Micros,
}

/// Where a subscriber can be reached on a gateway: an open session on an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Reach {
    /// The agent's name.
    pub agent: String,
    /// The session's id on it.
    pub session: String,
}

/// How far a push is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// Waiting for its turn, or for the next attempt.
    Pending,
    /// On its way; nothing is decided yet. After a crash: cancelled on every element, then tried again.
    Running,
    /// Read back well everywhere and being confirmed. After a crash: confirmed on every element.
    Confirming,
    /// Every element holds the settings.
    Done,
    /// All its attempts failed, and every element is back where it was. Tried on, at the longest pause.
    Failed,
    /// All its attempts failed, and at least one element could not be shown to be back where it was. Tried on, at the
    /// longest pause; each attempt first takes back what is left.
    NeedsRepair,
    /// A newer desire of the same subscriber took its place before it was in force.
    Superseded,
}

impl PushState {
    /// As it stands in the ledger and in print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Confirming => "confirming",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::NeedsRepair => "needs_repair",
            Self::Superseded => "superseded",
        }
    }

    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Confirming,
        Self::Done,
        Self::Failed,
        Self::NeedsRepair,
        Self::Superseded,
    ];

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Nothing more will happen by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Superseded)
    }
}

/// How far one element is within a push. What comes after `Planned` may have left something on the element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementState {
    /// Desired and running were compared.
    Planned,
    /// It held the settings already: nothing was sent.
    Unchanged,
    /// Planned and reported only, as its configuration says.
    DryRun,
    /// The provisional commit (confirmed-commit, or `Prepare`) is about to leave.
    Committing,
    /// In force provisionally, and read back well.
    Enforced,
    /// In force for good.
    Confirmed,
    /// Back where it was, and read back so.
    RolledBack,
    /// Could not be shown to be back where it was; its own timer ends what is pending.
    Unverified,
}

impl ElementState {
    /// As it stands in the ledger and in print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Unchanged => "unchanged",
            Self::DryRun => "dry_run",
            Self::Committing => "committing",
            Self::Enforced => "enforced",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled_back",
            Self::Unverified => "unverified",
        }
    }

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Planned,
        Self::Unchanged,
        Self::DryRun,
        Self::Committing,
        Self::Enforced,
        Self::Confirmed,
        Self::RolledBack,
        Self::Unverified,
    ];

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The element may still hold something provisional of this push.
    pub const fn may_be_pending(self) -> bool {
        matches!(self, Self::Committing | Self::Enforced | Self::Unverified)
    }
}

/// One line of a diff.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// What, in the element's own terms: a setting's name, or a path in its configuration.
    pub path: String,
    /// What it holds; `None`: nothing.
    pub from: Option<String>,
    /// What it is to hold; `None`: nothing.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.as_deref().unwrap_or("-"), self.to.as_deref().unwrap_or("-"));
        write!(f, "{}: {from} -> {to}", self.path)
    }
}

/// Desired against running on one element.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ElementDiff {
    /// The element, as `gateway:NAME` or `netconf:NAME`.
    pub element: String,
    /// Nothing is ever sent to it.
    pub dry_run: bool,
    /// What would change; empty: nothing would be sent.
    pub changes: Vec<Change>,
    /// Why it could not be compared.
    pub error: Option<String>,
}

/// One element's part in a push.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ElementOutcome {
    /// The element, as `gateway:NAME` or `netconf:NAME`.
    pub element: String,
    /// How far it came.
    pub state: ElementState,
    /// What changed, or would have.
    pub changes: Vec<Change>,
    /// When the push turned to it.
    pub started: Micros,
    /// When it was read back holding the settings.
    pub enforced: Option<Micros>,
    /// When they were made permanent.
    pub confirmed: Option<Micros>,
    /// What went wrong on it.
    pub error: Option<String>,
}

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every element holds the settings (or is in dry-run).
    Done,
    /// Every element is back where it was.
    RolledBack {
        /// The first thing that went wrong.
        error: String,
    },
    /// At least one element could not be shown to be back where it was.
    Unverified {
        /// The first thing that went wrong.
        error: String,
    },
}

/// What became of one attempt at a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOutcome {
    /// How it ended.
    pub outcome: Outcome,
    /// Each element's part, sorted by name.
    pub elements: Vec<ElementOutcome>,
}

/// Where the transaction notes what it is about to do, before it does it. A note that cannot be made stops the push.
pub trait Journal: Send + Sync {
    /// The push as a whole enters `state`.
    fn push(&self, push: &PushId, state: PushState) -> Result<(), JournalError>;
    /// One element's part has come so far.
    fn element(&self, push: &PushId, element: &ElementOutcome) -> Result<(), JournalError>;
}

/// The ledger did not take a note.
#[derive(Debug, thiserror::Error)]
#[error("write the push to the ledger: {0}")]
pub struct JournalError(pub String);
