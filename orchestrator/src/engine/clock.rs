//! Event time: how far each agent has told its story, and how far all of them together.
//!
//! The watermark is the newest end of a batch, the least over agents that are not idle, less the lateness. What lies
//! before it is closed. It never goes back.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use usher_models::units::Micros;

/// An agent silent for so long no longer holds the watermark back.
pub(super) const AGENT_IDLE: Duration = Duration::from_secs(30);
/// A batch that ends further ahead of our clock is not believed.
const MAX_AHEAD: Duration = Duration::from_mins(1);
/// A hole between two batches of an agent up to this long is jitter.
const MAX_HOLE: Duration = Duration::from_secs(1);
/// A window is covered where holes take no more than one part in so many of it.
const HOLES_TAKE: u128 = 100;
/// Holes remembered of one agent. What lies before the oldest counts as never told.
const HOLES_MAX: usize = 256;

/// What one agent has told.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Agent {
    name: String,
    /// From here to `told_to` it was told, but for the holes.
    since: Micros,
    told_to: Micros,
    heard_at: Micros,
    /// Oldest first.
    holes: VecDeque<(Micros, Micros)>,
}

/// How far event time has come.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Clock {
    /// By number, in the order in which they were first heard of.
    agents: Vec<Agent>,
    by_name: BTreeMap<String, u16>,
    watermark: Option<Micros>,
}

/// What to make of a batch's interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Apply it.
    Good,
    /// It ends before it starts, or where it starts, or lies before the epoch.
    Empty,
    /// It ends in the future.
    Ahead,
}

impl Agent {
    /// Nothing is known of `[start, end)`.
    fn miss(&mut self, start: Micros, end: Micros) {
        let place = self.holes.partition_point(|hole| hole.1 <= end);
        self.holes.insert(place, (start, end));
        if self.holes.len() > HOLES_MAX
            && let Some((_, end)) = self.holes.pop_front()
        {
            self.since = self.since.max(end);
        }
    }
}

impl Clock {
    /// One that has heard of the same agents, under the same numbers, but nothing from them.
    pub(super) fn of_the_same(other: &Self) -> Self {
        let mut clock = Self::default();
        for agent in &other.agents {
            clock.number(&agent.name);
        }
        clock
    }

    /// The number of an agent, known or not: 65,535 of them are more than any network has, and the last number is shared by
    /// further ones.
    pub(super) fn number(&mut self, agent: &str) -> u16 {
        if let Some(number) = self.by_name.get(agent) {
            return *number;
        }
        let number = u16::try_from(self.agents.len()).unwrap_or(u16::MAX);
        let (name, since) = (agent.to_owned(), Micros::new(i64::MAX));
        let (told_to, heard_at) = (Micros::new(i64::MIN), Micros::new(i64::MIN));
        self.agents.push(Agent { name, since, told_to, heard_at, holes: VecDeque::new() });
        self.by_name.insert(agent.to_owned(), number);
        number
    }

    /// The number of an agent that was heard of.
    pub(super) fn find(&self, agent: &str) -> Option<u16> {
        self.by_name.get(agent).copied()
    }

    /// An agent tells of `[start, end)` at `now`.
    pub(super) fn observe(&mut self, agent: &str, start: Micros, end: Micros, now: Micros) -> Verdict {
        if start >= end || start.get() < 0 {
            return Verdict::Empty;
        }
        if end > now.after(MAX_AHEAD) {
            return Verdict::Ahead;
        }
        let number = self.number(agent);
        let Some(known) = self.agents.get_mut(usize::from(number)) else { return Verdict::Empty };
        if known.since == Micros::new(i64::MAX) {
            (known.since, known.told_to) = (start, end);
        }
        if start > known.told_to.after(MAX_HOLE) {
            known.miss(known.told_to, start);
        }
        known.told_to = known.told_to.max(end);
        known.heard_at = now;
        Verdict::Good
    }

    /// Moves the watermark on and gives it.
    pub(super) fn advance(&mut self, now: Micros, lateness: Duration) -> Option<Micros> {
        let awake = self.agents.iter().filter(|agent| now < agent.heard_at.after(AGENT_IDLE));
        let awake = awake.filter(|agent| agent.heard_at > Micros::new(i64::MIN));
        if let Some(least) = awake.map(|agent| agent.told_to).min() {
            self.overtake(least.before(lateness));
        }
        self.watermark
    }

    /// Of what was told of `[start, end)` a part was dropped: whose it was is not known any more.
    pub(super) fn lose(&mut self, start: Micros, end: Micros) {
        for agent in self.agents.iter_mut().filter(|agent| agent.since < end && start < agent.told_to) {
            agent.miss(start, end);
        }
    }

    /// Moves the watermark on to here at least, whoever has not told so far yet.
    pub(super) fn overtake(&mut self, mark: Micros) {
        self.watermark = Some(self.watermark.map_or(mark, |before| before.max(mark)));
    }

    /// As far as it was moved on.
    pub(super) fn watermark(&self) -> Option<Micros> {
        self.watermark
    }

    /// When the silence of an agent would let the watermark go on without it.
    pub(super) fn next_idle(&self, now: Micros) -> Option<Micros> {
        if self.agents.len() < 2 {
            return None;
        }
        let idle_at = self.agents.iter().map(|agent| agent.heard_at.after(AGENT_IDLE));
        idle_at.filter(|at| *at > now).min()
    }

    /// Whether an agent told everything of `[from, to)`, but for little.
    pub(super) fn covers(&self, agent: u16, from: Micros, to: Micros) -> bool {
        let Some(agent) = self.agents.get(usize::from(agent)) else { return false };
        if from < agent.since || agent.told_to < to {
            return false;
        }
        let missing: u128 = agent
            .holes
            .iter()
            .rev()
            .take_while(|(_, end)| *end > from)
            .map(|(start, end)| (*end).min(to).since((*start).max(from)).as_micros())
            .sum();
        missing * HOLES_TAKE <= to.since(from).as_micros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    #[test]
    fn the_watermark_is_the_least_of_the_awake_less_the_lateness_and_never_goes_back() {
        let late = Duration::from_secs(5);
        let mut clock = Clock::default();
        assert_eq!(clock.advance(s(100), late), None);
        assert_eq!(clock.observe("a", s(99), s(100), s(100)), Verdict::Good);
        assert_eq!(clock.advance(s(100), late), Some(s(95)));
        // A second agent that lags cannot take back what is closed, but holds the rest open.
        clock.observe("b", s(89), s(90), s(101));
        clock.observe("a", s(100), s(110), s(110));
        assert_eq!(clock.advance(s(110), late), Some(s(95)));
        // Until it falls asleep.
        assert_eq!(clock.next_idle(s(110)), Some(s(131)));
        clock.observe("a", s(110), s(131), s(131));
        assert_eq!(clock.advance(s(131), late), Some(s(126)));
    }

    #[test]
    fn a_hole_breaks_coverage_and_jitter_does_not() {
        let mut clock = Clock::default();
        clock.observe("a", s(0), s(10), s(10));
        clock.observe("a", s(11), s(20), s(20));
        let a = clock.number("a");
        assert!(clock.covers(a, s(0), s(20)) && !clock.covers(a, s(0), s(21)));
        clock.observe("a", s(25), s(30), s(30));
        assert!(!clock.covers(a, s(0), s(30)) && clock.covers(a, s(25), s(30)));
        assert!(!clock.covers(7, s(0), s(1)));
        // Of a long window little is missing.
        clock.observe("a", s(30), s(600), s(600));
        assert!(clock.covers(a, s(0), s(600)) && !clock.covers(a, s(0), s(490)));
    }

    #[test]
    fn the_future_and_the_empty_are_refused() {
        let mut clock = Clock::default();
        assert_eq!(clock.observe("a", s(100), s(200), s(100)), Verdict::Ahead);
        assert_eq!(clock.observe("a", s(100), s(100), s(100)), Verdict::Empty);
        assert_eq!(clock.advance(s(100), Duration::ZERO), None);
    }
}
