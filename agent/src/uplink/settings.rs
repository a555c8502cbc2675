//! Settings as they come down the uplink: which ones hold, which ones hold provisionally and until when. Sans-I/O.
//!
//! One push, seen from this gateway:
//!
//! ```text
//!             Prepare, checked               Confirm, read back
//!   (none) ---------------------> Held ---------------------------> Confirmed
//!     ^                            |                                    |
//!     |                            |  Cancel; the deadline;             |  Prepare again: held again,
//!     |  Prepare again             v  what is read back differs         v  to the same settings
//!     +------------------------- Undone                                Held
//! ```
//!
//! Held settings are in force. Undone means that what was confirmed before is in force again, which happens by itself at
//! the deadline, also across a restart of the agent. A step that is repeated gets the answer it got before. Refuses a
//! revision below the running one, a session another push holds, and settings the gateway does not know; refusing
//! changes nothing.
//!
//! The shell carries out [`Command`]s in their order, the saving ones before anything that follows them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use usher_models::setting::Settings;
use usher_models::telemetry::{self, Stage, push::Step};
use usher_models::units::Micros;

use crate::service::Service;

/// The longest time settings may be held without a confirmation.
const MAX_HOLD: Duration = Duration::from_hours(1);

/// How many pushes may be held at a time, and how many sessions one of them may touch.
const MAX_HELD: usize = 1_024;

/// Where a push stands. Kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushRecord {
    /// In force until the deadline.
    Held {
        /// When it is undone by itself.
        deadline: Micros,
        /// What is in force, by session.
        desired: BTreeMap<String, Settings>,
    },
    /// In force for good.
    Confirmed {
        /// Since when.
        at: Micros,
    },
    /// Taken back.
    Undone {
        /// Since when.
        at: Micros,
        /// Why.
        why: String,
    },
}

/// What the store keeps of settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// By session.
    pub confirmed: BTreeMap<String, Settings>,
    /// By push.
    pub pushes: BTreeMap<String, PushRecord>,
}

/// What changes in the store, in one transaction; `None` removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Confirmed settings by session.
    pub settings: Vec<(String, Option<Settings>)>,
    /// By push.
    pub pushes: Vec<(String, Option<PushRecord>)>,
}

/// What happens to settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The orchestrator wants a step of a push done.
    Step(telemetry::Push),
    /// The shell has carried out a [`Command::Verify`].
    Verified {
        /// As in the command.
        push: String,
        /// As in the command.
        sessions: Vec<String>,
        /// As in the command.
        toward: Stage,
        /// Whether the data plane runs what it should; if not, what differs.
        result: Result<(), String>,
    },
    /// These sessions are gone.
    Closed(Vec<String>),
    /// Time passes.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Make durable before going on.
    Save(Change),
    /// Put in force what holds for these sessions now (only with `write`), read it back, and report as
    /// [`Event::Verified`].
    Verify {
        /// The push it is for.
        push: String,
        /// Which sessions.
        sessions: Vec<String>,
        /// Whether to write before reading.
        write: bool,
        /// Where the push goes if all is well.
        toward: Stage,
    },
    /// Put in force what holds for these sessions now.
    Apply(Vec<String>),
    /// Answer the orchestrator.
    Answer(telemetry::Report),
}

/// All settings of the gateway and every push that is under way.
#[derive(Debug)]
pub struct Pushes {
    service: Service,
    kept: Kept,
    /// Which push holds a session.
    holders: BTreeMap<String, String>,
    max_ended: usize,
    next: Option<Micros>,
    ticked: Micros,
}

impl Pushes {
    /// Takes up what an earlier agent kept. `max_ended`: how many pushes that ended are remembered.
    pub fn new(service: Service, kept: Kept, max_ended: usize, now: Micros) -> Self {
        let mut pushes = Self { service, kept, holders: BTreeMap::new(), max_ended, next: None, ticked: now };
        pushes.holders = pushes.held().flat_map(|(push, _, desired)| holders(push, desired)).collect();
        pushes.next = pushes.when_next();
        pushes
    }

    /// What settings mean here.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The settings in force for a session, held or confirmed.
    pub fn in_force(&self, session: &str) -> Option<&Settings> {
        self.held()
            .find_map(|(_, _, desired)| desired.get(session))
            .or_else(|| self.kept.confirmed.get(session))
    }

    /// When the next hold or setting ends by itself.
    pub fn next(&self) -> Option<Micros> {
        self.next
    }

    /// Every session that something is kept for.
    pub fn sessions(&self) -> BTreeSet<String> {
        self.holders.keys().chain(self.kept.confirmed.keys()).cloned().collect()
    }

    /// One event at a time; `is_open` says which sessions there are.
    pub fn handle(&mut self, now: Micros, event: Event, is_open: impl Fn(&str) -> bool) -> Vec<Command> {
        let commands = match event {
            Event::Step(telemetry::Push { push, step: Some(step) }) => self.step(now, push, step, is_open),
            Event::Step(telemetry::Push { push, step: None }) => {
                vec![refuse(push, "the push has no step this agent knows")]
            }
            Event::Verified { push, sessions, toward, result } => {
                self.verified(now, push, &sessions, toward, result)
            }
            Event::Closed(sessions) => self.closed(now, &sessions),
            Event::Tick => self.tick(now),
        };
        self.next = self.when_next();
        commands
    }

    fn step(
        &mut self,
        now: Micros,
        push: String,
        step: Step,
        is_open: impl Fn(&str) -> bool,
    ) -> Vec<Command> {
        // A deadline that has passed is over, even if no tick has come since.
        let mut commands = self.overdue(now);
        let record = self.kept.pushes.get(&push);
        commands.extend(match (record, step) {
            (_, Step::Read(read)) => match read.sessions.iter().find(|session| !is_open(session)) {
                Some(closed) => vec![refuse(push, not_open(closed))],
                None => vec![verify(push, read.sessions, false, Stage::Running)],
            },
            (Some(PushRecord::Held { desired, .. }), Step::Prepare(prepare))
                if *desired != wanted(&prepare.desired) =>
            {
                vec![refuse(push, "it is held here with other settings; cancel it first")]
            }
            (_, Step::Prepare(prepare)) => match self.check(&push, &prepare, is_open) {
                Err(why) => vec![refuse(push, why)],
                Ok(desired) => {
                    let within = Duration::from_millis(prepare.confirm_within_ms.into());
                    let sessions = desired.keys().cloned().collect();
                    let record = PushRecord::Held { deadline: now.after(within), desired };
                    vec![self.save(vec![], &push, record), verify(push, sessions, true, Stage::Prepared)]
                }
            },
            (Some(PushRecord::Held { desired, .. }), Step::Confirm(_)) => {
                let sessions = desired.keys().cloned().collect();
                vec![verify(push, sessions, false, Stage::Confirmed)]
            }
            (Some(PushRecord::Confirmed { .. }), Step::Confirm(_)) => {
                vec![answer(push, Stage::Confirmed, vec![])]
            }
            (Some(PushRecord::Undone { why, .. }), Step::Confirm(_)) => {
                let why = format!("it is not in force any more: {why}");
                vec![refuse(push, why)]
            }
            (None, Step::Confirm(_)) => vec![refuse(push, "it was never prepared here")],
            (Some(PushRecord::Held { .. }), Step::Cancel(_)) => {
                let mut commands = self.undo(now, &push, "cancelled");
                commands.push(answer(push, Stage::Cancelled, vec![]));
                commands
            }
            (Some(PushRecord::Confirmed { .. }), Step::Cancel(_)) => {
                vec![refuse(push, "it is confirmed already; push the former settings instead")]
            }
            (Some(PushRecord::Undone { .. }) | None, Step::Cancel(_)) => {
                vec![answer(push, Stage::Cancelled, vec![])]
            }
        });
        commands
    }

    fn verified(
        &mut self,
        now: Micros,
        push: String,
        sessions: &[String],
        toward: Stage,
        result: Result<(), String>,
    ) -> Vec<Command> {
        let record = self.kept.pushes.get(&push);
        match (record, toward, result) {
            (Some(PushRecord::Held { desired, .. }), Stage::Confirmed, Ok(())) => {
                let settings =
                    desired.iter().map(|(id, desired)| (id.clone(), Some(desired.clone()))).collect();
                let save = self.save(settings, &push, PushRecord::Confirmed { at: now });
                vec![save, answer(push, Stage::Confirmed, self.running(sessions))]
            }
            (_, toward, Ok(())) => vec![answer(push, toward, self.running(sessions))],
            (Some(PushRecord::Held { .. }), Stage::Prepared | Stage::Confirmed, Err(why)) => {
                let mut commands = self.undo(now, &push, &why);
                commands.push(refuse(push, why));
                commands
            }
            // What the data plane runs instead has no name: told as nothing, a push puts it right.
            (_, Stage::Running, Err(why)) => vec![Command::Answer(telemetry::Report {
                push,
                stage: Stage::Running.into(),
                error: why,
                running: vec![],
            })],
            (_, _, Err(why)) => vec![refuse(push, why)],
        }
    }

    fn closed(&mut self, now: Micros, sessions: &[String]) -> Vec<Command> {
        let gone: BTreeSet<&str> = sessions.iter().map(String::as_str).collect();
        let mut change = Change::default();
        for session in self.kept.confirmed.keys().filter(|session| gone.contains(session.as_str())) {
            change.settings.push((session.clone(), None));
        }
        for (push, deadline, desired) in self.held() {
            let mut left = desired.clone();
            left.retain(|session, _| !gone.contains(session.as_str()));
            let record = if left.is_empty() {
                PushRecord::Undone { at: now, why: "its sessions have closed".to_owned() }
            } else if left.len() < desired.len() {
                PushRecord::Held { deadline, desired: left }
            } else {
                continue;
            };
            change.pushes.push((push.to_owned(), Some(record)));
        }
        if change == Change::default() { vec![] } else { vec![self.keep(change)] }
    }

    fn tick(&mut self, now: Micros) -> Vec<Command> {
        let mut commands = self.overdue(now);
        let since = std::mem::replace(&mut self.ticked, now);
        let ended = |settings: &Settings| {
            let mut ends = settings.values.values().filter_map(|setting| setting.until);
            ends.any(|until| since < until && until <= now)
        };
        let ended: Vec<String> =
            self.sessions().into_iter().filter(|session| self.in_force(session).is_some_and(ended)).collect();
        if !ended.is_empty() {
            commands.push(Command::Apply(ended));
        }
        commands
    }

    /// Undoes every hold whose deadline has come.
    fn overdue(&mut self, now: Micros) -> Vec<Command> {
        let over: Vec<String> = self
            .held()
            .filter(|(_, deadline, _)| *deadline <= now)
            .map(|(push, ..)| push.to_owned())
            .collect();
        over.iter().flat_map(|push| self.undo(now, push, "it was not confirmed in time")).collect()
    }

    fn undo(&mut self, now: Micros, push: &str, why: &str) -> Vec<Command> {
        let Some(PushRecord::Held { desired, .. }) = self.kept.pushes.get(push) else { return vec![] };
        let sessions = desired.keys().cloned().collect();
        let record = PushRecord::Undone { at: now, why: why.to_owned() };
        vec![self.save(vec![], push, record), Command::Apply(sessions)]
    }

    fn check(
        &self,
        push: &str,
        prepare: &telemetry::Prepare,
        is_open: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Settings>, String> {
        let within = Duration::from_millis(prepare.confirm_within_ms.into());
        if within.is_zero() || within > MAX_HOLD {
            return Err(format!(
                "`confirm_within_ms: {}` is out of range: expected 1 to {}",
                within.as_millis(),
                MAX_HOLD.as_millis()
            ));
        }
        let desired = wanted(&prepare.desired);
        if desired.len() != prepare.desired.len() {
            return Err("a session stands in it twice".to_owned());
        }
        if desired.is_empty() || desired.len() > MAX_HELD {
            return Err(format!("{} sessions in one push: expected 1 to {MAX_HELD}", desired.len()));
        }
        if self.held().filter(|(other, ..)| *other != push).count() >= MAX_HELD {
            return Err(format!("{MAX_HELD} pushes are held already; confirm or cancel some"));
        }
        for (session, settings) in &desired {
            if !is_open(session) {
                return Err(not_open(session));
            }
            if let Some(other) = self.holders.get(session).filter(|other| *other != push) {
                return Err(format!(
                    "session `{session}` is held by push `{other}`; confirm or cancel that first"
                ));
            }
            let running = self.kept.confirmed.get(session).map_or(0, |settings| settings.revision);
            if settings.revision < running {
                return Err(format!(
                    "session `{session}` runs revision {running}, and {} is lower",
                    settings.revision
                ));
            }
            self.service.check(settings).map_err(|error| format!("session `{session}`: {error}"))?;
        }
        Ok(desired)
    }

    fn running(&self, sessions: &[String]) -> Vec<telemetry::Desired> {
        let none = Settings::default();
        sessions.iter().map(|session| self.in_force(session).unwrap_or(&none).to_desired(session)).collect()
    }

    fn held(&self) -> impl Iterator<Item = (&str, Micros, &BTreeMap<String, Settings>)> {
        self.kept.pushes.iter().filter_map(|(push, record)| match record {
            PushRecord::Held { deadline, desired } => Some((push.as_str(), *deadline, desired)),
            PushRecord::Confirmed { .. } | PushRecord::Undone { .. } => None,
        })
    }

    fn save(&mut self, settings: Vec<(String, Option<Settings>)>, push: &str, record: PushRecord) -> Command {
        self.keep(Change { settings, pushes: vec![(push.to_owned(), Some(record))] })
    }

    fn keep(&mut self, mut change: Change) -> Command {
        for (push, record) in &change.pushes {
            self.holders.retain(|_, holder| holder != push);
            if let Some(record) = record {
                if let PushRecord::Held { desired, .. } = record {
                    self.holders.extend(holders(push, desired));
                }
                self.kept.pushes.insert(push.clone(), record.clone());
            }
        }
        for (session, settings) in &change.settings {
            match settings {
                Some(settings) => self.kept.confirmed.insert(session.clone(), settings.clone()),
                None => self.kept.confirmed.remove(session),
            };
        }
        let mut ended: Vec<(Micros, String)> = self
            .kept
            .pushes
            .iter()
            .filter_map(|(push, record)| match record {
                PushRecord::Held { .. } => None,
                PushRecord::Confirmed { at } | PushRecord::Undone { at, .. } => Some((*at, push.clone())),
            })
            .collect();
        if ended.len() > self.max_ended {
            ended.sort_unstable();
            for (_, push) in ended.drain(..ended.len() - self.max_ended) {
                self.kept.pushes.remove(&push);
                change.pushes.push((push, None));
            }
        }
        Command::Save(change)
    }

    /// What ended since the last tick is still to come: the next tick sees to it.
    fn when_next(&self) -> Option<Micros> {
        let deadlines = self.held().map(|(_, deadline, _)| deadline).min();
        let held = self.held().flat_map(|(_, _, desired)| desired.values());
        let expiries = held
            .chain(self.kept.confirmed.values())
            .filter_map(|settings| Service::next_expiry(settings, self.ticked))
            .min();
        [deadlines, expiries].into_iter().flatten().min()
    }
}

fn holders(push: &str, desired: &BTreeMap<String, Settings>) -> impl Iterator<Item = (String, String)> {
    desired.keys().map(|session| (session.clone(), push.to_owned()))
}

fn wanted(desired: &[telemetry::Desired]) -> BTreeMap<String, Settings> {
    desired.iter().map(|desired| (desired.session.clone(), Settings::from_desired(desired))).collect()
}

fn not_open(session: &str) -> String {
    format!("session `{session}` is not open on this gateway")
}

fn verify(push: String, sessions: Vec<String>, write: bool, toward: Stage) -> Command {
    Command::Verify { push, sessions, write, toward }
}

fn answer(push: String, stage: Stage, running: Vec<telemetry::Desired>) -> Command {
    Command::Answer(telemetry::Report { push, stage: stage.into(), error: String::new(), running })
}

fn refuse(push: String, why: impl Into<String>) -> Command {
    Command::Answer(telemetry::Report {
        push,
        stage: Stage::Refused.into(),
        error: why.into(),
        running: vec![],
    })
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
