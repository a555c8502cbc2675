//! Tables of the listings.

use usher_models::units::{Bytes, SubscriberId};

use super::output::{Field, Mood, ago, table, when, when_any, yes_no};
use crate::api::model::{
    Agent, App, Decision, Element, FiredMoment, Message, Push, Sending, Session, SettingRow, Subscriber,
    Usage,
};
use crate::elements::{ElementState, PushState};
use crate::engine::io::{Cause, DirectionName};

pub(super) fn subscribers(items: &[Subscriber]) -> String {
    let rows = items.iter().map(|item| {
        vec![
            Field::text(&item.id.0),
            Field::text(&item.plan),
            if item.active { Field::mood("yes", Mood::Good) } else { Field::mood("no", Mood::Bad) },
            Field::text(yes_no(item.consent.service)),
            Field::text(yes_no(item.consent.advice)),
            Field::text(item.addons.join(",")),
        ]
    });
    table(
        &["SUBSCRIBER", "PLAN", "ACTIVE", "CONSENT SERVICE", "CONSENT ADVICE", "ADD-ONS"],
        rows.collect(),
        "no subscribers",
    )
}

pub(super) fn sessions(items: &[Session]) -> String {
    let rows = items.iter().map(|item| {
        vec![
            subscriber(item.subscriber.as_ref()),
            Field::text(&item.agent),
            Field::text(&item.session),
            if item.open { Field::mood("open", Mood::Good) } else { Field::text("closed") },
            Field::text(item.prefixes.join(",")),
            Field::text(&item.serving_plmn),
            Field::text(yes_no(item.roaming)),
            Field::text(when(item.since)),
        ]
    });
    table(
        &["SUBSCRIBER", "AGENT", "SESSION", "STATE", "PREFIXES", "PLMN", "ROAMING", "SINCE"],
        rows.collect(),
        "no open sessions",
    )
}

pub(super) fn settings(items: &[SettingRow]) -> String {
    let rows = items.iter().map(|item| {
        vec![
            Field::text(&item.subscriber.0),
            Field::text(&item.setting),
            Field::text(&item.value),
            Field::text(item.until.map_or("plan".to_owned(), when)),
            Field::text(item.then.clone().unwrap_or_default()),
            Field::number(item.revision),
            push_state(item.state),
        ]
    });
    table(
        &["SUBSCRIBER", "SETTING", "VALUE", "UNTIL", "THEN", "REVISION", "PUSH"],
        rows.collect(),
        "no settings were pushed yet",
    )
}

pub(super) fn agents(items: &[Agent]) -> String {
    let rows = items.iter().map(|item| {
        let batch = item.last_batch.as_ref();
        vec![
            Field::text(&item.name),
            if item.connected {
                Field::mood("connected", Mood::Good)
            } else {
                Field::mood("away", Mood::Bad)
            },
            Field::text(when_any(item.since)),
            Field::text(item.version.clone().unwrap_or_default()),
            Field::text(item.dry_run.map_or("", yes_no)),
            Field::number(item.sessions_open),
            Field::text(batch.map(|batch| batch.sequence.to_string()).unwrap_or_default()),
            Field::text(batch.map(|batch| ago(batch.applied)).unwrap_or_default()),
        ]
    });
    table(
        &["AGENT", "STATE", "SINCE", "VERSION", "DRY RUN", "SESSIONS", "BATCH", "APPLIED"],
        rows.collect(),
        "no agents are let in: name them under agents.allowed",
    )
}

pub(super) fn elements(items: &[Element]) -> String {
    let rows = items.iter().map(|item| {
        let last = item.last.as_ref();
        vec![
            Field::text(&item.name),
            Field::text(item.address.as_deref().unwrap_or("by its agent")),
            Field::text(item.settings.as_ref().map_or("all".to_owned(), |names| names.join(","))),
            Field::text(yes_no(item.dry_run)),
            last.map_or_else(|| Field::text("never pushed"), |last| element_state(last.state)),
            Field::text(last.map(|last| ago(last.at)).unwrap_or_default()),
            Field::text(last.and_then(|last| last.error.clone()).unwrap_or_default()),
        ]
    });
    table(
        &["ELEMENT", "ADDRESS", "SETTINGS", "DRY RUN", "LAST PUSH", "WHEN", "ERROR"],
        rows.collect(),
        "no elements",
    )
}

pub(super) fn usage(items: &[Usage]) -> String {
    let rows = items.iter().map(|item| {
        let who = match (&item.subscriber, &item.anonymous) {
            (Some(id), _) => id.0.clone(),
            (None, Some(name)) => format!("({name})"),
            (None, None) => "(anonymous)".to_owned(),
        };
        vec![
            Field::text(who),
            Field::text(item.class.name()),
            Field::text(direction(item.direction)),
            Field::number(Bytes(item.bytes)),
            Field::number(item.packets),
            Field::number(Bytes(item.dropped_bytes)),
            Field::number(item.dropped_packets),
        ]
    });
    table(
        &["SUBSCRIBER", "CLASS", "DIRECTION", "BYTES", "PACKETS", "HELD BACK", "PACKETS HELD BACK"],
        rows.collect(),
        "nothing was counted yet",
    )
}

pub(super) fn apps(items: &[App]) -> String {
    let rows = items.iter().map(|item| {
        vec![
            Field::text(&item.app),
            Field::text(item.class.name()),
            Field::text(&item.via),
            Field::number(item.flows),
            Field::number(Bytes(item.bytes)),
            Field::text(when(item.last)),
            Field::number(format!("{} ms", item.verdict_us / 1000)),
        ]
    });
    table(&["APP", "CLASS", "VIA", "FLOWS", "BYTES", "LAST", "VERDICT AFTER"], rows.collect(), "none seen")
}

pub(super) fn moments(items: &[FiredMoment]) -> String {
    let rows = items.iter().map(|item| {
        vec![Field::text(&item.moment), Field::number(item.episodes), Field::text(when(item.silent_until))]
    });
    table(&["MOMENT", "FIRED", "SILENT UNTIL"], rows.collect(), "none has fired")
}

pub(super) fn decisions(items: &[Decision]) -> String {
    let rows = items.iter().map(|item| {
        vec![
            Field::text(when(item.at)),
            Field::text(&item.subscriber.0),
            Field::text(&item.moment),
            Field::text(item.chosen.as_deref().unwrap_or("nothing")),
            Field::text(outcome(item)),
            Field::text(&item.id.0),
        ]
    });
    table(
        &["AT", "SUBSCRIBER", "MOMENT", "CHOSEN", "OUTCOME", "DECISION"],
        rows.collect(),
        "no decisions yet",
    )
}

/// In a few words: what came of it, or the first gate that stopped each action.
pub(super) fn outcome(item: &Decision) -> String {
    if item.chosen.is_none() {
        let mut gates: Vec<_> = item
            .candidates
            .iter()
            .filter_map(|candidate| candidate.stopped_by.as_ref())
            .map(|stopped| crate::api::gate_name(stopped.gate))
            .collect();
        gates.dedup();
        return gates.join(",");
    }
    match (&item.message, item.tapped) {
        (_, Some(_)) => "tapped".to_owned(),
        (Some(state), None) => sending(state).0.to_owned(),
        (None, None) => "set".to_owned(),
    }
}

pub(super) fn messages(items: &[Message]) -> String {
    let rows = items.iter().map(|item| {
        let (word, mood) = sending(&item.state);
        vec![
            Field::text(when(item.at)),
            Field::text(&item.subscriber.0),
            Field::text(&item.action),
            Field::mood(word, mood),
            Field::text(when_any(item.tapped)),
            Field::text(when(item.expires)),
            Field::text(&item.text),
        ]
    });
    table(
        &["AT", "SUBSCRIBER", "ACTION", "STATE", "TAPPED", "LINK ENDS", "TEXT"],
        rows.collect(),
        "no messages were sent yet",
    )
}

pub(super) fn sending(state: &Sending) -> (&'static str, Mood) {
    match state {
        Sending::Pending => ("pending", Mood::Waiting),
        Sending::Sent(_) => ("sent", Mood::Good),
        Sending::Failed(_) => ("failed", Mood::Bad),
    }
}

pub(super) fn pushes(items: &[Push]) -> String {
    let rows = items.iter().map(|item| {
        let values: Vec<_> =
            item.settings.iter().map(|(name, setting)| format!("{name}={}", setting.value)).collect();
        vec![
            Field::text(when(item.desired)),
            Field::text(&item.subscriber.0),
            Field::text(cause(&item.cause)),
            push_state(item.state),
            Field::number(item.attempts),
            Field::text(values.join(" ")),
            Field::text(&item.id),
        ]
    });
    table(
        &["DESIRED", "SUBSCRIBER", "CAUSE", "STATE", "ATTEMPTS", "SETTINGS", "PUSH"],
        rows.collect(),
        "no pushes",
    )
}

/// Why settings changed, in one word.
pub(super) const fn cause(cause: &Cause) -> &'static str {
    match cause {
        Cause::Plan => "plan",
        Cause::Decision(_) => "decision",
        Cause::Tap(_) => "tap",
        Cause::Expiry => "expiry",
        Cause::Gone => "gone",
        Cause::RolledBack => "rolled_back",
    }
}

pub(super) fn push_state(state: PushState) -> Field {
    let mood = match state {
        PushState::Done => Mood::Good,
        PushState::Pending | PushState::Running | PushState::Confirming | PushState::Superseded => {
            Mood::Waiting
        }
        PushState::Failed | PushState::NeedsRepair => Mood::Bad,
    };
    Field::mood(state.name(), mood)
}

pub(super) fn element_state(state: ElementState) -> Field {
    let mood = match state {
        ElementState::Confirmed | ElementState::Unchanged => Mood::Good,
        ElementState::Planned | ElementState::DryRun | ElementState::Committing | ElementState::Enforced => {
            Mood::Waiting
        }
        ElementState::RolledBack | ElementState::Unverified => Mood::Bad,
    };
    Field::mood(state.name(), mood)
}

const fn direction(direction: DirectionName) -> &'static str {
    match direction {
        DirectionName::Up => "up",
        DirectionName::Down => "down",
    }
}

fn subscriber(id: Option<&SubscriberId>) -> Field {
    Field::text(id.map_or("(unknown)", |id| &id.0))
}
