//! Asks partners for stock and price, by HTTP, before the engine makes their offers.
//!
//! One request an offer: `POST url`, `{"partner", "action", "decision"}`; to be answered with `{"in_stock": bool, "price": number}`
//! before the deadline. Whatever else happens is a no with its reason. Refuses to tell whom an offer is for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsConnector;

use crate::engine::io::{AskPartner, LiveOffer};
use crate::engine::partner::ANSWER_WITHIN;
use crate::inputs::Inbox;
use crate::metrics::{Metrics, count};

/// Questions that may wait for their turn; for one more there is no answer.
pub const WAITING_MAX: usize = 256;
/// Questions under way at once.
const AT_ONCE: usize = 32;
/// Longest answer read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// One partner, as configured.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartnerConfig {
    /// `http://` or `https://`, where it answers.
    pub url: String,
    /// Certificates (PEM) of the authorities that vouch for an `https` url.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// How long it may take; no longer than the engine waits.
    #[serde(
        default = "two_seconds",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required"
    )]
    pub deadline: Duration,
}

const fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

/// Why a partner cannot be asked as configured.
#[derive(Debug, thiserror::Error)]
pub enum PartnerError {
    /// The address is of no use.
    #[error("partners.{name}.url: `{url}` is no http:// or https:// address")]
    Url {
        /// The partner.
        name: String,
        /// What stands there.
        url: String,
    },
    /// The certificates are of no use.
    #[error("partners.{name}.ca: {why}")]
    Ca {
        /// The partner.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// Everybody who can be asked.
#[derive(Debug)]
pub struct Partners {
    hooks: BTreeMap<String, Arc<Hook>>,
}

struct Hook {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    deadline: Duration,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("uri", &self.uri).finish_non_exhaustive()
    }
}

#[derive(serde::Serialize)]
struct Question<'q> {
    partner: &'q str,
    action: &'q str,
    decision: &'q str,
}

impl Partners {
    /// As configured; what cannot be used shows here.
    pub fn new(config: &BTreeMap<String, PartnerConfig>) -> Result<Self, PartnerError> {
        let mut hooks = BTreeMap::new();
        for (name, partner) in config {
            let wrong = || PartnerError::Url { name: name.clone(), url: partner.url.clone() };
            let uri: Uri = partner.url.parse().map_err(|_| wrong())?;
            let host = uri.host().ok_or_else(wrong)?.to_owned();
            let (port, tls) = match uri.scheme_str() {
                Some("http") => (80, None),
                Some("https") => (443, Some(connector(name, partner.ca.as_deref())?)),
                _ => return Err(wrong()),
            };
            let port = uri.port_u16().unwrap_or(port);
            let hook = Hook { host, port, tls, deadline: partner.deadline.min(ANSWER_WITHIN), uri };
            hooks.insert(name.clone(), Arc::new(hook));
        }
        Ok(Self { hooks })
    }

    /// Asks what it is told to until `stopped` turns true.
    pub async fn run(
        self,
        mut asks: mpsc::Receiver<AskPartner>,
        inbox: Inbox,
        metrics: Metrics,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let ask = tokio::select! {
                ask = asks.recv() => ask,
                () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => return Ok(()),
            };
            let Some(ask) = ask else { return Ok(()) };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
            let (hook, inbox, metrics) =
                (self.hooks.get(&ask.partner).cloned(), inbox.clone(), metrics.clone());
            tokio::spawn(async move {
                let offer = match hook {
                    Some(hook) => hook.ask(&ask).await,
                    None => Err(format!("no hook is configured for the partner `{}`", ask.partner)),
                };
                count(&metrics.partner_answers, if offer.is_ok() { "answered" } else { "none" });
                if let Err(why) = &offer {
                    tracing::warn!(partner = ask.partner, action = ask.action, why, "no live offer");
                }
                let _ = inbox.answered(ask.decision, offer).await;
                drop(place);
            });
        }
    }
}

impl Hook {
    async fn ask(&self, ask: &AskPartner) -> Result<LiveOffer, String> {
        let asking = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
            let tcp = tcp.map_err(|error| format!("cannot reach the partner: {error}"))?;
            match &self.tls {
                None => self.exchange(tcp, ask).await,
                Some(tls) => {
                    let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
                    let stream = tls.connect(name, tcp).await;
                    self.exchange(stream.map_err(|error| format!("cannot reach the partner: {error}"))?, ask)
                        .await
                }
            }
        };
        let late = |_| format!("the partner did not answer within {:?}", self.deadline);
        tokio::time::timeout(self.deadline, asking).await.map_err(late)?
    }

    async fn exchange<S>(&self, stream: S, ask: &AskPartner) -> Result<LiveOffer, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: &dyn std::fmt::Display| format!("the partner hung up: {error}");
        let question = Question { partner: &ask.partner, action: &ask.action, decision: &ask.decision.0 };
        let body = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = Request::post(target)
            .header(HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let driving = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        drop(sender);
        driving.abort();
        if status != StatusCode::OK {
            return Err(format!("the partner answered {status}"));
        }
        let offer: LiveOffer = serde_json::from_slice(&body)
            .map_err(|error| format!("the partner's answer is not {{in_stock, price}}: {error}"))?;
        if offer.price.is_finite() { Ok(offer) } else { Err("the partner's price is no number".to_owned()) }
    }
}

fn connector(name: &str, ca: Option<&Path>) -> Result<TlsConnector, PartnerError> {
    let wrong = |why: String| PartnerError::Ca { name: name.to_owned(), why };
    let ca = ca.ok_or_else(|| wrong("an https url needs the authorities that vouch for it".to_owned()))?;
    let mut roots = rustls::RootCertStore::empty();
    let unusable = |error: &dyn std::fmt::Display| wrong(format!("{}: {error}", ca.display()));
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unusable(&error))? {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use axum::{Json, Router};

    use super::*;
    use crate::engine::io::DecisionId;
    use usher_models::units::Micros;

    /// A partner on this machine, and a hook to it.
    async fn partner(router: Router, deadline: Duration) -> Partners {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/offer", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = PartnerConfig { url, ca: None, deadline };
        Partners::new(&BTreeMap::from([("streamco".to_owned(), config)])).unwrap()
    }

    async fn ask(partners: &Partners) -> Result<LiveOffer, String> {
        let ask = AskPartner {
            decision: DecisionId("d1".into()),
            partner: "streamco".into(),
            action: "swap_addon".into(),
            until: Micros::new(0),
        };
        partners.hooks["streamco"].ask(&ask).await
    }

    #[tokio::test]
    async fn a_partner_is_asked_and_its_answer_taken() {
        let answers = |Json(question): Json<serde_json::Value>| async move {
            assert_eq!(
                question,
                serde_json::json!({"partner": "streamco", "action": "swap_addon", "decision": "d1"})
            );
            Json(serde_json::json!({"in_stock": true, "price": 4.5}))
        };
        let partners = partner(Router::new().route("/offer", post(answers)), Duration::from_secs(5)).await;
        assert_eq!(ask(&partners).await, Ok(LiveOffer { in_stock: true, price: 4.5 }));
    }

    #[tokio::test]
    async fn whatever_else_happens_is_a_no_with_its_reason() {
        let nonsense = Router::new().route("/offer", post(async || "soon"));
        let why = ask(&partner(nonsense, Duration::from_secs(5)).await).await.unwrap_err();
        assert!(why.contains("is not {in_stock, price}"), "{why}");
        let why = ask(&partner(Router::new(), Duration::from_secs(5)).await).await.unwrap_err();
        assert!(why.contains("404"), "{why}");
        let never = Router::new().route("/offer", post(std::future::pending::<String>));
        let why = ask(&partner(never, Duration::from_millis(50)).await).await.unwrap_err();
        assert!(why.contains("did not answer within 50ms"), "{why}");
    }

    #[test]
    fn a_hook_that_cannot_be_used_is_refused_by_name() {
        for (url, ca, message) in [
            ("streamco", None, "partners.streamco.url: `streamco` is no http"),
            ("ftp://streamco/x", None, "partners.streamco.url"),
            ("https://streamco/x", None, "partners.streamco.ca: an https url needs"),
            ("https://streamco/x", Some("/nowhere.pem"), "partners.streamco.ca: /nowhere.pem"),
        ] {
            let config =
                PartnerConfig { url: url.into(), ca: ca.map(PathBuf::from), deadline: two_seconds() };
            let error = Partners::new(&BTreeMap::from([("streamco".to_owned(), config)])).unwrap_err();
            assert!(error.to_string().starts_with(message), "{error}");
        }
    }
}
