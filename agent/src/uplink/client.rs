//! The shell of the uplink: connect, say Hello, send what is spooled, pass on what comes down, try again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use usher_models::telemetry::telemetry_client::TelemetryClient;
use usher_models::telemetry::{self, FromAgent, Hello, PROTOCOL, ToAgent, Welcome, from_agent, to_agent};

use super::window::{Backoff, Window};
use crate::config;
use crate::error::chain;
use crate::metrics::{Metrics, Reason};
use crate::store::{Store, StoreError};

/// Batches on their way at a time.
const IN_FLIGHT: usize = 32;
/// How long connecting may take, and how long the orchestrator may take to say Welcome.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Silence after which the orchestrator is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long a batch may stay without its acknowledgement before the connection is given up.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_mins(1);
/// Largest message the orchestrator may send: a push over many sessions.
const MESSAGE_MAX: usize = 4 << 20;

/// Why the uplink is down, or cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// A certificate or key file cannot be read.
    #[error("read {file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The certificates, key and address do not make a connection.
    #[error("set up mutual TLS with {}, {} and {}: {why}", .uplink.ca.display(), .uplink.certificate.display(), .uplink.key.display())]
    Tls {
        /// The configuration.
        uplink: Box<config::Uplink>,
        /// Why.
        why: String,
    },
    /// No connection.
    #[error("connect to {address}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        why: String,
    },
    /// The orchestrator ended the stream with a reason.
    #[error("the orchestrator ended the stream: {0}")]
    Ended(String),
    /// The orchestrator, or the way to it, is silent.
    #[error("the orchestrator does not answer: no {0} in time")]
    Silent(&'static str),
    /// The orchestrator does not keep to the protocol.
    #[error("the orchestrator speaks protocol {found}, this agent {PROTOCOL}; update the older side")]
    Protocol {
        /// As it says.
        found: u32,
    },
    /// What came first was no Welcome.
    #[error("the orchestrator did not begin with a welcome")]
    NoWelcome,
    /// The spool cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UplinkError {
    /// For the metric.
    const fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } | Self::Tls { .. } => "configuration",
            Self::Connect { .. } => "connect",
            Self::Ended(_) => "ended",
            Self::Silent(_) => "silent",
            Self::Protocol { .. } | Self::NoWelcome => "protocol",
            Self::Store(_) => "store",
        }
    }
}

/// The uplink's ends of what joins it to the gateway task.
#[derive(Debug)]
pub struct Lines {
    /// Pushes that came down.
    pub pushes: mpsc::Sender<telemetry::Push>,
    /// Answers to go up. Dropped while there is no connection: the orchestrator asks again.
    pub reports: mpsc::Receiver<telemetry::Report>,
    /// Changes whenever something was spooled.
    pub spooled: watch::Receiver<u64>,
    /// True: end once everything spooled is acknowledged.
    pub finish: watch::Receiver<bool>,
}

/// The agent's side of the stream.
#[derive(Debug)]
pub struct Uplink {
    endpoint: Endpoint,
    hello: Hello,
    store: Arc<Store>,
    metrics: Metrics,
}

/// Checks addresses, certificates and key, without touching the network.
pub fn endpoint(uplink: &config::Uplink) -> Result<Endpoint, UplinkError> {
    let tls_error = |why: String| UplinkError::Tls { uplink: Box::new(uplink.clone()), why };
    let address =
        Endpoint::from_shared(uplink.orchestrator.clone()).map_err(|error| tls_error(chain(&error)))?;
    let ca = pem(&uplink.ca, "CERTIFICATE")?;
    let certificate = pem(&uplink.certificate, "CERTIFICATE")?;
    let key = pem(&uplink.key, "PRIVATE KEY")?;
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(certificate, key))
        .timeout(CONNECT_WITHIN);
    if let Some(name) = &uplink.server_name {
        tls = tls.domain_name(name.clone());
    }
    let endpoint = address.tls_config(tls).map_err(|error| tls_error(chain(&error)))?;
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// A PEM file, with at least one block of the kind in it.
fn pem(file: &Path, kind: &str) -> Result<Vec<u8>, UplinkError> {
    let failed = |source| UplinkError::File { file: file.display().to_string(), source };
    let bytes = std::fs::read(file).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let is_block = |line: &str| line.starts_with("-----BEGIN ") && line.contains(kind);
    if text.lines().any(is_block) {
        Ok(bytes)
    } else {
        let why = format!("no PEM block of the kind {kind} in it");
        Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, why)))
    }
}

impl Uplink {
    /// An uplink for this agent; connects when run.
    pub fn new(endpoint: Endpoint, agent: &str, dry_run: bool, store: Arc<Store>, metrics: Metrics) -> Self {
        let hello = Hello {
            protocol: PROTOCOL,
            agent: agent.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dry_run,
        };
        Self { endpoint, hello, store, metrics }
    }

    /// Keeps a connection up until it is told to finish and has nothing left to send.
    pub async fn run(self, mut lines: Lines) {
        let mut backoff = Backoff::new();
        loop {
            let ended = self.connection(&mut lines, &mut backoff).await;
            self.metrics.uplink_connected.set(0);
            let Err(error) = ended else { return };
            if *lines.finish.borrow() && self.store.spooled() == 0 {
                return;
            }
            let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
            let wait = backoff.next(random);
            self.metrics.uplink_failures.get_or_create(&Reason { reason: error.reason() }).inc();
            tracing::warn!(again_in_ms = wait.as_millis(), "uplink: {error}");
            tokio::time::sleep(wait).await;
            // Answers that nobody waits for any more.
            while lines.reports.try_recv().is_ok() {}
            self.metrics.uplink_reconnects.inc();
        }
    }

    /// One connection. `Ok`: told to finish, and done.
    async fn connection(&self, lines: &mut Lines, backoff: &mut Backoff) -> Result<(), UplinkError> {
        let address = || self.endpoint.uri().to_string();
        let connect_error =
            |error: tonic::transport::Error| UplinkError::Connect { address: address(), why: chain(&error) };
        let channel = self.endpoint.connect().await.map_err(connect_error)?;
        let mut client = TelemetryClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let (up, stream) = mpsc::channel(1);
        let hello = FromAgent { message: Some(from_agent::Message::Hello(self.hello.clone())) };
        // The queue is new: there is room for the first message.
        let _ = up.try_send(hello);
        let opening = async {
            let mut down = client.connect(ReceiverStream::new(stream)).await.map_err(ended)?.into_inner();
            let first = down.message().await.map_err(ended)?;
            Ok::<_, UplinkError>((down, first))
        };
        let opened = tokio::time::timeout(CONNECT_WITHIN, opening).await;
        let (mut down, first) = opened.map_err(|_| UplinkError::Silent("welcome"))??;
        let Some(ToAgent { message: Some(to_agent::Message::Welcome(welcome)) }) = first else {
            return Err(UplinkError::NoWelcome);
        };
        let mut window = self.welcomed(&welcome)?;
        backoff.reset();
        self.metrics.uplink_connected.set(1);
        tracing::info!(orchestrator = address(), "uplink connected");

        let mut waiting: VecDeque<FromAgent> = VecDeque::new();
        let mut progress = Instant::now();
        loop {
            self.fill(&mut window, &mut waiting)?;
            if *lines.finish.borrow() && self.store.spooled() == 0 && waiting.is_empty() {
                return Ok(());
            }
            if window.in_flight() == 0 {
                progress = Instant::now();
            }
            tokio::select! {
                message = down.message() => match message.map_err(ended)? {
                    None => return Err(UplinkError::Ended("without a reason".to_owned())),
                    Some(ToAgent { message: Some(to_agent::Message::Ack(ack)) }) => {
                        if self.acknowledged(&ack, &mut window)? {
                            progress = Instant::now();
                        }
                    }
                    Some(ToAgent { message: Some(to_agent::Message::Push(push)) }) => {
                        // A full queue means a gateway task far behind; the orchestrator's own time-out answers for it.
                        if lines.pushes.try_send(push).is_err() {
                            self.metrics.pushes_dropped.inc();
                        }
                    }
                    Some(ToAgent { message: Some(to_agent::Message::Welcome(_)) | None }) => {}
                },
                permit = up.reserve(), if !waiting.is_empty() => {
                    let permit = permit.map_err(|_| UplinkError::Ended("the connection is gone".to_owned()))?;
                    if let Some(message) = waiting.pop_front() {
                        permit.send(message);
                    }
                }
                Some(report) = lines.reports.recv(), if waiting.len() < 2 * IN_FLIGHT => {
                    // Somebody waits for an answer; batches can wait.
                    waiting.push_front(FromAgent { message: Some(from_agent::Message::Report(report)) });
                }
                Ok(()) = lines.spooled.changed() => {}
                Ok(()) = lines.finish.changed() => {}
                () = tokio::time::sleep_until(progress + ACKNOWLEDGE_WITHIN), if window.in_flight() > 0 => {
                    return Err(UplinkError::Silent("acknowledgement"));
                }
            }
        }
    }

    /// The orchestrator says what it has: that is as good as an acknowledgement.
    fn welcomed(&self, welcome: &Welcome) -> Result<Window, UplinkError> {
        if welcome.protocol != PROTOCOL {
            return Err(UplinkError::Protocol { found: welcome.protocol });
        }
        let from = self.store.position(&welcome.boot, welcome.sequence)?;
        if let Some(from) = from {
            self.store.acknowledged(from)?;
        }
        let from = from.unwrap_or_default();
        if let Some((first, _)) = self.store.batches_after(from, 1)?.first()
            && first.generation == from.generation
            && first.sequence > from.sequence + 1
        {
            tracing::warn!(
                spooled = first.sequence,
                expected = from.sequence + 1,
                "the orchestrator has forgotten batches it acknowledged; they are gone here"
            );
        }
        Ok(Window::new(from, IN_FLIGHT))
    }

    fn fill(&self, window: &mut Window, waiting: &mut VecDeque<FromAgent>) -> Result<(), UplinkError> {
        if window.room() == 0 {
            return Ok(());
        }
        for (position, batch) in self.store.batches_after(window.last(), window.room())? {
            waiting.push_back(FromAgent { message: Some(from_agent::Message::Batch(batch)) });
            window.sent(position);
            self.metrics.batches_sent.inc();
        }
        Ok(())
    }

    fn acknowledged(&self, ack: &telemetry::Ack, window: &mut Window) -> Result<bool, UplinkError> {
        let Some(position) = self.store.position(&ack.boot, ack.sequence)? else { return Ok(false) };
        if !window.acknowledged(position) {
            return Ok(false);
        }
        let gone = self.store.acknowledged(position)?;
        self.metrics.batches_acknowledged.inc_by(gone as u64);
        self.metrics.spooled(self.store.spooled());
        Ok(true)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits `map_err`")]
fn ended(status: tonic::Status) -> UplinkError {
    UplinkError::Ended(format!("{} ({:?})", status.message(), status.code()))
}
