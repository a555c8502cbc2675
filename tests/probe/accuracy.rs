//! What is measured of real connections, against what was done to them: a relay that takes a known time and loses known segments stands on
//! both sides of the gateway.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, SocketType};
use usher_agent::dataplane::Measured;
use usher_agent::probe::{Flows, Probe, ProbeConfig};
use usher_agent::usage::quality::RoundTrips;
use usher_models::units::Micros;
use usher_models::wire::{Class, Direction, FlowKey};
use usher_tests::netns::{ACCESS, INTERNET, Lab, Place, Side};
use usher_tests::relay::{Loss, Relay, Seen, Way};

use crate::on_a_kernel;

use Direction::{Down, Up};

const PORT: u16 = 443;
/// The ways of a relay, by their numbers; the probe is in the middle.
const FROM_SUBSCRIBERS: usize = 0;
const TO_SUBSCRIBERS: usize = 1;
const TO_INTERNET: usize = 2;
const FROM_INTERNET: usize = 3;

/// The laboratory with relays on both of its lines, and the probe. It goes last to first.
struct Path {
    probe: Probe,
    flows: Flows,
    relay: Relay,
    lab: Lab,
    server: SocketAddrV4,
    listener: TcpListener,
}

impl Path {
    /// One whose ways take so long, in the order of their numbers, and lose so much.
    fn new(delays: [Duration; 4], losses: [Vec<Loss>; 4]) -> Result<Self> {
        let lab = Lab::stretched(Place::new()?)?;
        let ways = [
            ("to-line", "to-access"),
            ("to-access", "to-line"),
            ("to-core", "to-net"),
            ("to-net", "to-core"),
        ];
        let ways = ways.into_iter().zip(delays).map(|((from, to), delay)| Way { from, to, delay });
        let relay = Relay::start(&lab, &ways.zip(losses).collect::<Vec<_>>())?;
        let config = ProbeConfig {
            pin_dir: lab.place().pins(),
            max_flows: 1_024,
            max_subscribers: 16,
            max_prefixes: 16,
            max_measured: 64,
            ..ProbeConfig::new(ACCESS)
        };
        let (probe, flows) = lab.within(Side::Gateway, || Ok(Probe::load(config)?))?;
        lab.connect()?;
        let server = SocketAddrV4::new(INTERNET.parse()?, PORT);
        let listener = lab.within(Side::Internet, || Ok(TcpListener::bind(server)?))?;
        Ok(Self { probe, flows, relay, lab, server, listener })
    }

    /// The addresses are subscribers' from now on, in the slots from 1 on.
    fn subscribers(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        for (slot, address) in (1..).zip(addresses) {
            self.lab.add_device(&[&format!("{address}/24")])?;
            self.probe.bind(ipnet::IpNet::new((*address).into(), 32)?, slot)?;
        }
        Ok(())
    }

    /// A connection from a subscriber's address; both of its ends.
    fn connect(&self, from: Ipv4Addr) -> Result<[TcpStream; 2]> {
        let client = self.lab.within(Side::Subscribers, || {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(from, 0))?;
            rustix::net::connect(&socket, &self.server)?;
            Ok(TcpStream::from(socket))
        })?;
        let (server, _) = self.listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(Duration::from_secs(10)))?;
            end.set_write_timeout(Some(Duration::from_secs(10)))?;
        }
        Ok([client, server])
    }

    /// What was measured since the last look.
    fn measured(&mut self) -> Vec<Measured> {
        self.probe.measured(Micros::now())
    }

    /// Ends it, and holds the relay to having lost nothing else.
    fn end(self) -> Result<()> {
        self.relay.end()?;
        Ok(self.probe.detach()?)
    }
}

/// What was measured of a slot's class.
fn of(measured: &[Measured], slot: u32, class: Class) -> Result<&Measured> {
    let of = measured.iter().find(|measured| (measured.slot, measured.class) == (slot, class));
    of.context("nothing was measured")
}

/// Question and answer, again and again; how long each round took.
fn rounds([mut client, mut server]: [TcpStream; 2], count: usize) -> Result<Vec<Duration>> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut question = [0; 100];
            while server.read_exact(&mut question).is_ok() && server.write_all(&[1; 700]).is_ok() {}
        });
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let asked = Instant::now();
            client.write_all(&[2; 100])?;
            client.read_exact(&mut [0; 700])?;
            took.push(asked.elapsed());
        }
        client.shutdown(Shutdown::Both)?;
        Ok(took)
    })
}

/// The medians of both sides are their delays: a histogram is right to an eighth, and what this machine adds to the delays, the median round
/// tells.
fn round_trip_times() -> Result<()> {
    const ROUNDS: usize = 30;
    const SUBSCRIBER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
    let delays = [6, 14, 26, 14].map(Duration::from_millis);
    let mut path = Path::new(delays, Default::default())?;
    path.subscribers(&[SUBSCRIBER])?;
    for stamps in [true, false] {
        for side in [Side::Subscribers, Side::Internet] {
            let script = format!("echo {} >/proc/sys/net/ipv4/tcp_timestamps", u8::from(stamps));
            path.lab.shell(side, &script)?;
        }
        let mut took = rounds(path.connect(SUBSCRIBER)?, ROUNDS)?;
        took.sort_unstable();
        let added = took[ROUNDS / 2].saturating_sub(delays.iter().sum());
        let measured = path.measured();
        let measured = of(&measured, 1, Class::Other)?;
        for (side, known) in [(Down, delays[0] + delays[1]), (Up, delays[2] + delays[3])] {
            let found = RoundTrips::of(&measured.round_trips[side.index()]).context("no round trip")?;
            let median = Duration::from_secs_f64(found.p50_ms / 1e3);
            let (least, most) = (known * 7 / 8, known * 9 / 8 + added);
            ensure!(
                (least..=most).contains(&median),
                "{side:?}, time stamps {stamps}: {median:?} of {known:?}, in rounds that took {added:?} too long"
            );
            ensure!(found.samples >= 20, "{side:?}: {} samples in {ROUNDS} rounds", found.samples);
        }
    }
    path.end()
}

#[test]
fn round_trip_times_are_those_of_the_path_with_time_stamps_and_without() {
    on_a_kernel!("round_trip_times_are_those_of_the_path_with_time_stamps_and_without");
    round_trip_times().expect("they are");
}

/// Sends so many bytes from one end to the other.
fn transfer(mut from: &TcpStream, mut to: &TcpStream, bytes: usize) -> Result<()> {
    thread::scope(|scope| {
        let sent = scope.spawn(move || from.write_all(&vec![3; bytes]));
        to.read_exact(&mut vec![0; bytes])?;
        sent.join().expect("writing panics not")?;
        Ok(())
    })
}

/// Losses before the probe and behind it, up and down, differing by subscriber; each is found once, where it belongs.
fn retransmissions() -> Result<()> {
    const BYTES: usize = 700 * 1_448;
    const PEOPLE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];
    const CLASSES: [Class; 2] = [Class::Video, Class::Bulk];
    let losses = |one_in: [u32; 2]| {
        PEOPLE.into_iter().zip(one_in).map(|(subscriber, one_in)| Loss { subscriber, one_in }).collect()
    };
    let never = u32::MAX;
    let mut path = Path::new(
        [Duration::from_millis(2); 4],
        // The first loses on the subscribers' side of the probe, the second on the internet's. None of the last ten: what is lost before the
        // probe is only seen by what comes after it.
        [losses([30, never]), losses([40, never]), losses([never, 46]), losses([never, 34])],
    )?;
    for side in [Side::Subscribers, Side::Internet] {
        // Nothing is sent again but what was lost: no probe for a tail that may be. And no more is under way than sockets here hold.
        path.lab.shell(
            side,
            "echo 0 >/proc/sys/net/ipv4/tcp_early_retrans; \
             for way in r w; do echo 4096 65536 65536 >/proc/sys/net/ipv4/tcp_${way}mem; done",
        )?;
    }
    path.subscribers(&PEOPLE)?;
    let mut connections = Vec::new();
    for (address, class) in PEOPLE.into_iter().zip(CLASSES) {
        let connection = path.connect(address)?;
        let flow = FlowKey {
            subscriber: address.to_ipv6_mapped().octets(),
            remote: path.server.ip().to_ipv6_mapped().octets(),
            subscriber_port: connection[0].local_addr()?.port(),
            remote_port: PORT,
            protocol: 6,
            zero: [0; 3],
        };
        ensure!(path.flows.name_flow(&flow, class, false)?, "the flow is not known");
        connections.push(connection);
    }
    thread::scope(|scope| {
        let transfers = connections.iter().map(|[client, server]| {
            scope.spawn(move || {
                transfer(server, client, BYTES)?;
                transfer(client, server, BYTES)
            })
        });
        let transfers: Vec<_> = transfers.collect();
        transfers.into_iter().try_for_each(|transfer| transfer.join().expect("transfers panic not"))
    })?;
    // Where each direction meets its losses, and whether that is behind the probe.
    let places = [
        [(Down, TO_SUBSCRIBERS, true), (Up, FROM_SUBSCRIBERS, false)],
        [(Down, FROM_INTERNET, false), (Up, TO_INTERNET, true)],
    ];
    let measured = path.measured();
    for (subscriber, places) in places.into_iter().enumerate() {
        let slot = u32::try_from(subscriber)? + 1;
        let measured = of(&measured, slot, CLASSES[subscriber])?;
        for (direction, way, behind) in places {
            let counts = measured.counts[direction.index()];
            let Seen { segments, again, lost } = path.relay.seen(way, subscriber)?;
            ensure!(lost >= 10, "only {lost} of {segments} segments were lost");
            let passed = if behind { segments } else { segments - lost };
            // One may look overtaken: the first that comes again after the whole machine was held up for longer than the path takes.
            let sorted_out = counts.retransmitted + counts.reordered;
            ensure!(
                (counts.segments, sorted_out) == (passed, again) && counts.reordered <= 1,
                "subscriber {slot}, {direction:?}: {counts:?} where {passed} segments passed, {again} of them again, for {lost} were lost"
            );
            // Each was sent again once, unless this machine was so slow that its sender lost patience.
            ensure!(again >= lost, "{again} were sent again of {lost} that were lost");
        }
    }
    drop(connections);
    path.end()
}

#[test]
fn retransmissions_are_those_that_losses_on_either_side_led_to() {
    on_a_kernel!("retransmissions_are_those_that_losses_on_either_side_led_to");
    retransmissions().expect("they are");
}
