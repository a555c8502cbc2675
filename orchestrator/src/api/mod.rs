//! The northbound API: what operators and their scripts may read, the kill switch, and the policy in force. JSON over HTTP,
//! below `/v1`.
//!
//! Owns the doors it is reached through ([`listen`]) and the shapes it answers in ([`model`]). Refuses to change anything
//! but those two and what a person told the operator (consent to advice, a complaint): settings change by decisions and
//! taps, never by hand behind the ledger's back.
//!
//! ```text
//! usher -- Unix socket ---------------> router -- reads --> ledger
//!       \- TLS -- token compared -----/      \-- Ask::Stop --> engine task --> answered after the commit
//! ```

mod error;
mod explain;
pub(crate) mod lint;
pub mod listen;
mod metrics;
pub mod model;
mod policy;
mod routes;
mod token;
mod uplift;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use tokio::sync::{mpsc, oneshot, watch};
use usher_models::units::{Micros, SubscriberId};

pub use self::error::ApiError;
pub(crate) use self::explain::gate_name;
pub use self::listen::{DoorError, TcpDoor, UnixDoor};
pub use self::metrics::Metrics;
pub use self::routes::router;
use self::token::Token;
use crate::engine::explain::Seen;
use crate::engine::io::GuardState;
use crate::identity::Profile;
use crate::ledger::Ledger;
use crate::policy::{Policy, PolicyErrors};

/// What the API asks of the engine task.
#[derive(Debug)]
pub enum Ask {
    /// Turn the kill switch. Answered once that is durable; true: it was in the other position before.
    Stop {
        /// Its new position.
        stop: bool,
        /// Whether anything changed.
        answer: oneshot::Sender<bool>,
    },
    /// Where the canary stands. Changes nothing.
    Guard {
        /// As the engine has it.
        answer: oneshot::Sender<GuardNow>,
    },
    /// The person withdrew consent to advice, or gives it back. Answered once that is durable; false: nobody of this id.
    Consent {
        /// Whose.
        subscriber: SubscriberId,
        /// False: withdrawn.
        advice: bool,
        /// Whether the subscriber is known.
        answer: oneshot::Sender<bool>,
    },
    /// The person complained. Answered once that is durable; false: nobody of this id.
    Complaint {
        /// Who.
        subscriber: SubscriberId,
        /// Whether the subscriber is known.
        answer: oneshot::Sender<bool>,
    },
    /// Put a policy in force, on trial. Answered once that is durable, with when it goes unless it is confirmed.
    Apply {
        /// Read without a mistake.
        policy: Box<Policy>,
        /// How long it may stay unconfirmed.
        confirm_within: Duration,
        /// When it goes, or why not.
        answer: oneshot::Sender<Result<Micros, Refused>>,
    },
    /// The policy on trial stays.
    Confirm {
        /// Done, or why not.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// The policy on trial goes at once.
    Revert {
        /// Done, or why not.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// What the engine sees of a subscriber now. Changes nothing.
    Look {
        /// Whose.
        subscriber: SubscriberId,
        /// `None`: nobody of this id.
        answer: oneshot::Sender<Option<Seen>>,
    },
}

/// Where the canary stands, and what that means.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardNow {
    /// As the engine keeps it.
    pub state: GuardState,
    /// The share of subscribers something is done for, 0 to 1.
    pub share: f64,
    /// How many steps there are.
    pub steps: usize,
}

/// Why nothing was changed about the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is in force already.
    #[error("this policy is in force already")]
    InForce,
    /// Nothing is on trial.
    #[error("no policy is on trial: there is nothing to confirm or to take back")]
    NotOnTrial,
    /// It does not fit the plans.
    #[error("{0}")]
    Mistakes(PolicyErrors),
}

/// What only the running daemon knows. Answers at once, from memory.
pub trait Live: Send + Sync + 'static {
    /// The daemon itself.
    fn about(&self) -> About;
    /// Every agent that is let in, connected or not.
    fn agents(&self) -> Vec<LiveAgent>;
    /// Every element there is, gateways included.
    fn elements(&self) -> Vec<LiveElement>;
    /// Where the policy's file is.
    fn policy_file(&self) -> PathBuf;
    /// Where days are kept; `None`: nowhere.
    fn days(&self) -> Option<PathBuf>;
    /// Messages can be sent.
    fn has_advice(&self) -> bool;
    /// How many subscribers there are.
    fn subscribers(&self) -> usize;
    /// What is known of one subscriber.
    fn profile(&self, id: &SubscriberId) -> Option<Profile>;
    /// Whose a key is (`msisdn:491700000001`).
    fn of_key(&self, key: &str) -> Option<SubscriberId>;
    /// Up to `limit` subscribers whose ids come after `after`, in order.
    fn profiles_after(&self, after: Option<&SubscriberId>, limit: usize) -> Vec<Profile>;
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// When it started.
    pub started: Micros,
    /// Revision of the policy in force.
    pub policy: String,
    /// `guard.mode` of the policy in force.
    pub mode: String,
}

/// An agent that is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveAgent {
    /// Its name.
    pub name: String,
    /// Its uplink, where it has one.
    pub uplink: Option<LiveUplink>,
}

/// An uplink that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveUplink {
    /// Since when.
    pub since: Micros,
    /// Of the agent's software.
    pub version: String,
    /// It touches no packet.
    pub dry_run: bool,
}

/// Something that accepts settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveElement {
    /// `gateway:NAME` or `netconf:NAME`.
    pub name: String,
    /// Where it is; `None`: behind its agent.
    pub address: Option<String>,
    /// Setting names it accepts; `None`: all.
    pub settings: Option<Vec<String>>,
    /// Nothing is ever sent to it.
    pub dry_run: bool,
}

/// What the routes work with.
#[derive(Clone)]
pub struct ApiState {
    /// What is known.
    pub ledger: Ledger,
    /// To the engine task.
    pub asks: mpsc::Sender<Ask>,
    /// What only the daemon knows.
    pub live: Arc<dyn Live>,
    /// Counts requests.
    pub metrics: Metrics,
}

/// The API from afar: TLS and a bearer token, always both.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    /// Where to listen.
    pub address: SocketAddr,
    /// Certificate chain, PEM.
    pub certificate: &'a Path,
    /// Its key, PEM.
    pub key: &'a Path,
    /// File that holds the token, closed to others.
    pub token_file: &'a Path,
}

/// Bound doors, ready to serve.
#[derive(Debug)]
pub struct Doors {
    socket: UnixDoor,
    remote: Option<(TcpDoor, Token)>,
}

/// Opens the Unix socket and, where wanted, the way in from afar. Nothing is served yet; what is wrong shows here.
pub async fn bind(socket: &Path, remote: Option<Remote<'_>>) -> Result<Doors, DoorError> {
    let remote = match remote {
        Some(remote) => {
            let token = Token::read(remote.token_file)?;
            Some((TcpDoor::bind_tls(remote.address, remote.certificate, remote.key).await?, token))
        }
        None => None,
    };
    Ok(Doors { socket: UnixDoor::bind(socket).await?, remote })
}

impl Doors {
    /// Where the remote door listens; `None`: there is none.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.remote.as_ref().and_then(|(door, _)| door.address().ok())
    }
}

/// Serves the API behind `doors` until `stop` is done, then lets requests under way end and removes the socket.
pub async fn serve(doors: Doors, state: ApiState, stop: impl Future<Output = ()> + Send) {
    let router = router(state.clone());
    let (stopping, stopped) = watch::channel(false);
    let local = doors.socket.serve(router.clone(), stopped.clone());
    let remote = async {
        if let Some((door, token)) = doors.remote {
            let guard = token::Guard { token: Arc::new(token), metrics: state.metrics };
            let guarded = router.layer(middleware::from_fn_with_state(guard, token::check));
            door.serve(guarded, stopped).await;
        }
    };
    let stop = async {
        stop.await;
        let _ = stopping.send(true);
    };
    tokio::join!(local, remote, stop);
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}
