//! One thing in full: sheets of labelled lines and sections.

use std::fmt::Write as _;

use jiff::SignedDuration;

use super::listing;
use super::output::{Field, Sheet, ago, between, plain, table, when, when_any, yes_no};
use crate::api::gate_name;
use crate::api::model::{
    Agent, Decision, Element, Explanation, Part, PolicySource, PolicyStanding, Push, Sending, Status,
    SubscriberDetail,
};
use crate::engine::explain::Stands;
use crate::engine::io::{Candidate, Cause, Mode};

pub(super) fn status(status: &Status) -> String {
    let mut sheet = Sheet::default();
    sheet
        .line(
            "State",
            if status.stopped { "STOPPED: no decision is made (`usher resume`)" } else { "running" },
        )
        .line("Mode", &status.mode)
        .line("Canary", canary(status))
        .line("Policy", policy(&status.standing))
        .line("Policy file", policy_file(&status.standing))
        .line("Version", &status.version)
        .line("Started", format!("{} ({})", when(status.started), ago(status.started)))
        .line("Agents", format!("{} of {} connected", status.agents_connected, status.agents_allowed))
        .line("Subscribers", status.subscribers.to_string())
        .line("Sessions", format!("{} open", status.sessions_open))
        .line("Pushes", pushes(status))
        .line("Messages", format!("{} pending", status.messages_pending));
    sheet.end()
}

/// Which step, of how many, for which share, since when, and what was seen.
fn canary(status: &Status) -> String {
    let Some(guard) = &status.guard else { return String::new() };
    if let Some(why) = &guard.rolled_back {
        return format!("ROLLED BACK (`usher resume` begins anew): {}", plain(why));
    }
    let since = guard.since.map_or_else(String::new, |since| format!(" since {}", ago(since)));
    format!(
        "step {} of {}: {} % of subscribers{since}; {} decisions carried out, {} withheld, {} and {} judged, {} of {} pushes failed",
        guard.step,
        guard.steps,
        number(100.0 * guard.share),
        guard.treated_decisions,
        guard.control_decisions,
        guard.treated_judged,
        guard.control_judged,
        guard.push_errors,
        guard.pushes
    )
}

/// What is in force, and until when.
fn policy(standing: &PolicyStanding) -> String {
    let revision = &standing.revision;
    let applied = standing.applied.map_or(String::new(), |at| format!("applied {}", when(at)));
    match (standing.source, standing.confirm_by) {
        (PolicySource::File, _) => revision.clone(),
        (PolicySource::Trial, Some(by)) => {
            format!("{revision}, {applied}, ON TRIAL until {} (`usher confirm`)", when(by))
        }
        _ => format!("{revision}, {applied} and confirmed"),
    }
}

/// What the file says, where it differs.
fn policy_file(standing: &PolicyStanding) -> String {
    let path = standing.file.path.display();
    match (&standing.file.revision, &standing.file.problem) {
        (Some(revision), _) if *revision == standing.revision => format!("{path}: the same"),
        (Some(revision), _) if standing.source == PolicySource::File => {
            format!("{path}: {revision}, NOT LOADED (`usher plan`, then `systemctl reload`)")
        }
        (Some(revision), _) => format!("{path}: {revision}"),
        (None, problem) => format!("{path}: {}", problem.as_deref().unwrap_or("cannot be read")),
    }
}

fn pushes(status: &Status) -> String {
    let mut text = format!("{} pending", status.pushes_pending);
    if status.pushes_needing_repair > 0 {
        let _ = write!(
            text,
            ", {} NEED REPAIR (`usher push list --state needs_repair`)",
            status.pushes_needing_repair
        );
    }
    text
}

pub(super) fn subscriber(detail: &SubscriberDetail) -> String {
    let subscriber = &detail.subscriber;
    let mut sheet = Sheet::default();
    sheet
        .line("Subscriber", &subscriber.id.0)
        .line("Plan", &subscriber.plan)
        .line("Add-ons", subscriber.addons.join(", "))
        .line("Active", yes_no(subscriber.active))
        .line("Complaint open", yes_no(subscriber.complaint_open))
        .line("Consent", consent(subscriber.consent))
        .line("Organisation", subscriber.organisation.clone().unwrap_or_default())
        .line("Keys", detail.keys.join(", "))
        .section("Sessions", &listing::sessions(&detail.sessions))
        .section("Settings", &listing::settings(&detail.settings))
        .section("Usage", &listing::usage(&detail.usage))
        .section("Apps", &listing::apps(&detail.apps))
        .section("Newest decisions", &listing::decisions(&detail.decisions))
        .section("Newest messages", &listing::messages(&detail.messages))
        .section("Newest pushes", &listing::pushes(&detail.pushes));
    sheet.end()
}

fn consent(consent: crate::identity::Consent) -> String {
    format!("service {}, advice {}", yes_no(consent.service), yes_no(consent.advice))
}

pub(super) fn agent(agent: &Agent) -> String {
    let mut sheet = Sheet::default();
    sheet
        .line("Agent", &agent.name)
        .line("Uplink", agent.since.map_or("none".to_owned(), |since| format!("since {}", when(since))))
        .line("Version", agent.version.clone().unwrap_or_default())
        .line("Dry run", agent.dry_run.map_or("", yes_no))
        .line("Sessions", format!("{} open", agent.sessions_open));
    match &agent.last_batch {
        Some(batch) => {
            sheet
                .line("Last batch", format!("{} of boot {}", batch.sequence, batch.boot))
                .line("It ends", when(batch.end))
                .line("Applied", format!("{} ({})", when(batch.applied), ago(batch.applied)));
        }
        None => {
            sheet.line("Last batch", "none yet");
        }
    }
    sheet.end()
}

pub(super) fn element(element: &Element) -> String {
    let mut sheet = Sheet::default();
    sheet
        .line("Element", &element.name)
        .line("Kind", &element.kind)
        .line("Address", element.address.as_deref().unwrap_or("by its agent"))
        .line("Settings", element.settings.as_ref().map_or("all".to_owned(), |names| names.join(", ")))
        .line("Dry run", yes_no(element.dry_run));
    match &element.last {
        Some(last) => {
            sheet
                .line("Last push", format!("{} ({})", last.push, ago(last.at)))
                .line("Came to", last.state.name())
                .line("Error", last.error.clone().unwrap_or_default());
        }
        None => {
            sheet.line("Last push", "none yet");
        }
    }
    sheet.end()
}

pub(super) fn push(push: &Push) -> String {
    let mut sheet = Sheet::default();
    let because = match &push.cause {
        Cause::Plan => "the plan's own settings".to_owned(),
        Cause::Decision(id) => format!("decision {id}"),
        Cause::Tap(id) => format!("tap on the message of decision {id}"),
        Cause::Expiry => "the time of a setting was up".to_owned(),
        Cause::Gone => "the profile is gone".to_owned(),
        Cause::RolledBack => "the guard took back what decisions had set".to_owned(),
    };
    sheet
        .line("Push", &push.id)
        .line("Subscriber", &push.subscriber.0)
        .line("Because of", because)
        .line("State", push.state.name())
        .line("Desired", when(push.desired))
        .line("Finished", push.finished.map_or(String::new(), |at| took(push, at)))
        .line("Attempts", push.attempts.to_string())
        .line("Next attempt", when_any(push.next))
        .line("Error", push.error.clone().unwrap_or_default());
    let settings = push.settings.iter().map(|(name, setting)| {
        vec![
            Field::text(name),
            Field::text(&setting.value),
            Field::text(setting.until.map_or("plan".to_owned(), when)),
            Field::text(setting.then.clone().unwrap_or_default()),
        ]
    });
    sheet.section(
        &format!("Settings (revision {})", push.revision),
        &table(&["SETTING", "VALUE", "UNTIL", "THEN"], settings.collect(), "none"),
    );
    for part in &push.elements {
        sheet.section(&part.element, &self::part(push, part));
    }
    if push.elements.is_empty() {
        sheet.section("Elements", "none reached yet");
    }
    sheet.end()
}

fn took(push: &Push, at: crate::api::model::Time) -> String {
    format!("{} ({} after it was desired)", when(at), between(push.desired, at))
}

fn part(push: &Push, part: &Part) -> String {
    let mut sheet = Sheet::default();
    let after = |at| format!("{} after it was desired", between(push.desired, at));
    sheet
        .line("State", part.state.name())
        .line("Started", after(part.started))
        .line("Enforced", part.enforced.map(after).unwrap_or_default())
        .line("Confirmed", part.confirmed.map(after).unwrap_or_default())
        .line("Error", part.error.clone().unwrap_or_default());
    let mut text = sheet.end();
    if part.changes.is_empty() {
        text.push_str("No change.\n");
    }
    for change in &part.changes {
        for (sign, value) in [('-', &change.from), ('+', &change.to)] {
            for line in value.iter().flat_map(|value| value.lines()) {
                let _ = writeln!(text, "{sign} {}: {}", plain(&change.path), plain(line));
            }
        }
    }
    text
}

pub(super) fn decision(decision: &Decision) -> String {
    let mut sheet = Sheet::default();
    sheet
        .line("Decision", &decision.id.0)
        .line("Subscriber", &decision.subscriber.0)
        .line("Policy", &decision.policy);
    trace(sheet, decision)
}

/// Moment, facts, every candidate with the gate that stopped it, and what came of the one chosen.
fn trace(mut sheet: Sheet, decision: &Decision) -> String {
    sheet
        .line("Moment", format!("{} (episode {})", decision.moment, decision.episode))
        .line("At", when(decision.at))
        .line(
            "Mode",
            match decision.mode {
                Mode::Live | Mode::Canary => "",
                Mode::Plan | Mode::Stop => "not live: nothing was carried out",
            },
        )
        .line("Facts", facts(decision));
    for candidate in &decision.candidates {
        sheet.line(&format!("Action {}", candidate.action), verdict(candidate));
    }
    let mut chosen = decision.chosen.clone().unwrap_or_else(|| "nothing".to_owned());
    if let Some(style) = &decision.style {
        let _ = write!(chosen, ", in the style {style}");
    }
    if decision.probability < 1.0 {
        let _ = write!(chosen, ", with a chance of {}", number(decision.probability));
    }
    sheet.line("Chosen", chosen);
    match &decision.message {
        Some(Sending::Pending) => sheet.line("Message", "waits to be sent"),
        Some(Sending::Sent(at)) => sheet.line("Message", format!("sent {}", when(*at))),
        Some(Sending::Failed(why)) => sheet.line("Message", format!("not sent: {why}")),
        None => &mut sheet,
    };
    sheet.line("Tapped", when_any(decision.tapped)).line("Declined", when_any(decision.declined));
    if let Some(push) = &decision.push {
        let mut text = format!("{} {} (revision {})", push.id, push.state.name(), push.revision);
        if let Some(error) = &push.error {
            let _ = write!(text, ": {error}");
        }
        sheet.line("Push", text);
        for part in &push.elements {
            let at = part.enforced.map_or(String::new(), |at| {
                format!(", enforced {} after it was desired", between(push.desired, at))
            });
            let error = part.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
            sheet.line(&format!("  on {}", part.element), format!("{}{at}{error}", part.state.name()));
        }
    }
    sheet.end()
}

fn facts(decision: &Decision) -> String {
    let numbers = decision.facts.iter().map(|(name, value)| match value {
        Some(value) => format!("{name} = {}", number(*value)),
        None => format!("{name} unknown"),
    });
    let words = decision.words.iter().map(|(name, word)| format!("{name} = {word}"));
    numbers.chain(words).collect::<Vec<_>>().join(", ")
}

fn in_short(explanation: &Explanation) -> String {
    explanation.summary.iter().map(|sentence| plain(sentence)).collect::<Vec<_>>().join("\n")
}

fn facts_now(explanation: &Explanation) -> String {
    let rows = explanation.facts.iter().map(|(name, value)| {
        vec![
            Field::text(name),
            value.map_or_else(|| Field::text("unknown"), |value| Field::number(number(value))),
        ]
    });
    table(&["FACT", "VALUE"], rows.collect(), "none")
}

/// `Facts now`, or `Facts at 2026-...`.
fn seen_at(what: &str, explanation: &Explanation) -> String {
    if explanation.seen_at == explanation.at
        && explanation.at.0 < jiff::Timestamp::now() - SignedDuration::from_mins(1)
    {
        format!("{what} at {}", when(explanation.at))
    } else {
        format!("{what} now")
    }
}

/// Where each moment stands, and what its actions would come to.
fn stands(explanation: &Explanation) -> String {
    let mut sheet = Sheet::default();
    for moment in &explanation.stands {
        let stands = match moment.stands {
            Stands::Armed => "armed".to_owned(),
            Stands::HoldingSince(since) => format!("has held since {}", when(since.into())),
            Stands::SilentUntil(until) => format!("silent until {}", when(until.into())),
        };
        let chosen = moment.would_choose.as_deref().unwrap_or("nothing");
        sheet.line(
            &moment.moment,
            format!("{stands}; fired {} times; now it would lead to {chosen}", moment.episodes),
        );
        for candidate in &moment.candidates {
            sheet.line(&format!("  {}", candidate.action), verdict(candidate));
        }
    }
    if explanation.stands.is_empty() { "none".to_owned() } else { sheet.end() }
}

fn verdict(candidate: &Candidate) -> String {
    let mut text = match &candidate.stopped_by {
        Some(stopped) => format!("stopped by {}: {}", gate_name(stopped.gate), stopped.why),
        None => "passed every gate".to_owned(),
    };
    if let Some(score) = &candidate.score {
        let _ = write!(
            text,
            "; score {} = propensity {} x relevance {} x (value {} - cost {})",
            number(score.total),
            number(score.propensity),
            number(score.relevance),
            number(score.value),
            number(score.cost)
        );
    }
    text
}

/// Three decimals at most.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole.to_owned(),
        Some(_) => text.trim_end_matches('0').to_owned(),
        None => text,
    }
}

pub(super) fn explanation(explanation: &Explanation) -> String {
    let subscriber = &explanation.subscriber;
    let mut sheet = Sheet::default();
    sheet
        .line("Subscriber", &subscriber.id.0)
        .line("Plan", &subscriber.plan)
        .line("Consent", consent(subscriber.consent))
        .line("As of", when(explanation.at))
        .section("In short", &in_short(explanation))
        .section("Open sessions", &listing::sessions(&explanation.sessions))
        .section("Settings", &listing::settings(&explanation.settings))
        .section(&seen_at("Facts", explanation), &facts_now(explanation))
        .section(&seen_at("Moments", explanation), &stands(explanation))
        .section("Moments that have fired", &listing::moments(&explanation.moments));
    for decision in &explanation.decisions {
        sheet.section(&format!("Decision {}", decision.id), &trace(Sheet::default(), decision));
    }
    sheet.end()
}
