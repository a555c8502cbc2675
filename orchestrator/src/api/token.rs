//! The bearer token (RFC 6750) that lets someone in from afar.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::ApiError;
use super::listen::DoorError;
use super::metrics::Metrics;

/// Fewest characters: what can be guessed is no token.
const CHARS_MIN: usize = 32;
/// Most bytes of a token file.
const BYTES_MAX: u64 = 4096;

/// A token, kept as a hash: hashes are compared in constant time whatever the lengths.
#[derive(Clone)]
pub(super) struct Token(blake3::Hash);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    pub(super) fn read(path: &Path) -> Result<Self, DoorError> {
        let unusable = |why: String| DoorError::File { what: "token file", path: path.to_owned(), why };
        let file = File::open(path).map_err(|error| unusable(error.to_string()))?;
        let mode = file.metadata().map_err(|error| unusable(error.to_string()))?.mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(unusable(format!(
                "others can read it (mode {mode:o}): `chmod o= {}`",
                path.display()
            )));
        }
        let mut text = String::new();
        file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| unusable(error.to_string()))?;
        let token = text.trim();
        if token.len() < CHARS_MIN || token.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(unusable(format!(
                "expected one token of at least {CHARS_MIN} printable characters, as `openssl rand -hex 32` prints"
            )));
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }

    fn matches(&self, given: &[u8]) -> bool {
        self.0 == blake3::hash(given)
    }
}

#[derive(Clone)]
pub(super) struct Guard {
    pub(super) token: Arc<Token>,
    pub(super) metrics: Metrics,
}

/// Lets a request with the right token through; any other learns nothing but that.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let why = match given {
        Some((_, token)) if guard.token.matches(token) => return next.run(request).await,
        Some(_) => "the token is not the right one",
        None => "a token is needed: give it as `--token-file FILE`",
    };
    guard.metrics.refused.inc();
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, why).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
