//! Frames of new flows: hellos and Initials that real libraries made, in headers whose addresses and ports are filled in
//! at the moment of sending.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::crypto::aws_lc_rs::kx_group::{X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use usher_models::wire::Class;

/// Names that flows ask for, and the class each is.
pub(crate) const NAMES: [(&str, Class); 8] = [
    ("cdn.streams.example", Class::Video),
    ("www.pages.example", Class::Web),
    ("rr3---sn-4g5e6nsz.googlevideo.com", Class::Video),
    ("ipv4-c001-par001-ix.1.oca.nflxvideo.net", Class::Video),
    ("www.facebook.com", Class::Social),
    ("www.instagram.com", Class::Social),
    ("en.wikipedia.org", Class::Web),
    ("nothing-known.example.org", Class::Web),
];

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Payload of a full segment on an Ethernet line.
const SEGMENT: usize = 1_448;

/// How often each kind comes among a hundred flows.
const MIX: [(Kind, usize); 5] =
    [(Kind::TlsHybrid, 35), (Kind::TlsPlain, 20), (Kind::Quic, 20), (Kind::Dns, 18), (Kind::Http, 7)];

/// How a flow begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TLS 1.3 with a post-quantum key share: a ClientHello of two segments.
    TlsHybrid,
    /// TLS 1.3 without: one segment.
    TlsPlain,
    /// QUIC version 1 with a post-quantum key share: two Initials.
    Quic,
    /// One question.
    Dns,
    /// One request.
    Http,
}

/// One new flow, but for who it is of.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) kind: Kind,
    pub(crate) class: Class,
    pub(crate) protocol: u8,
    pub(crate) remote_port: u16,
    frames: Vec<Vec<u8>>,
}

/// Who a flow is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) subscriber: Ipv4Addr,
    pub(crate) subscriber_port: u16,
    pub(crate) remote: Ipv4Addr,
}

impl Opening {
    /// The flow's frames as `ends` sends them, the last of them deciding what the flow is.
    pub(crate) fn frames(&mut self, ends: Ends) -> impl Iterator<Item = &[u8]> {
        let checksum = if self.protocol == TCP { 50 } else { 40 };
        self.frames.iter_mut().map(move |frame| {
            fill(frame, 26, &ends.subscriber.octets(), &[24, checksum]);
            fill(frame, 30, &ends.remote.octets(), &[24, checksum]);
            fill(frame, 34, &ends.subscriber_port.to_be_bytes(), &[checksum]);
            frame.as_slice()
        })
    }
}

/// Writes `bytes` at an even place of a frame, and keeps the checksums over it right (RFC 1624).
fn fill(frame: &mut [u8], at: usize, bytes: &[u8], checksums: &[usize]) {
    for (word, new) in bytes.chunks_exact(2).enumerate() {
        let at = at + word * 2;
        let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
        frame[at..at + 2].copy_from_slice(new);
        let new = u16::from_be_bytes([new[0], new[1]]);
        for &checksum in checksums {
            let before = u16::from_be_bytes([frame[checksum], frame[checksum + 1]]);
            let mut sum = u32::from(!before) + u32::from(!old) + u32::from(new);
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            let after = !u16::try_from(sum).unwrap_or_default();
            frame[checksum..checksum + 2].copy_from_slice(&after.to_be_bytes());
        }
    }
}

/// Every name in every kind, in an order that mixes them as [`MIX`] says. `macs`: of the sender and of the gateway.
pub(crate) async fn openings(macs: [[u8; 6]; 2]) -> Result<Vec<Opening>> {
    let mut by_kind = Vec::new();
    for (kind, share) in MIX {
        let mut all = Vec::new();
        for (name, class) in NAMES {
            all.push(opening(kind, name, class, macs).await?);
        }
        by_kind.push((all, share));
    }
    let mut mixed = Vec::new();
    // A step that has no factor in common with a hundred meets every place once.
    for place in (0..100 * NAMES.len()).map(|place| place * 37) {
        let mut left = place % 100;
        for (all, share) in &by_kind {
            if left < *share {
                mixed.push(all[place / 100 % all.len()].clone());
                break;
            }
            left -= share;
        }
    }
    Ok(mixed)
}

async fn opening(kind: Kind, name: &str, class: Class, macs: [[u8; 6]; 2]) -> Result<Opening> {
    let (protocol, remote_port) = match kind {
        Kind::TlsHybrid | Kind::TlsPlain => (TCP, 443),
        Kind::Http => (TCP, 80),
        Kind::Quic => (UDP, 443),
        Kind::Dns => (UDP, 53),
    };
    let payloads = match kind {
        Kind::TlsHybrid => segments(&client_hello(name, X25519MLKEM768)?),
        Kind::TlsPlain => segments(&client_hello(name, X25519)?),
        Kind::Quic => initials(name).await?,
        Kind::Dns => vec![question(name)],
        Kind::Http => {
            vec![format!("GET / HTTP/1.1\r\nHost: {name}\r\nUser-Agent: live\r\n\r\n").into_bytes()]
        }
    };
    let expected = match kind {
        Kind::TlsHybrid | Kind::Quic => 2,
        Kind::TlsPlain | Kind::Dns | Kind::Http => 1,
    };
    ensure!(payloads.len() == expected, "{kind:?} for {name}: {} packets, not {expected}", payloads.len());
    let ethernet = || PacketBuilder::ethernet2(macs[0], macs[1]).ipv4([0; 4], [0; 4], 64);
    let mut frames = Vec::new();
    let mut sequence = 1_000_u32;
    if protocol == TCP {
        let builder = ethernet().tcp(0, remote_port, sequence, 65_535).syn();
        frames.push(built(|frame| builder.write(frame, &[]))?);
        sequence += 1;
    }
    for payload in payloads {
        frames.push(if protocol == TCP {
            let builder = ethernet().tcp(0, remote_port, sequence, 65_535).ack(1).psh();
            sequence += u32::try_from(payload.len())?;
            built(|frame| builder.write(frame, &payload))?
        } else {
            let builder = ethernet().udp(0, remote_port);
            built(|frame| builder.write(frame, &payload))?
        });
    }
    let class = if kind == Kind::Dns { Class::System } else { class };
    Ok(Opening { kind, class, protocol, remote_port, frames })
}

fn built<E: std::error::Error + Send + Sync + 'static>(
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    write(&mut frame).context("build a frame")?;
    Ok(frame)
}

fn segments(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.chunks(SEGMENT).map(<[u8]>::to_vec).collect()
}

/// A client that offers `first` as its key share.
fn client(first: &'static dyn SupportedKxGroup, alpn: &[u8]) -> Result<rustls::ClientConfig> {
    let provider = CryptoProvider { kx_groups: vec![first, X25519], ..aws_lc_rs::default_provider() };
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

fn client_hello(name: &str, first: &'static dyn SupportedKxGroup) -> Result<Vec<u8>> {
    let name = name.to_owned().try_into().context("a server name")?;
    let mut connection = rustls::ClientConnection::new(Arc::new(client(first, b"h2")?), name)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

/// The first datagrams of a QUIC client, as they arrive where nobody answers.
async fn initials(name: &str) -> Result<Vec<Vec<u8>>> {
    let silent = UdpSocket::bind("127.0.0.1:0")?;
    silent.set_read_timeout(Some(Duration::from_millis(200)))?;
    let config = QuicClientConfig::try_from(client(X25519MLKEM768, b"h3")?).context("a QUIC client")?;
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(config)), silent.local_addr()?, name)?;
    // It sends from a task of its own.
    let received = tokio::task::spawn_blocking(move || {
        let mut datagrams = Vec::new();
        let mut buffer = [0; 2_048];
        while datagrams.len() < 2 {
            let length = silent.recv(&mut buffer).context("a client's Initial")?;
            datagrams.push(buffer[..length].to_vec());
        }
        anyhow::Ok(datagrams)
    });
    let datagrams = received.await??;
    drop(connecting);
    Ok(datagrams)
}

/// A question for the IPv4 address of `name` (RFC 1035, 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}
