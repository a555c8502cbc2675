//! The orchestrator daemon.

fn main() {}
