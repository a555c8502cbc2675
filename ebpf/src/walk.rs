//! From a frame's bytes to the packets in it, whatever is around them: tags, tunnels, options, extension headers, fragments.
//!
//! Opens 802.1Q and 802.1ad tags, MPLS (RFC 3032), PPPoE sessions (RFC 2516), IP in IP (RFC 2003, RFC 4213), GRE (RFC 2784, RFC
//! 2890, RFC 2637), GTP-U (3GPP TS 29.281) and VXLAN (RFC 7348), in each other. One step reads one header and goes forward in
//! the frame; steps, layers and packets are bounded. What does not parse as a tunnel is left as the packet it is, and so is what
//! is in a fragment. The agent's `capture::frame` opens the same and Teredo and CAPWAP besides.

use usher_models::wire::{Reason, TcpFlags, tells};

use crate::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, Frame, GTPU_EXTENDED, GTPU_PORT, Packet, TCP, UDP, VXLAN_PORT,
    both_ports, gtpu_bytes, is_mapped, lower_half, mapped, tcp_flags, tcp_header, udp_header, upper_half,
};

/// Tags and tunnels looked through.
pub const MAX_LAYERS: u32 = 8;
/// IP packets in each other.
pub const MAX_PACKETS: u32 = 4;
/// IPv6 extension headers of a packet looked through (RFC 8200 lists six, each at most once).
pub const MAX_EXTENSIONS: u32 = 6;
/// Headers read in all: the layers, an IP and a transport header of each packet, and some extension headers.
const MAX_STEPS: u32 = 24;

const ETHERTYPE_VLAN: u32 = 0x8100;
const ETHERTYPE_QINQ: u32 = 0x88a8;
/// Before 802.1ad had its number, and still in the field.
const ETHERTYPE_OLD_QINQ: u32 = 0x9100;
const ETHERTYPE_MPLS: u32 = 0x8847;
const ETHERTYPE_MPLS_MULTICAST: u32 = 0x8848;
const ETHERTYPE_PPPOE: u32 = 0x8864;
const ETHERTYPE_BRIDGED: u16 = 0x6558;
const ETHERTYPE_PPTP: u16 = 0x880b;

const HOP_BY_HOP: u32 = 0;
const IP_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
pub const GRE: u8 = 47;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;
const MOBILITY: u32 = 135;
const HIP: u32 = 139;
const SHIM6: u32 = 140;

/// What is to be read next: below, what an ethertype names; from here on, what has none.
const FIRST: u32 = 0x1_0000;
/// An Ethernet header.
pub const ETHERNET_HEADER: u32 = FIRST;
/// An IP header of either version.
pub const IP_HEADER: u32 = FIRST + 1;
const PPP_PROTOCOL: u32 = FIRST + 2;
/// A GTP-U extension header.
const GTPU_EXTENSION: u32 = FIRST + 3;
/// What follows an IPv4 header, whose number is [`Walk::kind`].
const AFTER_IPV4: u32 = FIRST + 4;
/// What follows an IPv6 header or one of its extensions, likewise.
const AFTER_IPV6: u32 = FIRST + 5;

/// The parts of a packet, as [`Walk::part`] has them.
const WHOLE: u32 = 0;
const FIRST_PART: u32 = 1;
const LATER_PART: u32 = 2;

/// Where a step leads.
enum Step {
    /// To the next header.
    On,
    /// Nowhere: the last packet is found.
    End,
}

/// A walk through a frame.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Where the next header begins.
    at: u32,
    /// What it is.
    next: u32,
    /// Its protocol number, where `next` leaves that open.
    kind: u32,
    /// Where the bytes of the packet around it end.
    end: u32,
    layers: u32,
    extensions: u32,
    /// Packets found and kept.
    found: u32,
    /// The packet whose headers are being read.
    packet: Packet,
    /// Which part of a larger packet it is, and of which.
    part: u32,
    identification: u32,
    /// Why it found no packet, if it found none.
    refused: Reason,
}

/// The packets in a frame that begins with a `first` header: how many were kept, at least one.
///
/// # Errors
///
/// The [`Reason`] for which there is no IP packet to count; it is always one that [`Reason::outside_usage`] names.
#[inline(always)]
pub fn walk<F: Frame>(frame: &F, first: u32) -> Result<u32, Reason> {
    frame.begin(Walk::new(first, frame.length()));
    for _ in 0..MAX_STEPS {
        if !frame.step() {
            break;
        }
    }
    frame.ended()
}

const NOTHING: Packet = Packet {
    ends: [[0; 4]; 2],
    ports: [0; 2],
    protocol: 0,
    worth_a_sample: false,
    opens_connection: false,
    ip_at: 0,
    ip_bytes: 0,
    transport_at: 0,
    header_bytes: 0,
    trouble: None,
    fragment: Fragment::Whole,
};

impl Walk {
    #[inline(always)]
    const fn new(first: u32, length: u32) -> Self {
        Self {
            at: 0,
            next: first,
            kind: 0,
            end: length,
            layers: 0,
            extensions: 0,
            found: 0,
            packet: NOTHING,
            part: WHOLE,
            identification: 0,
            refused: Reason::TooManyTags,
        }
    }

    /// Reads one header; whether there is another one to be read.
    #[inline(always)]
    pub fn step<F: Frame>(&mut self, frame: &F) -> bool {
        match self.read(frame) {
            Ok(Step::On) => true,
            Ok(Step::End) => false,
            Err(reason) => {
                self.refused = reason;
                false
            }
        }
    }

    /// What [`walk`] says when no step is left to be taken.
    #[inline(always)]
    pub const fn ended(&self) -> Result<u32, Reason> {
        if self.found == 0 { Err(self.refused) } else { Ok(self.found) }
    }

    #[inline(always)]
    fn read<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        match self.next {
            ETHERNET_HEADER => {
                let [ethertype] = self.link_words(frame, 10)?;
                self.go(14, u32::from(lower_half(ethertype)))
            }
            PPP_PROTOCOL => {
                let [protocol] = self.link_words(frame, 0)?;
                match upper_half(protocol) {
                    // RFC 1332, RFC 5072
                    0x0021 | 0x0057 => self.go(2, IP_HEADER),
                    _ => Err(Reason::NotIp),
                }
            }
            ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_OLD_QINQ => {
                let [tag] = self.link_words(frame, 0)?;
                self.layer()?;
                self.go(4, u32::from(lower_half(tag)))
            }
            ETHERTYPE_MPLS | ETHERTYPE_MPLS_MULTICAST => self.mpls(frame),
            ETHERTYPE_PPPOE => {
                let [first] = self.link_words(frame, 0)?;
                let [version, code, ..] = first.to_ne_bytes();
                if version != 0x11 || code != 0 {
                    return Err(Reason::NotIp);
                }
                self.layer()?;
                self.go(6, PPP_PROTOCOL)
            }
            IP_HEADER => self.ip(frame),
            AFTER_IPV6 if is_extension(self.kind) && self.part != LATER_PART => self.extension(frame),
            AFTER_IPV4 if self.kind == AUTHENTICATION && self.part != LATER_PART => self.extension(frame),
            AFTER_IPV4 | AFTER_IPV6 => self.transport(frame),
            GTPU_EXTENSION => self.gtpu_extension(frame),
            next if next == u32::from(ETHERTYPE_IPV4) || next == u32::from(ETHERTYPE_IPV6) => {
                self.go(0, IP_HEADER)
            }
            _ => Err(Reason::NotIp),
        }
    }

    /// Words of a link-layer header, from `skipped` bytes into it.
    #[inline(always)]
    fn link_words<F: Frame, const N: usize>(&self, frame: &F, skipped: u32) -> Result<[u32; N], Reason> {
        frame.words(self.at + skipped).ok_or(Reason::TruncatedLink)
    }

    #[inline(always)]
    fn go(&mut self, bytes: u32, next: u32) -> Result<Step, Reason> {
        self.at += bytes;
        self.next = next;
        Ok(Step::On)
    }

    #[inline(always)]
    fn layer(&mut self) -> Result<(), Reason> {
        self.layers += 1;
        if self.layers > MAX_LAYERS { Err(Reason::TooManyTags) } else { Ok(()) }
    }

    #[inline(always)]
    fn mpls<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        let [entry] = self.link_words(frame, 0)?;
        self.layer()?;
        let [_, _, bottom, _] = entry.to_ne_bytes();
        if bottom & 1 == 0 {
            return self.go(4, ETHERTYPE_MPLS);
        }
        let [content] = self.link_words(frame, 4)?;
        match content.to_ne_bytes()[0] >> 4 {
            4 | 6 => self.go(4, IP_HEADER),
            // A pseudowire's control word (RFC 4385), then Ethernet.
            0 => self.go(8, ETHERNET_HEADER),
            _ => Err(Reason::NotIp),
        }
    }

    #[inline(always)]
    fn ip<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        let at = self.at;
        let there = self.end.saturating_sub(at);
        let [first, second, third, a, b] = frame.words(at).ok_or(Reason::TruncatedIp)?;
        let version = first.to_ne_bytes()[0];
        let mut packet = Packet { ip_at: at, ..NOTHING };
        let (header_bytes, said, protocol) = match version >> 4 {
            4 => {
                let header_bytes = u32::from(version & 0x0f) * 4;
                if header_bytes < 20 {
                    return Err(Reason::BadIp);
                }
                packet.ends = [mapped(a), mapped(b)];
                let offset = lower_half(second);
                self.identification = u32::from(upper_half(second));
                self.part = part(offset & 0x1fff != 0, offset & 0x2000 != 0);
                self.next = AFTER_IPV4;
                (header_bytes, u32::from(lower_half(first)), third.to_ne_bytes()[1])
            }
            6 => {
                let [_, s3, d0, d1, d2, d3] = frame.words(at + 16).ok_or(Reason::TruncatedIp)?;
                packet.ends = [[third, a, b, s3], [d0, d1, d2, d3]];
                self.part = WHOLE;
                self.next = AFTER_IPV6;
                if is_mapped(&packet.ends[0]) || is_mapped(&packet.ends[1]) {
                    return Err(Reason::BadIp);
                }
                let [high, low, protocol, _] = second.to_ne_bytes();
                // A jumbogram says how long it is in its options (RFC 2675). Linux takes any packet for one that says nothing and has any.
                let said = match (u16::from_be_bytes([high, low]), u32::from(protocol)) {
                    (0, HOP_BY_HOP) => there,
                    (payload_bytes, _) => 40 + u32::from(payload_bytes),
                };
                (40, said, protocol)
            }
            _ => return Err(Reason::BadIp),
        };
        let ip_bytes = if frame.is_super_packet() { there } else { said };
        if ip_bytes > there {
            return Err(Reason::TruncatedIp);
        }
        if ip_bytes < header_bytes {
            return Err(Reason::BadIp);
        }
        packet.ip_bytes = ip_bytes;
        packet.header_bytes = header_bytes;
        self.packet = packet;
        self.end = at + ip_bytes;
        self.extensions = 0;
        self.kind = u32::from(protocol);
        self.go(header_bytes, self.next)
    }

    #[inline(always)]
    fn extension<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        // The first eight bytes of any of them.
        let read = if self.extensions < MAX_EXTENSIONS && self.at + 8 <= self.end {
            frame.words::<2>(self.at)
        } else {
            None
        };
        let Some([word, identification]) = read else { return self.give_up(frame, Reason::Extensions) };
        let [next, size, high, low] = word.to_ne_bytes();
        let bytes = match self.kind {
            FRAGMENT => {
                let offset = u16::from_be_bytes([high, low]);
                self.identification = identification;
                self.part = part(offset & 0xfff8 != 0, offset & 1 != 0);
                8
            }
            AUTHENTICATION => (u32::from(size) + 2) * 4,
            _ => (u32::from(size) + 1) * 8,
        };
        if self.at + bytes > self.end {
            self.packet.header_bytes = self.packet.ip_bytes;
            return self.give_up(frame, Reason::Extensions);
        }
        self.packet.header_bytes += bytes;
        self.extensions += 1;
        self.kind = u32::from(next);
        self.go(bytes, self.next)
    }

    /// Ends at a packet whose ports cannot be read.
    #[inline(always)]
    fn give_up<F: Frame>(&mut self, frame: &F, reason: Reason) -> Result<Step, Reason> {
        self.packet.trouble = Some(reason);
        self.packet.protocol = self.kind as u8;
        self.keep(frame);
        Ok(Step::End)
    }

    #[inline(always)]
    fn keep<F: Frame>(&mut self, frame: &F) {
        // Read whatever is made of it: the verifier refuses what would lie in its place where it were not.
        let identification = self.identification;
        self.packet.fragment = match self.part {
            WHOLE => Fragment::Whole,
            FIRST_PART => Fragment::First(identification),
            _ => Fragment::Later(identification),
        };
        frame.keep(self.found, &self.packet);
        self.found += 1;
    }

    /// Reads ports, keeps the packet, and goes into it where it is a tunnel.
    #[inline(always)]
    fn transport<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        let at = self.at;
        let payload_bytes = self.end.saturating_sub(at);
        let protocol = self.kind as u8;
        let packet = &mut self.packet;
        packet.protocol = protocol;
        let later = self.part == LATER_PART;
        packet.worth_a_sample = !later;
        packet.opens_connection = false;
        if !later && (protocol == TCP || protocol == UDP) {
            let read = if protocol == TCP {
                frame.words::<4>(at).and_then(|[ports, _, _, word]| {
                    Some((ports, tcp_header(word, payload_bytes)?, tcp_flags(word)))
                })
            } else {
                frame.words::<2>(at).and_then(|[ports, word]| {
                    Some((ports, udp_header(frame, word, payload_bytes)?, TcpFlags::default()))
                })
            };
            let Some((ports, bytes, flags)) = read else {
                packet.worth_a_sample = false;
                return self.give_up(frame, Reason::BadTransport);
            };
            packet.ports = both_ports(ports);
            packet.transport_at = at;
            packet.header_bytes += bytes;
            packet.worth_a_sample = tells(flags, bytes < payload_bytes);
            packet.opens_connection = flags.open();
        }
        let [_, to] = packet.ports;
        self.keep(frame);
        if self.part != WHOLE || self.found >= MAX_PACKETS {
            return Ok(Step::End);
        }
        match protocol {
            IP_IN_IP | IPV6_IN_IP => {
                self.layer()?;
                self.go(0, IP_HEADER)
            }
            GRE => self.gre(frame),
            UDP if to == GTPU_PORT => self.gtpu(frame),
            UDP if to == VXLAN_PORT => {
                let Some([_, _, flags]) = frame.words(at) else { return Ok(Step::End) };
                if flags.to_ne_bytes()[0] & 0x08 == 0 {
                    return Ok(Step::End);
                }
                self.layer()?;
                self.go(16, ETHERNET_HEADER)
            }
            _ => Ok(Step::End),
        }
    }

    #[inline(always)]
    fn gre<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        let Some([first]) = frame.words(self.at) else { return Ok(Step::End) };
        let [flags, version, ..] = first.to_ne_bytes();
        let ethertype = lower_half(first);
        let words = |bits: u8, mask: u8| u32::from(bits & mask != 0) * 4;
        if version & 7 == 1 && ethertype == ETHERTYPE_PPTP {
            // Length and call, then sequence and acknowledgement numbers (RFC 2637, 4.1); then perhaps HDLC's two bytes.
            let mut bytes = 8 + words(flags, 0x10) + words(version, 0x80);
            if let Some([content]) = frame.words(self.at + bytes)
                && upper_half(content) == 0xff03
            {
                bytes += 2;
            }
            self.layer()?;
            return self.go(bytes, PPP_PROTOCOL);
        }
        // Routing (RFC 1701) is not read.
        if version & 7 != 0 || flags & 0x40 != 0 {
            return Ok(Step::End);
        }
        let content = match ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => IP_HEADER,
            ETHERTYPE_BRIDGED => ETHERNET_HEADER,
            other if u32::from(other) == ETHERTYPE_MPLS => ETHERTYPE_MPLS,
            _ => return Ok(Step::End),
        };
        self.layer()?;
        self.go(4 + words(flags, 0x80) + words(flags, 0x20) + words(flags, 0x10), content)
    }

    #[inline(always)]
    fn gtpu<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        let Some([_, _, first]) = frame.words(self.at) else { return Ok(Step::End) };
        let [flags, kind, ..] = first.to_ne_bytes();
        let Some(bytes) = gtpu_bytes(flags, kind) else { return Ok(Step::End) };
        self.layer()?;
        if bytes == 8 {
            return self.go(8 + bytes, IP_HEADER);
        }
        let Some([options]) = frame.words(self.at + 16) else { return Ok(Step::End) };
        let extension = if flags & GTPU_EXTENDED == 0 { 0 } else { options.to_ne_bytes()[3] };
        self.after_gtpu(8 + bytes, extension)
    }

    #[inline(always)]
    fn gtpu_extension<F: Frame>(&mut self, frame: &F) -> Result<Step, Reason> {
        // Its length in words comes first, the next one's type last (5.2.1).
        let Some([first]) = frame.words(self.at) else { return Ok(Step::End) };
        let bytes = u32::from(first.to_ne_bytes()[0]) * 4;
        if bytes == 0 {
            return Ok(Step::End);
        }
        let Some([last]) = frame.words(self.at + bytes - 4) else { return Ok(Step::End) };
        self.after_gtpu(bytes, last.to_ne_bytes()[3])
    }

    #[inline(always)]
    fn after_gtpu(&mut self, bytes: u32, extension: u8) -> Result<Step, Reason> {
        self.kind = u32::from(extension);
        self.go(bytes, if extension == 0 { IP_HEADER } else { GTPU_EXTENSION })
    }
}

const fn part(later: bool, more: bool) -> u32 {
    match (later, more) {
        (true, _) => LATER_PART,
        (false, true) => FIRST_PART,
        (false, false) => WHOLE,
    }
}

const fn is_extension(protocol: u32) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6
    )
}
