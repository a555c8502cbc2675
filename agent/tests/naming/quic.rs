//! Connections that quinn opens: their datagrams shuffled, repeated, lost and sent again, and after a Retry.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, ServerConfig,
};

use crate::rows::{self, ETHERNET, Frame};
use crate::traffic::{self, End};
use crate::wrap::{Bytes, Content, ethernet};

const NAME: &str = "asked.a-name.example.org";
const V1: u32 = 1;
const DRAFT_29: u32 = 0xff00_001d;

fn ends() -> (End, End) {
    ((IpAddr::from([10, 0, 0, 2]), 50_000), (IpAddr::from([192, 0, 2, 1]), 443))
}

/// A client that has not heard from its server yet.
struct Client {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    now: Instant,
}

impl Client {
    fn new(version: u32, post_quantum: bool) -> Self {
        let mut tls = rustls::ClientConfig::clone(&traffic::client(post_quantum));
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.version(version);
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let now = Instant::now();
        let (_, server) = ends();
        let (handle, connection) = endpoint.connect(now, config, SocketAddr::from(server), NAME).unwrap();
        Self { endpoint, handle, connection, now }
    }

    /// The datagrams it sends now.
    fn sends(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        loop {
            let mut buffer = Vec::new();
            let Some(sent) = self.connection.poll_transmit(self.now, 1, &mut buffer) else {
                return datagrams;
            };
            datagrams.push(buffer[..sent.size].to_vec());
        }
    }

    /// The datagrams it sends once it has waited in vain.
    fn sends_again(&mut self) -> Vec<Vec<u8>> {
        self.now = self.connection.poll_timeout().unwrap() + Duration::from_millis(1);
        self.connection.handle_timeout(self.now);
        self.sends()
    }

    fn hears(&mut self, datagram: &[u8]) {
        let (_, server) = ends();
        let event = self.endpoint.handle(
            self.now,
            SocketAddr::from(server),
            None,
            None,
            datagram.into(),
            &mut Vec::new(),
        );
        let Some(DatagramEvent::ConnectionEvent(handle, event)) = event else {
            panic!("not for this client")
        };
        assert_eq!(handle, self.handle);
        self.connection.handle_event(event);
    }
}

/// What a server that wants addresses proven answers to a first datagram (RFC 9000, 8.1.2).
fn retry(first: &[u8]) -> Vec<u8> {
    static SERVER: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let config = SERVER.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Arc::new(ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap())))
    });
    let mut endpoint =
        Endpoint::new(Arc::new(EndpointConfig::default()), Some(Arc::clone(config)), true, None);
    let (client, _) = ends();
    let mut buffer = Vec::new();
    let event = endpoint.handle(Instant::now(), client.into(), None, None, first.into(), &mut buffer);
    let Some(DatagramEvent::NewConnection(incoming)) = event else { panic!("not a first datagram") };
    buffer.clear();
    let Ok(sent) = endpoint.retry(incoming, &mut buffer) else { panic!("a first datagram has no token") };
    buffer[..sent.size].to_vec()
}

/// What a flow of these datagrams is called; those of the server are marked.
fn name_of(datagrams: &[(bool, Vec<u8>)]) -> Option<String> {
    let (client, server) = ends();
    let frames: Vec<Frame> = datagrams
        .iter()
        .enumerate()
        .map(|(at, (from_server, payload))| {
            let (from, to) = if *from_server { (server, client) } else { (client, server) };
            let ip = Bytes::whole(traffic::datagram(from, to, payload));
            Frame { at: at as u64, bytes: ethernet(Content::Ip(ip)) }
        })
        .collect();
    let mut rows = rows::of_frames(ETHERNET, &frames);
    assert!(rows.len() <= 1, "{rows:?}");
    rows.pop()?.name
}

fn up(datagrams: Vec<Vec<u8>>) -> Vec<(bool, Vec<u8>)> {
    datagrams.into_iter().map(|datagram| (false, datagram)).collect()
}

fn asked() -> impl Fn(&Option<String>) -> bool {
    |name| name.as_deref() == Some(NAME)
}

/// In an order by keys, some of them twice.
fn shuffled(mut datagrams: Vec<(bool, Vec<u8>)>, order: &[u16], twice: &[Index]) -> Vec<(bool, Vec<u8>)> {
    for place in twice {
        datagrams.push(datagrams[place.index(datagrams.len())].clone());
    }
    let mut order = order.iter();
    datagrams.sort_by_cached_key(|_| order.next().copied().unwrap_or_default());
    datagrams
}

#[test]
fn a_post_quantum_hello_takes_two_datagrams_and_is_named() {
    for version in [V1, DRAFT_29] {
        let sent = Client::new(version, true).sends();
        assert!(sent.len() > 1);
        assert!(asked()(&name_of(&up(sent))), "{version:#x}");
        let sent = Client::new(version, false).sends();
        assert_eq!(sent.len(), 1);
        assert!(asked()(&name_of(&up(sent))), "{version:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// All datagrams of the first flight come, in any order, some twice.
    #[test]
    fn a_first_flight_shuffled_and_repeated_is_named(
        version in prop_oneof![Just(V1), Just(DRAFT_29)],
        post_quantum in any::<bool>(),
        order in proptest::collection::vec(any::<u16>(), 12),
        twice in proptest::collection::vec(any::<Index>(), 0..4),
    ) {
        let sent = shuffled(up(Client::new(version, post_quantum).sends()), &order, &twice);
        let name = name_of(&sent);
        prop_assert!(asked()(&name), "{name:?}");
    }

    /// One is lost, and what the client sends again comes after the others.
    #[test]
    fn what_is_lost_and_sent_again_completes_the_name(post_quantum in any::<bool>(), lost in any::<Index>()) {
        let mut client = Client::new(V1, post_quantum);
        let mut came = client.sends();
        came.remove(lost.index(came.len()));
        for _ in 0..3 {
            came.extend(client.sends_again());
        }
        let name = name_of(&up(came));
        prop_assert!(asked()(&name), "{name:?}");
    }

    /// A Retry asks for all of it once more, by other keys; of what came before, any part was lost.
    #[test]
    fn after_a_retry_the_hello_is_read_by_its_new_keys(
        post_quantum in any::<bool>(),
        lost in proptest::collection::vec(any::<bool>(), 4),
        order in proptest::collection::vec(any::<u16>(), 12),
        twice in proptest::collection::vec(any::<Index>(), 0..3),
    ) {
        let mut client = Client::new(V1, post_quantum);
        let before = client.sends();
        let answer = retry(&before[0]);
        let mut sent: Vec<(bool, Vec<u8>)> =
            up(before).into_iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(sent, _)| sent).collect();
        client.hears(&answer);
        sent.push((true, answer));
        let again = client.sends();
        prop_assert!(!again.is_empty());
        sent.extend(shuffled(up(again), &order, &twice));
        let name = name_of(&sent);
        prop_assert!(asked()(&name), "{name:?}");
    }

    /// Part of it never comes, or comes damaged: then there is the true name or none.
    #[test]
    fn a_flight_with_losses_and_damage_gives_no_wrong_name(
        post_quantum in any::<bool>(),
        lost in any::<Index>(),
        damaged in any::<Index>(),
        at in any::<Index>(),
        with in 1_u8..,
    ) {
        let mut sent = Client::new(V1, post_quantum).sends();
        if sent.len() > 1 {
            sent.remove(lost.index(sent.len()));
        }
        let damaged = damaged.index(sent.len());
        let datagram = &mut sent[damaged];
        let at = at.index(datagram.len());
        datagram[at] ^= with;
        let name = name_of(&up(sent));
        prop_assert!(name.is_none() || asked()(&name), "{name:?}");
    }
}
