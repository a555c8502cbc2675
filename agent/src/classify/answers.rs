//! What DNS answers told about addresses, by who asked.
//!
//! Owns the questions under way, the memory of their answers, and the bounds of both. Refuses an answer nobody was seen to ask
//! for, and tells nobody what another has learnt.

use std::net::IpAddr;
use std::time::Duration;

use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, FlowKey};

use super::aged::Aged;
use super::dns::Message;
use super::packet;

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

/// Bounds of the memory of answers. Unknown sessions have a memory of their own, a quarter of this, so that a flood of forged
/// addresses forgets no subscriber's answers.
#[derive(Debug, Clone, Copy)]
pub struct AnswerLimits {
    /// Askers.
    pub askers: usize,
    /// Answers of one asker.
    pub answers: usize,
    /// Answers of all askers together.
    pub total: usize,
    /// Questions that wait for their answer.
    pub questions: usize,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        Self { askers: 200_000, answers: 512, total: 400_000, questions: 65_536 }
    }
}

/// DNS answers seen, by asker and address. What is oldest goes first, of the asker who is at a limit.
#[derive(Debug)]
pub(crate) struct Answers {
    known: Pool,
    anonymous: Pool,
    /// Names asked for, by flow and message id.
    questions: Aged<(FlowKey, u16), Box<str>>,
    /// Answers forgotten for lack of room.
    pub(crate) evicted: u64,
    /// Answers nobody was seen to ask for.
    pub(crate) unasked: u64,
    /// Questions forgotten for lack of room before their answer came.
    pub(crate) questions_evicted: u64,
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
    pub(crate) fn new(limits: AnswerLimits) -> Self {
        let quarter = AnswerLimits { askers: limits.askers / 4, total: limits.total / 4, ..limits };
        Self {
            known: Pool::new(limits),
            anonymous: Pool::new(quarter),
            questions: Aged::new(limits.questions),
            evicted: 0,
            unasked: 0,
            questions_evicted: 0,
        }
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
        let answer = Answer { name: name.into(), until };
        self.evicted += self.pool_mut(asker).insert(asker, packet::octets(address), answer);
    }

    /// The name by which `asker` last learnt `address`, while it is to be believed.
    pub(crate) fn name(&self, asker: Asker, address: &[u8; 16], now: Micros) -> Option<&str> {
        let answer = self.pool(asker).askers.get(&asker)?.get(address)?;
        (answer.until > now).then_some(&*answer.name)
    }

    /// Forgets all that `asker` learnt: the session is over.
    pub(crate) fn forget(&mut self, asker: Asker) {
        let pool = self.pool_mut(asker);
        if let Some(answers) = pool.askers.remove(&asker) {
            pool.total -= answers.len();
        }
    }

    /// Forgets what has passed, oldest first, until something has not; the rest goes for lack of room in time.
    pub(crate) fn expire(&mut self, now: Micros) {
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
    pub(crate) fn len(&self) -> usize {
        self.known.total + self.anonymous.total
    }

    fn pool(&self, asker: Asker) -> &Pool {
        if matches!(asker, Asker::Slot(_)) { &self.known } else { &self.anonymous }
    }

    fn pool_mut(&mut self, asker: Asker) -> &mut Pool {
        if matches!(asker, Asker::Slot(_)) { &mut self.known } else { &mut self.anonymous }
    }
}

impl Pool {
    fn new(limits: AnswerLimits) -> Self {
        Self { limits, askers: Aged::new(limits.askers), total: 0 }
    }

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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn at(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    #[test]
    fn an_answer_is_remembered_for_its_time() {
        let mut answers = Answers::new(AnswerLimits::default());
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
        let mut answers = Answers::new(AnswerLimits::default());
        let address = IpAddr::from([192, 0, 2, 1]);
        for name in ["a.test", "b.test"] {
            answers.remember(Asker::Slot(1), address, name, Duration::ZERO, at(0));
        }
        assert_eq!(answers.name(Asker::Slot(1), &packet::octets(address), at(1)), Some("b.test"));
        assert_eq!((answers.len(), answers.evicted), (1, 0));
    }

    #[test]
    fn a_flood_of_answers_forgets_the_askers_own_and_nobody_elses() {
        let limits = AnswerLimits { askers: 16, answers: 8, total: 1_000, questions: 1 };
        let mut answers = Answers::new(limits);
        let quiet = IpAddr::from([192, 0, 2, 1]);
        answers.remember(Asker::Slot(1), quiet, "a.test", Duration::ZERO, at(0));
        for number in 0..10_000_u32 {
            let address = IpAddr::from(Ipv4Addr::from_bits(number));
            answers.remember(Asker::Slot(2), address, "flood.test", Duration::ZERO, at(0));
            let forged = packet::octets(IpAddr::from(Ipv4Addr::from_bits(number)));
            answers.remember(Asker::Anonymous(forged), address, "flood.test", Duration::ZERO, at(0));
        }
        assert_eq!(answers.name(Asker::Slot(1), &packet::octets(quiet), at(1)), Some("a.test"));
        assert_eq!(answers.len(), 1 + 8 + 4);
        assert_eq!(answers.evicted, 10_000 - 8 + 10_000 - 4);
    }

    #[test]
    fn at_the_total_bound_the_longest_silent_asker_loses_its_oldest() {
        let limits = AnswerLimits { askers: 10, answers: 10, total: 3, questions: 1 };
        let mut answers = Answers::new(limits);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        for (slot, n) in [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5)] {
            answers.remember(Asker::Slot(slot), address(n), "a.test", Duration::ZERO, at(0));
        }
        assert_eq!(answers.len(), 3);
        let known: Vec<u8> = [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5)]
            .into_iter()
            .filter(|(slot, n)| {
                answers.name(Asker::Slot(*slot), &packet::octets(address(*n)), at(1)).is_some()
            })
            .map(|(_, n)| n)
            .collect();
        assert_eq!(known, [3, 4, 5]);
        answers.forget(Asker::Slot(3));
        assert_eq!(answers.len(), 1);
    }
}
