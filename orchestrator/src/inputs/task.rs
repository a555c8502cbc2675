//! The engine task: one input at a time, stepped, made durable, answered.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use usher_models::units::{Micros, SubscriberId};

use super::intake::{Intake, Taken};
use super::standing::Standing;
use super::{Book, Refusal, Request, keeping};
use crate::advice::{self, Offer, Tapped};
use crate::agents::Batch;
use crate::api;
use crate::days::{Keeper, RecordConfig};
use crate::elements::Wake;
use crate::engine::io::{AskPartner, Decision, DecisionId, Digest, Effect, Elements, Input, Mode, TapState};
use crate::engine::{Counters, Engine, SubscriberState};
use crate::identity::Directory;
use crate::ledger::{BatchMark, InputRecord, Journaled, Ledger, LedgerError};
use crate::metrics::{Anonymous, DecisionLabels, Metrics, Reason, count};
use crate::policy::{Policy, PolicyErrors};

/// The engine is looked at this often at least.
const TICK: Duration = Duration::from_secs(1);
/// And at most this often where nothing comes in.
const TICK_LEAST: Duration = Duration::from_millis(10);

/// A snapshot is taken this often where anything happened, and after so many bytes of the journal: they are read again
/// after a restart.
const SNAPSHOT_EVERY: Duration = Duration::from_mins(1);
const JOURNAL_MAX: usize = 64 << 20;

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
    /// Takes questions to partners; without it nobody answers.
    pub partners: Option<mpsc::Sender<AskPartner>>,
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
    intake: Intake,
    pub(super) book: Arc<Book>,
    pub(super) standing: Standing,
    ledger: Ledger,
    metrics: Metrics,
    bells: Bells,
    in_force: watch::Sender<Arc<Book>>,
    now: Micros,
    pruned: Micros,
    counted: Counters,
    /// The last position of the journal.
    position: u64,
    keeping: Keeping,
    /// Where days are kept; `None`: nowhere.
    days: Option<Arc<Mutex<Keeper>>>,
}

/// When the next snapshot is to be taken, and the one being written.
#[derive(Debug)]
struct Keeping {
    /// As soon as can be: there is none of this engine yet.
    at_once: bool,
    /// When the last one was taken, and where.
    last: (Micros, u64),
    /// Bytes of the journal since.
    journaled: usize,
    /// The one being written, and where it was taken.
    writing: Option<(u64, JoinHandle<std::io::Result<()>>)>,
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
        elements: Elements,
        record: Option<RecordConfig>,
    ) -> Result<Self, TaskError> {
        let policies = ledger.with(Ledger::policies).await?;
        let (standing, book, change) = Standing::resolve(book, policies, Micros::now());
        in_force.send_replace(book.clone());
        let (rows, marks) = ledger.with(|ledger| Ok((ledger.sessions()?, ledger.batch_marks()?))).await?;
        let end = ledger.with(Ledger::journal_end).await?;
        let taken_up = ledger.with(keeping::take_up).await?;
        let is_new = taken_up.is_none();
        let (engine, position) = match taken_up {
            Some(taken_up) => taken_up,
            None => (engine_of(&book, &ledger).await?, end),
        };
        book.policy.check(book.directory.plans())?;
        let counted = engine.counters();
        let mut task = Self {
            intake: Intake::new(engine, rows, marks),
            book,
            standing,
            ledger,
            metrics,
            bells,
            in_force,
            now: Micros::now(),
            pruned: Micros::default(),
            counted,
            position,
            keeping: Keeping { at_once: is_new, last: (Micros::now(), 0), journaled: 0, writing: None },
            days: record.map(|config| Arc::new(Mutex::new(Keeper::new(config)))),
        };
        let stopped = task.ledger.with(Ledger::stopped).await?;
        if stopped {
            tracing::warn!("the kill switch is on: nothing is decided until `usher resume`");
        }
        let mut record = task.record();
        record.policy = change;
        if is_new {
            task.begin_journal(&mut record).await?;
        } else if task.engine().policy().revision() != task.book.policy.revision() {
            let book = task.book.clone();
            task.go_under(&book.policy, &book.directory, &mut record).await?;
        }
        for input in task.intake.engine.inputs_to(&task.book.directory) {
            task.step(&mut record, input);
        }
        task.step(&mut record, Input::Stop(stopped));
        if *task.engine().elements() != elements {
            task.step(&mut record, Input::Elements(elements));
        }
        task.reassign(&mut record).await?;
        task.commit(record).await?;
        if is_new {
            // A kill before there is a snapshot would take everything since along.
            task.written().await?;
        }
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
        if self.intake.engine.is_crossing() {
            return Duration::ZERO;
        }
        let due = self.intake.engine.next_due().into_iter().chain(self.standing.ends()).min();
        let due = due.map_or(TICK, |due| due.since(Micros::now()));
        due.clamp(TICK_LEAST, TICK)
    }

    /// The wall clock, which here never goes back.
    pub(super) fn advance(&mut self) -> Micros {
        self.now = self.now.max(Micros::now());
        self.now
    }

    pub(super) fn record(&self) -> InputRecord {
        InputRecord { at: self.now, ..InputRecord::default() }
    }

    async fn tick(&mut self) -> Result<(), TaskError> {
        let now = self.advance();
        if self.standing.ends().is_some_and(|ends| ends <= now) {
            tracing::warn!("the policy on trial was not confirmed in time");
            self.revert_policy().await?.ok();
        }
        let mut record = self.record();
        let engine = &self.intake.engine;
        let (due, watermark) = (engine.next_due().is_some_and(|due| due <= now), engine.watermark());
        self.step(&mut record, Input::Tick);
        // Time that passed and changed nothing needs no remembering.
        if !due && record.effects.is_empty() && self.intake.engine.watermark() == watermark {
            self.position -= record.journal.len() as u64;
            record.journal.clear();
        }
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
            Request::Pushed { decision, ok } => {
                self.advance();
                let mut record = self.record();
                self.step(&mut record, Input::Pushed { decision, ok });
                self.commit(record).await?;
            }
            Request::Answered { decision, offer } => {
                self.advance();
                let mut record = self.record();
                self.step(&mut record, Input::Answered { decision, offer });
                self.commit(record).await?;
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
        let now = self.advance();
        let applied = match self.intake.batch(batch, &self.book.directory, now) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Taken::Before(last)) => {
                self.metrics.batches_duplicate.inc();
                return Ok(Ok(last));
            }
            Ok(Taken::Now(applied)) => applied,
        };
        if applied.missing > 0 {
            self.metrics.batches_missing.inc_by(applied.missing);
            let missing = applied.missing;
            tracing::warn!(agent, missing, "batches were acknowledged by a ledger that is not this one");
        }
        for (&reason, &times) in &applied.ignored {
            self.metrics.records_ignored.get_or_create(&Reason { reason }).inc_by(times);
        }
        for took in &applied.verdicts {
            self.metrics.verdict_seconds.observe(took.as_secs_f64());
        }
        let kept = applied.kept;
        self.metrics.usage_records.inc_by(u64::try_from(kept.usage_records()).unwrap_or(u64::MAX));
        for usage in kept.anonymous() {
            let labels = Anonymous { name: usage.anonymous.clone(), direction: usage.direction.name() };
            self.metrics.anonymous_bytes.get_or_create(&labels).inc_by(usage.bytes);
        }
        self.metrics.lateness_seconds.observe(now.since(kept.end()).as_secs_f64());
        let mut record = self.record();
        record.effects = applied.effects;
        self.position += 1;
        let (position, input, effects) = (self.position, applied.input, applied.digest);
        record.journal.push(Journaled { position, input, effects });
        record.batch = Some(kept.record(&self.intake.engine));
        self.commit(record).await?;
        if self.intake.has_many_boots(&agent) {
            let marks = self.ledger.with(Ledger::batch_marks).await?;
            let of_agent = marks.into_iter().filter(|(of, _)| *of == agent).map(|(_, mark)| mark);
            self.intake.set_boots(&agent, of_agent);
        }
        self.metrics.batches_applied.inc();
        Ok(Ok(mark))
    }

    /// Resolves the sessions by the profiles in force.
    pub(super) async fn reassign(&mut self, record: &mut InputRecord) -> Result<(), TaskError> {
        let rows = self.ledger.with(Ledger::sessions).await?;
        let directory = &self.book.directory;
        let (reassigned, observed) =
            self.intake.sessions.reassign(rows, directory, &self.intake.engine, self.now);
        for observed in observed {
            self.step(record, Input::Observed(observed));
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
                    declined: row.declined,
                });
                let _ = answer.send(offer);
            }
            advice::Ask::Tap { decision, at, answer } => {
                let tapped = self.tap(decision, at).await?;
                count(&self.metrics.taps, tap_result(tapped));
                let _ = answer.send(tapped);
            }
            advice::Ask::Decline { decision, at, answer } => {
                let tapped = self.decline(decision, at).await?;
                count(&self.metrics.taps, tap_result(tapped));
                let _ = answer.send(tapped);
            }
            advice::Ask::Stop { decision, answer } => {
                let row = self.ledger.with(move |ledger| ledger.message(&decision)).await?;
                let known = row.is_some();
                if let Some(row) = row {
                    self.consent(row.say.subscriber, false).await?;
                }
                let _ = answer.send(known);
            }
        }
        Ok(())
    }

    async fn decline(&mut self, decision: DecisionId, at: Micros) -> Result<Tapped, TaskError> {
        let now = self.advance();
        let id = decision.clone();
        let row = self.ledger.with(move |ledger| ledger.message(&id)).await?;
        match row {
            None => return Ok(Tapped::Unknown),
            Some(row) if row.tapped.is_some() => return Ok(Tapped::Already),
            Some(row) if row.declined.is_some() => return Ok(Tapped::Declined),
            Some(row) if row.say.expires <= at => return Ok(Tapped::Expired),
            Some(_) => {}
        }
        match self.intake.engine.tap_state(&decision, now) {
            TapState::Open => {}
            other => return Ok(closed(other)),
        }
        let mut record = self.record();
        self.step(&mut record, Input::Declined(decision.clone()));
        tracing::info!(%decision, "offer declined");
        record.declined = Some(decision);
        self.commit(record).await?;
        Ok(Tapped::Declined)
    }

    /// Consent to advice as the person gives it. False: nobody of this id.
    async fn consent(&mut self, subscriber: SubscriberId, advice: bool) -> Result<bool, TaskError> {
        if self.intake.engine.line(&subscriber).is_none() {
            return Ok(false);
        }
        self.advance();
        let mut record = self.record();
        tracing::info!(%subscriber, advice, "consent to advice told");
        self.step(&mut record, Input::Consent { subscriber, advice });
        self.commit(record).await?;
        Ok(true)
    }

    async fn tap(&mut self, decision: DecisionId, at: Micros) -> Result<Tapped, TaskError> {
        let now = self.advance();
        let id = decision.clone();
        // The ledger remembers taps longer than the engine does.
        let row = self.ledger.with(move |ledger| ledger.message(&id)).await?;
        match row {
            None => return Ok(Tapped::Unknown),
            Some(row) if row.tapped.is_some() => return Ok(Tapped::Already),
            Some(row) if row.declined.is_some() => return Ok(Tapped::Declined),
            Some(row) if row.say.expires <= at => return Ok(Tapped::Expired),
            Some(_) if self.intake.engine.mode() == Mode::Stop => return Ok(Tapped::Stopped),
            Some(_) => {}
        }
        match self.intake.engine.tap_state(&decision, now) {
            TapState::Open => {}
            other => return Ok(closed(other)),
        }
        let mut record = self.record();
        self.step(&mut record, Input::Tapped(decision.clone()));
        tracing::info!(%decision, "tap accepted");
        record.tap = Some(decision);
        self.commit(record).await?;
        Ok(Tapped::Accepted)
    }

    async fn api(&mut self, ask: api::Ask) -> Result<(), TaskError> {
        match ask {
            api::Ask::Stop { stop, answer } => {
                let was_stopped = self.ledger.with(Ledger::stopped).await?;
                let resumes = !stop && self.intake.engine.guard().rolled_back.is_some();
                if resumes {
                    self.advance();
                    let mut record = self.record();
                    self.step(&mut record, Input::Resume);
                    self.commit(record).await?;
                    tracing::warn!("resumed after a roll-back: the canary begins anew");
                }
                let changed = resumes || was_stopped != stop;
                if was_stopped != stop {
                    self.advance();
                    let mut record = self.record();
                    self.step(&mut record, Input::Stop(stop));
                    record.stop = Some(stop);
                    self.commit(record).await?;
                    tracing::warn!(stop, "kill switch turned");
                }
                let _ = answer.send(changed);
            }
            api::Ask::Guard { answer } => {
                let engine = &self.intake.engine;
                let (share, steps) = engine.guard_share();
                let _ = answer.send(api::GuardNow { state: engine.guard().clone(), share, steps });
            }
            api::Ask::Consent { subscriber, advice, answer } => {
                let _ = answer.send(self.consent(subscriber, advice).await?);
            }
            api::Ask::Complaint { subscriber, answer } => {
                let known = self.intake.engine.line(&subscriber).is_some();
                if known {
                    self.advance();
                    let mut record = self.record();
                    tracing::info!(%subscriber, "complaint told");
                    self.step(&mut record, Input::Complaint(subscriber));
                    self.commit(record).await?;
                }
                let _ = answer.send(known);
            }
            api::Ask::Apply { policy, confirm_within, answer } => {
                let _ = answer.send(self.apply_policy(*policy, confirm_within).await?);
            }
            api::Ask::Confirm { answer } => {
                let _ = answer.send(self.confirm_policy().await?);
            }
            api::Ask::Revert { answer } => {
                let _ = answer.send(self.revert_policy().await?);
            }
            api::Ask::Look { subscriber, answer } => {
                let _ = answer.send(self.intake.engine.seen(&subscriber, Micros::now()));
            }
        }
        Ok(())
    }

    /// Has the engine take in an input, now; what it leads to, and the input itself, is the record's.
    pub(super) fn step(&mut self, record: &mut InputRecord, input: Input) {
        self.position += 1;
        let encoded = keeping::encode(self.now, &input);
        let effects = self.intake.engine.step(self.now, input);
        record.journal.push(Journaled {
            position: self.position,
            input: encoded,
            effects: Digest::of(&effects),
        });
        record.effects.extend(effects);
    }

    /// The journal begins anew, for an engine made of the ledger's rows.
    async fn begin_journal(&mut self, record: &mut InputRecord) -> Result<(), TaskError> {
        record.journal_anew = true;
        self.end_day().await
    }

    /// The engine goes on under another policy. Until there is a snapshot under it, the one before and the journal, which
    /// has the change, make the engine again.
    pub(super) async fn go_under(
        &mut self,
        policy: &Policy,
        directory: &Directory,
        record: &mut InputRecord,
    ) -> Result<(), TaskError> {
        self.end_day().await?;
        let input = Input::Policy {
            file_name: policy.file_name().to_owned(),
            text: policy.text().to_owned(),
            plans: directory.plans().clone(),
            countries: directory.countries().clone(),
        };
        self.step(record, input);
        Ok(())
    }

    /// A day is of one policy: it ends with what the journal has, and another begins with the next snapshot, which is
    /// soon.
    async fn end_day(&mut self) -> Result<(), TaskError> {
        self.written().await?;
        if let Some(days) = self.days.clone() {
            let metrics = self.metrics.clone();
            let end = move |ledger: &Ledger| {
                keeping::end_day(&days, ledger, &metrics);
                Ok(())
            };
            self.ledger.with(end).await?;
        }
        // A position is left out, so that nobody takes what follows for the same day's.
        self.position += 1;
        self.keeping.at_once = true;
        Ok(())
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.intake.engine
    }

    pub(super) fn tell_in_force(&self) {
        self.in_force.send_replace(self.book.clone());
    }

    /// Takes a snapshot where it is time, to be written beside all else; the journal up to one that is written is over.
    async fn keep(&mut self) -> Result<(), TaskError> {
        if self.keeping.writing.as_ref().is_some_and(|(_, writing)| writing.is_finished()) {
            self.written().await?;
        }
        let keeping = &mut self.keeping;
        let is_time = self.now.since(keeping.last.0) >= SNAPSHOT_EVERY && self.position > keeping.last.1;
        if keeping.writing.is_some() || !(keeping.at_once || is_time || keeping.journaled >= JOURNAL_MAX) {
            return Ok(());
        }
        let snapshot = self.intake.engine.snapshot(self.position);
        let learned = serde_json::to_string(self.intake.engine.learned()).map_err(LedgerError::Encode)?;
        self.ledger.with(move |ledger| ledger.keep_learned(&learned)).await?;
        let (ledger, metrics, now) = (self.ledger.clone(), self.metrics.clone(), self.now);
        let days = self.days.clone().map(|days| (days, self.book.policy.clone()));
        let writing = tokio::task::spawn_blocking(move || {
            keeping::write(&snapshot, &ledger)?;
            // Before the journal is forgotten up to here.
            if let Some((days, policy)) = days {
                keeping::keep_day(&days, &ledger, &snapshot, &policy, now, &metrics);
            }
            Ok(())
        });
        *keeping = Keeping {
            at_once: false,
            last: (self.now, self.position),
            journaled: 0,
            writing: Some((self.position, writing)),
        };
        Ok(())
    }

    /// Waits for the snapshot that is being written, if any; what the journal has of the time before it is over.
    async fn written(&mut self) -> Result<(), TaskError> {
        let Some((position, writing)) = self.keeping.writing.take() else { return Ok(()) };
        match writing.await {
            Ok(Ok(())) => self.ledger.with(move |ledger| ledger.journal_forget(position)).await?,
            Ok(Err(error)) => tracing::warn!(%error, "the engine's snapshot cannot be written"),
            Err(error) => tracing::warn!(%error, "the engine's snapshot was given up"),
        }
        Ok(())
    }

    /// Makes what a step led to durable, with the engine's own state, and calls those who are to carry it out. A failure
    /// ends the task and with it the process: memory is ahead of the ledger then, and the ledger is right.
    pub(super) async fn commit(&mut self, mut record: InputRecord) -> Result<(), TaskError> {
        self.count_left_out();
        for (subscriber, state) in self.intake.engine.take_dirty() {
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
        self.keeping.journaled += record.journal.iter().map(|row| row.input.len()).sum::<usize>();
        let asks: Vec<AskPartner> = record
            .effects
            .iter()
            .filter_map(|effect| if let Effect::Ask(ask) = effect { Some(ask.clone()) } else { None })
            .collect();
        let began = Instant::now();
        let applied = self.ledger.with(move |ledger| ledger.apply(&record)).await?;
        self.metrics.ledger_seconds.observe(began.elapsed().as_secs_f64());
        for ask in asks {
            // With no room the time for an answer runs out, which is an answer.
            if self.bells.partners.as_ref().is_none_or(|partners| partners.try_send(ask).is_err()) {
                count(&self.metrics.partner_answers, "not_asked");
            }
        }
        if !applied.pushes.is_empty() {
            self.bells.pushes.wake();
        }
        if !applied.messages.is_empty() {
            self.bells.messages.notify_one();
        }
        self.keep().await
    }

    /// What the engine could make nothing of since the last look.
    fn count_left_out(&mut self) {
        let (now, before) = (self.intake.engine.counters(), self.counted);
        for (reason, now, before) in [
            ("engine_late", now.late, before.late),
            ("engine_misdated", now.misdated, before.misdated),
            ("engine_stranger", now.strangers, before.strangers),
            ("engine_sessions_full", now.sessions_refused, before.sessions_refused),
            ("engine_boundary_skipped", now.boundaries_skipped, before.boundaries_skipped),
            ("engine_agent_overtaken", now.overtaken, before.overtaken),
            ("engine_segments_full", now.segments_full, before.segments_full),
        ] {
            if now > before {
                self.metrics.records_ignored.get_or_create(&Reason { reason }).inc_by(now - before);
            }
        }
        self.counted = now;
        let guard = self.intake.engine.guard();
        self.metrics.guard_step.set(i64::try_from(guard.step + 1).unwrap_or(i64::MAX));
        self.metrics.guard_rolled_back.set(i64::from(guard.rolled_back.is_some()));
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
                Effect::Withdraw(_) => "withdraw",
                Effect::Ask(_) => "ask",
                Effect::Guarded(state) => {
                    if let Some((_, why)) = &state.rolled_back {
                        tracing::error!(why, "rolled back: what decisions set is taken back");
                    } else {
                        tracing::info!(step = state.step + 1, "the canary's step begins");
                    }
                    "guarded"
                }
            };
            count(&self.metrics.effects, kind);
        }
    }
}

/// An engine for `book` with every subscriber as the ledger has them.
async fn engine_of(book: &Book, ledger: &Ledger) -> Result<Engine, TaskError> {
    let mut engine = Engine::new(book.policy.clone(), &book.directory)?;
    // What was learnt since the last snapshot is in the journal, which was for another engine.
    if let Some(learned) = ledger.with(Ledger::learned).await? {
        engine.learn_from(learned);
    }
    if let Some(guard) = ledger.with(Ledger::guard).await? {
        let guard = serde_json::from_str(&guard).map_err(|error| LedgerError::Corrupt {
            what: "where the canary stands".to_owned(),
            why: error.to_string(),
        })?;
        engine.guard_from(guard);
    }
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

/// What a tap on a link that is not open comes to.
const fn closed(state: TapState) -> Tapped {
    match state {
        TapState::Open | TapState::Used => Tapped::Already,
        TapState::Declined => Tapped::Declined,
        TapState::Expired => Tapped::Expired,
        TapState::Unknown => Tapped::Unknown,
    }
}

const fn tap_result(tapped: Tapped) -> &'static str {
    match tapped {
        Tapped::Accepted => "accepted",
        Tapped::Already => "already",
        Tapped::Declined => "declined",
        Tapped::Expired => "expired",
        Tapped::Unknown => "unknown",
        Tapped::Stopped => "stopped",
    }
}
