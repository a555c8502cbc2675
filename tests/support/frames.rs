//! Frames with tags, labels, sessions and tunnels around a packet, byte by byte: what the probe's parser is tested with, on the host and in
//! the kernel.

/// What is put before the outermost packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// A tag of 802.1Q.
    Tag,
    /// A tag of 802.1ad.
    ServiceTag,
    /// An MPLS label (RFC 3032); a packet, or another one, is behind it.
    Label,
    /// An MPLS label of a pseudowire: behind it are a control word (RFC 4385) and an Ethernet header.
    Pseudowire,
    /// A PPPoE session (RFC 2516); a packet is in it.
    Pppoe,
}

/// A packet that is put around another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// RFC 2003, RFC 4213.
    IpInIp,
    /// RFC 2784, RFC 2890.
    Gre {
        /// Whether it has this field; the same of the others.
        checksum: bool,
        /// The key.
        key: bool,
        /// The sequence number.
        sequence: bool,
    },
    /// GRE with an Ethernet header behind it.
    GreBridge,
    /// 3GPP TS 29.281.
    Gtpu {
        /// E, S and PN, as they lie in its first byte.
        flags: u8,
        /// How many extension headers it has, if E is set.
        extensions: u8,
    },
    /// RFC 7348.
    Vxlan,
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const MPLS: [u8; 2] = [0x88, 0x47];

const fn is_v6(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}

const fn ethertype_of(packet: &[u8]) -> [u8; 2] {
    if is_v6(packet) { IPV6 } else { IPV4 }
}

/// An Ethernet header, and what follows it.
fn ethernet(ethertype: [u8; 2], content: &[u8]) -> Vec<u8> {
    [&[2; 12], &ethertype[..], content].concat()
}

/// An Ethernet frame with all these before a packet, in their order.
pub fn linked(before: &[Before], packet: &[u8]) -> Vec<u8> {
    let (mut ethertype, mut content) = (ethertype_of(packet), packet.to_vec());
    // From the innermost on.
    for before in before.iter().rev() {
        let bottom = u8::from(ethertype != MPLS);
        let (outer, header) = match before {
            Before::Tag => ([0x81, 0x00], vec![0, 7, ethertype[0], ethertype[1]]),
            Before::ServiceTag => ([0x88, 0xa8], vec![0, 8, ethertype[0], ethertype[1]]),
            Before::Label => (MPLS, vec![0, 1, bottom, 64]),
            Before::Pseudowire => {
                (MPLS, [&[0, 1, 1, 64, 0, 0, 0, 0][..], &ethernet(ethertype, &[])].concat())
            }
            Before::Pppoe => {
                let length = u16::try_from(content.len() + 2).expect("short").to_be_bytes();
                let protocol = if ethertype == IPV6 { 0x57 } else { 0x21 };
                ([0x88, 0x64], vec![0x11, 0, 0, 9, length[0], length[1], 0, protocol])
            }
        };
        ethertype = outer;
        content.splice(..0, header);
    }
    ethernet(ethertype, &content)
}

impl Around {
    /// An IP packet, of version 6 or 4, around `inner`, which is another one. Its addresses are the same up and down.
    pub fn wrap(self, inner: &[u8], v6: bool) -> Vec<u8> {
        let ethertype = ethertype_of(inner);
        let (protocol, before) = match self {
            Self::IpInIp => (if is_v6(inner) { 41 } else { 4 }, vec![]),
            Self::Gre { checksum, key, sequence } => {
                let mut header = vec![0, 0, ethertype[0], ethertype[1]];
                for (present, bit) in [(checksum, 0x80), (key, 0x20), (sequence, 0x10)] {
                    if present {
                        header[0] |= bit;
                        header.extend([9; 4]);
                    }
                }
                (47, header)
            }
            Self::GreBridge => (47, [&[0, 0, 0x65, 0x58][..], &ethernet(ethertype, &[])].concat()),
            Self::Gtpu { flags, extensions } => {
                let mut header = vec![0x30 | flags, 0xff, 0, 0, 0, 0, 0, 7];
                if flags != 0 {
                    let mut types = vec![0x85; if flags & 4 == 0 { 0 } else { usize::from(extensions) }];
                    types.push(0);
                    header.extend([0, 1, 0, types[0]]);
                    for next in &types[1..] {
                        header.extend([1, 9, 9, *next]);
                    }
                }
                (17, udp(2152, &header, inner.len()))
            }
            Self::Vxlan => {
                let header = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &ethernet(ethertype, &[])].concat();
                (17, udp(4789, &header, inner.len()))
            }
        };
        let length = before.len() + inner.len();
        let mut packet = Vec::new();
        if v6 {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(length).expect("short").to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend([0x20; 16]);
            packet.extend([0x21; 16]);
        } else {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(length + 20).expect("short").to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2]);
        }
        packet.extend(before);
        packet.extend(inner);
        packet
    }
}

/// A UDP header to `port`, and the tunnel's after it.
fn udp(port: u16, header: &[u8], inner: usize) -> Vec<u8> {
    let length = u16::try_from(8 + header.len() + inner).expect("short");
    let mut out = Vec::new();
    for field in [40_000, port, length, 0] {
        out.extend(field.to_be_bytes());
    }
    out.extend(header);
    out
}
