//! The seam between the agent and whatever sees and counts packets: the probe in the kernel, or a capture.
//!
//! [`DataPlane`] is what the rest of the agent holds. Both kinds have the same methods with the same meaning; a capture
//! holds settings and reads them back, but touches no packet ("dry run").

use usher_models::units::Micros;
use usher_models::wire::{Direction, FlowKey};

/// One life of the counters. The probe's outlives the agent's process, a capture's does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(pub [u8; 16]);

/// The first bytes of a flow, for the classifier. Never written to disk, never sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Whose flow, and with whom.
    pub flow: FlowKey,
    /// The subscriber slot the flow is counted for.
    pub slot: u32,
    /// Which way this packet goes.
    pub direction: Direction,
    /// When the flow's first packet was seen.
    pub first_packet: Micros,
    /// When this packet was seen.
    pub seen: Micros,
    /// The packet from its innermost IP header on, perhaps truncated.
    pub packet: Vec<u8>,
}
