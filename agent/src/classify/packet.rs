//! One packet from its innermost IP header on: who sends it to whom, and what it carries.
//!
//! Owns IPv4 (RFC 791), IPv6 with extension headers (RFC 8200), TCP (RFC 9293) and UDP (RFC 768) headers, by etherparse;
//! those of most packets, which have nothing unusual, by hand. Copes with packets cut short by a snap length or a sampling limit. Refuses to look inside payloads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use usher_models::wire::TcpFlags;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Where a TCP header has its flags.
const FLAGS: usize = 13;

/// Bytes that are no IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an IP packet")]
pub struct NotIp;

/// What a packet says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sends it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol number, past IPv6 extension headers.
    pub protocol: u8,
    /// Zero where the protocol has none, or the packet is a later fragment or too short to show it.
    pub source_port: u16,
    /// Zero likewise.
    pub destination_port: u16,
    /// Bytes of the IP packet by its own header, whatever was cut off; `None` where the header does not say (a length of
    /// zero, as left by segmentation offload and jumbograms, or shorter than the header itself).
    pub length: Option<u32>,
    /// The transport's payload.
    pub payload: Payload<'a>,
}

/// What a packet carries, as far as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A TCP segment.
    Tcp(Segment<'a>),
    /// A UDP datagram's bytes.
    Udp(&'a [u8]),
    /// Another protocol; its bytes.
    Other(&'a [u8]),
    /// A later fragment, or a header cut short: nothing to look at.
    Hidden,
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sequence number of the first payload byte, or of the SYN before it.
    pub sequence: u32,
    /// Acknowledgement number; meaningless without [`TcpFlags::ACK`].
    pub acknowledgement: u32,
    /// Its flags.
    pub flags: TcpFlags,
    /// The segment's payload, as far as it is there.
    pub bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads an IP packet that may be cut short.
    pub fn parse(ip: &'a [u8]) -> Result<Self, NotIp> {
        Self::plain(ip).map_or_else(|| Self::any(ip), Ok)
    }

    /// A whole transport header right after an IP header that is no fragment's: for speed alone, [`Self::any`] reads it too.
    #[inline]
    pub(crate) fn plain(ip: &'a [u8]) -> Option<Self> {
        let (source, destination, protocol, length, header) = match ip.first()? >> 4 {
            4 => {
                let fixed = ip.first_chunk::<20>()?;
                let header = usize::from(fixed[0] & 0x0f) * 4;
                let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
                let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0;
                if header < 20 || length < header || fragment {
                    return None;
                }
                let source = Ipv4Addr::from(*fixed[12..].first_chunk::<4>()?);
                let destination = Ipv4Addr::from(*fixed[16..].first_chunk::<4>()?);
                (IpAddr::V4(source), IpAddr::V4(destination), fixed[9], length, header)
            }
            6 => {
                let fixed = ip.first_chunk::<40>()?;
                let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
                if length == 0 {
                    return None;
                }
                let source = Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?);
                let destination = Ipv6Addr::from(*fixed[24..].first_chunk::<16>()?);
                (IpAddr::V6(source), IpAddr::V6(destination), fixed[6], 40 + length, 40)
            }
            _ => return None,
        };
        let content = ip.get(header..length.min(ip.len()))?;
        let ports = content.first_chunk::<4>()?;
        let payload = match protocol {
            TCP => Payload::Tcp(Segment::plain(content)?),
            UDP => Payload::Udp(datagram(content)?),
            _ => return None,
        };
        Some(Self {
            source,
            destination,
            protocol,
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
            length: u32::try_from(length).ok(),
            payload,
        })
    }

    fn any(ip: &'a [u8]) -> Result<Self, NotIp> {
        let sliced = LaxSlicedPacket::from_ip(ip).map_err(|_| NotIp)?;
        let (source, destination, length, rest) = match sliced.net.as_ref() {
            Some(LaxNetSlice::Ipv4(v4)) => {
                let header = v4.header();
                let length = u32::from(header.total_len());
                let length = (length >= u32::from(header.ihl()) * 4).then_some(length);
                (header.source_addr().into(), header.destination_addr().into(), length, v4.payload())
            }
            Some(LaxNetSlice::Ipv6(v6)) => {
                let header = v6.header();
                let length = u32::from(header.payload_length());
                let length = (length > 0
                    || header.next_header() == etherparse::IpNumber::IPV6_NO_NEXT_HEADER)
                    .then_some(length + 40);
                (IpAddr::from(header.source_addr()), header.destination_addr().into(), length, v6.payload())
            }
            _ => return Err(NotIp),
        };
        let mut packet = Self {
            source,
            destination,
            protocol: rest.ip_number.0,
            source_port: 0,
            destination_port: 0,
            length,
            payload: Payload::Hidden,
        };
        match sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                packet.source_port = tcp.source_port();
                packet.destination_port = tcp.destination_port();
                packet.payload = Payload::Tcp(Segment {
                    sequence: tcp.sequence_number(),
                    acknowledgement: tcp.acknowledgment_number(),
                    flags: TcpFlags(tcp.slice()[FLAGS]),
                    bytes: tcp.payload(),
                });
            }
            Some(TransportSlice::Udp(udp)) => {
                packet.source_port = udp.source_port();
                packet.destination_port = udp.destination_port();
                packet.payload = Payload::Udp(udp.payload());
            }
            // A first fragment or a header cut short still shows the ports, which stand first in both headers.
            _ if matches!(packet.protocol, TCP | UDP) && !is_later_fragment(&sliced) => {
                if let Some(&[a, b, c, d]) = rest.payload.first_chunk::<4>() {
                    packet.source_port = u16::from_be_bytes([a, b]);
                    packet.destination_port = u16::from_be_bytes([c, d]);
                }
            }
            _ if !rest.fragmented => packet.payload = Payload::Other(rest.payload),
            _ => {}
        }
        Ok(packet)
    }
}

impl<'a> Segment<'a> {
    /// A whole header and what follows it (RFC 9293, 3.1).
    #[inline]
    fn plain(content: &'a [u8]) -> Option<Self> {
        let fixed = content.first_chunk::<20>()?;
        let header = usize::from(fixed[12] >> 4) * 4;
        Some(Self {
            sequence: u32::from_be_bytes(*fixed[4..].first_chunk::<4>()?),
            acknowledgement: u32::from_be_bytes(*fixed[8..].first_chunk::<4>()?),
            flags: TcpFlags(fixed[FLAGS]),
            bytes: content.get(header..).filter(|_| header >= 20)?,
        })
    }
}

/// What follows a whole header of UDP; all of it where the header's length is none (RFC 768).
#[inline]
fn datagram(content: &[u8]) -> Option<&[u8]> {
    let fixed = content.first_chunk::<8>()?;
    let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let end = if length < 8 { content.len() } else { length.min(content.len()) };
    content.get(8..end)
}

/// An address as flow keys hold it: IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2).
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a flow key, mapped IPv4 as IPv4.
pub fn address(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(octets).to_canonical()
}

/// Whether the payload starts in the middle of a transport's segment.
fn is_later_fragment(sliced: &LaxSlicedPacket<'_>) -> bool {
    match sliced.net.as_ref() {
        Some(LaxNetSlice::Ipv4(v4)) => v4.header().fragments_offset().value() != 0,
        Some(LaxNetSlice::Ipv6(v6)) => v6.extensions().clone().into_iter().any(|extension| match extension {
            etherparse::Ipv6ExtensionSlice::Fragment(fragment) => fragment.fragment_offset().value() != 0,
            _ => false,
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64).udp(5000, 53);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn a_packet_cut_short_keeps_its_original_length() {
        let whole = udp(&[7; 100]);
        let packet = Packet::parse(&whole[..40]).unwrap();
        assert_eq!(packet.length, Some(128));
        assert_eq!((packet.source_port, packet.destination_port), (5000, 53));
        assert_eq!(packet.payload, Payload::Udp(&[7; 12]));
    }

    #[test]
    fn a_first_fragment_shows_its_ports_and_a_later_one_does_not() {
        let mut first = udp(&[7; 100]);
        first[6] = 0x20;
        let packet = Packet::parse(&first).unwrap();
        assert_eq!((packet.source_port, packet.destination_port), (5000, 53));
        assert_eq!(packet.payload, Payload::Hidden);
        first[7] = 9;
        let packet = Packet::parse(&first).unwrap();
        assert_eq!((packet.source_port, packet.destination_port), (0, 0));
        assert_eq!(packet.payload, Payload::Hidden);
    }

    #[test]
    fn common_packets_are_read_by_hand() {
        let mut packets = vec![udp(b""), udp(&[7; 100])];
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(5000, 443, 7, 9).syn();
        builder.write(&mut bytes, b"abc").unwrap();
        packets.push(bytes);
        for packet in packets {
            let plain = Packet::plain(&packet);
            assert!(plain.is_some(), "{packet:02x?}");
            assert_eq!(plain, Packet::any(&packet).ok());
        }
    }

    #[test]
    fn a_length_of_zero_is_no_length() {
        let mut offloaded = udp(&[7; 100]);
        offloaded[2..4].fill(0);
        assert_eq!(Packet::parse(&offloaded).unwrap().length, None);
    }

    proptest! {
        /// Headers that say what they are and that lie, whole and cut anywhere.
        #[test]
        fn what_is_read_by_hand_is_read_alike_by_the_library(
            first in prop_oneof![8 => Just(0x45_u8), 8 => Just(0x60), 2 => Just(0x46), 1 => any::<u8>()],
            length in prop_oneof![4 => 0_u16..140, 1 => any::<u16>()],
            fragment in prop_oneof![8 => Just(0_u16), 2 => Just(0x4000), 1 => any::<u16>()],
            protocol in prop_oneof![4 => Just(TCP), 4 => Just(UDP), 1 => any::<u8>()],
            (offset, datagram) in (any::<u8>(), prop_oneof![0_u16..100, any::<u16>()]),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..140),
        ) {
            let mut set = |at: usize, with: &[u8]| {
                if let Some(field) = bytes.get_mut(at..at + with.len()) {
                    field.copy_from_slice(with);
                }
            };
            set(0, &[first]);
            let transport = if first >> 4 == 4 {
                set(2, &length.to_be_bytes());
                set(6, &fragment.to_be_bytes());
                set(9, &[protocol]);
                usize::from(first & 0x0f) * 4
            } else {
                set(4, &length.to_be_bytes());
                set(6, &[protocol]);
                40
            };
            if protocol == TCP {
                set(transport + 12, &[0x50 | offset & 0xf0]);
            } else {
                set(transport + 4, &datagram.to_be_bytes());
            }
            if let Some(packet) = Packet::plain(&bytes) {
                prop_assert_eq!(Ok(packet), Packet::any(&bytes));
            }
        }

        #[test]
        fn any_bytes_are_a_packet_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn any_bytes_after_a_version_are_a_packet_or_none(
            version in prop_oneof![Just(0x45_u8), Just(0x60), Just(0x4f)],
            next in prop_oneof![Just(6_u8), Just(17), Just(44), Just(0), Just(51), Just(60)],
            mut bytes in proptest::collection::vec(any::<u8>(), 40..200),
        ) {
            bytes[0] = version;
            bytes[6] = next;
            let _ = Packet::parse(&bytes);
            bytes[9] = next;
            let _ = Packet::parse(&bytes);
        }
    }
}
