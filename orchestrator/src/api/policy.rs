//! The policy in force: what it is, another one on trial, its confirmation; and the days recorded under it.

use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;

use super::error::ApiError;
use super::model::{ApplyRequest, FilePolicy, OnTrial, Page, PolicySource, PolicyStanding};
use super::routes::{Answer, ask, read};
use super::{ApiState, Ask, Refused};
use crate::days::{self, DayFile};
use crate::policy::{ActionKind, Policy};

/// How long a policy may be on trial, seconds.
const TRIAL_S: std::ops::RangeInclusive<u64> = 1..=86_400;

pub(super) async fn policy(State(state): State<ApiState>) -> Answer<PolicyStanding> {
    Ok(Json(standing(&state, true).await?))
}

/// What is in force and what the file says; with the file's text where it is asked for.
pub(super) async fn standing(state: &ApiState, with_text: bool) -> Result<PolicyStanding, ApiError> {
    let path = state.live.policy_file();
    let file = tokio::task::spawn_blocking(move || file(path, with_text)).await;
    let file = file.map_err(|_| ApiError::busy())?;
    let (confirmed, on_trial) = read(state, crate::ledger::Ledger::policies).await?;
    let source = match (&confirmed, &on_trial) {
        (_, Some(_)) => PolicySource::Trial,
        (Some(_), None) => PolicySource::Applied,
        (None, None) => PolicySource::File,
    };
    let applied = on_trial.or(confirmed);
    Ok(PolicyStanding {
        revision: state.live.about().policy,
        source,
        name: applied.as_ref().map(|applied| applied.name.clone()),
        applied: applied.as_ref().map(|applied| applied.at.into()),
        confirm_by: applied.and_then(|applied| applied.confirm_by).map(Into::into),
        file,
    })
}

fn file(path: PathBuf, with_text: bool) -> FilePolicy {
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot be read: {error}"));
    let name = path.display().to_string();
    let parsed = text
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|text| Policy::parse(&name, text).map_err(|mistakes| mistakes.to_string()));
    let (revision, problem) = match parsed {
        Ok(policy) => (Some(policy.revision().to_owned()), None),
        Err(problem) => (None, Some(problem)),
    };
    FilePolicy { path, revision, problem, text: text.ok().filter(|_| with_text) }
}

pub(super) async fn apply(
    State(state): State<ApiState>,
    body: Result<Json<ApplyRequest>, JsonRejection>,
) -> Answer<OnTrial> {
    let Json(request) = body.map_err(|error| ApiError::new(error.status(), error.body_text()))?;
    if !TRIAL_S.contains(&request.confirm_within_s) {
        return Err(ApiError::bad("a policy is on trial for 1 second to 1 day"));
    }
    let parsed = tokio::task::spawn_blocking(move || Policy::parse(&request.name, &request.policy)).await;
    let policy = parsed.map_err(|_| ApiError::busy())?.map_err(|mistakes| unfit(mistakes.to_string()))?;
    let speaks = |policy: &Policy| {
        policy.actions().values().any(|action| matches!(action.kind, ActionKind::Say { .. }))
    };
    if speaks(&policy) && !state.live.has_advice() {
        return Err(unfit(
            "it has an action that says something, and the configuration has no section `advice`",
        ));
    }
    let revision = policy.revision().to_owned();
    let confirm_within = Duration::from_secs(request.confirm_within_s);
    let policy = Box::new(policy);
    let applied = ask(&state, |answer| Ask::Apply { policy, confirm_within, answer }).await?;
    let confirm_by = applied.map_err(refusal)?.into();
    Ok(Json(OnTrial { revision, confirm_by }))
}

pub(super) async fn confirm(State(state): State<ApiState>) -> Answer<PolicyStanding> {
    ask(&state, |answer| Ask::Confirm { answer }).await?.map_err(refusal)?;
    Ok(Json(standing(&state, false).await?))
}

pub(super) async fn revert(State(state): State<ApiState>) -> Answer<PolicyStanding> {
    ask(&state, |answer| Ask::Revert { answer }).await?.map_err(refusal)?;
    Ok(Json(standing(&state, false).await?))
}

pub(super) async fn recorded(State(state): State<ApiState>) -> Answer<Page<DayFile>> {
    let Some(dir) = state.live.days() else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "no day is recorded: give the configuration a section `record: {dir: DIR}`",
        ));
    };
    let listed = tokio::task::spawn_blocking(move || days::listed(&dir)).await;
    let items = listed.map_err(|_| ApiError::busy())?;
    let items = items.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("recorded days cannot be listed: {error}"))
    })?;
    Ok(Json(Page { items, next: None }))
}

fn unfit(why: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, why)
}

fn refusal(refused: Refused) -> ApiError {
    match refused {
        Refused::Mistakes(mistakes) => unfit(mistakes.to_string()),
        Refused::InForce | Refused::NotOnTrial => ApiError::new(StatusCode::CONFLICT, refused.to_string()),
    }
}
