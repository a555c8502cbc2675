//! Tags and tunnels around an IP packet, and the file of all packets.

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};

use super::cases::Case;

/// What stands around the packets of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrap {
    Ethernet,
    Vlan,
    QinQ,
    Mpls,
    Pppoe,
    IpInIp,
    Gre,
    Gtp,
    Vxlan,
    /// One in another, as a radio network behind a provider's VLAN has it.
    GtpInVlan,
}

/// All of them.
pub(crate) const WRAPS: [Wrap; 10] = [
    Wrap::Ethernet,
    Wrap::Vlan,
    Wrap::QinQ,
    Wrap::Mpls,
    Wrap::Pppoe,
    Wrap::IpInIp,
    Wrap::Gre,
    Wrap::Gtp,
    Wrap::Vxlan,
    Wrap::GtpInVlan,
];

const VLAN: u16 = 0x8100;
const OUTER: [[u8; 4]; 2] = [[172, 16, 0, 1], [172, 16, 0, 2]];

/// The pcap file of all packets, one case after the other.
pub(crate) fn recording(cases: &[Case]) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic number and version 2.4; no time zone, no accuracy; snap length; Ethernet. Most significant octet first.
    for field in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 262_144, 1] {
        file.extend(field.to_be_bytes());
    }
    let mut millis = 0_u32;
    for case in cases {
        for packet in &case.packets {
            let frame = case.wrap.frame(packet);
            let length = u32::try_from(frame.len()).unwrap();
            millis += 1;
            for field in [1_700_000_000 + millis / 1_000, millis % 1_000 * 1_000, length, length] {
                file.extend(field.to_be_bytes());
            }
            file.extend(frame);
        }
    }
    file
}

impl Wrap {
    /// The Ethernet frame around an IP packet.
    pub(crate) fn frame(self, ip: &[u8]) -> Vec<u8> {
        let kind = ethertype(ip).to_be_bytes();
        match self {
            Self::Ethernet => ethernet(ethertype(ip), &[ip]),
            Self::Vlan => ethernet(VLAN, &[&[0, 100], &kind, ip]),
            Self::QinQ => ethernet(0x88a8, &[&[0, 7], &VLAN.to_be_bytes(), &[0, 100], &kind, ip]),
            // Two labels, the second at the bottom of the stack.
            Self::Mpls => ethernet(0x8847, &[&[0, 1, 0, 64], &[0, 2, 1, 64], ip]),
            Self::Pppoe => {
                let protocol: [u8; 2] = if kind == [8, 0] { [0, 0x21] } else { [0, 0x57] };
                ethernet(0x8864, &[&[0x11, 0, 0, 5], &length(&[&protocol, ip]), &protocol, ip])
            }
            Self::IpInIp => {
                let protocol = if kind == [8, 0] { IpNumber::IPV4 } else { IpNumber::IPV6 };
                ethernet(0x0800, &[&outer(protocol, ip)])
            }
            Self::Gre => ethernet(0x0800, &[&outer(IpNumber::GRE, &[&[0, 0], &kind[..], ip].concat())]),
            Self::Gtp => ethernet(0x0800, &[&gtp(ip)]),
            Self::Vxlan => {
                let inner = ethernet(ethertype(ip), &[ip]);
                ethernet(0x0800, &[&udp(4_789, &[&[8, 0, 0, 0, 0, 0, 42, 0], &inner[..]].concat())])
            }
            Self::GtpInVlan => ethernet(VLAN, &[&[0, 100, 8, 0], &gtp(ip)]),
        }
    }
}

/// A GTP-U packet with a PDU session container before its content (3GPP TS 29.281, 5.2; TS 38.415, 5.5.2).
fn gtp(ip: &[u8]) -> Vec<u8> {
    let extensions = [0, 0, 0, 0x85, 1, 0x10, 9, 0];
    udp(2_152, &[&[0x34, 0xff], &length(&[&extensions, ip])[..], &[0, 0, 0, 9], &extensions, ip].concat())
}

fn ethernet(kind: u16, content: &[&[u8]]) -> Vec<u8> {
    let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    [&addresses[..], &kind.to_be_bytes(), &content.concat()].concat()
}

fn outer(protocol: IpNumber, content: &[u8]) -> Vec<u8> {
    let size = u16::try_from(content.len()).unwrap();
    let header = Ipv4Header::new(size, 64, protocol, OUTER[0], OUTER[1]).unwrap();
    [&header.to_bytes()[..], content].concat()
}

fn udp(port: u16, content: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(OUTER[0], OUTER[1], 64).udp(port, port).write(&mut packet, content).unwrap();
    packet
}

fn length(parts: &[&[u8]]) -> [u8; 2] {
    u16::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).unwrap().to_be_bytes()
}

fn ethertype(ip: &[u8]) -> u16 {
    if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd }
}

/// An IPv4 packet in two fragments, the second from `at` octets of its content on, which must be a multiple of eight.
pub(crate) fn fragments(packet: &[u8], at: usize) -> [Vec<u8>; 2] {
    let (header, content) = Ipv4Header::from_slice(packet).unwrap();
    let (first, second) = content.split_at(at);
    [(first, 0), (second, at)].map(|(part, offset)| {
        let mut header = header.clone();
        header.identification = 77;
        header.dont_fragment = false;
        header.more_fragments = offset == 0;
        header.fragment_offset = u16::try_from(offset / 8).unwrap().try_into().unwrap();
        header.set_payload_len(part.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], part].concat()
    })
}
