//! The probe's parser, on the host: the kernel's source itself, driven with bytes from anywhere.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use usher_models::wire::{Direction, FlowKey, Reason};

#[path = "../ebpf/src/parse.rs"]
#[expect(clippy::inline_always, unreachable_pub, reason = "the probe's file, held to the kernel's needs")]
mod parse;

use parse::{Frame, Packet, parse};

/// A frame in memory.
struct Bytes<'a> {
    bytes: &'a [u8],
    super_packet: bool,
}

impl Frame for Bytes<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("short")
    }

    fn is_super_packet(&self) -> bool {
        self.super_packet
    }

    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let from = usize::try_from(at).expect("small");
        let bytes = self.bytes.get(from..from.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        Some(words)
    }
}

fn read(bytes: &[u8], direction: Direction) -> Result<Packet, Reason> {
    parse(&Bytes { bytes, super_packet: false }, direction)
}

/// What must hold for any bytes.
fn holds_together(bytes: &[u8], super_packet: bool) {
    let up = parse(&Bytes { bytes, super_packet }, Direction::Up);
    let down = parse(&Bytes { bytes, super_packet }, Direction::Down);
    match (up, down) {
        (Ok(up), Ok(down)) => {
            let end = usize::try_from(up.ip_at + up.ip_bytes).expect("small");
            assert!(end <= bytes.len(), "counts no byte that is not there");
            assert!((20..=up.ip_bytes).contains(&up.header_bytes), "{up:?}");
            assert!(up.trouble.is_none_or(|reason| !reason.outside_usage()), "{up:?}");
            assert!(!(up.trouble.is_some() && up.worth_a_sample), "{up:?}");
            assert_eq!(up.flow.zero, [0; 3]);
            let turned = FlowKey {
                subscriber: down.flow.remote,
                remote: down.flow.subscriber,
                subscriber_port: down.flow.remote_port,
                remote_port: down.flow.subscriber_port,
                ..down.flow
            };
            assert_eq!(up, Packet { flow: turned, ..down }, "both directions are one flow");
        }
        (Err(up), Err(down)) => {
            assert_eq!(up, down);
            assert!(up.outside_usage(), "{up:?}");
        }
        (up, down) => panic!("{up:?} but {down:?}"),
    }
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
        v6: bool, tcp: bool, source: [u8; 16], destination: [u8; 16], ports: (u16, u16), options in 0_usize..=10,
        // Each extension header once and in the order of RFC 8200, 4.1: etherparse reads no other.
        hop in proptest::option::of(0_u8..3), target in proptest::option::of(0_u8..3),
        tags in 0_usize..=2, payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0_usize..20,
    ) -> Recipe {
        let extensions = [(0, hop), (60, target)];
        let extensions = extensions.into_iter().filter_map(|(kind, size)| Some((kind, size?))).collect();
        Recipe { v6, tcp, source, destination, ports, options, extensions, tags, payload, padding }
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
            transport.extend([words << 4, 0x10, 0, 0, 0, 0, 0, 0]);
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
        let packet = read(&frame, Direction::Up).expect("well-formed");
        let (flow, ip_bytes) = reference(&frame).expect("etherparse reads it");
        prop_assert_eq!(packet.flow, flow);
        prop_assert_eq!(packet.ip_bytes, ip_bytes);
        prop_assert_eq!(packet.trouble, None);
        let payload = u32::try_from(recipe.payload.len()).expect("short");
        prop_assert_eq!(packet.ip_bytes - packet.header_bytes, payload);
        prop_assert_eq!(packet.worth_a_sample, payload > 0);
    }

    #[test]
    fn a_fragment_is_read_as_etherparse_reads_it(recipe in recipe(), offset in 0_u16..0x1fff, more: bool) {
        let recipe = Recipe { v6: false, ..recipe };
        let mut frame = recipe.frame();
        let at = 14 + recipe.tags * 4 + 6;
        frame[at..at + 2].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
        let packet = read(&frame, Direction::Up).expect("well-formed");
        let (flow, ip_bytes) = reference(&frame).expect("etherparse reads it");
        // Where there are more to come, etherparse reads no ports of the first one either; the probe does.
        if offset != 0 {
            prop_assert_eq!(packet.flow, flow);
            prop_assert!(!packet.worth_a_sample);
        } else {
            prop_assert_eq!((packet.flow.subscriber_port, packet.flow.remote_port), recipe.ports);
        }
        prop_assert_eq!(packet.ip_bytes, ip_bytes);
    }

    #[test]
    fn a_super_packet_is_as_long_as_its_frame(recipe in recipe(), said: u16) {
        let recipe = Recipe { v6: false, ..recipe };
        let mut frame = recipe.frame();
        let at = 14 + recipe.tags * 4 + 2;
        frame[at..at + 2].copy_from_slice(&said.to_be_bytes());
        let packet = parse(&Bytes { bytes: &frame, super_packet: true }, Direction::Up).expect("well-formed");
        prop_assert_eq!(usize::try_from(packet.ip_at + packet.ip_bytes).expect("small"), frame.len());
    }
}

#[test]
fn a_mapped_address_in_ipv6_is_nobodys() {
    let recipe = Recipe {
        v6: true,
        tcp: false,
        source: mapped(IpAddr::from([10, 0, 0, 2])),
        destination: [0x20; 16],
        ports: (1, 2),
        options: 0,
        extensions: Vec::new(),
        tags: 0,
        payload: Vec::new(),
        padding: 0,
    };
    assert_eq!(read(&recipe.frame(), Direction::Up), Err(Reason::BadIp));
    let turned = Recipe { source: recipe.destination, destination: recipe.source, ..recipe };
    assert_eq!(read(&turned.frame(), Direction::Up), Err(Reason::BadIp));
}
