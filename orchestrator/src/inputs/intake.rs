//! From a batch to what it leads to, in one thread and without a clock: dedup, whose it is, the engine. Sans-I/O.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use usher_models::units::Micros;

use super::sessions::{Kept, Resolved, Sessions};
use super::{Refusal, keeping};
use crate::agents::Batch;
use crate::engine::Engine;
use crate::engine::io::{Digest, Effect, Input};
use crate::identity::Directory;
use crate::ledger::{BatchMark, SessionRow};

/// Boots of one agent remembered; beyond them the ledger's own selection is taken.
const BOOTS_MAX: usize = 64;

/// The engine and what stands before it.
#[derive(Debug)]
pub struct Intake {
    /// What decides.
    pub engine: Engine,
    pub(super) sessions: Sessions,
    /// Last sequence applied, by agent and boot.
    marks: HashMap<String, HashMap<Vec<u8>, u64>>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Taken {
    /// It was applied before: the last one that was.
    Before(BatchMark),
    /// It was applied now.
    Now(Box<Applied>),
}

/// What applying a batch led to.
#[derive(Debug)]
pub struct Applied {
    /// What the engine was given, for the journal.
    pub input: Vec<u8>,
    /// What it answered, likewise.
    pub digest: Option<Digest>,
    /// To be made durable, then carried out.
    pub effects: Vec<Effect>,
    /// For the ledger.
    pub kept: Kept,
    /// Records left out or set right, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
    /// From first packet to verdict, flow by flow.
    pub verdicts: Vec<Duration>,
    /// Batches of its boot that were acknowledged by a ledger that is not this one.
    pub missing: u64,
}

impl Intake {
    /// As the ledger has it.
    pub fn new(
        engine: Engine,
        rows: impl IntoIterator<Item = SessionRow>,
        marks: impl IntoIterator<Item = (String, BatchMark)>,
    ) -> Self {
        let sessions = Sessions::restore(rows, &engine);
        let mut intake = Self { engine, sessions, marks: HashMap::new() };
        for (agent, mark) in marks {
            intake.mark(&agent, &mark);
        }
        intake
    }

    /// After a snapshot: open sessions are those of the engine.
    pub fn resume(engine: Engine, marks: impl IntoIterator<Item = (String, BatchMark)>) -> Self {
        let sessions = Sessions::of_engine(&engine);
        let mut intake = Self { engine, sessions, marks: HashMap::new() };
        for (agent, mark) in marks {
            intake.mark(&agent, &mark);
        }
        intake
    }

    /// Takes in one batch at `now`: once, and in its turn.
    pub fn batch(&mut self, batch: Batch, directory: &Directory, now: Micros) -> Result<Taken, Refusal> {
        let (agent, mark) = (batch.agent.clone(), batch.mark.clone());
        let last = self.marks.get(&agent).and_then(|boots| boots.get(&mark.boot)).copied();
        let missing = match last {
            Some(last) if mark.sequence <= last => {
                return Ok(Taken::Before(BatchMark { boot: mark.boot, sequence: last }));
            }
            Some(last) if mark.sequence > last + 1 => {
                return Err(Refusal::Gap { got: mark.sequence, expected: last + 1 });
            }
            Some(_) => 0,
            None => mark.sequence - 1,
        };
        let Resolved { observed, kept, ignored, verdicts } =
            self.sessions.resolve(batch, directory, &self.engine);
        let input = Input::Observed(observed);
        let journaled = keeping::encode(now, &input);
        let effects = self.engine.step(now, input);
        let digest = Digest::of(&effects);
        self.mark(&agent, &mark);
        let input = journaled;
        Ok(Taken::Now(Box::new(Applied { input, digest, effects, kept, ignored, verdicts, missing })))
    }

    fn mark(&mut self, agent: &str, mark: &BatchMark) {
        let boots = self.marks.entry(agent.to_owned()).or_default();
        boots.insert(mark.boot.clone(), mark.sequence);
    }

    /// Agents of which more boots are remembered than are of use.
    pub(super) fn has_many_boots(&self, agent: &str) -> bool {
        self.marks.get(agent).is_some_and(|boots| boots.len() > BOOTS_MAX)
    }

    /// The boots of an agent as the ledger, which forgets old ones, has them.
    pub(super) fn set_boots(&mut self, agent: &str, marks: impl Iterator<Item = BatchMark>) {
        let boots = marks.map(|mark| (mark.boot, mark.sequence)).collect();
        self.marks.insert(agent.to_owned(), boots);
    }
}
