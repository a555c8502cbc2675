//! The northbound API: what operators and their scripts may read, and the kill switch. JSON over HTTP, below `/v1`.
//!
//! Owns the doors it is reached through ([`listen`]) and the shapes it answers in ([`model`]). Refuses to change anything
//! but the kill switch: settings change by decisions and taps, never by hand behind the ledger's back.

pub mod listen;
