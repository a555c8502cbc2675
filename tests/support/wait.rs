//! Waiting for something to become true, with a deadline and never longer than needed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends every wait of this process with an error: someone pressed Ctrl-C.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// True after [`interrupt`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Looks until `condition` gives something, and gives that; fails after `within`, saying what did not happen and what
/// was seen last, or at once where looking itself fails.
pub fn until<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if interrupted() {
            bail!("interrupted");
        }
        let last = match condition()? {
            Seen::Done(value) => return Ok(value),
            Seen::NotYet(last) => last,
        };
        if Instant::now() >= deadline {
            bail!("{what} did not happen within {} s; last seen: {last}", within.as_secs_f32());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What a look at a condition gave.
pub enum Seen<T> {
    /// It holds.
    Done(T),
    /// It does not hold yet; in words, what there is instead.
    NotYet(String),
}

impl<T> Seen<T> {
    /// `value` where `holds`, otherwise `last` in words.
    pub fn when(holds: bool, value: T, last: impl std::fmt::Display) -> Self {
        if holds { Self::Done(value) } else { Self::NotYet(last.to_string()) }
    }
}
