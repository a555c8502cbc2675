//! A connection whose first bytes are being put together: who is its client, and what the client says first.

use usher_models::units::Micros;
use usher_models::wire::Direction;

use super::packet::Segment;
use super::quic;
use super::stream::{Beginning, TooMuch};
use super::tls::{self, Hello};
use crate::dataplane::Sample;

/// Most segments kept of a connection whose client is not known yet.
const MAX_UNKNOWN: usize = 4;
/// Most bytes kept of each of them.
const MAX_UNKNOWN_BYTES: usize = 4_096;
/// Most segments of a server that are waited through for the rest of the client's hello.
const MAX_ANSWERS: u8 = 8;

/// A flow of which more must come.
#[derive(Debug)]
pub(crate) struct InProgress {
    /// Whose it is.
    pub(crate) slot: u32,
    /// When its first bytes came; until then, when it was opened.
    pub(crate) since: Micros,
    kind: Kind,
}

/// What the first bytes may turn out to be.
#[derive(Debug)]
enum Kind {
    Tcp(Client),
    Quic(Box<quic::Connection>),
}

/// What is known of a TCP connection's client.
#[derive(Debug)]
enum Client {
    /// The TCP handshake, or a ClientHello's first bytes, showed who it is and where its stream begins.
    Known {
        direction: Direction,
        /// Whether the TCP handshake showed it.
        exact: bool,
        stream: Beginning,
        answers: u8,
    },
    /// Neither was seen yet.
    Unknown(Vec<Early>),
}

/// A segment from the middle of what may be a hello.
#[derive(Debug)]
struct Early {
    direction: Direction,
    sequence: u32,
    bytes: Box<[u8]>,
}

/// What a segment led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing yet.
    More,
    /// The name the client asks for.
    Name(Box<str>),
    /// No name will come.
    Nothing,
    /// No name came within the bounds.
    TooMuch,
}

impl Segment<'_> {
    /// The client's direction and the sequence number of its first byte, if the segment is of the TCP handshake.
    pub(crate) fn opening(&self, direction: Direction) -> Option<(Direction, u32)> {
        match (self.syn, self.acknowledges) {
            (false, _) => None,
            (true, false) => Some((direction, self.sequence.wrapping_add(1))),
            (true, true) => Some((opposite(direction), self.acknowledgement)),
        }
    }
}

impl InProgress {
    /// A connection whose handshake showed the client's direction and its first sequence number.
    pub(crate) fn opened(sample: &Sample, direction: Direction, start: u32) -> Self {
        let client = Client::Known { direction, exact: true, stream: Beginning::at(start), answers: 0 };
        Self { slot: sample.slot, since: sample.seen, kind: Kind::Tcp(client) }
    }

    /// A connection seen from somewhere in its middle, or whose handshake was lost.
    pub(crate) fn unopened(sample: &Sample) -> Self {
        Self { slot: sample.slot, since: sample.seen, kind: Kind::Tcp(Client::Unknown(Vec::new())) }
    }

    /// A QUIC connection.
    pub(crate) fn quic(sample: &Sample) -> Self {
        Self { slot: sample.slot, since: sample.seen, kind: Kind::Quic(Box::default()) }
    }

    /// Where the client's TCP stream begins, once known.
    pub(crate) fn start(&self) -> Option<u32> {
        match &self.kind {
            Kind::Tcp(Client::Known { stream, .. }) => Some(stream.start()),
            Kind::Tcp(Client::Unknown(_)) | Kind::Quic(_) => None,
        }
    }

    /// Whether neither side has said anything yet.
    pub(crate) fn is_silent(&self) -> bool {
        match &self.kind {
            Kind::Tcp(Client::Known { stream, answers, .. }) => stream.held() == 0 && *answers == 0,
            Kind::Tcp(Client::Unknown(early)) => early.is_empty(),
            Kind::Quic(_) => false,
        }
    }

    /// Bytes of the network in memory.
    pub(crate) fn held(&self) -> usize {
        match &self.kind {
            Kind::Tcp(Client::Known { stream, .. }) => stream.held(),
            Kind::Tcp(Client::Unknown(early)) => early.iter().map(|early| early.bytes.len()).sum(),
            Kind::Quic(connection) => connection.held(),
        }
    }

    /// Takes a datagram in.
    pub(crate) fn datagram(&mut self, direction: Direction, datagram: &[u8]) -> Step {
        match &mut self.kind {
            Kind::Quic(connection) => connection.datagram(direction, datagram),
            Kind::Tcp(_) => Step::Nothing,
        }
    }

    /// Takes a segment in.
    pub(crate) fn segment(&mut self, direction: Direction, segment: &Segment<'_>) -> Step {
        if segment.bytes.is_empty() {
            return Step::More;
        }
        let sequence = segment.sequence.wrapping_add(u32::from(segment.syn));
        let Kind::Tcp(client) = &mut self.kind else { return Step::Nothing };
        match client {
            Client::Known { direction: known, stream, answers, .. } if *known != direction => {
                *answers = answers.saturating_add(1);
                // A server that speaks first, or in another protocol, was asked for no name by TLS.
                let silent = stream.held() == 0;
                if (silent && !tls::may_be_answer(segment.bytes)) || *answers > MAX_ANSWERS {
                    return Step::Nothing;
                }
                Step::More
            }
            Client::Known { exact, stream, .. } => {
                let before = stream.start().wrapping_sub(sequence).cast_signed() > 0;
                if !*exact && before && tls::may_be_hello(segment.bytes) {
                    stream.begin_earlier(sequence);
                }
                push(stream, sequence, segment.bytes)
            }
            Client::Unknown(early) if tls::may_be_hello(segment.bytes) => {
                let mut stream = Beginning::at(sequence);
                let mut step = push(&mut stream, sequence, segment.bytes);
                for waiting in early.iter().filter(|waiting| waiting.direction == direction) {
                    if step != Step::More {
                        break;
                    }
                    step = push(&mut stream, waiting.sequence, &waiting.bytes);
                }
                *client = Client::Known { direction, exact: false, stream, answers: 0 };
                step
            }
            Client::Unknown(early) => {
                let repeat = |before: &Early| before.direction == direction && before.sequence == sequence;
                if early.iter().any(repeat) {
                    return Step::More;
                }
                // A connection taken up in its middle, as most are after the agent's first start.
                if early.len() >= MAX_UNKNOWN {
                    return Step::Nothing;
                }
                let bytes = segment.bytes.get(..MAX_UNKNOWN_BYTES).unwrap_or(segment.bytes).into();
                early.push(Early { direction, sequence, bytes });
                Step::More
            }
        }
    }
}

/// Adds to the client's stream and reads it again.
fn push(stream: &mut Beginning, sequence: u32, bytes: &[u8]) -> Step {
    let pushed = stream.push(sequence, bytes);
    match tls::read(stream.bytes()) {
        Hello::Name(name) => Step::Name(name),
        Hello::Nameless | Hello::NotTls => Step::Nothing,
        Hello::Partial if pushed == Err(TooMuch) || stream.bytes().len() >= super::stream::MAX_BYTES => {
            Step::TooMuch
        }
        Hello::Partial => Step::More,
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Up => Direction::Down,
        Direction::Down => Direction::Up,
    }
}
