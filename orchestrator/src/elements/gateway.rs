//! The gateway's own data plane as an element: its agent is asked over its uplink.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use usher_models::telemetry;

/// Why an agent did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No agent of that name has ever been let in.
    #[error("no agent of that name is known")]
    UnknownAgent,
    /// It has no uplink at present.
    #[error("the agent is not connected")]
    NotConnected,
    /// No answer came in time.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// Too many asks are under way on its uplink.
    #[error("too many steps are under way on the agent's uplink")]
    Busy,
    /// The uplink closed before the answer came.
    #[error("the agent's uplink closed before it answered")]
    Closed,
}

/// An answer on its way.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<telemetry::Report, AskError>> + Send + 'a>>;

/// All that is needed of the agents' uplinks: send one step, get the report on it.
///
/// Reports are matched to the ask by the agent and the push id; one ask at a time is under way for such a pair.
pub trait Ask: Send + Sync {
    /// Asks `agent` and waits for its report, at most for `timeout`.
    fn ask<'a>(&'a self, agent: &'a str, push: telemetry::Push, timeout: Duration) -> Answer<'a>;
}
