//! The flows whose first bytes are being put together.
//!
//! Owns their number, their bytes and their time, and who makes room: flows seen once before those that were seen again.

use std::time::Duration;

use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use super::Limits;
use super::held::Held;
use super::in_progress::{InProgress, Step};
use super::knowledge::Proof;
use crate::dataplane::Sample;

/// Flows in progress.
#[derive(Debug)]
pub(crate) struct Beginnings {
    streams: Held<FlowKey, InProgress>,
    bytes: usize,
    max_bytes: usize,
    max_age: Duration,
    /// Flows that made room.
    pub(crate) evicted: u64,
    /// Flows whose time was up.
    pub(crate) expired: u64,
    /// Flows that said too much without a name.
    pub(crate) too_long: u64,
}

impl Beginnings {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            streams: Held::new(limits.streams),
            bytes: 0,
            max_bytes: limits.stream_bytes,
            max_age: limits.stream_age,
            evicted: 0,
            expired: 0,
            too_long: 0,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Bytes of the network in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&self, flow: &FlowKey) -> Option<&InProgress> {
        self.streams.get(flow)
    }

    pub(crate) fn holds(&self, flow: &FlowKey) -> bool {
        self.get(flow).is_some()
    }

    /// Puts a flow in, in place of any other on the same ports.
    pub(crate) fn put(&mut self, flow: FlowKey, stream: InProgress) {
        self.drop(&flow);
        if let Some((_, evicted)) = self.streams.insert(flow, stream) {
            self.bytes -= evicted.held();
            self.evicted += 1;
        }
    }

    /// The flow has shown itself again, or was answered.
    pub(crate) fn settle(&mut self, flow: &FlowKey) {
        self.streams.settle(flow);
    }

    pub(crate) fn drop(&mut self, flow: &FlowKey) {
        if let Some(stream) = self.streams.remove(flow) {
            self.bytes -= stream.held();
        }
    }

    /// A handshake was seen: what is here of another connection on the same ports is over.
    pub(crate) fn drop_other_than(&mut self, flow: &FlowKey, start: u32) {
        if self.streams.get(flow).is_some_and(|stream| stream.start() != Some(start)) {
            self.drop(flow);
        }
    }

    /// Changes a flow; `None` where it is not here.
    pub(crate) fn change<T>(
        &mut self,
        flow: &FlowKey,
        change: impl FnOnce(&mut InProgress) -> T,
    ) -> Option<T> {
        let stream = self.streams.get_mut(flow)?;
        let held = stream.held();
        let result = change(stream);
        self.bytes = self.bytes - held + stream.held();
        Some(result)
    }

    /// Takes a packet into a flow's first bytes; what they prove and where the client's stream began, if that was enough,
    /// too much, too late or the last.
    pub(crate) fn advance(
        &mut self,
        sample: &Sample<'_>,
        ends: bool,
        take: impl FnOnce(&mut InProgress) -> Step,
    ) -> Option<(Proof, Option<u32>)> {
        let max_age = self.max_age;
        let (step, goes_on, stream) = self.change(&sample.flow, |stream| {
            let step = take(stream);
            let overdue = sample.seen.since(stream.since) > max_age;
            let goes_on = step == Step::More && !overdue && !ends;
            let proves = matches!(step, Step::Name(..) | Step::Protocol(_));
            let fallback = if goes_on || proves { None } else { stream.fallback() };
            (step, goes_on, (stream.since, stream.start(), fallback, overdue))
        })?;
        let (since, start, fallback, overdue) = stream;
        if goes_on {
            if since != sample.seen {
                self.streams.settle(&sample.flow);
            }
            self.keep_within_bounds();
            return None;
        }
        let fallback = fallback.map_or(Proof::Nothing, Proof::Protocol);
        let proof = match step {
            Step::More => {
                self.expired += u64::from(overdue);
                fallback
            }
            Step::TooMuch => {
                self.too_long += 1;
                fallback
            }
            Step::Nothing => fallback,
            Step::Name(name, via) => Proof::Name(name, via),
            Step::Protocol(signature) => Proof::Protocol(signature),
        };
        self.drop(&sample.flow);
        Some((proof, start))
    }

    /// Takes out a flow whose time is up.
    pub(crate) fn pop_expired(&mut self, now: Micros) -> Option<(FlowKey, InProgress)> {
        let overdue = |stream: &InProgress| now.since(stream.since) > self.max_age;
        let flow = *self.streams.oldest().find(|(_, stream)| overdue(stream))?.0;
        let stream = self.streams.remove(&flow)?;
        self.bytes -= stream.held();
        self.expired += 1;
        Some((flow, stream))
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<(FlowKey, InProgress)> {
        let (flow, stream) = self.streams.pop_oldest()?;
        self.bytes -= stream.held();
        Some((flow, stream))
    }

    pub(crate) fn keep_within_bounds(&mut self) {
        while self.bytes > self.max_bytes {
            let Some((_, evicted)) = self.streams.pop_from_crowd() else { break };
            self.bytes -= evicted.held();
            self.evicted += 1;
        }
    }
}
