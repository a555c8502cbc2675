//! The agent <-> orchestrator protocol, generated from `proto/telemetry.proto`.
//!
//! Also the one place that translates between generated enums and the domain's.

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is in the .proto file"
)]
mod generated {
    tonic::include_proto!("usher.telemetry.v1");
}

pub use generated::*;

use crate::wire;

/// Version of the protocol; both ends refuse another one.
pub const PROTOCOL: u32 = 1;

impl From<wire::Class> for Class {
    fn from(class: wire::Class) -> Self {
        match class {
            wire::Class::Other => Self::Other,
            wire::Class::Video => Self::Video,
            wire::Class::Call => Self::Call,
            wire::Class::Game => Self::Game,
            wire::Class::Web => Self::Web,
            wire::Class::Social => Self::Social,
            wire::Class::Bulk => Self::Bulk,
            wire::Class::System => Self::System,
        }
    }
}

impl From<Class> for wire::Class {
    fn from(class: Class) -> Self {
        match class {
            Class::Other => Self::Other,
            Class::Video => Self::Video,
            Class::Call => Self::Call,
            Class::Game => Self::Game,
            Class::Web => Self::Web,
            Class::Social => Self::Social,
            Class::Bulk => Self::Bulk,
            Class::System => Self::System,
        }
    }
}

impl From<wire::Direction> for Direction {
    fn from(direction: wire::Direction) -> Self {
        match direction {
            wire::Direction::Up => Self::Up,
            wire::Direction::Down => Self::Down,
        }
    }
}

impl From<Direction> for wire::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Up => Self::Up,
            Direction::Down => Self::Down,
        }
    }
}
