//! Settings, and the pushes that bring them to elements.

use std::collections::BTreeMap;

use usher_models::units::{Micros, SubscriberId};

use super::Time;
use crate::elements::{Change, ElementOutcome, ElementState, PushState};
use crate::engine::io::Cause;
use crate::ledger::pushes::PushRecord;

/// One setting of one subscriber, as last desired.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SettingRow {
    /// Whose.
    pub subscriber: SubscriberId,
    /// Its name.
    pub setting: String,
    /// Its value now.
    pub value: String,
    /// When it ends by itself; absent: it is what the plan gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// What comes after `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// Revision of the subscriber's settings.
    pub revision: u64,
    /// The push that brings it to the elements.
    pub push: String,
    /// How far that push is; `done`: every element holds it.
    pub state: PushState,
}

/// The settings a push brings, at `now`.
pub fn settings_of(record: &PushRecord, now: Micros) -> Vec<SettingRow> {
    let settings = &record.push.settings;
    settings
        .values
        .iter()
        .map(|(name, setting)| {
            let until = setting.until.filter(|until| *until > now);
            SettingRow {
                subscriber: record.push.subscriber.clone(),
                setting: name.clone(),
                value: setting.at(now).to_owned(),
                until: until.map(Time::from),
                then: until.map(|_| setting.otherwise.clone()),
                revision: settings.revision,
                push: record.push.id.0.clone(),
                state: record.state,
            }
        })
        .collect()
}

/// A transaction over the elements that reach a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Push {
    /// Its id.
    pub id: String,
    /// Whose settings.
    pub subscriber: SubscriberId,
    /// Why they changed.
    pub cause: Cause,
    /// How far it is.
    pub state: PushState,
    /// Revision of the settings.
    pub revision: u64,
    /// All of them.
    pub settings: BTreeMap<String, PushedSetting>,
    /// When the change was desired.
    pub desired: Time,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next; absent: it is under way, or not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Time>,
    /// When it came to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// What went wrong in the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Each element's part; empty in listings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements: Vec<Part>,
}

/// One setting within a push.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PushedSetting {
    /// In force until `until`.
    pub value: String,
    /// When it ends by itself; absent: it is what the plan gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// In force after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
}

/// One element's part in a push.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// The element.
    pub element: String,
    /// How far it came.
    pub state: ElementState,
    /// What changed, or would have.
    pub changes: Vec<Change>,
    /// When the push turned to it.
    pub started: Time,
    /// When it was read back holding the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<Time>,
    /// When they were made permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Time>,
    /// What went wrong on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<ElementOutcome> for Part {
    fn from(outcome: ElementOutcome) -> Self {
        Self {
            element: outcome.element,
            state: outcome.state,
            changes: outcome.changes,
            started: outcome.started.into(),
            enforced: outcome.enforced.map(Time::from),
            confirmed: outcome.confirmed.map(Time::from),
            error: outcome.error,
        }
    }
}

impl From<PushRecord> for Push {
    fn from(record: PushRecord) -> Self {
        let settings = record.push.settings;
        Self {
            id: record.push.id.0,
            subscriber: record.push.subscriber,
            cause: record.push.cause,
            state: record.state,
            revision: settings.revision,
            settings: settings
                .values
                .into_iter()
                .map(|(name, setting)| {
                    let pushed = PushedSetting {
                        value: setting.value,
                        until: setting.until.map(Time::from),
                        then: setting.until.map(|_| setting.otherwise),
                    };
                    (name, pushed)
                })
                .collect(),
            desired: record.push.desired_at.into(),
            attempts: record.attempts,
            next: matches!(record.state, PushState::Pending | PushState::Failed | PushState::NeedsRepair)
                .then(|| record.next_at.into()),
            finished: record.finished_at.map(Time::from),
            error: record.error,
            elements: record.elements.into_iter().map(Part::from).collect(),
        }
    }
}
