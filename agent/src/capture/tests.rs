//! Captures written by the tests and read back by libpcap, and the table under them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use etherparse::PacketBuilder;
use usher_models::wire::{ANONYMOUS, Cell, Direction, Gate};

use super::fragments::FragmentLimits;
use super::*;

const SUBSCRIBER: [u8; 4] = [10, 0, 0, 2];
const NEIGHBOUR: [u8; 4] = [10, 0, 0, 3];
const SERVER: [u8; 4] = [192, 0, 2, 10];
const ETHERNET: i32 = 1;

/// A capture file in pcap's classic form, and its records.
struct File {
    bytes: Vec<u8>,
}

impl File {
    fn new(link: i32) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(0xa1b2_c3d4_u32.to_le_bytes());
        bytes.extend([2, 0, 4, 0]);
        bytes.extend([0; 8]);
        bytes.extend(65_535_u32.to_le_bytes());
        bytes.extend(link.to_le_bytes());
        Self { bytes }
    }

    /// A frame of which `kept` bytes were captured, `micros` after the first.
    fn cut(&mut self, micros: u32, frame: &[u8], kept: usize) -> &mut Self {
        let length = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        self.bytes.extend((1_500_000_000 + micros / 1_000_000).to_le_bytes());
        self.bytes.extend((micros % 1_000_000).to_le_bytes());
        self.bytes.extend(length(kept));
        self.bytes.extend(length(frame.len()));
        self.bytes.extend(&frame[..kept]);
        self
    }

    fn frame(&mut self, micros: u32, frame: &[u8]) -> &mut Self {
        self.cut(micros, frame, frame.len())
    }

    fn write(&self) -> Written {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.pcap");
        std::fs::write(&path, &self.bytes).unwrap();
        Written { path, _directory: directory }
    }
}

struct Written {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Written {
    fn open(&self, pace: Pace) -> (Capture, Flows) {
        Capture::open(&Source::File { path: self.path.clone(), pace }).unwrap()
    }
}

fn udp(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .udp(from_port, to_port)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn tcp(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .tcp(from_port, to_port, 1, 1_000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn cell(usage: &SlotUsage, class: Class, direction: Direction) -> (u64, u64) {
    let Cell { bytes, packets, dropped_bytes, dropped_packets } =
        usage.cells[class.index()][direction.index()];
    assert_eq!((dropped_bytes, dropped_packets), (0, 0));
    (bytes, packets)
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_capture_written_is_counted_to_the_byte() {
    let mut file = File::new(ETHERNET);
    file.frame(0, &udp(SUBSCRIBER, 5_000, SERVER, 443, &[0; 100]))
        .frame(10, &udp(SERVER, 443, SUBSCRIBER, 5_000, &[0; 1_000]))
        // Cut short by a snap length: counted as on the wire.
        .cut(20, &udp(SERVER, 443, SUBSCRIBER, 5_000, &[0; 1_200]), 64)
        // Padded to Ethernet's least length: counted as the IP packet.
        .frame(30, &{
            let mut padded = udp(SUBSCRIBER, 5_000, SERVER, 443, &[0; 2]);
            padded.resize(60, 0);
            padded
        })
        // Of nobody known, and no IP at all.
        .frame(40, &udp([203, 0, 113, 9], 5_000, SERVER, 443, &[0; 10]))
        .frame(50, &[0xff; 60]);
    let (mut capture, mut flows) = file.write().open(Pace::Fast);
    capture.bind(prefix("10.0.0.2/32"), 3).unwrap();
    let mut samples = 0;
    while flows.next_sample().await.is_some() {
        samples += 1;
    }
    assert_eq!(samples, 5);
    assert!(flows.broken().is_none());
    let usage = capture.usage(3);
    assert_eq!(cell(&usage, Class::Other, Direction::Up), (128 + 30, 2));
    assert_eq!(cell(&usage, Class::Other, Direction::Down), (1_028 + 1_228, 2));
    let anonymous = capture.usage(ANONYMOUS);
    assert_eq!(cell(&anonymous, Class::Other, Direction::Up), (38, 1));
    assert!(capture.counters().contains(&("not_ip", 1)));
    assert!(capture.refused_bytes().into_iter().any(|(reason, bytes)| reason == "not_ip" && bytes > 0));
    assert_eq!(flows.next_sample().await, None, "the end stays the end");
}

#[tokio::test]
async fn a_verdict_holds_for_every_packet_after_its_sample() {
    let mut file = File::new(ETHERNET);
    for number in 0..10 {
        file.frame(number, &udp(SUBSCRIBER, 5_000, SERVER, 443, &[0; 72]));
    }
    let (mut capture, mut flows) = file.write().open(Pace::Fast);
    capture.bind(prefix("10.0.0.0/24"), 1).unwrap();
    let sample = flows.next_sample().await.unwrap();
    assert_eq!((sample.slot, sample.direction, sample.packet.len()), (1, Direction::Up, 100));
    assert!(flows.name_flow(&sample.flow, Class::Video, false));
    assert_eq!(flows.next_sample().await, None, "no more samples were asked for");
    assert_eq!(cell(&capture.usage(1), Class::Other, Direction::Up), (100, 1));
    assert_eq!(cell(&capture.usage(1), Class::Video, Direction::Up), (900, 9));
}

#[tokio::test]
async fn sampling_ends_with_its_budget_but_not_for_dns() {
    let mut file = File::new(ETHERNET);
    for number in 0..100 {
        file.frame(number, &tcp(SUBSCRIBER, 5_000, SERVER, 443, b"x"));
        file.frame(number, &udp(SUBSCRIBER, 5_000, SERVER, 53, b"x"));
        // A bare acknowledgement tells nothing.
        file.frame(number, &tcp(SUBSCRIBER, 5_001, SERVER, 443, b""));
    }
    let (capture, mut flows) = file.write().open(Pace::Fast);
    let mut by_port = HashMap::<u16, u32>::new();
    while let Some(sample) = flows.next_sample().await {
        *by_port.entry(sample.flow.remote_port).or_default() += 1;
    }
    assert_eq!(by_port[&443], u32::from(TableLimits::default().samples));
    assert_eq!(by_port[&53], 100);
    assert!(capture.counters().contains(&("sampling_budget_spent", 1)));
}

#[tokio::test]
async fn the_first_packet_of_a_file_is_now_and_time_goes_on_from_there() {
    let mut file = File::new(ETHERNET);
    file.frame(0, &udp(SUBSCRIBER, 1, SERVER, 2, b"a")).frame(30_000, &udp(SUBSCRIBER, 1, SERVER, 2, b"b"));
    let before = Micros::now();
    let (_capture, mut flows) = file.write().open(Pace::RealTime);
    let first = flows.next_sample().await.unwrap();
    let second = flows.next_sample().await.unwrap();
    assert!(first.seen >= before && first.seen <= Micros::now());
    assert_eq!(second.seen.since(first.seen), Duration::from_millis(30));
    assert!(Micros::now() >= second.seen, "not handed out before its time");
    assert_eq!(second.first_packet, first.seen);
}

#[tokio::test]
async fn dropping_a_capture_ends_its_reading() {
    let mut file = File::new(ETHERNET);
    let frame = udp(SUBSCRIBER, 1, SERVER, 2, b"a");
    file.frame(0, &frame).frame(200_000_000, &frame);
    let written = file.write();
    let (capture, mut flows) = written.open(Pace::RealTime);
    flows.next_sample().await.unwrap();
    let health = Arc::downgrade(&flows.reading.health);
    drop((capture, flows));
    // The thread, which waits minutes for the next packet's time, lets go of what it shares.
    tokio::time::timeout(Duration::from_secs(10), async {
        while health.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the reading thread ended");
}

#[tokio::test]
async fn waiting_for_a_sample_may_be_given_up_without_losing_a_packet() {
    let mut file = File::new(ETHERNET);
    for number in 0..200 {
        file.frame(number * 50, &udp(SUBSCRIBER, 5_000, SERVER, 53, b"x"));
    }
    let (capture, mut flows) = file.write().open(Pace::RealTime);
    let mut samples = 0;
    loop {
        tokio::select! {
            biased;
            sample = flows.next_sample() => match sample {
                Some(_) => samples += 1,
                None => break,
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(samples, 200);
    assert_eq!(cell(&capture.usage(ANONYMOUS), Class::Other, Direction::Up), (200 * 29, 200));
}

#[tokio::test]
async fn a_file_that_breaks_off_ends_and_says_so() {
    let mut file = File::new(ETHERNET);
    let frame = udp(SUBSCRIBER, 1, SERVER, 2, b"a");
    file.frame(0, &frame).frame(1, &frame);
    let end = file.bytes.len() - 3;
    file.bytes.truncate(end);
    let (_capture, mut flows) = file.write().open(Pace::Fast);
    assert!(flows.next_sample().await.is_some());
    assert_eq!(flows.next_sample().await, None);
    let message = flows.broken().expect("broken").to_string();
    assert!(message.contains("test.pcap") && message.contains("truncated"), "{message}");
}

#[test]
fn a_source_that_cannot_be_opened_is_named_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.pcap");
    std::fs::write(&garbage, b"this is no capture at all").unwrap();
    let file = |path: &std::path::Path| Source::File { path: path.to_owned(), pace: Pace::Fast };
    for (source, expected) in [
        (file(&directory.path().join("none.pcap")), ["none.pcap", "No such file"]),
        (file(directory.path()), ["open capture", "is a directory"]),
        (file(&garbage), ["garbage.pcap", "not a pcap or pcapng file"]),
        (Source::Interface("nosuch0".to_owned()), ["nosuch0", "there are:"]),
    ] {
        let message = Capture::open(&source).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[tokio::test]
async fn what_would_be_enforced_is_read_back_as_it_was_given() {
    let (mut capture, _flows) = File::new(ETHERNET).write().open(Pace::Fast);
    assert!(capture.dry_run());
    let blocked = Enforcement { gate: Gate::Block, ..Enforcement::default() };
    capture.enforce(4, &blocked);
    assert_eq!(capture.enforcement(4), blocked);
    assert_eq!(capture.enforcement(5), Enforcement::default());
    capture.enforce(4, &Enforcement::default());
    assert_eq!(capture.enforcement(4), Enforcement::default());
    capture.set_bypass(true);
    assert!(capture.bypass());
    assert_ne!(capture.boot(), File::new(ETHERNET).write().open(Pace::Fast).0.boot());
}

fn table(bindings: &[(&str, u32)]) -> Table {
    let mut table = Table::new(TableLimits::default());
    for (text, slot) in bindings {
        table.bind(prefix(text), *slot).unwrap();
    }
    table
}

fn frame(table: &mut Table, frame: &[u8]) -> Option<Sample<'static>> {
    table.frame(ETHERNET, frame, frame.len(), Micros::new(1)).map(Sample::into_owned)
}

#[test]
fn the_longest_prefix_has_the_packet() {
    let mut table = table(&[("10.0.0.0/8", 1), ("10.0.0.2/32", 2), ("0.0.0.0/0", 9)]);
    assert_eq!(frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 2, b"x")).unwrap().slot, 2);
    assert_eq!(frame(&mut table, &udp(NEIGHBOUR, 1, SERVER, 2, b"x")).unwrap().slot, 1);
    table.unbind(prefix("10.0.0.2/32"));
    assert_eq!(frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 2, b"x")).unwrap().slot, 1);
    assert_eq!(table.bindings().len(), 2);
}

#[test]
fn an_address_that_moves_takes_no_usage_along() {
    let mut table = table(&[("10.0.0.2/32", 1)]);
    let packet = udp(SUBSCRIBER, 1, SERVER, 2, b"x");
    frame(&mut table, &packet);
    table.bind(prefix("10.0.0.2/32"), 2).unwrap();
    frame(&mut table, &packet);
    frame(&mut table, &packet);
    assert_eq!(cell(&table.usage(1), Class::Other, Direction::Up), (29, 1));
    assert_eq!(cell(&table.usage(2), Class::Other, Direction::Up), (58, 2));
}

#[test]
fn bytes_by_app_are_counted_for_who_has_the_address_now() {
    let mut table = table(&[("10.0.0.2/32", 1)]);
    let mut baseline = Baseline::default();
    let told = |table: &mut Table, baseline: &mut Baseline| {
        let moved = table.moved_apps(baseline);
        let told = moved.iter().map(|moved| {
            let before = baseline.app(moved.lane);
            (moved.slot, moved.app.to_string(), [moved.now[0] - before[0], moved.now[1] - before[1]])
        });
        let told = told.collect::<Vec<_>>();
        for moved in &moved {
            baseline.set_app(moved.lane, moved.now);
        }
        told
    };
    let (up, down) = (udp(SUBSCRIBER, 1, SERVER, 2, b"x"), udp(SERVER, 2, SUBSCRIBER, 1, b"xyz"));
    let key = frame(&mut table, &up).unwrap().flow;
    assert_eq!(table.count_for_app(&key, 1, Some("streams")), ForApp::Counted);
    assert_eq!(told(&mut table, &mut baseline), []);
    frame(&mut table, &up);
    frame(&mut table, &down);
    assert_eq!(told(&mut table, &mut baseline), [(1, "streams".to_owned(), [29, 31])]);
    table.bind(prefix("10.0.0.2/32"), 2).unwrap();
    frame(&mut table, &up);
    assert_eq!(told(&mut table, &mut baseline), [(2, "streams".to_owned(), [29, 0])]);
    table.unbind(prefix("10.0.0.2/32"));
    frame(&mut table, &up);
    assert_eq!(told(&mut table, &mut baseline), [], "nobody's");
    table.bind(prefix("10.0.0.2/32"), 2).unwrap();
    assert_eq!(table.count_for_app(&key, 2, None), ForApp::Not);
    frame(&mut table, &up);
    assert_eq!(told(&mut table, &mut baseline), []);
    // What no flow is counted for any more, and is told, makes room.
    assert_eq!(table.apps(), 2);
    for _ in 0..3 {
        table.sweep(Micros::new(2));
    }
    assert_eq!((told(&mut table, &mut baseline), table.apps()), (vec![], 0));
}

#[test]
fn where_no_app_finds_room_its_name_is_lost_alone() {
    let mut table = Table::new(TableLimits { apps: 1, ..TableLimits::default() });
    table.bind(prefix("10.0.0.2/32"), 1).unwrap();
    let keys = [1, 2].map(|port| frame(&mut table, &udp(SUBSCRIBER, port, SERVER, 443, b"x")).unwrap().flow);
    assert_eq!(table.count_for_app(&keys[0], 1, Some("streams")), ForApp::Counted);
    assert_eq!(table.count_for_app(&keys[1], 1, Some("chat")), ForApp::Full);
    assert_eq!(table.count_for_app(&keys[1], ANONYMOUS, Some("chat")), ForApp::Not);
    frame(&mut table, &udp(SUBSCRIBER, 2, SERVER, 443, b"x"));
    assert_eq!(table.moved_apps(&Baseline::default()), []);
    assert_eq!(cell(&table.usage(1), Class::Other, Direction::Up), (87, 3));
}

#[test]
fn the_subscribers_side_is_the_sessions_then_who_opened() {
    let mut table = table(&[("10.0.0.0/24", 1)]);
    let mut direction = |packet: &[u8]| {
        let sample = frame(&mut table, packet).unwrap();
        (sample.slot, sample.direction)
    };
    // A session's address, whatever the ports; of two, the source's.
    assert_eq!(direction(&udp(SERVER, 9_000, SUBSCRIBER, 80, b"x")), (1, Direction::Down));
    assert_eq!(direction(&udp(SUBSCRIBER, 80, NEIGHBOUR, 9_000, b"x")), (1, Direction::Up));
    assert_eq!(direction(&udp(NEIGHBOUR, 9_000, SUBSCRIBER, 80, b"x")), (1, Direction::Up));
    // Nobody's: the higher port asks, and its flow goes on as it began.
    let (a, b) = ([203, 0, 113, 1], [203, 0, 113, 2]);
    assert_eq!(direction(&udp(a, 9_000, b, 53, b"x")), (ANONYMOUS, Direction::Up));
    assert_eq!(direction(&udp(b, 53, a, 9_000, b"x")), (ANONYMOUS, Direction::Down));
    assert_eq!(direction(&udp(a, 123, b, 123, b"x")), (ANONYMOUS, Direction::Up));
    assert_eq!(direction(&udp(b, 123, a, 123, b"x")), (ANONYMOUS, Direction::Down));
    // Who sends the SYN opens, also from the lower port.
    let mut syn = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(a, b, 64).tcp(80, 9_000, 1, 1).syn();
    builder.write(&mut syn, b"").unwrap();
    assert_eq!(direction(&syn), (ANONYMOUS, Direction::Up));
    assert_eq!(direction(&tcp(b, 9_000, a, 80, b"x")), (ANONYMOUS, Direction::Down));
}

#[test]
fn a_full_table_costs_a_label_and_not_a_byte() {
    let mut table = Table::new(TableLimits { flows: 1, ..TableLimits::default() });
    table.bind(prefix("10.0.0.2/32"), 1).unwrap();
    let first = frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 443, b"x")).unwrap();
    table.name_flow(&first.flow, Class::Video, false);
    frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 443, b"x"));
    assert!(frame(&mut table, &udp(SUBSCRIBER, 2, SERVER, 443, b"x")).is_some());
    assert!(!table.name_flow(&first.flow, Class::Web, false), "forgotten");
    assert!(frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 443, b"x")).is_some(), "looked at anew");
    assert_eq!(cell(&table.usage(1), Class::Other, Direction::Up), (87, 3));
    assert_eq!(cell(&table.usage(1), Class::Video, Direction::Up), (29, 1));
    assert!(table.counters().contains(&("flow_table_full", 2)));
    assert!(!table.has_given_up(), "kept for nobody");
}

#[test]
fn silence_makes_room() {
    let mut table = table(&[("10.0.0.2/32", 1)]);
    let flow = frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 443, b"x")).unwrap().flow;
    assert_eq!(table.sweep(Micros::new(2)).len(), 0);
    assert_eq!(table.sweep(Micros::new(1).after(Duration::from_hours(1))).len(), 1);
    assert_eq!(table.flows(), 0);
    assert!(!table.name_flow(&flow, Class::Web, false), "forgotten");
}

#[test]
fn a_scan_displaces_no_flow_that_is_answered_and_nothing_it_sent_goes_uncounted() {
    let mut table = Table::new(TableLimits { flows: 64, keeps_given_up: true, ..TableLimits::default() });
    for port in 1_000..1_048 {
        frame(&mut table, &udp(SUBSCRIBER, port, SERVER, 443, b"asks"));
        frame(&mut table, &udp(SERVER, 443, SUBSCRIBER, port, b"answers"));
    }
    for port in 2_000..12_000 {
        let scan = udp([203, 0, 113, 9], port, NEIGHBOUR, 80, b"");
        table.frame(ETHERNET, &scan, scan.len(), Micros::new(i64::from(port)));
    }
    let given_up = table.take_given_up();
    assert!(table.flows() <= 64 && !table.has_given_up());
    let established = |flow: &&flow::Flow| flow.traffic.iter().all(|way| way.packets == 1);
    assert_eq!(table.iter().filter(established).count(), 48);
    let all: Vec<_> = given_up.iter().chain(table.iter()).collect();
    assert_eq!(all.len(), 48 + 10_000, "each flow once");
    let bytes: u64 = all.iter().flat_map(|flow| flow.traffic).map(|way| way.bytes).sum();
    assert_eq!(bytes, 48 * (32 + 35) + 10_000 * 28);
}

#[test]
fn a_new_connection_on_old_ports_is_sampled_again() {
    let mut table = table(&[("10.0.0.2/32", 1)]);
    let syn = |sequence| {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(SUBSCRIBER, SERVER, 64)
            .tcp(40_000, 443, sequence, 1)
            .syn()
            .write(&mut bytes, b"")
            .unwrap();
        bytes
    };
    let first = frame(&mut table, &syn(1)).unwrap();
    table.name_flow(&first.flow, Class::Video, false);
    assert_eq!(frame(&mut table, &tcp(SUBSCRIBER, 40_000, SERVER, 443, b"x")), None);
    let later = Micros::new(2_000_000);
    let again = syn(9);
    let reopened = table.frame(ETHERNET, &again, 54, later).unwrap();
    assert_eq!((reopened.flow, reopened.first_packet), (first.flow, later));
    assert!(frame(&mut table, &tcp(SUBSCRIBER, 40_000, SERVER, 443, b"x")).is_some());
    assert_eq!(
        cell(&table.usage(1), Class::Video, Direction::Up).1,
        3,
        "the class holds until the next verdict"
    );
}

#[test]
fn bindings_are_bounded() {
    let mut table = Table::new(TableLimits { bindings: 1, ..TableLimits::default() });
    table.bind(prefix("10.0.0.2/32"), 1).unwrap();
    table.bind(prefix("10.0.0.2/32"), 2).unwrap();
    let message = table.bind(prefix("10.0.0.3/32"), 1).unwrap_err().to_string();
    assert!(message.contains("10.0.0.3/32"), "{message}");
    table.unbind(prefix("10.0.0.2/32"));
    table.bind(prefix("10.0.0.3/32"), 1).unwrap();
}

#[test]
fn ipv6_flows_are_counted_and_bound_by_their_prefix() {
    let mut table = table(&[("2001:db8:1::/64", 6)]);
    let mut packet = Vec::new();
    let source = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9).octets();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .single_vlan(etherparse::VlanId::try_new(100).unwrap())
        .ipv6(source, [0x20; 16], 64)
        .udp(5_000, 443)
        .write(&mut packet, &[0; 52])
        .unwrap();
    let sample = frame(&mut table, &packet).unwrap();
    assert_eq!((sample.slot, sample.flow.subscriber, sample.packet.len()), (6, source, 100));
    assert_eq!(cell(&table.usage(6), Class::Other, Direction::Up), (100, 1));
}

#[test]
fn of_packets_in_packets_the_outermost_of_a_session_counts() {
    // 6in4: an IPv6 packet in the subscriber's IPv4.
    let mut inner = Vec::new();
    PacketBuilder::ipv6([0x20; 16], [0x21; 16], 64).udp(5_000, 443).write(&mut inner, &[0; 8]).unwrap();
    let mut outer = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(SUBSCRIBER, SERVER, 64)
        .write(&mut outer, etherparse::IpNumber::IPV6, &inner)
        .unwrap();
    let length = u64::try_from(inner.len()).unwrap();

    let mut of_outer = table(&[("10.0.0.2/32", 1)]);
    assert_eq!(frame(&mut of_outer, &outer).unwrap().flow.protocol, 41);
    assert_eq!(cell(&of_outer.usage(1), Class::Other, Direction::Up), (length + 20, 1));

    let mut of_inner = table(&[("2020::/16", 2)]);
    assert_eq!(frame(&mut of_inner, &outer).unwrap().slot, 2);
    assert_eq!(cell(&of_inner.usage(2), Class::Other, Direction::Up), (length, 1));

    // Who wraps another's addresses wraps them for itself.
    let mut of_both = table(&[("10.0.0.2/32", 1), ("2020::/16", 2)]);
    let sample = frame(&mut of_both, &outer).unwrap();
    assert_eq!((sample.slot, sample.flow.protocol), (1, 41));
    assert_eq!(cell(&of_both.usage(1), Class::Other, Direction::Up), (length + 20, 1));
    assert_eq!(cell(&of_both.usage(2), Class::Other, Direction::Up), (0, 0));

    let mut of_nobody = table(&[]);
    assert_eq!(frame(&mut of_nobody, &outer).unwrap().flow.subscriber, [0x20; 16]);
}

#[test]
fn a_flow_is_sampled_for_as_long_as_the_classifier_asks() {
    let mut table = table(&[]);
    let packet = udp(SUBSCRIBER, 5_353, [224, 0, 0, 251], 5_353, &[0; 12]);
    for _ in 0..=u32::from(u16::MAX) {
        let sample = frame(&mut table, &packet).unwrap();
        assert!(table.name_flow(&sample.flow, Class::System, true));
    }
}

/// The first fragment of an IPv4 packet that carries `inner`, filled up to eights of octets, and goes on.
fn first_fragment(number: u16, protocol: u8, inner: &[u8]) -> Vec<u8> {
    let mut inner = inner.to_vec();
    inner.resize(inner.len().next_multiple_of(8), 0);
    let length = u16::try_from(20 + inner.len()).unwrap().to_be_bytes();
    let [high, low] = number.to_be_bytes();
    let header = [0x45, 0, length[0], length[1], high, low, 0x20, 0, 64, protocol, 0, 0];
    [&header[..], &SUBSCRIBER, &SERVER, &inner].concat()
}

#[test]
fn fragments_in_fragments_are_all_counted_whatever_makes_room_for_what() {
    let mut table = table(&[]);
    let sent = 3 * u64::try_from(FragmentLimits::default().datagrams).unwrap();
    // Each waits for a rest that never comes, and what it holds of its content will do so after it.
    for number in 0..sent {
        let number = u16::try_from(number).unwrap();
        let packet =
            first_fragment(number, 4, &first_fragment(number, 4, &first_fragment(number, 17, &[0; 8])));
        table.frame(101, &packet, packet.len(), Micros::new(1));
    }
    table.rest_of_fragments();
    let counted = table.usage(ANONYMOUS).cells.iter().flatten().map(|cell| cell.packets).sum::<u64>();
    assert_eq!(counted, sent);
}

#[test]
fn addresses_in_keys_are_mapped() {
    let mut table = table(&[("10.0.0.2/32", 1)]);
    let sample = frame(&mut table, &udp(SUBSCRIBER, 1, SERVER, 2, b"x")).unwrap();
    assert_eq!(sample.flow.subscriber, Ipv4Addr::from(SUBSCRIBER).to_ipv6_mapped().octets());
    assert_eq!((sample.flow.subscriber_port, sample.flow.remote_port, sample.flow.protocol), (1, 2, 17));
}

#[tokio::test]
async fn packets_of_a_live_interface_are_counted() {
    let (capture, mut flows) = match Capture::open(&Source::Interface("lo".to_owned())) {
        Err(CaptureError::NotPermitted { .. }) => {
            let name = "packets_of_a_live_interface_are_counted";
            let line = format!("SKIPPED {name}: needs CAP_NET_RAW\n");
            // Past the test runner's own buffer, which hides what passing tests print.
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
            assert!(
                std::env::var_os("USHER_NO_SKIP").is_none_or(|value| value != "1"),
                "no test may be left out"
            );
            return;
        }
        opened => opened.unwrap(),
    };
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let ports = [sender.local_addr().unwrap().port(), receiver.local_addr().unwrap().port()];
    let before = Micros::now();
    sender.send_to(&[7; 972], receiver.local_addr().unwrap()).unwrap();
    let sample = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let sample = flows.next_sample().await.expect("the interface stays");
            let flow = &sample.flow;
            if [flow.subscriber_port, flow.remote_port].iter().all(|port| ports.contains(port)) {
                return sample;
            }
        }
    })
    .await
    .expect("the packet is captured");
    assert_eq!(sample.packet.len(), 1_000);
    assert!(sample.seen.since(before) < Duration::from_secs(20) && before.since(sample.seen).as_secs() == 0);
    let anonymous = capture.usage(ANONYMOUS);
    let bytes: u64 = anonymous.cells.iter().flatten().map(|cell| cell.bytes).sum();
    assert!(bytes >= 1_000);
}
