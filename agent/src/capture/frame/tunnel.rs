//! Packets in packets: what an IP packet carries instead of a subscriber's payload.
//!
//! Owns IP in IP (RFC 2003, RFC 4213), GRE (RFC 2784, RFC 2890; PPTP's, RFC 2637), GTP-U (3GPP TS 29.281), VXLAN (RFC 7348), Teredo
//! (RFC 4380) and CAPWAP data (RFC 5415) with the frames of IEEE 802.11 in it. What stands on a tunnel's port is a tunnel only if
//! its header says so too. Refuses whatever is encrypted.

use super::{Cut, ETHER_IPV4, ETHER_IPV6, ETHER_MPLS, ETHER_MPLS_MULTICAST, Layer, Layers, Next};
use crate::classify::packet::{Packet, Payload};

pub(super) const GTPU_PORT: u16 = 2152;
pub(super) const VXLAN_PORT: u16 = 4789;
/// VXLAN's before it had one of its own, and still of many overlays.
const VXLAN_OLD_PORT: u16 = 8472;
pub(super) const TEREDO_PORT: u16 = 3544;
pub(super) const CAPWAP_PORT: u16 = 5247;

const ETHER_TRANSPARENT_BRIDGE: u16 = 0x6558;
const ETHER_PPP: u16 = 0x880b;

/// Whether a datagram between these ports may be a tunnel's.
pub(in super::super) fn may_carry_tunnel(ports: [u16; 2]) -> bool {
    ports
        .iter()
        .any(|port| matches!(*port, GTPU_PORT | VXLAN_PORT | VXLAN_OLD_PORT | TEREDO_PORT | CAPWAP_PORT))
}

impl<'a> Cut<'a> {
    /// What a packet carries, if it is a tunnel that can be taken apart; then `self` stands at its content.
    pub(super) fn tunnel(&mut self, outer: &Packet<'a>, layers: &mut Layers) -> Option<Next> {
        let content = match outer.payload {
            Payload::Udp(bytes) | Payload::Other(bytes) => bytes,
            Payload::Tcp(_) | Payload::Hidden => return None,
        };
        let ports = [outer.source_port, outer.destination_port];
        if matches!(outer.payload, Payload::Udp(_)) && !may_carry_tunnel(ports) {
            return None;
        }
        // Padding after the outer packet is none of the content's bytes on the wire.
        let outer_wire = outer.length.and_then(|length| usize::try_from(length).ok()).unwrap_or(self.wire());
        let headers = content.as_ptr().addr().checked_sub(self.rest.as_ptr().addr())?;
        let wire = outer_wire.min(self.wire()).saturating_sub(headers).max(content.len());
        let mut inner = Cut { rest: content, missing: wire - content.len() };
        let (layer, next) = match outer.payload {
            Payload::Other(_) => match outer.protocol {
                4 | 41 => (Layer::IpIp, Next::Ip),
                47 => (Layer::Gre, inner.gre()?),
                _ => return None,
            },
            _ if outer.destination_port == GTPU_PORT => inner.gtpu()?,
            _ if matches!(outer.destination_port, VXLAN_PORT | VXLAN_OLD_PORT) => inner.vxlan()?,
            _ if ports.contains(&TEREDO_PORT) => (Layer::Teredo, inner.teredo()?),
            _ if ports.contains(&CAPWAP_PORT) => (Layer::Capwap, inner.capwap()?),
            _ => return None,
        };
        layers.push(layer).ok()?;
        *self = inner;
        Some(next)
    }

    fn gre(&mut self) -> Option<Next> {
        let [flags, version, type_high, type_low] = *self.take::<4>().ok()?;
        let ether_type = u16::from_be_bytes([type_high, type_low]);
        if version & 7 == 1 && ether_type == ETHER_PPP {
            // PPTP's (RFC 2637, 4.1): length and call, then sequence and acknowledgement numbers.
            self.take::<4>().ok()?;
            self.options([flags & 0x10 != 0, version & 0x80 != 0])?;
            // Most of it is encrypted, and says so where its protocol would stand.
            self.after_hdlc().ok()?;
            return self.ppp().ok();
        }
        // Routing (RFC 1701) is not read.
        if version & 7 != 0 || flags & 0x40 != 0 {
            return None;
        }
        self.options([flags & 0x80 != 0, flags & 0x20 != 0, flags & 0x10 != 0])?;
        match ether_type {
            ETHER_IPV4 | ETHER_IPV6 => Some(Next::Ip),
            ETHER_TRANSPARENT_BRIDGE => Some(Next::Ethernet),
            ETHER_MPLS | ETHER_MPLS_MULTICAST => Some(Next::EtherType(ETHER_MPLS)),
            ETHER_PPP => {
                self.after_hdlc().ok()?;
                self.ppp().ok()
            }
            _ => None,
        }
    }

    /// Passes over the fields of GRE that are there, four octets each.
    fn options<const N: usize>(&mut self, present: [bool; N]) -> Option<()> {
        for _ in present.into_iter().filter(|present| *present) {
            self.take::<4>().ok()?;
        }
        Some(())
    }

    fn gtpu(&mut self) -> Option<(Layer, Next)> {
        let [flags, kind, _, _, teid @ ..] = *self.take::<8>().ok()?;
        // Version 1, protocol type GTP, message type G-PDU.
        if flags & 0xf0 != 0x30 || kind != 0xff {
            return None;
        }
        if flags & 0x07 != 0 {
            let [_, _, _, mut extension] = *self.take::<4>().ok()?;
            while flags & 0x04 != 0 && extension != 0 {
                let length = usize::from(*self.rest.first()?) * 4;
                let header = self.rest.get(..length).filter(|header| !header.is_empty())?;
                extension = *header.last()?;
                self.rest = &self.rest[length..];
            }
        }
        let layer = Layer::Gtpu(u32::from_be_bytes(teid));
        match self.rest.first()? >> 4 {
            4 | 6 => Some((layer, Next::Ip)),
            // An Ethernet session's (3GPP TS 23.501, 5.6.10.2): nothing but its frame says so.
            _ => self.shows_ether_type(12).then_some((layer, Next::Ethernet)),
        }
    }

    fn vxlan(&mut self) -> Option<(Layer, Next)> {
        let [flags, reserved @ .., vni_high, vni_middle, vni_low, last] = *self.take::<8>().ok()?;
        let layer = Layer::Vxlan(u32::from_be_bytes([0, vni_high, vni_middle, vni_low]));
        // Group policies use the bits that the standard reserves.
        let is_plain = flags == 0x08 && reserved == [0; 3] && last == 0;
        (is_plain || (flags & 0x08 != 0 && self.shows_ether_type(12))).then_some((layer, Next::Ethernet))
    }

    /// An IPv6 packet, perhaps after an authentication and an origin (RFC 4380, 5.1.1).
    fn teredo(&mut self) -> Option<Next> {
        if let [0, 1, client, value, ..] = *self.rest {
            self.rest = self.rest.get(13 + usize::from(client) + usize::from(value)..)?;
        }
        if self.rest.starts_with(&[0, 0]) {
            self.take::<8>().ok()?;
        }
        let length = self.rest.get(4..6).map(|length| u16::from_be_bytes([length[0], length[1]]))?;
        (self.rest[0] >> 4 == 6 && 40 + usize::from(length) <= self.wire()).then_some(Next::Ip)
    }

    /// A frame after the data header (RFC 5415, 4.3), if it is not encrypted and not a fragment.
    fn capwap(&mut self) -> Option<Next> {
        let [preamble, high, middle, low, ..] = *self.take::<8>().ok()?;
        let bits = u32::from_be_bytes([0, high, middle, low]);
        let (words, binding, native, fragment) =
            (bits >> 19, bits >> 9 & 0x1f, bits & 0x100 != 0, bits & 0x80 != 0);
        if preamble != 0 || fragment {
            return None;
        }
        self.rest = self.rest.get((usize::try_from(words).ok()? * 4).checked_sub(8)?..)?;
        match (native, binding) {
            (false, _) => Some(Next::Ethernet),
            (true, 1) => self.wireless(),
            (true, _) => None,
        }
    }

    /// An IEEE 802.11 data frame in the clear with a SNAP header (RFC 1042). Some access points swap the octets of its first
    /// field.
    pub(super) fn wireless(&mut self) -> Option<Next> {
        let [first, second, ..] = *self.take::<24>().ok()?;
        let is_data = |octet: u8| octet & 0x0f == 0x08;
        let (kind, flags) = if is_data(first) { (first, second) } else { (second, first) };
        if !is_data(kind) || flags & 0x40 != 0 {
            return None;
        }
        if flags & 3 == 3 {
            self.take::<6>().ok()?; // a fourth address, between access points
        }
        if kind & 0x80 != 0 {
            self.take::<2>().ok()?; // quality of service
        }
        self.snap().ok()
    }
}
