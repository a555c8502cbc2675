//! A flow, and what a packet says of the one it belongs to. Sans-I/O.
//!
//! Owns what is kept of a flow; refuses to count: [`super::table`] does.

use std::sync::Arc;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::{self, Direction, FlowKey, TcpFlags};

use super::apps::Lane;
use super::layer::{Layer, Layers};
use crate::classify::Verdict;
use crate::classify::packet::{self, Packet, Payload};

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
    /// Tags and tunnels around its first packet, if any.
    layers: Option<Box<Layers>>,
    /// What it was found to be, where that is kept for who lists it.
    pub verdict: Option<Arc<Verdict>>,
    /// First packet.
    pub first: Micros,
    /// Last packet.
    pub last: Micros,
    /// By direction.
    pub traffic: [Traffic; 2],
    /// First packet of the last connection on these ports.
    pub(super) opened: Micros,
    pub(super) class: Class,
    pub(super) sampling: bool,
    pub(super) samples: u16,
    /// The lane its bytes are counted in, if it is of an app.
    pub(super) app: Option<Lane>,
}

impl Flow {
    pub(super) fn new(key: FlowKey, layers: &Layers, first: Micros) -> Self {
        Self {
            key,
            layers: (*layers != Layers::default()).then(|| Box::new(*layers)),
            verdict: None,
            first,
            last: first,
            opened: first,
            traffic: [Traffic::default(); 2],
            class: Class::Other,
            sampling: true,
            samples: 0,
            app: None,
        }
    }

    /// Tags and tunnels around its first packet, outermost first.
    pub fn layers(&self) -> impl Iterator<Item = Layer> + '_ {
        self.layers.iter().flat_map(|layers| layers.iter())
    }

    /// The order of flows that began at the same time.
    pub fn order(&self) -> impl Ord + '_ {
        let key = &self.key;
        (&key.subscriber, key.subscriber_port, &key.remote, key.remote_port, key.protocol)
    }

    /// The lower, the sooner it goes where there is no room: its last packet's time, after that of all that nobody answered.
    pub(super) fn rank(&self) -> u64 {
        let answered = u64::from(self.traffic.iter().all(|way| way.packets > 0));
        let age = self.last.get().cast_unsigned() ^ 1 << 63;
        answered << 63 | age >> 1
    }
}

pub(super) fn opens_connection(packet: &Packet<'_>) -> bool {
    matches!(packet.payload, Payload::Tcp(segment) if segment.flags.open())
}

/// Whether the classifier is shown it, as the probe would.
pub(super) fn tells_something(packet: &Packet<'_>) -> bool {
    match packet.payload {
        Payload::Tcp(segment) => wire::tells(segment.flags, !segment.bytes.is_empty()),
        Payload::Udp(datagram) => wire::tells(TcpFlags::default(), !datagram.is_empty()),
        Payload::Other(_) => true,
        Payload::Hidden => false,
    }
}

/// The key of a flow in which this packet goes up.
pub(super) fn flow_key(packet: &Packet<'_>) -> FlowKey {
    FlowKey {
        subscriber: packet::octets(packet.source),
        remote: packet::octets(packet.destination),
        subscriber_port: packet.source_port,
        remote_port: packet.destination_port,
        protocol: packet.protocol,
        zero: [0; 3],
    }
}

/// The key of a flow in which what goes up by `up` goes that way.
pub(super) const fn turned(up: &FlowKey, direction: Direction) -> FlowKey {
    match direction {
        Direction::Up => *up,
        Direction::Down => FlowKey {
            subscriber: up.remote,
            remote: up.subscriber,
            subscriber_port: up.remote_port,
            remote_port: up.subscriber_port,
            protocol: up.protocol,
            zero: up.zero,
        },
    }
}

/// Which way the first packet goes of a flow that is nobody's: see the module's third rule.
pub(super) fn opening_direction(packet: &Packet<'_>) -> Direction {
    let by_ports = match packet.source_port.cmp(&packet.destination_port) {
        std::cmp::Ordering::Less => Direction::Down,
        std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Direction::Up,
    };
    match packet.payload {
        Payload::Tcp(segment) if segment.flags.open() => Direction::Up,
        Payload::Tcp(segment) if segment.flags.any(TcpFlags::SYN) => Direction::Down,
        _ => by_ports,
    }
}
