//! From a frame to the IP packets in it: link layers, tags and tunnels taken off, outermost first.
//!
//! Owns the link types that libpcap gives for IP traffic, 802.1Q and 802.1ad tags, MPLS (RFC 3032), PPPoE sessions (RFC
//! 2516), IP in IP (RFC 2003, RFC 4213), GRE (RFC 2784, RFC 2890), GTP-U (3GPP TS 29.281), VXLAN (RFC 7348), Teredo (RFC 4380)
//! and CAPWAP data (RFC 5415) with the frames of IEEE 802.11 in it. Every step
//! goes forward in the frame and there are at most [`super::layer::MAX_LAYERS`] of them. What does not parse as a tunnel is left as the
//! packet it is.

pub use super::layer::{Layer, Layers};
use crate::classify::packet::{Packet, Payload};

/// Most IP packets in each other.
const MAX_PACKETS: usize = 4;

const GTPU_PORT: u16 = 2152;
const VXLAN_PORT: u16 = 4789;
const TEREDO_PORT: u16 = 3544;
const CAPWAP_PORT: u16 = 5247;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_MPLS: u16 = 0x8847;
const ETHER_MPLS_MULTICAST: u16 = 0x8848;
const ETHER_PPPOE_SESSION: u16 = 0x8864;
const ETHER_TRANSPARENT_BRIDGE: u16 = 0x6558;

/// An IP packet in a frame.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// From its IP header on, perhaps cut short.
    pub ip: &'a [u8],
    /// Bytes the frame had on the wire from the IP header on.
    pub wire: usize,
    /// What it says about itself.
    pub packet: Packet<'a>,
    /// What was around it.
    pub layers: Layers,
}

/// Why a frame was not taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// ARP, spanning tree, ...: nothing of a subscriber's.
    NotIp,
    /// Cut short, or too short for what it says it is.
    Truncated,
    /// An IP header that contradicts itself.
    Malformed,
    /// More tags and tunnels than are taken off.
    TooDeep,
    /// A link layer that is not known here.
    UnknownLink,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NotIp, Self::Truncated, Self::Malformed, Self::TooDeep, Self::UnknownLink];

    /// As counters call it; the probe's words where it has them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated_link",
            Self::Malformed => "bad_ip",
            Self::TooDeep => "too_many_tags",
            Self::UnknownLink => "unknown_link",
        }
    }
}

/// What comes next in a frame.
enum Next {
    Ethernet,
    EtherType(u16),
    Ppp,
    Ip,
}

/// The IP packets of a frame of libpcap's link type `link`, which had `wire` bytes before it was captured; outermost first,
/// at least one.
pub fn packets(link: i32, frame: &[u8], wire: usize) -> Result<Vec<Found<'_>>, Refused> {
    let mut cut = Cut { rest: frame, missing: wire.saturating_sub(frame.len()) };
    let mut layers = Layers::default();
    let mut next = link_layer(link, &mut cut)?;
    let mut found: Vec<Found<'_>> = Vec::with_capacity(1);
    let refused = loop {
        let step = match next {
            Next::Ethernet => cut.ethernet(),
            Next::EtherType(ether_type) => cut.ether_type(ether_type, &mut layers),
            Next::Ppp => cut.ppp(),
            Next::Ip => {
                let packet = Packet::parse(cut.rest);
                let Ok(packet) = packet else {
                    break found.is_empty().then_some(Refused::Malformed);
                };
                found.push(Found { ip: cut.rest, wire: cut.wire(), packet, layers });
                if found.len() >= MAX_PACKETS {
                    break None;
                }
                match cut.tunnel(&packet, &mut layers) {
                    Some(next) => Ok(next),
                    None => break None,
                }
            }
        };
        match step {
            Ok(step) => next = step,
            Err(refused) => break found.is_empty().then_some(refused),
        }
    };
    refused.map_or(Ok(found), Err)
}

/// Whether a datagram between these ports may be a tunnel's.
pub(super) fn may_carry_tunnel(ports: [u16; 2]) -> bool {
    ports.iter().any(|port| matches!(*port, GTPU_PORT | VXLAN_PORT | TEREDO_PORT | CAPWAP_PORT))
}

/// Takes the link layer off.
fn link_layer(link: i32, cut: &mut Cut<'_>) -> Result<Next, Refused> {
    match link {
        // EN10MB
        1 => Ok(Next::Ethernet),
        // PPP, PPP_HDLC: the protocol, perhaps after the HDLC address and control bytes
        9 | 50 => {
            if cut.rest.starts_with(&[0xff, 0x03]) {
                cut.take::<2>()?;
            }
            Ok(Next::Ppp)
        }
        // RAW as files and as some systems number it, IPV4, IPV6
        12 | 14 | 101 | 228 | 229 => Ok(Next::Ip),
        // NULL, LOOP: an address family that the version nibble repeats
        0 | 108 => {
            cut.take::<4>()?;
            Ok(Next::Ip)
        }
        // LINUX_SLL
        113 => {
            Ok(Next::EtherType(u16::from_be_bytes(cut.take::<16>()?[14..].try_into().unwrap_or_default())))
        }
        // LINUX_SLL2
        276 => Ok(Next::EtherType(u16::from_be_bytes(cut.take::<20>()?[..2].try_into().unwrap_or_default()))),
        _ => Err(Refused::UnknownLink),
    }
}

/// What is left of a frame, and how much of its end was not captured.
struct Cut<'a> {
    rest: &'a [u8],
    missing: usize,
}

impl<'a> Cut<'a> {
    fn wire(&self) -> usize {
        self.rest.len() + self.missing
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Refused> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Refused::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn ethernet(&mut self) -> Result<Next, Refused> {
        let header = self.take::<14>()?;
        Ok(Next::EtherType(u16::from_be_bytes([header[12], header[13]])))
    }

    fn ether_type(&mut self, ether_type: u16, layers: &mut Layers) -> Result<Next, Refused> {
        match ether_type {
            ETHER_IPV4 | ETHER_IPV6 => Ok(Next::Ip),
            // 802.1Q, 802.1ad and its forerunner
            0x8100 | 0x88a8 | 0x9100 => {
                let [tag_high, tag_low, type_high, type_low] = *self.take::<4>()?;
                layers.push(Layer::Vlan(u16::from_be_bytes([tag_high, tag_low]) & 0x0fff))?;
                Ok(Next::EtherType(u16::from_be_bytes([type_high, type_low])))
            }
            ETHER_MPLS | ETHER_MPLS_MULTICAST => {
                let entry = u32::from_be_bytes(*self.take::<4>()?);
                layers.push(Layer::Mpls(entry >> 12))?;
                if entry & 0x100 == 0 {
                    return Ok(Next::EtherType(ETHER_MPLS));
                }
                match self.rest.first().map(|first| first >> 4) {
                    Some(4 | 6) => Ok(Next::Ip),
                    // A pseudowire's control word (RFC 4385), then Ethernet.
                    Some(0) => self.take::<4>().map(|_| Next::Ethernet),
                    Some(_) => Err(Refused::NotIp),
                    None => Err(Refused::Truncated),
                }
            }
            ETHER_PPPOE_SESSION => {
                let [version, code, session_high, session_low, _, _] = *self.take::<6>()?;
                if version != 0x11 || code != 0 {
                    return Err(Refused::NotIp);
                }
                layers.push(Layer::Pppoe(u16::from_be_bytes([session_high, session_low])))?;
                Ok(Next::Ppp)
            }
            _ => Err(Refused::NotIp),
        }
    }

    /// A PPP protocol field (RFC 1661, 2).
    fn ppp(&mut self) -> Result<Next, Refused> {
        match u16::from_be_bytes(*self.take::<2>()?) {
            0x0021 | 0x0057 => Ok(Next::Ip),
            _ => Err(Refused::NotIp),
        }
    }

    /// What a packet carries instead of a subscriber's payload, if it is a tunnel that can be taken apart; then `self` stands
    /// at its content.
    fn tunnel(&mut self, outer: &Packet<'a>, layers: &mut Layers) -> Option<Next> {
        let content = match outer.payload {
            Payload::Udp(bytes) | Payload::Other(bytes) => bytes,
            Payload::Tcp(_) | Payload::Hidden => return None,
        };
        // Padding after the outer packet is none of the content's bytes on the wire.
        let outer_wire = outer.length.and_then(|length| usize::try_from(length).ok()).unwrap_or(self.wire());
        let headers = content.as_ptr().addr().checked_sub(self.rest.as_ptr().addr())?;
        let wire = outer_wire.min(self.wire()).saturating_sub(headers).max(content.len());
        let mut inner = Cut { rest: content, missing: wire - content.len() };
        let ports = [outer.source_port, outer.destination_port];
        if matches!(outer.payload, Payload::Udp(_)) && !may_carry_tunnel(ports) {
            return None;
        }
        let (layer, next) = match outer.payload {
            Payload::Other(_) => match outer.protocol {
                4 | 41 => (Layer::IpIp, Next::Ip),
                47 => (Layer::Gre, inner.gre()?),
                _ => return None,
            },
            _ if outer.destination_port == GTPU_PORT => inner.gtpu()?,
            _ if outer.destination_port == VXLAN_PORT => inner.vxlan()?,
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
        if version & 7 == 1 && ether_type == 0x880b {
            // PPTP's (RFC 2637, 4.1): length and call, then sequence and acknowledgement numbers.
            self.take::<4>().ok()?;
            for present in [flags & 0x10 != 0, version & 0x80 != 0] {
                if present {
                    self.take::<4>().ok()?;
                }
            }
            if self.rest.starts_with(&[0xff, 0x03]) {
                self.take::<2>().ok()?;
            }
            return Some(Next::Ppp);
        }
        // Routing (RFC 1701) is not read.
        if version & 7 != 0 || flags & 0x40 != 0 {
            return None;
        }
        for present in [flags & 0x80 != 0, flags & 0x20 != 0, flags & 0x10 != 0] {
            if present {
                self.take::<4>().ok()?;
            }
        }
        match ether_type {
            ETHER_IPV4 | ETHER_IPV6 => Some(Next::Ip),
            ETHER_TRANSPARENT_BRIDGE => Some(Next::Ethernet),
            ETHER_MPLS => Some(Next::EtherType(ETHER_MPLS)),
            _ => None,
        }
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
        matches!(self.rest.first()? >> 4, 4 | 6).then_some((Layer::Gtpu(u32::from_be_bytes(teid)), Next::Ip))
    }

    fn vxlan(&mut self) -> Option<(Layer, Next)> {
        let [flags, _, _, _, vni @ .., _] = *self.take::<8>().ok()?;
        let [a, b, c] = vni;
        (flags & 0x08 != 0).then_some((Layer::Vxlan(u32::from_be_bytes([0, a, b, c])), Next::Ethernet))
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
    fn wireless(&mut self) -> Option<Next> {
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
        match *self.take::<8>().ok()? {
            [0xaa, 0xaa, 3, 0, 0, 0, high, low] => Some(Next::EtherType(u16::from_be_bytes([high, low]))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const ETHERNET: i32 = 1;
    const ETHERNET_HEADER: [u8; 12] = [0; 12];

    fn inner() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .udp(5_000, 443)
            .write(&mut bytes, b"abc")
            .unwrap();
        bytes
    }

    fn outer_udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
            .udp(port, port)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn outer_ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
            .write(&mut bytes, etherparse::IpNumber(protocol), payload)
            .unwrap();
        bytes
    }

    fn ethernet(ether_type: u16, content: &[&[u8]]) -> Vec<u8> {
        [&ETHERNET_HEADER[..], &ether_type.to_be_bytes(), &content.concat()].concat()
    }

    /// What is around the innermost packet, and that this is the whole of [`inner`].
    fn layers(link: i32, frame: &[u8]) -> String {
        let found = packets(link, frame, frame.len()).unwrap();
        let innermost = found.last().unwrap();
        assert_eq!(innermost.ip, inner(), "the innermost packet");
        assert_eq!(innermost.wire, inner().len());
        innermost.layers.iter().map(|layer| layer.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tags_labels_and_tunnels_are_taken_off() {
        let ip = inner();
        let gtpu = |flags: u8, rest: &[u8]| {
            let header = [flags, 0xff, 0, 0, 0, 0, 0x12, 0x34];
            outer_udp(GTPU_PORT, &[&header[..], rest, &ip].concat())
        };
        let whole = ethernet(0x0800, &[&ip]);
        for (frame, expected) in [
            (ethernet(0x0800, &[&ip]), ""),
            (ethernet(0x8100, &[&[0x20, 100, 8, 0], &ip]), "vlan:100"),
            (ethernet(0x88a8, &[&[0, 7, 0x81, 0], &[0, 8, 8, 0], &ip]), "vlan:7 vlan:8"),
            (ethernet(0x8847, &[&[0, 1, 0, 64], &[0, 2, 1, 64], &ip]), "mpls:16 mpls:32"),
            (ethernet(0x8847, &[&[0, 1, 1, 64], &[0; 4], &whole]), "mpls:16"),
            (ethernet(0x8864, &[&[0x11, 0, 0, 9, 0, 33], &[0, 0x21], &ip]), "pppoe:9"),
            (ethernet(0x0800, &[&outer_ip(4, &ip)]), "ipip"),
            (ethernet(0x0800, &[&outer_ip(47, &[&[0, 0, 8, 0][..], &ip].concat())]), "gre"),
            (
                ethernet(0x0800, &[&outer_ip(47, &[&[0xb0, 0, 0x65, 0x58][..], &[0; 12], &whole].concat())]),
                "gre",
            ),
            (
                ethernet(
                    0x0800,
                    &[&outer_ip(
                        47,
                        &[&[0x30, 0x81, 0x88, 0x0b][..], &[0; 12], &[0xff, 3, 0, 0x21], &ip].concat(),
                    )],
                ),
                "gre",
            ),
            (ethernet(0x0800, &[&gtpu(0x30, b"")]), "gtpu:4660"),
            (ethernet(0x0800, &[&gtpu(0x32, &[0, 1, 0, 0])]), "gtpu:4660"),
            (ethernet(0x0800, &[&gtpu(0x34, &[0, 0, 0, 0x85, 1, 16, 1, 0])]), "gtpu:4660"),
            (
                ethernet(
                    0x0800,
                    &[&outer_udp(VXLAN_PORT, &[&[8, 0, 0, 0, 0, 0, 5, 0][..], &whole].concat())],
                ),
                "vxlan:5",
            ),
            (
                ethernet(
                    0x0800,
                    &[&outer_udp(CAPWAP_PORT, &[&[0, 0x10, 0, 0, 0, 0, 0, 0][..], &whole].concat())],
                ),
                "capwap",
            ),
            (
                ethernet(0x0800, &[&outer_udp(CAPWAP_PORT, &[wireless(0x08, 0x11), ip.clone()].concat())]),
                "capwap",
            ),
            (
                ethernet(0x0800, &[&outer_udp(CAPWAP_PORT, &[wireless(0x11, 0x08), ip.clone()].concat())]),
                "capwap",
            ),
        ] {
            assert_eq!(layers(ETHERNET, &frame), expected, "{frame:02x?}");
        }
    }

    /// CAPWAP's header with wireless information, an 802.11 header and a SNAP header, before IPv4.
    fn wireless(first: u8, second: u8) -> Vec<u8> {
        let capwap = [0, 0x20, 0x03, 0x20, 0, 0, 0, 0, 4, 1, 2, 3, 0, 0, 0, 0];
        [&capwap[..], &[first, second], &[7; 22], &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]].concat()
    }

    #[test]
    fn teredo_is_taken_off_with_what_stands_before_its_packet() {
        let mut ip = Vec::new();
        PacketBuilder::ipv6([0x20; 16], [0x26; 16], 64).udp(5_000, 443).write(&mut ip, b"abc").unwrap();
        let authentication = [&[0, 1, 1, 2][..], &[9; 12]].concat();
        for before in [vec![], vec![0, 0, 1, 2, 3, 4, 5, 6], authentication] {
            let frame =
                ethernet(0x0800, &[&outer_udp(TEREDO_PORT, &[&before, &ip].map(|part| &part[..]).concat())]);
            let found = packets(ETHERNET, &frame, frame.len()).unwrap();
            assert_eq!((found.len(), found[1].ip), (2, &ip[..]));
            assert_eq!(found[1].layers.iter().collect::<Vec<_>>(), [Layer::Teredo]);
        }
    }

    #[test]
    fn every_link_type_of_ip_is_read() {
        let ip = inner();
        let cooked = [&[0; 14][..], &[8, 0], &ip].concat();
        let cooked_2 = [&[8, 0][..], &[0; 18], &ip].concat();
        for (link, frame) in [
            (101, ip.clone()),
            (12, ip.clone()),
            (228, ip.clone()),
            (113, cooked),
            (276, cooked_2),
            (0, [&[2, 0, 0, 0][..], &ip].concat()),
            (9, [&[0xff, 3, 0, 0x21][..], &ip].concat()),
            (9, [&[0, 0x21][..], &ip].concat()),
        ] {
            assert_eq!(layers(link, &frame), "", "link type {link}");
        }
        assert_eq!(packets(999, &ip, ip.len()).unwrap_err(), Refused::UnknownLink);
    }

    #[test]
    fn what_is_no_tunnel_on_a_tunnels_port_stays_a_packet() {
        for payload in
            [&b""[..], b"x", &[0x30, 1, 0, 0, 0, 0, 0, 0], &[0x34, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]]
        {
            let frame = ethernet(0x0800, &[&outer_udp(GTPU_PORT, payload)]);
            let found = packets(ETHERNET, &frame, frame.len()).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].layers, Layers::default());
        }
    }

    #[test]
    fn frames_that_hide_or_lack_their_packet_are_refused_with_a_reason() {
        let tags = [0x81, 0, 0, 1].repeat(20);
        for (frame, expected) in [
            (vec![0; 13], Refused::Truncated),
            (ethernet(0x0806, &[&[0; 28]]), Refused::NotIp),
            (ethernet(0x8100, &[&[0, 1]]), Refused::Truncated),
            (ethernet(0x8100, &[&[0, 1], &tags]), Refused::TooDeep),
            (ethernet(0x0800, &[&[0x45, 0, 0]]), Refused::Malformed),
            (ethernet(0x0800, &[]), Refused::Malformed),
            (ethernet(0x8863, &[&[0x11, 9, 0, 0, 0, 0]]), Refused::NotIp),
        ] {
            assert_eq!(packets(ETHERNET, &frame, frame.len()).unwrap_err(), expected, "{frame:02x?}");
        }
    }

    #[test]
    fn packets_nested_without_end_are_taken_apart_to_a_bound() {
        let mut nested = inner();
        for _ in 0..50 {
            nested = outer_ip(4, &nested);
        }
        let frame = ethernet(0x0800, &[&nested]);
        assert_eq!(packets(ETHERNET, &frame, frame.len()).unwrap().len(), MAX_PACKETS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_or_refused(
            link in prop_oneof![Just(1), Just(0), Just(9), Just(101), Just(113), Just(276)],
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            more in 0_usize..3_000,
        ) {
            let _ = packets(link, &bytes, bytes.len() + more);
        }

        #[test]
        fn any_tunnel_is_taken_apart_or_left(
            protocol in prop_oneof![Just(4_u8), Just(41), Just(47), Just(17)],
            port in prop_oneof![
                Just(GTPU_PORT), Just(VXLAN_PORT), Just(TEREDO_PORT), Just(CAPWAP_PORT)],
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
            more in 0_usize..3_000,
        ) {
            let packet = if protocol == 17 { outer_udp(port, &bytes) } else { outer_ip(protocol, &bytes) };
            let found = packets(101, &packet, packet.len() + more).unwrap();
            prop_assert!(!found.is_empty() && found.len() <= MAX_PACKETS);
            for packet in found {
                prop_assert!(packet.wire >= packet.ip.len());
            }
        }
    }
}
