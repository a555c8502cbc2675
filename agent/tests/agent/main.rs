//! The agent's binary as an operator runs it, with an orchestrator of the tests' own at the other end.

mod probe;
mod support;
mod uplink;
