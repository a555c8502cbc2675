//! YAML with positions: the operator's files as a tree that knows where each piece stands.
//!
//! Owns parsing into [`Node`]s, reading them ([`Fields`] and friends) and reporting every mistake of a file at once
//! ([`Issues`]). Refuses anchors, tags, several documents and duplicate keys: an operator's file says what it says once.
//! Bounded in depth and size, so that a hostile file is an error and nothing worse.

mod issue;
mod read;
mod tree;

pub use issue::{Issue, Issues};
pub use read::{Fields, boolean, items, nearest, number, text, word};
pub use tree::{Kind, Node, Span, parse};
