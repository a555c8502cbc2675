//! The one way into the engine: a bounded queue of inputs and the one task that works it off.
//!
//! Each input is stepped through the engine and made durable with everything it led to, in one transaction, before it
//! is answered. What it led to is then carried out elsewhere, from the ledger, so that it survives the process.

mod intake;
mod keeping;
mod sessions;
mod standing;
mod task;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::agents::Batch;
use crate::engine::io::{DecisionId, LiveOffer};
use crate::identity::Directory;
use crate::ledger::BatchMark;
use crate::policy::{Policy, PolicyErrors};

pub use intake::{Applied, Intake, Taken};
pub use sessions::Kept;
pub use task::{Bells, EngineTask, Queues, TaskError};

/// Inputs that may wait. A sender waits when they do: an agent's batches then stay in its spool.
const WAITING_MAX: usize = 64;

/// Something for the engine task.
#[derive(Debug)]
pub enum Request {
    /// A batch of an agent.
    Batch {
        /// Fit to be applied, its sessions not yet resolved.
        batch: Box<Batch>,
        /// The last batch of its boot that is applied and durable.
        answer: oneshot::Sender<Result<BatchMark, Refusal>>,
    },
    /// A push that a decision led to is done, or failed for the first time.
    Pushed {
        /// The decision.
        decision: DecisionId,
        /// It is in force.
        ok: bool,
    },
    /// A partner was asked.
    Answered {
        /// The decision that waits.
        decision: DecisionId,
        /// What it can be had for, or why it cannot.
        offer: Result<LiveOffer, String>,
    },
    /// Is the task alive?
    Ping {
        /// Yes.
        answer: oneshot::Sender<()>,
    },
    /// Another policy and other profiles.
    Book {
        /// Each parsed without a mistake.
        book: Arc<Book>,
        /// Sent once they are in force, or with what keeps them from it.
        answer: oneshot::Sender<Result<(), PolicyErrors>>,
    },
}

/// What the operator wrote: the policy, and whom it is about. One is never in force without the other it was read with.
#[derive(Debug, Clone)]
pub struct Book {
    /// What to look for and what to do.
    pub policy: Policy,
    /// Plans, countries and subscribers.
    pub directory: Arc<Directory>,
}

/// Why a batch that is well-formed was not applied. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Batches between it and the last one applied have not come.
    #[error("batch {got} leaves a gap: expected {expected} of this boot; send again from there")]
    Gap {
        /// Its sequence.
        got: u64,
        /// The one that was due.
        expected: u64,
    },
    /// The process is stopping.
    #[error("the orchestrator is stopping: send it again after a reconnect")]
    Stopping,
}

/// The sending end of the queue. Clones feed the same one.
#[derive(Debug, Clone)]
pub struct Inbox {
    queue: mpsc::Sender<Request>,
}

impl Inbox {
    /// A queue: its sending end, and the end the engine task reads.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (queue, requests) = mpsc::channel(WAITING_MAX);
        (Self { queue }, requests)
    }

    /// Has a batch applied. Returns once it is durable, or once it is clear that it was before.
    pub async fn batch(&self, batch: Batch) -> Result<BatchMark, Refusal> {
        let (answer, applied) = oneshot::channel();
        self.send(Request::Batch { batch: Box::new(batch), answer }).await?;
        applied.await.map_err(|_| Refusal::Stopping)?
    }

    /// Puts another policy and other profiles in force. Returns once they are, or with what keeps them from it.
    pub async fn book(&self, book: Arc<Book>) -> Result<Result<(), PolicyErrors>, Refusal> {
        let (answer, loaded) = oneshot::channel();
        self.send(Request::Book { book, answer }).await?;
        loaded.await.map_err(|_| Refusal::Stopping)
    }

    /// Tells what became of a push. Waits for nobody; false: there was no room.
    pub fn pushed(&self, decision: DecisionId, ok: bool) -> bool {
        self.queue.try_send(Request::Pushed { decision, ok }).is_ok()
    }

    /// Tells what a partner answered.
    pub async fn answered(
        &self,
        decision: DecisionId,
        offer: Result<LiveOffer, String>,
    ) -> Result<(), Refusal> {
        self.send(Request::Answered { decision, offer }).await
    }

    /// Returns once the engine task has come to this.
    pub async fn ping(&self) -> Result<(), Refusal> {
        let (answer, alive) = oneshot::channel();
        self.send(Request::Ping { answer }).await?;
        alive.await.map_err(|_| Refusal::Stopping)
    }

    async fn send(&self, request: Request) -> Result<(), Refusal> {
        self.queue.send(request).await.map_err(|_| Refusal::Stopping)
    }
}
