//! Keys -> subscriber, and what the operator's systems say about each subscriber.
//!
//! Owns the profiles file and the look-up from any linked key. Refuses to guess: a session none of whose keys is known
//! stays anonymous.

mod profile;

pub use profile::{Consent, Country, Plan, Profile};
