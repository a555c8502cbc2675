//! The agent: everything that happens on a gateway outside the kernel.
//!
//! Owns the probe, the naming of flows, the counting of use by session, and the settings in force on this gateway. Refuses
//! to decide anything: what is to be set comes from the orchestrator, and packet bytes never leave this process.
//!
//! ```text
//!   kernel / libpcap
//!      | samples   ^ classes                | counters    ^ enforcement, bindings
//!      v           |                        v             |
//!   [ verdicts' thread ] -- named flows --> [ gateway task ] -- every second: drain --> store (spool, baseline,
//!     owns Flows, Classifier  <-- orders --   owns DataPlane, Books, Pushes             |  ^   sessions, settings)
//!                                              ^  | reports              batches after |  | acknowledged
//!                                       pushes |  v                                    v  |
//!                                           [ uplink task ] <=== gRPC, mutual TLS ===> orchestrator
//!                                           [ metrics task ] ---> GET /metrics
//! ```
//!
//! | task | file | waits for |
//! |---|---|---|
//! | verdicts, a thread of its own | [`verdicts`], driven by [`run`] | an order, the second, a sample |
//! | gateway | [`gateway`], driven by [`run`] | signals, the second, a setting's end, a push, the samples' end |
//! | uplink | [`uplink::client`] | the orchestrator, a report, something spooled |
//! | metrics | [`page`] | an HTTP request |
//!
//! Invariants: only the gateway task touches counters, bindings and enforcement, only the verdicts' thread samples and
//! classes, and the latter waits for neither disk nor network; a byte is told exactly once ([`books`], [`store`]); what is
//! sans-I/O ([`classify`], [`usage`], [`service`], [`uplink::settings`], [`uplink::window`]) knows no clock and no file.

pub mod books;
pub mod capture;
pub mod catalogue;
pub mod catalogue_command;
pub mod check;
pub mod classify;
pub mod classify_command;
pub mod config;
pub mod dataplane;
pub mod error;
pub mod gateway;
pub mod logs;
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
pub mod verdicts;
