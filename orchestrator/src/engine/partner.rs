//! Partner offers: the partner is asked for stock and price first, and without an answer in time there is no offer.
//!
//! ```text
//!   picked --Effect::Ask--> Asking(until) --Answered: in stock, at no more than the action's cost--> gates again --> Say
//!                                '-- no answer by then, none in stock, dearer --> nothing, and the record says why
//! ```
//!
//! The decision is made known once it is complete. One offer of a subscriber is asked for at a time. Nothing is told of whom
//! it is for.

use std::time::Duration;

use super::choose::Case;
use super::io::{AskPartner, Decision, DecisionId, Effect, Gate, LiveOffer, Stopped};
use super::state::Asking;
use super::{Engine, Opened};
use crate::policy::{Action, ActionKind};

/// No answer after so long is a no.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Whether an action is a partner's offer: its words, or what its tap sets, name the partner.
fn is_partner_offer(action: &Action) -> bool {
    const PARTNER: &str = "{partner}";
    let ActionKind::Say { template, styles, tap } = &action.kind else { return false };
    let mut texts = std::iter::once(template).chain(styles.values());
    let mut values = tap.iter().flat_map(|tap| tap.values.values());
    texts.any(|text| text.contains(PARTNER)) || values.any(|value| value.contains(PARTNER))
}

impl Engine {
    /// Completes a decision, or asks the partner first.
    pub(super) fn settle_decision(
        &mut self,
        opened: &mut Opened,
        index: usize,
        mut decision: Decision,
        segment: String,
        effects: &mut Vec<Effect>,
    ) {
        let picked = decision.carried_out().and_then(|picked| {
            let mut actions = self.world.moments[index].actions.iter();
            actions.find(|(name, action)| name == picked && is_partner_offer(action))
        });
        if let Some((name, _)) = picked {
            let (name, partner) = (name.clone(), opened.profile.offer.partner.clone());
            let asking = &mut opened.subscriber.state.asking;
            match partner {
                Some(partner) if asking.is_none() => {
                    let until = self.now.after(ANSWER_WITHIN);
                    let ask = AskPartner { decision: decision.id.clone(), partner, action: name, until };
                    effects.push(Effect::Ask(ask));
                    self.by_decision.insert(decision.id.clone(), opened.line);
                    *asking = Some(Box::new(Asking { decision, segment, until }));
                    return;
                }
                _ => withhold(&mut decision, "another offer is being asked for"),
            }
        }
        self.begin_trial(opened, index, &decision, segment.clone());
        self.guard_decided(&decision);
        self.carry_out(opened, index, decision, segment, effects);
    }

    /// The partner has answered; nothing: it cannot be had.
    pub(super) fn answered(
        &mut self,
        id: &DecisionId,
        offer: Result<LiveOffer, String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(line) = self.by_decision.get(id).copied() else { return };
        let mut opened = self.open(line);
        if opened.subscriber.state.asking.as_ref().is_some_and(|asking| asking.decision.id == *id) {
            self.offer(&mut opened, offer, effects);
            self.plan_next_look(&opened);
            self.close(&opened);
        }
    }

    /// The time for an answer is over.
    pub(super) fn stop_asking(&mut self, opened: &mut Opened, effects: &mut Vec<Effect>) {
        let asking = opened.subscriber.state.asking.as_ref();
        if asking.is_some_and(|asking| asking.until <= self.now) {
            let why = format!("the partner did not answer within {} s", ANSWER_WITHIN.as_secs());
            self.offer(opened, Err(why), effects);
        }
    }

    fn offer(&mut self, opened: &mut Opened, offer: Result<LiveOffer, String>, effects: &mut Vec<Effect>) {
        let Some(asking) = opened.subscriber.state.asking.take() else { return };
        opened.changed = true;
        let Asking { mut decision, segment, .. } = *asking;
        self.by_decision.remove(&decision.id);
        let Some(index) = self.world.moments.iter().position(|watched| watched.name == decision.moment)
        else {
            return;
        };
        let picked = decision.chosen.clone().unwrap_or_default();
        let cost = decision.candidates.iter().find(|it| it.action == picked).and_then(|it| it.score);
        let cost = cost.map_or(0.0, |score| score.cost);
        let verdict = match offer {
            Err(why) => Err((Gate::Partner, why)),
            Ok(offer) if !offer.in_stock => Err((Gate::Partner, "the partner has none".to_owned())),
            Ok(offer) if offer.price > cost => {
                Err((Gate::Partner, format!("it costs {:.2} now, more than {cost:.2}", offer.price)))
            }
            Ok(_) => {
                let (profile, subscriber) = (&opened.profile, &opened.subscriber);
                Case { world: &self.world, profile, subscriber, now: self.now }.may_still_say(&picked)
            }
        };
        if let Err((gate, why)) = verdict {
            withhold_by(&mut decision, gate, why);
        }
        self.guard_decided(&decision);
        self.carry_out(opened, index, decision, segment, effects);
    }
}

fn withhold(decision: &mut Decision, why: &str) {
    withhold_by(decision, Gate::Partner, why.to_owned());
}

fn withhold_by(decision: &mut Decision, gate: Gate, why: String) {
    let picked = decision.chosen.take();
    let candidate =
        decision.candidates.iter_mut().find(|candidate| Some(&candidate.action) == picked.as_ref());
    if let Some(candidate) = candidate {
        candidate.stopped_by = Some(Stopped { gate, why });
    }
}
