//! Event time: how far each agent has told its story, and how far all of them together.
//!
//! The watermark is the newest end of a batch, the least over agents that are not idle, less the lateness. What lies
//! before it is closed. It never goes back.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::units::Micros;

/// An agent silent for so long no longer holds the watermark back.
pub(super) const AGENT_IDLE: Duration = Duration::from_secs(30);
/// An agent silent for so long is forgotten.
const AGENT_FORGOTTEN: Duration = Duration::from_hours(24);
/// A batch that ends further ahead of our clock is not believed.
const MAX_AHEAD: Duration = Duration::from_mins(1);
/// A hole between two batches of an agent up to this long is jitter.
const MAX_HOLE: Duration = Duration::from_secs(1);

/// What one agent has told.
#[derive(Debug)]
struct Agent {
    /// Everything from here to `told_to` was told.
    whole_since: Micros,
    told_to: Micros,
    heard_at: Micros,
}

/// How far event time has come.
#[derive(Debug, Default)]
pub(super) struct Clock {
    agents: BTreeMap<String, Agent>,
    watermark: Option<Micros>,
}

/// What to make of a batch's interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Apply it.
    Good,
    /// It ends before it starts, or where it starts.
    Empty,
    /// It ends in the future.
    Ahead,
}

impl Clock {
    /// An agent tells of `[start, end)` at `now`.
    pub(super) fn observe(&mut self, agent: &str, start: Micros, end: Micros, now: Micros) -> Verdict {
        if start >= end {
            return Verdict::Empty;
        }
        if end > now.after(MAX_AHEAD) {
            return Verdict::Ahead;
        }
        let blank = Agent { whole_since: start, told_to: end, heard_at: now };
        let known = self.agents.entry(agent.to_owned()).or_insert(blank);
        if start > known.told_to.after(MAX_HOLE) {
            known.whole_since = start;
        }
        known.told_to = known.told_to.max(end);
        known.heard_at = now;
        Verdict::Good
    }

    /// Moves the watermark on and gives it.
    pub(super) fn advance(&mut self, now: Micros, lateness: Duration) -> Option<Micros> {
        self.agents.retain(|_, agent| now.since(agent.heard_at) < AGENT_FORGOTTEN);
        let awake = self.agents.values().filter(|agent| now.since(agent.heard_at) < AGENT_IDLE);
        if let Some(least) = awake.map(|agent| agent.told_to).min() {
            let mark = least.before(lateness);
            self.watermark = Some(self.watermark.map_or(mark, |before| before.max(mark)));
        }
        self.watermark
    }

    /// When the silence of an agent would let the watermark go on without it.
    pub(super) fn next_idle(&self, now: Micros) -> Option<Micros> {
        if self.agents.len() < 2 {
            return None;
        }
        let idle_at = self.agents.values().map(|agent| agent.heard_at.after(AGENT_IDLE));
        idle_at.filter(|at| *at > now).min()
    }

    /// Whether an agent told everything of `[from, to)`.
    pub(super) fn covers(&self, agent: &str, from: Micros, to: Micros) -> bool {
        self.agents.get(agent).is_some_and(|agent| agent.whole_since <= from && to <= agent.told_to)
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
        assert!(clock.covers("a", s(0), s(20)) && !clock.covers("a", s(0), s(21)));
        clock.observe("a", s(25), s(30), s(30));
        assert!(!clock.covers("a", s(0), s(30)) && clock.covers("a", s(25), s(30)));
        assert!(!clock.covers("b", s(0), s(1)));
    }

    #[test]
    fn the_future_and_the_empty_are_refused() {
        let mut clock = Clock::default();
        assert_eq!(clock.observe("a", s(100), s(200), s(100)), Verdict::Ahead);
        assert_eq!(clock.observe("a", s(100), s(100), s(100)), Verdict::Empty);
        assert_eq!(clock.advance(s(100), Duration::ZERO), None);
    }
}
