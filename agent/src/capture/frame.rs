//! From a frame to the IP packets in it: link layers, tags and tunnels taken off, outermost first.
//!
//! Owns the link types that libpcap gives for IP traffic, 802.1Q and 802.1ad tags, MPLS (RFC 3032), PPPoE sessions (RFC
//! 2516), IP in IP (RFC 2003, RFC 4213), GRE (RFC 2784, RFC 2890), GTP-U (3GPP TS 29.281) and VXLAN (RFC 7348). Every step
//! goes forward in the frame and there are at most [`MAX_LAYERS`] of them. What does not parse as a tunnel is left as the
//! packet it is.

use std::fmt;

use crate::classify::packet::{Packet, Payload};

/// Most tags and tunnels taken off a frame.
pub const MAX_LAYERS: usize = 8;
/// Most IP packets in each other.
const MAX_PACKETS: usize = 4;

const GTPU_PORT: u16 = 2152;
const VXLAN_PORT: u16 = 4789;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_MPLS: u16 = 0x8847;
const ETHER_MPLS_MULTICAST: u16 = 0x8848;
const ETHER_PPPOE_SESSION: u16 = 0x8864;
const ETHER_TRANSPARENT_BRIDGE: u16 = 0x6558;

/// One tag or tunnel around a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A VLAN id.
    Vlan(u16),
    /// An MPLS label.
    Mpls(u32),
    /// A PPPoE session id.
    Pppoe(u16),
    /// IP in IP, any versions.
    IpIp,
    /// GRE.
    Gre,
    /// A GTP-U tunnel endpoint id.
    Gtpu(u32),
    /// A VXLAN network id.
    Vxlan(u32),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan(id) => write!(f, "vlan:{id}"),
            Self::Mpls(label) => write!(f, "mpls:{label}"),
            Self::Pppoe(session) => write!(f, "pppoe:{session}"),
            Self::IpIp => f.write_str("ipip"),
            Self::Gre => f.write_str("gre"),
            Self::Gtpu(teid) => write!(f, "gtpu:{teid}"),
            Self::Vxlan(vni) => write!(f, "vxlan:{vni}"),
        }
    }
}

/// Tags and tunnels, outermost first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layers {
    list: [Option<Layer>; MAX_LAYERS],
}

impl Layers {
    /// Outermost first.
    pub fn iter(&self) -> impl Iterator<Item = Layer> + '_ {
        self.list.iter().map_while(|layer| *layer)
    }

    fn push(&mut self, layer: Layer) -> Result<(), Refused> {
        let free = self.list.iter_mut().find(|layer| layer.is_none()).ok_or(Refused::TooDeep)?;
        *free = Some(layer);
        Ok(())
    }
}

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
        let headers = content.as_ptr().addr() - self.rest.as_ptr().addr();
        let wire = outer_wire.min(self.wire()).saturating_sub(headers).max(content.len());
        let mut inner = Cut { rest: content, missing: wire - content.len() };
        let (layer, next) = match outer.payload {
            Payload::Other(_) => match outer.protocol {
                4 | 41 => (Layer::IpIp, Next::Ip),
                47 => (Layer::Gre, inner.gre()?),
                _ => return None,
            },
            _ if outer.destination_port == GTPU_PORT => inner.gtpu()?,
            _ if outer.destination_port == VXLAN_PORT => inner.vxlan()?,
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
}
