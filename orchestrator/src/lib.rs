//! The orchestrator: facts from batches, moments from facts, decisions from moments; then it pushes, advises or says nothing.

pub mod advice;
pub mod agents;
pub mod api;
pub mod cli;
pub mod config;
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
pub mod pki;
pub mod policy;
pub mod run;
