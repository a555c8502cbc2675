//! ClientHellos of rustls, as it makes them and altered, on their way through a network that cuts, shuffles, repeats and loses.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use proptest::sample::Index;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{default_provider, hpke};

use crate::delivery::{self, Part, cuts};
use crate::hello::Hello;
use crate::rows::{self, ETHERNET, Frame, Row};
use crate::traffic::{self, End};
use crate::wrap::{Bytes, Content, ethernet};

const NAME: &str = "seg.a-name.example.org";

fn ends(port: u16) -> (End, End) {
    ((IpAddr::from([10, 0, 0, 2]), port), (IpAddr::from([192, 0, 2, 1]), 443))
}

/// The name asked for, if enough of it came.
fn asked(came: bool) -> Option<String> {
    came.then(|| NAME.to_owned())
}

/// The rows of these packets.
fn rows(packets: Vec<Vec<u8>>) -> Vec<Row> {
    let frames: Vec<Frame> = packets
        .into_iter()
        .enumerate()
        .map(|(at, ip)| Frame { at: at as u64, bytes: ethernet(Content::Ip(Bytes::whole(ip))) })
        .collect();
    rows::of_frames(ETHERNET, &frames)
}

/// What a connection is called whose client says this.
fn name_of(stream: &[u8]) -> Option<String> {
    let (client, server) = ends(40_000);
    let rows = rows(traffic::connection(client, server, stream, 100));
    assert_eq!(rows.len(), 1);
    rows[0].name.clone()
}

/// What a connection is called of which these packets are seen.
fn name_in(handshake: bool, parts: &[Part]) -> Option<String> {
    let (client, server) = ends(40_000);
    let mut rows = rows(delivery::packets(client, server, handshake, parts));
    assert!(rows.len() <= 1, "{rows:?}");
    rows.pop()?.name
}

fn hello(post_quantum: bool) -> Hello {
    Hello::of(&traffic::hello(NAME, post_quantum))
}

/// A hello with the extension of an encrypted hello, as rustls makes it for servers that take none (RFC 9849, 6.2).
fn greased() -> Vec<u8> {
    static GREASED: OnceLock<Vec<u8>> = OnceLock::new();
    GREASED
        .get_or_init(|| {
            let suite = hpke::ALL_SUPPORTED_SUITES[0];
            let (key, _) = suite.generate_key_pair().unwrap();
            let config = rustls::ClientConfig::builder_with_provider(default_provider().into())
                .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, key)))
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let server = NAME.to_owned().try_into().unwrap();
            let mut connection = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
            let mut hello = Vec::new();
            connection.write_tls(&mut hello).unwrap();
            hello
        })
        .clone()
}

/// Where the name ends in a stream.
fn end_of_name(stream: &[u8]) -> usize {
    NAME.len() + stream.windows(NAME.len()).position(|window| window == NAME.as_bytes()).unwrap()
}

#[test]
fn a_hello_taken_apart_and_put_together_is_the_same() {
    let original = traffic::hello(NAME, true);
    assert_eq!(Hello::of(&original).records([3, 1], 1 << 14), original);
}

#[test]
fn names_are_read_in_whatever_form_they_are_asked_in() {
    for (asked, expected) in [
        (&b"seg.a-name.example.org"[..], Some("seg.a-name.example.org")),
        (b"SEG.A-Name.eXample.ORG", Some("seg.a-name.example.org")),
        (b"seg.a-name.example.org.", Some("seg.a-name.example.org")),
        (b"xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        (b"_dmarc.under_score.example", Some("_dmarc.under_score.example")),
        (b"localhost", Some("localhost")),
        (b"", None),
        (b"..", None),
        (b"name with spaces.example", None),
        (b"line\nbreak.example", None),
        (b"nul\0.example", None),
        (b"\xff\xfe.example", None),
    ] {
        let stream = hello(false).named(asked).records([3, 1], 1 << 14);
        let text = String::from_utf8_lossy(asked);
        assert_eq!(name_of(&stream).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn a_hello_without_a_name_has_none() {
    assert_eq!(name_of(&hello(true).nameless().records([3, 1], 1 << 14)), None);
}

#[test]
fn the_outer_name_is_read_beside_an_encrypted_hello() {
    let hello = Hello::of(&greased());
    assert!(hello.place(0xfe0d).is_some(), "encrypted_client_hello");
    assert_eq!(name_of(&greased()).as_deref(), Some(NAME));
    // And beside the encrypted name of before (draft-ietf-tls-esni-02).
    let esni = hello.with(0xffce, vec![7; 366]);
    assert_eq!(name_of(&esni.records([3, 1], 1 << 14)).as_deref(), Some(NAME));
}

#[test]
fn a_hello_in_records_of_one_byte_each_is_read() {
    let stream = hello(false).records([3, 3], 1);
    assert_eq!(name_of(&stream).as_deref(), Some(NAME));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_hello_of_whatever_shape_is_read(
        post_quantum in any::<bool>(),
        minor in 0_u8..=4,
        most in prop_oneof![Just(1 << 14), 1_usize..40, 40_usize..600],
        ciphers in 0_usize..400,
        place in 0_usize..12,
        extensions in proptest::collection::vec((0x1000_u16..0xf000, 0_usize..200), 0..5),
        cuts in cuts(5),
    ) {
        let mut hello = hello(post_quantum).name_at(place);
        hello.ciphers.extend((0..ciphers).flat_map(|number| [0xc0, u8::try_from(number % 256).unwrap()]));
        for (kind, length) in extensions {
            hello = hello.with(kind, vec![7; length]);
        }
        // Headers of records take no more than half of what is looked at.
        let most = if hello.handshake().len() > 800 { most.max(10) } else { most };
        let stream = hello.records([3, minor], most);
        prop_assert_eq!(name_of(&stream), asked(true));
        prop_assert_eq!(name_in(true, &cuts.apply(&stream)), asked(true));
    }

    /// All of it comes, in at most ten parts, each once or twice, with the handshake before it.
    #[test]
    fn a_hello_cut_shuffled_overlapped_and_repeated_is_named(post_quantum in any::<bool>(), cuts in cuts(9)) {
        let stream = traffic::hello(NAME, post_quantum);
        prop_assert_eq!(name_in(true, &cuts.apply(&stream)), asked(true));
    }

    /// The same without the handshake: then the first part must show a record's header and what is in it, and at most three
    /// others may come before it.
    #[test]
    fn a_hello_without_its_handshake_is_named(post_quantum in any::<bool>(), cuts in cuts(9), ahead in 0_usize..4) {
        let stream = traffic::hello(NAME, post_quantum);
        let mut parts = cuts.apply(&stream);
        let first = parts.iter().filter(|part| part.from == 0).map(|part| part.bytes.len()).max().unwrap();
        let first = first.clamp(6, stream.len());
        parts.retain(|part| part.from > 0);
        let mut beginning: Vec<Part> = stream[..first]
            .chunks(traffic::SEGMENT)
            .enumerate()
            .map(|(number, bytes)| Part { from: number * traffic::SEGMENT, bytes: bytes.to_vec() })
            .collect();
        parts.insert(ahead.min(parts.len()), beginning.remove(0));
        parts.extend(beginning);
        prop_assert_eq!(name_in(false, &parts), asked(true));
    }

    /// Parts are lost for good: the name is found if and only if all bytes up to its end came.
    #[test]
    fn a_hello_with_lost_parts_is_named_if_its_name_came(
        post_quantum in any::<bool>(),
        cuts in cuts(7),
        lost in proptest::collection::vec(any::<Index>(), 1..4),
    ) {
        let stream = traffic::hello(NAME, post_quantum);
        let mut parts = cuts.apply(&stream);
        for lost in lost {
            if !parts.is_empty() {
                let lost = parts.remove(lost.index(parts.len()));
                parts.retain(|part| *part != lost);
            }
        }
        let came = delivery::beginning(&parts) >= end_of_name(&stream);
        prop_assert_eq!(name_in(true, &parts), asked(came));
    }

    /// What came first stays: later lies about the same bytes change nothing, and earlier ones yield no name but the true one.
    #[test]
    fn overlaps_that_contradict_give_no_wrong_name(
        post_quantum in any::<bool>(),
        cuts in cuts(6),
        lies in proptest::collection::vec((any::<Index>(), 1_usize..300, prop_oneof![Just(0_u8), Just(0xff), Just(b'!')]), 1..4),
        first in any::<bool>(),
    ) {
        let stream = traffic::hello(NAME, post_quantum);
        let parts = cuts.apply(&stream);
        let lies: Vec<Part> = lies
            .into_iter()
            .map(|(place, length, byte)| {
                let from = place.index(stream.len());
                Part { from, bytes: vec![byte; length.min(stream.len() - from)] }
            })
            .collect();
        let all = if first { [lies, parts].concat() } else { [parts, lies].concat() };
        let name = name_in(true, &all);
        if first {
            prop_assert!(name.as_deref().is_none_or(|name| name == NAME), "{name:?}");
        } else {
            prop_assert_eq!(name.as_deref(), Some(NAME));
        }
    }

    /// Acknowledgements with octets of no meaning where the first bytes belong: what keeps connections alive, what pads.
    #[test]
    fn junk_on_bare_acknowledgements_spoils_no_stream(
        post_quantum in any::<bool>(),
        handshake in any::<bool>(),
        cuts in cuts(2),
        junk in proptest::collection::vec(
            (prop_oneof![Just(0_usize), Just(1)], prop_oneof![
                proptest::collection::vec(Just(0_u8), 1..7),
                proptest::collection::vec(any::<u8>(), 1..7),
            ]),
            1..4,
        ),
    ) {
        let stream = traffic::hello(NAME, post_quantum);
        let (client, server) = ends(40_000);
        let mut packets = delivery::packets(client, server, handshake, &[]);
        for (before, bytes) in junk {
            let mut part = Part { from: 0, bytes };
            if before == 1 {
                part.bytes.truncate(1);
            }
            let sequence = delivery::SYN.wrapping_add(u32::from(before == 0));
            let segment = traffic::Segment { sequence, syn: false, acknowledgement: Some(900), bytes: &part.bytes };
            packets.push(segment.packet(client, server));
        }
        let mut parts = cuts.apply(&stream);
        parts.sort_by_key(|part| part.from);
        // What begins a hello shows it, and its rest joins it.
        let first = parts.iter().map(|part| part.bytes.len()).next().unwrap_or(0);
        prop_assume!(first >= 6 && parts[0].from == 0);
        packets.extend(parts.iter().map(|part| delivery::packet(client, server, part)));
        let rows = rows(packets);
        prop_assert_eq!(rows.len(), 1);
        prop_assert_eq!(rows[0].name.as_deref(), Some(NAME));
    }
}
