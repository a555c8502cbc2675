//! Advice: what is said to a person, by which channel, and the one tap that answers it.
//!
//! Owns messages, the channels that carry them, the signed links in them and the page a link opens. Refuses to decide:
//! whether and what to say is the engine's, and consent and budget are settled before a message gets here.
//!
//! ```text
//! engine -- Say --> Message::of(say, links) --> Outbox::deliver          (idempotent by decision id)
//! person -- GET /t/TOKEN  --> Links::open --> Ask::Look --> engine task  (changes nothing)
//! person -- POST /t/TOKEN --> Links::open --> Ask::Tap, Decline, Stop --> engine task --> answered after the commit
//! ```

mod link;
mod metrics;
mod outbox;
pub mod page;

pub use link::{KeyError, LinkError, Links};
pub use metrics::{LinkLabels, LinkResult, Metrics};
pub use outbox::{Delivered, Message, Outbox, OutboxError};

use std::time::Duration;

use tokio::sync::oneshot;
use usher_models::units::Micros;

use crate::engine::io::DecisionId;

/// What the page asks of the engine task. Only authentic links get this far.
#[derive(Debug)]
pub enum Ask {
    /// What does this decision offer? Changes nothing.
    Look {
        /// The decision the link names.
        decision: DecisionId,
        /// `None`: no message was ever sent for it.
        answer: oneshot::Sender<Option<Offer>>,
    },
    /// The person accepts. Answered after the acceptance is durable; the same tap twice is one tap.
    Tap {
        /// The decision the link names.
        decision: DecisionId,
        /// When the tap arrived; the link was still open then.
        at: Micros,
        /// What came of it.
        answer: oneshot::Sender<Tapped>,
    },
    /// The person says no to it. Answered after that is durable.
    Decline {
        /// The decision the link names.
        decision: DecisionId,
        /// When that arrived.
        at: Micros,
        /// What came of it.
        answer: oneshot::Sender<Tapped>,
    },
    /// The person wants no more messages of any kind. Answered after that is durable, and from then on nothing is sent; also
    /// where the offer itself has long ended.
    Stop {
        /// The decision the link names.
        decision: DecisionId,
        /// False: it is not known whose it was.
        answer: oneshot::Sender<bool>,
    },
}

/// What a message offered, as the page shows it. Says nothing about who it was sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The text of the message.
    pub text: String,
    /// When the offer ends.
    pub expires: Micros,
    /// How long what it sets lasts, from the tap; zero: it sets nothing that ends.
    pub lasts: Duration,
    /// When it was accepted; `None`: not yet.
    pub tapped: Option<Micros>,
    /// When it was declined; `None`: not.
    pub declined: Option<Micros>,
}

/// What came of a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tapped {
    /// Accepted now; it is durable.
    Accepted,
    /// Accepted before; nothing was changed.
    Already,
    /// Declined, now or before: it is not open any more.
    Declined,
    /// The offer had ended; nothing was changed.
    Expired,
    /// No message was ever sent for this decision; nothing was changed.
    Unknown,
    /// Not now: the operator has stopped Usher. Nothing was changed, the link stays good until it expires.
    Stopped,
}
