//! The agent: everything that happens on a gateway outside the kernel.

pub mod books;
pub mod capture;
pub mod catalogue;
pub mod classify;
pub mod classify_command;
pub mod config;
pub mod dataplane;
pub mod error;
pub mod metrics;
pub mod place;
pub mod probe;
pub mod service;
pub mod sessions;
pub mod store;
pub mod uplink;
pub mod usage;
