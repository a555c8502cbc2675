//! The uplift report: what messages brought, and what each would have brought had it always been the one that was said; and whom
//! reconfigurations helped, as the engine has learnt against people for whom nothing was done.
//!
//! ```text
//!   decision of the ledger -> Choice --settled, carried out, its chance known--> one Trial of each action that had a chance
//!                                                                          \--> logged | weighted | self_normalised
//! ```
//!
//! A decision is *settled* once it is older than `credit`: what a person taps within that time is its. Whoever was held out
//! was offered nothing and took nothing up, so that what messages brought is what they brought over doing nothing; what people
//! bought by themselves stands in no record, of either group.
//!
//! An action had a chance at a decision where it was picked, or where it passed the policy and chance was at work. With
//! `choose.explore` at zero chance draws only styles: actions that were outscored then are counted as if they had had a
//! chance, which lowers the plain estimate and leaves the normalised one as it is.

mod figures;

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::units::Micros;

use super::Estimate;
use crate::api::model::Time;
use crate::engine::Learned;
use crate::engine::io::{Candidate, Gate, Mode, Score};
use figures::{OfStyle, Outcome, line, share, total};

pub use figures::{EFFECTIVE_MIN, MESSAGES_MIN, OUTCOMES_MIN};

/// Fewest outcomes of a reconfiguration that a share is given for, as they count by now.
pub const JUDGED_MIN: f64 = 20.0;

/// One decision as it was logged, and what came of its message.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct Choice {
    /// When.
    pub at: Micros,
    /// Revision of the policy that decided.
    pub policy: String,
    /// Whether it was to be carried out.
    pub mode: Mode,
    /// Every action at the moment, with the first gate that stopped it.
    pub candidates: Vec<Candidate>,
    /// The action taken.
    pub chosen: Option<String>,
    /// The chance it was picked with; `None`: it was not logged.
    #[serde(default)]
    pub probability: Option<f64>,
    /// The style of its message, where it has several.
    #[serde(default)]
    pub style: Option<String>,
    /// What became of its message; `None`: it has none.
    #[serde(skip)]
    pub message: Option<Said>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// The channel took it.
    pub sent: bool,
    /// When its link was accepted.
    pub tapped: Option<Micros>,
    /// When it was declined.
    pub declined: Option<Micros>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Only decisions of this revision of the policy.
    pub policy: Option<String>,
    /// How long after a decision a tap is its.
    pub credit: Duration,
    /// The time it is asked at.
    pub now: Micros,
}

/// What messages brought.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The oldest decision that was looked at; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Time>,
    /// When it was asked.
    pub until: Time,
    /// A tap later than this after its decision is not counted, and younger decisions are left open, seconds.
    pub credit_s: u64,
    /// Only so many of the newest decisions were looked at, and there are older ones.
    pub cut_short: bool,
    /// Decisions looked at, by revision of the policy that made them.
    pub policies: BTreeMap<String, u64>,
    /// Decisions that no figure is made of.
    pub left_out: LeftOut,
    /// Fewest settled messages that a figure is given for.
    pub messages_min: u64,
    /// All messages together.
    pub all: Brought,
    /// By action and style.
    pub actions: Vec<Line>,
    /// Actions that reconfigure.
    pub settings: Vec<Done>,
}

/// Decisions that no figure is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftOut {
    /// They were made by another revision of the policy than was asked for.
    pub other_policy: u64,
    /// They were not to be carried out: `guard.mode` was `plan` or `stop`.
    pub not_live: u64,
    /// The law asked for the message: nothing was weighed.
    pub regulated: u64,
    /// The chance they were made with was not logged, or is none.
    pub without_probability: u64,
}

/// What messages of a kind brought.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Brought {
    /// Messages that the channel took.
    pub sent: u64,
    /// Of those: accepted within the time.
    pub accepted: u64,
    /// Declined.
    pub declined: u64,
    /// Neither.
    pub ignored: u64,
    /// Not old enough to tell.
    pub open: u64,
    /// Picked, and not said to people for whom nothing is done this quarter.
    pub held_out: u64,
    /// Picked, and not said for another reason: the canary, a roll-back, a partner, the channel.
    pub unsaid: u64,
    /// Why there are no figures, or not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_few: Option<String>,
    /// Share of settled messages that were accepted, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Figure>,
    /// Value less cost to the customer, in the policy's money: mean a settled message, 0 where it was not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Figure>,
}

/// An action, in one of its styles where it has several.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Line {
    /// Its name.
    pub action: String,
    /// The style.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
    /// What it brought.
    #[serde(flatten)]
    pub brought: Brought,
    /// Settled decisions at which it had a chance to be picked.
    pub chances: u64,
    /// What it would have brought, had it been said at each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub always: Option<Always>,
}

/// What an action would have brought, had it always been the one that was said.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Always {
    /// Share accepted, by inverse probability weighting.
    pub acceptance_ipw: Figure,
    /// The same, self-normalised.
    pub acceptance_snips: Figure,
    /// Value less cost to the customer, by inverse probability weighting: mean a decision.
    pub gain_ipw: Figure,
    /// The same, self-normalised.
    pub gain_snips: Figure,
    /// How many messages of equal weight would say as much (Kish).
    pub effective_messages: f64,
}

/// An action that reconfigures.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Done {
    /// Its name.
    pub action: String,
    /// Decisions that were carried out.
    pub done: u64,
    /// Withheld from people for whom nothing is done this quarter.
    pub held_out: u64,
    /// Withheld for another reason: the canary, a roll-back, too many pushes.
    pub withheld: u64,
    /// How many outcomes were judged, whenever, each counting the less the older it is.
    pub judged: f64,
    /// Of those the share that it helped, 0 to 1: quality rose, and would not have by itself. Absent: too few were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helped: Option<f64>,
}

/// A mean, and the bounds within which the true one lies in 95 of 100 cases, by the normal approximation.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figure {
    /// The estimate.
    pub mean: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl From<Estimate> for Figure {
    fn from(estimate: Estimate) -> Self {
        let (low, high) = estimate.interval_95();
        Self { mean: estimate.mean, low, high }
    }
}

/// Reads decisions one by one, in any order, then tells.
#[derive(Debug)]
pub struct Reader {
    question: Question,
    from: Option<Micros>,
    policies: BTreeMap<String, u64>,
    left_out: LeftOut,
    actions: BTreeMap<String, OfAction>,
}

#[derive(Debug, Default)]
struct OfAction {
    /// Some message of it was sent, or was to be: it says something.
    says: bool,
    /// Carried out without a message: it reconfigures.
    done: u64,
    chances: u64,
    styles: BTreeMap<Option<String>, OfStyle>,
}

/// Why a pick was not said.
enum Kept {
    HeldOut,
    Withheld,
    /// Its partner had none: it could not have been said to anybody.
    Unavailable,
}

impl Reader {
    /// Nothing read yet.
    pub const fn new(question: Question) -> Self {
        Self {
            question,
            from: None,
            policies: BTreeMap::new(),
            left_out: LeftOut { other_policy: 0, not_live: 0, regulated: 0, without_probability: 0 },
            actions: BTreeMap::new(),
        }
    }

    /// Takes one decision in.
    pub fn read(&mut self, choice: &Choice) {
        self.from = Some(self.from.map_or(choice.at, |from| from.min(choice.at)));
        match self.policies.get_mut(&choice.policy) {
            Some(count) => *count += 1,
            None => drop(self.policies.insert(choice.policy.clone(), 1)),
        }
        if self.question.policy.as_ref().is_some_and(|policy| *policy != choice.policy) {
            self.left_out.other_policy += 1;
            return;
        }
        if !matches!(choice.mode, Mode::Live | Mode::Canary) {
            self.left_out.not_live += 1;
            return;
        }
        let picked = picked(choice);
        if picked.as_ref().is_some_and(|(candidate, _)| candidate.score.is_none()) {
            self.left_out.regulated += 1;
            return;
        }
        let Some(probability) = choice.probability.filter(|chance| *chance > 0.0 && *chance <= 1.0) else {
            self.left_out.without_probability += 1;
            return;
        };
        let settled = self.question.now.since(choice.at) >= self.question.credit;
        if let Some((candidate, kept)) = &picked
            && let Some(score) = candidate.score
        {
            self.read_pick(choice, candidate, kept.as_ref(), (score, probability), settled);
        }
        if settled && probability < 1.0 {
            let others = choice.candidates.iter().filter(|candidate| {
                let by = candidate.stopped_by.as_ref();
                by.is_some_and(|stopped| matches!(stopped.gate, Gate::Outscored | Gate::Floor))
            });
            for other in others {
                of(&mut self.actions, &other.action).chances += 1;
            }
        }
    }

    fn read_pick(
        &mut self,
        choice: &Choice,
        candidate: &Candidate,
        kept: Option<&Kept>,
        (score, probability): (Score, f64),
        settled: bool,
    ) {
        let of_action = of(&mut self.actions, &candidate.action);
        of_action.says |= choice.message.is_some();
        if kept.is_none() && choice.message.is_none() {
            of_action.done += 1;
            return;
        }
        of_action.chances += u64::from(settled);
        let of_style = of_action.styles.entry(choice.style.clone()).or_default();
        let brought = &mut of_style.brought;
        let sent = choice.message.filter(|message| message.sent);
        let (Some(said), None) = (sent, kept) else {
            let held_out = matches!(kept, Some(Kept::HeldOut));
            brought.held_out += u64::from(held_out);
            brought.unsaid += u64::from(!held_out);
            match kept {
                Some(Kept::Unavailable) if settled => {
                    let none = Outcome { probability, accepted: false, gain: 0.0, said: false };
                    of_style.outcomes.push(none);
                }
                _ => of_style.withheld += u64::from(settled),
            }
            return;
        };
        brought.sent += 1;
        if !settled {
            brought.open += 1;
            return;
        }
        let until = choice.at.after(self.question.credit);
        let accepted = said.tapped.is_some_and(|at| at < until);
        let count = match (accepted, said.declined) {
            (true, _) => &mut brought.accepted,
            (false, Some(_)) => &mut brought.declined,
            (false, None) => &mut brought.ignored,
        };
        *count += 1;
        let gain = if accepted { score.value - score.cost } else { 0.0 };
        of_style.outcomes.push(Outcome { probability, accepted, gain, said: true });
    }

    /// What was read comes to. `cut_short`: older decisions were not read.
    pub fn report(mut self, cut_short: bool, learned: &Learned) -> Report {
        let settings = self.actions.extract_if(.., |_, of_action| of_action.done > 0);
        let settings = settings.map(|(action, of_action)| done(action, &of_action, learned)).collect();
        self.actions.retain(|_, of_action| of_action.says);
        let styles = || self.actions.values().flat_map(|of_action| of_action.styles.values());
        let all = total(styles());
        let said = styles().map(|of_style| of_style.outcomes.len() as u64).sum::<u64>();
        let withheld = styles().map(|of_style| of_style.withheld).sum::<u64>();
        // Who is held out, and where the canary stands, does not hang on what was picked: all picks tell of it together.
        let carried_out = share(said, said + withheld);
        let mut lines = Vec::new();
        for (action, of_action) in self.actions {
            for (style, of_style) in of_action.styles {
                lines.push(line(action.clone(), style, of_style, of_action.chances, carried_out));
            }
        }
        Report {
            from: self.from.map(Time::from),
            until: self.question.now.into(),
            credit_s: self.question.credit.as_secs(),
            cut_short,
            policies: self.policies,
            left_out: self.left_out,
            messages_min: MESSAGES_MIN,
            all,
            actions: lines,
            settings,
        }
    }
}

fn of<'a>(actions: &'a mut BTreeMap<String, OfAction>, name: &str) -> &'a mut OfAction {
    // Most are there: no name is copied for them.
    if !actions.contains_key(name) {
        actions.insert(name.to_owned(), OfAction::default());
    }
    actions.get_mut(name).expect("it was put there")
}

/// What was picked, and why it was not carried out; `None`: nothing was.
fn picked(choice: &Choice) -> Option<(&Candidate, Option<Kept>)> {
    if let Some(chosen) = &choice.chosen {
        let candidate = choice.candidates.iter().find(|candidate| candidate.action == *chosen)?;
        return Some((candidate, None));
    }
    choice.candidates.iter().find_map(|candidate| {
        let kept = match candidate.stopped_by.as_ref()?.gate {
            Gate::Holdout => Kept::HeldOut,
            // The kill switch has a mode of its own: here it is a roll-back.
            Gate::Canary | Gate::Guard | Gate::Pushes => Kept::Withheld,
            Gate::Partner => Kept::Unavailable,
            _ => return None,
        };
        Some((candidate, Some(kept)))
    })
}

fn done(action: String, of_action: &OfAction, learned: &Learned) -> Done {
    let count =
        |of: fn(&Brought) -> u64| of_action.styles.values().map(|of_style| of(&of_style.brought)).sum();
    let tally = learned.of_action(&action);
    let judged = tally.map_or(0.0, |tally| tally.all);
    let share = tally.filter(|tally| tally.all >= JUDGED_MIN).map(|tally| tally.good / tally.all);
    Done {
        done: of_action.done,
        held_out: count(|brought| brought.held_out),
        withheld: count(|brought| brought.unsaid),
        judged,
        helped: share.map(|share| share.clamp(0.0, 1.0)),
        action,
    }
}

#[cfg(test)]
mod tests;
