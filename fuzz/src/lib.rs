//! What the targets share: the packets of one flow, as a data plane hands them to the classifier, and the bounds that hold
//! whatever comes in them.

use std::borrow::Cow;

use usher_agent::classify::{Catalogue, Classifier, Limits, Observation, ShareLimits, Verdict};
use usher_agent::dataplane::Sample;
use usher_models::units::Micros;
use usher_models::wire::{Direction, FlowKey};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// TCP flags.
pub const FIN: u8 = 1;
/// Likewise.
pub const SYN: u8 = 2;
/// Likewise.
pub const ACK: u8 = 16;

/// Few of everything, so that bounds are met often.
pub fn small() -> Limits {
    Limits {
        streams: 4,
        stream_bytes: 8_192,
        told: 4,
        watched: 2,
        waiting: 2,
        callers: ShareLimits { askers: 2, each: 2, total: 2 },
        ..Limits::default()
    }
}

/// How many of `kind` a classifier holds.
pub fn held(classifier: &Classifier, kind: &str) -> usize {
    classifier.held().into_iter().find(|(name, _)| *name == kind).map_or(0, |(_, count)| count)
}

/// One flow through a classifier.
pub struct Line {
    pub classifier: Classifier,
    pub flow: FlowKey,
    /// When the next packet is seen.
    pub now: Micros,
}

impl Line {
    /// A flow of `protocol` between these ports, and a classifier that knows nothing.
    pub fn new(protocol: u8, subscriber_port: u16, remote_port: u16) -> Self {
        let flow = FlowKey {
            subscriber: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2],
            remote: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1],
            subscriber_port,
            remote_port,
            protocol,
            zero: [0; 3],
        };
        Self { classifier: Classifier::new(Catalogue::empty()), flow, now: Micros::new(0) }
    }

    /// Passes a TCP segment.
    pub fn segment(&mut self, direction: Direction, flags: u8, sequence: u32, bytes: &[u8]) -> Observation {
        let mut header = [0; 20];
        self.put_ports(direction, &mut header);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[11] = 1;
        header[12] = 0x50;
        header[13] = flags;
        self.pass(direction, &header, bytes)
    }

    /// Passes a UDP datagram.
    pub fn datagram(&mut self, direction: Direction, bytes: &[u8]) -> Observation {
        let mut header = [0; 8];
        self.put_ports(direction, &mut header);
        header[4..6].copy_from_slice(&length(8 + bytes.len()).to_be_bytes());
        self.pass(direction, &header, bytes)
    }

    /// Nothing more comes.
    pub fn end(mut self) -> Option<Observation> {
        let last = self.classifier.finish().pop().map(|concluded| concluded.observation);
        assert_eq!(held(&self.classifier, "stream_bytes"), 0, "a flow that is over holds bytes");
        last
    }

    fn put_ports(&self, direction: Direction, header: &mut [u8]) {
        let (from, to) = match direction {
            Direction::Up => (self.flow.subscriber_port, self.flow.remote_port),
            Direction::Down => (self.flow.remote_port, self.flow.subscriber_port),
        };
        header[..2].copy_from_slice(&from.to_be_bytes());
        header[2..4].copy_from_slice(&to.to_be_bytes());
    }

    fn pass(&mut self, direction: Direction, header: &[u8], bytes: &[u8]) -> Observation {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, self.flow.protocol, 0, 0];
        let addresses = [&self.flow.subscriber[12..], &self.flow.remote[12..]];
        for end in [direction, direction.opposite()] {
            packet.extend(addresses[end.index()]);
        }
        packet.extend(header);
        packet.extend(bytes);
        let total = length(packet.len());
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        let observation = self.classifier.observe(&Sample {
            flow: self.flow,
            slot: 1,
            direction,
            first_packet: Micros::new(0),
            seen: self.now,
            packet: Cow::Owned(packet),
        });
        check(&observation);
        assert!(held(&self.classifier, "stream_bytes") <= 128 * 1024, "one flow holds too many bytes");
        observation
    }
}

/// What holds of every observation.
pub fn check(observation: &Observation) {
    if let Observation::Named(verdict) | Observation::Upgraded(verdict) = observation
        && let Verdict { name: Some(name), confidence, .. } = verdict
    {
        // A host name, with the brackets of an address and a port.
        assert!(!name.is_empty() && name.len() <= 260, "{name:?}");
        assert!(name.chars().all(|character| !character.is_control() && character != ' '), "{name:?}");
        assert!((0.0..=1.0).contains(&confidence.get()));
    }
}

/// The name of a flow to `port` whose client, after the handshake, says these pieces in their order.
pub fn name_said<'a>(port: u16, pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Box<str>> {
    let mut line = Line::new(TCP, 40_000, port);
    line.segment(Direction::Up, SYN, 99, &[]);
    let mut sequence = 100_u32;
    for piece in pieces {
        let told = line.segment(Direction::Up, ACK, sequence, piece);
        if let Observation::Named(verdict) | Observation::Upgraded(verdict) = told {
            return verdict.name;
        }
        sequence = sequence.wrapping_add(u32::try_from(piece.len()).unwrap_or(0));
    }
    match line.end() {
        Some(Observation::Named(verdict)) => verdict.name,
        _ => None,
    }
}

/// A client that says `bytes` in one segment and is named is named the same where their first two octets, which are left out,
/// cut them. Where the whole names nothing, a segment that begins what would be read by itself may name something.
pub fn cutting_loses_no_name(port: u16, bytes: &[u8]) {
    let Some(([first, second], said)) = bytes.split_first_chunk::<2>() else { return };
    let (head, rest) = said.split_at(usize::from(*first).min(said.len()));
    let (middle, tail) = rest.split_at(usize::from(*second).min(rest.len()));
    let pieces = [head, middle, tail];
    if pieces.iter().any(|piece| piece.len() <= 6 && piece.iter().all(|byte| *byte == 0)) {
        return; // taken for a keep-alive, which says nothing
    }
    if let Some(name) = name_said(port, [said]) {
        assert_eq!(
            name_said(port, pieces),
            Some(name),
            "{:?}",
            pieces.map(<[u8]>::escape_ascii).map(|p| p.to_string())
        );
    }
}

/// A ClientHello for `name` with nothing else in it.
pub fn hello(name: &[u8]) -> Vec<u8> {
    let vector = |bytes: &[u8]| [&length(bytes.len()).to_be_bytes()[..], bytes].concat();
    let names = vector(&[&[0][..], &vector(name)].concat());
    let extension = [&[0, 0][..], &vector(&names)].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &vector(&extension)].concat();
    let handshake = [&[1, 0][..], &vector(&body)].concat();
    [&[22, 3, 1][..], &vector(&handshake)].concat()
}

fn length(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
