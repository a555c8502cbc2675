//! The agent: everything that happens on a gateway outside the kernel.
//!
//! Owns the probe, the naming of flows, the counting of use by session, and the settings in force on this gateway. Refuses
//! to decide anything: what is to be set comes from the orchestrator, and packet bytes never leave this process.
//!
//! ```text
//!   kernel / libpcap
//!      | samples        ^ verdicts, enforcement, bindings
//!      v                |
//!   [ gateway task ] ---+--- every second: drain ---> store (spool, baseline, sessions, settings)
//!      ^  |   owns DataPlane, Classifier, Books, Pushes        |  ^
//!      |  | reports                              batches after |  | acknowledged
//!      |  v                                                    v  |
//!   [ uplink task ] <=== gRPC, mutual TLS ===> orchestrator
//!   [ metrics task ] ---> GET /metrics
//! ```
//!
//! | task | file | waits for |
//! |---|---|---|
//! | gateway | [`gateway`], driven by [`run`] | signals, the second, a setting's end, a push, a sample |
//! | uplink | [`uplink::client`] | the orchestrator, a report, something spooled |
//! | metrics | [`page`] | an HTTP request |
//!
//! Invariants: only the gateway task touches the data plane; a byte is told exactly once ([`books`], [`store`]); what is
//! sans-I/O ([`classify`], [`usage`], [`service`], [`uplink::settings`], [`uplink::window`]) knows no clock and no file.

pub mod books;
pub mod capture;
pub mod catalogue;
pub mod check;
pub mod classify;
pub mod classify_command;
pub mod config;
pub mod dataplane;
pub mod error;
pub mod gateway;
pub mod metrics;
pub mod page;
pub mod place;
pub mod probe;
pub mod run;
pub mod service;
pub mod sessions;
pub mod store;
pub mod uplink;
pub mod usage;
