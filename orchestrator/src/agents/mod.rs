//! The other end of the agents' uplinks: batches in, acknowledgements and pushes out.
//!
//! Owns the gRPC server under mutual TLS, who is let in, the check of every foreign value, and asking an agent over its
//! uplink ([`Links`]). Refuses to know what a batch means: a batch that is fit goes to the engine task, and is
//! acknowledged once that has made it durable.
//!
//! ```text
//! agent -- Hello --> certificate, name, protocol --> Welcome(last applied)
//!       -- Batch --> decode --> Inbox --> engine task --> ledger --> Ack
//!       <-- Push --- Links::ask                (elements)
//!       -- Report -> Links, by push id and step
//! ```

mod certificate;
mod decode;
mod door;
mod fields;
mod links;
mod service;
#[cfg(test)]
mod tests;

pub use decode::{AppUsage, BOOT_LENGTH, Batch, Flow, Refused, Usage, decode};
pub use fields::Malformed;
pub use links::{Connected, Links};
pub use service::{ServeError, Service};
