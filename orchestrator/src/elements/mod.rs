//! Anything that accepts settings, and the transaction over several of them.
//!
//! Owns the drivers (a gateway's data plane through its agent, NETCONF devices), the push transaction over them and its
//! executor. Refuses to know why something is desired: it is told the settings and brings the elements there, all or none.

mod config;
mod executor;
mod gateway;
pub mod netconf;
mod push;
pub mod template;
mod transaction;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use usher_models::units::Micros;

pub use config::{ElementsConfig, GatewayConfig, NetconfConfig, PushesConfig};
pub use executor::{Executor, Wake};
pub use gateway::{Answer, Ask, AskError};
use gateway::{GatewayError, GatewayWork};
use netconf::{NetconfElement, NetconfError, NetconfWork};
pub use push::{
    Change, ElementDiff, ElementOutcome, ElementState, Journal, JournalError, Outcome, Push, PushId,
    PushOutcome, PushState, Reach,
};
use transaction::{Part, Work};

/// Why the elements cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ElementsError {
    /// A NETCONF element's configuration is wrong.
    #[error("netconf element `{element}`: {why}")]
    Config {
        /// Its name.
        element: String,
        /// What is wrong, and what was expected.
        why: String,
    },
    /// Two of the same name.
    #[error("two netconf elements are called `{0}`: give each a name of its own")]
    Twice(String),
}

/// Why what a push left on an element could not be settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftoverError {
    /// The element says no: asking again is of no use.
    #[error("{0}")]
    Refused(String),
    /// The element could not be asked, or did not answer.
    #[error("{0}")]
    Unreachable(String),
}

impl From<GatewayError> for LeftoverError {
    fn from(error: GatewayError) -> Self {
        let why = error.to_string();
        match error {
            GatewayError::Ask(_) => Self::Unreachable(why),
            _ => Self::Refused(why),
        }
    }
}

impl From<NetconfError> for LeftoverError {
    fn from(error: NetconfError) -> Self {
        let refused = error.is_refusal() && !error.is_lock_denied();
        let why = error.to_string();
        if refused { Self::Refused(why) } else { Self::Unreachable(why) }
    }
}

/// Everything that accepts settings.
pub struct Elements {
    gateway: GatewayConfig,
    netconf: BTreeMap<String, Arc<NetconfElement>>,
    agents: Arc<dyn Ask>,
}

impl std::fmt::Debug for Elements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elements")
            .field("gateway", &self.gateway)
            .field("netconf", &self.netconf)
            .finish_non_exhaustive()
    }
}

impl Elements {
    /// Checks the configuration, loads templates, starts a thread for each device. Connects to nothing yet. Paths in the
    /// configuration are relative to `base`.
    pub fn new(config: &ElementsConfig, base: &Path, agents: Arc<dyn Ask>) -> Result<Self, ElementsError> {
        let mut netconf = BTreeMap::new();
        for device in &config.netconf {
            let element = NetconfElement::new(device.clone(), base)?;
            if netconf.insert(device.name.clone(), Arc::new(element)).is_some() {
                return Err(ElementsError::Twice(device.name.clone()));
            }
        }
        Ok(Self { gateway: config.gateway.clone(), netconf, agents })
    }

    /// Desired against running on every element the push would touch. Sends nothing that changes anything.
    pub async fn plan(&self, push: &Push, reach: &[Reach]) -> Vec<ElementDiff> {
        transaction::plan(self.parts(push, reach), push).await
    }

    /// One attempt: every element it touches holds the settings afterwards, or none of them does. What is about to
    /// happen is in the journal before it happens. Dropped on its way, it leaves nothing that does not end by itself.
    pub async fn push(&self, push: &Push, reach: &[Reach], journal: &Arc<dyn Journal>) -> PushOutcome {
        transaction::run(self.parts(push, reach), push, journal).await
    }

    /// Takes back what an earlier attempt may have left provisionally on an element.
    pub async fn cancel_leftover(&self, push: &PushId, element: &str) -> Result<(), LeftoverError> {
        match self.find(element)? {
            Found::Gateway(agent) => {
                Ok(gateway::cancel_leftover(&*self.agents, agent, push, &self.gateway).await?)
            }
            Found::Netconf(device) => Ok(device.cancel_leftover(push).await?),
        }
    }

    /// Confirms what an attempt that was decided left provisionally on an element; after a crash.
    pub async fn confirm_leftover(&self, push: &PushId, element: &str) -> Result<(), LeftoverError> {
        match self.find(element)? {
            Found::Gateway(agent) => {
                Ok(gateway::confirm_leftover(&*self.agents, agent, push, &self.gateway).await?)
            }
            Found::Netconf(device) => Ok(device.confirm_leftover(push).await?),
        }
    }

    /// NETCONF devices, and how often each was connected to since the start.
    pub fn connects(&self) -> impl Iterator<Item = (&str, u64)> {
        self.netconf.iter().map(|(name, device)| (name.as_str(), device.connects()))
    }

    fn find<'a>(&'a self, element: &'a str) -> Result<Found<'a>, LeftoverError> {
        match element.split_once(':') {
            Some(("gateway", agent)) => Ok(Found::Gateway(agent)),
            Some(("netconf", name)) => {
                self.netconf.get(name).map(|device| Found::Netconf(device)).ok_or_else(|| {
                    LeftoverError::Refused(format!("netconf element `{name}` is not configured any more"))
                })
            }
            _ => Err(LeftoverError::Refused(format!("`{element}` is no element"))),
        }
    }

    /// Those that accept one of the settings and reach the subscriber, sorted by name.
    fn parts(&self, push: &Push, reach: &[Reach]) -> Vec<Part> {
        let mut agents: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for Reach { agent, session } in reach {
            agents.entry(agent).or_default().push(session.clone());
        }
        let accepted = self.gateway.settings.as_ref();
        let concerned =
            accepted.is_none_or(|accepted| push.settings.values.keys().any(|name| accepted.contains(name)));
        let started = Micros::now();
        let gateways = agents.into_iter().filter(|_| concerned).map(|(agent, sessions)| {
            let agents = Arc::clone(&self.agents);
            let work = GatewayWork::new(agents, agent.to_owned(), sessions, self.gateway.clone());
            Part::new(format!("gateway:{agent}"), Work::Gateway(work), started)
        });
        let devices = self.netconf.values().filter(|device| device.concerns(push)).map(|device| {
            let work = Work::Netconf(NetconfWork::new(Arc::clone(device)));
            Part::new(format!("netconf:{}", device.config().name), work, started)
        });
        gateways.chain(devices).collect()
    }
}

enum Found<'a> {
    Gateway(&'a str),
    Netconf(&'a NetconfElement),
}
