//! The orchestrator: facts from batches, moments from facts, decisions from moments; then it pushes, advises or says
//! nothing.
//!
//! Owns every decision and everything that must survive: one ledger, one engine. Refuses to look at packets (agents do),
//! to believe what an agent says without checking it, and to answer anything before it is durable.
//!
//! ```text
//! agents ── gRPC, mTLS ─► agents::Service ──┐ Inbox (64)
//! person ── tap page ───► advice::page ─────┤                      ┌─► Engine::step ─► effects
//! usher ─── socket, TLS ► api ──────────────┼─► inputs::EngineTask ┤
//! SIGHUP ─► run::reload ── policy, profiles ┘      (one task)      └─► Ledger::apply, one transaction
//!                                                                          │
//!                 answered (ack, tapped, turned) ◄─────────────────────────┤
//!                                                                          ▼ rings a bell
//!     messages pending in the ledger ─► messenger::Messenger ─► advice::Outbox
//!     pushes pending in the ledger ───► elements::Executor ───► gateways (agents::Links), NETCONF devices
//! ```
//!
//! A batch, forwards: [`agents`] decodes it and checks each value; [`inputs`] resolves its sessions to subscribers and
//! steps the [`engine`]; [`ledger`] makes the batch's mark, the totals and every effect durable together; the agent is
//! acknowledged; [`elements`] and [`messenger`] carry out what is pending, now or after the next start. A process killed
//! between any two of these loses nothing and does nothing twice: what is not in the ledger did not happen, and what is
//! pending there is idempotent.
//!
//! `engine` and `policy` do no I/O and have no clock; [`run`] is the only place that knows all the others.

pub mod advice;
pub mod agents;
pub mod api;
pub mod cli;
pub mod config;
pub mod days;
pub mod document;
pub mod elements;
pub mod engine;
pub mod error;
pub mod identity;
pub mod inputs;
pub mod ledger;
pub mod messenger;
pub mod metrics;
pub mod panel;
pub mod partners;
pub mod pki;
pub mod policy;
pub mod run;
pub mod uplift;
