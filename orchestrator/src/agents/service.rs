//! The gRPC service: one stream an agent, from Hello to its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use usher_models::telemetry::telemetry_server::{Telemetry, TelemetryServer};
use usher_models::telemetry::{Ack, FromAgent, Hello, PROTOCOL, ToAgent, Welcome, from_agent, to_agent};
use usher_models::units::Micros;

use super::links::{Connected, Place};
use super::{Links, certificate, decode, door};
use crate::config::MutualTls;
use crate::inputs::{Inbox, Refusal};
use crate::ledger::{BatchMark, Ledger};
use crate::metrics::{Metrics, count};

/// How long an agent may take to shake hands, and then to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Silence after which an agent is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Largest message of an agent: the first batch after its start names every session of the gateway.
const MESSAGE_MAX: usize = 64 << 20;
/// Connections at once beyond one an agent: those in the middle of a handshake, those to be turned away, and agents that
/// come back before their last connection is known to be dead. Further ones wait in the kernel's queue.
const CONNECTIONS_SPARE: usize = 128;
/// Messages to an agent that may wait for its connection.
const DOWN_MAX: usize = 64;
/// Longest piece of foreign text repeated in a log line or message.
const SHOWN_MAX: usize = 64;

/// Why the uplinks cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A TLS file that cannot be used.
    #[error("{path} cannot be used for agents.tls: {why}; `usher pki init` makes what is needed")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The server broke down.
    #[error("uplinks of agents: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What a stream needs. Clones share it.
#[derive(Debug, Clone)]
pub struct Service {
    /// The way into the engine.
    pub inbox: Inbox,
    /// Who is connected.
    pub links: Links,
    /// Which batch was the last.
    pub ledger: Ledger,
    /// What is counted.
    pub metrics: Metrics,
    /// Turns true when the daemon stops: every stream is ended then.
    pub stopped: watch::Receiver<bool>,
}

impl Service {
    /// Checks the TLS files, so that the daemon refuses to start rather than to be reached.
    pub fn tls(files: &MutualTls) -> Result<ServerTlsConfig, ServeError> {
        let certificate = read(&files.certificate)?;
        let key = read(&files.key)?;
        let ca = read(&files.ca)?;
        let chain = certificates(&files.certificate, &certificate)?;
        certificates(&files.ca, &ca)?;
        let private = PrivateKeyDer::from_pem_slice(&key).map_err(|error| tls(&files.key, &error))?;
        // What is built here is only to see that key and certificate belong together.
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
            .map_err(|error| tls(&files.key, &format!("with {}: {error}", files.certificate.display())))?;
        Ok(ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(ca))
            .timeout(HELLO_WITHIN))
    }

    /// Serves agents on `listener` until the daemon stops.
    pub async fn serve(self, listener: TcpListener, tls: ServerTlsConfig) -> Result<(), ServeError> {
        let mut stopped = self.stopped.clone();
        let stop = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let places = self.links.allowed().len().saturating_add(CONNECTIONS_SPARE);
        let incoming = door::incoming(listener, places, self.metrics.uplinks_waited.clone());
        let telemetry = TelemetryServer::new(self).max_decoding_message_size(MESSAGE_MAX);
        Server::builder()
            .tls_config(tls)?
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(4)
            .serve_with_incoming_shutdown(telemetry, incoming, stop)
            .await?;
        Ok(())
    }

    /// The names the peer's certificate gives it.
    fn names(&self, request: &Request<Streaming<FromAgent>>) -> Result<Vec<String>, Status> {
        let names = request
            .peer_certs()
            .and_then(|chain| chain.first().and_then(|certificate| certificate::dns_names(certificate)))
            .unwrap_or_default();
        if names.is_empty() {
            return Err(self.turn_away(
                "no_name",
                "the certificate carries no DNS name: make one with `usher pki agent NAME`",
            ));
        }
        Ok(names)
    }

    /// The Hello, once it is clear that its sender is who it says, known, and of our protocol.
    fn let_in(&self, hello: Hello, names: &[String]) -> Result<Hello, Status> {
        let said = shown(&hello.agent);
        if hello.protocol != PROTOCOL {
            let message = format!(
                "protocol {} is not spoken here: expected {PROTOCOL}; update the older side",
                hello.protocol
            );
            return Err(self.turn_away("protocol", &message));
        }
        if !names.contains(&hello.agent) {
            let message = format!("the certificate is for {}, not for agent `{said}`", names.join(", "));
            return Err(self.turn_away("wrong_name", &message));
        }
        if !self.links.allows(&hello.agent) {
            let message = format!(
                "agent `{said}` is unknown: add it to agents.allowed in the orchestrator's configuration"
            );
            return Err(self.turn_away("unknown_agent", &message));
        }
        Ok(hello)
    }

    fn turn_away(&self, reason: &'static str, message: &str) -> Status {
        count(&self.metrics.uplinks_refused, reason);
        tracing::warn!(reason, "uplink refused: {message}");
        Status::permission_denied(message)
    }

    async fn welcome(&self, agent: &str) -> Result<ToAgent, Status> {
        let name = agent.to_owned();
        let last = self.ledger.with(move |ledger| ledger.last_batch(&name, None)).await;
        let last = last.map_err(|error| {
            tracing::error!(agent, %error, "last batch cannot be read");
            Status::unavailable("the ledger cannot be read")
        })?;
        let BatchMark { boot, sequence } = last.unwrap_or_default();
        Ok(ToAgent {
            message: Some(to_agent::Message::Welcome(Welcome { protocol: PROTOCOL, boot, sequence })),
        })
    }

    /// Everything after the Welcome. The error is what the agent is told as its stream ends.
    async fn follow(&self, agent: &str, stream: &mut Uplink) -> Result<(), Status> {
        while let Some(message) = stream.up.message().await? {
            match message.message {
                Some(from_agent::Message::Batch(batch)) => {
                    let ack = self.apply(agent, &batch).await?;
                    let ack = ToAgent { message: Some(to_agent::Message::Ack(ack)) };
                    if stream.down.send(Ok(ack)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(from_agent::Message::Report(report)) => stream.place.reported(report),
                Some(from_agent::Message::Hello(_)) => {
                    return Err(Status::invalid_argument("a second hello on one stream"));
                }
                // A message of a later version of the protocol: nothing for us.
                None => count(&self.metrics.records_ignored, "message"),
            }
        }
        Ok(())
    }

    async fn apply(&self, agent: &str, batch: &[u8]) -> Result<Ack, Status> {
        let batch = decode(agent, batch, Micros::now()).map_err(|refused| {
            count(&self.metrics.batches_refused, refused.reason());
            tracing::warn!(agent, %refused, "batch refused");
            Status::invalid_argument(refused.to_string())
        })?;
        match self.inbox.batch(batch).await {
            Ok(BatchMark { boot, sequence }) => Ok(Ack { boot, sequence }),
            Err(refusal @ Refusal::Gap { .. }) => {
                count(&self.metrics.batches_refused, "gap");
                tracing::warn!(agent, %refusal, "batch refused");
                Err(Status::failed_precondition(refusal.to_string()))
            }
            Err(refusal @ Refusal::Stopping) => Err(Status::unavailable(refusal.to_string())),
        }
    }
}

/// One agent's stream after its Hello.
struct Uplink {
    up: Streaming<FromAgent>,
    down: mpsc::Sender<Result<ToAgent, Status>>,
    place: Place,
}

#[tonic::async_trait]
impl Telemetry for Service {
    type ConnectStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let names = self.names(&request)?;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, up.message()).await;
        let hello = match first {
            Ok(Ok(Some(FromAgent { message: Some(from_agent::Message::Hello(hello)) }))) => hello,
            Ok(Err(status)) => return Err(status),
            Ok(Ok(_)) => return Err(self.turn_away("no_hello", "expected a hello first")),
            Err(_) => return Err(self.turn_away("no_hello", "no hello in time")),
        };
        let hello = self.let_in(hello, &names)?;
        let welcome = self.welcome(&hello.agent).await?;

        let connected = Connected {
            agent: hello.agent.clone(),
            since: Micros::now(),
            version: shown(&hello.version),
            dry_run: hello.dry_run,
        };
        let (down, stream) = mpsc::channel(DOWN_MAX);
        let (pushes, to_forward) = mpsc::channel(DOWN_MAX);
        let (place, taken_over) = self.links.enter(connected, pushes);
        // The queue is new: there is room for the first message.
        let _ = down.try_send(Ok(welcome));
        tracing::info!(
            agent = hello.agent,
            version = shown(&hello.version),
            dry_run = hello.dry_run,
            "agent connected"
        );
        let uplink = Uplink { up, down, place };
        tokio::spawn(self.clone().run(hello.agent, uplink, to_forward, taken_over));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Service {
    async fn run(
        self,
        agent: String,
        mut uplink: Uplink,
        mut pushed: mpsc::Receiver<ToAgent>,
        taken_over: oneshot::Receiver<()>,
    ) {
        let down = uplink.down.clone();
        let mut stopped = self.stopped.clone();
        let forward = async {
            while let Some(push) = pushed.recv().await {
                if down.send(Ok(push)).await.is_err() {
                    return;
                }
            }
            // Nobody asks here any more: `taken_over` says why.
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = self.follow(&agent, &mut uplink) => end,
            () = forward => Ok(()),
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => Err(Status::unavailable("the orchestrator is stopping")),
            _ = taken_over => Err(Status::aborted("another uplink of this agent has taken over")),
        };
        match &end {
            Ok(()) => tracing::info!(agent, "agent disconnected"),
            Err(status) => tracing::warn!(agent, reason = status.message(), "uplink ended"),
        }
        if let Err(status) = end {
            // The agent is gone, or reads no more: then it needs no reason.
            let _ = down.try_send(Err(status));
        }
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(tls(path, &"no certificate in it")),
        Err(error) => Err(tls(path, &error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    std::fs::read(path).map_err(|error| tls(path, &error))
}

fn tls(path: &Path, why: &impl ToString) -> ServeError {
    ServeError::Tls { path: path.to_owned(), why: why.to_string() }
}

/// Foreign text, fit for a log line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}
