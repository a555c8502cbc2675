//! Keys -> subscriber, and what the operator's systems say about each subscriber.
//!
//! Owns the profiles file and the look-up from any linked key. Refuses to guess: a session none of whose keys is known
//! stays anonymous, and so does one whose keys belong to two subscribers.

mod directory;
mod parse;
mod profile;

pub use directory::{Directory, Resolved};
pub use profile::{Consent, Country, Offer, Plan, Profile};

/// Everything wrong with a profiles file.
pub type DirectoryErrors = crate::document::Issues;

#[cfg(test)]
mod tests;
