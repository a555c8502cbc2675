//! What DNS answers told about addresses, by who asked.
//!
//! Owns the questions under way and the memory of their answers. Refuses an answer nobody was seen to ask
//! for, and tells nobody what another has learnt.

use std::net::IpAddr;
use std::time::Duration;

use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, FlowKey};

use super::aged::Aged;
use super::dns::Message;
use super::packet;
use super::shares::{ShareLimits, Shares};

/// An answer is remembered at least this long, for a device may open its flow after the time to live has passed.
const MIN_AGE: Duration = Duration::from_mins(5);
/// An answer is remembered at most this long, whatever its time to live.
const MAX_AGE: Duration = Duration::from_hours(6);

/// Whose DNS answers: a subscriber's, by slot; or, where the subscriber is not known, one address's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Asker {
    /// A subscriber of a known session.
    Slot(u32),
    /// An address of no known session.
    Anonymous([u8; 16]),
}

impl Asker {
    /// Who asks in a flow counted for `slot`.
    pub(crate) fn of(slot: u32, flow: &FlowKey) -> Self {
        if slot == ANONYMOUS { Self::Anonymous(flow.subscriber) } else { Self::Slot(slot) }
    }
}

/// DNS answers seen, by asker and address.
#[derive(Debug)]
pub(crate) struct Answers {
    known: Shares<[u8; 16], Answer>,
    /// Names asked for, by flow and message id.
    questions: Aged<(FlowKey, u16), Box<str>>,
    /// Answers nobody was seen to ask for.
    pub(crate) unasked: u64,
    /// Questions forgotten for lack of room before their answer came.
    pub(crate) questions_evicted: u64,
}

#[derive(Debug)]
struct Answer {
    name: Box<str>,
    until: Micros,
}

impl Answers {
    /// An empty memory.
    pub(crate) fn new(limits: ShareLimits, questions: usize) -> Self {
        Self { known: Shares::new(limits), questions: Aged::new(questions), unasked: 0, questions_evicted: 0 }
    }

    /// A question was seen on its way to a server.
    pub(crate) fn ask(&mut self, flow: &FlowKey, message: &Message) {
        if let Some(name) = &message.question {
            let evicted = self.questions.insert((*flow, message.id), name.clone());
            self.questions_evicted += u64::from(evicted.is_some());
        }
    }

    /// An answer was seen on its way to `asker`. Only what was asked for on the same flow, by the same name and id, is
    /// remembered, and once: anybody can send a subscriber a packet that looks like an answer. Whether it was believed.
    pub(crate) fn hear(&mut self, asker: Asker, flow: &FlowKey, message: &Message, now: Micros) -> bool {
        let question = self.questions.remove(&(*flow, message.id));
        match (question, &message.question) {
            (Some(question), Some(name)) if question == *name => {
                for (address, ttl) in &message.addresses {
                    self.remember(asker, *address, name, *ttl, now);
                }
                true
            }
            _ => {
                self.unasked += 1;
                false
            }
        }
    }

    /// Remembers that `asker` learnt `address` as that of `name`.
    fn remember(&mut self, asker: Asker, address: IpAddr, name: &str, ttl: Duration, now: Micros) {
        let until = now.after(ttl.clamp(MIN_AGE, MAX_AGE));
        self.known.insert(asker, packet::octets(address), Answer { name: name.into(), until });
    }

    /// The name by which `asker` last learnt `address`, while it is to be believed.
    pub(crate) fn name(&self, asker: Asker, address: &[u8; 16], now: Micros) -> Option<&str> {
        let answer = self.known.get(asker, address)?;
        (answer.until > now).then_some(&*answer.name)
    }

    /// Forgets all that `asker` learnt: the session is over.
    pub(crate) fn forget(&mut self, asker: Asker) {
        self.known.forget(asker);
    }

    /// Forgets what has passed.
    pub(crate) fn expire(&mut self, now: Micros) {
        self.known.expire(|answer| answer.until <= now);
    }

    /// How many answers are remembered.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Answers forgotten for lack of room.
    pub(crate) fn evicted(&self) -> u64 {
        self.known.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ShareLimits = ShareLimits { askers: 4, each: 4, total: 16 };

    fn at(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    #[test]
    fn an_answer_is_remembered_for_its_time() {
        let mut answers = Answers::new(LIMITS, 1);
        let address = IpAddr::from([192, 0, 2, 1]);
        let (asker, octets) = (Asker::Slot(1), packet::octets(address));
        answers.remember(asker, address, "a.test", Duration::from_mins(10), at(0));
        assert_eq!(answers.name(asker, &octets, at(599)), Some("a.test"));
        assert_eq!(answers.name(asker, &octets, at(600)), None);
        answers.expire(at(599));
        assert_eq!(answers.len(), 1);
        answers.expire(at(600));
        assert_eq!(answers.len(), 0);
    }

    #[test]
    fn the_latest_name_of_an_address_holds() {
        let mut answers = Answers::new(LIMITS, 1);
        let address = IpAddr::from([192, 0, 2, 1]);
        for name in ["a.test", "b.test"] {
            answers.remember(Asker::Slot(1), address, name, Duration::ZERO, at(0));
        }
        assert_eq!(answers.name(Asker::Slot(1), &packet::octets(address), at(1)), Some("b.test"));
        assert_eq!((answers.len(), answers.evicted()), (1, 0));
    }
}
