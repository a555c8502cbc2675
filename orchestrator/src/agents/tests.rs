//! A real client over mutual TLS, with certificates made by `pki`, against the real service and engine task.

use prost::Message as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};
use usher_models::telemetry::telemetry_client::TelemetryClient;
use usher_models::telemetry::{
    self, Ack, FromAgent, Hello, PROTOCOL, Report, SessionState, Stage, ToAgent, from_agent, push::Step,
    to_agent,
};
use usher_models::units::{Micros, SubscriberId};

use super::*;
use crate::config::MutualTls;
use crate::elements::Ask as _;
use crate::inputs::tests::Rig;
use crate::metrics::Reason;
use crate::pki;

const BOOT: [u8; 16] = [9; 16];

struct Server {
    rig: Rig,
    links: Links,
    address: SocketAddr,
    pki: std::path::PathBuf,
    stop: watch::Sender<bool>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    async fn start(dir: &Path) -> Self {
        let pki = dir.join("pki");
        if !pki.exists() {
            pki::init(&pki, &["127.0.0.1".to_owned()], &["gw-1".to_owned(), "gw-9".to_owned()]).unwrap();
        }
        let files = MutualTls {
            certificate: pki.join("server.pem"),
            key: pki.join("server.key"),
            ca: pki.join("ca.pem"),
        };
        let rig = Rig::start(dir).await;
        let links = Links::new(["gw-1".to_owned()].into(), rig.metrics.clone());
        let (stop, stopped) = watch::channel(false);
        let service = Service {
            inbox: rig.inbox.clone(),
            links: links.clone(),
            ledger: rig.ledger.clone(),
            metrics: rig.metrics.clone(),
            stopped,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Service::tls(&files).unwrap();
        let served = tokio::spawn(service.serve(listener, tls));
        Self { rig, links, address, pki, stop, served }
    }

    async fn channel(&self, agent: Option<&str>) -> Result<Channel, tonic::transport::Error> {
        let read = |name: String| std::fs::read(self.pki.join(name)).unwrap();
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca.pem".to_owned())));
        if let Some(agent) = agent {
            let (certificate, key) = (read(format!("agent-{agent}.pem")), read(format!("agent-{agent}.key")));
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }

    /// A stream of the agent whose certificate it has, on which it calls itself `name`.
    async fn connect(&self, certificate: &str, name: &str) -> Result<Stream, Status> {
        self.connect_speaking(certificate, name, PROTOCOL).await
    }

    async fn connect_speaking(&self, certificate: &str, name: &str, protocol: u32) -> Result<Stream, Status> {
        let mut client = TelemetryClient::new(self.channel(Some(certificate)).await.unwrap());
        let (up, messages) = mpsc::channel(8);
        let hello = Hello { protocol, agent: name.into(), version: "0".into(), dry_run: false };
        up.send(FromAgent { message: Some(from_agent::Message::Hello(hello)) }).await.unwrap();
        let down = client.connect(ReceiverStream::new(messages)).await?.into_inner();
        let mut stream = Stream { up, down };
        match stream.receive().await? {
            to_agent::Message::Welcome(_) => Ok(stream),
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    fn refused(&self, reason: &'static str) -> u64 {
        self.rig.metrics.uplinks_refused.get_or_create(&Reason { reason }).get()
    }
}

struct Stream {
    up: mpsc::Sender<FromAgent>,
    down: Streaming<ToAgent>,
}

impl Stream {
    async fn receive(&mut self) -> Result<to_agent::Message, Status> {
        let message = self.down.message().await?.ok_or_else(|| Status::cancelled("the stream ended"))?;
        Ok(message.message.unwrap())
    }

    async fn batch(&mut self, sequence: u64, bytes: u64) -> Result<Ack, Status> {
        let now = Micros::now();
        let session = telemetry::Session {
            id: "s-a".into(),
            keys: vec!["imsi:001010000000001".into()],
            prefixes: vec!["10.0.0.2/32".into()],
            serving_plmn: "00101".into(),
            state: SessionState::Open.into(),
            since_us: now.get(),
            ..telemetry::Session::default()
        };
        let usage = telemetry::Usage {
            session: "s-a".into(),
            class: telemetry::Class::Video.into(),
            direction: telemetry::Direction::Down.into(),
            bytes,
            packets: 1,
            ..telemetry::Usage::default()
        };
        let batch = telemetry::Batch {
            boot: BOOT.to_vec(),
            sequence,
            start_us: now.get() - 1_000_000,
            end_us: now.get(),
            sessions: vec![session],
            usage: vec![usage],
            flows: Vec::new(),
            apps: Vec::new(),
        };
        self.up
            .send(FromAgent { message: Some(from_agent::Message::Batch(batch.encode_to_vec())) })
            .await
            .unwrap();
        match self.receive().await? {
            to_agent::Message::Ack(ack) => Ok(ack),
            other => panic!("expected an ack, got {other:?}"),
        }
    }
}

fn bytes_of_a(server: &Server) -> u64 {
    let rows = server.rig.ledger.usage_of(Some(&SubscriberId("sub-a".into()))).unwrap();
    rows.iter().map(|row| row.bytes.0).sum()
}

#[tokio::test]
async fn only_an_agent_that_is_known_and_says_its_own_name_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let refusal = async |certificate: &str, name: &str, protocol: u32| {
        let status = server.connect_speaking(certificate, name, protocol).await.err().unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        status.message().to_owned()
    };
    let unknown = refusal("gw-9", "gw-9", PROTOCOL).await;
    assert_eq!(
        unknown,
        "agent `gw-9` is unknown: add it to agents.allowed in the orchestrator's configuration"
    );
    let wrong = refusal("gw-9", "gw-1", PROTOCOL).await;
    assert_eq!(wrong, "the certificate is for gw-9, not for agent `gw-1`");
    let old = refusal("gw-1", "gw-1", PROTOCOL + 1).await;
    assert!(old.contains("expected 1"), "{old}");
    for reason in ["unknown_agent", "wrong_name", "protocol"] {
        assert_eq!(server.refused(reason), 1, "{reason}");
    }
    assert!(server.links.connected().is_empty());
    assert!(server.connect("gw-1", "gw-1").await.is_ok());
}

#[tokio::test]
async fn without_a_certificate_of_our_authority_nothing_is_said_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let other = dir.path().join("other");
    pki::init(&other, &["127.0.0.1".to_owned()], &["gw-1".to_owned()]).unwrap();
    for file in ["agent-gw-1.pem", "agent-gw-1.key"] {
        std::fs::rename(server.pki.join(file), server.pki.join(format!("good-{file}"))).unwrap();
        std::fs::copy(other.join(file), server.pki.join(file)).unwrap();
    }
    for agent in [None, Some("gw-1")] {
        // The server closes during the handshake; where in it the client notices is up to TLS 1.3.
        let Ok(channel) = server.channel(agent).await else { continue };
        let hello = Hello { protocol: PROTOCOL, agent: "gw-1".into(), ..Hello::default() };
        let hello = FromAgent { message: Some(from_agent::Message::Hello(hello)) };
        let refused = TelemetryClient::new(channel).connect(tokio_stream::iter([hello])).await;
        assert!(refused.is_err(), "{agent:?}");
    }
    assert!(server.links.connected().is_empty());
}

#[tokio::test]
async fn batches_are_acknowledged_once_durable_and_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    assert_eq!(stream.batch(1, 100).await.unwrap(), Ack { boot: BOOT.to_vec(), sequence: 1 });
    assert_eq!(stream.batch(1, 100).await.unwrap().sequence, 1);
    assert_eq!(stream.batch(2, 10).await.unwrap().sequence, 2);
    assert_eq!(bytes_of_a(&server), 110);
    let gap = stream.batch(4, 1).await.unwrap_err();
    assert_eq!(gap.code(), Code::FailedPrecondition);
    assert_eq!(gap.message(), "batch 4 leaves a gap: expected 3 of this boot; send again from there");
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    assert_eq!(stream.batch(3, 1).await.unwrap().sequence, 3);
    assert_eq!(bytes_of_a(&server), 111);
    let refused = server.rig.metrics.batches_refused.get_or_create(&Reason { reason: "gap" }).get();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn after_a_restart_the_agent_hears_where_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    stream.batch(1, 100).await.unwrap();
    stream.batch(2, 100).await.unwrap();
    // The connection is cut and the process killed; the acknowledgement of 2 may be lost with it.
    drop(stream);
    drop(server.links);
    server.rig.kill_unheard().await;
    let server = Server::start(dir.path()).await;
    let mut client = TelemetryClient::new(server.channel(Some("gw-1")).await.unwrap());
    let hello = Hello { protocol: PROTOCOL, agent: "gw-1".into(), ..Hello::default() };
    let hello = FromAgent { message: Some(from_agent::Message::Hello(hello)) };
    let (up, messages) = mpsc::channel(8);
    up.send(hello).await.unwrap();
    let down = client.connect(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let mut stream = Stream { up, down };
    let welcome = stream.receive().await.unwrap();
    let expected = telemetry::Welcome { protocol: PROTOCOL, boot: BOOT.to_vec(), sequence: 2 };
    assert_eq!(welcome, to_agent::Message::Welcome(expected));
    assert_eq!(stream.batch(2, 100).await.unwrap().sequence, 2);
    assert_eq!(stream.batch(3, 1).await.unwrap().sequence, 3);
    assert_eq!(bytes_of_a(&server), 201);
}

#[tokio::test]
async fn a_stop_ends_every_uplink_with_a_word_and_then_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    stream.batch(1, 1).await.unwrap();
    server.stop.send_replace(true);
    let status = stream.receive().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the orchestrator is stopping"));
    drop(stream);
    tokio::time::timeout(Duration::from_mins(1), server.served).await.unwrap().unwrap().unwrap();
    assert!(server.links.connected().is_empty());
}

#[tokio::test]
async fn a_second_uplink_of_an_agent_takes_the_place_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut first = server.connect("gw-1", "gw-1").await.unwrap();
    let mut second = server.connect("gw-1", "gw-1").await.unwrap();
    let status = first.receive().await.unwrap_err();
    assert_eq!(status.message(), "another uplink of this agent has taken over");
    assert_eq!(second.batch(1, 1).await.unwrap().sequence, 1);
    assert_eq!(server.links.connected().len(), 1);
}

#[tokio::test]
async fn a_push_goes_down_and_its_report_comes_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    let read = telemetry::Push { push: "p1".into(), step: Some(Step::Read(telemetry::Read::default())) };
    let agent = async {
        let to_agent::Message::Push(push) = stream.receive().await.unwrap() else {
            panic!("expected a push")
        };
        let report = Report { push: push.push, stage: Stage::Running.into(), ..Report::default() };
        stream.up.send(FromAgent { message: Some(from_agent::Message::Report(report)) }).await.unwrap();
    };
    let (answer, ()) = tokio::join!(server.links.ask("gw-1", read, Duration::from_mins(1)), agent);
    assert_eq!(answer.unwrap().stage(), Stage::Running);
}

#[tokio::test]
async fn a_hostile_batch_ends_its_stream_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    let hostile = telemetry::Batch { boot: vec![1; 3], sequence: 1, ..telemetry::Batch::default() };
    stream
        .up
        .send(FromAgent { message: Some(from_agent::Message::Batch(hostile.encode_to_vec())) })
        .await
        .unwrap();
    let status = stream.receive().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "boot id of 3 bytes: expected 16"));
    assert!(server.rig.ledger.agents().unwrap().is_empty());
    let mut stream = server.connect("gw-1", "gw-1").await.unwrap();
    assert_eq!(stream.batch(1, 5).await.unwrap().sequence, 1);
}
