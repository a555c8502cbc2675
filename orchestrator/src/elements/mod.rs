//! Anything that accepts settings, and the transaction over several of them.
//!
//! Owns the drivers (a gateway's data plane through its agent, NETCONF devices), the push transaction over them and its
//! executor. Refuses to know why something is desired: it is told the settings and brings the elements there, all or none.

mod config;
mod gateway;
mod push;

pub use config::{ElementsConfig, GatewayConfig, NetconfConfig, PushesConfig};
pub use gateway::{Answer, Ask, AskError};
pub use push::{
    Change, ElementDiff, ElementOutcome, ElementState, Journal, JournalError, Outcome, Push, PushId,
    PushOutcome, PushState, Reach,
};
