//! Frames made by hand, around one packet.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::tunnel::{CAPWAP_PORT, GTPU_PORT, TEREDO_PORT, VXLAN_PORT};
use super::*;
use crate::capture::layer::MAX_LAYERS;

const ETHERNET: i32 = 1;
const ETHERNET_HEADER: [u8; 12] = [0; 12];

fn inner() -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64).udp(5_000, 443).write(&mut bytes, b"abc").unwrap();
    bytes
}

fn outer_udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
        .udp(port, port)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn outer_ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
        .write(&mut bytes, etherparse::IpNumber(protocol), payload)
        .unwrap();
    bytes
}

fn ethernet(ether_type: u16, content: &[&[u8]]) -> Vec<u8> {
    [&ETHERNET_HEADER[..], &ether_type.to_be_bytes(), &content.concat()].concat()
}

fn all(link: i32, frame: &[u8]) -> Result<Vec<Found<'_>>, Refused> {
    packets(link, frame, frame.len()).collect()
}

/// What is around the innermost packet, and that this is the whole of [`inner`].
fn layers(link: i32, frame: &[u8]) -> String {
    let found = all(link, frame).unwrap();
    let innermost = found.last().unwrap();
    assert_eq!(innermost.ip, inner(), "the innermost packet");
    assert_eq!(innermost.wire, inner().len());
    innermost.layers.iter().map(|layer| layer.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn tags_labels_and_tunnels_are_taken_off() {
    let ip = inner();
    let gtpu = |flags: u8, rest: &[u8]| {
        let header = [flags, 0xff, 0, 0, 0, 0, 0x12, 0x34];
        outer_udp(GTPU_PORT, &[&header[..], rest, &ip].concat())
    };
    let whole = ethernet(0x0800, &[&ip]);
    for (frame, expected) in [
        (ethernet(0x0800, &[&ip]), ""),
        (ethernet(0x8100, &[&[0x20, 100, 8, 0], &ip]), "vlan:100"),
        (ethernet(0x88a8, &[&[0, 7, 0x81, 0], &[0, 8, 8, 0], &ip]), "vlan:7 vlan:8"),
        (ethernet(0x8847, &[&[0, 1, 0, 64], &[0, 2, 1, 64], &ip]), "mpls:16 mpls:32"),
        (ethernet(0x8847, &[&[0, 1, 1, 64], &[0; 4], &whole]), "mpls:16"),
        (ethernet(0x8864, &[&[0x11, 0, 0, 9, 0, 33], &[0, 0x21], &ip]), "pppoe:9"),
        (ethernet(0x0800, &[&outer_ip(4, &ip)]), "ipip"),
        (ethernet(0x0800, &[&outer_ip(47, &[&[0, 0, 8, 0][..], &ip].concat())]), "gre"),
        (ethernet(0x0800, &[&outer_ip(47, &[&[0xb0, 0, 0x65, 0x58][..], &[0; 12], &whole].concat())]), "gre"),
        (
            ethernet(
                0x0800,
                &[&outer_ip(
                    47,
                    &[&[0x30, 0x81, 0x88, 0x0b][..], &[0; 12], &[0xff, 3, 0, 0x21], &ip].concat(),
                )],
            ),
            "gre",
        ),
        (ethernet(0x0800, &[&gtpu(0x30, b"")]), "gtpu:4660"),
        (ethernet(0x0800, &[&gtpu(0x32, &[0, 1, 0, 0])]), "gtpu:4660"),
        (ethernet(0x0800, &[&gtpu(0x34, &[0, 0, 0, 0x85, 1, 16, 1, 0])]), "gtpu:4660"),
        (
            ethernet(0x0800, &[&outer_udp(VXLAN_PORT, &[&[8, 0, 0, 0, 0, 0, 5, 0][..], &whole].concat())]),
            "vxlan:5",
        ),
        (
            ethernet(
                0x0800,
                &[&outer_udp(CAPWAP_PORT, &[&[0, 0x10, 0, 0, 0, 0, 0, 0][..], &whole].concat())],
            ),
            "capwap",
        ),
        (
            ethernet(0x0800, &[&outer_udp(CAPWAP_PORT, &[wireless(0x08, 0x11), ip.clone()].concat())]),
            "capwap",
        ),
        (
            ethernet(0x0800, &[&outer_udp(CAPWAP_PORT, &[wireless(0x11, 0x08), ip.clone()].concat())]),
            "capwap",
        ),
    ] {
        assert_eq!(layers(ETHERNET, &frame), expected, "{frame:02x?}");
    }
}

/// CAPWAP's header with wireless information, an 802.11 header and a SNAP header, before IPv4.
fn wireless(first: u8, second: u8) -> Vec<u8> {
    let capwap = [0, 0x20, 0x03, 0x20, 0, 0, 0, 0, 4, 1, 2, 3, 0, 0, 0, 0];
    [&capwap[..], &[first, second], &[7; 22], &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]].concat()
}

#[test]
fn teredo_is_taken_off_with_what_stands_before_its_packet() {
    let mut ip = Vec::new();
    PacketBuilder::ipv6([0x20; 16], [0x26; 16], 64).udp(5_000, 443).write(&mut ip, b"abc").unwrap();
    let authentication = [&[0, 1, 1, 2][..], &[9; 12]].concat();
    for before in [vec![], vec![0, 0, 1, 2, 3, 4, 5, 6], authentication] {
        let frame =
            ethernet(0x0800, &[&outer_udp(TEREDO_PORT, &[&before, &ip].map(|part| &part[..]).concat())]);
        let found = all(ETHERNET, &frame).unwrap();
        assert_eq!((found.len(), found[1].ip), (2, &ip[..]));
        assert_eq!(found[1].layers.iter().collect::<Vec<_>>(), [Layer::Teredo]);
    }
}

#[test]
fn below_labels_a_pseudowire_is_told_from_ip() {
    let whole = ethernet(0x0800, &[&inner()]);
    let mut to_a_mac_of_four = whole.clone();
    to_a_mac_of_four[0] = 0x45;
    for content in [&whole[..], &to_a_mac_of_four, &[&[0; 4], &whole[..]].concat()] {
        let frame = ethernet(0x8847, &[&[0, 1, 0, 64], &[0, 2, 0, 64], &[0, 3, 1, 64], content]);
        assert_eq!(layers(ETHERNET, &frame), "mpls:16 mpls:32 mpls:48");
    }
}

#[test]
fn a_flow_label_is_no_type_of_ethernet() {
    let mut ip = Vec::new();
    PacketBuilder::ipv6([0x20; 16], [0x26; 16], 64).udp(5_000, 443).write(&mut ip, b"abc").unwrap();
    ip[2..4].copy_from_slice(&[8, 0]);
    let frame = ethernet(0x8847, &[&[0, 1, 1, 64], &ethernet(0x86dd, &[&ip])]);
    assert_eq!(all(ETHERNET, &frame).unwrap()[0].ip, ip);
}

#[test]
fn what_a_tunnel_carries_beside_ip_is_refused_as_outside_it() {
    let arp = ethernet(0x0806, &[&[0; 28]]);
    let broken = ethernet(0x0800, &[&[0x45, 0, 0]]);
    for (content, expected) in [(&arp, Refused::NotIp), (&broken, Refused::Malformed)] {
        let vxlan = outer_udp(VXLAN_PORT, &[&[8, 0, 0, 0, 0, 0, 5, 0][..], content].concat());
        let frame = ethernet(0x0800, &[&vxlan]);
        let found: Vec<_> = packets(ETHERNET, &frame, frame.len()).collect();
        assert!(found[0].is_ok());
        assert_eq!((found.len(), *found[1].as_ref().unwrap_err()), (2, expected));
        // Captured too short, it is the outer packet at least.
        let found: Vec<_> = packets(ETHERNET, &frame[..60], frame.len()).collect();
        assert!(found.len() == 1 && found[0].is_ok());
    }
}

#[test]
fn every_link_type_of_ip_is_read() {
    let ip = inner();
    let cooked = [&[0; 14][..], &[8, 0], &ip].concat();
    let cooked_2 = [&[8, 0][..], &[0; 18], &ip].concat();
    for (link, frame) in [
        (101, ip.clone()),
        (12, ip.clone()),
        (228, ip.clone()),
        (113, cooked),
        (276, cooked_2),
        (0, [&[2, 0, 0, 0][..], &ip].concat()),
        (9, [&[0xff, 3, 0, 0x21][..], &ip].concat()),
        (9, [&[0, 0x21][..], &ip].concat()),
        (50, [&[0xff, 3, 0x21][..], &ip].concat()),
        (204, [&[1, 0xff, 3, 0, 0x21][..], &ip].concat()),
        (104, [&[0x0f, 0, 8, 0][..], &ip].concat()),
        (105, [&wireless(0x08, 0x01)[16..], &ip].concat()),
        (127, [&[0, 0, 9, 0, 0, 0, 0, 0, 7], &wireless(0x08, 0x01)[16..], &ip].concat()),
    ] {
        assert_eq!(layers(link, &frame), "", "link type {link}");
    }
    assert_eq!(all(999, &ip).unwrap_err(), Refused::UnknownLink);
}

#[test]
fn what_is_no_tunnel_on_a_tunnels_port_stays_a_packet() {
    for payload in
        [&b""[..], b"x", &[0x30, 1, 0, 0, 0, 0, 0, 0], &[0x34, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]]
    {
        let frame = ethernet(0x0800, &[&outer_udp(GTPU_PORT, payload)]);
        let found = all(ETHERNET, &frame).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].layers, Layers::default());
    }
}

#[test]
fn frames_that_hide_or_lack_their_packet_are_refused_with_a_reason() {
    let tags = [0x81, 0, 0, 1].repeat(20);
    for (frame, expected) in [
        (vec![0; 13], Refused::Truncated),
        (ethernet(0x0806, &[&[0; 28]]), Refused::NotIp),
        (ethernet(0x8100, &[&[0, 1]]), Refused::Truncated),
        (ethernet(0x8100, &[&[0, 1], &tags]), Refused::TooDeep),
        (ethernet(0x0800, &[&[0x45, 0, 0]]), Refused::Malformed),
        (ethernet(0x0800, &[]), Refused::Malformed),
        (ethernet(0x8863, &[&[0x11, 9, 0, 0, 0, 0]]), Refused::NotIp),
    ] {
        assert_eq!(all(ETHERNET, &frame).unwrap_err(), expected, "{frame:02x?}");
    }
}

#[test]
fn packets_nested_without_end_are_taken_apart_to_a_bound() {
    let mut nested = inner();
    for _ in 0..50 {
        nested = outer_ip(4, &nested);
    }
    let frame = ethernet(0x0800, &[&nested]);
    assert_eq!(all(ETHERNET, &frame).unwrap().len(), MAX_LAYERS + 1);
}

proptest! {
    #[test]
    fn any_bytes_are_taken_apart_or_refused(
        link in prop_oneof![Just(1), Just(0), Just(9), Just(101), Just(113), Just(276)],
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        more in 0_usize..3_000,
    ) {
        let _ = packets(link, &bytes, bytes.len() + more);
    }

    #[test]
    fn any_tunnel_is_taken_apart_or_left(
        protocol in prop_oneof![Just(4_u8), Just(41), Just(47), Just(17)],
        port in prop_oneof![
            Just(GTPU_PORT), Just(VXLAN_PORT), Just(TEREDO_PORT), Just(CAPWAP_PORT)],
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        more in 0_usize..3_000,
    ) {
        let packet = if protocol == 17 { outer_udp(port, &bytes) } else { outer_ip(protocol, &bytes) };
        let found: Vec<_> = packets(101, &packet, packet.len() + more).collect();
        let found_count = found.len();
        prop_assert!(found[0].is_ok() && found.len() <= MAX_LAYERS + 2);
        for (number, found) in found.iter().enumerate() {
            match found {
                Ok(found) => prop_assert!(found.wire >= found.ip.len()),
                Err(_) => prop_assert!(number > 0 && number + 1 == found_count),
            }
        }
    }
}
