//! The API from the asking side: over the Unix socket, or over TLS with a token.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::args::Global;
use super::error::CliError;
use crate::api::model::Problem;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const PORT: u16 = 7444;

/// Where the orchestrator is.
pub(super) struct Client {
    place: Place,
}

enum Place {
    Socket(PathBuf),
    Afar { host: String, port: u16, token: String, tls: TlsConnector },
}

impl Client {
    /// From the global options; reads the token and the certificates, connects to nothing.
    pub(super) fn new(global: &Global) -> Result<Self, CliError> {
        let Some(url) = &global.url else {
            return Ok(Self { place: Place::Socket(global.socket.clone()) });
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| CliError::Usage(format!("`{url}` is no URL: expected https://HOST[:PORT]")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if uri.scheme_str() != Some("https") || host.is_empty() || !matches!(uri.path(), "" | "/") {
            return Err(CliError::Usage(format!("`{url}` cannot be used: expected https://HOST[:PORT]")));
        }
        let needed = |file: &Option<PathBuf>, option: &str, variable: &str| {
            file.clone().ok_or_else(|| CliError::Usage(format!("--url needs {option} FILE (or {variable})")))
        };
        let token_file = needed(&global.token_file, "--token-file", "USHER_TOKEN_FILE")?;
        let ca = needed(&global.ca, "--ca", "USHER_CA")?;
        let token = std::fs::read_to_string(&token_file).map_err(|error| {
            CliError::Failed(format!("cannot read token file {}: {error}", token_file.display()))
        })?;
        Ok(Self {
            place: Place::Afar {
                host,
                port: uri.port_u16().unwrap_or(PORT),
                token: token.trim().to_owned(),
                tls: connector(&ca)?,
            },
        })
    }

    /// Asks for `path` below `/v1/`, as its parts; the parts and the query are encoded here.
    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> Result<Bytes, CliError> {
        let mut target = target_of(path);
        let mut separator = '?';
        for (name, value) in query {
            if let Some(value) = value {
                target.push(separator);
                target.push_str(name);
                target.push('=');
                encode(value, &mut target);
                separator = '&';
            }
        }
        self.request(Method::GET, &target, Bytes::new()).await
    }

    /// Does what `path` names, which takes nothing.
    pub(super) async fn post(&self, path: &[&str]) -> Result<Bytes, CliError> {
        self.request(Method::POST, &target_of(path), Bytes::new()).await
    }

    /// Does `verb` with a value.
    pub(super) async fn send<T: serde::Serialize>(&self, verb: &str, value: &T) -> Result<Bytes, CliError> {
        let body = serde_json::to_vec(value)
            .map_err(|error| CliError::Usage(format!("this cannot be asked: {error}")))?;
        self.request(Method::POST, &format!("/v1/{verb}"), body.into()).await
    }

    async fn request(&self, method: Method, target: &str, body: Bytes) -> Result<Bytes, CliError> {
        let within = |limit, why: String| (limit, why);
        match &self.place {
            Place::Socket(path) => {
                let (limit, why) = within(CONNECT_WITHIN, format!("{} does not answer", path.display()));
                let stream = tokio::time::timeout(limit, UnixStream::connect(path))
                    .await
                    .map_err(|_| CliError::Unreachable(why))?
                    .map_err(|error| CliError::Unreachable(no_socket(path, &error)))?;
                exchange(stream, (method, target, body), "localhost", None).await
            }
            Place::Afar { host, port, token, tls } => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| CliError::Usage(format!("`{host}` is no host name or address")))?;
                let connect = async {
                    let tcp = TcpStream::connect((host.as_str(), *port)).await?;
                    tls.connect(name, tcp).await
                };
                let stream = tokio::time::timeout(CONNECT_WITHIN, connect)
                    .await
                    .map_err(|_| CliError::Unreachable(format!("{host}:{port} does not answer")))?
                    .map_err(|error| {
                        CliError::Unreachable(format!(
                            "cannot reach the orchestrator at {host}:{port}: {error}"
                        ))
                    })?;
                exchange(stream, (method, target, body), host, Some(token)).await
            }
        }
    }
}

async fn exchange<S>(
    stream: S,
    (method, target, body): (Method, &str, Bytes),
    host: &str,
    token: Option<&str>,
) -> Result<Bytes, CliError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken =
        |error: &dyn std::fmt::Display| CliError::Failed(format!("the orchestrator hung up: {error}"));
    let mut request = Request::builder().method(method).uri(target).header(HOST, host);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if !body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let request = request
        .body(Full::new(body))
        .map_err(|error| CliError::Usage(format!("this cannot be asked: {error}")))?;
    let asking = async {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let driving = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| broken(&error))?
            .to_bytes();
        drop(sender);
        driving.abort();
        Ok((status, body))
    };
    let (status, body) = tokio::time::timeout(ANSWER_WITHIN, asking).await.map_err(|_| {
        CliError::Unreachable(format!(
            "the orchestrator took longer than {} s to answer",
            ANSWER_WITHIN.as_secs()
        ))
    })??;
    if status.is_success() {
        return Ok(body);
    }
    let message = match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => problem.error,
        Err(_) => format!("the orchestrator answered {status}"),
    };
    Err(match status {
        StatusCode::NOT_FOUND => CliError::NotFound(message),
        StatusCode::BAD_REQUEST => CliError::Usage(message),
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::CONFLICT
        | StatusCode::UNPROCESSABLE_ENTITY => CliError::Refused(message),
        _ => CliError::Failed(message),
    })
}

fn no_socket(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "join the group that owns the socket, or use sudo",
        _ => "is usher-orchestrator running? If its socket is elsewhere: --socket PATH",
    };
    format!("cannot reach the orchestrator at {}: {error}; {remedy}", path.display())
}

fn connector(ca: &Path) -> Result<TlsConnector, CliError> {
    let unusable = |why: String| CliError::Failed(format!("cannot use --ca {}: {why}", ca.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unusable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn target_of(path: &[&str]) -> String {
    let mut target = String::from("/v1");
    for part in path {
        target.push('/');
        encode(part, &mut target);
    }
    target
}

/// Percent-encodes what is not unreserved (RFC 3986 section 2.3).
fn encode(text: &str, into: &mut String) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_spaces_and_accents_stay_one_part_of_a_path() {
        let mut text = String::new();
        encode("a/b é?&=%", &mut text);
        assert_eq!(text, "a%2Fb%20%C3%A9%3F%26%3D%25");
    }
}
