//! What people meet: the tap page, the operator's API and the CLI, each over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod operator;
mod page;
mod site;
