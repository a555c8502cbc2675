//! The uplift report: what messages brought, read from the decisions that the ledger keeps.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use usher_models::units::Micros;

use super::ApiState;
use super::error::ApiError;
use super::routes::{Answer, read};
use crate::uplift::report::{Question, Reader, Report};

/// Newest decisions that are looked at: what can be read within the time a request has, many times over.
const DECISIONS_MAX: usize = 200_000;
/// How long after a decision a tap is its, seconds.
const CREDIT_S: std::ops::RangeInclusive<u64> = 1..=31 * 86_400;
const CREDIT_S_DEFAULT: u64 = 86_400;

/// What may be asked.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    since: Option<jiff::Timestamp>,
    policy: Option<String>,
    credit_s: Option<u64>,
}

pub(super) async fn uplift(
    State(state): State<ApiState>,
    query: Result<Query<Asked>, QueryRejection>,
) -> Answer<Report> {
    let Query(asked) = query.map_err(|error| ApiError::bad(error.body_text()))?;
    let credit_s = asked.credit_s.unwrap_or(CREDIT_S_DEFAULT);
    if !CREDIT_S.contains(&credit_s) {
        return Err(ApiError::bad("a tap is credited for 1 second to 31 days after its decision"));
    }
    let since = asked.since.map_or(Micros::new(0), |since| Micros::new(since.as_microsecond()));
    let policy = asked.policy.clone();
    let question = Question { policy, credit: Duration::from_secs(credit_s), now: Micros::now() };
    let report = read(&state, move |ledger| {
        let mut reader = Reader::new(question);
        let cut_short = ledger.choices(since, DECISIONS_MAX, |choice| reader.read(choice))?;
        Ok(reader.report(cut_short, &ledger.learned()?.unwrap_or_default()))
    });
    let report = report.await?;
    match asked.policy {
        Some(policy) if !report.policies.contains_key(&policy) => {
            let known: Vec<&str> = report.policies.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message =
                format!("no decision of policy `{policy}` in that time: there are those of {known}");
            Err(ApiError::new(StatusCode::NOT_FOUND, message))
        }
        _ => Ok(Json(report)),
    }
}
