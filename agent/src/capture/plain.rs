//! The short way for the most common frames: TCP or UDP in IP in Ethernet, perhaps behind one VLAN tag.
//!
//! Owns nothing but speed: what it reads, [`frame::packets`] reads alike, and what it does not read goes there.

use super::frame::{self, Found, Layer, Layers};
use crate::classify::packet::{Packet, Payload};

/// libpcap's number of Ethernet.
pub(super) const ETHERNET: i32 = 1;

/// The one IP packet of a frame of Ethernet that had `wire` bytes; `None` where the long way must be gone.
#[inline]
pub(super) fn packet(frame: &[u8], wire: usize) -> Option<Found<'_>> {
    let header = frame.first_chunk::<18>()?;
    let mut layers = Layers::default();
    let (ether_type, start) = match u16::from_be_bytes([header[12], header[13]]) {
        0x8100 => {
            layers.push(Layer::Vlan(u16::from_be_bytes([header[14], header[15]]) & 0x0fff)).ok()?;
            (u16::from_be_bytes([header[16], header[17]]), 18)
        }
        ether_type => (ether_type, 14),
    };
    if !matches!(ether_type, 0x0800 | 0x86dd) {
        return None;
    }
    let ip = &frame[start..];
    let packet = Packet::plain(ip)?;
    let ports = [packet.source_port, packet.destination_port];
    if matches!(packet.payload, Payload::Udp(_)) && frame::may_carry_tunnel(ports) {
        return None;
    }
    Some(Found { ip, wire: wire.max(frame.len()) - start, packet, layers })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    /// Both ways' results, as far as the short one is gone.
    fn agrees(frame: &[u8], wire: usize) -> Option<bool> {
        let short = packet(frame, wire)?;
        let long: Vec<_> = frame::packets(ETHERNET, frame, wire).collect();
        let [Ok(long)] = &long[..] else { return Some(false) };
        let facts = |found: &Found<'_>| (found.ip.to_vec(), found.wire, found.layers);
        Some(facts(&short) == facts(long) && short.packet == long.packet)
    }

    #[test]
    fn common_frames_go_the_short_way() {
        for tagged in [false, true] {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let write = |frame: &mut Vec<u8>| {
                if tagged {
                    let id = etherparse::VlanId::try_new(9).unwrap();
                    let builder = builder.single_vlan(id).ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64);
                    builder.tcp(5_000, 443, 1, 2).write(frame, b"abc").unwrap();
                } else {
                    builder.ipv6([1; 16], [2; 16], 64).udp(5_000, 443).write(frame, b"abc").unwrap();
                }
            };
            write(&mut frame);
            assert_eq!(agrees(&frame, frame.len() + 7), Some(true));
        }
    }

    proptest! {
        #[test]
        fn the_short_way_leads_where_the_long_one_does(
            ether_type in prop_oneof![Just(0x0800_u16), Just(0x86dd), Just(0x8100), Just(0x88a8)],
            tagged in prop_oneof![Just(0x0800_u16), Just(0x86dd), any::<u16>()],
            first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(6_u8), Just(17), Just(4), Just(47)],
            port in prop_oneof![Just(2_152_u16), Just(4_789), Just(3_544), Just(5_247), any::<u16>()],
            mut bytes in proptest::collection::vec(any::<u8>(), 0..160),
            more in 0_usize..2_000,
        ) {
            let mut set = |at: usize, with: &[u8]| {
                if let Some(field) = bytes.get_mut(at..at + with.len()) {
                    field.copy_from_slice(with);
                }
            };
            set(12, &ether_type.to_be_bytes());
            let ip = if ether_type == 0x8100 { 18 } else { 14 };
            if ip == 18 {
                set(16, &tagged.to_be_bytes());
            }
            set(ip, &[first]);
            let transport = if first >> 4 == 4 {
                set(ip + 2, &[0, 100]);
                set(ip + 6, &[0, 0]);
                set(ip + 9, &[protocol]);
                ip + 20
            } else {
                set(ip + 6, &[protocol]);
                ip + 40
            };
            set(transport + 2, &port.to_be_bytes());
            set(transport + 12, &[0x50]);
            prop_assert_ne!(agrees(&bytes, bytes.len() + more), Some(false));
        }
    }
}
