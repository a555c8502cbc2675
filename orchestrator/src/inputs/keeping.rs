//! How the engine comes back after the process is gone: a snapshot in a file, and the ledger's journal since.
//!
//! Each input, another policy among them, is in the journal in the very transaction that holds what it led to. A snapshot
//! says at which position of the journal it was taken, and counts only while the journal still has that position; what
//! follows is stepped again, and its effects, which the ledger has, are dropped. Without a snapshot that fits, the engine is
//! made of the ledger's rows: then only windows begin anew.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use usher_models::units::Micros;

use crate::days::{DayError, Keeper};
use crate::engine::Engine;
use crate::engine::io::Input;
use crate::engine::snapshot::Snapshot;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::{Metrics, Reason};
use crate::policy::Policy;

/// Inputs read of the journal at a time.
const AT_ONCE: u32 = 256;
/// Bytes of a file read or written at a time.
const BUFFER: usize = 1 << 20;

/// Where the snapshot of a ledger's engine is.
pub(super) fn file_of(ledger: &Path) -> PathBuf {
    ledger.with_file_name("engine.snapshot")
}

/// An input as the journal has it.
pub(super) fn encode(at: Micros, input: &Input) -> Vec<u8> {
    postcard::to_allocvec(&(at, input)).expect("numbers, words and lists can be packed")
}

/// The engine as the last process left it, under the policy of then, and the position it is at; `None`: no snapshot fits.
pub(super) fn take_up(ledger: &Ledger) -> Result<Option<(Engine, u64)>, LedgerError> {
    let path = file_of(ledger.path());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the engine's snapshot cannot be opened: windows begin anew");
            return Ok(None);
        }
    };
    let read = Engine::from_snapshot(BufReader::with_capacity(BUFFER, file));
    let (mut engine, mut position) = match read {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!("the snapshot {} {error}: windows begin anew", path.display());
            return Ok(None);
        }
    };
    if !ledger.journal_has(position)? {
        tracing::info!("the snapshot is older than the journal: windows begin anew");
        return Ok(None);
    }
    loop {
        let inputs = ledger.journal_after(position, AT_ONCE)?;
        if inputs.is_empty() {
            // What changed is in the ledger.
            engine.take_dirty();
            return Ok(Some((engine, position)));
        }
        for row in inputs {
            let (at, input): (Micros, Input) = postcard::from_bytes(&row.input).map_err(|error| {
                LedgerError::Corrupt { what: format!("journal {}", row.position), why: error.to_string() }
            })?;
            engine.step(at, input);
            position = row.position;
        }
    }
}

/// Adds to the day what came since the last snapshot. A day that cannot be written is given up, and the next snapshot begins
/// another; the daemon goes on.
pub(super) fn keep_day(
    days: &Mutex<Keeper>,
    ledger: &Ledger,
    snapshot: &Snapshot,
    policy: &Policy,
    now: Micros,
    metrics: &Metrics,
) {
    ledger.durable_step();
    let mut keeper = days.lock().unwrap_or_else(PoisonError::into_inner);
    match keeper.keep(ledger, snapshot, policy, now) {
        Ok(recorded) => {
            metrics.record_inputs.inc_by(recorded.inputs);
            metrics.record_bytes.set(i64::try_from(recorded.bytes).unwrap_or(i64::MAX));
            for (reason, days) in [("age", recorded.aged), ("room", recorded.crowded)] {
                metrics.record_days_removed.get_or_create(&Reason { reason }).inc_by(days);
            }
        }
        Err(error) => give_up(&mut keeper, &error, metrics),
    }
}

/// Ends the day with what the journal still has.
pub(super) fn end_day(days: &Mutex<Keeper>, ledger: &Ledger, metrics: &Metrics) {
    ledger.durable_step();
    let mut keeper = days.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = keeper.end(ledger) {
        give_up(&mut keeper, &error, metrics);
    }
}

fn give_up(keeper: &mut Keeper, error: &DayError, metrics: &Metrics) {
    metrics.record_failures.inc();
    tracing::warn!("the day {error}: recording goes on with another file");
    keeper.give_up();
}

/// Writes a snapshot in place of the last one: whole, or not at all.
pub(super) fn write(snapshot: &Snapshot, ledger: &Ledger) -> io::Result<()> {
    let path = file_of(ledger.path());
    ledger.durable_step();
    let unfinished = path.with_extension("unfinished");
    let mut file = BufWriter::with_capacity(BUFFER, File::create(&unfinished)?);
    snapshot.write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    ledger.durable_step();
    std::fs::rename(&unfinished, &path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
