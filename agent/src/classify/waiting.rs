//! Flows told about by a weak proof, and what would make it stronger.
//!
//! Owns who is to be told when a clue comes: a DNS answer for the other end's address, an app seen at work on the same
//! port. Refuses to know what it means.

use usher_models::wire::FlowKey;

use super::answers::Asker;
use super::held::Held;

/// Most flows that wait for the same clue.
const MAX_TOGETHER: usize = 4;

/// What a flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Clue {
    /// The name that the asker learns for an address.
    Address(Asker, [u8; 16]),
    /// The app that uses a UDP port of an address.
    Port([u8; 16], u16),
}

/// Flows by the clue they wait for.
#[derive(Debug)]
pub(crate) struct Waiting {
    flows: Held<Clue, Vec<FlowKey>>,
    /// Clues that nobody waits for any more, for lack of room.
    pub(crate) evicted: u64,
}

impl Waiting {
    /// Room for as many clues.
    pub(crate) fn new(clues: usize) -> Self {
        Self { flows: Held::new(clues), evicted: 0 }
    }

    /// The flow waits for the clue.
    pub(crate) fn put(&mut self, clue: Clue, flow: FlowKey) {
        match self.flows.get_mut(&clue) {
            Some(flows) if flows.len() < MAX_TOGETHER && !flows.contains(&flow) => flows.push(flow),
            Some(_) => {}
            None => self.evicted += u64::from(self.flows.insert(clue, vec![flow]).is_some()),
        }
    }

    /// The clue has come; who waited for it.
    pub(crate) fn take(&mut self, clue: &Clue) -> Vec<FlowKey> {
        self.flows.remove(clue).unwrap_or_default()
    }
}
