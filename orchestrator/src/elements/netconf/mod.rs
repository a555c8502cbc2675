//! NETCONF devices as elements (RFC 6241 over SSH, RFC 6242).
//!
//! Owns the protocol and one connection per device. Refuses vendor knowledge: what a model calls things is in templates.

mod device;
mod element;
mod error;
pub mod framing;
pub mod session;
mod transport;
pub mod tree;
mod worker;

pub(in crate::elements) use element::{NetconfElement, NetconfWork, NetconfWorkError, lock_deadline};
pub use error::NetconfError;
