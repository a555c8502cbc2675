//! The frames in a client's Initial packets, which no bytes by chance are: sealed here as clients seal them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{DirectionalKeys, Keys, Version};
use usher_fuzz::{Line, UDP};
use usher_models::wire::Direction;

const CONNECTION_ID: [u8; 8] = *b"original";

static KEYS: LazyLock<DirectionalKeys> = LazyLock::new(|| {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let quic = suite.quic.expect("a suite of QUIC");
    Keys::initial(Version::V1, suite, quic, &CONNECTION_ID, Side::Client).local
});

/// An Initial packet of version 1 with this payload.
fn initial(number: u8, frames: &[u8]) -> Vec<u8> {
    let mut payload = frames.to_vec();
    payload.resize(payload.len().max(4), 0);
    let length = u16::try_from(1 + payload.len() + 16).unwrap_or(u16::MAX) | 0x4000;
    let mut header = [&[0xc0, 0, 0, 0, 1, 8][..], &CONNECTION_ID, &[0, 0], &length.to_be_bytes()].concat();
    let number_at = header.len();
    header.push(number);
    let sealed = KEYS.packet.encrypt_in_place(u64::from(number), &header, &mut payload);
    payload.extend(sealed.expect("a payload that fits").as_ref());
    let (first, rest) = header.split_at_mut(1);
    let masked = KEYS.header.encrypt_in_place(&payload[3..19], &mut first[0], &mut rest[number_at - 1..]);
    masked.expect("a sample and a header");
    [header, payload].concat()
}

// Input: payloads, each after a byte: its length.
fuzz_target!(|data: &[u8]| {
    let mut line = Line::new(UDP, 40_000, 443);
    let (mut rest, mut number) = (data, 0);
    while let Some((length, more)) = rest.split_first() {
        let (frames, more) = more.split_at((usize::from(*length) * 8).min(more.len()));
        rest = more;
        line.datagram(Direction::Up, &initial(number, frames));
        number = number.wrapping_add(1);
    }
    line.end();
});
