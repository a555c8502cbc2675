//! The probe's parser, on the host: the kernel's source itself, driven with bytes from anywhere.

use std::cell::RefCell;
use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use usher_agent::capture::frame;
use usher_agent::classify::packet::address;
use usher_models::wire::{Direction, FlowKey, Reason, TcpFlags, tells};
use usher_tests::frames::{Around, Before, linked};

use Before::{Label, Pppoe, Pseudowire, ServiceTag, Tag};

#[path = "../ebpf/src/parse.rs"]
#[expect(clippy::inline_always, unreachable_pub, reason = "the probe's file, held to the kernel's needs")]
mod parse;
#[path = "../ebpf/src/walk.rs"]
#[expect(
    clippy::inline_always,
    clippy::unnecessary_wraps,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "the probe's file, held to the kernel's needs"
)]
mod walk;

use parse::{Fragment, Frame, Packet, Plain, plain};
use walk::{ETHERNET_HEADER, IP_HEADER, Walk, walk};

/// A frame in memory.
struct Bytes<'a> {
    frame: &'a [u8],
    super_packet: bool,
    walk: RefCell<Option<Walk>>,
    kept: RefCell<Vec<Packet>>,
}

impl<'a> Bytes<'a> {
    fn new(frame: &'a [u8], super_packet: bool) -> Self {
        Self { frame, super_packet, walk: RefCell::default(), kept: RefCell::default() }
    }

    /// All packets that a walk finds.
    fn walked(self, first: u32) -> Result<Vec<Packet>, Reason> {
        let found = walk(&self, first)?;
        let kept = self.kept.into_inner();
        assert_eq!(usize::try_from(found), Ok(kept.len()));
        Ok(kept)
    }
}

impl Frame for Bytes<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.frame.len()).expect("short")
    }

    fn is_super_packet(&self) -> bool {
        self.super_packet
    }

    fn words_at_hand<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let from = usize::try_from(at).expect("small");
        let bytes = self.frame.get(from..from.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        Some(words)
    }

    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        assert!(at.is_multiple_of(2), "the kernel reads words at even places only");
        self.words_at_hand(at)
    }

    fn begin(&self, walk: Walk) {
        self.walk.replace(Some(walk));
    }

    fn step(&self) -> bool {
        self.walk.borrow_mut().as_mut().expect("begun").step(self)
    }

    fn ended(&self) -> Result<u32, Reason> {
        self.walk.borrow().as_ref().expect("begun").ended()
    }

    fn keep(&self, place: u32, packet: &Packet) {
        let mut kept = self.kept.borrow_mut();
        assert_eq!(usize::try_from(place), Ok(kept.len()), "each place is used once, in order");
        kept.push(*packet);
    }
}

/// All packets of an Ethernet frame.
fn packets(bytes: &[u8]) -> Result<Vec<Packet>, Reason> {
    Bytes::new(bytes, false).walked(ETHERNET_HEADER)
}

/// The innermost packet of an Ethernet frame.
fn read(bytes: &[u8]) -> Result<Packet, Reason> {
    packets(bytes).map(|found| *found.last().expect("one at least"))
}

/// The flow of a packet.
fn flow_of(packet: &Packet, direction: Direction) -> FlowKey {
    let ([subscriber, remote], [subscriber_port, remote_port]) = packet.ends_and_ports(direction);
    FlowKey {
        subscriber: parse::address(subscriber),
        remote: parse::address(remote),
        subscriber_port,
        remote_port,
        protocol: packet.protocol,
        zero: [0; 3],
    }
}

/// What must hold for any bytes.
fn holds_together(bytes: &[u8], super_packet: bool) {
    for first in [ETHERNET_HEADER, IP_HEADER] {
        match Bytes::new(bytes, super_packet).walked(first) {
            Ok(found) => {
                assert!((1..=4).contains(&found.len()));
                let mut around = (0, u32::try_from(bytes.len()).expect("short"));
                for packet in found {
                    let (begin, end) = (packet.ip_at, packet.ip_at + packet.ip_bytes);
                    assert!(
                        around.0 <= begin && end <= around.1,
                        "counts no byte that is not there: {packet:?}"
                    );
                    assert!((20..=packet.ip_bytes).contains(&packet.header_bytes), "{packet:?}");
                    assert!(packet.trouble.is_none_or(|reason| !reason.outside_usage()), "{packet:?}");
                    assert!(!(packet.trouble.is_some() && packet.worth_a_sample), "{packet:?}");
                    around = (begin + packet.header_bytes, end);
                    let (up, down) = (flow_of(&packet, Direction::Up), flow_of(&packet, Direction::Down));
                    let turned = FlowKey {
                        subscriber: down.remote,
                        remote: down.subscriber,
                        subscriber_port: down.remote_port,
                        remote_port: down.subscriber_port,
                        ..down
                    };
                    assert_eq!(up, turned, "both directions are one flow");
                }
            }
            Err(reason) => assert!(reason.outside_usage(), "{reason:?}"),
        }
    }
    let frame = Bytes::new(bytes, super_packet);
    let found = match plain(&frame) {
        Some(Plain::Packet(packet)) => vec![packet],
        Some(Plain::Gtpu(both)) => both.to_vec(),
        None => return,
    };
    assert_eq!(frame.walked(ETHERNET_HEADER), Ok(found), "the short way and the long one say the same");
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// What etherparse reads in a frame it accepts, as the probe would say it for the direction up.
fn reference(frame: &[u8]) -> Option<(FlowKey, u32)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, protocol, header, payload, fragment) = match sliced.net? {
        NetSlice::Ipv4(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
            ip.payload_ip_number().0,
            ip.header().slice().len() + ip.extensions().auth.map_or(0, |auth| auth.slice().len()),
            ip.payload().payload.len(),
            ip.header().fragments_offset().value() != 0,
        ),
        NetSlice::Ipv6(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
            ip.payload().ip_number.0,
            40 + ip.extensions().slice().len(),
            ip.payload().payload.len(),
            ip.payload().fragmented && sliced.transport.is_none(),
        ),
        NetSlice::Arp(_) => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) if !fragment => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) if !fragment => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    let flow = FlowKey {
        subscriber: mapped(source),
        remote: mapped(destination),
        subscriber_port: ports.0,
        remote_port: ports.1,
        protocol,
        zero: [0; 3],
    };
    Some((flow, u32::try_from(header + payload).ok()?))
}

/// How a well-formed frame is made.
#[derive(Debug, Clone)]
struct Recipe {
    v6: bool,
    tcp: bool,
    flags: u8,
    source: [u8; 16],
    destination: [u8; 16],
    ports: (u16, u16),
    options: usize,
    extensions: Vec<(u8, u8)>,
    tags: usize,
    payload: Vec<u8>,
    padding: usize,
}

prop_compose! {
    fn recipe()(
        v6: bool, tcp: bool, flags: u8, source: [u8; 16], destination: [u8; 16], ports: (u16, u16),
        options in 0_usize..=10,
        // Each extension header once and in the order of RFC 8200, 4.1: etherparse reads no other.
        hop in proptest::option::of(0_u8..3), target in proptest::option::of(0_u8..3),
        tags in 0_usize..=2, payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0_usize..20,
    ) -> Recipe {
        let extensions = [(0, hop), (60, target)];
        let extensions = extensions.into_iter().filter_map(|(kind, size)| Some((kind, size?))).collect();
        Recipe { v6, tcp, flags, source, destination, ports, options, extensions, tags, payload, padding }
    }
}

impl Recipe {
    fn frame(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            transport.extend([0; 8]);
            let words = u8::try_from(5 + self.options).expect("small");
            transport.extend([words << 4, self.flags, 0, 0, 0, 0, 0, 0]);
            transport.extend(vec![1; self.options * 4]);
        } else {
            let length = u16::try_from(8 + self.payload.len()).expect("short");
            transport.extend(length.to_be_bytes());
            transport.extend([0; 2]);
        }
        transport.extend(&self.payload);
        let protocol = if self.tcp { 6 } else { 17 };

        let mut frame = vec![2; 12];
        for tag in 0..self.tags {
            let kind: u16 = if self.tags == 2 && tag == 0 { 0x88a8 } else { 0x8100 };
            frame.extend(kind.to_be_bytes());
            frame.extend([0, 7]);
        }
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            let mut between = Vec::new();
            for (place, (_, size)) in self.extensions.iter().enumerate() {
                let next = self.extensions.get(place + 1).map_or(protocol, |(kind, _)| *kind);
                between.extend([next, *size]);
                // One option that fills the header.
                between.extend([1, size * 8 + 4]);
                between.extend(vec![0; usize::from(*size) * 8 + 4]);
            }
            let length = u16::try_from(between.len() + transport.len()).expect("short");
            frame.extend(length.to_be_bytes());
            frame.extend([self.extensions.first().map_or(protocol, |(kind, _)| *kind), 64]);
            frame.extend(self.source);
            frame.extend(self.destination);
            frame.extend(between);
        } else {
            frame.extend([0x08, 0x00]);
            let words = 5 + self.options;
            let length = u16::try_from(words * 4 + transport.len()).expect("short");
            frame.extend([0x40 + u8::try_from(words).expect("small"), 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(&self.source[..4]);
            frame.extend(&self.destination[..4]);
            frame.extend(vec![1; self.options * 4]);
        }
        frame.extend(transport);
        frame.extend(vec![0; self.padding]);
        frame
    }
}

fn is_mapped(address: [u8; 16]) -> bool {
    address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

fn around() -> impl Strategy<Value = Around> {
    prop_oneof![
        Just(Around::IpInIp),
        any::<(bool, bool, bool)>().prop_map(|(checksum, key, sequence)| Around::Gre {
            checksum,
            key,
            sequence
        }),
        Just(Around::GreBridge),
        (0_u8..8, 0_u8..3).prop_map(|(flags, extensions)| Around::Gtpu { flags, extensions }),
        Just(Around::Vxlan),
    ]
}

/// What is put before the outermost packet.
fn links() -> impl Strategy<Value = Vec<Before>> {
    proptest::sample::select(vec![
        vec![],
        vec![Tag],
        vec![ServiceTag, Tag],
        vec![Label],
        vec![Label, Label],
        vec![Pseudowire],
        vec![Label, Pseudowire, Tag],
        vec![Pppoe],
        vec![Tag, Pppoe],
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), super_packet: bool) {
        holds_together(&bytes, super_packet);
    }

    #[test]
    fn a_good_frame_bent_anywhere_is_read_without_a_panic(
        recipe in recipe(),
        bends in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
        super_packet: bool,
    ) {
        let mut frame = recipe.frame();
        for (at, byte) in bends {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        holds_together(&frame, super_packet);
        holds_together(&frame[..end.index(frame.len())], super_packet);
    }

    #[test]
    fn a_good_frame_is_read_as_etherparse_reads_it(recipe in recipe()) {
        prop_assume!(!recipe.v6 || !(is_mapped(recipe.source) || is_mapped(recipe.destination)));
        let frame = recipe.frame();
        let packet = read(&frame).expect("well-formed");
        let (flow, ip_bytes) = reference(&frame).expect("etherparse reads it");
        prop_assert_eq!(flow_of(&packet, Direction::Up), flow);
        prop_assert_eq!(packet.ip_bytes, ip_bytes);
        prop_assert_eq!(packet.trouble, None);
        let payload = u32::try_from(recipe.payload.len()).expect("short");
        prop_assert_eq!(packet.ip_bytes - packet.header_bytes, payload);
        let options = u32::try_from(recipe.options * 4).expect("short");
        let transport_bytes = if recipe.tcp { 20 + options } else { 8 };
        prop_assert_eq!(packet.transport_at + transport_bytes, packet.ip_at + packet.header_bytes);
        let flags = TcpFlags(if recipe.tcp { recipe.flags } else { 0 });
        prop_assert_eq!(packet.worth_a_sample, tells(flags, payload > 0));
        prop_assert_eq!(packet.opens_connection, flags.open());
    }

    #[test]
    fn a_fragment_is_read_as_etherparse_reads_it(recipe in recipe(), offset in 0_u16..0x1fff, more: bool) {
        let recipe = Recipe { v6: false, ..recipe };
        let mut frame = recipe.frame();
        let at = 14 + recipe.tags * 4 + 6;
        frame[at..at + 2].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
        let packet = read(&frame).expect("well-formed");
        let (flow, ip_bytes) = reference(&frame).expect("etherparse reads it");
        // Where there are more to come, etherparse reads no ports of the first one either; the probe does.
        if offset != 0 {
            prop_assert_eq!(flow_of(&packet, Direction::Up), flow);
            prop_assert!(!packet.worth_a_sample);
        } else {
            prop_assert_eq!(<(u16, u16)>::from(packet.ports), recipe.ports);
        }
        prop_assert_eq!(packet.ip_bytes, ip_bytes);
    }

    #[test]
    fn a_super_packet_is_as_long_as_its_frame(recipe in recipe(), said: u16) {
        let recipe = Recipe { v6: false, ..recipe };
        let mut frame = recipe.frame();
        let at = 14 + recipe.tags * 4 + 2;
        frame[at..at + 2].copy_from_slice(&said.to_be_bytes());
        let found = Bytes::new(&frame, true).walked(ETHERNET_HEADER).expect("well-formed");
        let packet = found[0];
        prop_assert_eq!(usize::try_from(packet.ip_at + packet.ip_bytes).expect("small"), frame.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tunnels_in_tunnels_are_opened_as_the_agent_opens_them(
        recipe in recipe(), around in proptest::collection::vec((around(), any::<bool>()), 0..5), links in links(),
        bends in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
    ) {
        prop_assume!(!recipe.v6 || !(is_mapped(recipe.source) || is_mapped(recipe.destination)));
        let recipe = Recipe { tags: 0, padding: 0, ..recipe };
        let mut packet = recipe.frame().split_off(14);
        let innermost = packet.len();
        for (around, v6) in &around {
            packet = around.wrap(&packet, *v6);
        }
        let mut frame = linked(&links, &packet);
        // The agent takes what is below MPLS for Ethernet where it looks like that.
        prop_assume!(!links.contains(&Label) || ![0x08, 0x81, 0x86, 0x88].contains(&packet[12]));
        let theirs = |frame: &[u8]| {
            frame::packets(1, frame, frame.len())
                .map_while(Result::ok)
                .map(|found| (found.packet.source, found.packet.destination, found.packet.protocol))
                .take(4)
                .collect::<Vec<_>>()
        };
        let ours = |frame: &[u8]| {
            packets(frame).map(|found| found.iter().map(|packet| {
                let key = flow_of(packet, Direction::Up);
                (address(key.subscriber), address(key.remote), key.protocol)
            }).collect::<Vec<_>>())
        };
        let found = packets(&frame).expect("well-formed");
        prop_assert_eq!(found.len(), (around.len() + 1).min(4));
        if around.len() < 4 {
            let packet = found.last().expect("one at least");
            prop_assert_eq!(usize::try_from(packet.ip_bytes), Ok(innermost));
            prop_assert_eq!(<(u16, u16)>::from(packet.ports), recipe.ports);
        }
        prop_assert_eq!(ours(&frame), Ok(theirs(&frame)));
        holds_together(&frame, false);
        for (at, byte) in bends {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        holds_together(&frame, false);
        holds_together(&frame, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plain_packet_in_gtpu_takes_the_short_way(
        recipe in recipe(), v6: bool, flags in 0_u8..8, extensions in 0_u8..3, super_packet: bool,
        bends in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        end in any::<prop::sample::Index>(),
    ) {
        let recipe = Recipe { tags: 0, padding: 0, options: 0, extensions: Vec::new(), ..recipe };
        prop_assume!(!recipe.v6 || !(is_mapped(recipe.source) || is_mapped(recipe.destination)));
        prop_assume!(recipe.tcp || ![2152, 4789].contains(&recipe.ports.1));
        let inner = recipe.frame().split_off(14);
        let mut frame = linked(&[], &Around::Gtpu { flags, extensions }.wrap(&inner, v6));
        // Of extension headers one, as on N3.
        let short = flags & 4 == 0 || extensions < 2;
        let found = plain(&Bytes::new(&frame, super_packet));
        prop_assert_eq!(matches!(found, Some(Plain::Gtpu(_))), short);
        prop_assert_eq!(found.is_some(), short, "a tunnel's packet is not the one that counts");
        holds_together(&frame, super_packet);
        for (at, byte) in bends {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        holds_together(&frame, super_packet);
        holds_together(&frame[..end.index(frame.len())], super_packet);
    }
}

#[test]
fn more_layers_than_are_looked_through_are_refused_only_where_nothing_was_found() {
    let tcp = {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut bytes, b"x")
            .expect("writes");
        bytes
    };
    assert_eq!(packets(&linked(&[Tag; 8], &tcp)).map(|found| found.len()), Ok(1));
    assert_eq!(packets(&linked(&[Tag; 9], &tcp)), Err(Reason::TooManyTags));
    let deep = Around::IpInIp.wrap(&tcp, false);
    assert_eq!(
        packets(&linked(&[Tag; 8], &deep)).map(|found| found.len()),
        Ok(1),
        "the outer one is there all the same"
    );
}

#[test]
fn fragments_tell_which_packet_they_are_of() {
    let mut udp = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
        .udp(1, 2)
        .write(&mut udp, b"abcdefgh")
        .expect("writes");
    udp[4..6].copy_from_slice(&[0x12, 0x34]);
    udp[6..8].copy_from_slice(&[0x20, 0]);
    assert_eq!(
        read(&linked(&[], &udp)).map(|packet| (packet.fragment, packet.ports)),
        Ok((Fragment::First(0x1234), [1, 2]))
    );
    udp[6..8].copy_from_slice(&[0, 9]);
    assert_eq!(
        read(&linked(&[], &udp)).map(|packet| (packet.fragment, packet.ports)),
        Ok((Fragment::Later(0x1234), [0, 0]))
    );
    assert!(plain(&Bytes::new(&linked(&[], &udp), false)).is_none());
}

#[test]
fn a_mapped_address_in_ipv6_is_nobodys() {
    let recipe = Recipe {
        v6: true,
        tcp: false,
        flags: 0x10,
        source: mapped(IpAddr::from([10, 0, 0, 2])),
        destination: [0x20; 16],
        ports: (1, 2),
        options: 0,
        extensions: Vec::new(),
        tags: 0,
        payload: Vec::new(),
        padding: 0,
    };
    assert_eq!(read(&recipe.frame()), Err(Reason::BadIp));
    let turned = Recipe { source: recipe.destination, destination: recipe.source, ..recipe };
    assert_eq!(read(&turned.frame()), Err(Reason::BadIp));
}
