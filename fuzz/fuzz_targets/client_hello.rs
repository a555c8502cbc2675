//! Segments of one TCP connection, in any order, through the classifier.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::{Catalogue, Classifier, Observation};
use usher_agent::dataplane::Sample;
use usher_models::units::Micros;
use usher_models::wire::{Direction, FlowKey};

const FLOW: FlowKey = FlowKey {
    subscriber: [1; 16],
    remote: [2; 16],
    subscriber_port: 40_000,
    remote_port: 443,
    protocol: 6,
    zero: [0; 3],
};

// Input: segments, each after four bytes: its TCP flags and direction, its place in the stream, its length.
fuzz_target!(|data: &[u8]| {
    let mut classifier = Classifier::new(Catalogue::empty());
    let mut rest = data;
    while let Some(([flags, high, low, length], more)) = rest.split_first_chunk::<4>() {
        let (bytes, more) = more.split_at((usize::from(*length) * 8).min(more.len()));
        rest = more;
        let down = flags & 0x80 != 0;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
        let total = u16::try_from(40 + bytes.len()).unwrap_or(u16::MAX);
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet.extend([
            0x9c,
            0x40,
            0x01,
            0xbb,
            0,
            0,
            *high,
            *low,
            0,
            0,
            0,
            1,
            0x50,
            flags & 0x17,
            0,
            99,
            0,
            0,
            0,
            0,
        ]);
        packet.extend(bytes);
        let direction = if down { Direction::Down } else { Direction::Up };
        let at = Micros::new(0);
        let sample =
            Sample { flow: FLOW, slot: 1, direction, first_packet: at, seen: at, packet: packet.into() };
        match classifier.observe(&sample) {
            Observation::Named(verdict) => assert!(verdict.name.is_some_and(|name| name.len() <= 253)),
            Observation::NeedMore | Observation::GiveUp | Observation::Again { .. } => {}
        }
        assert!(classifier.held()[1].1 <= 64 * 1024);
    }
    classifier.finish();
    assert_eq!(classifier.held()[1].1, 0);
});
