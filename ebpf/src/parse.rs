//! From a frame's bytes to a packet, where it is as most are: Ethernet, IPv4 or IPv6 without options, TCP or UDP; and the same once more in
//! GTP-U.
//!
//! [`plain`] reads those in a straight line; everything else is [`crate::walk`]'s, which reads these too and says the same of them. Reads
//! nothing that it has not checked to be there, whatever the bytes are. Compiles for the kernel and for the host, where property tests drive
//! it; it knows neither maps nor pointers.

use usher_models::wire::{Direction, Reason, TcpFlags, tells};

use crate::walk::Walk;

/// Bytes of an Ethernet header.
pub const ETHERNET: u32 = 14;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// UDP to this port is GTP-U (3GPP TS 29.281, 4.4.2.3).
pub const GTPU_PORT: u16 = 2152;
/// UDP to this port is VXLAN (RFC 7348, 5).
pub const VXLAN_PORT: u16 = 4789;

/// The third word of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), as it lies in memory.
pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// The bytes of a frame, wherever they are.
pub trait Frame {
    /// Bytes of the frame from its first header on.
    fn length(&self) -> u32;

    /// Whether the kernel has put segments of one flow together (GSO, GRO). Such a frame may be longer than its IP header can say.
    fn is_super_packet(&self) -> bool;

    /// `N` times four bytes from `at` on, each as it lies in memory; `None` where they are not at hand at once.
    fn words_at_hand<const N: usize>(&self, at: u32) -> Option<[u32; N]>;

    /// `N` times four bytes from `at` on, each as it lies in memory; `None` beyond the end. `at` is even.
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]>;

    /// Keeps a walk that begins.
    fn begin(&self, walk: Walk);

    /// Takes the next step of the walk that is kept; whether there is another one.
    fn step(&self) -> bool;

    /// How the walk that is kept has ended.
    fn ended(&self) -> Result<u32, Reason>;

    /// Keeps a packet found in the frame, outermost first.
    fn keep(&self, place: u32, packet: &Packet);
}

/// What a frame is to the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination address, the words as they lie in memory; IPv4 addresses are mapped.
    pub ends: [[u32; 4]; 2],
    /// Source and destination port; 0 where there is none to be read.
    pub ports: [u16; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Whether it tells the classifier anything.
    pub worth_a_sample: bool,
    /// Whether it opens a connection, perhaps on the ports of an old one.
    pub opens_connection: bool,
    /// Where its IP header begins.
    pub ip_at: u32,
    /// Its IP bytes, header included.
    pub ip_bytes: u32,
    /// Where its TCP or UDP header begins; 0 where none was read.
    pub transport_at: u32,
    /// Bytes of its IP and transport headers, which each segment of a super-packet has on the wire.
    pub header_bytes: u32,
    /// What kept its ports from being read, if anything did.
    pub trouble: Option<Reason>,
    /// The part of a larger packet that it is.
    pub fragment: Fragment,
}

/// Which part of a larger packet a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    Whole,
    /// The first part, with the ports, of the packet with that identification.
    First(u32),
    /// A later part.
    Later(u32),
}

impl Packet {
    /// Whether there may be another packet in it, of those with ports.
    #[inline(always)]
    const fn may_be_a_tunnel(&self) -> bool {
        let [_, to] = self.ports;
        self.protocol == UDP && matches!(to, GTPU_PORT | VXLAN_PORT)
    }

    /// Addresses and ports with the subscriber's first.
    #[inline(always)]
    pub fn ends_and_ports(&self, direction: Direction) -> ([[u32; 4]; 2], [u16; 2]) {
        let [source, destination] = self.ends;
        let [source_port, destination_port] = self.ports;
        match direction {
            Direction::Up => ([source, destination], [source_port, destination_port]),
            Direction::Down => ([destination, source], [destination_port, source_port]),
        }
    }
}

/// What is in a frame that is as most are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// A packet.
    Packet(Packet),
    /// As between a radio network and its gateway: a packet with a GTP-U header and another one, in this order.
    Gtpu([Packet; 2]),
}

/// What is in a frame that is as most are; `None` where it takes a walk to tell.
#[inline(always)]
pub fn plain<F: Frame>(frame: &F) -> Option<Plain> {
    let outermost = outermost(frame)?;
    if outermost.may_be_a_tunnel() {
        in_gtpu(frame, &outermost).map(|inner| Plain::Gtpu([outermost, inner]))
    } else {
        Some(Plain::Packet(outermost))
    }
}

/// The plain packet in another one, which bears it in GTP-U.
#[inline(always)]
fn in_gtpu<F: Frame>(frame: &F, outer: &Packet) -> Option<Packet> {
    let [_, to] = outer.ports;
    if to != GTPU_PORT {
        return None;
    }
    let at = outer.transport_at + 8;
    let [first] = frame.words_at_hand(at)?;
    let [flags, kind, ..] = first.to_ne_bytes();
    let bytes = gtpu_bytes(flags, kind)?;
    let bytes = if flags & GTPU_EXTENDED == 0 {
        bytes
    } else {
        // The one that is there on N3, a PDU session container (3GPP TS 38.415, 5.5.2), is a word, and no other follows it.
        let [options, extension] = frame.words_at_hand(at + 8)?;
        let [_, _, _, kind] = options.to_ne_bytes();
        let [words, _, _, next] = extension.to_ne_bytes();
        match (kind, words, next) {
            (0, ..) => bytes,
            (_, 1, 0) => bytes + 4,
            _ => return None,
        }
    };
    let at = at + bytes;
    let there = (outer.ip_at + outer.ip_bytes).checked_sub(at)?;
    let [version] = frame.words_at_hand(at)?;
    let ip = match version.to_ne_bytes()[0] >> 4 {
        4 => ipv4(frame, at)?,
        6 => ipv6(frame, at)?,
        _ => return None,
    };
    let inner = packet(frame, at, there, &ip)?;
    if inner.may_be_a_tunnel() { None } else { Some(inner) }
}

/// The packet right behind an Ethernet header, if it is plain or a tunnel's.
#[inline(always)]
fn outermost<F: Frame>(frame: &F) -> Option<Packet> {
    let [word] = frame.words_at_hand(ETHERNET - 4)?;
    let ip = match lower_half(word) {
        ETHERTYPE_IPV4 => ipv4(frame, ETHERNET)?,
        ETHERTYPE_IPV6 => ipv6(frame, ETHERNET)?,
        _ => return None,
    };
    packet(frame, ETHERNET, frame.length().checked_sub(ETHERNET)?, &ip)
}

/// An IP header without options.
struct Ip {
    ends: [[u32; 4]; 2],
    protocol: u8,
    header_bytes: u32,
    /// Bytes of the packet, as it says.
    said: u32,
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, at: u32) -> Option<Ip> {
    let [first, fragment, protocol, source, destination] = frame.words_at_hand(at)?;
    if first.to_ne_bytes()[0] != 0x45 || lower_half(fragment) & 0x3fff != 0 {
        return None;
    }
    Some(Ip {
        ends: [mapped(source), mapped(destination)],
        protocol: protocol.to_ne_bytes()[1],
        header_bytes: 20,
        said: u32::from(lower_half(first)),
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, at: u32) -> Option<Ip> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = frame.words_at_hand(at)?;
    let ends = [[s0, s1, s2, s3], [d0, d1, d2, d3]];
    if first.to_ne_bytes()[0] >> 4 != 6 || is_mapped(&ends[0]) || is_mapped(&ends[1]) {
        return None;
    }
    let [_, _, protocol, _] = second.to_ne_bytes();
    Some(Ip { ends, protocol, header_bytes: 40, said: 40 + u32::from(upper_half(second)) })
}

/// The packet with that IP header at `at`, of which no more than `there` bytes are in the frame; `None` where not all of it is, or its ports
/// cannot be read.
#[inline(always)]
fn packet<F: Frame>(frame: &F, at: u32, there: u32, ip: &Ip) -> Option<Packet> {
    let Ip { ends, protocol, header_bytes, said } = *ip;
    let ip_bytes = if frame.is_super_packet() { there } else { said };
    let payload_bytes = ip_bytes.checked_sub(header_bytes).filter(|_| ip_bytes <= there)?;
    let transport_at = at + header_bytes;
    let (ports, transport_bytes, flags) = match protocol {
        TCP => {
            let [ports, _, _, offset] = frame.words_at_hand(transport_at)?;
            (ports, tcp_header(offset, payload_bytes)?, tcp_flags(offset))
        }
        UDP => {
            let [ports, length] = frame.words_at_hand(transport_at)?;
            (ports, udp_header(frame, length, payload_bytes)?, TcpFlags::default())
        }
        _ => return None,
    };
    Some(Packet {
        ends,
        ports: both_ports(ports),
        protocol,
        worth_a_sample: tells(flags, transport_bytes < payload_bytes),
        opens_connection: flags.open(),
        ip_at: at,
        ip_bytes,
        transport_at,
        header_bytes: header_bytes + transport_bytes,
        trouble: None,
        fragment: Fragment::Whole,
    })
}

/// Bytes of a GTP-U header before its extension headers, by its first two bytes; `None` where it is not around a packet.
#[inline(always)]
pub const fn gtpu_bytes(flags: u8, kind: u8) -> Option<u32> {
    // Version 1, protocol type GTP, message type G-PDU (3GPP TS 29.281, 5.1, 6.1).
    if flags & 0xf0 != 0x30 || kind != 0xff {
        return None;
    }
    // Any of the three flags brings the fields of all.
    Some(match flags & 0x07 {
        0 => 8,
        _ => 12,
    })
}

/// The flag of a GTP-U header that extension headers follow.
pub const GTPU_EXTENDED: u8 = 0x04;

/// The header length of a TCP segment of `bytes` by its fourth word (RFC 9293, 3.1), if it can be.
#[inline(always)]
pub fn tcp_header(word: u32, bytes: u32) -> Option<u32> {
    let header_bytes = u32::from(word.to_ne_bytes()[0] >> 4) * 4;
    (header_bytes >= 20 && header_bytes <= bytes).then_some(header_bytes)
}

/// The flags of a TCP segment by the same word.
#[inline(always)]
pub const fn tcp_flags(word: u32) -> TcpFlags {
    TcpFlags(word.to_ne_bytes()[1])
}

/// The header length of a UDP datagram of `bytes` by its second word (RFC 768), if it can be.
#[inline(always)]
pub fn udp_header<F: Frame>(frame: &F, word: u32, bytes: u32) -> Option<u32> {
    let [high, low, ..] = word.to_ne_bytes();
    // A super-packet's own length may not fit; then it is not one that says nothing.
    let says_nothing = u16::from_be_bytes([high, low]) < 8 && !frame.is_super_packet();
    (bytes >= 8 && !says_nothing).then_some(8)
}

#[inline(always)]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, MAPPED, address]
}

/// Not on a wire (RFC 4942, 2.2): an IPv6 packet from or to it would be counted for whoever has the IPv4 address.
#[inline(always)]
pub const fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

#[inline(always)]
pub fn both_ports(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// The first two of four bytes as they lie in memory, in network order.
#[inline(always)]
pub fn upper_half(word: u32) -> u16 {
    let [high, low, _, _] = word.to_ne_bytes();
    u16::from_be_bytes([high, low])
}

/// The last two likewise.
#[inline(always)]
pub fn lower_half(word: u32) -> u16 {
    let [_, _, high, low] = word.to_ne_bytes();
    u16::from_be_bytes([high, low])
}

#[inline(always)]
pub fn address(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
