//! Code points: what is written, what is not, and that every checksum a receiver looks at stays right.

use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use usher_agent::probe::{Probe, Trial, Verdict};
use usher_models::dscp::Dscp;
use usher_models::wire::{Class, Direction, Enforcement, Gate, Reason};
use usher_tests::netns::{ACCESS, Lab, Place, Side};
use usher_tests::nginx::{Nginx, PAGES};
use usher_tests::player::{Player, Stream};
use usher_tests::process::{self, Running};
use usher_tests::wait::{self, Seen};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

const LINK: usize = 14;

fn dscp(name: &str) -> Dscp {
    name.parse().expect("a name")
}

fn marking(name: &str) -> Enforcement {
    Enforcement::default().with_mark(Class::Other, Down, dscp(name)).with_mark(Class::Other, Up, dscp(name))
}

/// A probe that gives the usual subscriber's packets this code point.
fn marker(rig: &Rig, name: &str) -> Whole {
    let mut probe = rig.probe();
    probe.enforce(SLOT, &marking(name)).expect("writes");
    assert_eq!(probe.enforcement(SLOT).expect("reads back"), marking(name));
    probe
}

fn through(probe: &Probe, direction: Direction, frame: &[u8]) -> Vec<u8> {
    let outcome = probe.trial(&Trial::once(direction, frame)).expect("the program runs");
    assert_eq!(outcome.verdict, Verdict::Pass);
    assert_eq!(outcome.frame.len(), frame.len());
    outcome.frame
}

/// Puts congestion bits into the IP header at `at`, and a checksum that is right again.
fn with_congestion(frame: &mut [u8], at: usize) {
    if frame[at] >> 4 == 4 {
        frame[at + 1] |= 1;
        frame[at + 10..at + 12].fill(0);
        let checksum = !sum(&[&frame[at..at + 20]]);
        frame[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        frame[at + 1] |= 0x10;
    }
}

/// The one's complement sum (RFC 1071).
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// The code point and congestion bits of the IP packet that `bytes` begin with, after holding all of its checksums to what they cover.
fn received(bytes: &[u8]) -> (u8, u8) {
    let packet = SlicedPacket::from_ip(bytes).expect("a packet");
    let (service, pseudo) = match packet.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(sum(&[header.slice()]), 0xffff, "the header's checksum");
            (header.slice()[1], [header.source(), header.destination()].concat())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.traffic_class(), [header.source(), header.destination()].concat())
        }
        NetSlice::Arp(_) => panic!("no IP packet"),
    };
    match packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let length = udp.length().to_be_bytes();
            assert_eq!(sum(&[&pseudo, &[0, 17], &length, udp.slice()]), 0xffff, "UDP's checksum");
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let length = u16::try_from(tcp.slice().len()).expect("short").to_be_bytes();
            assert_eq!(sum(&[&pseudo, &[0, 6], &length, tcp.slice()]), 0xffff, "TCP's checksum");
        }
        _ => {}
    }
    (service >> 2, service & 3)
}

#[test]
fn a_code_point_is_written_and_nothing_else_changes() {
    on_a_kernel!("a_code_point_is_written_and_nothing_else_changes");
    let rig = Rig::new();
    let probe = marker(&rig, "ef");
    for (direction, mut frame, tags) in [
        (Up, tcp(Up, 4000, b"hello"), 0),
        (Down, tcp(Down, 4000, b"hello"), 0),
        (Up, udp6(Up, 5000, b"hello"), 0),
        (Down, udp6(Down, 5000, b"hello"), 0),
        (Down, tcp(Down, 4000, b"hello"), 2),
        (Down, udp6(Down, 5000, b"hello"), 1),
    ] {
        with_congestion(&mut frame, LINK);
        let frame = tagged(&frame, &[(0x88a8, 7), (0x8100, 8)][2 - tags..]);
        let at = LINK + 4 * tags;
        let out = through(&probe, direction, &frame);
        assert_eq!(received(&out[at..]), (46, 1));
        let changed: Vec<usize> = (0..frame.len()).filter(|place| frame[*place] != out[*place]).collect();
        let expected = if frame[at] >> 4 == 4 { vec![1, 10, 11] } else { vec![0, 1] };
        assert!(
            changed.iter().all(|place| expected.contains(&(place - at))),
            "{direction:?}, {tags} tags: {changed:?}"
        );
        assert_eq!(through(&probe, direction, &out), out, "a packet that has it is left as it is");
    }
    assert_eq!(
        tally(&probe, Reason::Unmarked, Down).packets + tally(&probe, Reason::Unmarked, Up).packets,
        0
    );
}

#[test]
fn what_is_not_of_the_class_the_direction_or_the_subscriber_keeps_its_code_point() {
    on_a_kernel!("what_is_not_of_the_class_the_direction_or_the_subscriber_keeps_its_code_point");
    let rig = Rig::new();
    let mut probe = rig.probe();
    let video = Enforcement::default().with_mark(Class::Video, Down, dscp("af41"));
    probe.enforce(SLOT, &video).expect("writes");
    let (down, up) = (tcp(Down, 4000, b"x"), tcp(Up, 4000, b"x"));
    assert_eq!(through(&probe, Down, &down), down, "another class");
    probe.name_flow(&flow(6, 4000, 443), Class::Video, false).expect("names");
    assert_eq!(received(&through(&probe, Down, &down)[LINK..]).0, 34);
    assert_eq!(through(&probe, Up, &up), up, "the other direction");
    let nobodys = tcp_of([10, 0, 0, 99], b"x");
    assert_eq!(through(&probe, Up, &nobodys), nobodys, "nobody's");
    probe.set_bypass(true).expect("writes");
    assert_eq!(through(&probe, Down, &down), down, "bypassed");
    probe.set_bypass(false).expect("writes");
    probe.enforce(SLOT, &video.with_gate(Gate::Block)).expect("writes");
    let held_back = probe.trial(&Trial::once(Down, &down)).expect("runs");
    assert_eq!((held_back.verdict, held_back.frame), (Verdict::Drop, down));
}

/// An Ethernet frame with GTP-U over IPv6, which has a checksum, around `inner`.
fn gtpu6(inner: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv6([1; 16], [2; 16], 64)
        .udp(2152, 2152)
        .write(&mut frame, &gtpu_payload(inner))
        .expect("writes");
    frame
}

#[test]
fn in_a_tunnel_the_subscribers_packet_and_the_outermost_are_marked() {
    on_a_kernel!("in_a_tunnel_the_subscribers_packet_and_the_outermost_are_marked");
    let rig = Rig::new();
    let probe = marker(&rig, "ef");
    let inners = [tcp(Up, 4000, b"hello"), udp6(Up, 5000, b"hello")];
    for inner in &inners {
        let mut unsummed = gtpu(&inner[LINK..]);
        unsummed[LINK + 20 + 6..LINK + 20 + 8].fill(0);
        let frames = [
            (gtpu(&inner[LINK..]), LINK + 20 + 8 + 16),
            (unsummed, LINK + 20 + 8 + 16),
            (gtpu6(&inner[LINK..]), LINK + 40 + 8 + 16),
        ];
        for (frame, inside) in frames {
            let out = through(&probe, Up, &frame);
            assert_eq!(received(&out[LINK..]).0, 46, "the outermost, its checksum over all inside included");
            assert_eq!(received(&out[inside..]).0, 46, "the subscriber's");
            assert_eq!(through(&probe, Up, &out), out);
        }
    }
    // Of three the one between stays as it is: the innermost is the subscriber's, the outermost what routers see.
    let between = gtpu6(&inners[1][LINK..]);
    let mut three = Vec::new();
    PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv6([3; 16], [4; 16], 64)
        .write(&mut three, etherparse::IpNumber::IPV6, &between[LINK..])
        .expect("writes");
    let out = through(&probe, Up, &three);
    let marks = [0, 40, 40 + 40 + 8 + 16].map(|at| received(&out[LINK + at..]).0);
    assert_eq!(marks, [46, 0, 46]);
    assert_eq!(tally(&probe, Reason::Unmarked, Up).packets, 0);
}

#[test]
fn a_checksum_that_is_not_kept_costs_the_inner_mark_and_is_counted() {
    on_a_kernel!("a_checksum_that_is_not_kept_costs_the_inner_mark_and_is_counted");
    let rig = Rig::new();
    let probe = marker(&rig, "ef");
    let inner = udp6(Up, 5000, b"hello");
    for (flags, marked) in [(0x80, false), (0x00, true)] {
        let mut gre = vec![flags, 0, 0x86, 0xdd];
        if flags != 0 {
            let checksum = !sum(&[&gre, &inner[LINK..]]);
            gre.extend(checksum.to_be_bytes());
            gre.extend([0, 0]);
        }
        let inside = LINK + 20 + gre.len();
        gre.extend(&inner[LINK..]);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [3; 6])
            .ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
            .write(&mut frame, etherparse::IpNumber::GRE, &gre)
            .expect("writes");
        let out = through(&probe, Up, &frame);
        assert_eq!(received(&out[LINK..]).0, 46, "the outermost");
        assert_eq!(received(&out[inside..]).0 == 46, marked);
        assert_eq!(tally(&probe, Reason::Unmarked, Up).packets, 1);
        assert_eq!(cell(&probe, SLOT, Class::Other, Up).packets, if marked { 2 } else { 1 });
    }
}

#[test]
fn a_super_packet_is_marked_once_for_all_its_segments() {
    on_a_kernel!("a_super_packet_is_marked_once_for_all_its_segments");
    let rig = Rig::new();
    let probe = marker(&rig, "cs1");
    let frame = tcp(Down, 4000, &[1; 3_000]);
    let trial = Trial { segment_bytes: 1_000, ..Trial::once(Down, &frame) };
    let out = probe.trial(&trial).expect("runs").frame;
    assert_eq!(received(&out[LINK..]).0, 8);
}

/// Set where a test runs itself once more, inside the gateway: the directory of its pins.
const INSIDE: &str = "USHER_TEST_PINS";

/// Inside the gateway: hangs up a probe that marks what the subscriber gets, and leaves it there.
fn leave_a_marking_probe(pins: &str) {
    let settings = usher_agent::probe::ProbeConfig {
        pin_dir: pins.into(),
        max_flows: 1_024,
        max_subscribers: 16,
        ..usher_agent::probe::ProbeConfig::new(ACCESS)
    };
    let (mut probe, _flows) = Probe::load(settings).expect("loads");
    probe.bind(net("10.77.0.11/32"), SLOT).expect("binds");
    probe.bind(net("fd77::11/128"), SLOT).expect("binds");
    probe.enforce(SLOT, &marking("ef")).expect("writes");
}

/// The real way of a packet: forwarded by the kernel, marked as it leaves, received by a socket that no wrong checksum reaches.
#[test]
fn a_receiver_gets_the_code_point_and_right_checksums() {
    on_a_kernel!("a_receiver_gets_the_code_point_and_right_checksums");
    if let Ok(pins) = std::env::var(INSIDE) {
        return leave_a_marking_probe(&pins);
    }
    let lab = Lab::new(Place::new().expect("a place")).expect("a laboratory");
    let pins = lab.place().pins();
    let mut inside =
        process::within(&lab.namespace_file(Side::Gateway), std::env::current_exe().expect("this test"));
    inside.args(["--exact", "marking::a_receiver_gets_the_code_point_and_right_checksums", "--nocapture"]);
    process::run(inside.env(INSIDE, &pins)).expect("the probe hangs in the gateway");
    lab.connect().expect("connects");
    lab.add_device(&["10.77.0.11/24", "fd77::11/64"]).expect("adds");

    let nginx = Nginx::start(&lab).expect("starts");
    let tcpdump = lab.inside(Side::Subscribers, "tcpdump", ["-i", "line", "-nvl", "-Q", "in", "tcp"]);
    let mut seen = Running::start("tcpdump", tcpdump, lab.place().folder()).expect("starts");
    wait::until("tcpdump listening", Duration::from_secs(10), || {
        seen.expect_running()?;
        Ok(Seen::when(seen.printed().contains("listening on"), (), seen.printed()))
    })
    .expect("listens");
    for from in ["10.77.0.11", "fd77::11"] {
        let stream = Stream { from, name: PAGES, segments: "small" };
        let mut player = Player::start(&lab, nginx.authority(), stream).expect("starts");
        player.rate((Instant::now(), 2), &(0..=u64::MAX), Duration::from_secs(20)).expect("fetches");
    }
    let told = wait::until("what the receiver saw", Duration::from_secs(10), || {
        let told = seen.printed();
        let (v4, v6) = (told.contains(" > 10.77.0.11."), told.contains(" > fd77::11."));
        Ok(Seen::when(v4 && v6, told.clone(), told))
    })
    .expect("both were seen");
    let heads: Vec<&str> =
        told.lines().filter(|line| line.contains("tos ") || line.contains("class ")).collect();
    assert!(heads.len() >= 20, "{told}");
    assert!(heads.iter().all(|head| head.contains("tos 0xb8") || head.contains("class 0xb8")), "{told}");
    assert!(!told.contains("bad cksum"), "{told}");
}
