//! DNS messages (RFC 1035) and what they tell about addresses.
//!
//! Owns the reading of one message, by the `domain` crate, and the memory of answers per subscriber. Refuses to believe a
//! record that the question does not lead to.

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::{Message as Wire, Name, ParsedName};
use domain::rdata::{A, Aaaa, Cname};
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, FlowKey};

use super::aged::Aged;
use super::{name, packet};

/// DNS.
pub const PORT: u16 = 53;
/// Multicast DNS (RFC 6762).
pub const MULTICAST_PORT: u16 = 5353;
/// Link-local multicast name resolution (RFC 4795).
pub const LINK_LOCAL_PORT: u16 = 5355;

/// Records of a message that are looked at; the rest of a longer one is passed over.
const MAX_RECORDS: usize = 64;
/// Addresses a message may add to the memory.
const MAX_ADDRESSES: usize = 32;
/// An answer is remembered at least this long, for a device may open its flow after the time to live has passed.
const MIN_AGE: Duration = Duration::from_secs(300);
/// An answer is remembered at most this long, whatever its time to live.
const MAX_AGE: Duration = Duration::from_secs(6 * 3600);

/// What one message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whether it answers.
    pub response: bool,
    /// The name asked for, if it is a host name.
    pub question: Option<Box<str>>,
    /// Addresses of that name, each with its time to live; along the chain of aliases (CNAME) alone.
    pub addresses: Vec<(IpAddr, Duration)>,
}

impl Message {
    /// Reads one message; `None` for bytes that are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let message = Wire::from_octets(bytes).ok()?;
        let header = message.header();
        if !matches!(header.opcode(), Opcode::QUERY | Opcode::NOTIFY | Opcode::UPDATE | Opcode::STATUS) {
            return None;
        }
        let mut read = Self { response: header.qr(), question: None, addresses: Vec::new() };
        let questions = message.header_counts().qdcount();
        if questions == 0 {
            // Multicast DNS announces without a question; in unicast there is always one, save in a refusal.
            return (read.response && message.answer().is_ok()).then_some(read);
        }
        let question = message.first_question()?;
        read.question = host_name(question.qname());
        if read.response && questions == 1 && header.rcode() == domain::base::iana::Rcode::NOERROR {
            read.addresses = addresses(&message, question.qname());
        }
        Some(read)
    }
}

/// The addresses that the answers to `question` lead to. A record that cannot be read ends the list.
fn addresses(message: &Wire<&[u8]>, question: &ParsedName<&[u8]>) -> Vec<(IpAddr, Duration)> {
    let mut found = Vec::new();
    let Ok(answers) = message.answer() else { return found };
    let mut chain: Vec<Name<Vec<u8>>> = vec![domain::base::name::ToName::to_vec(question)];
    for record in answers.take(MAX_RECORDS) {
        let Ok(record) = record else { break };
        if record.class() != Class::IN || !chain.iter().any(|known| *known == record.owner()) {
            continue;
        }
        let ttl = record.ttl().into_duration();
        let address: Option<IpAddr> = match record.rtype() {
            Rtype::A => record.to_record::<A>().ok().flatten().map(|a| a.data().addr().into()),
            Rtype::AAAA => record.to_record::<Aaaa>().ok().flatten().map(|aaaa| aaaa.data().addr().into()),
            Rtype::CNAME => {
                if let Ok(Some(alias)) = record.to_record::<Cname<_>>() {
                    chain.push(domain::base::name::ToName::to_vec(alias.data().cname()));
                }
                None
            }
            _ => None,
        };
        if let Some(address) = address {
            found.push((address, ttl));
            if found.len() >= MAX_ADDRESSES {
                break;
            }
        }
    }
    found
}

/// A DNS name as a canonical host name.
fn host_name(wire: &ParsedName<&[u8]>) -> Option<Box<str>> {
    let mut text = Vec::with_capacity(name::MAX_NAME + 1);
    for label in wire.iter() {
        if label.is_root() {
            break;
        }
        if label.as_slice().contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label.as_slice());
    }
    name::canonical(&text)
}

/// Whose DNS answers: a subscriber's, by slot; or, where the subscriber is not known, one address's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asker {
    /// A subscriber of a known session.
    Slot(u32),
    /// An address of no known session.
    Anonymous([u8; 16]),
}

impl Asker {
    /// Who asks in a flow counted for `slot`.
    pub fn of(slot: u32, flow: &FlowKey) -> Self {
        if slot == ANONYMOUS { Self::Anonymous(flow.subscriber) } else { Self::Slot(slot) }
    }
}

/// Bounds of the memory of answers.
#[derive(Debug, Clone, Copy)]
pub struct AnswerLimits {
    /// Askers of known sessions; as many again are kept of unknown ones, so that a flood of forged addresses forgets no
    /// subscriber's answers.
    pub askers: usize,
    /// Answers of one asker.
    pub answers: usize,
    /// Answers of all askers of known sessions together; as many again of unknown ones.
    pub total: usize,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        Self { askers: 200_000, answers: 512, total: 500_000 }
    }
}

/// DNS answers seen, by asker and address. What is oldest goes first, of the asker who is at a limit.
#[derive(Debug)]
pub struct Answers {
    known: Pool,
    anonymous: Pool,
    /// Answers forgotten for lack of room.
    pub evicted: u64,
}

#[derive(Debug)]
struct Pool {
    limits: AnswerLimits,
    askers: Aged<Asker, Aged<[u8; 16], Answer>>,
    total: usize,
}

#[derive(Debug)]
struct Answer {
    name: Box<str>,
    until: Micros,
}

impl Answers {
    /// An empty memory.
    pub fn new(limits: AnswerLimits) -> Self {
        let pool = || Pool { limits, askers: Aged::new(limits.askers), total: 0 };
        Self { known: pool(), anonymous: pool(), evicted: 0 }
    }

    /// Remembers that `asker` learnt `address` as that of `name`.
    pub fn remember(&mut self, asker: Asker, address: IpAddr, name: &str, ttl: Duration, now: Micros) {
        let until = now.after(ttl.clamp(MIN_AGE, MAX_AGE));
        let answer = Answer { name: name.into(), until };
        self.evicted += self.pool_mut(asker).insert(asker, packet::octets(address), answer);
    }

    /// The name by which `asker` last learnt `address`, while it is to be believed.
    pub fn name(&self, asker: Asker, address: &[u8; 16], now: Micros) -> Option<&str> {
        let answer = self.pool(asker).askers.get(&asker)?.get(address)?;
        (answer.until > now).then_some(&*answer.name)
    }

    /// Forgets all that `asker` learnt: the session is over.
    pub fn forget(&mut self, asker: Asker) {
        let pool = self.pool_mut(asker);
        if let Some(answers) = pool.askers.remove(&asker) {
            pool.total -= answers.len();
        }
    }

    /// Forgets what has passed, oldest first, until something has not; the rest goes for lack of room in time.
    pub fn expire(&mut self, now: Micros) {
        for pool in [&mut self.known, &mut self.anonymous] {
            while let Some((asker, _)) = pool
                .askers
                .oldest()
                .filter(|(_, answers)| answers.oldest().is_none_or(|(_, a)| a.until <= now))
            {
                let asker = *asker;
                let Some(answers) = pool.askers.get_mut(&asker) else { break };
                pool.total -= usize::from(answers.pop_oldest().is_some());
                if answers.len() == 0 {
                    pool.askers.remove(&asker);
                }
            }
        }
    }

    /// How many answers are remembered.
    pub fn len(&self) -> usize {
        self.known.total + self.anonymous.total
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pool(&self, asker: Asker) -> &Pool {
        if matches!(asker, Asker::Slot(_)) { &self.known } else { &self.anonymous }
    }

    fn pool_mut(&mut self, asker: Asker) -> &mut Pool {
        if matches!(asker, Asker::Slot(_)) { &mut self.known } else { &mut self.anonymous }
    }
}

impl Pool {
    /// Returns how many answers had to go.
    fn insert(&mut self, asker: Asker, address: [u8; 16], answer: Answer) -> u64 {
        let mut gone = 0;
        let mut answers = self.askers.remove(&asker).unwrap_or_else(|| Aged::new(self.limits.answers));
        let before = answers.len();
        gone += usize::from(answers.insert(address, answer).is_some());
        self.total = self.total - before + answers.len();
        if let Some((_, others)) = self.askers.insert(asker, answers) {
            self.total -= others.len();
            gone += others.len();
        }
        // The asker who was silent longest loses its oldest answer, never the one that was just remembered.
        while self.total > self.limits.total.max(1) {
            let Some(silent) = self.askers.oldest().map(|(asker, _)| *asker) else { break };
            let Some(answers) = self.askers.get_mut(&silent) else { break };
            let popped = usize::from(answers.pop_oldest().is_some());
            self.total -= popped;
            gone += popped;
            if answers.len() == 0 {
                self.askers.remove(&silent);
            }
        }
        gone as u64
    }
}
