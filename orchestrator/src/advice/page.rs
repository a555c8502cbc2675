//! The page a link opens: what is offered, a button to accept and one to say no, and a way to be left alone. No script, no cookie, nothing fetched from elsewhere.
//!
//! `GET` changes nothing, so that link previews and scanners accept nothing on anybody's behalf. `POST` accepts once, or with
//! `answer=no` declines, or with `answer=stop` ends all messages, for which the link need not be open any more.
//! Links that are not authentic are answered here and never reach the engine. Refuses to show who the offer is for.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{mpsc, oneshot};
use usher_models::units::Micros;

use super::metrics::LinkResult;
use super::{Ask, LinkError, Links, Metrics, Offer, Tapped};
use crate::engine::io::DecisionId;

/// The engine answers within this, or the person is asked to try again. What was committed stays committed.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// An answer is a few bytes; browsers may still add some.
const BODY_MAX: usize = 1024;

const STYLE: &str = include_str!("../../templates/tap.css");

/// `style-src` names the one style by its hash, so that not even an injected style would apply.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let sha256 = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| STANDARD.encode(suite.common.hash_provider.hash(STYLE.as_bytes())))
        .unwrap_or_default();
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{sha256}'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

/// What the page needs.
#[derive(Debug, Clone)]
pub struct PageState {
    /// Opens the links it signed.
    pub links: Arc<Links>,
    /// To the engine task.
    pub asks: mpsc::Sender<Ask>,
    /// Counts what happens.
    pub metrics: Metrics,
}

/// The routes of the page: `/t/{token}`, and one sentence for everything else.
pub fn router(state: PageState) -> Router {
    Router::new()
        .route("/t/{token}", get(show).post(accept).fallback(wrong_method))
        .fallback(async || notice(StatusCode::NOT_FOUND, "Nothing here", INCOMPLETE))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(quiet_headers))
        .with_state(state)
}

const INCOMPLETE: &str = "This link is incomplete. Please open it again from the message itself.";
const FORGED: &str = "This link was not sent by us, so it was not followed.";
const EXPIRED: &str = "This offer has ended. Nothing was changed, and nothing is charged.";
const UNKNOWN: &str = "We no longer have this offer. Nothing was changed, and nothing is charged.";
const DONE: &str = "It is being switched on now. You can close this page.";
const DECLINED: &str = "You said no to this. Nothing was changed, and we will not offer it again soon.";
const STOPPED: &str = "We will not write to you any more. What is switched on stays on until its time is up.";
const ALREADY: &str = "You have already accepted this. There is nothing more to do.";
const LATER: &str = "We could not answer just now. Please try again in a minute.";

async fn show(State(state): State<PageState>, token: Result<Path<String>, BadPath>) -> Response {
    let now = Micros::now();
    let decision = match open(&state, token, now) {
        Ok(decision) => decision,
        Err(Closed::Expired(decision)) => return ended(&state, decision).await,
        Err(Closed::Refused(response)) => return *response,
    };
    match look(&state, decision).await {
        Err(Unanswered) => busy(&state),
        Ok(None) => unknown(&state),
        Ok(Some(Offer { tapped: Some(_), .. })) => already(&state),
        Ok(Some(Offer { declined: Some(_), .. })) => declined(&state),
        Ok(Some(offer)) if offer.expires <= now => expired(&state),
        Ok(Some(offer)) => {
            state.metrics.link(LinkResult::shown);
            let remaining = in_words(offer.expires.since(now));
            let lasts = in_words(offer.lasts);
            let lasts = if offer.lasts.is_zero() { "" } else { &lasts };
            let page = Page {
                title: "An offer for you",
                style: STYLE,
                sentence: "",
                offer: Some(OfferShown { text: &offer.text, lasts, remaining: &remaining }),
            };
            render(StatusCode::OK, &page)
        }
    }
}

async fn accept(
    State(state): State<PageState>,
    token: Result<Path<String>, BadPath>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return notice(rejection.status(), "Nothing here", INCOMPLETE),
    };
    let Some(reply) = Reply::of(&body) else {
        return notice(StatusCode::BAD_REQUEST, "Nothing here", INCOMPLETE);
    };
    let now = Micros::now();
    let decision = match open(&state, token, now) {
        Ok(decision) => decision,
        Err(Closed::Expired(decision)) if reply == Reply::Stop => decision,
        Err(Closed::Expired(decision)) => return ended(&state, decision).await,
        Err(Closed::Refused(response)) => return *response,
    };
    let tapped = match reply {
        Reply::Yes => ask(&state, |answer| Ask::Tap { decision, at: now, answer }).await,
        Reply::No => ask(&state, |answer| Ask::Decline { decision, at: now, answer }).await,
        Reply::Stop => return stop(&state, decision).await,
    };
    match tapped {
        Ok(Tapped::Accepted) => {
            state.metrics.link(LinkResult::accepted);
            notice(StatusCode::OK, "Done", DONE)
        }
        Ok(Tapped::Declined) => declined(&state),
        Ok(Tapped::Already) => already(&state),
        Ok(Tapped::Expired) => expired(&state),
        Ok(Tapped::Unknown) => unknown(&state),
        Ok(Tapped::Stopped) | Err(Unanswered) => busy(&state),
    }
}

/// What the person answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Yes,
    No,
    Stop,
}

impl Reply {
    /// What a form sends; nothing at all is the tap of a page that knew one button only.
    fn of(body: &[u8]) -> Option<Self> {
        match body.trim_ascii() {
            b"answer=no" => Some(Self::No),
            b"answer=stop" => Some(Self::Stop),
            body if body.starts_with(b"answer=") && body != b"answer=yes" => None,
            _ => Some(Self::Yes),
        }
    }
}

async fn stop(state: &PageState, decision: DecisionId) -> Response {
    match ask(state, |answer| Ask::Stop { decision, answer }).await {
        Err(Unanswered) => busy(state),
        Ok(false) => unknown(state),
        Ok(true) => {
            state.metrics.link(LinkResult::stopped);
            notice(StatusCode::OK, "Understood", STOPPED)
        }
    }
}

async fn wrong_method() -> Response {
    let mut response = notice(StatusCode::METHOD_NOT_ALLOWED, "Nothing here", INCOMPLETE);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    response
}

/// Why a link did not open.
enum Closed {
    /// Authentic but late: whoever accepted in time is told so rather than "too late".
    Expired(DecisionId),
    /// Nothing to do with us; the answer to give.
    Refused(Box<Response>),
}

type BadPath = PathRejection;

fn open(state: &PageState, token: Result<Path<String>, BadPath>, now: Micros) -> Result<DecisionId, Closed> {
    let opened = match token {
        Ok(Path(token)) => state.links.open(&token, now),
        Err(_) => Err(LinkError::Malformed),
    };
    opened.map_err(|error| match error {
        LinkError::Expired { decision, .. } => Closed::Expired(decision),
        LinkError::Forged => {
            state.metrics.link(LinkResult::forged);
            Closed::Refused(Box::new(notice(StatusCode::FORBIDDEN, "Not our link", FORGED)))
        }
        LinkError::Malformed => {
            state.metrics.link(LinkResult::malformed);
            Closed::Refused(Box::new(notice(StatusCode::BAD_REQUEST, "Incomplete link", INCOMPLETE)))
        }
    })
}

async fn ended(state: &PageState, decision: DecisionId) -> Response {
    match look(state, decision).await {
        Ok(Some(Offer { tapped: Some(_), .. })) => already(state),
        Ok(Some(Offer { declined: Some(_), .. })) => declined(state),
        _ => expired(state),
    }
}

fn already(state: &PageState) -> Response {
    state.metrics.link(LinkResult::already);
    notice(StatusCode::OK, "Already done", ALREADY)
}

fn declined(state: &PageState) -> Response {
    state.metrics.link(LinkResult::declined);
    notice(StatusCode::OK, "All right", DECLINED)
}

fn expired(state: &PageState) -> Response {
    state.metrics.link(LinkResult::expired);
    notice(StatusCode::GONE, "Too late", EXPIRED)
}

fn unknown(state: &PageState) -> Response {
    state.metrics.link(LinkResult::unknown);
    notice(StatusCode::NOT_FOUND, "No such offer", UNKNOWN)
}

fn busy(state: &PageState) -> Response {
    state.metrics.link(LinkResult::busy);
    let mut response = notice(StatusCode::SERVICE_UNAVAILABLE, "One moment", LATER);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    response
}

/// The engine task is stopped, behind or gone.
struct Unanswered;

async fn look(state: &PageState, decision: DecisionId) -> Result<Option<Offer>, Unanswered> {
    ask(state, |answer| Ask::Look { decision, answer }).await
}

async fn ask<T>(state: &PageState, of: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Unanswered> {
    let (answer, answered) = oneshot::channel();
    // A full channel is an answer too: waiting in it would only make the queue invisible.
    state.asks.try_send(of(answer)).map_err(|_| Unanswered)?;
    match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Unanswered),
    }
}

#[derive(Template)]
#[template(path = "tap.html")]
struct Page<'a> {
    title: &'a str,
    style: &'a str,
    sentence: &'a str,
    offer: Option<OfferShown<'a>>,
}

struct OfferShown<'a> {
    text: &'a str,
    lasts: &'a str,
    remaining: &'a str,
}

fn notice(status: StatusCode, title: &str, sentence: &str) -> Response {
    render(status, &Page { title, style: STYLE, sentence, offer: None })
}

fn render(status: StatusCode, page: &Page<'_>) -> Response {
    match page.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What is left, roughly: nobody abroad wants to convert a time zone.
fn in_words(left: Duration) -> String {
    let minutes = left.as_secs().div_ceil(60);
    let count = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match minutes {
        0..=90 => count(minutes.max(1), "minute"),
        91..=2880 => count(minutes.div_euclid(60), "hour"),
        _ => count(minutes / 1440, "day"),
    }
}

async fn quiet_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert("x-robots-tag", HeaderValue::from_static("noindex, nofollow"));
    response
}
