//! Frames through the probe's parser, compiled for the host: the short way and the long one say the same, no byte is counted that is not
//! there, and each packet lies within the one around it.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

#[path = "../../ebpf/src/parse.rs"]
#[allow(dead_code, reason = "the probe's file")]
mod parse;
#[path = "../../ebpf/src/walk.rs"]
#[allow(dead_code, reason = "the probe's file")]
mod walk;

use parse::{Frame, Packet, Plain};
use usher_models::wire::Reason;

struct Bytes<'a> {
    frame: &'a [u8],
    super_packet: bool,
    walk: RefCell<Option<walk::Walk>>,
    kept: RefCell<Vec<Packet>>,
}

impl Frame for Bytes<'_> {
    fn length(&self) -> u32 {
        self.frame.len().try_into().unwrap()
    }

    fn is_super_packet(&self) -> bool {
        self.super_packet
    }

    fn words_at_hand<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let from = usize::try_from(at).unwrap();
        let bytes = self.frame.get(from..from.checked_add(N * 4)?)?;
        let (words, _) = bytes.as_chunks::<4>();
        Some(std::array::from_fn(|word| u32::from_ne_bytes(words[word])))
    }

    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        assert!(at.is_multiple_of(2), "the kernel reads words at even places only");
        self.words_at_hand(at)
    }

    fn begin(&self, walk: walk::Walk) {
        self.walk.replace(Some(walk));
    }

    fn step(&self) -> bool {
        self.walk.borrow_mut().as_mut().unwrap().step(self)
    }

    fn ended(&self) -> Result<u32, Reason> {
        self.walk.borrow().as_ref().unwrap().ended()
    }

    fn keep(&self, place: u32, packet: &Packet) {
        let mut kept = self.kept.borrow_mut();
        assert_eq!(usize::try_from(place), Ok(kept.len()), "each place is used once, in order");
        kept.push(*packet);
    }
}

/// A packet that may be counted.
fn check(packet: &Packet, (begin, end): (u32, u32)) -> (u32, u32) {
    let packet_end = packet.ip_at + packet.ip_bytes;
    assert!(begin <= packet.ip_at && packet_end <= end, "counts no byte that is not there: {packet:?}");
    assert!((20..=packet.ip_bytes).contains(&packet.header_bytes), "{packet:?}");
    assert!(packet.trouble.is_none_or(|reason| !reason.outside_usage()), "{packet:?}");
    assert!(!(packet.trouble.is_some() && packet.worth_a_sample), "{packet:?}");
    (packet.ip_at + packet.header_bytes, packet_end)
}

// Input: a byte whose lowest bits say whether the frame is a super-packet and whether it has no link layer, then the frame.
fuzz_target!(|data: &[u8]| {
    let Some((kind, frame)) = data.split_first() else { return };
    let (super_packet, first) =
        (kind & 1 != 0, if kind & 2 != 0 { walk::IP_HEADER } else { walk::ETHERNET_HEADER });
    let bytes = Bytes { frame, super_packet, walk: RefCell::default(), kept: RefCell::default() };
    let ethernet = first == walk::ETHERNET_HEADER;
    let plain = if ethernet { parse::plain(&bytes) } else { None };
    let walked = walk::walk(&bytes, first);
    let found = bytes.kept.into_inner();
    match walked {
        Ok(count) => assert_eq!(usize::try_from(count), Ok(found.len())),
        Err(reason) => assert!(reason.outside_usage() && found.is_empty(), "{reason:?}"),
    }
    let mut within = (0, u32::try_from(frame.len()).unwrap());
    for packet in &found {
        within = check(packet, within);
    }
    match plain {
        Some(Plain::Packet(packet)) => {
            assert_eq!(found, [packet], "the short way and the long one say the same")
        }
        Some(Plain::Gtpu(both)) => assert_eq!(found, both, "and so they do of a tunnel"),
        None => {}
    }
});
