//! The verdicts' side of the probe: first bytes out of the ring, classes into the flow table.
//!
//! Apart from the rest of the probe, so that it can have a thread of its own: nothing here waits for a drain, a sweep or
//! a change of sessions. No record is lost to a cancelled wait.

use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use usher_models::wire::{Class, Direction, FirstBytes, FlowKey};

use super::ProbeError;
use super::clock::Clock;
use super::maps::SAMPLES;
use super::table::FlowTable;
use crate::dataplane::{ForApp, Sample};

/// What sees a probe's new flows and gives them their classes.
pub struct Flows {
    samples: Samples,
    table: Arc<FlowTable>,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows").finish_non_exhaustive()
    }
}

impl Flows {
    pub(super) fn take(ebpf: &mut Ebpf, table: Arc<FlowTable>) -> Result<Self, ProbeError> {
        Ok(Self { samples: Samples::take(ebpf)?, table })
    }

    /// The next packet the classifier should see. Loses nothing when cancelled. Needs a tokio runtime.
    ///
    /// `None` never comes from a probe: packets do not end.
    pub async fn next_sample(&mut self) -> Option<Sample<'static>> {
        self.samples.next().await
    }

    /// The same without waiting: `None` where there is none now.
    pub fn try_next_sample(&mut self) -> Option<Sample<'static>> {
        self.samples.try_next()
    }

    /// Gives a flow its class, and says whether the classifier wants more of its packets.
    ///
    /// False where the flow is not known any more; then nothing is changed.
    pub fn name_flow(&mut self, flow: &FlowKey, class: Class, sampling: bool) -> Result<bool, ProbeError> {
        Ok(self.table.name(flow, class, sampling))
    }

    /// Counts the bytes of a flow's further packets for an app of its slot, or for none.
    pub fn count_for_app(&mut self, flow: &FlowKey, app: Option<&str>) -> ForApp {
        self.table.count_for_app(flow, app)
    }
}

/// The ring: plain until somebody waits for it, for that needs a runtime.
enum Samples {
    Plain(RingBuf<MapData>),
    Awaited(AsyncFd<RingBuf<MapData>>),
    /// The runtime would not watch the ring; said once.
    Broken,
}

impl Samples {
    fn take(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        let map = ebpf.take_map(SAMPLES).ok_or(ProbeError::NotInObject { name: SAMPLES })?;
        RingBuf::try_from(map)
            .map(Self::Plain)
            .map_err(|error| ProbeError::kernel("map the ring")(error.into()))
    }

    /// The next record, if one is there.
    fn try_next(&mut self) -> Option<Sample<'static>> {
        match self {
            Self::Plain(ring) => take(ring),
            Self::Awaited(ring) => take(ring.get_mut()),
            Self::Broken => None,
        }
    }

    /// The next record, when it comes.
    async fn next(&mut self) -> Option<Sample<'static>> {
        loop {
            // Before any wait: a record that is there must not wait for a wake-up that has been.
            if let Some(sample) = self.try_next() {
                return Some(sample);
            }
            if let Self::Plain(_) = self {
                *self = match std::mem::replace(self, Self::Broken) {
                    Self::Plain(ring) => watched(ring),
                    other => other,
                };
            }
            let Self::Awaited(ring) = self else { return std::future::pending().await };
            match ring.readable_mut().await {
                Ok(mut ready) => {
                    if let Some(sample) = take(ready.get_inner_mut()) {
                        return Some(sample);
                    }
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::error!(%error, "the ring of first bytes cannot be waited for: no flow gets a class any more");
                    *self = Self::Broken;
                }
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watched(ring: RingBuf<MapData>) -> Samples {
    // SAFETY: the ring owns its map's descriptor, shows no other, and is never replaced while the runtime has it.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    match registered {
        Ok(ring) => Samples::Awaited(ring),
        Err(error) => {
            tracing::error!(%error, "the ring of first bytes cannot be watched: no flow gets a class");
            Samples::Broken
        }
    }
}

/// The next record that is one.
fn take(ring: &mut RingBuf<MapData>) -> Option<Sample<'static>> {
    while let Some(record) = ring.next() {
        if let Some(sample) = decode(&record) {
            return Some(sample);
        }
        tracing::debug!(length = record.len(), "a record of the ring is cut short");
    }
    None
}

fn decode(record: &[u8]) -> Option<Sample<'static>> {
    let (head, packet) = FirstBytes::split(record)?;
    // Read each time: the wall clock may have been set, and samples are few.
    let clock = Clock::read();
    Some(Sample {
        flow: head.flow,
        slot: head.slot,
        direction: if head.direction == Direction::Up as u32 { Direction::Up } else { Direction::Down },
        first_packet: clock.micros(head.first_packet_ns),
        seen: clock.micros(head.seen_ns),
        packet: packet.to_vec().into(),
    })
}
