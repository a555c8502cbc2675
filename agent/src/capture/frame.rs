//! From a frame to the IP packets in it: link layers, tags and tunnels taken off, outermost first.
//!
//! Owns the link types that libpcap gives for IP traffic, 802.1Q and 802.1ad tags, MPLS (RFC 3032) with pseudowires of Ethernet
//! (RFC 4448), PPPoE sessions (RFC 2516) and, in `tunnel`, packets in packets. Every step goes forward in the frame and there
//! are at most [`super::layer::MAX_LAYERS`] of them. What does not parse as a tunnel is left as the packet it is. Refuses to
//! remember: a fragment is told as one ([`Found::fragment`]), and put together elsewhere.

mod tunnel;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

pub(super) use self::tunnel::may_carry_tunnel;
pub use super::fragments::Fragment;
pub use super::layer::{Layer, Layers};
use crate::classify::packet::{Packet, Payload};

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_MPLS: u16 = 0x8847;
const ETHER_MPLS_MULTICAST: u16 = 0x8848;
const ETHER_PPPOE_SESSION: u16 = 0x8864;

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

impl Found<'_> {
    /// Which part of its packet it is, if it is not the whole.
    pub fn fragment(&self) -> Option<Fragment> {
        // Of a fragment nothing is shown that a fast look could need.
        matches!(self.packet.payload, Payload::Hidden).then(|| Fragment::of(self.ip)).flatten()
    }

    /// Bytes of the packet by its own header, but never more than were on the wire; those where the header does not say.
    pub fn bytes(&self) -> u64 {
        let length = self.packet.length.and_then(|length| usize::try_from(length).ok());
        length.map_or(self.wire, |length| length.min(self.wire)) as u64
    }
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
#[derive(Debug, Clone, Copy)]
enum Next {
    Ethernet,
    EtherType(u16),
    Ppp,
    Ip,
    Refused(Refused),
    End,
}

/// The IP packets of a frame of libpcap's link type `link`, which had `wire` bytes before it was captured.
pub fn packets(link: i32, frame: &[u8], wire: usize) -> Packets<'_> {
    let mut cut = Cut { rest: frame, missing: wire.saturating_sub(frame.len()) };
    let next = link_layer(link, &mut cut).unwrap_or_else(Next::Refused);
    Packets { cut, next, layers: Layers::default(), inside: false }
}

/// The packets in `ip`, itself one that had `wire` bytes, inside what is already taken off.
pub(super) fn packets_in(ip: &[u8], wire: usize, layers: Layers) -> Packets<'_> {
    let cut = Cut { rest: ip, missing: wire.saturating_sub(ip.len()) };
    Packets { cut, next: Next::Ip, layers, inside: false }
}

/// IP packets, outermost first, each inside the one before. A refusal is the last: of what was to be inside, or of the frame if
/// it comes first.
#[derive(Debug)]
pub struct Packets<'a> {
    cut: Cut<'a>,
    next: Next,
    layers: Layers,
    inside: bool,
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Found<'a>, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = std::mem::replace(&mut self.next, Next::End);
            let step = match next {
                Next::Ethernet => self.cut.ethernet(),
                Next::EtherType(ether_type) => self.cut.ether_type(ether_type, &mut self.layers),
                Next::Ppp => self.cut.ppp(),
                Next::Ip => match self.packet() {
                    Ok(found) => return Some(Ok(found)),
                    Err(refused) => Err(refused),
                },
                Next::Refused(refused) => Err(refused),
                Next::End => return None,
            };
            match step {
                Ok(next) => self.next = next,
                // Of a tunnel that was captured too short, the outer packet is all there is.
                Err(Refused::Truncated | Refused::TooDeep) if self.inside => return None,
                Err(Refused::Malformed) if self.inside && self.cut.missing > 0 => return None,
                Err(refused) => return Some(Err(refused)),
            }
        }
    }
}

impl<'a> Packets<'a> {
    fn packet(&mut self) -> Result<Found<'a>, Refused> {
        let packet = Packet::parse(self.cut.rest).map_err(|_| Refused::Malformed)?;
        let found = Found { ip: self.cut.rest, wire: self.cut.wire(), packet, layers: self.layers };
        self.inside = true;
        self.next = self.cut.tunnel(&packet, &mut self.layers).unwrap_or(Next::End);
        Ok(found)
    }
}

/// Takes the link layer off.
fn link_layer(link: i32, cut: &mut Cut<'_>) -> Result<Next, Refused> {
    match link {
        // EN10MB
        1 => Ok(Next::Ethernet),
        // PPP, PPP_HDLC, and Linux's
        9 | 50 | 166 => {
            cut.after_hdlc()?;
            Ok(Next::Ppp)
        }
        // PPP_WITH_DIR
        204 => {
            cut.take::<1>()?;
            cut.after_hdlc()?;
            Ok(Next::Ppp)
        }
        // PPP_ETHER
        51 => Ok(Next::EtherType(ETHER_PPPOE_SESSION)),
        // C_HDLC
        104 => {
            let [_, _, high, low] = *cut.take::<4>()?;
            Ok(Next::EtherType(u16::from_be_bytes([high, low])))
        }
        // RAW as files and as some systems number it, IPV4, IPV6
        12 | 14 | 101 | 228 | 229 => Ok(Next::Ip),
        // NULL, LOOP: an address family that the version nibble repeats
        0 | 108 => {
            cut.take::<4>()?;
            Ok(Next::Ip)
        }
        // IEEE802_11, and after radiotap's header
        105 => cut.wireless().ok_or(Refused::NotIp),
        127 => {
            let [_, _, low, high] = *cut.take::<4>()?;
            let more = usize::from(u16::from_le_bytes([low, high])).saturating_sub(4);
            cut.rest = cut.rest.get(more..).ok_or(Refused::Truncated)?;
            cut.wireless().ok_or(Refused::NotIp)
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
#[derive(Debug)]
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
            // 802.1Q, 802.1ad and its forerunners
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let [tag_high, tag_low, type_high, type_low] = *self.take::<4>()?;
                layers.push(Layer::Vlan(u16::from_be_bytes([tag_high, tag_low]) & 0x0fff))?;
                Ok(Next::EtherType(u16::from_be_bytes([type_high, type_low])))
            }
            ETHER_MPLS | ETHER_MPLS_MULTICAST => {
                let entry = u32::from_be_bytes(*self.take::<4>()?);
                layers.push(Layer::Mpls(entry >> 12))?;
                if entry & 0x100 == 0 { Ok(Next::EtherType(ETHER_MPLS)) } else { self.labelled() }
            }
            ETHER_PPPOE_SESSION => {
                let [version, code, session_high, session_low, _, _] = *self.take::<6>()?;
                if version != 0x11 || code != 0 {
                    return Err(Refused::NotIp);
                }
                layers.push(Layer::Pppoe(u16::from_be_bytes([session_high, session_low])))?;
                Ok(Next::Ppp)
            }
            // IEEE 802.3: a length, then perhaps a type after all
            0..=1_500 => self.snap(),
            _ => Err(Refused::NotIp),
        }
    }

    /// What stands below the last MPLS label says nowhere what it is: IP, or the frames of a pseudowire with a control word
    /// (RFC 4385) or without.
    fn labelled(&mut self) -> Result<Next, Refused> {
        let version = self.rest.first().ok_or(Refused::Truncated)? >> 4;
        let frame = match version {
            // An Ethernet address may begin so too.
            4 | 6 => self.shows_ether_type(12) && !self.is_sound_ip(),
            0 if self.shows_ether_type(4 + 12) => {
                self.take::<4>()?;
                true
            }
            _ => self.shows_ether_type(12),
        };
        match version {
            _ if frame => Ok(Next::Ethernet),
            4 | 6 => Ok(Next::Ip),
            _ => Err(Refused::NotIp),
        }
    }

    /// Whether what begins like an IP header has the sum or the length of one.
    fn is_sound_ip(&self) -> bool {
        match Ipv4HeaderSlice::from_slice(self.rest) {
            Ok(header) => header.to_header().calc_header_checksum() == header.header_checksum(),
            Err(_) => Ipv6HeaderSlice::from_slice(self.rest)
                .is_ok_and(|header| 40 + usize::from(header.payload_length()) <= self.wire()),
        }
    }

    /// Whether the type of something with IP in it stands so far on, and IP after it if it says so.
    fn shows_ether_type(&self, at: usize) -> bool {
        let Some(shown) = self.rest.get(at..at + 3) else { return false };
        match u16::from_be_bytes([shown[0], shown[1]]) {
            ETHER_IPV4 => shown[2] >> 4 == 4,
            ETHER_IPV6 => shown[2] >> 4 == 6,
            other => {
                matches!(other, 0x8100 | 0x88a8 | ETHER_PPPOE_SESSION | ETHER_MPLS | ETHER_MPLS_MULTICAST)
            }
        }
    }

    /// An IEEE 802.2 header with an Ethernet type in it (RFC 1042).
    fn snap(&mut self) -> Result<Next, Refused> {
        match *self.take::<8>()? {
            [0xaa, 0xaa, 3, 0, 0, 0, high, low] => Ok(Next::EtherType(u16::from_be_bytes([high, low]))),
            _ => Err(Refused::NotIp),
        }
    }

    /// Passes over the address and control octets that PPP may leave out (RFC 1662, 3.1; RFC 1661, 6.6).
    fn after_hdlc(&mut self) -> Result<(), Refused> {
        if self.rest.starts_with(&[0xff, 0x03]) {
            self.take::<2>()?;
        }
        Ok(())
    }

    /// A PPP protocol field (RFC 1661, 2), perhaps compressed to its one odd octet (6.5).
    fn ppp(&mut self) -> Result<Next, Refused> {
        let [first] = *self.take::<1>()?;
        let protocol = match first & 1 {
            1 => u16::from(first),
            _ => u16::from_be_bytes([first, self.take::<1>()?[0]]),
        };
        match protocol {
            0x0021 | 0x0057 => Ok(Next::Ip),
            0x0281 => Ok(Next::EtherType(ETHER_MPLS)),
            _ => Err(Refused::NotIp),
        }
    }
}

#[cfg(test)]
mod tests;
