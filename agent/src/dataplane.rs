//! The seam between the agent and whatever sees and counts packets: the probe in the kernel, or a capture.
//!
//! [`DataPlane`] is what the rest of the agent holds. Both kinds have the same methods with the same meaning; a capture
//! holds settings and reads them back, but touches no packet ("dry run").

use ipnet::IpNet;
use usher_models::units::Micros;
use usher_models::wire::{Direction, Enforcement, FlowKey, SlotUsage};

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

/// The data plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DataPlaneError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// What the books need of a data plane: counters by slot, who is behind a prefix, and what holds for a slot.
///
/// A trait, so that the books' promise (no byte lost or told twice, wherever the agent stops) is tested on counters whose
/// every step can be stopped.
pub trait Slots {
    /// Cumulative counters of a slot.
    fn usage(&mut self, slot: u32) -> Result<SlotUsage, DataPlaneError>;
    /// From now on the prefix counts for this slot. Doing it twice is doing it once.
    fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), DataPlaneError>;
    /// The prefixes that count for a slot now.
    fn bindings(&mut self) -> Result<Vec<IpNet>, DataPlaneError>;
    /// The prefix is nobody's. Doing it twice is doing it once.
    fn unbind(&mut self, prefix: IpNet) -> Result<(), DataPlaneError>;
    /// What is done with a slot's packets from now on.
    fn enforce(&mut self, slot: u32, enforcement: &Enforcement) -> Result<(), DataPlaneError>;
    /// What is done with a slot's packets, read back.
    fn enforcement(&mut self, slot: u32) -> Result<Enforcement, DataPlaneError>;
}
