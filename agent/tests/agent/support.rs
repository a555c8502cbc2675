//! A gateway in a directory (certificates, configuration, sessions, a capture file, the agent's binary) and an
//! orchestrator that answers it over real mutual TLS, and misbehaves when told to.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etherparse::PacketBuilder;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use usher_models::telemetry::telemetry_server::{Telemetry, TelemetryServer};
use usher_models::telemetry::{self, Ack, FromAgent, PROTOCOL, ToAgent, Welcome, from_agent, to_agent};

/// How long anything here may take before it counts as not happening.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Certificates of one authority: the orchestrator's for `localhost`, the agent's for its name.
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) server: (String, String),
    pub(crate) agent: (String, String),
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |name: &str, purpose| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
        };
        Self {
            server: leaf("localhost", ExtendedKeyUsagePurpose::ServerAuth),
            agent: leaf("gw-test", ExtendedKeyUsagePurpose::ClientAuth),
            ca: ca.pem(),
        }
    }
}

/// How the orchestrator behaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manners {
    /// Ends each of the first streams after so many batches, the last of them applied but not acknowledged.
    pub(crate) drop_after: Option<(usize, usize)>,
    /// Acknowledges only every so manyeth batch.
    pub(crate) acknowledge_every: u64,
    /// Says in its welcome that it is so many batches behind where it is.
    pub(crate) behind: u64,
}

/// What the orchestrator has, durable across its streams.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) last: HashMap<Vec<u8>, u64>,
    pub(crate) latest: Vec<u8>,
    /// Bytes and packets by session, or name of the anonymous, and direction.
    pub(crate) sums: BTreeMap<(String, bool), (u64, u64)>,
    pub(crate) sessions: BTreeMap<String, bool>,
    pub(crate) repeats: usize,
    pub(crate) streams: usize,
    pub(crate) gaps: usize,
    pub(crate) dry_run: bool,
}

impl Ledger {
    fn apply(&mut self, batch: telemetry::Batch) {
        let last = self.last.entry(batch.boot.clone()).or_default();
        self.latest = batch.boot;
        if batch.sequence <= *last {
            self.repeats += 1;
            return;
        }
        if batch.sequence > *last + 1 {
            self.gaps += 1;
        }
        *last = batch.sequence;
        for session in batch.sessions {
            let open = session.state() == telemetry::SessionState::Open;
            self.sessions.insert(session.id, open);
        }
        for usage in batch.usage {
            let up = usage.direction() == telemetry::Direction::Up;
            assert!(usage.session.is_empty() || usage.anonymous.is_empty());
            // A session's, or `anonymous NAME`.
            let whose = match usage.anonymous {
                name if name.is_empty() => usage.session,
                name => format!("anonymous {name}"),
            };
            let sum = self.sums.entry((whose, up)).or_default();
            *sum = (sum.0 + usage.bytes, sum.1 + usage.packets);
        }
    }
}

/// What goes down a stream.
type Down = mpsc::Sender<Result<ToAgent, Status>>;

/// The other end of the uplink.
#[derive(Clone)]
pub(crate) struct Orchestrator {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    manners: Manners,
    reports: mpsc::Sender<telemetry::Report>,
    down: Arc<Mutex<Option<Down>>>,
}

impl Orchestrator {
    /// Serves on a free port of the loopback.
    pub(crate) async fn serve(
        pki: &Pki,
        manners: Manners,
    ) -> (Self, SocketAddr, mpsc::Receiver<telemetry::Report>) {
        let (reports, received) = mpsc::channel(64);
        let orchestrator = Self { ledger: Arc::default(), manners, reports, down: Arc::default() };
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&pki.server.0, &pki.server.1))
            .client_ca_root(Certificate::from_pem(&pki.ca));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().tls_config(tls).unwrap();
        let service = TelemetryServer::new(orchestrator.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(server.serve_with_incoming_shutdown(service, incoming, std::future::pending()));
        (orchestrator, address, received)
    }

    /// Sends a push step down the present stream, once there is one.
    pub(crate) async fn push(&self, push: telemetry::Push) {
        let message = ToAgent { message: Some(to_agent::Message::Push(push)) };
        let sent = async {
            loop {
                let down = self.down.lock().unwrap().clone();
                match down {
                    Some(down) if down.send(Ok(message.clone())).await.is_ok() => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, sent).await.expect("the agent connects");
    }

    /// Waits until the ledger is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Ledger) -> bool) {
        let seen = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            while !wanted(&self.ledger.lock().unwrap()) {
                look.tick().await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, seen).await.is_ok();
        assert!(in_time, "{what} did not happen: {:?}", self.ledger.lock().unwrap());
    }

    async fn stream(self, mut up: Streaming<FromAgent>, down: Down, number: usize) {
        let mut batches = 0;
        while let Ok(Some(message)) = up.message().await {
            match message.message {
                Some(from_agent::Message::Batch(batch)) => {
                    let batch = telemetry::Batch::decode(batch.as_slice()).expect("a batch");
                    batches += 1;
                    let (boot, sequence) = (batch.boot.clone(), batch.sequence);
                    self.ledger.lock().unwrap().apply(batch);
                    if let Some((streams, after)) = self.manners.drop_after
                        && number <= streams
                        && batches == after
                    {
                        let _ = down.send(Err(Status::unavailable("a test pulls the plug"))).await;
                        return;
                    }
                    if sequence.is_multiple_of(self.manners.acknowledge_every.max(1)) {
                        let ack = ToAgent { message: Some(to_agent::Message::Ack(Ack { boot, sequence })) };
                        let _ = down.send(Ok(ack)).await;
                    }
                }
                Some(from_agent::Message::Report(report)) => self.reports.send(report).await.unwrap(),
                Some(from_agent::Message::Hello(_)) | None => panic!("a second hello"),
            }
        }
    }
}

#[tonic::async_trait]
impl Telemetry for Orchestrator {
    type ConnectStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        assert_eq!(request.peer_certs().map(|chain| chain.len()), Some(1));
        let mut up = request.into_inner();
        let Some(FromAgent { message: Some(from_agent::Message::Hello(hello)) }) = up.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        assert_eq!((hello.protocol, hello.agent.as_str()), (PROTOCOL, "gw-test"));
        let (number, boot, sequence) = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.streams += 1;
            ledger.dry_run = hello.dry_run;
            let sequence = ledger.last.get(&ledger.latest).copied().unwrap_or(0);
            (ledger.streams, ledger.latest.clone(), sequence.saturating_sub(self.manners.behind))
        };
        let (down, stream) = mpsc::channel(64);
        let welcome = Welcome { protocol: PROTOCOL, boot, sequence };
        down.send(Ok(ToAgent { message: Some(to_agent::Message::Welcome(welcome)) })).await.unwrap();
        *self.down.lock().unwrap() = Some(down.clone());
        tokio::spawn(self.clone().stream(up, down, number));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A gateway's files and its agent.
pub(crate) struct Gateway {
    directory: tempfile::TempDir,
    agent: Option<Child>,
}

impl Gateway {
    pub(crate) fn new(pki: &Pki, orchestrator: SocketAddr, source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gateway = Self { directory, agent: None };
        gateway.write("ca.pem", &pki.ca);
        gateway.write("agent.pem", &pki.agent.0);
        gateway.write("agent.key", &pki.agent.1);
        gateway.write(
            "agent.yaml",
            &format!(
                "agent: gw-test
source: {source}
sessions: sessions.yaml
home_plmns: [\"00101\"]
anonymous: [{{name: guests, prefix: 10.0.0.5/32}}, {{name: all, prefix: 10.0.0.0/30}}]
service:
  video:
    sd: {{class: video, down: 1.5 Mbit/s}}
    hd: {{class: video, down: 8 Mbit/s}}
uplink:
  orchestrator: https://127.0.0.1:{}
  server_name: localhost
  ca: ca.pem
  certificate: agent.pem
  key: agent.key
state_dir: state
",
                orchestrator.port()
            ),
        );
        gateway.write(
            "sessions.yaml",
            "sessions:
  - {id: a-1, keys: [\"imsi:001010000000001\"], prefixes: [10.0.0.2/32], plmn: \"00101\"}
  - {id: b-1, keys: [\"imsi:001010000000002\"], prefixes: [10.0.0.3/32], plmn: \"00101\"}
",
        );
        gateway
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
    }

    pub(crate) fn command(&self, command: &str) -> Command {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_usher-agent"));
        agent.arg(command).arg("--config").arg(self.path("agent.yaml")).stdin(Stdio::null());
        agent
    }

    pub(crate) fn start(&mut self) {
        self.agent = Some(self.command("run").spawn().unwrap());
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.agent.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the agent to end; its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        let ended = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            loop {
                look.tick().await;
                if let Some(status) = agent.try_wait().unwrap() {
                    return status.code();
                }
            }
        };
        let Ok(code) = tokio::time::timeout(PATIENCE, ended).await else {
            agent.kill().unwrap();
            panic!("the agent does not end");
        };
        code
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// What a capture file holds, by the last byte of the subscriber's address and whether it goes up.
pub(crate) type Truth = BTreeMap<(u8, bool), (u64, u64)>;

/// A datagram between the subscriber 10.0.0.N and a server, as an Ethernet frame.
pub(crate) fn frame(subscriber: u8, up: bool, payload: usize) -> Vec<u8> {
    let (inside, outside) = ([10, 0, 0, subscriber], [192, 0, 2, 80]);
    let (from, to) = if up { (inside, outside) } else { (outside, inside) };
    let (from_port, to_port) = if up { (40_000, 9_000) } else { (9_000, 40_000) };
    let packet = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, to, 64).udp(from_port, to_port);
    let mut frame = Vec::with_capacity(packet.size(payload));
    packet.write(&mut frame, &vec![0xee; payload]).unwrap();
    frame
}

/// Writes a capture of UDP between three subscribers (two of them known) and a server, for so many milliseconds.
pub(crate) fn capture(path: &Path, milliseconds: u32) -> Truth {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    let mut truth = Truth::new();
    for (number, at_ms) in (0..milliseconds).step_by(10).enumerate() {
        let subscriber = 2 + u8::try_from(number % 3).unwrap();
        let up = number % 4 == 0;
        let frame = frame(subscriber, up, 100 + number % 900);
        let length = u32::try_from(frame.len()).unwrap();
        for word in [1_700_000_000 + at_ms / 1_000, at_ms % 1_000 * 1_000, length, length] {
            file.extend(word.to_le_bytes());
        }
        let sum = truth.entry((subscriber, up)).or_default();
        *sum = (sum.0 + frame.len() as u64 - 14, sum.1 + 1);
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
    truth
}
