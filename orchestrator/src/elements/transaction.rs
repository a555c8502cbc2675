//! One push as one transaction over several elements.
//!
//! ```text
//! plan all -> lock in order, plan again -> stage all -> note -> commit all provisionally, read back
//!    |                 |                      |                        |
//!    |                 '----------------------'--> back out            |-- all well --> note -> confirm one by one -> done
//!    '-> done where nothing differs                                    '-- any not ---> cancel all, look -> rolled back
//! ```
//!
//! Every step is bounded by the elements' own time-outs, and what is provisional ends by the elements' own timers. A step
//! that changes something is in the journal before it leaves.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use usher_models::units::Micros;

use super::gateway::{GatewayError, GatewayWork};
use super::netconf::{NetconfWork, NetconfWorkError, lock_deadline};
use super::{
    ElementDiff, ElementOutcome, ElementState, Journal, JournalError, Outcome, Push, PushId, PushOutcome,
    PushState,
};

/// Pauses between two tries for locks that somebody else holds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// One element's part.
pub(super) struct Part {
    outcome: ElementOutcome,
    work: Work,
    /// A provisional commit has left, whether or not it arrived.
    committed: bool,
}

/// What is done on it, by kind.
pub(super) enum Work {
    Gateway(GatewayWork),
    Netconf(NetconfWork),
}

#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Netconf(#[from] NetconfWorkError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("it took longer than the time left to confirm")]
    TooLate,
}

impl PartError {
    fn is_lock_denied(&self) -> bool {
        matches!(self, Self::Netconf(error) if error.is_lock_denied())
    }
}

type Step = Result<(), PartError>;

impl Part {
    pub(super) fn new(element: String, work: Work, started: Micros) -> Self {
        let outcome = ElementOutcome {
            element,
            state: ElementState::Planned,
            changes: Vec::new(),
            started,
            enforced: None,
            confirmed: None,
            error: None,
        };
        Self { outcome, work, committed: false }
    }

    fn dry_run(&self) -> bool {
        match &self.work {
            Work::Gateway(work) => work.config().dry_run,
            Work::Netconf(work) => work.config().dry_run,
        }
    }

    /// After how long the element puts back by itself what was not confirmed.
    fn confirm_within(&self) -> Duration {
        match &self.work {
            Work::Gateway(work) => work.config().confirm,
            Work::Netconf(work) => work.config().confirm,
        }
    }

    async fn plan(&mut self, push: &Push) -> Step {
        let now = Micros::now();
        self.outcome.changes = match &mut self.work {
            Work::Gateway(work) => work.plan(push, now).await?,
            Work::Netconf(work) => work.plan(push, now).await?,
        };
        Ok(())
    }

    async fn lock(&mut self) -> Step {
        if let Work::Netconf(work) = &mut self.work {
            self.outcome.changes = work.lock().await?;
        }
        Ok(())
    }

    async fn stage(&mut self) -> Step {
        if let Work::Netconf(work) = &mut self.work {
            work.stage().await?;
        }
        Ok(())
    }

    async fn commit_and_read_back(&mut self, push: &PushId) -> Step {
        self.committed = true;
        match &mut self.work {
            Work::Gateway(work) => work.prepare(push, Micros::now()).await?,
            Work::Netconf(work) => {
                work.commit(push).await?;
                work.read_back().await?;
            }
        }
        self.outcome.enforced = Some(Micros::now());
        self.outcome.state = ElementState::Enforced;
        Ok(())
    }

    async fn confirm(&mut self, push: &PushId) -> Step {
        match &mut self.work {
            Work::Gateway(work) => work.confirm(push).await?,
            Work::Netconf(work) => work.confirm(push).await?,
        }
        self.outcome.confirmed = Some(Micros::now());
        self.outcome.state = ElementState::Confirmed;
        Ok(())
    }

    /// Back where it was, by whatever it takes at this point.
    async fn back_out(&mut self, push: &PushId) {
        let back: Step = if self.outcome.state == ElementState::Confirmed {
            match &mut self.work {
                Work::Gateway(work) => work.undo(push, Micros::now()).await.map_err(Into::into),
                Work::Netconf(work) => work.undo(push).await.map_err(Into::into),
            }
        } else if self.committed {
            match &mut self.work {
                Work::Gateway(work) => work.cancel(push, Micros::now()).await.map_err(Into::into),
                Work::Netconf(work) => work.cancel(push).await.map_err(Into::into),
            }
        } else {
            Ok(())
        };
        self.release().await;
        self.outcome.enforced = None;
        self.outcome.confirmed = None;
        self.outcome.state = match back {
            Ok(()) if self.committed => ElementState::RolledBack,
            Ok(()) => ElementState::Planned,
            Err(error) => {
                let why = format!("not shown to be back where it was: {error}");
                tracing::warn!(element = self.outcome.element, push = %push, "{why}");
                self.outcome.error = Some(match self.outcome.error.take() {
                    Some(first) => format!("{first}; {why}"),
                    None => why,
                });
                ElementState::Unverified
            }
        };
    }

    async fn release(&mut self) {
        if let Work::Netconf(work) = &mut self.work {
            work.release().await;
        }
    }
}

/// Desired against running, nothing else.
pub(super) async fn plan(parts: Vec<Part>, push: &Push) -> Vec<ElementDiff> {
    let (parts, _) = plan_all(parts, push).await;
    parts
        .into_iter()
        .map(|part| ElementDiff {
            dry_run: part.dry_run(),
            element: part.outcome.element,
            changes: part.outcome.changes,
            error: part.outcome.error,
        })
        .collect()
}

/// The whole transaction.
pub(super) async fn run(parts: Vec<Part>, push: &Push, journal: &Arc<dyn Journal>) -> PushOutcome {
    let (parts, failed) = plan_all(parts, push).await;
    let mut settled = Vec::new();
    let mut active = Vec::new();
    for mut part in parts {
        if part.outcome.error.is_some() {
            settled.push(part);
        } else if part.outcome.changes.is_empty() {
            unchanged(&mut part);
            settled.push(part);
        } else if part.dry_run() {
            part.outcome.state = ElementState::DryRun;
            log_dry_run(&part.outcome);
            settled.push(part);
        } else {
            active.push(part);
        }
    }
    let ended = match failed {
        Some(error) => Err(error),
        None => carry_out(&mut active, &mut settled, push, journal).await,
    };
    if ended.is_err() {
        let id = push.id.clone();
        active = each(active, move |mut part| {
            let id = id.clone();
            async move {
                part.back_out(&id).await;
                (part, Ok(()))
            }
        })
        .await
        .0;
    }
    let mut elements: Vec<ElementOutcome> =
        active.into_iter().chain(settled).map(|part| part.outcome).collect();
    elements.sort_by(|left, right| left.element.cmp(&right.element));
    let outcome = match ended {
        Ok(()) => Outcome::Done,
        Err(error) if elements.iter().any(|element| element.state == ElementState::Unverified) => {
            Outcome::Unverified { error }
        }
        Err(error) => Outcome::RolledBack { error },
    };
    PushOutcome { outcome, elements }
}

/// From locks to confirmation. After an error `active` holds those that have to be backed out.
async fn carry_out(
    active: &mut Vec<Part>,
    settled: &mut Vec<Part>,
    push: &Push,
    journal: &Arc<dyn Journal>,
) -> Result<(), String> {
    if active.is_empty() {
        return Ok(());
    }
    lock_all(active).await?;
    // Under the locks another session's change may turn out to have made ours needless.
    let (mut needless, rest) =
        std::mem::take(active).into_iter().partition::<Vec<_>, _>(|part| part.outcome.changes.is_empty());
    *active = rest;
    for part in &mut needless {
        part.release().await;
        unchanged(part);
    }
    settled.append(&mut needless);

    step(active, |mut part| async move {
        let staged = part.stage().await;
        (part, staged)
    })
    .await?;

    for part in active.iter_mut() {
        part.outcome.state = ElementState::Committing;
    }
    note_elements(active, push, journal).await.map_err(|error| error.to_string())?;
    let within = active.iter().map(Part::confirm_within).min().unwrap_or_default();
    let since = Instant::now();
    let id = push.id.clone();
    step(active, move |mut part| {
        let id = id.clone();
        async move {
            let enforced = part.commit_and_read_back(&id).await;
            (part, enforced)
        }
    })
    .await?;
    if since.elapsed() + within / 4 > within {
        return Err(PartError::TooLate.to_string());
    }
    note_elements(active, push, journal).await.map_err(|error| error.to_string())?;
    note(journal, push, |journal, id| journal.push(&id, PushState::Confirming))
        .await
        .map_err(|error| error.to_string())?;

    // One after the other, and those first that are likelier to fail: as long as none is confirmed, cancelling is easy.
    active.sort_by_key(|part| matches!(part.work, Work::Gateway(_)));
    for part in active.iter_mut() {
        if let Err(error) = part.confirm(&push.id).await {
            part.outcome.error = Some(error.to_string());
            return Err(format!("{}: {error}", part.outcome.element));
        }
    }
    for part in active.iter_mut() {
        part.release().await;
    }
    Ok(())
}

/// Plans on all at once; the first error, by element.
async fn plan_all(parts: Vec<Part>, push: &Push) -> (Vec<Part>, Option<String>) {
    let push = Arc::new(push.clone());
    each(parts, move |mut part| {
        let push = Arc::clone(&push);
        async move {
            let planned = part.plan(&push).await;
            (part, planned)
        }
    })
    .await
}

/// Locks in the order of names, so that two pushes never wait for each other; where somebody else holds a lock, lets go
/// of all and tries again within that element's bound.
async fn lock_all(active: &mut [Part]) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    let mut give_up: Option<Instant> = None;
    'again: loop {
        for index in 0..active.len() {
            let Err(error) = active[index].lock().await else { continue };
            let part = &mut active[index];
            let until = match &part.work {
                Work::Netconf(work) => *give_up.get_or_insert_with(|| lock_deadline(work.config())),
                Work::Gateway(_) => Instant::now(),
            };
            if !error.is_lock_denied() || Instant::now() + pause > until {
                part.outcome.error = Some(error.to_string());
                return Err(format!("{}: {error}", part.outcome.element));
            }
            for held in active.iter_mut() {
                if let Work::Netconf(work) = &mut held.work {
                    work.unlock().await;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            continue 'again;
        }
        return Ok(());
    }
}

/// One step on all at once; the first error, by element.
async fn step<F, W>(active: &mut Vec<Part>, work: F) -> Result<(), String>
where
    F: Fn(Part) -> W,
    W: Future<Output = (Part, Step)> + Send + 'static,
{
    let (parts, failed) = each(std::mem::take(active), work).await;
    *active = parts;
    failed.map_or(Ok(()), Err)
}

async fn each<F, W>(parts: Vec<Part>, work: F) -> (Vec<Part>, Option<String>)
where
    F: Fn(Part) -> W,
    W: Future<Output = (Part, Step)> + Send + 'static,
{
    let mut tasks: JoinSet<(Part, Step)> = parts.into_iter().map(work).collect();
    let mut done = Vec::new();
    while let Some(finished) = tasks.join_next().await {
        match finished {
            Ok((mut part, result)) => {
                if let Err(error) = result {
                    part.outcome.error = Some(error.to_string());
                }
                done.push(part);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    done.sort_by(|left, right| left.outcome.element.cmp(&right.outcome.element));
    let failed = done.iter().find_map(|part| {
        let error = part.outcome.error.as_ref()?;
        Some(format!("{}: {error}", part.outcome.element))
    });
    (done, failed)
}

fn unchanged(part: &mut Part) {
    let now = Micros::now();
    part.outcome.state = ElementState::Unchanged;
    part.outcome.enforced = Some(now);
    part.outcome.confirmed = Some(now);
}

fn log_dry_run(outcome: &ElementOutcome) {
    for change in &outcome.changes {
        tracing::info!(
            element = outcome.element,
            path = change.path,
            from = change.from,
            to = change.to,
            "dry run: would change"
        );
    }
}

/// The ledger may wait for a disk, so it is written to where that holds up nobody.
async fn note(
    journal: &Arc<dyn Journal>,
    push: &Push,
    what: impl FnOnce(&dyn Journal, PushId) -> Result<(), JournalError> + Send + 'static,
) -> Result<(), JournalError> {
    let (journal, id) = (Arc::clone(journal), push.id.clone());
    match tokio::task::spawn_blocking(move || what(&*journal, id)).await {
        Ok(noted) => noted,
        Err(error) => Err(JournalError(error.to_string())),
    }
}

async fn note_elements(active: &[Part], push: &Push, journal: &Arc<dyn Journal>) -> Result<(), JournalError> {
    let outcomes: Vec<ElementOutcome> = active.iter().map(|part| part.outcome.clone()).collect();
    note(journal, push, move |journal, id| {
        outcomes.iter().try_for_each(|outcome| journal.element(&id, outcome))
    })
    .await
}
