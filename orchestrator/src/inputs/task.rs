//! The engine task: one input at a time, stepped, made durable, answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use usher_models::units::{Micros, SubscriberId};

use super::sessions::{Resolved, Sessions};
use super::{Book, Refusal, Request};
use crate::advice::{self, Offer, Tapped};
use crate::agents::Batch;
use crate::api;
use crate::elements::Wake;
use crate::engine::io::{Decision, DecisionId, Effect, Input, Mode, TapState};
use crate::engine::{Counters, Engine, SubscriberState};
use crate::ledger::{BatchMark, InputRecord, Ledger, LedgerError};
use crate::metrics::{DecisionLabels, Metrics, Reason, count};
use crate::policy::PolicyErrors;

/// The engine is looked at this often at least.
const TICK: Duration = Duration::from_secs(1);
/// And at most this often where nothing comes in.
const TICK_LEAST: Duration = Duration::from_millis(10);
/// Boots of one agent remembered; beyond them the ledger's own selection is read again.
const BOOTS_MAX: usize = 64;

/// Decisions are kept this long for people to look at: longer than any back-off or re-arm looks back.
const DECISIONS_KEPT: Duration = Duration::from_hours(400 * 24);
/// Old ones are forgotten this often, and so many at a time.
const PRUNE_EVERY: Duration = Duration::from_mins(10);
const PRUNE_AT_ONCE: u32 = 10_000;

/// Rung after a transaction that left work for others.
#[derive(Debug, Clone, Default)]
pub struct Bells {
    /// A push is pending.
    pub pushes: Wake,
    /// A message is pending.
    pub messages: Arc<Notify>,
}

/// Everything that leads into the task.
#[derive(Debug)]
pub struct Queues {
    /// Batches, and what the daemon itself wants.
    pub requests: mpsc::Receiver<Request>,
    /// The tap page.
    pub advice: mpsc::Receiver<advice::Ask>,
    /// The operator.
    pub api: mpsc::Receiver<api::Ask>,
}

/// Why the task cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// What it cannot do without.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The policy is not one the engine runs.
    #[error("{0}")]
    Policy(#[from] PolicyErrors),
}

/// The task's own state.
#[derive(Debug)]
pub struct EngineTask {
    engine: Engine,
    book: Arc<Book>,
    ledger: Ledger,
    sessions: Sessions,
    /// Last sequence applied, by agent and boot.
    marks: HashMap<String, HashMap<Vec<u8>, u64>>,
    metrics: Metrics,
    bells: Bells,
    in_force: watch::Sender<Arc<Book>>,
    now: Micros,
    pruned: Micros,
    counted: Counters,
}

impl EngineTask {
    /// Takes everything up from the ledger where the last process left it. What ran out meanwhile, and what the profiles
    /// changed, is stepped and durable when this returns.
    pub async fn restore(
        book: Arc<Book>,
        in_force: watch::Sender<Arc<Book>>,
        ledger: Ledger,
        metrics: Metrics,
        bells: Bells,
    ) -> Result<Self, TaskError> {
        let (rows, marks) = ledger.with(|ledger| Ok((ledger.sessions()?, ledger.batch_marks()?))).await?;
        let mut by_agent: HashMap<String, HashMap<Vec<u8>, u64>> = HashMap::new();
        for (agent, mark) in marks {
            by_agent.entry(agent).or_default().insert(mark.boot, mark.sequence);
        }
        let engine = engine_of(&book, &ledger).await?;
        let mut task = Self {
            sessions: Sessions::restore(rows, &engine),
            engine,
            book,
            ledger,
            marks: by_agent,
            metrics,
            bells,
            in_force,
            now: Micros::now(),
            pruned: Micros::default(),
            counted: Counters::default(),
        };
        let stopped = task.ledger.with(Ledger::stopped).await?;
        if stopped {
            tracing::warn!("the kill switch is on: nothing is decided until `usher resume`");
        }
        let mut record = task.record();
        record.effects = task.engine.step(task.now, Input::Stop(stopped));
        task.reassign(&mut record).await?;
        task.commit(record).await?;
        Ok(task)
    }

    /// Works until `stopped` turns true. Everything answered by then is durable; what waits is told to come again.
    pub async fn run(
        mut self,
        mut queues: Queues,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), TaskError> {
        loop {
            self.metrics.inputs_waiting.set(i64::try_from(queues.requests.len()).unwrap_or(i64::MAX));
            let pause = self.pause();
            tokio::select! {
                Some(request) = queues.requests.recv() => self.request(request).await?,
                Some(ask) = queues.advice.recv() => self.advice(ask).await?,
                Some(ask) = queues.api.recv() => self.api(ask).await?,
                () = tokio::time::sleep(pause) => self.tick().await?,
                () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => return Ok(()),
            }
        }
    }

    /// Until the engine next wants to be looked at.
    fn pause(&self) -> Duration {
        let due = self.engine.next_due().map_or(TICK, |due| due.since(Micros::now()));
        due.clamp(TICK_LEAST, TICK)
    }

    /// The wall clock, which here never goes back.
    fn advance(&mut self) -> Micros {
        self.now = self.now.max(Micros::now());
        self.now
    }

    fn record(&self) -> InputRecord {
        InputRecord { at: self.now, ..InputRecord::default() }
    }

    async fn tick(&mut self) -> Result<(), TaskError> {
        let now = self.advance();
        let mut record = self.record();
        record.effects = self.engine.step(now, Input::Tick);
        self.commit(record).await?;
        if now.since(self.pruned) >= PRUNE_EVERY {
            self.pruned = now;
            let before = now.before(DECISIONS_KEPT);
            self.ledger.with(move |ledger| ledger.prune(before, PRUNE_AT_ONCE)).await?;
        }
        Ok(())
    }

    async fn request(&mut self, request: Request) -> Result<(), TaskError> {
        match request {
            Request::Batch { batch, answer } => {
                let applied = self.batch(*batch).await?;
                // An agent that is gone meanwhile asks again what was applied.
                let _ = answer.send(applied);
            }
            Request::Ping { answer } => {
                let _ = answer.send(());
            }
            Request::Book { book, answer } => {
                let loaded = self.load(book).await;
                let _ = answer.send(match &loaded {
                    Err(TaskError::Policy(errors)) => Err(errors.clone()),
                    _ => Ok(()),
                });
                if let Err(TaskError::Ledger(error)) = loaded {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn batch(&mut self, batch: Batch) -> Result<Result<BatchMark, Refusal>, TaskError> {
        let (agent, mark) = (batch.agent.clone(), batch.mark.clone());
        let last = self.marks.get(&agent).and_then(|boots| boots.get(&mark.boot)).copied();
        match last {
            Some(last) if mark.sequence <= last => {
                self.metrics.batches_duplicate.inc();
                return Ok(Ok(BatchMark { boot: mark.boot, sequence: last }));
            }
            Some(last) if mark.sequence > last + 1 => {
                return Ok(Err(Refusal::Gap { got: mark.sequence, expected: last + 1 }));
            }
            None if mark.sequence > 1 => {
                let missing = mark.sequence - 1;
                self.metrics.batches_missing.inc_by(missing);
                tracing::warn!(agent, missing, "batches were acknowledged by a ledger that is not this one");
            }
            Some(_) | None => {}
        }
        let now = self.advance();
        let Resolved { kept, observed, ignored, verdicts } =
            self.sessions.resolve(batch, &self.book.directory, &self.engine);
        for (&reason, &times) in &ignored {
            self.metrics.records_ignored.get_or_create(&Reason { reason }).inc_by(times);
        }
        for took in verdicts {
            self.metrics.verdict_seconds.observe(took.as_secs_f64());
        }
        self.metrics.usage_records.inc_by(u64::try_from(kept.usage_records()).unwrap_or(u64::MAX));
        self.metrics.lateness_seconds.observe(now.since(kept.end()).as_secs_f64());
        let mut record = self.record();
        record.effects = self.engine.step(now, Input::Observed(observed));
        record.batch = Some(kept.record(&self.engine));
        self.commit(record).await?;
        self.mark(agent, &mark).await?;
        self.metrics.batches_applied.inc();
        Ok(Ok(mark))
    }

    async fn mark(&mut self, agent: String, mark: &BatchMark) -> Result<(), TaskError> {
        let boots = self.marks.entry(agent.clone()).or_default();
        boots.insert(mark.boot.clone(), mark.sequence);
        if boots.len() > BOOTS_MAX {
            let marks = self.ledger.with(Ledger::batch_marks).await?;
            let kept = marks.into_iter().filter(|(of, _)| *of == agent);
            *boots = kept.map(|(_, mark)| (mark.boot, mark.sequence)).collect();
        }
        Ok(())
    }

    /// Puts another policy and other profiles in force, or changes nothing.
    async fn load(&mut self, book: Arc<Book>) -> Result<(), TaskError> {
        let now = self.advance();
        let mut record = self.record();
        if book.policy.revision() == self.book.policy.revision() {
            book.policy.check(book.directory.plans())?;
            for input in book.directory.inputs_since(&self.book.directory) {
                record.effects.extend(self.engine.step(now, input));
            }
        } else {
            // Windows begin anew: facts of another policy are other facts.
            let stopped = self.ledger.with(Ledger::stopped).await?;
            self.engine = engine_of(&book, &self.ledger).await?;
            self.counted = Counters::default();
            record.effects = self.engine.step(now, Input::Stop(stopped));
        }
        self.book = book;
        self.reassign(&mut record).await?;
        self.commit(record).await?;
        self.in_force.send_replace(self.book.clone());
        Ok(())
    }

    /// Resolves the sessions by the profiles in force.
    async fn reassign(&mut self, record: &mut InputRecord) -> Result<(), TaskError> {
        let rows = self.ledger.with(Ledger::sessions).await?;
        let directory = &self.book.directory;
        let (reassigned, observed) = self.sessions.reassign(rows, directory, &self.engine, self.now);
        for observed in observed {
            record.effects.extend(self.engine.step(self.now, Input::Observed(observed)));
        }
        record.reassigned = reassigned;
        Ok(())
    }

    async fn advice(&mut self, ask: advice::Ask) -> Result<(), TaskError> {
        match ask {
            advice::Ask::Look { decision, answer } => {
                let row = self.ledger.with(move |ledger| ledger.message(&decision)).await?;
                let offer = row.map(|row| Offer {
                    text: row.say.text,
                    expires: row.say.expires,
                    lasts: Duration::from_secs(row.say.tap_seconds),
                    tapped: row.tapped,
                });
                let _ = answer.send(offer);
            }
            advice::Ask::Tap { decision, at, answer } => {
                let tapped = self.tap(decision, at).await?;
                count(&self.metrics.taps, tap_result(tapped));
                let _ = answer.send(tapped);
            }
        }
        Ok(())
    }

    async fn tap(&mut self, decision: DecisionId, at: Micros) -> Result<Tapped, TaskError> {
        let now = self.advance();
        let id = decision.clone();
        // The ledger remembers taps longer than the engine does.
        let row = self.ledger.with(move |ledger| ledger.message(&id)).await?;
        match row {
            None => return Ok(Tapped::Unknown),
            Some(row) if row.tapped.is_some() => return Ok(Tapped::Already),
            Some(row) if row.say.expires <= at => return Ok(Tapped::Expired),
            Some(_) if self.engine.mode() == Mode::Stop => return Ok(Tapped::Stopped),
            Some(_) => {}
        }
        match self.engine.tap_state(&decision, now) {
            TapState::Open => {}
            TapState::Used => return Ok(Tapped::Already),
            TapState::Expired => return Ok(Tapped::Expired),
            TapState::Unknown => return Ok(Tapped::Unknown),
        }
        let mut record = self.record();
        record.effects = self.engine.step(now, Input::Tapped(decision.clone()));
        tracing::info!(%decision, "tap accepted");
        record.tap = Some(decision);
        self.commit(record).await?;
        Ok(Tapped::Accepted)
    }

    async fn api(&mut self, ask: api::Ask) -> Result<(), TaskError> {
        match ask {
            api::Ask::Stop { stop, answer } => {
                let changed = self.ledger.with(Ledger::stopped).await? != stop;
                if changed {
                    let now = self.advance();
                    let mut record = self.record();
                    record.effects = self.engine.step(now, Input::Stop(stop));
                    record.stop = Some(stop);
                    self.commit(record).await?;
                    tracing::warn!(stop, "kill switch turned");
                }
                let _ = answer.send(changed);
            }
            api::Ask::Facts { subscriber, answer } => {
                let _ = answer.send(self.engine.facts_of(&subscriber, Micros::now()));
            }
        }
        Ok(())
    }

    /// Makes what a step led to durable, with the engine's own state, and calls those who are to carry it out. A failure
    /// ends the task and with it the process: memory is ahead of the ledger then, and the ledger is right.
    async fn commit(&mut self, mut record: InputRecord) -> Result<(), TaskError> {
        self.count_left_out();
        for (subscriber, state) in self.engine.take_dirty() {
            match state {
                Some(state) => {
                    let row = serde_json::to_string(&state).map_err(LedgerError::Encode)?;
                    record.engine.push((subscriber, row));
                }
                None => record.engine_gone.push(subscriber),
            }
        }
        if record == self.record() {
            return Ok(());
        }
        self.count_effects(&record.effects);
        let began = Instant::now();
        let applied = self.ledger.with(move |ledger| ledger.apply(&record)).await?;
        self.metrics.ledger_seconds.observe(began.elapsed().as_secs_f64());
        if !applied.pushes.is_empty() {
            self.bells.pushes.wake();
        }
        if !applied.messages.is_empty() {
            self.bells.messages.notify_one();
        }
        Ok(())
    }

    /// What the engine could make nothing of since the last look.
    fn count_left_out(&mut self) {
        let (now, before) = (self.engine.counters(), self.counted);
        for (reason, now, before) in [
            ("engine_late", now.late, before.late),
            ("engine_misdated", now.misdated, before.misdated),
            ("engine_stranger", now.strangers, before.strangers),
            ("engine_sessions_full", now.sessions_refused, before.sessions_refused),
            ("engine_boundary_skipped", now.boundaries_skipped, before.boundaries_skipped),
            ("engine_agent_overtaken", now.overtaken, before.overtaken),
        ] {
            if now > before {
                self.metrics.records_ignored.get_or_create(&Reason { reason }).inc_by(now - before);
            }
        }
        self.counted = now;
    }

    fn count_effects(&self, effects: &[Effect]) {
        for effect in effects {
            let kind = match effect {
                Effect::Decided(decision) => {
                    let outcome = outcome(decision);
                    tracing::info!(
                        decision = %decision.id,
                        subscriber = %decision.subscriber,
                        moment = decision.moment,
                        outcome,
                        "decided"
                    );
                    let labels = DecisionLabels { moment: decision.moment.clone(), outcome };
                    self.metrics.decisions.get_or_create(&labels).inc();
                    "decided"
                }
                Effect::Desire(desire) => {
                    tracing::info!(
                        subscriber = %desire.subscriber,
                        revision = desire.settings.revision,
                        cause = ?desire.cause,
                        "settings desired"
                    );
                    "desire"
                }
                Effect::Say(_) => "say",
            };
            count(&self.metrics.effects, kind);
        }
    }
}

/// An engine for `book` with every subscriber as the ledger has them.
async fn engine_of(book: &Book, ledger: &Ledger) -> Result<Engine, TaskError> {
    let mut engine = Engine::new(book.policy.clone(), &book.directory)?;
    for (subscriber, state) in ledger.with(Ledger::engine_rows).await? {
        let state = parse_state(&subscriber, &state)?;
        engine.restore(subscriber, state);
    }
    Ok(engine)
}

fn parse_state(subscriber: &SubscriberId, state: &str) -> Result<SubscriberState, LedgerError> {
    serde_json::from_str(state).map_err(|error| LedgerError::Corrupt {
        what: format!("engine state of {subscriber}"),
        why: error.to_string(),
    })
}

/// The action taken, or the last gate that was reached and not passed.
fn outcome(decision: &Decision) -> String {
    if let Some(action) = &decision.chosen {
        return action.clone();
    }
    let furthest = decision
        .candidates
        .iter()
        .filter_map(|candidate| candidate.stopped_by.as_ref())
        .max_by_key(|stopped| stopped.gate);
    furthest.map_or_else(|| "none".to_owned(), |stopped| format!("gate:{:?}", stopped.gate).to_lowercase())
}

const fn tap_result(tapped: Tapped) -> &'static str {
    match tapped {
        Tapped::Accepted => "accepted",
        Tapped::Already => "already",
        Tapped::Expired => "expired",
        Tapped::Unknown => "unknown",
        Tapped::Stopped => "stopped",
    }
}
