//! Packets put into other packets, tags and fragments: the network's many ways of carrying one.
//!
//! Owns the writing of each encapsulation by its standard, independent of the code that takes them off.

/// Bytes of which the end may not have been captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) captured: Vec<u8>,
    /// How many there were.
    pub(crate) wire: usize,
}

impl Bytes {
    pub(crate) fn whole(captured: Vec<u8>) -> Self {
        Self { wire: captured.len(), captured }
    }

    fn after(self, header: &[u8]) -> Self {
        Self { wire: header.len() + self.wire, captured: [header, &self.captured].concat() }
    }

    fn part(&self, from: usize, to: usize) -> Self {
        let end = to.min(self.captured.len());
        Self { captured: self.captured.get(from..end).unwrap_or_default().to_vec(), wire: to - from }
    }
}

/// What a link or a tunnel carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// An IP packet.
    Ip(Bytes),
    /// What an Ethernet type says.
    Typed(u16, Bytes),
}

/// One way to carry a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrap {
    /// IEEE 802.1Q.
    Vlan,
    /// IEEE 802.1ad with 802.1Q in it.
    QinQ,
    /// RFC 3032: as many labels.
    Mpls(u8),
    /// RFC 4448: Ethernet below labels, with a control word or without.
    Pseudowire { control_word: bool },
    /// RFC 2516.
    Pppoe,
    /// 3GPP TS 29.281: with which of the flags E, S and PN.
    Gtpu { flags: u8 },
    /// RFC 2784 and 2890: with which of the flags C, K and S.
    Gre { flags: u8 },
    /// Transparent Ethernet bridging.
    GreBridge,
    /// RFC 7348.
    Vxlan,
    /// RFC 2003 and 4213.
    InIpv4,
    /// RFC 2473, with extension headers or without.
    InIpv6 { extensions: bool },
    /// RFC 4380: with an origin and an authentication before it, or without.
    Teredo { indications: bool },
    /// RFC 5415 with frames of Ethernet.
    Capwap,
    /// RFC 5415 with frames of IEEE 802.11.
    CapwapWireless,
    /// RFC 791, RFC 8200: payloads of so many bytes, in this order.
    Fragments { of: usize, order: Order },
}

/// The order fragments are sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Forwards,
    Backwards,
    /// Every second one first, each of these twice, overlapping its neighbours.
    Overlapping,
}

/// All of them.
pub(crate) const WRAPS: [Wrap; 29] = [
    Wrap::Vlan,
    Wrap::QinQ,
    Wrap::Mpls(1),
    Wrap::Mpls(3),
    Wrap::Pseudowire { control_word: true },
    Wrap::Pseudowire { control_word: false },
    Wrap::Pppoe,
    Wrap::Gtpu { flags: 0 },
    Wrap::Gtpu { flags: 2 },
    Wrap::Gtpu { flags: 1 },
    Wrap::Gtpu { flags: 4 },
    Wrap::Gtpu { flags: 7 },
    Wrap::Gre { flags: 0 },
    Wrap::Gre { flags: 0x80 },
    Wrap::Gre { flags: 0x20 },
    Wrap::Gre { flags: 0x10 },
    Wrap::Gre { flags: 0xb0 },
    Wrap::GreBridge,
    Wrap::Vxlan,
    Wrap::InIpv4,
    Wrap::InIpv6 { extensions: false },
    Wrap::InIpv6 { extensions: true },
    Wrap::Teredo { indications: false },
    Wrap::Teredo { indications: true },
    Wrap::Capwap,
    Wrap::CapwapWireless,
    Wrap::Fragments { of: 1_200, order: Order::Forwards },
    Wrap::Fragments { of: 600, order: Order::Backwards },
    Wrap::Fragments { of: 64, order: Order::Overlapping },
];

impl Wrap {
    /// The packet carried so; several if it is cut, none where this carries no such content.
    pub(crate) fn around(self, content: Content, number: u32) -> Option<Vec<Content>> {
        let one = |content| Some(vec![content]);
        match (self, content) {
            (Self::Vlan, content) => one(tagged(0x8100, 100, content)),
            (Self::QinQ, content) => one(tagged(0x88a8, 7, tagged(0x8100, 8, content))),
            (Self::Mpls(labels), Content::Ip(ip)) => one(Content::Typed(0x8847, labelled(labels, ip))),
            (Self::Pseudowire { control_word }, content) => {
                let word: &[u8] = if control_word { &[0; 4] } else { &[] };
                one(Content::Typed(0x8847, labelled(2, ethernet(content).after(word))))
            }
            (Self::Pppoe, Content::Ip(ip)) => {
                let protocol = if is_v6(&ip) { 0x57 } else { 0x21 };
                let [high, low] = length(2 + ip.wire);
                one(Content::Typed(0x8864, ip.after(&[0x11, 0, 0, 9, high, low, 0, protocol])))
            }
            (Self::Gtpu { flags }, content) => {
                let content = match content {
                    Content::Ip(ip) => ip,
                    typed @ Content::Typed(..) => ethernet(typed),
                };
                let optional: &[u8] = match flags {
                    0 => &[],
                    // Of two extension headers: a PDU session's container, and one of eight octets.
                    flags if flags & 4 != 0 => &[0, 1, 0, 0x85, 1, 0x10, 9, 0xc0, 2, 1, 2, 3, 4, 5, 6, 0],
                    _ => &[0, 1, 0, 0],
                };
                let [high, low] = length(optional.len() + content.wire);
                let header = [&[0x30 | flags, 0xff, high, low, 0, 0, 0x12, 0x34][..], optional].concat();
                one(Content::Ip(in_udp(2_152, content.after(&header), number)))
            }
            (Self::Gre { flags }, content) => {
                let (ether_type, content) = match content {
                    Content::Typed(0x8847, labelled) => (0x8847, labelled),
                    Content::Typed(..) => return None,
                    Content::Ip(ip) => (ip_type(&ip), ip),
                };
                one(Content::Ip(in_ipv4(47, content.after(&gre(flags, ether_type)), number)))
            }
            (Self::GreBridge, content) => {
                one(Content::Ip(in_ipv4(47, ethernet(content).after(&gre(0x20, 0x6558)), number)))
            }
            (Self::Vxlan, content) => {
                let content = ethernet(content).after(&[8, 0, 0, 0, 0, 0, 5, 0]);
                one(Content::Ip(in_udp(4_789, content, number)))
            }
            (Self::InIpv4, Content::Ip(ip)) => {
                let protocol = if is_v6(&ip) { 41 } else { 4 };
                one(Content::Ip(in_ipv4(protocol, ip, number)))
            }
            (Self::InIpv6 { extensions }, Content::Ip(ip)) => {
                let protocol = if is_v6(&ip) { 41 } else { 4 };
                one(Content::Ip(if extensions {
                    in_ipv6_extended(protocol, ip)
                } else {
                    in_ipv6(protocol, ip)
                }))
            }
            (Self::Teredo { indications }, Content::Ip(ip)) => {
                let before: &[u8] = if indications {
                    &[0, 1, 1, 2, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
                } else {
                    &[]
                };
                let v6 = if is_v6(&ip) { ip } else { in_ipv6(4, ip) };
                one(Content::Ip(in_udp(3_544, v6.after(before), number)))
            }
            (Self::Capwap, content) => {
                let content = ethernet(content).after(&[0, 0x10, 0, 0, 0, 0, 0, 0]);
                one(Content::Ip(in_udp(5_247, content, number)))
            }
            (Self::CapwapWireless, content) => {
                let (ether_type, content) = typed(content);
                let [high, low] = ether_type.to_be_bytes();
                // With wireless information; then a data frame of quality of service, and its SNAP header.
                let capwap = [0, 0x20, 0x03, 0x20, 0, 0, 0, 0, 4, 1, 2, 3, 0, 0, 0, 0];
                let frame = [&[0x88, 1][..], &[7; 24], &[0xaa, 0xaa, 3, 0, 0, 0, high, low]].concat();
                one(Content::Ip(in_udp(5_247, content.after(&frame).after(&capwap), number)))
            }
            (Self::Fragments { of, order }, Content::Ip(ip)) => Some(fragments(&ip, of, order, number)),
            // IP alone.
            (_, Content::Typed(..)) => None,
        }
    }
}

/// The frame of Ethernet that carries this.
pub(crate) fn ethernet(content: Content) -> Bytes {
    let (ether_type, content) = typed(content);
    content.after(&[&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ether_type.to_be_bytes()].concat())
}

/// The Ethernet type that says what this is.
pub(crate) fn typed(content: Content) -> (u16, Bytes) {
    match content {
        Content::Ip(ip) => (ip_type(&ip), ip),
        Content::Typed(ether_type, bytes) => (ether_type, bytes),
    }
}

fn ip_type(ip: &Bytes) -> u16 {
    if is_v6(ip) { 0x86dd } else { 0x0800 }
}

fn is_v6(ip: &Bytes) -> bool {
    ip.captured[0] >> 4 == 6
}

/// As a field of two octets says it; nothing, as after segmentation offload, where it is too long.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(0).to_be_bytes()
}

fn tagged(tag: u16, id: u16, content: Content) -> Content {
    let (ether_type, content) = typed(content);
    Content::Typed(tag, content.after(&[id.to_be_bytes(), ether_type.to_be_bytes()].concat()))
}

fn labelled(labels: u8, content: Bytes) -> Bytes {
    let entries: Vec<u8> =
        (0..labels).flat_map(|label| [0, 1 + label, u8::from(label + 1 == labels), 64]).collect();
    content.after(&entries)
}

fn gre(flags: u8, ether_type: u16) -> Vec<u8> {
    let mut header = vec![flags, 0];
    header.extend(ether_type.to_be_bytes());
    for flag in [0x80, 0x20, 0x10] {
        if flags & flag != 0 {
            header.extend([1, 2, 3, 4]);
        }
    }
    header
}

fn in_udp(port: u16, content: Bytes, number: u32) -> Bytes {
    let [high, low] = length(8 + content.wire);
    let [port_high, port_low] = port.to_be_bytes();
    in_ipv4(17, content.after(&[port_high, port_low, port_high, port_low, high, low, 0, 0]), number)
}

fn in_ipv4(protocol: u8, content: Bytes, number: u32) -> Bytes {
    let [high, low] = length(20 + content.wire);
    let [.., id_high, id_low] = number.to_be_bytes();
    let mut header =
        [0x45, 0, high, low, id_high, id_low, 0, 0, 64, protocol, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2];
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    content.after(&header)
}

fn in_ipv6(protocol: u8, content: Bytes) -> Bytes {
    let [high, low] = length(content.wire);
    content.after(&[&[0x60, 0, 0, 0, high, low, protocol, 64][..], &[0xfc; 16], &[0xfd; 16]].concat())
}

/// With options for every hop, a route and options for the destination (RFC 8200, 4).
fn in_ipv6_extended(protocol: u8, content: Bytes) -> Bytes {
    let extensions = [
        &[43, 0, 5, 2, 0, 0, 1, 0][..],
        &[60, 2, 4, 0, 0, 0, 0, 0],
        &[0xfe; 16],
        &[protocol, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut packet = in_ipv6(0, content.after(&extensions));
    packet.captured[6] = 0;
    packet
}

/// An IP packet in fragments whose payloads have at most `of` bytes.
fn fragments(ip: &Bytes, of: usize, order: Order, number: u32) -> Vec<Content> {
    let v6 = is_v6(ip);
    let header = if v6 { 40 } else { usize::from(ip.captured[0] & 0x0f) * 4 };
    let is_part = !v6 && u16::from_be_bytes([ip.captured[6], ip.captured[7]]) & 0x3fff != 0;
    // Fragments are not cut again here, and of IPv6 neither are packets whose other headers would have to be repeated.
    let extended = v6 && matches!(ip.captured[6], 0 | 43 | 44 | 60);
    let says = if v6 { 40 + field(ip, 4) } else { field(ip, 2) };
    let total = says.min(ip.wire);
    if total <= header + of || is_part || extended || ip.captured.len() < header || of == 0 {
        return vec![Content::Ip(ip.clone())];
    }
    let of = of / 8 * 8;
    let payload = ip.part(header, total);
    let cut = |from: usize, to: usize| {
        let to = to.min(payload.wire);
        let place = u16::try_from(from).unwrap_or_default();
        let more = u16::from(to < payload.wire);
        let mut head = ip.captured[..header].to_vec();
        if v6 {
            head[4..6].copy_from_slice(&length(8 + to - from));
            let protocol = std::mem::replace(&mut head[6], 44);
            head.extend([protocol, 0]);
            head.extend((place | more).to_be_bytes());
            head.extend(number.to_be_bytes());
        } else {
            head[2..4].copy_from_slice(&length(header + to - from));
            head[4..6].copy_from_slice(&number.to_be_bytes()[2..]);
            head[6..8].copy_from_slice(&((place / 8) | (more << 13)).to_be_bytes());
        }
        Content::Ip(payload.part(from, to).after(&head))
    };
    let places: Vec<usize> = (0..payload.wire).step_by(of).collect();
    match order {
        Order::Forwards => places.iter().map(|from| cut(*from, from + of)).collect(),
        Order::Backwards => places.iter().rev().map(|from| cut(*from, from + of)).collect(),
        Order::Overlapping => {
            let (even, odd): (Vec<_>, Vec<_>) =
                places.iter().enumerate().partition(|(place, _)| place % 2 == 0);
            let odd = odd.into_iter().flat_map(|(_, from)| {
                let wide = || cut(from - 8, from + of + 8);
                [wide(), wide()]
            });
            odd.chain(even.into_iter().map(|(_, from)| cut(*from, from + of))).collect()
        }
    }
}

fn field(ip: &Bytes, at: usize) -> usize {
    usize::from(u16::from_be_bytes([ip.captured[at], ip.captured[at + 1]]))
}
