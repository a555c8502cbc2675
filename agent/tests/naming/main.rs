//! What flows are called, whatever the network does to their packets: cut, shuffled, wrapped; on traffic by real libraries
//! and tools, through the code that `usher-agent classify` and the daemon run.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

mod delivery;
mod encapsulation;
mod hello;
mod quic;
mod recorded;
mod rows;
mod tls;
mod traffic;
mod wrap;
