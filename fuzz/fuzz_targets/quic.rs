//! Datagrams of one UDP flow, as QUIC's first, through the classifier.
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
    protocol: 17,
    zero: [0; 3],
};

// Input: datagrams, each after two bytes: its direction and length.
fuzz_target!(|data: &[u8]| {
    let mut classifier = Classifier::new(Catalogue::empty());
    let mut rest = data;
    while let Some(([high, low], more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes([*high & 0x07, *low]));
        let (bytes, more) = more.split_at(length.min(more.len()));
        rest = more;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
        let udp = u16::try_from(8 + bytes.len()).unwrap_or(u16::MAX);
        packet[2..4].copy_from_slice(&(20 + udp).to_be_bytes());
        packet.extend([0x9c, 0x40, 0x01, 0xbb]);
        packet.extend(udp.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(bytes);
        let direction = if *high & 0x80 != 0 { Direction::Down } else { Direction::Up };
        let at = Micros::new(0);
        let sample =
            Sample { flow: FLOW, slot: 1, direction, first_packet: at, seen: at, packet: packet.into() };
        if let Observation::Named(verdict) = classifier.observe(&sample) {
            assert!(verdict.name.is_some_and(|name| name.len() <= 253));
        }
        assert!(classifier.held()[1].1 <= 64 * 1024);
    }
    classifier.finish();
    assert_eq!(classifier.held()[1].1, 0);
});
