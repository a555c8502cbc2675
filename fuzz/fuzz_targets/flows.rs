//! The whole classifier: many flows at once, both ways, over time, with room for few.
#![no_main]

use std::borrow::Cow;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use usher_agent::classify::{Catalogue, Classifier};
use usher_agent::dataplane::Sample;
use usher_fuzz::{check, held, hello, small};
use usher_models::units::Micros;
use usher_models::wire::{Direction, FlowKey};

#[derive(Debug, Arbitrary)]
enum Event {
    Packet { flow: u8, udp: bool, down: bool, flags: u8, sequence: u16, says: Says },
    Later { millis: u16 },
    SessionEnds { slot: u8 },
    CatalogueChanges,
}

#[derive(Debug, Arbitrary)]
enum Says {
    Nothing,
    Hello {
        to: u8,
    },
    Request,
    /// A question, or the answer to it.
    Dns {
        id: u8,
        answers: bool,
    },
    Bytes(Vec<u8>),
}

impl Says {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Hello { to } => {
                let mut hello = hello(b"pages.example");
                hello.truncate(usize::from(*to));
                hello
            }
            Self::Request => b"GET / HTTP/1.1\r\nHost: pages.example\r\n\r\n".to_vec(),
            Self::Dns { id, answers } => {
                let answered = u8::from(*answers);
                let mut message = vec![0, *id, answered << 7 | 1, 0, 0, 1, 0, answered, 0, 0, 0, 0];
                message.extend(b"\x05pages\x07example\0\0\x01\0\x01");
                if *answers {
                    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
                }
                message
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

fuzz_target!(|events: Vec<Event>| {
    const PORTS: [u16; 4] = [443, 53, 80, 3478];
    let limits = small();
    let mut classifier = Classifier::with_limits(Catalogue::empty(), limits);
    let mut now = Micros::new(1_000_000);
    for event in &events {
        match event {
            Event::Packet { flow, udp, down, flags, sequence, says } => {
                let says = says.bytes();
                let direction = if *down { Direction::Down } else { Direction::Up };
                let (subscriber, remote) = ([10, 0, 0, flow & 3], [192, 0, 2, 1]);
                let ports = [40_000 + u16::from(*flow), PORTS[usize::from(flow >> 6)]];
                let mapped = |v4: [u8; 4]| {
                    let mut octets = [0; 16];
                    octets[10..12].fill(0xff);
                    octets[12..].copy_from_slice(&v4);
                    octets
                };
                let key = FlowKey {
                    subscriber: mapped(subscriber),
                    remote: mapped(remote),
                    subscriber_port: ports[0],
                    remote_port: ports[1],
                    protocol: if *udp { 17 } else { 6 },
                    zero: [0; 3],
                };
                let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, key.protocol, 0, 0];
                let (from, to) = if *down { (1, 0) } else { (0, 1) };
                packet.extend([subscriber, remote][from]);
                packet.extend([subscriber, remote][to]);
                packet.extend(ports[from].to_be_bytes());
                packet.extend(ports[to].to_be_bytes());
                if *udp {
                    packet.extend(u16::try_from(8 + says.len()).unwrap_or(u16::MAX).to_be_bytes());
                    packet.extend([0, 0]);
                } else {
                    packet.extend(u32::from(*sequence).to_be_bytes());
                    packet.extend([0, 0, 0, 1, 0x50, flags & 0x17, 0, 99, 0, 0, 0, 0]);
                }
                packet.extend(says);
                let length = u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes();
                packet[2..4].copy_from_slice(&length);
                let packet = Cow::Owned(packet);
                let slot = u32::from(flow & 1);
                check(&classifier.observe(&Sample {
                    flow: key,
                    slot,
                    direction,
                    first_packet: now,
                    seen: now,
                    packet,
                }));
            }
            Event::Later { millis } => {
                now = now.after(Duration::from_millis(u64::from(*millis)));
                for concluded in classifier.expire(now) {
                    check(&concluded.observation);
                }
            }
            Event::SessionEnds { slot } => classifier.forget(u32::from(slot & 1)),
            Event::CatalogueChanges => classifier.replace_catalogue(Catalogue::empty()),
        }
        assert!(held(&classifier, "streams") <= limits.streams);
        assert!(held(&classifier, "stream_bytes") <= limits.stream_bytes);
        assert!(held(&classifier, "told") <= limits.told);
        assert!(held(&classifier, "watched") <= limits.watched);
    }
    for concluded in classifier.finish() {
        check(&concluded.observation);
    }
    assert_eq!((held(&classifier, "streams"), held(&classifier, "stream_bytes")), (0, 0));
});
