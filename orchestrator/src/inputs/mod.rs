//! The one way into the engine: a bounded queue of inputs and the one task that works it off.
//!
//! Each input is stepped through the engine and made durable with everything it led to, in one transaction, before it
//! is answered. What it led to is then carried out elsewhere, from the ledger, so that it survives the process.

use tokio::sync::{mpsc, oneshot};

use crate::agents::Batch;
use crate::ledger::BatchMark;
use crate::metrics::Metrics;

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
    /// The operator's kill switch: true stops every decision.
    Stop {
        /// Its new position.
        stop: bool,
        /// Sent once it is durable.
        answer: oneshot::Sender<()>,
    },
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
    metrics: Metrics,
}

impl Inbox {
    /// A queue: its sending end, and the end the engine task reads.
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Request>) {
        let (queue, requests) = mpsc::channel(WAITING_MAX);
        (Self { queue, metrics }, requests)
    }

    /// Has a batch applied. Returns once it is durable, or once it is clear that it was before.
    pub async fn batch(&self, batch: Batch) -> Result<BatchMark, Refusal> {
        let (answer, applied) = oneshot::channel();
        self.send(Request::Batch { batch: Box::new(batch), answer }).await?;
        applied.await.map_err(|_| Refusal::Stopping)?
    }

    /// Sets the kill switch. Returns once it is durable.
    pub async fn stop(&self, stop: bool) -> Result<(), Refusal> {
        let (answer, done) = oneshot::channel();
        self.send(Request::Stop { stop, answer }).await?;
        done.await.map_err(|_| Refusal::Stopping)
    }

    async fn send(&self, request: Request) -> Result<(), Refusal> {
        self.metrics.inputs_waiting.inc();
        let sent = self.queue.send(request).await;
        self.metrics.inputs_waiting.dec();
        sent.map_err(|_| Refusal::Stopping)
    }
}
