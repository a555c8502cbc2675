//! The routes below `/v1`. Every listing is bounded; every answer, errors included, is JSON.

use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::oneshot;
use usher_models::units::{Micros, SubscriberId};

use super::error::ApiError;
use super::metrics::RequestLabels;
use super::model::{
    Agent, App, Decision, Element, Guard, LastBatch, LastPart, Lint, LintRequest, Message, Page, Push,
    Session, SettingRow, Status, Subscriber, SubscriberDetail, Switched, Told, Usage, settings_of,
};
use super::{ApiState, Ask, LiveElement, explain, lint, policy, uplift};
use crate::elements::{PushId, PushState};
use crate::engine::io::{DecisionId, DirectionName};
use crate::ledger::pushes::PushFilter;
use crate::ledger::{Ledger, LedgerError};

/// Items on a page unless asked otherwise.
const LIMIT_DEFAULT: u32 = 100;
/// Most items on a page.
const LIMIT_MAX: u32 = 1000;
/// Newest items of each kind in the description of one subscriber.
const NEWEST: u32 = 10;
/// Longest request body: a policy and its profiles.
const BODY_MAX: usize = 16 * 1024 * 1024;
/// A request is answered within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

/// The API's routes, without doors.
pub fn router(state: ApiState) -> Router {
    let v1 = Router::new()
        .route("/health", get(async || Json(serde_json::json!({"ok": true}))))
        .route("/status", get(status))
        .route("/stop", post(async |state| switch(state, true).await))
        .route("/resume", post(async |state| switch(state, false).await))
        .route("/lint", post(check))
        .route(
            "/subscribers/{id}/consent/withdraw",
            post(async |state, path| consent(state, path, false).await),
        )
        .route("/subscribers/{id}/consent/give", post(async |state, path| consent(state, path, true).await))
        .route("/subscribers/{id}/complaint", post(complaint))
        .route("/policy", get(policy::policy))
        .route("/policy/apply", post(policy::apply))
        .route("/policy/confirm", post(policy::confirm))
        .route("/policy/revert", post(policy::revert))
        .route("/days", get(policy::recorded))
        .route("/uplift", get(uplift::uplift))
        .route("/subscribers", get(subscribers))
        .route("/subscribers/{id}", get(subscriber))
        .route("/explain/{id}", get(explained))
        .route("/sessions", get(sessions))
        .route("/settings", get(settings))
        .route("/agents", get(agents))
        .route("/agents/{id}", get(agent))
        .route("/elements", get(elements))
        .route("/elements/{id}", get(element))
        .route("/usage", get(usage))
        .route("/decisions", get(decisions))
        .route("/decisions/{id}", get(decision))
        .route("/messages", get(messages))
        .route("/pushes", get(pushes))
        .route("/pushes/{id}", get(push));
    Router::new()
        .nest("/v1", v1)
        .fallback(async |request: Request| {
            ApiError::new(StatusCode::NOT_FOUND, format!("no such thing here: {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let message = format!("{} is not possible on {}", request.method(), request.uri().path());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(state.clone(), bound_and_count))
        .with_state(state)
}

async fn bound_and_count(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    // Said to be too long: not even begun with.
    let response = if request.body().size_hint().lower() > BODY_MAX as u64 {
        let message = format!("the request is longer than {} MiB", BODY_MAX >> 20);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).into_response()
    } else {
        match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::busy().into_response(),
        }
    };
    state.metrics.requests.get_or_create(&RequestLabels { code: response.status().as_u16() }).inc();
    response
}

/// What a listing may be asked for. Not every listing knows every filter; one it does not know is refused.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    subscriber: Option<String>,
    agent: Option<String>,
    state: Option<String>,
    at: Option<jiff::Timestamp>,
    limit: Option<u32>,
    after: Option<String>,
}

impl Wanted {
    /// Checks the query of a listing that knows the filters `known`.
    fn of(query: Result<Query<Self>, QueryRejection>, known: &[&str]) -> Result<Self, ApiError> {
        let Query(wanted) = query.map_err(|error| ApiError::bad(error.body_text()))?;
        let given = [
            ("subscriber", wanted.subscriber.is_some()),
            ("agent", wanted.agent.is_some()),
            ("state", wanted.state.is_some()),
            ("at", wanted.at.is_some()),
            ("after", wanted.after.is_some()),
        ];
        for (name, is_given) in given {
            if is_given && !known.contains(&name) {
                return Err(ApiError::bad(format!(
                    "this listing has no filter `{name}`: it knows {}",
                    known.join(", ")
                )));
            }
        }
        if wanted.limit.is_some_and(|limit| limit == 0 || limit > LIMIT_MAX) {
            return Err(ApiError::bad(format!("limit must be 1 to {LIMIT_MAX}")));
        }
        Ok(wanted)
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(LIMIT_DEFAULT)
    }

    fn subscriber(&self) -> Option<SubscriberId> {
        self.subscriber.clone().map(SubscriberId)
    }
}

type Query_ = Result<Query<Wanted>, QueryRejection>;
type Path_ = Result<Path<String>, PathRejection>;

fn id(path: Path_) -> Result<String, ApiError> {
    path.map(|Path(id)| id).map_err(|error| ApiError::bad(error.body_text()))
}

/// Cuts one item more than a page holds off again; what is left ends with the cursor of the next page.
fn page<T>(mut items: Vec<T>, limit: u32, cursor: impl FnOnce(&T) -> String) -> Json<Page<T>> {
    let limit = limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(cursor) } else { None };
    Json(Page { items, next })
}

pub(super) async fn read<T: Send + 'static>(
    state: &ApiState,
    work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, ApiError> {
    Ok(state.ledger.with(work).await?)
}

async fn status(State(state): State<ApiState>) -> Answer<Status> {
    let about = state.live.about();
    let agents = state.live.agents();
    let guard = ask(&state, |answer| Ask::Guard { answer }).await?;
    let (overview, stopped) = read(&state, |ledger| Ok((ledger.overview()?, ledger.stopped()?))).await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: about.started.into(),
        stopped,
        guard: (about.mode == "canary" || guard.state.rolled_back.is_some()).then(|| Guard::from(guard)),
        mode: about.mode,
        policy: about.policy,
        standing: policy::standing(&state, false).await?,
        subscribers: state.live.subscribers(),
        sessions_open: overview.sessions_open,
        agents_connected: agents.iter().filter(|agent| agent.uplink.is_some()).count(),
        agents_allowed: agents.len(),
        pushes_pending: overview.pushes_pending,
        pushes_needing_repair: overview.pushes_needing_repair,
        messages_pending: overview.messages_pending,
    }))
}

async fn switch(State(state): State<ApiState>, stop: bool) -> Answer<Switched> {
    let changed = ask(&state, |answer| Ask::Stop { stop, answer }).await?;
    Ok(Json(Switched { stopped: stop, changed }))
}

/// A subscriber by id, or by a key as sessions have it.
fn somebody(state: &ApiState, path: Path_) -> Result<SubscriberId, ApiError> {
    let name = id(path)?;
    let by_id = SubscriberId(name.clone());
    if state.live.profile(&by_id).is_some() {
        return Ok(by_id);
    }
    state.live.of_key(&name).ok_or_else(|| ApiError::not_found("subscriber", &name))
}

async fn consent(State(state): State<ApiState>, path: Path_, advice: bool) -> Answer<Told> {
    let subscriber = somebody(&state, path)?;
    let who = subscriber.clone();
    let known = ask(&state, |answer| Ask::Consent { subscriber: who, advice, answer }).await?;
    if known { Ok(Json(Told { subscriber })) } else { Err(ApiError::not_found("subscriber", &subscriber.0)) }
}

async fn complaint(State(state): State<ApiState>, path: Path_) -> Answer<Told> {
    let subscriber = somebody(&state, path)?;
    let who = subscriber.clone();
    let known = ask(&state, |answer| Ask::Complaint { subscriber: who, answer }).await?;
    if known { Ok(Json(Told { subscriber })) } else { Err(ApiError::not_found("subscriber", &subscriber.0)) }
}

pub(super) async fn ask<T>(
    state: &ApiState,
    of: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Result<T, ApiError> {
    let (answer, answered) = oneshot::channel();
    state.asks.send(of(answer)).await.map_err(|_| ApiError::busy())?;
    answered.await.map_err(|_| ApiError::busy())
}

async fn check(body: Result<Json<LintRequest>, JsonRejection>) -> Answer<Lint> {
    let Json(request) = body.map_err(|error| ApiError::new(error.status(), error.body_text()))?;
    let linted = tokio::task::spawn_blocking(move || lint::lint(&request)).await;
    linted.map(Json).map_err(|_| ApiError::busy())
}

async fn subscribers(State(state): State<ApiState>, query: Query_) -> Answer<Page<Subscriber>> {
    let wanted = Wanted::of(query, &["after", "limit"])?;
    let after = wanted.after.clone().map(SubscriberId);
    let items = state
        .live
        .profiles_after(after.as_ref(), wanted.limit() as usize + 1)
        .iter()
        .map(Subscriber::from)
        .collect();
    Ok(page(items, wanted.limit(), |subscriber| subscriber.id.0.clone()))
}

async fn subscriber(State(state): State<ApiState>, path: Path_) -> Answer<SubscriberDetail> {
    let id = SubscriberId(id(path)?);
    let profile = state.live.profile(&id).ok_or_else(|| ApiError::not_found("subscriber", &id.0))?;
    let (subscriber, keys) = (Subscriber::from(&profile), profile.keys.into_iter().collect());
    let detail = read(&state, move |ledger| {
        let pushes = ledger.pushes(&filter(Some(id.clone()), None), NEWEST as usize)?;
        Ok(SubscriberDetail {
            subscriber,
            keys,
            sessions: ledger.sessions_of(&id)?.into_iter().map(Session::from).collect(),
            settings: settings_now(ledger, &id)?,
            usage: ledger.usage_of(Some(&id))?.into_iter().map(Usage::from).collect(),
            apps: ledger.apps_of(&id)?.into_iter().map(App::from).collect(),
            decisions: ledger.decisions(Some(&id), NEWEST)?.into_iter().map(Decision::from).collect(),
            messages: ledger.messages(Some(&id), NEWEST)?.into_iter().map(Message::from).collect(),
            pushes: pushes.into_iter().map(Push::from).collect(),
        })
    });
    Ok(Json(detail.await?))
}

async fn explained(
    State(state): State<ApiState>,
    path: Path_,
    query: Query_,
) -> Answer<super::model::Explanation> {
    let id = SubscriberId(id(path)?);
    let wanted = Wanted::of(query, &["at", "limit"])?;
    let profile = state.live.profile(&id).ok_or_else(|| ApiError::not_found("subscriber", &id.0))?;
    let limit = wanted.limit.unwrap_or(NEWEST);
    let seen = ask(&state, |answer| Ask::Look { subscriber: id, answer }).await?.unwrap_or_default();
    let explanation =
        read(&state, move |ledger| explain::explain(ledger, &profile, seen, wanted.at, limit, Micros::now()));
    Ok(Json(explanation.await?))
}

async fn sessions(State(state): State<ApiState>, query: Query_) -> Answer<Page<Session>> {
    let wanted = Wanted::of(query, &["subscriber", "agent", "after", "limit"])?;
    let limit = wanted.limit();
    let after = match &wanted.after {
        Some(after) => after
            .split_once('/')
            .map(|(agent, session)| (agent.to_owned(), session.to_owned()))
            .ok_or_else(|| ApiError::bad("`after` must be the `next` of the page before"))?,
        None => (String::new(), String::new()),
    };
    let rows = read(&state, move |ledger| {
        if let Some(subscriber) = wanted.subscriber() {
            return ledger.sessions_of(&subscriber);
        }
        if let Some(agent) = &wanted.agent {
            return ledger.sessions_on(agent);
        }
        ledger.open_sessions_after((&after.0, &after.1), limit + 1)
    });
    let items = rows.await?.into_iter().map(Session::from).collect();
    Ok(page(items, limit, |session: &Session| format!("{}/{}", session.agent, session.session)))
}

async fn settings(State(state): State<ApiState>, query: Query_) -> Answer<Page<SettingRow>> {
    let wanted = Wanted::of(query, &["subscriber", "after", "limit"])?;
    let after = wanted.after.clone().map(SubscriberId);
    let limit = wanted.limit() as usize;
    let profiles = match wanted.subscriber() {
        Some(id) => {
            vec![state.live.profile(&id).ok_or_else(|| ApiError::not_found("subscriber", &id.0))?]
        }
        None => state.live.profiles_after(after.as_ref(), limit + 1),
    };
    let ids: Vec<SubscriberId> = profiles.into_iter().map(|profile| profile.id).collect();
    let page = read(&state, move |ledger| {
        let mut items: Vec<SettingRow> = Vec::new();
        for id in ids.iter().take(limit) {
            items.extend(settings_now(ledger, id)?);
        }
        // `limit` counts subscribers here, for the settings of one stay together.
        Ok(Page { items, next: ids.get(limit).map(|_| ids[limit - 1].0.clone()) })
    });
    Ok(Json(page.await?))
}

async fn agents(State(state): State<ApiState>, query: Query_) -> Answer<Page<Agent>> {
    let wanted = Wanted::of(query, &["limit"])?;
    let items = all_agents(&state).await?;
    Ok(page(items, wanted.limit(), |agent| agent.name.clone()))
}

async fn agent(State(state): State<ApiState>, path: Path_) -> Answer<Agent> {
    let name = id(path)?;
    let found = all_agents(&state).await?.into_iter().find(|agent| agent.name == name);
    found.map(Json).ok_or_else(|| ApiError::not_found("agent", &name))
}

async fn all_agents(state: &ApiState) -> Result<Vec<Agent>, ApiError> {
    let live = state.live.agents();
    read(state, move |ledger| {
        let mut seen = ledger.agents()?;
        let mut agents = Vec::new();
        for agent in live {
            let last = seen.iter().position(|row| row.agent == agent.name).map(|at| seen.swap_remove(at));
            agents.push(Agent {
                connected: agent.uplink.is_some(),
                since: agent.uplink.as_ref().map(|uplink| uplink.since.into()),
                version: agent.uplink.as_ref().map(|uplink| uplink.version.clone()),
                dry_run: agent.uplink.as_ref().map(|uplink| uplink.dry_run),
                last_batch: last.map(|row| LastBatch {
                    boot: row.boot,
                    sequence: row.sequence,
                    end: row.end.into(),
                    applied: row.applied.into(),
                }),
                sessions_open: ledger.sessions_open_on(&agent.name)?,
                name: agent.name,
            });
        }
        Ok(agents)
    })
    .await
}

async fn elements(State(state): State<ApiState>, query: Query_) -> Answer<Page<Element>> {
    let wanted = Wanted::of(query, &["limit"])?;
    let live = state.live.elements();
    let items = read(&state, move |ledger| live.into_iter().map(|one| with_last(ledger, one)).collect());
    Ok(page(items.await?, wanted.limit(), |element: &Element| element.name.clone()))
}

async fn element(State(state): State<ApiState>, path: Path_) -> Answer<Element> {
    let name = id(path)?;
    let live = state.live.elements().into_iter().find(|element| element.name == name);
    let live = live.ok_or_else(|| ApiError::not_found("element", &name))?;
    Ok(Json(read(&state, move |ledger| with_last(ledger, live)).await?))
}

fn with_last(ledger: &Ledger, element: LiveElement) -> Result<Element, LedgerError> {
    let last = ledger.last_part_of(&element.name)?.map(|(push, part)| LastPart {
        push: push.0,
        state: part.state,
        at: part.started.into(),
        error: part.error,
    });
    Ok(Element {
        kind: element.name.split(':').next().unwrap_or_default().to_owned(),
        name: element.name,
        address: element.address,
        settings: element.settings,
        dry_run: element.dry_run,
        last,
    })
}

async fn usage(State(state): State<ApiState>, query: Query_) -> Answer<Page<Usage>> {
    let wanted = Wanted::of(query, &["subscriber", "after", "limit"])?;
    let limit = wanted.limit();
    let mut after = wanted.after.as_deref().unwrap_or("//").rsplitn(3, '/').map(str::to_owned);
    let (Some(direction), Some(class), Some(subscriber)) = (after.next(), after.next(), after.next()) else {
        return Err(ApiError::bad("`after` must be the `next` of the page before"));
    };
    let rows = read(&state, move |ledger| match wanted.subscriber() {
        Some(subscriber) => ledger.usage_of(Some(&subscriber)),
        None => ledger.usage_after((&subscriber, &class, &direction), limit + 1),
    });
    let items = rows.await?.into_iter().map(Usage::from).collect();
    Ok(page(items, limit, |usage: &Usage| {
        let holder =
            crate::ledger::holder(usage.subscriber.as_ref(), usage.anonymous.as_deref().unwrap_or_default());
        let direction = match usage.direction {
            DirectionName::Up => "up",
            DirectionName::Down => "down",
        };
        format!("{holder}/{}/{direction}", usage.class)
    }))
}

async fn decisions(State(state): State<ApiState>, query: Query_) -> Answer<Page<Decision>> {
    let wanted = Wanted::of(query, &["subscriber", "limit"])?;
    let rows =
        read(&state, move |ledger| ledger.decisions(wanted.subscriber().as_ref(), wanted.limit())).await?;
    Ok(newest(rows.into_iter().map(Decision::from)))
}

async fn decision(State(state): State<ApiState>, path: Path_) -> Answer<Decision> {
    let id = DecisionId(id(path)?);
    let found = read(&state, {
        let id = id.clone();
        move |ledger| match ledger.decision(&id)? {
            Some(row) => explain::with_push(ledger, row).map(Some),
            None => Ok(None),
        }
    });
    found.await?.map(Json).ok_or_else(|| ApiError::not_found("decision", &id.0))
}

async fn messages(State(state): State<ApiState>, query: Query_) -> Answer<Page<Message>> {
    let wanted = Wanted::of(query, &["subscriber", "limit"])?;
    let rows =
        read(&state, move |ledger| ledger.messages(wanted.subscriber().as_ref(), wanted.limit())).await?;
    Ok(newest(rows.into_iter().map(Message::from)))
}

async fn pushes(State(state): State<ApiState>, query: Query_) -> Answer<Page<Push>> {
    let wanted = Wanted::of(query, &["subscriber", "state", "limit"])?;
    let in_state = match &wanted.state {
        Some(name) => Some(PushState::named(name).ok_or_else(|| {
            let known: Vec<_> = PushState::ALL.into_iter().map(PushState::name).collect();
            ApiError::bad(format!("unknown push state `{name}`: expected one of {}", known.join(", ")))
        })?),
        None => None,
    };
    let rows = read(&state, move |ledger| {
        ledger.pushes(&filter(wanted.subscriber(), in_state), wanted.limit() as usize)
    });
    Ok(newest(rows.await?.into_iter().map(Push::from)))
}

async fn push(State(state): State<ApiState>, path: Path_) -> Answer<Push> {
    let id = PushId(id(path)?);
    let found = read(&state, {
        let id = id.clone();
        move |ledger| ledger.push(&id)
    });
    found.await?.map(|record| Json(record.into())).ok_or_else(|| ApiError::not_found("push", &id.0))
}

fn newest<T>(items: impl Iterator<Item = T>) -> Json<Page<T>> {
    Json(Page { items: items.collect(), next: None })
}

fn filter(subscriber: Option<SubscriberId>, state: Option<PushState>) -> PushFilter {
    PushFilter { state, subscriber }
}

/// What a subscriber was last desired to have.
pub(super) fn settings_now(ledger: &Ledger, id: &SubscriberId) -> Result<Vec<SettingRow>, LedgerError> {
    let newest = ledger.pushes(&filter(Some(id.clone()), None), 1)?;
    let now = Micros::now();
    Ok(newest.first().map(|record| settings_of(record, now)).unwrap_or_default())
}
