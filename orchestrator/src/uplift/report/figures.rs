//! What outcomes come to: shares, gains and estimates, or why there are too few for them. Sans-I/O.

use super::{Always, Brought, Figure, Line};
use crate::uplift::{Trial, logged, self_normalised, weighted};

/// Fewest settled messages that a figure is given for.
pub const MESSAGES_MIN: u64 = 100;
/// Fewest that were accepted, and fewest that were not: below, the normal approximation says nothing.
pub const OUTCOMES_MIN: u64 = 5;
/// Fewest messages of equal weight that an estimate must be worth.
pub const EFFECTIVE_MIN: f64 = 50.0;

/// What was read of an action in one style.
#[derive(Debug, Default)]
pub(super) struct OfStyle {
    pub(super) brought: Brought,
    /// Settled and said, or kept back by the action's own doing: the chance it was picked with, and the gain (0: none).
    pub(super) outcomes: Vec<Outcome>,
    /// Settled, picked and kept back, whatever the action.
    pub(super) withheld: u64,
}

/// What came of one pick.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) probability: f64,
    pub(super) accepted: bool,
    pub(super) gain: f64,
    /// A message was there to be accepted.
    pub(super) said: bool,
}

/// All styles together.
pub(super) fn total<'a>(styles: impl Iterator<Item = &'a OfStyle>) -> Brought {
    let mut all = Brought::default();
    let mut outcomes = Vec::new();
    for OfStyle { brought, outcomes: of_style, .. } in styles {
        all.sent += brought.sent;
        all.accepted += brought.accepted;
        all.declined += brought.declined;
        all.ignored += brought.ignored;
        all.open += brought.open;
        all.held_out += brought.held_out;
        all.unsaid += brought.unsaid;
        outcomes.extend_from_slice(of_style);
    }
    observed(&mut all, &outcomes);
    all
}

/// Figures of what was said, as it was.
fn observed(brought: &mut Brought, outcomes: &[Outcome]) {
    brought.too_few = too_few(brought);
    if brought.too_few.is_some() {
        return;
    }
    let figure = |reward: fn(&Outcome) -> f64| {
        let said = outcomes.iter().filter(|outcome| outcome.said);
        let trials = said.map(|outcome| Trial { reward: reward(outcome), logged: 1.0, asked: 1.0 });
        logged(&trials.collect::<Vec<_>>()).ok().flatten().map(Figure::from)
    };
    brought.acceptance = figure(accepted);
    brought.gain = figure(|outcome| outcome.gain);
}

fn accepted(outcome: &Outcome) -> f64 {
    f64::from(u8::from(outcome.accepted))
}

fn too_few(brought: &Brought) -> Option<String> {
    let settled = brought.accepted + brought.declined + brought.ignored;
    let refused = settled - brought.accepted;
    if settled < MESSAGES_MIN {
        Some(format!("{settled} settled messages, {MESSAGES_MIN} needed"))
    } else if brought.accepted < OUTCOMES_MIN {
        Some(format!("{} accepted, {OUTCOMES_MIN} needed", brought.accepted))
    } else if refused < OUTCOMES_MIN {
        Some(format!("{refused} not accepted, {OUTCOMES_MIN} needed"))
    } else {
        None
    }
}

/// One style of an action.
pub(super) fn line(
    action: String,
    style: Option<String>,
    OfStyle { mut brought, outcomes, .. }: OfStyle,
    chances: u64,
    carried_out: f64,
) -> Line {
    observed(&mut brought, &outcomes);
    let mut always = None;
    if brought.too_few.is_none() {
        match always_said(&outcomes, chances, carried_out) {
            Some(found) if found.effective_messages >= EFFECTIVE_MIN => always = Some(found),
            Some(found) => {
                let worth = found.effective_messages;
                brought.too_few = Some(format!(
                    "a few weigh most: worth {worth:.0} messages of equal weight, {EFFECTIVE_MIN:.0} needed"
                ));
            }
            None => {}
        }
    }
    Line { action, style, brought, chances, always }
}

/// Estimates over every decision at which it had a chance: where it was not said, the trial has no weight.
fn always_said(outcomes: &[Outcome], chances: u64, carried_out: f64) -> Option<Always> {
    let chances = usize::try_from(chances).ok()?;
    let trials = |reward: fn(&Outcome) -> f64| {
        let said = outcomes.iter().map(|outcome| Trial {
            reward: reward(outcome),
            logged: outcome.probability * carried_out,
            asked: 1.0,
        });
        let mut trials: Vec<Trial> = said.collect();
        trials.resize(chances, Trial { reward: 0.0, logged: 1.0, asked: 0.0 });
        trials
    };
    let acceptance = trials(accepted);
    let gain = trials(|outcome| outcome.gain);
    let ipw = weighted(&acceptance).ok()??;
    Some(Always {
        acceptance_ipw: ipw.into(),
        acceptance_snips: self_normalised(&acceptance).ok()??.into(),
        gain_ipw: weighted(&gain).ok()??.into(),
        gain_snips: self_normalised(&gain).ok()??.into(),
        effective_messages: ipw.effective_trials,
    })
}

/// A part of a whole, 0 to 1; of nothing, all of it.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 decisions")]
pub(super) fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 1.0 } else { part as f64 / of as f64 }
}
