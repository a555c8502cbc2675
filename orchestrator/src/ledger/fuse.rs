//! Where tests kill the process: before any of its durable steps.

use std::sync::{Arc, Mutex, PoisonError};

/// Counts durable steps down to the one before which the process is killed. Everything that lasts shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fuse(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    taken: u64,
    kill_before: Option<u64>,
}

impl Fuse {
    pub(crate) fn killing_before(step: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Steps { taken: 0, kill_before: step })))
    }

    pub(crate) fn taken(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).taken
    }

    /// One step; false: the process is dead, and does nothing more.
    pub(crate) fn step(&self) -> bool {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = steps.kill_before.is_none_or(|kill| steps.taken < kill);
        steps.taken += u64::from(alive);
        alive
    }

    /// Nothing more is done.
    pub(crate) fn kill(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).kill_before = Some(0);
    }

    /// Whether the process is alive still.
    pub(crate) fn is_whole(&self) -> bool {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.kill_before.is_none_or(|kill| steps.taken < kill)
    }

    /// One step of a thread that ends where it is, without a word, if the process is dead.
    pub(crate) fn burn(&self) {
        if !self.step() {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}
