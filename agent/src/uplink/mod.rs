//! To the orchestrator: batches up until they are acknowledged, settings down until they are read back.
//!
//! ```text
//!   store --batches--> [ connection ] --FromAgent--> orchestrator
//!   store <--acknowledged-- [    |    ] <--ToAgent--
//!   gateway task <--pushes-- [   |    ] <--reports-- gateway task
//! ```
//!
//! Owns the connection and nothing else: batches are the store's, settings the gateway task's. Refuses an orchestrator of
//! another protocol. Both directions are bounded: batches in flight by a [`window`], pushes and reports by their queues.

pub mod client;
pub mod settings;
pub mod window;

pub use client::{Lines, Uplink, UplinkError};
