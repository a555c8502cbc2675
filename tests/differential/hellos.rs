//! What real clients say first: rustls's hellos, in TLS records and in QUIC's Initial packets; and questions of DNS.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::quic::{Keys, Version};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Side};

fn config(post_quantum: bool) -> Arc<ClientConfig> {
    let kx_groups =
        if post_quantum { vec![kx_group::X25519MLKEM768, kx_group::X25519] } else { vec![kx_group::X25519] };
    let provider = CryptoProvider { kx_groups, ..default_provider() };
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.into()
}

fn server(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

/// The first flight of a TLS client.
pub(crate) fn tls(name: &str, post_quantum: bool) -> Vec<u8> {
    let mut hello = Vec::new();
    ClientConnection::new(config(post_quantum), server(name)).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// A QUIC client: what it says first, and how.
pub(crate) struct Quic {
    pub(crate) hello: Vec<u8>,
    /// In its headers.
    pub(crate) version: u32,
    /// Whose salts it uses.
    pub(crate) salts: Version,
    pub(crate) token: &'static [u8],
    /// By which the keys are derived.
    pub(crate) connection_id: [u8; 8],
}

impl Quic {
    /// To `name`, by ids that are those of no other case.
    pub(crate) fn new(name: &str, post_quantum: bool, case: u16) -> Self {
        let parameters = vec![4, 4, 0x80, 1, 0, 0];
        let mut hello = Vec::new();
        rustls::quic::ClientConnection::new(config(post_quantum), Version::V1, server(name), parameters)
            .unwrap()
            .write_hs(&mut hello);
        let [high, low] = case.to_be_bytes();
        let connection_id = [b'c', b'l', b'i', b'e', b'n', b't', high, low];
        Self { hello, version: 1, salts: Version::V1, token: &[], connection_id }
    }

    /// A CRYPTO frame with a part of the hello.
    pub(crate) fn frame(&self, from: usize, to: usize) -> Vec<u8> {
        [&[6][..], &varint(from), &varint(to - from), &self.hello[from..to]].concat()
    }

    /// A datagram with one Initial, padded as clients must.
    pub(crate) fn datagram(&self, number: u8, frames: &[u8]) -> Vec<u8> {
        let mut payload = frames.to_vec();
        payload.resize(payload.len().max(1_162), 0);
        self.initial(number, payload)
    }

    /// An Initial packet.
    pub(crate) fn initial(&self, number: u8, mut payload: Vec<u8>) -> Vec<u8> {
        let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let keys =
            Keys::initial(self.salts, suite, suite.quic.unwrap(), &self.connection_id, Side::Client).local;
        let mut header = vec![0xc0 | u8::from(matches!(self.salts, Version::V2)) << 4];
        header.extend(self.version.to_be_bytes());
        header.push(8);
        header.extend(self.connection_id);
        header.extend([3, 1, 2, 3]);
        header.push(u8::try_from(self.token.len()).unwrap());
        header.extend(self.token);
        header.extend(varint(1 + payload.len() + 16));
        let number_at = header.len();
        header.push(number);
        let tag = keys.packet.encrypt_in_place(u64::from(number), &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (first, rest) = header.split_at_mut(1);
        keys.header.encrypt_in_place(&payload[3..19], &mut first[0], &mut rest[number_at - 1..]).unwrap();
        [header, payload].concat()
    }
}

fn varint(value: usize) -> [u8; 4] {
    (u32::try_from(value).unwrap() | 0x8000_0000).to_be_bytes()
}

/// A question for the address of `name`, as it is written.
pub(crate) fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The answer to it: an alias, and the alias's address.
pub(crate) fn answer(name: &str) -> Vec<u8> {
    let mut message = question(name);
    message[2] = 0x81;
    message[7] = 2;
    let alias = u16::try_from(message.len() + 12).unwrap() | 0xc000;
    message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 6]);
    message.extend(b"\x03cdn\xc0");
    message.push(12);
    message.extend(alias.to_be_bytes());
    message.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 7]);
    message
}

/// A message as it goes over TCP.
pub(crate) fn prefixed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}
