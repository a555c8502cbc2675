//! Conversations of real libraries, as the IP packets they are sent in.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use domain::base::iana::Rtype;
use domain::base::{MessageBuilder, Name};
use etherparse::PacketBuilder;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;

/// Most bytes of a segment.
pub(crate) const SEGMENT: usize = 1_400;

/// One end of a flow.
pub(crate) type End = (IpAddr, u16);

/// The configuration of a TLS client, with a post-quantum key share or without.
pub(crate) fn client(post_quantum: bool) -> Arc<rustls::ClientConfig> {
    static CONFIGS: OnceLock<[Arc<rustls::ClientConfig>; 2]> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        [false, true].map(|post_quantum| {
            let mut provider = default_provider();
            provider.kx_groups = if post_quantum {
                vec![kx_group::X25519MLKEM768, kx_group::X25519]
            } else {
                vec![kx_group::X25519, kx_group::SECP256R1]
            };
            let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Arc::new(config)
        })
    });
    Arc::clone(&configs[usize::from(post_quantum)])
}

/// The first bytes of a TLS client.
pub(crate) fn hello(name: &str, post_quantum: bool) -> Vec<u8> {
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(client(post_quantum), server).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// A question for a name, and its answer with an address.
pub(crate) fn resolution(name: &str, address: [u8; 4]) -> [Vec<u8>; 2] {
    let name: Name<Vec<u8>> = name.parse().unwrap();
    let mut question = MessageBuilder::new_vec().question();
    question.header_mut().set_id(7);
    question.header_mut().set_rd(true);
    question.push((&name, Rtype::A)).unwrap();
    let asked = question.into_message();
    let mut answer =
        MessageBuilder::new_vec().start_answer(&asked, domain::base::iana::Rcode::NOERROR).unwrap();
    answer.push((&name, 60, domain::rdata::A::new(address.into()))).unwrap();
    [asked.into_octets(), answer.finish()]
}

/// A UDP datagram.
pub(crate) fn datagram(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64)
            .udp(from.1, to.1)
            .write(&mut packet, payload)
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64)
            .udp(from.1, to.1)
            .write(&mut packet, payload)
            .unwrap(),
        _ => unreachable!("a flow is of one version"),
    }
    packet
}

/// A TCP segment; of its flags only SYN and ACK.
#[derive(Debug, Clone)]
pub(crate) struct Segment<'a> {
    pub(crate) sequence: u32,
    pub(crate) syn: bool,
    pub(crate) acknowledgement: Option<u32>,
    pub(crate) bytes: &'a [u8],
}

impl Segment<'_> {
    /// As the packet it is sent in.
    pub(crate) fn packet(&self, from: End, to: End) -> Vec<u8> {
        let mut header = etherparse::TcpHeader::new(from.1, to.1, self.sequence, 64_000);
        header.syn = self.syn;
        header.ack = self.acknowledgement.is_some();
        header.acknowledgment_number = self.acknowledgement.unwrap_or(0);
        let mut packet = Vec::new();
        match (from.0, to.0) {
            (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64)
                .tcp_header(header)
                .write(&mut packet, self.bytes)
                .unwrap(),
            (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64)
                .tcp_header(header)
                .write(&mut packet, self.bytes)
                .unwrap(),
            _ => unreachable!("a flow is of one version"),
        }
        packet
    }
}

/// A TCP connection on which the client says this and the server answers with `answer` bytes of no meaning.
pub(crate) fn connection(client: End, server: End, says: &[u8], answer: usize) -> Vec<Vec<u8>> {
    let syn = |acknowledgement, sequence| Segment { sequence, syn: true, acknowledgement, bytes: &[] };
    let mut packets = vec![syn(None, 99).packet(client, server), syn(Some(100), 899).packet(server, client)];
    let part = |number: usize, acknowledgement, sequence: u32, bytes| Segment {
        sequence: sequence + u32::try_from(number * SEGMENT).unwrap(),
        syn: false,
        acknowledgement: Some(acknowledgement),
        bytes,
    };
    packets.push(part(0, 900, 100, &[]).packet(client, server));
    for (number, bytes) in says.chunks(SEGMENT).enumerate() {
        packets.push(part(number, 900, 100, bytes).packet(client, server));
    }
    let end = 100 + u32::try_from(says.len()).unwrap();
    for (number, bytes) in vec![7; answer].chunks(SEGMENT).enumerate() {
        packets.push(part(number, end, 900, bytes).packet(server, client));
    }
    packets
}
