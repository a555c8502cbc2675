//! What the probe does in the kernel, in user space: frames in, counters up, first bytes out. Sans-I/O.
//!
//! Owns the flows, the sessions' prefixes and the usage by slot. The subscriber's side of a packet is found so:
//!
//! 1. the source is a session's address: the packet goes up, and counts for the source, also where the destination is one
//!    (the two directions of such a flow are then two flows, each its sender's);
//! 2. the destination alone is: it goes down;
//! 3. neither is: it counts for anonymous. The side that opened the flow stands for the subscriber: who sends the SYN, who
//!    asks a DNS server, else who uses the higher port, else who was seen first.
//!
//! Of packets in packets the innermost with a session's address counts, else the innermost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::quality::RandomState;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, Direction, FlowKey, MAX_FIRST_BYTES, SlotUsage};

use super::fragments::{FragmentLimits, Fragments, Gathered};
use super::frame::{self, Found, Fragment, Layers, Packets, Refused};
use super::plain;
use crate::classify::packet::{self, Packet, Payload};
use crate::dataplane::Sample;

/// Bounds of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct TableLimits {
    /// Flows held; packets of further ones count for their slot as class `other`.
    pub flows: usize,
    /// Prefixes bound to slots.
    pub bindings: usize,
    /// Packets of a flow handed to the classifier, unless it asks for more.
    pub samples: u16,
    /// Bytes of a packet handed to the classifier.
    pub sample_bytes: usize,
    /// Silence after which a flow is forgotten.
    pub idle: Duration,
    /// Of packets in fragments.
    pub fragments: FragmentLimits,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            flows: 262_144,
            bindings: 1_048_576,
            samples: 24,
            sample_bytes: MAX_FIRST_BYTES,
            idle: Duration::from_mins(5),
            fragments: FragmentLimits::default(),
        }
    }
}

/// No more prefixes fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bind {prefix}: the table of prefixes is full at {limit}")]
pub struct BindingsFull {
    /// What was to be bound.
    pub prefix: IpNet,
    /// How many fit.
    pub limit: usize,
}

/// Packets and innermost IP bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Innermost IP bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// A flow and what was counted of it.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Who with whom.
    pub key: FlowKey,
    /// Tags and tunnels around its first packet.
    pub layers: Layers,
    /// First packet.
    pub first: Micros,
    /// Last packet.
    pub last: Micros,
    /// By direction.
    pub traffic: [Traffic; 2],
    /// First packet of the last connection on these ports.
    opened: Micros,
    class: Class,
    sampling: bool,
    samples: u16,
}

/// The slot a packet counts for, and its direction seen from there.
type Side = (u32, Direction);

/// Sessions' prefixes, flows and counters.
#[derive(Debug)]
pub struct Table {
    limits: TableLimits,
    bindings: JointPrefixMap<IpNet, u32>,
    bound: usize,
    flows: HashMap<FlowKey, Flow, RandomState>,
    usage: HashMap<u32, Box<SlotUsage>, RandomState>,
    fragments: Fragments,
    refused: [Traffic; Refused::ALL.len()],
    flows_full: u64,
    budgets_spent: u64,
}

impl Table {
    /// An empty table.
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            bindings: JointPrefixMap::new(),
            bound: 0,
            flows: HashMap::default(),
            usage: HashMap::default(),
            fragments: Fragments::new(limits.fragments),
            refused: [Traffic::default(); Refused::ALL.len()],
            flows_full: 0,
            budgets_spent: 0,
        }
    }

    /// Counts a frame of libpcap's link type `link` that had `wire` bytes; returns its packet if the classifier is to see it.
    ///
    /// Fragments wait for each other ([`super::fragments`]): the frame that completes a packet counts for all of them.
    pub fn frame<'a>(&mut self, link: i32, frame: &'a [u8], wire: usize, seen: Micros) -> Option<Sample<'a>> {
        if link == plain::ETHERNET
            && let Some(found) = plain::packet(frame, wire)
        {
            let side = self.session_side(&found.packet);
            return self.count(&found, side, Traffic { bytes: found.bytes(), packets: 1 }, seen);
        }
        let (found, side) = match self.subject(frame::packets(link, frame, wire)) {
            Ok(subject) => subject,
            Err(refused) => {
                self.refuse(refused, Traffic { bytes: wire as u64, packets: 1 });
                return None;
            }
        };
        match found.fragment() {
            Some(fragment) => self.fragment(&found, fragment, seen),
            None => self.count(&found, side, Traffic { bytes: found.bytes(), packets: 1 }, seen),
        }
    }

    /// Counts datagrams whose fragments have waited too long for each other, and returns what of them the classifier may see.
    pub fn overdue_fragments(&mut self, now: Micros) -> Vec<Sample<'static>> {
        self.fragments.overdue(now).iter().filter_map(|gathered| self.count_gathered(gathered)).collect()
    }

    /// As [`Self::overdue_fragments`], of all that wait: no more frames will come.
    pub fn rest_of_fragments(&mut self) -> Vec<Sample<'static>> {
        self.fragments.rest().iter().filter_map(|gathered| self.count_gathered(gathered)).collect()
    }

    /// Which packet of those in each other counts, and for whom.
    fn subject<'a>(&self, packets: Packets<'a>) -> Result<(Found<'a>, Option<Side>), Refused> {
        let mut subject: Option<(Found<'a>, Option<Side>)> = None;
        for found in packets {
            let of_session = matches!(subject, Some((_, Some(_))));
            match found {
                Ok(found) => {
                    let side = self.session_side(&found.packet);
                    if side.is_some() || !of_session {
                        subject = Some((found, side));
                    }
                }
                Err(_) if of_session => {}
                Err(refused) => return Err(refused),
            }
        }
        subject.ok_or(Refused::NotIp)
    }

    fn fragment(&mut self, found: &Found<'_>, fragment: Fragment, seen: Micros) -> Option<Sample<'static>> {
        let taken = self.fragments.take(found, fragment, seen);
        // What must go for lack of room is counted, and named by nothing: a flood costs labels alone.
        for given_up in &taken.given_up {
            self.count_gathered(given_up);
        }
        self.count_gathered(&taken.whole?)
    }

    fn count_gathered(&mut self, gathered: &Gathered) -> Option<Sample<'static>> {
        let sent = Traffic { bytes: gathered.bytes, packets: gathered.packets };
        let (found, side) = match self.subject(gathered.packets()) {
            Ok(subject) => subject,
            Err(refused) => {
                self.refuse(refused, sent);
                return None;
            }
        };
        if gathered.is(&found) {
            return self.count(&found, side, sent, gathered.seen).map(Sample::into_owned);
        }
        // A tunnel's. What is in it may be in fragments again; each time a layer is off, of which there are not many.
        if let Some(fragment) = found.fragment() {
            return self.fragment(&found, fragment, gathered.seen);
        }
        let sent = Traffic { bytes: found.bytes(), packets: 1 };
        self.count(&found, side, sent, gathered.seen).map(Sample::into_owned)
    }

    fn refuse(&mut self, refused: Refused, sent: Traffic) {
        let refused = &mut self.refused[refused as usize];
        refused.packets += sent.packets;
        refused.bytes += sent.bytes;
    }

    /// Binds a prefix to a slot; a narrower prefix wins over a wider one.
    pub fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), BindingsFull> {
        if self.bound >= self.limits.bindings && self.bindings.get(&prefix).is_none() {
            return Err(BindingsFull { prefix, limit: self.limits.bindings });
        }
        self.bound += usize::from(self.bindings.insert(prefix.trunc(), slot).is_none());
        Ok(())
    }

    /// Takes a binding back; what was counted stays counted.
    pub fn unbind(&mut self, prefix: IpNet) {
        self.bound -= usize::from(self.bindings.remove(&prefix.trunc()).is_some());
    }

    /// The slot's counters so far.
    pub fn usage(&self, slot: u32) -> SlotUsage {
        self.usage.get(&slot).map_or_else(SlotUsage::default, |usage| **usage)
    }

    /// All bindings.
    pub fn bindings(&self) -> Vec<(IpNet, u32)> {
        self.bindings.iter().map(|(prefix, slot)| (prefix, *slot)).collect()
    }

    /// Counts the flow's further packets in `class`, and goes on handing them out or not. False where the flow is not known
    /// any more.
    pub fn name_flow(&mut self, key: &FlowKey, class: Class, sampling: bool) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return false };
        flow.class = class;
        flow.sampling = sampling;
        true
    }

    /// Forgets flows silent for long, and returns them.
    pub fn sweep(&mut self, now: Micros) -> Vec<Flow> {
        let idle = self.limits.idle;
        self.flows.extract_if(|_, flow| now.since(flow.last) > idle).map(|(_, flow)| flow).collect()
    }

    /// Takes all flows out.
    pub fn into_flows(self) -> impl Iterator<Item = Flow> {
        self.flows.into_values()
    }

    /// How many flows are held.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Whether further flows find no room.
    pub fn is_full(&self) -> bool {
        self.flows.len() >= self.limits.flows
    }

    /// What was not counted, and each bound that took effect, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let refused =
            Refused::ALL.into_iter().map(|reason| (reason.name(), self.refused[reason as usize].packets));
        refused
            .chain(self.fragments.counters())
            .chain([("flow_table_full", self.flows_full), ("sampling_budget_spent", self.budgets_spent)])
            .collect()
    }

    /// Bytes of the frames that were not counted, link-layer header included, by reason.
    pub fn refused_bytes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refused::ALL.into_iter().map(|reason| (reason.name(), self.refused[reason as usize].bytes))
    }

    /// The session's slot and the direction seen from it; `None` for a packet of no session.
    fn session_side(&self, packet: &Packet<'_>) -> Option<Side> {
        if self.bound == 0 {
            return None;
        }
        let slot = |address: IpAddr| self.bindings.get_lpm(&IpNet::from(address)).map(|(_, slot)| *slot);
        if let Some(slot) = slot(packet.source) {
            return Some((slot, Direction::Up));
        }
        slot(packet.destination).map(|slot| (slot, Direction::Down))
    }

    /// See the module's third rule.
    fn anonymous_direction(&self, packet: &Packet<'_>) -> Direction {
        let by_ports = match packet.source_port.cmp(&packet.destination_port) {
            std::cmp::Ordering::Less => Direction::Down,
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Direction::Up,
        };
        // A flow goes on as it began; most began as their ports say, and a look-up is what costs.
        for direction in [by_ports, by_ports.opposite()] {
            if self.flows.contains_key(&flow_key(packet, direction)) {
                return direction;
            }
        }
        if let Payload::Tcp(segment) = packet.payload
            && segment.syn
        {
            return if segment.acknowledges { Direction::Down } else { Direction::Up };
        }
        by_ports
    }

    fn count<'a>(
        &mut self,
        found: &Found<'a>,
        side: Option<Side>,
        sent: Traffic,
        seen: Micros,
    ) -> Option<Sample<'a>> {
        let packet = &found.packet;
        let (slot, direction) = side.unwrap_or_else(|| (ANONYMOUS, self.anonymous_direction(packet)));
        let key = flow_key(packet, direction);
        if self.is_full() && !self.flows.contains_key(&key) {
            self.flows_full += 1;
            count_usage(&mut self.usage, slot, Class::Other, direction, sent);
            return None;
        }
        let flow = self.flows.entry(key).or_insert_with(|| Flow::new(key, found.layers, seen));
        flow.last = flow.last.max(seen);
        let traffic = &mut flow.traffic[direction.index()];
        let is_first = traffic.packets == 0;
        traffic.bytes += sent.bytes;
        traffic.packets += sent.packets;
        count_usage(&mut self.usage, slot, flow.class, direction, sent);
        // A new connection on the ports of an old one may be of another name. It keeps the class until that is known.
        if opens_connection(packet) && !is_first {
            (flow.opened, flow.sampling, flow.samples) = (seen, true, 0);
        }
        if !flow.sampling || !tells_something(packet) {
            return None;
        }
        let unlimited = [key.subscriber_port, key.remote_port].contains(&crate::classify::dns::PORT);
        if !unlimited {
            flow.samples += 1;
            if flow.samples >= self.limits.samples {
                flow.sampling = false;
                self.budgets_spent += 1;
            }
        }
        Some(Sample {
            flow: key,
            slot,
            direction,
            first_packet: flow.opened,
            seen,
            packet: found.ip.get(..self.limits.sample_bytes).unwrap_or(found.ip).into(),
        })
    }
}

impl Flow {
    fn new(key: FlowKey, layers: Layers, first: Micros) -> Self {
        Self {
            key,
            layers,
            first,
            last: first,
            opened: first,
            traffic: [Traffic::default(); 2],
            class: Class::Other,
            sampling: true,
            samples: 0,
        }
    }
}

fn count_usage(
    usage: &mut HashMap<u32, Box<SlotUsage>, RandomState>,
    slot: u32,
    class: Class,
    direction: Direction,
    sent: Traffic,
) {
    let cell = &mut usage.entry(slot).or_default().cells[class.index()][direction.index()];
    cell.bytes += sent.bytes;
    cell.packets += sent.packets;
}

fn opens_connection(packet: &Packet<'_>) -> bool {
    matches!(packet.payload, Payload::Tcp(segment) if segment.syn && !segment.acknowledges)
}

/// A segment without a byte and outside the handshake tells the classifier nothing.
fn tells_something(packet: &Packet<'_>) -> bool {
    match packet.payload {
        Payload::Tcp(segment) => segment.syn || segment.ends || !segment.bytes.is_empty(),
        Payload::Udp(_) | Payload::Other(_) => true,
        Payload::Hidden => false,
    }
}

fn flow_key(packet: &Packet<'_>, direction: Direction) -> FlowKey {
    let source = (packet::octets(packet.source), packet.source_port);
    let destination = (packet::octets(packet.destination), packet.destination_port);
    let ((subscriber, subscriber_port), (remote, remote_port)) = match direction {
        Direction::Up => (source, destination),
        Direction::Down => (destination, source),
    };
    FlowKey { subscriber, remote, subscriber_port, remote_port, protocol: packet.protocol, zero: [0; 3] }
}
