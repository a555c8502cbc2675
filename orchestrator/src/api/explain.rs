//! Why something was, or was not, done for a subscriber: read from the ledger, changing nothing.

use std::collections::BTreeSet;

use usher_models::units::{Micros, SubscriberId};

use super::model::{Decision, Explanation, FiredMoment, Push, Sending, Session, Subscriber, Time};
use super::routes::settings_now;
use crate::elements::PushState;
use crate::engine::SubscriberState;
use crate::engine::explain::Seen;
use crate::engine::io::{Cause, DecisionId, Gate, Mode};
use crate::identity::Profile;
use crate::ledger::pushes::{PushFilter, PushRecord};
use crate::ledger::{DecisionRow, Ledger, LedgerError};

/// Decisions and pushes of one subscriber that are looked through, newest first.
const LOOK_BACK: u32 = 1000;

pub(super) fn explain(
    ledger: &Ledger,
    profile: &Profile,
    seen: Seen,
    at: Option<jiff::Timestamp>,
    limit: u32,
    now: Micros,
) -> Result<Explanation, LedgerError> {
    let at = at.map_or_else(|| Time::from(now), Time);
    let pushes = pushes_of(ledger, &profile.id)?;
    let mut decisions = Vec::new();
    for row in ledger.decisions(Some(&profile.id), LOOK_BACK)? {
        if decisions.len() < limit as usize && Time::from(row.decision.at) <= at {
            decisions.push(with_its_push(ledger, row, &pushes)?);
        }
    }
    let mut sessions: Vec<_> = ledger.sessions_of(&profile.id)?.into_iter().map(Session::from).collect();
    sessions.retain(|session| session.open);
    let mut explanation = Explanation {
        subscriber: Subscriber::from(profile),
        at,
        summary: Vec::new(),
        sessions,
        settings: settings_now(ledger, &profile.id)?,
        seen_at: now.into(),
        facts: seen.facts,
        stands: seen.moments,
        moments: moments(ledger, profile)?,
        decisions,
    };
    explanation.summary = summary(&explanation, ledger.stopped()?);
    Ok(explanation)
}

/// What the engine keeps of the moments of this line.
fn moments(ledger: &Ledger, profile: &Profile) -> Result<Vec<FiredMoment>, LedgerError> {
    let Some(row) = ledger.engine_row(&profile.id)? else { return Ok(Vec::new()) };
    let state: SubscriberState = serde_json::from_str(&row).map_err(|error| LedgerError::Corrupt {
        what: format!("engine state of {}", profile.id),
        why: error.to_string(),
    })?;
    let fired = state.moments.into_iter().map(|(moment, fired)| FiredMoment {
        moment,
        episodes: fired.episodes,
        silent_until: fired.silent_until.into(),
    });
    Ok(fired.collect())
}

/// A decision with the push that carried it out: its own, or the one its tap led to.
pub(super) fn with_push(ledger: &Ledger, row: DecisionRow) -> Result<Decision, LedgerError> {
    let pushes = pushes_of(ledger, &row.decision.subscriber)?;
    with_its_push(ledger, row, &pushes)
}

fn with_its_push(ledger: &Ledger, row: DecisionRow, pushes: &[PushRecord]) -> Result<Decision, LedgerError> {
    let mut decision = Decision::from(row);
    if let Some(found) = pushes.iter().find(|record| caused_by(&record.push.cause, &decision.id)) {
        decision.push = ledger.push(&found.push.id)?.map(Push::from);
    }
    Ok(decision)
}

fn pushes_of(ledger: &Ledger, subscriber: &SubscriberId) -> Result<Vec<PushRecord>, LedgerError> {
    let filter = PushFilter { subscriber: Some(subscriber.clone()), ..PushFilter::default() };
    ledger.pushes(&filter, LOOK_BACK as usize)
}

fn caused_by(cause: &Cause, decision: &DecisionId) -> bool {
    matches!(cause, Cause::Decision(id) | Cause::Tap(id) if id == decision)
}

fn summary(explanation: &Explanation, stopped: bool) -> Vec<String> {
    let subscriber = &explanation.subscriber;
    let mut sentences = Vec::new();
    if stopped {
        sentences.push("Usher is stopped: no decision is made for anyone until `usher resume`.".to_owned());
    }
    let mut told = BTreeSet::new();
    for decision in &explanation.decisions {
        if told.insert(&decision.moment) {
            sentences.push(of_decision(decision));
        }
    }
    if explanation.decisions.is_empty() {
        sentences.push("No moment has fired for this line, so nothing was decided.".to_owned());
    }
    if !subscriber.active {
        sentences.push("The line is not in service.".to_owned());
    }
    if subscriber.complaint_open {
        sentences.push("A complaint is open.".to_owned());
    }
    match (subscriber.consent.service, subscriber.consent.advice) {
        (true, true) => {}
        (false, false) => sentences.push(
            "The person consents neither to silent changes (`service`) nor to messages (`advice`)."
                .to_owned(),
        ),
        (false, true) => {
            sentences.push("The person does not consent to silent changes (`service`).".to_owned());
        }
        (true, false) => sentences.push("The person does not consent to messages (`advice`).".to_owned()),
    }
    if explanation.sessions.is_empty() {
        sentences.push("No session is open: no gateway sees this line now.".to_owned());
    }
    sentences
}

fn of_decision(decision: &Decision) -> String {
    let what = format!("{} at {}", decision.moment, decision.at);
    let Some(chosen) = &decision.chosen else {
        return format!("{what}: nothing was done, because {}.", why_nothing(decision));
    };
    if !matches!(decision.mode, Mode::Live | Mode::Canary) {
        return format!("{what}: {chosen} would have been chosen, but guard.mode was not live.");
    }
    let outcome = match (&decision.message, decision.tapped, &decision.push) {
        (_, _, Some(push)) => of_push(push),
        (Some(Sending::Pending), _, None) => "its message waits to be sent".to_owned(),
        (Some(Sending::Failed(why)), _, None) => format!("its message was not sent: {why}"),
        (Some(Sending::Sent(at)), None, None) if decision.declined.is_some() => {
            format!("its message was sent at {at} and declined")
        }
        (Some(Sending::Sent(at)), None, None) => {
            format!("its message was sent at {at} and has not been tapped")
        }
        (_, Some(at), None) => format!("tapped at {at}"),
        (None, None, None) => "no push was needed".to_owned(),
    };
    format!("{what}: {chosen} was chosen; {outcome}.")
}

fn of_push(push: &Push) -> String {
    let id = &push.id;
    let error = push.error.as_deref().unwrap_or("no reason was recorded");
    match push.state {
        PushState::Pending if push.attempts > 0 => format!("push {id} is tried again: {error}"),
        PushState::Pending => format!("push {id} waits for its turn"),
        PushState::Running | PushState::Confirming => format!("push {id} is under way"),
        PushState::Done => format!("push {id} is done"),
        PushState::Failed => {
            format!("push {id} failed, every element is back where it was, and it is tried on: {error}")
        }
        PushState::NeedsRepair => {
            format!("push {id} failed, an element needs repair, and it is tried on: {error}")
        }
        PushState::Superseded => format!("push {id} gave way to a newer one"),
    }
}

fn why_nothing(decision: &Decision) -> String {
    let stopped: Vec<_> = decision
        .candidates
        .iter()
        .filter_map(|candidate| {
            let stopped = candidate.stopped_by.as_ref()?;
            Some(format!("{} was stopped by {} ({})", candidate.action, gate_name(stopped.gate), stopped.why))
        })
        .collect();
    if stopped.is_empty() { "no action is tied to this moment".to_owned() } else { stopped.join("; ") }
}

/// A gate as the policy file names it.
pub(crate) fn gate_name(gate: Gate) -> &'static str {
    match gate {
        Gate::Guard => "guard",
        Gate::Eligible => "policy.eligible",
        Gate::Suitable => "policy.suitable",
        Gate::Consent => "policy.consent",
        Gate::Budget => "policy.contact.budget",
        Gate::SameAction => "policy.contact.same_action",
        Gate::Quiet => "policy.contact.quiet",
        Gate::Backoff => "policy.backoff",
        Gate::Floor => "choose.floor",
        Gate::Outscored => "a better action",
        Gate::Holdout => "choose.holdout",
        Gate::Canary => "guard.canary",
        Gate::Pushes => "guard.pushes",
        Gate::Partner => "the partner",
    }
}
