//! What is on its way to the orchestrator, and when to try again. Sans-I/O.

use std::collections::VecDeque;
use std::time::Duration;

use crate::store::Position;

/// Batches sent and not acknowledged on one connection, bounded.
#[derive(Debug)]
pub struct Window {
    most: usize,
    next: Position,
    in_flight: VecDeque<Position>,
}

impl Window {
    /// A connection on which everything up to and including `from` is the orchestrator's already.
    pub fn new(from: Position, most: usize) -> Self {
        Self { most, next: from, in_flight: VecDeque::new() }
    }

    /// The last batch that went out, or where the orchestrator was at the start: what is spooled after it comes next.
    pub fn last(&self) -> Position {
        self.next
    }

    /// How many more may go out.
    pub fn room(&self) -> usize {
        self.most - self.in_flight.len()
    }

    /// How many are on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A batch goes out. They go in the spool's order.
    pub fn sent(&mut self, position: Position) {
        self.next = position;
        self.in_flight.push_back(position);
    }

    /// Everything up to and including `position` has arrived. False: that was never sent on this connection, or has been
    /// acknowledged before.
    pub fn acknowledged(&mut self, position: Position) -> bool {
        let before = self.in_flight.len();
        if position > self.next {
            return false;
        }
        while self.in_flight.front().is_some_and(|oldest| *oldest <= position) {
            self.in_flight.pop_front();
        }
        self.in_flight.len() < before
    }
}

/// Ever longer waits between attempts, bounded, with jitter so that a thousand gateways do not return in step.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(30);

    /// Nothing has failed yet.
    pub const fn new() -> Self {
        Self { attempts: 0 }
    }

    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait after another failure: between a half and the whole of the doubled wait. `random`: any number.
    pub fn next(&mut self, random: u64) -> Duration {
        let whole = Self::FIRST.saturating_mul(1 << self.attempts.min(16)).min(Self::LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        let half = whole / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(random % spread)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(sequence: u64) -> Position {
        Position { generation: 1, sequence }
    }

    #[test]
    fn what_is_in_flight_is_bounded_and_an_acknowledgement_makes_room() {
        let mut window = Window::new(at(4), 3);
        for sequence in 5..8 {
            window.sent(at(sequence));
        }
        assert_eq!((window.room(), window.last()), (0, at(7)));
        assert!(window.acknowledged(at(6)));
        assert_eq!((window.room(), window.in_flight()), (2, 1));
        assert!(!window.acknowledged(at(6)));
        assert!(!window.acknowledged(at(9)), "never sent");
        assert_eq!(window.in_flight(), 1);
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_within_their_bounds(randoms in proptest::collection::vec(any::<u64>(), 1..40)) {
            let mut backoff = Backoff::new();
            let mut least = Duration::ZERO;
            for random in randoms {
                let wait = backoff.next(random);
                prop_assert!(wait <= Backoff::LONGEST && wait >= Backoff::FIRST / 2 && wait >= least);
                least = wait / 2;
            }
            backoff.reset();
            prop_assert!(backoff.next(0) == Backoff::FIRST / 2);
        }
    }
}
