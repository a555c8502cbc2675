//! Works off the pushes that wait in the ledger.
//!
//! One push of a subscriber at a time, many subscribers at once, never more than configured. What is desired last is never
//! given up: after the configured attempts a push counts as failed, and is tried on at the longest pause until it is in
//! force or something newer is desired; such pushes hold no more than a share of the places. The ledger is the queue, so
//! a crash loses nothing: what was under way is settled first (confirmed where that was decided, cancelled otherwise) and
//! then tried again, which sends nothing to elements that hold the settings already.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use usher_models::units::{Micros, SubscriberId};

use super::{
    ElementOutcome, ElementState, Elements, Journal, LeftoverError, Outcome, PushId, PushOutcome, PushState,
    PushesConfig,
};
use crate::engine::io::Cause;
use crate::inputs::Inbox;
use crate::ledger::pushes::{PushRecord, Queue};
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::{Metrics, PushLabels};

/// How long pushes under way may take to end when the process is told to stop; then they are left to the next start.
const GRACE: Duration = Duration::from_secs(10);

/// Pause after the ledger could not be read.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);

/// How long to try to confirm what an earlier process had decided to.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// Pause between two such tries.
const SETTLE_PAUSE: Duration = Duration::from_millis(250);

/// Longest wait without a look at the ledger.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Of the places, pushes whose attempts failed hold one in so many at most, and one at least.
const FAILING_SHARE: usize = 4;

/// Pushes that ended and are kept for people to look at.
const KEEP: usize = 100_000;

/// Pushes that end between two prunings.
const PRUNE_EVERY: u64 = 1_000;

/// Wakes the executor: there may be a push to carry out. Clones wake the same one.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Looks at the ledger soon.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Carries out pushes until it is told to stop.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
    wake: Wake,
}

#[derive(Debug)]
struct Shared {
    elements: Arc<Elements>,
    ledger: Ledger,
    config: PushesConfig,
    metrics: Metrics,
    /// Whom to tell what became of decisions' pushes.
    inbox: Option<Inbox>,
}

/// Whose pushes are under way, and from which queue they came.
type Busy = BTreeMap<SubscriberId, Queue>;

/// What a task of the executor is about.
enum Job {
    /// Settle what an earlier process left, then queue it again.
    Settle(PushRecord),
    /// One attempt.
    Attempt(PushRecord),
}

impl Executor {
    /// An executor; nothing happens before [`run`](Self::run).
    pub fn new(elements: Arc<Elements>, ledger: Ledger, config: PushesConfig, metrics: Metrics) -> Self {
        let shared = Shared { elements, ledger, config, metrics, inbox: None };
        Self { shared: Arc::new(shared), wake: Wake::default() }
    }

    /// Has the engine told what becomes of decisions' pushes.
    #[must_use]
    pub fn telling(mut self, inbox: Inbox) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.inbox = Some(inbox);
        }
        self
    }

    /// To be called after a push was put into the ledger.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Works until `stop` resolves; then starts nothing more and gives what is under way a little time.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut interrupted = self.interrupted(&mut stop).await;
        let mut busy = Busy::new();
        let mut tasks: JoinSet<SubscriberId> = JoinSet::new();
        loop {
            let next = self.fill(&mut interrupted, &mut busy, &mut tasks).await;
            let wait = tokio::time::sleep(next);
            tokio::select! {
                () = &mut stop => break,
                Some(ended) = tasks.join_next() => match ended {
                    Ok(subscriber) => {
                        busy.remove(&subscriber);
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = self.wake.0.notified() => {}
                () = wait => {}
            }
        }
        let ended = tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!(left = tasks.len(), "pushes still under way are left to the next start");
        }
    }

    /// Pushes an earlier process left under way.
    async fn interrupted(&self, stop: &mut (impl Future<Output = ()> + Unpin)) -> VecDeque<PushRecord> {
        loop {
            match self.shared.ledger.with(Ledger::pushes_interrupted).await {
                Ok(records) => return records.into(),
                Err(error) => tracing::error!(%error, "pushes cannot be read"),
            }
            tokio::select! {
                () = &mut *stop => return VecDeque::new(),
                () = tokio::time::sleep(LEDGER_PAUSE) => {}
            }
        }
    }

    /// Starts what can be started; how long to wait for the next one.
    async fn fill(
        &self,
        interrupted: &mut VecDeque<PushRecord>,
        busy: &mut Busy,
        tasks: &mut JoinSet<SubscriberId>,
    ) -> Duration {
        let at_once = self.shared.config.at_once.max(1);
        while tasks.len() < at_once
            && let Some(at) =
                interrupted.iter().position(|record| !busy.contains_key(&record.push.subscriber))
            && let Some(record) = interrupted.remove(at)
        {
            self.start(Job::Settle(record), busy, tasks);
        }
        // What waits to be settled goes before what is new of the same subscriber.
        let mut not_now: Vec<SubscriberId> = busy.keys().cloned().collect();
        not_now.extend(interrupted.iter().map(|record| record.push.subscriber.clone()));
        let free = at_once.saturating_sub(tasks.len());
        let failing = busy.values().filter(|queue| **queue == Queue::Failing).count();
        let for_failing = (at_once / FAILING_SHARE).max(1).saturating_sub(failing);
        let now = Micros::now();
        let read = self.shared.ledger.with(move |ledger| {
            let mut due = ledger.pushes_due(Queue::Fresh, now, free, &not_now)?;
            due.extend(ledger.pushes_due(Queue::Failing, now, free.min(for_failing), &not_now)?);
            due.sort_by_key(|record| record.next_at);
            due.truncate(free);
            not_now.extend(due.iter().map(|record| record.push.subscriber.clone()));
            let started = due.iter().filter(|record| queue_of(record) == Queue::Failing).count();
            let mut next = ledger.push_next_due(Queue::Fresh, &not_now)?;
            // With their share taken, the end of a task is what the others wait for.
            if started < for_failing {
                next = next.into_iter().chain(ledger.push_next_due(Queue::Failing, &not_now)?).min();
            }
            let waiting = ledger.pushes_waiting(Queue::Fresh)?;
            Ok((due, next, waiting, ledger.pushes_waiting(Queue::Failing)?))
        });
        match read.await {
            Ok((due, next, waiting, failing)) => {
                self.shared.metrics.pushes_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
                self.shared.metrics.pushes_failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
                for record in due {
                    self.start(Job::Attempt(record), busy, tasks);
                }
                // With no room left, the end of a task is what is waited for.
                let full = tasks.len() >= at_once;
                next.filter(|_| !full)
                    .map_or(LONGEST_WAIT, |next| next.since(Micros::now()).min(LONGEST_WAIT))
            }
            Err(error) => {
                tracing::error!(%error, "pushes cannot be read");
                LEDGER_PAUSE
            }
        }
    }

    fn start(&self, job: Job, busy: &mut Busy, tasks: &mut JoinSet<SubscriberId>) {
        let shared = Arc::clone(&self.shared);
        let (Job::Settle(record) | Job::Attempt(record)) = &job;
        let subscriber = record.push.subscriber.clone();
        busy.insert(subscriber.clone(), queue_of(record));
        tasks.spawn(async move {
            let done = match &job {
                Job::Settle(record) => shared.settle(record).await,
                Job::Attempt(record) => shared.attempt(record).await,
            };
            if let Err(error) = done {
                let (Job::Settle(record) | Job::Attempt(record)) = &job;
                tracing::error!(push = %record.push.id, %error, "push cannot be noted");
                // Whatever is wrong with the ledger, do not turn it into a busy loop.
                tokio::time::sleep(LEDGER_PAUSE).await;
            }
            subscriber
        });
    }
}

impl Shared {
    /// What an earlier process left under way: forwards where it was decided, back otherwise. Then it waits like any other.
    async fn settle(&self, record: &PushRecord) -> Result<(), LedgerError> {
        let id = &record.push.id;
        let forwards = record.state == PushState::Confirming;
        tracing::info!(push = %id, forwards, "settling a push that was interrupted");
        for element in record.elements.iter().filter(|element| element.state.may_be_pending()) {
            let mut element = element.clone();
            let settled = if forwards {
                self.confirm(id, &element.element).await
            } else {
                self.elements.cancel_leftover(id, &element.element).await
            };
            match settled {
                Ok(()) if forwards => {
                    element.state = ElementState::Confirmed;
                    element.confirmed = Some(Micros::now());
                }
                Ok(()) => element.state = ElementState::RolledBack,
                Err(error) => {
                    tracing::warn!(push = %id, element = element.element, %error, "not settled yet");
                    element.state = ElementState::Unverified;
                    element.error = Some(error.to_string());
                }
            }
            self.note_element(id, element).await?;
        }
        let id = id.clone();
        let state = self
            .ledger
            .with(move |ledger| {
                let why = "interrupted by the end of the process";
                ledger.push_retry_at(&id, PushState::Pending, why, Micros::now())
            })
            .await?;
        tracing::debug!(push = %record.push.id, state = state.name(), "settled");
        Ok(())
    }

    /// Confirms what was decided. Agents and devices may need a moment to be reachable again after a restart, and what is
    /// provisional on them lasts a little longer than that.
    async fn confirm(&self, id: &PushId, element: &str) -> Result<(), LeftoverError> {
        let give_up = tokio::time::Instant::now() + SETTLE_WITHIN;
        loop {
            match self.elements.confirm_leftover(id, element).await {
                Err(LeftoverError::Unreachable(_)) if tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn attempt(&self, record: &PushRecord) -> Result<(), LedgerError> {
        let push = &record.push;
        let attempts = record.attempts.saturating_add(1);
        let id = push.id.clone();
        let subscriber = push.subscriber.clone();
        let (reach, leftovers) = self
            .ledger
            .with(move |ledger| {
                ledger.push_begin(&id)?;
                Ok((ledger.reach_of(&subscriber)?, ledger.push_leftovers(&subscriber)?))
            })
            .await?;
        if let Err(error) = self.clear(leftovers).await? {
            return self.failed(record, attempts, error, true).await;
        }
        let journal: Arc<dyn Journal> = Arc::new(self.ledger.clone());
        let PushOutcome { outcome, elements } = self.elements.push(push, &reach, &journal).await;
        for element in elements {
            self.count(&element);
            self.note_element(&push.id, element).await?;
        }
        // What is tried on was told of once.
        if let (Some(inbox), Cause::Decision(decision), 1) = (&self.inbox, &push.cause, attempts)
            && !inbox.pushed(decision.clone(), matches!(outcome, Outcome::Done))
        {
            self.metrics.pushes_untold.inc();
        }
        match outcome {
            Outcome::Done => self.done(record).await,
            Outcome::RolledBack { error } => self.failed(record, attempts, error, false).await,
            Outcome::Unverified { error } => self.failed(record, attempts, error, true).await,
        }
    }

    /// Takes back what earlier attempts may have left: otherwise it could pass for what is desired, and then end.
    async fn clear(
        &self,
        leftovers: Vec<(PushId, ElementOutcome)>,
    ) -> Result<Result<(), String>, LedgerError> {
        for (id, mut element) in leftovers {
            if let Err(error) = self.elements.cancel_leftover(&id, &element.element).await {
                let what = format!(
                    "{}: what an earlier attempt left cannot be taken back: {error}",
                    element.element
                );
                return Ok(Err(what));
            }
            element.state = ElementState::RolledBack;
            self.note_element(&id, element).await?;
        }
        Ok(Ok(()))
    }

    async fn done(&self, record: &PushRecord) -> Result<(), LedgerError> {
        let now = Micros::now();
        let took = now.since(record.push.desired_at);
        self.metrics.push_seconds.observe(took.as_secs_f64());
        let ended = self.metrics.pushes_ended.get_or_create(&crate::metrics::Reason { reason: "done" }).inc();
        tracing::info!(push = %record.push.id, subscriber = %record.push.subscriber, ?took, "push done");
        self.end(&record.push.id, PushState::Done, ended).await
    }

    async fn failed(
        &self,
        record: &PushRecord,
        attempts: u32,
        error: String,
        unverified: bool,
    ) -> Result<(), LedgerError> {
        let id = record.push.id.clone();
        let spent = attempts >= self.config.attempts;
        let (state, pause) = match (spent, unverified) {
            (false, _) => (PushState::Pending, pause_after(attempts, &self.config)),
            (true, false) => (PushState::Failed, self.config.longest_retry),
            (true, true) => (PushState::NeedsRepair, self.config.longest_retry),
        };
        if attempts == self.config.attempts {
            crate::metrics::count(&self.metrics.pushes_ended, state.name());
            tracing::error!(push = %id, attempts, error, state = state.name(), ?pause, "push failed, will be tried on");
        } else {
            tracing::warn!(push = %id, attempts, error, ?pause, "push failed, will be tried again");
        }
        self.metrics.pushes_retried.inc();
        let next_at = Micros::now().after(pause);
        let noted = self.ledger.with(move |ledger| ledger.push_retry_at(&id, state, &error, next_at)).await?;
        if noted == PushState::Superseded {
            tracing::info!(push = %record.push.id, "superseded by a newer desire");
        }
        Ok(())
    }

    /// `ended` counts pushes that ended this way, to prune now and then.
    async fn end(&self, id: &PushId, state: PushState, ended: u64) -> Result<(), LedgerError> {
        let id = id.clone();
        self.ledger
            .with(move |ledger| {
                ledger.push_state(&id, state, None, Micros::now())?;
                if ended % PRUNE_EVERY == PRUNE_EVERY - 1 {
                    ledger.push_prune(KEEP)?;
                }
                Ok(())
            })
            .await
    }

    async fn note_element(&self, id: &PushId, element: ElementOutcome) -> Result<(), LedgerError> {
        let id = id.clone();
        self.ledger.with(move |ledger| ledger.push_element(&id, &element)).await
    }

    fn count(&self, element: &ElementOutcome) {
        let labels = PushLabels { element: element.element.clone(), outcome: element.state.name() };
        self.metrics.pushes.get_or_create(&labels).inc();
    }
}

/// Where a push waited before it was started; one that was interrupted counts as fresh.
const fn queue_of(record: &PushRecord) -> Queue {
    match record.state {
        PushState::Failed | PushState::NeedsRepair => Queue::Failing,
        _ => Queue::Fresh,
    }
}

/// Doubles with each attempt, up to the bound.
fn pause_after(attempts: u32, config: &PushesConfig) -> Duration {
    let doublings = attempts.saturating_sub(1).min(20);
    config.first_retry.saturating_mul(1 << doublings).min(config.longest_retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let config = PushesConfig::default();
        let pauses: Vec<u64> = (1..=8).map(|attempts| pause_after(attempts, &config).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause_after(u32::MAX, &config), config.longest_retry);
    }
}
