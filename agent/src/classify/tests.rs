//! The classifier as the agent drives it: packets of whole flows in, observations out.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use etherparse::PacketBuilder;
use proptest::prelude::*;
use usher_models::Class;
use usher_models::wire::{ANONYMOUS, Direction};

use super::dns::tests::{answer, query};
use super::*;

mod bounds;
mod protocols;
mod reload;
mod resolving;
mod upgrades;

const SUBSCRIBER: [u8; 4] = [10, 0, 0, 2];
const SERVER: [u8; 4] = [192, 0, 2, 10];
const RESOLVER: [u8; 4] = [192, 0, 2, 53];

fn at(millis: i64) -> Micros {
    Micros::new(1_700_000_000_000_000 + millis * 1_000)
}

fn key(protocol: u8, remote: [u8; 4], subscriber_port: u16, remote_port: u16) -> FlowKey {
    FlowKey {
        subscriber: packet::octets(IpAddr::from(SUBSCRIBER)),
        remote: packet::octets(IpAddr::from(remote)),
        subscriber_port,
        remote_port,
        protocol,
        zero: [0; 3],
    }
}

fn sample(flow: FlowKey, slot: u32, direction: Direction, seen: Micros, packet: Vec<u8>) -> Sample<'static> {
    Sample { flow, slot, direction, first_packet: at(0), seen, packet: packet.into() }
}

/// A TCP segment of one flow, as the classifier gets it.
#[derive(Debug, Clone)]
struct Segment {
    direction: Direction,
    sequence: u32,
    acknowledgement: Option<u32>,
    syn: bool,
    fin: bool,
    bytes: Vec<u8>,
}

impl Segment {
    fn up(sequence: u32, bytes: &[u8]) -> Self {
        Self {
            direction: Direction::Up,
            sequence,
            acknowledgement: Some(1),
            syn: false,
            fin: false,
            bytes: bytes.to_vec(),
        }
    }

    fn down(bytes: &[u8]) -> Self {
        Self { direction: Direction::Down, ..Self::up(900, bytes) }
    }

    fn syn(sequence: u32) -> Self {
        Self { syn: true, acknowledgement: None, ..Self::up(sequence, b"") }
    }

    fn sample(&self, seen: Micros) -> Sample<'static> {
        self.sample_of(key(6, SERVER, 40_000, 443), seen)
    }

    fn sample_of(&self, flow: FlowKey, seen: Micros) -> Sample<'static> {
        let (from, to) = (packet::address(flow.subscriber), packet::address(flow.remote));
        let (from, to, from_port, to_port) = match self.direction {
            Direction::Up => (from, to, flow.subscriber_port, flow.remote_port),
            Direction::Down => (to, from, flow.remote_port, flow.subscriber_port),
        };
        let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
            unreachable!("the tests' flows are IPv4")
        };
        let mut builder =
            PacketBuilder::ipv4(from.octets(), to.octets(), 64).tcp(from_port, to_port, self.sequence, 1_000);
        if let Some(acknowledgement) = self.acknowledgement {
            builder = builder.ack(acknowledgement);
        }
        if self.syn {
            builder = builder.syn();
        }
        if self.fin {
            builder = builder.fin();
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &self.bytes).unwrap();
        sample(flow, 7, self.direction, seen, bytes)
    }
}

fn udp(flow: FlowKey, slot: u32, direction: Direction, seen: Micros, payload: &[u8]) -> Sample<'static> {
    let (from, to, from_port, to_port) = match direction {
        Direction::Up => (flow.subscriber, flow.remote, flow.subscriber_port, flow.remote_port),
        Direction::Down => (flow.remote, flow.subscriber, flow.remote_port, flow.subscriber_port),
    };
    let (IpAddr::V4(from), IpAddr::V4(to)) = (packet::address(from), packet::address(to)) else {
        unreachable!("the tests' flows are IPv4")
    };
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(from_port, to_port);
    builder.write(&mut bytes, payload).unwrap();
    sample(flow, slot, direction, seen, bytes)
}

/// A question and its answer, seen to pass; what was observed of the answer.
fn resolve(classifier: &mut Classifier, slot: u32, name: &str, ttl: u32) -> (Observation, Observation) {
    let flow = key(17, RESOLVER, 5_000, 53);
    let asked = classifier.observe(&udp(flow, slot, Direction::Up, at(0), &query(name)));
    let reply = answer(name, &[SERVER], ttl);
    (asked, classifier.observe(&udp(flow, slot, Direction::Down, at(0), &reply)))
}

/// A ClientHello as rustls makes it, with a post-quantum key share or without.
fn client_hello(name: &str, post_quantum: bool) -> Vec<u8> {
    static CONFIGS: OnceLock<[Arc<rustls::ClientConfig>; 2]> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        [false, true].map(|post_quantum| {
            use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
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
    let server = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection =
        rustls::ClientConnection::new(Arc::clone(&configs[usize::from(post_quantum)]), server).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

fn gave_up(observation: &Observation) -> bool {
    matches!(observation, Observation::GiveUp { .. })
}

fn classifier() -> Classifier {
    Classifier::new(Catalogue::built_in())
}

/// The one verdict among observations that otherwise say nothing new.
fn only_verdict(observations: &[Observation]) -> Option<&Verdict> {
    let mut verdict = None;
    for observation in observations {
        match observation {
            Observation::Named(named) => {
                assert!(verdict.is_none(), "named twice: {observations:?}");
                verdict = Some(named);
            }
            Observation::NeedMore => assert!(verdict.is_none(), "asked for more after the verdict"),
            Observation::Again { .. } => assert!(verdict.is_some()),
            Observation::Upgraded(_) | Observation::GiveUp { .. } => panic!("gave up: {observations:?}"),
        }
    }
    verdict
}

#[test]
fn a_flow_is_named_by_its_client_hello() {
    let mut classifier = classifier();
    let hello = client_hello("seg.streams.example", true);
    assert!(hello.len() > 1_300, "a post-quantum hello takes two segments");
    let observations: Vec<Observation> = [
        Segment::syn(99),
        Segment::up(100, &hello[..1_200]),
        Segment::up(1_300, &hello[1_200..]),
        Segment::down(&[22, 3, 3, 0, 90, 2, 0, 0]),
    ]
    .iter()
    .map(|segment| classifier.observe(&segment.sample(at(0))))
    .collect();
    let verdict = only_verdict(&observations).unwrap();
    assert_eq!(verdict.name.as_deref(), Some("seg.streams.example"));
    assert_eq!(verdict.app.as_deref(), Some("streams"));
    assert_eq!((verdict.class, verdict.via), (Class::Video, Via::Sni));
    assert_eq!(observations.last().unwrap().instruction(), Some((Class::Video, false)));
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

#[test]
fn a_name_the_catalogue_does_not_know_is_of_the_web() {
    let mut classifier = classifier();
    let sample = Segment::up(100, &client_hello("www.unheard.test", false)).sample(at(0));
    let Observation::Named(verdict) = classifier.observe(&sample) else { panic!("not named") };
    assert_eq!((verdict.app, verdict.class, verdict.via), (None, Class::Web, Via::Sni));
    assert_eq!(verdict.name.as_deref(), Some("www.unheard.test"));
}

#[test]
fn the_handshakes_second_half_alone_shows_the_client() {
    let mut classifier = classifier();
    let hello = client_hello("pages.example", false);
    let answer = Segment { syn: true, acknowledgement: Some(100), ..Segment::down(b"") };
    assert_eq!(classifier.observe(&answer.sample(at(0))), Observation::NeedMore);
    assert_eq!(classifier.observe(&Segment::up(150, &hello[50..]).sample(at(1))), Observation::NeedMore);
    let last = classifier.observe(&Segment::up(100, &hello[..50]).sample(at(2)));
    assert!(matches!(last, Observation::Named(_)), "{last:?}");
}

#[test]
fn data_in_the_syn_is_read() {
    let mut classifier = classifier();
    let fast_open = Segment { bytes: client_hello("pages.example", false), ..Segment::syn(99) };
    assert!(matches!(classifier.observe(&fast_open.sample(at(0))), Observation::Named(_)));
}

#[test]
fn a_hello_cut_short_by_sampling_gives_the_name_before_the_cut() {
    let mut classifier = classifier();
    let hello = client_hello("seg.streams.example", true);
    let name = hello.windows(19).position(|window| window == b"seg.streams.example").unwrap();
    let mut sample = Segment::up(100, &hello).sample(at(0));
    sample.packet.to_mut().truncate(40 + name + 19);
    assert!(matches!(classifier.observe(&sample), Observation::Named(_)));
}

#[test]
fn another_protocol_gives_up_at_its_first_bytes() {
    for first in [
        Segment::up(100, b"\x01 unheard of"),
        Segment::down(b"\x01 unheard of"),
        Segment { fin: true, ..Segment::up(100, b"") },
    ] {
        let mut classifier = classifier();
        assert_eq!(classifier.observe(&Segment::syn(99).sample(at(0))), Observation::NeedMore);
        assert!(gave_up(&classifier.observe(&first.sample(at(1)))), "{first:?}");
        let again = classifier.observe(&Segment::up(500, b"more").sample(at(2)));
        assert_eq!(again, Observation::Again { class: Class::Other, sampling: !first.fin });
    }
}

#[test]
fn what_carries_no_name_is_what_carries_it() {
    for (first, app) in [(&b"GET / HTTP/1.0\r\n\r\n"[..], "http"), (&[22, 3, 1, 0, 4, 1, 0, 0, 0], "tls")] {
        let mut classifier = classifier();
        classifier.observe(&Segment::syn(99).sample(at(0)));
        let Observation::Named(verdict) = classifier.observe(&Segment::up(100, first).sample(at(1))) else {
            panic!("not named: {app}")
        };
        assert_eq!(
            (verdict.app.as_deref(), verdict.class, verdict.via),
            (Some(app), Class::Web, Via::Signature)
        );
        // What DNS knows of the address is better.
        resolve(&mut classifier, 7, "seg.streams.example", 60);
        let flow = key(6, SERVER, 40_001, 443);
        let named = classifier.observe(&Segment::up(100, first).sample_of(flow, at(1)));
        let Observation::Named(verdict) = named else { panic!("not named: {named:?}") };
        assert_eq!(
            (verdict.app.as_deref(), verdict.class, verdict.via),
            (Some("streams"), Class::Video, Via::Dns)
        );
    }
}

#[test]
fn the_name_in_a_request_beats_the_name_by_dns() {
    let mut classifier = classifier();
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    let request = b"GET / HTTP/1.1\r\nHost: pages.example:80\r\n\r\n";
    let flow = key(6, SERVER, 40_000, 80);
    assert_eq!(classifier.observe(&Segment::syn(99).sample_of(flow, at(0))), Observation::NeedMore);
    assert_eq!(
        classifier.observe(&Segment::up(100, &request[..30]).sample_of(flow, at(0))),
        Observation::NeedMore
    );
    let named = classifier.observe(&Segment::up(130, &request[30..]).sample_of(flow, at(0)));
    let Observation::Named(verdict) = named else { panic!("{named:?}") };
    assert_eq!((verdict.via, verdict.app.as_deref()), (Via::Http, Some("pages")));
    assert_eq!(verdict.name.as_deref(), Some("pages.example:80"));
}

#[test]
fn of_a_request_to_an_address_dns_knows_the_app() {
    let mut classifier = classifier();
    let request = Segment::up(100, b"GET / HTTP/1.1\r\nHost: 192.0.2.10\r\n\r\n");
    let before = classifier.observe(&request.sample_of(key(6, SERVER, 40_000, 80), at(0)));
    let Observation::Named(verdict) = before else { panic!("{before:?}") };
    assert_eq!((verdict.via, verdict.app, verdict.class), (Via::Http, None, Class::Web));
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    let after = classifier.observe(&request.sample_of(key(6, SERVER, 40_001, 80), at(0)));
    let Observation::Named(verdict) = after else { panic!("{after:?}") };
    assert_eq!(
        (verdict.via, verdict.app.as_deref(), verdict.class),
        (Via::Dns, Some("streams"), Class::Video)
    );
    assert_eq!(verdict.name.as_deref(), Some("192.0.2.10"));
}

#[test]
fn a_mail_servers_greeting_is_waited_through_for_the_hello() {
    let mut classifier = classifier();
    let words = b"EHLO a\r\nSTARTTLS\r\n";
    let hello = client_hello("pages.example", true);
    let after = 100 + u32::try_from(words.len()).unwrap();
    let observations: Vec<Observation> = [
        Segment::syn(99),
        Segment::down(b"220 mail.test ESMTP\r\n"),
        Segment::up(100, &words[..8]),
        Segment::down(b"250 STARTTLS\r\n"),
        Segment::up(108, &words[8..]),
        Segment::down(b"220 go ahead\r\n"),
        Segment::up(after, &hello),
    ]
    .iter()
    .map(|segment| classifier.observe(&segment.sample_of(key(6, SERVER, 40_000, 25), at(0))))
    .collect();
    assert_eq!(only_verdict(&observations).unwrap().via, Via::Sni);
}

#[test]
fn octets_that_keep_a_connection_alive_spoil_no_stream() {
    let mut classifier = classifier();
    let hello = client_hello("pages.example", false);
    classifier.observe(&Segment::syn(99).sample(at(0)));
    for junk in [&[0][..], &[0; 6]] {
        assert_eq!(classifier.observe(&Segment::up(100, junk).sample(at(0))), Observation::NeedMore);
    }
    assert!(matches!(classifier.observe(&Segment::up(100, &hello).sample(at(0))), Observation::Named(_)));
}

#[test]
fn a_request_after_lost_bytes_is_read_by_itself() {
    let mut classifier = classifier();
    classifier.observe(&Segment::syn(99).sample(at(0)));
    let rest = Segment::up(700, b"the end of something lost\r\n");
    assert_eq!(classifier.observe(&rest.sample(at(0))), Observation::NeedMore);
    let second = Segment::up(800, b"GET / HTTP/1.1\r\nHost: pages.example\r\n\r\n");
    assert!(matches!(classifier.observe(&second.sample(at(0))), Observation::Named(_)));
}

#[test]
fn a_new_connection_on_the_same_ports_is_another_flow() {
    let mut classifier = classifier();
    let hello = client_hello("pages.example", false);
    classifier.observe(&Segment::syn(99).sample(at(0)));
    assert!(matches!(classifier.observe(&Segment::up(100, &hello).sample(at(1))), Observation::Named(_)));
    // The same SYN once more is a repeat ...
    let again = Observation::Again { class: Class::Web, sampling: false };
    assert_eq!(classifier.observe(&Segment::syn(99).sample(at(2))), again);
    // ... another one is not.
    assert_eq!(classifier.observe(&Segment::syn(5_000).sample(at(3))), Observation::NeedMore);
    let hello = client_hello("seg.streams.example", false);
    let named = classifier.observe(&Segment::up(5_001, &hello).sample(at(4)));
    assert_eq!(named.instruction(), Some((Class::Video, false)));
}

#[test]
fn a_half_hello_is_concluded_when_its_time_is_over_by_what_dns_said() {
    let mut classifier = classifier();
    resolve(&mut classifier, 7, "seg.streams.example", 1);
    let half = &client_hello("pages.example", false)[..60];
    let flow = key(6, SERVER, 40_000, 443);
    assert_eq!(classifier.observe(&Segment::up(100, half).sample_of(flow, at(10))), Observation::NeedMore);
    assert_eq!(classifier.expire(at(9_000)), []);
    let expired = classifier.expire(at(10_011));
    assert_eq!(expired.len(), 1);
    assert_eq!((expired[0].flow, expired[0].slot, expired[0].first_packet), (flow, 7, at(0)));
    let Observation::Named(verdict) = &expired[0].observation else { panic!("{expired:?}") };
    assert_eq!(verdict.via, Via::Dns);
    assert!(classifier.counters().contains(&("stream_expired", 1)));
    assert_eq!(classifier.held()[0], ("streams", 0));
}

#[test]
fn a_connection_opened_long_before_its_hello_is_named() {
    for expired in [false, true] {
        let mut classifier = classifier();
        classifier.observe(&Segment::syn(99).sample(at(0)));
        if expired {
            assert_eq!(classifier.expire(at(25_000)), [], "nothing was said yet");
            assert_eq!(classifier.held()[0], ("streams", 0));
        }
        let hello = client_hello("seg.streams.example", false);
        let first = classifier.observe(&Segment::up(100, &hello[..50]).sample(at(30_000)));
        assert_eq!(first, Observation::NeedMore);
        let second = classifier.observe(&Segment::up(150, &hello[50..]).sample(at(30_100)));
        assert_eq!(second.instruction(), Some((Class::Video, false)));
    }
}

#[test]
fn a_flood_of_half_hellos_stays_within_bounds_and_the_next_flow_is_named() {
    let limits = Limits { streams: 100, stream_bytes: 20_000, told: 50, ..Limits::default() };
    let mut classifier = Classifier::with_limits(Catalogue::built_in(), limits);
    let half = &client_hello("pages.example", true)[20..420];
    for number in 0..2_000_u16 {
        let flow = key(6, SERVER, number, 443);
        classifier.observe(&Segment::syn(99).sample_of(flow, at(0)));
        // The hello's beginning is withheld, so that nothing can be decided.
        classifier.observe(&Segment::up(120, half).sample_of(flow, at(0)));
        for (kind, held) in classifier.held() {
            match kind {
                "streams" => assert!(held <= 100),
                "stream_bytes" => assert!(held <= 20_000),
                _ => {}
            }
        }
    }
    let evicted =
        classifier.counters().into_iter().find(|(reason, _)| *reason == "stream_evicted").unwrap().1;
    assert!(evicted >= 1_900, "{evicted}");
    let flow = key(6, SERVER, 40_000, 443);
    let hello = client_hello("pages.example", true);
    let named = classifier.observe(&Segment::up(100, &hello).sample_of(flow, at(1)));
    assert!(matches!(named, Observation::Named(_)));
    classifier.finish();
    assert_eq!(classifier.beginnings.bytes(), 0, "bytes are counted off as they were counted on");
}

#[test]
fn a_scan_of_many_ports_holds_nothing() {
    let mut classifier = classifier();
    for port in 0..20_000_u16 {
        classifier.observe(&Segment::syn(99).sample_of(key(6, SERVER, 40_000, port), at(0)));
    }
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
    assert_eq!(classifier.held()[3], ("told", 0));
}

/// How a hello reaches the classifier. Its bytes are part of it, for no two hellos are the same.
#[derive(Debug, Clone)]
struct Delivery {
    name: String,
    hello: Vec<u8>,
    start: u32,
    syn: bool,
    /// Pieces as byte ranges, in the order of their arrival.
    pieces: Vec<std::ops::Range<usize>>,
}

impl Delivery {
    /// Whether a piece from the middle comes too early to be told from something else: one that by chance begins as a
    /// hello, a request or another protocol does, or the octets of nothing that keep a silent connection alive.
    fn misleads(&self) -> bool {
        let begins = |piece: &std::ops::Range<usize>| opening::may_begin(&self.hello[piece.clone()]);
        self.pieces.iter().any(|piece| piece.start > 0 && begins(piece))
            || self.pieces.first().is_some_and(|first| in_progress::is_junk(&self.hello[first.clone()]))
    }

    fn observed(self) -> Vec<Observation> {
        let mut classifier = classifier();
        let mut observations = Vec::new();
        if self.syn {
            let syn = Segment::syn(self.start.wrapping_sub(1));
            observations.push(classifier.observe(&syn.sample(at(0))));
        }
        for piece in self.pieces {
            let sequence = self.start.wrapping_add(u32::try_from(piece.start).unwrap());
            let segment = Segment::up(sequence, &self.hello[piece]);
            observations.push(classifier.observe(&segment.sample(at(1))));
        }
        observations
    }
}

/// A hello of `length` bytes cut into two to four pieces that may overlap, each sent once or twice, in any order.
fn delivery() -> impl Strategy<Value = Delivery> {
    let name = prop_oneof![
        Just("seg.streams.example".to_owned()),
        Just("pages.example".to_owned()),
        "[a-z]{1,20}\\.[a-z]{1,20}\\.test",
    ];
    // Anywhere, or as close to the cut before it as a few octets.
    let cut = prop_oneof![3 => (0.0_f64..1.0).prop_map(Err), 1 => (1_usize..40).prop_map(Ok)];
    (
        name,
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
        proptest::collection::vec(cut, 1..4),
        proptest::collection::vec((0_usize..40, any::<bool>()), 4),
    )
        .prop_flat_map(|(name, start, post_quantum, syn, cuts, extras)| {
            let hello = client_hello(&name, post_quantum);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a place within a few thousand bytes"
            )]
            let place = |share: f64| 1 + (share * (hello.len() - 1) as f64) as usize;
            let mut last = 0;
            let mut cuts: Vec<usize> = cuts
                .into_iter()
                .map(|cut| {
                    last = cut.map_or_else(place, |further| last + further);
                    last
                })
                .filter(|cut| *cut < hello.len())
                .collect();
            cuts.sort_unstable();
            cuts.dedup();
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let ends = cuts.iter().copied().chain([hello.len()]);
            let mut pieces = Vec::new();
            for ((from, to), (overlap, twice)) in starts.zip(ends).zip(&extras) {
                // The first piece of a connection whose handshake is not seen must be known for what it is.
                let from = from.saturating_sub(*overlap);
                let to = if from == 0 && !syn { to.max(3) } else { to };
                pieces.push(from..to);
                if *twice {
                    pieces.push(from..to);
                }
            }
            Just(pieces).prop_shuffle().prop_map(move |pieces| Delivery {
                name: name.clone(),
                hello: hello.clone(),
                start,
                syn,
                pieces,
            })
        })
        .prop_filter("no piece may mislead", |delivery| !delivery.misleads())
}

/// A hello with `octets` from `at` on in place of its own.
fn hello_with(octets: &[u8], at: usize) -> Vec<u8> {
    let mut hello = client_hello("pages.example", false);
    hello[at..at + octets.len()].copy_from_slice(octets);
    hello
}

#[test]
fn a_longer_segment_from_the_same_byte_on_is_no_repeat() {
    let hello = client_hello("pages.example", false);
    let pieces = vec![80..105, 80..hello.len(), 0..80];
    let delivery = Delivery { name: String::new(), hello, start: 7, syn: false, pieces };
    let observations = delivery.observed();
    assert_eq!(
        only_verdict(&observations).and_then(|verdict| verdict.name.as_deref()),
        Some("pages.example")
    );
}

#[test]
fn zeros_of_a_hello_in_a_segment_of_their_own_are_no_keep_alive() {
    // In its random number (RFC 8446, 4.1.2).
    for (syn, order) in [(true, [0, 1, 2]), (true, [0, 2, 1]), (true, [2, 1, 0]), (false, [2, 1, 0])] {
        let hello = hello_with(&[0, 0, 0, 0, 0, 0, 7, 7, 7, 7], 20);
        let pieces = [0..20, 20..26, 26..hello.len()];
        let pieces = order.map(|piece: usize| pieces[piece].clone()).to_vec();
        let delivery = Delivery { name: String::new(), hello, start: 7, syn, pieces };
        let observations = delivery.observed();
        let name = only_verdict(&observations).and_then(|verdict| verdict.name.as_deref());
        assert_eq!(name, Some("pages.example"), "{syn} {order:?}");
    }
}

proptest! {
    #[test]
    fn a_hello_cut_shuffled_overlapped_and_repeated_is_named(delivery in delivery()) {
        let name = delivery.name.clone();
        let observations = delivery.observed();
        let verdict = only_verdict(&observations);
        prop_assert!(verdict.is_some(), "{:?}", observations);
        prop_assert_eq!(verdict.and_then(|verdict| verdict.name.as_deref()), Some(&*name));
        prop_assert_eq!(verdict.map(|verdict| verdict.via), Some(Via::Sni));
    }

    #[test]
    fn arbitrary_packets_of_arbitrary_flows_are_observed_within_bounds(
        packets in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..120), 0_u16..4, any::<bool>(), 0_i64..30_000),
            0..60,
        ),
    ) {
        let limits = Limits { streams: 2, stream_bytes: 100, told: 2, ..Limits::default() };
        let mut classifier = Classifier::with_limits(Catalogue::built_in(), limits);
        for (bytes, port, down, millis) in packets {
            let direction = if down { Direction::Down } else { Direction::Up };
            let flow = key(6, SERVER, port, 443);
            let segment = Segment { direction, ..Segment::up(u32::from(port), &bytes) };
            classifier.observe(&segment.sample_of(flow, at(millis)));
            classifier.observe(&udp(key(17, RESOLVER, port, 53), 7, direction, at(millis), &bytes));
            classifier.observe(&sample(flow, 7, direction, at(millis), bytes));
            classifier.expire(at(millis));
            prop_assert!(classifier.held()[0].1 <= 2);
            prop_assert!(classifier.held()[1].1 <= 100);
        }
        classifier.finish();
        prop_assert_eq!(&classifier.held()[..2], &[("streams", 0), ("stream_bytes", 0)]);
    }
}
