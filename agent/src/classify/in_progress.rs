//! A connection whose first bytes are being put together: who is its client, and what the client says first.

use usher_models::units::Micros;
use usher_models::wire::{Direction, TcpFlags};

use super::dns::Message;
use super::dns_stream::Conversation;
use super::handshakes::Handshake;
use super::opening::Opening;
use super::packet::Segment;
use super::quic;
use super::signature::{self, Signature};
use super::stream::{Beginning, TooMuch};
use super::{Via, opening};
use crate::dataplane::Sample;

/// Most segments kept of a connection whose client is not known yet.
const MAX_UNKNOWN: usize = 4;
/// Most bytes kept of each of them.
const MAX_UNKNOWN_BYTES: usize = 4_096;
/// Most octets of no meaning that an acknowledgement bears where the first true bytes will stand.
const MAX_JUNK: usize = 6;
/// Most segments of a server that are waited through for the rest of what the client says.
const MAX_ANSWERS: u8 = 8;

/// A flow of which more must come.
#[derive(Debug)]
pub(crate) struct InProgress {
    /// Whose it is.
    pub(crate) slot: u32,
    /// When the flow's first packet was seen.
    pub(crate) first_packet: Micros,
    /// When its first byte came.
    pub(crate) since: Micros,
    kind: Kind,
}

/// What the first bytes may turn out to be.
#[derive(Debug)]
enum Kind {
    Tcp(Client),
    Quic(Box<quic::Connection>),
    Dns(Box<Conversation>),
}

/// What is known of a TCP connection's client.
#[derive(Debug)]
enum Client {
    /// The TCP handshake, or the first bytes of a hello or request, showed who it is and where its stream begins.
    Known {
        direction: Direction,
        /// Whether the TCP handshake showed it.
        exact: bool,
        stream: Beginning,
        answers: u8,
        /// What the server's first words are of.
        greeting: Option<Signature>,
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
    /// The name the client asks for, or an authority, and how it asks.
    Name(Box<str>, Via),
    /// No name will come, but this is what it is.
    Protocol(Signature),
    /// No name will come.
    Nothing,
    /// No name came within the bounds.
    TooMuch,
}

impl Segment<'_> {
    /// Who the client is and where its bytes begin, if the segment is of the TCP handshake.
    pub(crate) fn opening(&self, direction: Direction) -> Option<Handshake> {
        if !self.flags.any(TcpFlags::SYN) {
            return None;
        }
        Some(if self.flags.any(TcpFlags::ACK) {
            Handshake { client: direction.opposite(), start: self.acknowledgement, answered: true }
        } else {
            Handshake { client: direction, start: self.sequence.wrapping_add(1), answered: false }
        })
    }
}

impl InProgress {
    /// A connection whose handshake showed the client's direction and its first sequence number.
    pub(crate) fn opened(sample: &Sample<'_>, handshake: Handshake) -> Self {
        let Handshake { client: direction, start, .. } = handshake;
        let client = Client::Known {
            direction,
            exact: true,
            stream: Beginning::at(start),
            answers: 0,
            greeting: None,
        };
        Self::of(sample, Kind::Tcp(client))
    }

    /// A connection seen from somewhere in its middle, or whose handshake was lost.
    pub(crate) fn unopened(sample: &Sample<'_>) -> Self {
        Self::of(sample, Kind::Tcp(Client::Unknown(Vec::new())))
    }

    /// A QUIC connection.
    pub(crate) fn quic(sample: &Sample<'_>) -> Self {
        Self::of(sample, Kind::Quic(Box::default()))
    }

    /// A conversation of DNS messages; over TCP, whose client's stream begins at `start`.
    pub(crate) fn dns(sample: &Sample<'_>, start: Option<u32>) -> Self {
        let kind = Kind::Dns(Box::new(Conversation::at(start)));
        Self::of(sample, kind)
    }

    fn of(sample: &Sample<'_>, kind: Kind) -> Self {
        Self { slot: sample.slot, first_packet: sample.first_packet, since: sample.seen, kind }
    }

    /// Where the client's TCP stream begins, once known.
    pub(crate) fn start(&self) -> Option<u32> {
        match &self.kind {
            Kind::Tcp(Client::Known { stream, .. }) => Some(stream.start()),
            Kind::Tcp(Client::Unknown(_)) | Kind::Quic(_) => None,
            Kind::Dns(conversation) => conversation.start,
        }
    }

    /// Whether it is taken for a conversation of DNS.
    pub(crate) fn is_dns(&self) -> bool {
        matches!(self.kind, Kind::Dns(_))
    }

    /// What the flow is if its client says nothing more that tells.
    pub(crate) fn fallback(&self) -> Option<Signature> {
        match &self.kind {
            Kind::Tcp(Client::Known { greeting: Some(greeting), .. }) => Some(*greeting),
            Kind::Tcp(Client::Known { stream, .. }) => {
                signature::tcp(stream.bytes()).or_else(|| opening::carrier(stream.bytes()))
            }
            Kind::Tcp(Client::Unknown(early)) => {
                early.iter().find_map(|early| signature::greeting(&early.bytes))
            }
            Kind::Quic(_) | Kind::Dns(_) => None,
        }
    }

    /// Bytes of the network in memory.
    pub(crate) fn held(&self) -> usize {
        match &self.kind {
            Kind::Tcp(Client::Known { stream, .. }) => stream.held(),
            Kind::Tcp(Client::Unknown(early)) => early.iter().map(|early| early.bytes.len()).sum(),
            Kind::Quic(connection) => connection.held(),
            Kind::Dns(conversation) => conversation.held(),
        }
    }

    /// The DNS messages that a segment completes, and whether more may be waited for.
    pub(crate) fn messages(&mut self, direction: Direction, segment: &Segment<'_>) -> (Vec<Message>, bool) {
        match &mut self.kind {
            Kind::Dns(conversation) => conversation.segment(direction, segment),
            Kind::Tcp(_) | Kind::Quic(_) => (Vec::new(), false),
        }
    }

    /// Takes a datagram in: one of QUIC's, or one that should have been a DNS message and is none.
    pub(crate) fn datagram(&mut self, direction: Direction, datagram: &[u8]) -> Step {
        match &mut self.kind {
            Kind::Quic(connection) => connection.datagram(direction, datagram),
            Kind::Dns(conversation) => {
                if conversation.malformed() {
                    Step::More
                } else {
                    Step::Nothing
                }
            }
            Kind::Tcp(_) => Step::Nothing,
        }
    }

    /// Takes a segment in.
    pub(crate) fn segment(&mut self, direction: Direction, segment: &Segment<'_>) -> Step {
        if segment.bytes.is_empty() {
            return Step::More;
        }
        let junk = is_junk(segment.bytes);
        let sequence = segment.sequence.wrapping_add(u32::from(segment.flags.any(TcpFlags::SYN)));
        let Kind::Tcp(client) = &mut self.kind else { return Step::Nothing };
        match client {
            Client::Known { direction: known, .. } if *known != direction && junk => Step::More,
            Client::Known { direction: known, stream, answers, greeting, .. } if *known != direction => {
                *answers = answers.saturating_add(1);
                *greeting = greeting.or_else(|| signature::greeting(segment.bytes));
                // A server that speaks first is asked for no name, unless it waits to be asked for TLS.
                let silent = stream.held() == 0;
                if (silent && !opening::may_greet(segment.bytes)) || *answers > MAX_ANSWERS {
                    return signature::tcp(segment.bytes).map_or(Step::Nothing, Step::Protocol);
                }
                Step::More
            }
            Client::Known { exact, stream, .. } => {
                let before = stream.start().wrapping_sub(sequence).cast_signed() > 0;
                if !*exact && before && opening::may_begin(segment.bytes) {
                    stream.begin_earlier(sequence);
                }
                push(stream, sequence, segment.bytes)
            }
            Client::Unknown(early) if opening::may_begin(segment.bytes) => {
                let mut stream = Beginning::at(sequence);
                let mut step = push(&mut stream, sequence, segment.bytes);
                for waiting in early.iter().filter(|waiting| waiting.direction == direction) {
                    if step != Step::More {
                        break;
                    }
                    step = push(&mut stream, waiting.sequence, &waiting.bytes);
                }
                *client = Client::Known { direction, exact: false, stream, answers: 0, greeting: None };
                step
            }
            Client::Unknown(early) => {
                let repeats = |before: &Early| {
                    before.direction == direction
                        && before.sequence == sequence
                        && before.bytes.len() >= segment.bytes.len().min(MAX_UNKNOWN_BYTES)
                };
                // A connection taken up in its middle, as most are after the agent's first start, says too much.
                let is_full =
                    early.iter().filter(|before| is_junk(&before.bytes) == junk).count() >= MAX_UNKNOWN;
                match (early.iter().any(repeats), is_full, junk) {
                    (true, _, _) | (false, true, true) => return Step::More,
                    (false, true, false) => return Step::Nothing,
                    (false, false, _) => {}
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
    let mut pushed = match u8::try_from(bytes.len()) {
        Ok(zeros) if is_junk(bytes) => {
            stream.push_zeros(sequence, zeros);
            Ok(())
        }
        _ => stream.push(sequence, bytes),
    };
    let begins = opening::may_begin(bytes);
    // The first bytes were lost, and this segment begins something of its own: a later request, or a hello.
    let alone = stream.bytes().is_empty() && begins;
    let mut opening = opening::read(if alone { bytes } else { stream.bytes() });
    if opening == Opening::Nothing && !alone && begins {
        // Or what stood in its place was none of the client's words.
        pushed = stream.begin_with(sequence, bytes);
        opening = opening::read(stream.bytes());
    }
    match opening {
        Opening::Name(name, via) => Step::Name(name, via),
        Opening::Protocol(signature) => Step::Protocol(signature),
        Opening::Nothing if !alone && stream.bytes().len() > MAX_JUNK => Step::Nothing,
        _ if pushed == Err(TooMuch) || stream.bytes().len() >= super::stream::MAX_BYTES => Step::TooMuch,
        _ => Step::More,
    }
}

/// Whether a segment may do no more than keep its connection alive: an octet or a few of nothing, which stand where the
/// next true bytes will.
pub(crate) fn is_junk(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_JUNK && bytes.iter().all(|byte| *byte == 0)
}
