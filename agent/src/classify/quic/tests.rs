//! Connections whose hellos and keys are rustls's, cut and sent in every way a client may.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use proptest::sample::Index;
use rustls::Side;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::quic::{ClientConnection, Keys, Version};

use super::*;

const NAME: &str = "seg.streams.example";
const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;
const DRAFT_29: u32 = 0xff00_001d;

/// The ClientHello of a QUIC client, with post-quantum key shares or without.
fn hello(post_quantum: bool) -> Vec<u8> {
    static HELLOS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let hellos = HELLOS.get_or_init(|| {
        [false, true].map(|post_quantum| {
            let mut provider = default_provider();
            provider.kx_groups = if post_quantum {
                vec![kx_group::X25519MLKEM768, kx_group::X25519]
            } else {
                vec![kx_group::X25519]
            };
            let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h3".to_vec()];
            let server = rustls::pki_types::ServerName::try_from(NAME).unwrap();
            let mut connection =
                ClientConnection::new(Arc::new(config), Version::V1, server, vec![4, 4, 0x80, 1, 0, 0])
                    .unwrap();
            let mut hello = Vec::new();
            connection.write_hs(&mut hello);
            hello
        })
    });
    hellos[usize::from(post_quantum)].clone()
}

fn varint(value: usize) -> [u8; 4] {
    (u32::try_from(value).unwrap() | 0x8000_0000).to_be_bytes()
}

fn crypto(hello: &[u8], from: usize, to: usize) -> Vec<u8> {
    [&[6][..], &varint(from), &varint(to - from), &hello[from..to]].concat()
}

/// How a client sends: the version in its headers, the salts it uses, its ids.
#[derive(Debug, Clone, Copy)]
struct Sender {
    version: u32,
    salts: Version,
    /// By which the keys are derived.
    original: [u8; 8],
    /// In the header.
    connection_id: [u8; 8],
}

impl Sender {
    fn new(version: u32, salts: Version) -> Self {
        Self { version, salts, original: *b"original", connection_id: *b"original" }
    }

    fn initial(&self, number: u8, frames: &[u8]) -> Vec<u8> {
        self.sealed(Side::Client, number, frames)
    }

    /// A sealed Initial packet.
    fn sealed(&self, side: Side, number: u8, frames: &[u8]) -> Vec<u8> {
        let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let keys = Keys::initial(self.salts, suite, suite.quic.unwrap(), &self.original, side).local;
        let long_type = u8::from(matches!(self.salts, Version::V2));
        let mut payload = frames.to_vec();
        payload.resize(payload.len().max(4), 0);
        let mut header = vec![0xc0 | long_type << 4];
        header.extend(self.version.to_be_bytes());
        header.push(8);
        header.extend(self.connection_id);
        header.extend([3, 1, 2, 3]);
        header.extend([5, b't', b'o', b'k', b'e', b'n']);
        header.extend(varint(1 + payload.len() + 16));
        let number_at = header.len();
        header.push(number);
        let tag = keys.packet.encrypt_in_place(u64::from(number), &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (first, rest) = header.split_at_mut(1);
        let number = &mut rest[number_at - 1..];
        keys.header.encrypt_in_place(&payload[3..19], &mut first[0], number).unwrap();
        [header, payload].concat()
    }

    /// A datagram with one Initial, padded as clients must.
    fn padded(&self, number: u8, frames: &[u8]) -> Vec<u8> {
        let mut frames = frames.to_vec();
        frames.resize(frames.len().max(1_200), 0);
        self.initial(number, &frames)
    }
}

/// A hello for `seg.streams.example` as two datagrams.
pub(in crate::classify) fn datagrams() -> [Vec<u8>; 2] {
    let (hello, sender) = (hello(true), Sender::new(V1, Version::V1));
    [sender.padded(0, &crypto(&hello, 900, hello.len())), sender.padded(1, &crypto(&hello, 0, 900))]
}

fn named() -> Step {
    Step::Name(NAME.into(), Via::Sni)
}

fn up(connection: &mut Connection, datagram: &[u8]) -> Step {
    connection.datagram(Direction::Up, datagram)
}

#[test]
fn the_name_is_read_in_every_version_that_has_salts() {
    let frames = crypto(&hello(false), 0, hello(false).len());
    for (version, salts) in [
        (V1, Version::V1),
        (V2, Version::V2),
        (DRAFT_29, Version::V1Draft),
        (0xff00_0020, Version::V1Draft),
        (0xff00_0022, Version::V1),
        // mvfst; a vendor's; one that forces version negotiation.
        (0xface_b00e, Version::V1Draft),
        (0xface_b002, Version::V1),
        (0xabcd_0000, Version::V1),
        (0x1a2a_3a4a, Version::V2),
        (0x5a6a_7a8a, Version::V1Draft),
    ] {
        let datagram = Sender::new(version, salts).padded(0, &frames);
        assert!(may_begin(&datagram));
        assert_eq!(up(&mut Connection::default(), &datagram), named(), "{version:#x}");
    }
}

#[test]
fn a_hello_over_two_datagrams_is_read_in_either_order() {
    let hello = hello(true);
    assert!(hello.len() > 1_200, "a post-quantum hello");
    let sender = Sender::new(V1, Version::V1);
    // The name near the beginning of a hello shows before the rest; so cut before it.
    let name = hello.windows(NAME.len()).position(|window| window == NAME.as_bytes()).unwrap();
    let first = sender.padded(0, &crypto(&hello, 0, name));
    let second = sender.padded(1, &crypto(&hello, name, hello.len()));
    for [a, b] in [[&first, &second], [&second, &first]] {
        let mut connection = Connection::default();
        assert_eq!(up(&mut connection, a), Step::More);
        assert_eq!(up(&mut connection, a), Step::More, "a repeat");
        assert_eq!(up(&mut connection, b), named());
    }
}

#[test]
fn coalesced_packets_are_all_read() {
    let hello = hello(false);
    let sender = Sender::new(V1, Version::V1);
    // A 0-RTT packet before and between.
    let zero_rtt = [&[0xd0, 0, 0, 0, 1, 8][..], b"original", &[0, 20], &[7; 20]].concat();
    let first = sender.initial(0, &crypto(&hello, 0, 60));
    let second = sender.initial(1, &crypto(&hello, 60, hello.len()));
    let datagram = [&zero_rtt, &first, &zero_rtt, &second].map(|packet| &packet[..]).concat();
    assert_eq!(up(&mut Connection::default(), &datagram), named());
}

#[test]
fn after_a_retry_the_new_connection_id_gives_the_keys() {
    let hello = hello(true);
    let sender = Sender::new(V1, Version::V1);
    let mut connection = Connection::default();
    assert_eq!(up(&mut connection, &sender.padded(0, &crypto(&hello, 0, 40))), Step::More);
    let retry = [&[0xf0, 0, 0, 0, 1, 3, 1, 2, 3, 8][..], b"newplace", &[9; 40]].concat();
    assert_eq!(connection.datagram(Direction::Down, &retry), Step::More);
    let again = Sender { original: *b"newplace", connection_id: *b"newplace", ..sender };
    assert_eq!(up(&mut connection, &again.padded(1, &crypto(&hello, 0, 40))), Step::More);
    assert_eq!(up(&mut connection, &again.padded(2, &crypto(&hello, 40, hello.len()))), named());
}

#[test]
fn the_keys_stay_when_the_client_takes_the_servers_connection_id() {
    let hello = hello(true);
    let sender = Sender::new(V1, Version::V1);
    let mut connection = Connection::default();
    assert_eq!(up(&mut connection, &sender.padded(0, &crypto(&hello, 40, hello.len()))), Step::More);
    let answer =
        Sender { connection_id: *b"\x01\x02\x03clien", ..sender }.sealed(Side::Server, 0, &[2, 0, 0, 0, 0]);
    assert_eq!(connection.datagram(Direction::Down, &answer), Step::More);
    let later = Sender { connection_id: *b"servers!", ..sender };
    assert_eq!(up(&mut connection, &later.padded(1, &crypto(&hello, 0, 40))), named());
}

#[test]
fn a_name_is_found_downwards_too() {
    let hello = hello(false);
    let datagram = Sender::new(V1, Version::V1).padded(0, &crypto(&hello, 0, hello.len()));
    assert_eq!(Connection::default().datagram(Direction::Down, &datagram), named());
}

#[test]
fn what_is_no_initial_begins_nothing_and_costs_no_keys() {
    for other in [
        &b""[..],
        &[0x80; 1_300],
        &[0x40; 1_300],
        // A version that is not known, in a datagram too short for a client's first.
        &[&[0xc0, 0xaa, 0xbb, 0xcc, 0xdd, 0, 0, 0, 20][..], &[0; 20]].concat(),
    ] {
        assert!(!may_begin(other), "{other:?}");
    }
}

#[test]
fn packets_that_do_not_open_are_given_up() {
    let mut connection = Connection::default();
    let hello = hello(false);
    let sender = Sender { original: *b"another!", ..Sender::new(V1, Version::V1) };
    let datagram = sender.padded(0, &crypto(&hello, 0, hello.len()));
    for _ in 1..MAX_FAILURES {
        assert_eq!(up(&mut connection, &datagram), Step::More);
    }
    assert_eq!(up(&mut connection, &datagram), Step::Nothing);
    // Of a version that is not known, all keys were tried, and sooner is enough.
    let mut connection = Connection::default();
    let datagram = Sender { version: 0x1234_5678, ..sender }.padded(0, &crypto(&hello, 0, hello.len()));
    assert_eq!(up(&mut connection, &datagram), Step::More);
    assert_eq!(up(&mut connection, &datagram), Step::Nothing);
}

#[test]
fn a_flow_of_quic_has_one_verdict() {
    use crate::classify::{Catalogue, Classifier, Observation};
    use crate::dataplane::Sample;
    use usher_models::Class;
    use usher_models::units::Micros;
    use usher_models::wire::FlowKey;

    let hello = hello(true);
    let sender = Sender::new(V1, Version::V1);
    let mut classifier = Classifier::new(Catalogue::built_in());
    let observations = [(0, 40), (40, hello.len()), (40, hello.len())].map(|(from, to)| {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .udp(5_000, 443)
            .write(&mut packet, &sender.padded(0, &crypto(&hello, from, to)))
            .unwrap();
        let flow = FlowKey {
            subscriber: [1; 16],
            remote: [2; 16],
            subscriber_port: 5_000,
            remote_port: 443,
            protocol: 17,
            zero: [0; 3],
        };
        let now = Micros::new(0);
        classifier.observe(&Sample {
            flow,
            slot: 1,
            direction: Direction::Up,
            first_packet: now,
            seen: now,
            packet: packet.into(),
        })
    });
    assert_eq!(observations[0], Observation::NeedMore);
    let Observation::Named(verdict) = &observations[1] else { panic!("{observations:?}") };
    assert_eq!((verdict.name.as_deref(), verdict.class, verdict.via), (Some(NAME), Class::Video, Via::Sni));
    assert_eq!(observations[2], Observation::Again { class: Class::Video, sampling: false });
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

#[test]
fn googles_hello_is_read_in_the_clear() {
    let table = [&b"CHLO\x02\0\0\0PAD\0\x03\0\0\0SNI\0\x16\0\0\0"[..], b"---", NAME.as_bytes()].concat();
    let early = [&[0x0d][..], b"clientid", b"Q043", &[1], &[0; 12], &[0xa0, 1, 0, 0], &table].concat();
    let late =
        [&[0xc3][..], b"Q046", &[0x50], b"clientid", &[0, 0, 0, 1], &[0; 12], &[0xa0, 1, 0, 0], &table]
            .concat();
    for datagram in [early, late] {
        assert!(may_begin(&datagram));
        assert_eq!(up(&mut Connection::default(), &datagram), named());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_hello_cut_shuffled_repeated_and_spread_is_read(
        post_quantum in any::<bool>(),
        salts in prop_oneof![Just((V1, Version::V1)), Just((V2, Version::V2)), Just((DRAFT_29, Version::V1Draft))],
        cuts in proptest::collection::vec(any::<Index>(), 0..40),
        order in any::<u64>(),
        repeats in proptest::collection::vec(any::<Index>(), 0..6),
        datagrams in 1_usize..6,
        padding in 0_usize..9,
    ) {
        let hello = hello(post_quantum);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(hello.len())).collect();
        places.extend([0, hello.len()]);
        places.sort_unstable();
        places.dedup();
        let mut frames: Vec<Vec<u8>> = places.windows(2).map(|cut| crypto(&hello, cut[0], cut[1])).collect();
        // Overlapping repeats of what came.
        for repeat in repeats {
            let from = repeat.index(hello.len());
            frames.push(crypto(&hello, from, hello.len().min(from + 90)));
        }
        let mut state = order;
        frames.sort_by_cached_key(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 20
        });
        let sender = Sender::new(salts.0, salts.1);
        let mut connection = Connection::default();
        let mut steps = Vec::new();
        for (number, frames) in frames.chunks(frames.len().div_ceil(datagrams)).enumerate() {
            let payload: Vec<u8> =
                frames.iter().flat_map(|frame| frame.iter().copied().chain(std::iter::repeat_n(0, padding))).collect();
            steps.push(up(&mut connection, &sender.padded(u8::try_from(number).unwrap(), &payload)));
        }
        let first = steps.iter().position(|step| *step != Step::More);
        prop_assert_eq!(first.map(|at| steps[at].clone()), Some(named()));
    }

    #[test]
    fn any_datagrams_are_read_within_bounds(
        datagrams in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..1_500), any::<u8>(), 0_usize..3), 0..40),
    ) {
        let mut connection = Connection::default();
        for (down, mut bytes, length, shape) in datagrams {
            let head: &[u8] = match shape {
                0 => &[],
                1 => &[0xc1, 0, 0, 0, 1, 4, 1, 2, 3, 4, 0, 0, 0x44, length],
                _ => &[0x0d, 1, 2, 3, 4, 5, 6, 7, 8, b'Q', b'0', b'3', b'9', b'C', b'H', b'L', b'O', length, 0],
            };
            let shared = head.len().min(bytes.len());
            bytes[..shared].copy_from_slice(&head[..shared]);
            may_begin(&bytes);
            let direction = if down { Direction::Down } else { Direction::Up };
            if connection.datagram(direction, &bytes) != Step::More {
                break;
            }
            prop_assert!(connection.held() <= crypto::MAX_BYTES);
        }
    }

    #[test]
    fn a_damaged_datagram_is_read_without_panic(at in any::<Index>(), byte in any::<u8>(), cut in any::<Index>()) {
        let hello = hello(false);
        let mut datagram = Sender::new(V1, Version::V1).padded(0, &crypto(&hello, 0, hello.len()));
        let place = at.index(datagram.len());
        datagram[place] = byte;
        datagram.truncate(cut.index(datagram.len() + 1));
        up(&mut Connection::default(), &datagram);
    }
}
