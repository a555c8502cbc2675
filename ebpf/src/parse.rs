//! From a frame's bytes to a flow: Ethernet, VLAN tags, IPv4, IPv6, TCP, UDP.
//!
//! Reads nothing that it has not checked to be there, in a bounded number of steps, whatever the bytes are. Compiles for
//! the kernel and for the host, where property tests drive it; it knows neither maps nor pointers.

use usher_models::wire::{Direction, FlowKey, Reason};

/// VLAN tags looked through, in the frame itself: QinQ. The kernel may have taken an outer one off before.
pub const MAX_TAGS: u32 = 2;
/// IPv6 extension headers looked through (RFC 8200 lists six, each at most once).
pub const MAX_EXTENSIONS: u32 = 6;

/// Bytes of an Ethernet header.
pub const ETHERNET: u32 = 14;
const TAG: u32 = 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Before 802.1ad had its number, and still in the field.
const ETHERTYPE_OLD_QINQ: u16 = 0x9100;

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The bytes of a frame, wherever they are.
pub trait Frame {
    /// Bytes of the frame from its Ethernet header on.
    fn length(&self) -> u32;

    /// Whether the kernel has put segments of one flow together (GSO, GRO). Such a frame may be longer than its IP header can say.
    fn is_super_packet(&self) -> bool;

    /// `N` times four bytes from `at` on, each as it lies in memory; `None` beyond the end. `at` is even.
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]>;
}

/// What a frame is to the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Its flow.
    pub flow: FlowKey,
    /// Where its IP header begins.
    pub ip_at: u32,
    /// Its IP bytes, header included.
    pub ip_bytes: u32,
    /// Bytes of its IP and transport headers, which each segment of a super-packet has on the wire.
    pub header_bytes: u32,
    /// What kept its ports from being read, if anything did.
    pub trouble: Option<Reason>,
    /// Whether it has anything in it for a classifier: transport payload, or a protocol without ports.
    pub worth_a_sample: bool,
}

/// The packet in a frame going in `direction`.
///
/// # Errors
///
/// The [`Reason`] for which there is no IP packet to count; it is always one that [`Reason::outside_usage`] names.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, direction: Direction) -> Result<Packet, Reason> {
    let mut at = ETHERNET;
    // The ethertype is at 12, so that a read from 12 has it and the first tag's content.
    let mut ethertype = ethertype(frame, 12)?;
    let mut tags = 0;
    while matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_OLD_QINQ) {
        if tags == MAX_TAGS {
            return Err(Reason::TooManyTags);
        }
        ethertype = self::ethertype(frame, at + 2)?;
        at += TAG;
        tags += 1;
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at, direction),
        ETHERTYPE_IPV6 => ipv6(frame, at, direction),
        _ => Err(Reason::NotIp),
    }
}

/// The ethertype at `at`; what follows it is only read where there is enough for any IP header.
#[inline(always)]
fn ethertype<F: Frame>(frame: &F, at: u32) -> Result<u16, Reason> {
    let [word] = frame.words::<1>(at - 2).ok_or(Reason::TruncatedLink)?;
    Ok(lower_half(word))
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, at: u32, direction: Direction) -> Result<Packet, Reason> {
    let header = frame.words::<5>(at).ok_or(Reason::TruncatedIp)?;
    let [first, fragment, protocol, source, destination] = header;
    let first = first.to_ne_bytes();
    let header_bytes = u32::from(first[0] & 0x0f) * 4;
    if first[0] >> 4 != 4 || header_bytes < 20 {
        return Err(Reason::BadIp);
    }
    let said = u32::from(u16::from_be_bytes([first[2], first[3]]));
    let ip_bytes = length(frame, at, said)?;
    if ip_bytes < header_bytes {
        return Err(Reason::BadIp);
    }
    let later_fragment = lower_half(fragment) & 0x1fff != 0;
    let protocol = protocol.to_ne_bytes()[1];
    let mapped = |address: u32| [0, 0, MAPPED, address];
    let ends = Ends { source: mapped(source), destination: mapped(destination) };
    Ok(transport(
        frame,
        Inner { at, ip_bytes, header_bytes, protocol, later_fragment, trouble: None },
        &ends,
        direction,
    ))
}

/// The third word of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), as it lies in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, at: u32, direction: Direction) -> Result<Packet, Reason> {
    let header = frame.words::<10>(at).ok_or(Reason::TruncatedIp)?;
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    if first.to_ne_bytes()[0] >> 4 != 6 {
        return Err(Reason::BadIp);
    }
    let second = second.to_ne_bytes();
    let said = 40 + u32::from(u16::from_be_bytes([second[0], second[1]]));
    let ip_bytes = length(frame, at, said)?;
    let ends = Ends { source: [s0, s1, s2, s3], destination: [d0, d1, d2, d3] };
    if ends.source[..3] == [0, 0, MAPPED] || ends.destination[..3] == [0, 0, MAPPED] {
        // Not on a wire (RFC 4942, 2.2); it would be counted for whoever has the IPv4 address.
        return Err(Reason::BadIp);
    }

    let mut inner =
        Inner { at, ip_bytes, header_bytes: 40, protocol: second[2], later_fragment: false, trouble: None };
    let mut extensions = 0;
    while is_extension(inner.protocol) {
        // The first eight bytes of any of them; a later fragment's extension headers are in the first one.
        let read = if extensions < MAX_EXTENSIONS && inner.header_bytes + 8 <= ip_bytes {
            frame.words::<2>(at + inner.header_bytes)
        } else {
            None
        };
        let Some([word, _]) = read else {
            inner.trouble = Some(Reason::Extensions);
            break;
        };
        let [next, size, high, low] = word.to_ne_bytes();
        inner.header_bytes += match inner.protocol {
            FRAGMENT => {
                inner.later_fragment = u16::from_be_bytes([high, low]) & 0xfff8 != 0;
                8
            }
            AUTHENTICATION => (u32::from(size) + 2) * 4,
            _ => (u32::from(size) + 1) * 8,
        };
        if inner.header_bytes > ip_bytes {
            inner.header_bytes = ip_bytes;
            inner.trouble = Some(Reason::Extensions);
            break;
        }
        inner.protocol = next;
        if inner.later_fragment {
            break;
        }
        extensions += 1;
    }
    Ok(transport(frame, inner, &ends, direction))
}

const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6
    )
}

/// An IP packet up to its transport header.
#[derive(Clone, Copy)]
struct Inner {
    at: u32,
    ip_bytes: u32,
    header_bytes: u32,
    protocol: u8,
    later_fragment: bool,
    trouble: Option<Reason>,
}

/// Who with whom, as the words lie in memory.
struct Ends {
    source: [u32; 4],
    destination: [u32; 4],
}

#[inline(always)]
fn transport<F: Frame>(frame: &F, inner: Inner, ends: &Ends, direction: Direction) -> Packet {
    let Inner { at, ip_bytes, mut header_bytes, protocol, later_fragment, mut trouble } = inner;
    let mut ports = [0_u16; 2];
    let payload_bytes = ip_bytes - header_bytes;
    let mut worth_a_sample = !later_fragment && trouble.is_none();
    if worth_a_sample && (protocol == TCP || protocol == UDP) {
        let transport_bytes = if protocol == TCP {
            tcp(frame, at + header_bytes, payload_bytes)
        } else {
            udp(frame, at + header_bytes, payload_bytes)
        };
        if let Some((read, bytes)) = transport_bytes {
            ports = read;
            header_bytes += bytes;
            worth_a_sample = bytes < payload_bytes;
        } else {
            trouble = Some(Reason::BadTransport);
            worth_a_sample = false;
        }
    }
    let [source_port, destination_port] = ports;
    let source = address(ends.source);
    let destination = address(ends.destination);
    let ((subscriber, subscriber_port), (remote, remote_port)) = match direction {
        Direction::Up => ((source, source_port), (destination, destination_port)),
        Direction::Down => ((destination, destination_port), (source, source_port)),
    };
    // One word, so that the compiler writes it as one.
    let [protocol, zero @ ..] = u32::from(protocol).to_le_bytes();
    let flow = FlowKey { subscriber, remote, subscriber_port, remote_port, protocol, zero };
    Packet { flow, ip_at: at, ip_bytes, header_bytes, trouble, worth_a_sample }
}

/// Ports and header length of a TCP segment of `bytes` (RFC 9293, 3.1).
#[inline(always)]
fn tcp<F: Frame>(frame: &F, at: u32, bytes: u32) -> Option<([u16; 2], u32)> {
    if bytes < 20 {
        return None;
    }
    let [ports, _, _, offset] = frame.words::<4>(at)?;
    let header_bytes = u32::from(offset.to_ne_bytes()[0] >> 4) * 4;
    (header_bytes >= 20 && header_bytes <= bytes).then_some((both_ports(ports), header_bytes))
}

/// Ports and header length of a UDP datagram of `bytes` (RFC 768).
#[inline(always)]
fn udp<F: Frame>(frame: &F, at: u32, bytes: u32) -> Option<([u16; 2], u32)> {
    if bytes < 8 {
        return None;
    }
    let [ports, length] = frame.words::<2>(at)?;
    let length = length.to_ne_bytes();
    // A super-packet's own length may not fit; then it is not one that says nothing.
    let says_nothing = u16::from_be_bytes([length[0], length[1]]) < 8 && !frame.is_super_packet();
    (!says_nothing).then_some((both_ports(ports), 8))
}

/// The IP packet's bytes, which its header says to be `said`; a super-packet's are what the frame has.
#[inline(always)]
fn length<F: Frame>(frame: &F, at: u32, said: u32) -> Result<u32, Reason> {
    let there = frame.length().saturating_sub(at);
    if frame.is_super_packet() {
        return Ok(there);
    }
    if said > there { Err(Reason::TruncatedIp) } else { Ok(said) }
}

#[inline(always)]
fn both_ports(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// The last two of four bytes as they lie in memory, in network order.
#[inline(always)]
fn lower_half(word: u32) -> u16 {
    let [_, _, high, low] = word.to_ne_bytes();
    u16::from_be_bytes([high, low])
}

#[inline(always)]
fn address(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
