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
//! Of packets in packets the outermost with a session's address counts, for what is inside is that subscriber's tunnel; where
//! none has one, the innermost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::{self, ANONYMOUS, Direction, FlowKey, MAX_FIRST_BYTES, SlotUsage};

use super::apps::Apps;
use super::flow::{Flow, Traffic, flow_key, opening_direction, opens_connection, tells_something, turned};
use super::fragments::{FragmentLimits, Fragments, Gathered};
use super::frame::{self, Found, Fragment, Packets, Refused};
use super::plain;
use super::slab::{Place, Slab};
use crate::classify::Verdict;
use crate::classify::packet::Packet;
use crate::dataplane::{ForApp, Sample};
use crate::usage::Baseline;
use crate::usage::apps::AppMoved;

/// Bounds of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct TableLimits {
    /// Flows held; about 120 bytes each and their verdicts. Where there is no room for another, an eighth of them goes: those
    /// that nobody answered first, as a scan or a flood leaves them, then the longest silent.
    pub flows: usize,
    /// Whether flows that had to go are kept for who lists them.
    pub keeps_given_up: bool,
    /// Apps of slots whose bytes are counted at one time.
    pub apps: u32,
    /// Prefixes bound to slots.
    pub bindings: usize,
    /// Packets of a connection handed to the classifier, unless it asks for more.
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
            flows: 1_048_576,
            keeps_given_up: false,
            apps: 65_536,
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

/// The slot a packet counts for, and its direction seen from there.
type Side = (u32, Direction);

/// Sessions' prefixes, flows and counters.
#[derive(Debug)]
pub struct Table {
    limits: TableLimits,
    bindings: JointPrefixMap<IpNet, u32>,
    bound: usize,
    flows: Slab,
    /// Those that had to go for lack of room, if they are kept.
    given_up: Vec<Flow>,
    /// The flow that was sampled last: whose verdict comes next.
    sampled: Option<Place>,
    /// Whether there ever was a session, between two of which there may be a flow each way.
    sessions: bool,
    anonymous: Box<SlotUsage>,
    usage: HashMap<u32, Box<SlotUsage>, RandomState>,
    apps: Apps,
    fragments: Fragments,
    refused: [Traffic; Refused::ALL.len()],
    flows_given_up: u64,
    budgets_spent: u64,
}

impl Table {
    /// An empty table.
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            bindings: JointPrefixMap::new(),
            bound: 0,
            flows: Slab::default(),
            given_up: Vec::new(),
            sampled: None,
            sessions: false,
            anonymous: Box::default(),
            usage: HashMap::default(),
            apps: Apps::new(limits.apps),
            fragments: Fragments::new(limits.fragments),
            refused: [Traffic::default(); Refused::ALL.len()],
            flows_given_up: 0,
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
        let overdue = self.fragments.overdue(now);
        self.count_all_gathered(overdue)
    }

    /// As [`Self::overdue_fragments`], of all that wait: no more frames will come.
    pub fn rest_of_fragments(&mut self) -> Vec<Sample<'static>> {
        let mut samples = Vec::new();
        loop {
            let rest = self.fragments.rest();
            if rest.is_empty() {
                return samples;
            }
            // Tunnels' leave what they carry, which may be in fragments again.
            samples.extend(self.count_all_gathered(rest));
        }
    }

    /// Which packet of those in each other counts, and for whom.
    fn subject<'a>(&self, packets: Packets<'a>) -> Result<(Found<'a>, Option<Side>), Refused> {
        let mut innermost = Err(Refused::NotIp);
        for found in packets {
            let found = found?;
            let side = self.session_side(&found.packet);
            if side.is_some() {
                return Ok((found, side));
            }
            innermost = Ok((found, None));
        }
        innermost
    }

    fn fragment(&mut self, found: &Found<'_>, fragment: Fragment, seen: Micros) -> Option<Sample<'static>> {
        let mut given_up = Vec::new();
        let sample = self.take_fragment(found, fragment, seen, &mut given_up);
        // What must go for lack of room is counted, and named by nothing: a flood costs labels alone.
        self.count_all_gathered(given_up);
        sample
    }

    /// What goes for lack of room is added to `given_up`.
    fn take_fragment(
        &mut self,
        found: &Found<'_>,
        fragment: Fragment,
        seen: Micros,
        given_up: &mut Vec<Gathered>,
    ) -> Option<Sample<'static>> {
        let taken = self.fragments.take(found, fragment, seen);
        given_up.extend(taken.given_up);
        self.count_gathered(&taken.whole?, given_up)
    }

    /// One after the other, for what is in one may make another go, and so on through all that wait.
    fn count_all_gathered(&mut self, mut gathered: Vec<Gathered>) -> Vec<Sample<'static>> {
        let mut samples = Vec::new();
        let mut given_up = Vec::new();
        while !gathered.is_empty() {
            for gathered in &gathered {
                samples.extend(self.count_gathered(gathered, &mut given_up));
            }
            gathered = std::mem::take(&mut given_up);
        }
        samples
    }

    fn count_gathered(
        &mut self,
        gathered: &Gathered,
        given_up: &mut Vec<Gathered>,
    ) -> Option<Sample<'static>> {
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
            return self.take_fragment(&found, fragment, gathered.seen, given_up);
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
        self.sessions = true;
        self.bound += usize::from(self.bindings.insert(prefix.trunc(), slot).is_none());
        Ok(())
    }

    /// Takes a binding back; what was counted stays counted.
    pub fn unbind(&mut self, prefix: IpNet) {
        self.bound -= usize::from(self.bindings.remove(&prefix.trunc()).is_some());
    }

    /// The slot's counters so far.
    pub fn usage(&self, slot: u32) -> SlotUsage {
        let usage = if slot == ANONYMOUS { Some(&self.anonymous) } else { self.usage.get(&slot) };
        usage.map_or_else(SlotUsage::default, |usage| **usage)
    }

    /// All bindings.
    pub fn bindings(&self) -> Vec<(IpNet, u32)> {
        self.bindings.iter().map(|(prefix, slot)| (prefix, *slot)).collect()
    }

    /// Counts the flow's further packets in `class`, and goes on handing them out or not. False where the flow is not known
    /// any more.
    pub fn name_flow(&mut self, key: &FlowKey, class: Class, sampling: bool) -> bool {
        let Some(flow) = self.flow(key) else { return false };
        flow.class = class;
        flow.sampling = sampling;
        true
    }

    /// Counts the bytes of a flow's further packets for an app of a slot, or for none.
    pub fn count_for_app(&mut self, key: &FlowKey, slot: u32, app: Option<&str>) -> ForApp {
        let Some(place) = self.place(key) else { return ForApp::Not };
        let app = app.filter(|_| slot != ANONYMOUS);
        let lane = app.and_then(|app| self.apps.lane(slot, app));
        if let Some(flow) = self.flows.get_mut(place) {
            flow.app = lane;
        }
        match (app, lane) {
            (_, Some(_)) => ForApp::Counted,
            (Some(_), None) => ForApp::Full,
            (None, None) => ForApp::Not,
        }
    }

    /// The bytes by app that are not where the baseline has them, in the order of lanes. What is told entirely and used no more is free from
    /// here on.
    pub fn moved_apps(&mut self, baseline: &Baseline) -> Vec<AppMoved> {
        self.apps.moved(baseline)
    }

    /// Apps of slots that are counted.
    pub fn apps(&self) -> usize {
        self.apps.len()
    }

    /// Keeps a flow's verdict with it, if it is still known.
    pub fn keep_verdict(&mut self, key: &FlowKey, verdict: Arc<Verdict>) {
        if let Some(flow) = self.flow(key) {
            flow.verdict = Some(verdict);
        }
    }

    /// Forgets flows silent for long, and returns them.
    pub fn sweep(&mut self, now: Micros) -> Vec<Flow> {
        let idle = self.limits.idle;
        let swept = self.flows.extract(|flow| now.since(flow.last) > idle);
        self.apps.swept(self.flows.iter().filter_map(|flow| flow.app));
        swept
    }

    /// Whether flows had to go since they were last taken.
    pub fn has_given_up(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// Takes the flows that had to go.
    pub fn take_given_up(&mut self) -> Vec<Flow> {
        std::mem::take(&mut self.given_up)
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter()
    }

    /// How many flows are held.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Gives an eighth of the flows up, so that of many new flows each costs the same.
    fn make_room(&mut self) {
        let mut ranks: Vec<u64> = self.flows.iter().map(Flow::rank).collect();
        let mut room = ranks.len().div_ceil(8);
        let Some(nth) = room.checked_sub(1) else { return };
        let last = *ranks.select_nth_unstable(nth).1;
        drop(ranks);
        let given_up = self.flows.extract(|flow| {
            let goes = room > 0 && flow.rank() <= last;
            room -= usize::from(goes);
            goes
        });
        self.flows_given_up += given_up.len() as u64;
        if self.limits.keeps_given_up {
            self.given_up.extend(given_up);
        }
    }

    /// What was not counted, and each bound that took effect, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let refused =
            Refused::ALL.into_iter().map(|reason| (reason.name(), self.refused[reason as usize].packets));
        refused
            .chain(self.fragments.counters())
            .chain([("flow_table_full", self.flows_given_up), ("sampling_budget_spent", self.budgets_spent)])
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

    /// The flow of a packet of this side, else of nobody's, and which way it goes in it. A flow goes on as it began.
    fn known(&self, up: &FlowKey, hash: u64, side: Option<Side>) -> Option<(Place, Direction)> {
        let exactly = |direction| Some((self.flows.find(hash, &turned(up, direction))?, direction));
        match side {
            Some((_, direction)) => exactly(direction),
            None => match self.flows.find_either(hash, up)? {
                // Between sessions of the past there may be a flow each way: then each its sender's.
                down @ (_, Direction::Down) if self.sessions => exactly(Direction::Up).or(Some(down)),
                either => Some(either),
            },
        }
    }

    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        let place = self.place(key)?;
        self.flows.get_mut(place)
    }

    fn place(&self, key: &FlowKey) -> Option<Place> {
        let sampled =
            self.sampled.filter(|place| self.flows.get(*place).is_some_and(|flow| flow.key == *key));
        sampled.or_else(|| self.flows.find(self.flows.hash(key), key))
    }

    /// Counts a packet for the session whose side it shows, else for anonymous.
    fn count<'a>(
        &mut self,
        found: &Found<'a>,
        side: Option<Side>,
        sent: Traffic,
        seen: Micros,
    ) -> Option<Sample<'a>> {
        let packet = &found.packet;
        let up = flow_key(packet);
        let hash = self.flows.hash(&up);
        let known = self.known(&up, hash, side);
        let slot = side.map_or(ANONYMOUS, |(slot, _)| slot);
        let direction = match (known, side) {
            (Some((_, direction)), _) | (None, Some((_, direction))) => direction,
            (None, None) => opening_direction(packet),
        };
        let place = if let Some((place, _)) = known {
            Some(place)
        } else {
            if self.flows.len() >= self.limits.flows {
                self.make_room();
            }
            self.flows.insert(hash, Flow::new(turned(&up, direction), &found.layers, seen))
        };
        let usage = if slot == ANONYMOUS { &mut self.anonymous } else { self.usage.entry(slot).or_default() };
        let Some((place, flow)) = place.and_then(|place| Some((place, self.flows.get_mut(place)?))) else {
            count_usage(usage, Class::Other, direction, sent);
            return None;
        };
        flow.last = flow.last.max(seen);
        let traffic = &mut flow.traffic[direction.index()];
        traffic.bytes += sent.bytes;
        traffic.packets += sent.packets;
        count_usage(usage, flow.class, direction, sent);
        flow.app = flow.app.map(|lane| self.apps.count(lane, slot, direction, sent.bytes));
        // A new connection on the ports of an old one may be of another name. It keeps the class until that is known.
        if opens_connection(packet) {
            (flow.opened, flow.sampling, flow.samples) = (seen, true, 0);
        }
        if !flow.sampling || !tells_something(packet) {
            return None;
        }
        let key = flow.key;
        if !wire::tells_without_end([key.subscriber_port, key.remote_port]) {
            // More than the budget, where the classifier asks for more.
            flow.samples = flow.samples.saturating_add(1);
            if flow.samples >= self.limits.samples {
                flow.sampling = false;
                self.budgets_spent += 1;
            }
        }
        self.sampled = Some(place);
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

fn count_usage(usage: &mut SlotUsage, class: Class, direction: Direction, sent: Traffic) {
    let cell = &mut usage.cells[class.index()][direction.index()];
    cell.bytes += sent.bytes;
    cell.packets += sent.packets;
}
