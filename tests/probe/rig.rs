//! A probe of one's own: on an interface nobody sends through, with pins nobody shares.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use etherparse::PacketBuilder;
use ipnet::IpNet;
use usher_agent::dataplane::{ForApp, Sample};
use usher_agent::probe::{Flows, Probe, ProbeConfig, ProbeError, Trial, Verdict};
use usher_models::wire::{Cell, Class, Direction, FlowKey, Reason, Tally, TcpFlags};

/// The subscriber of most tests, and a server.
pub(crate) const SUBSCRIBER: [u8; 4] = [10, 0, 0, 2];
pub(crate) const SERVER: [u8; 4] = [198, 51, 100, 7];
pub(crate) const SUBSCRIBER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const SERVER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
pub(crate) const SLOT: u32 = 3;

/// An interface that is down, so that the kernel sends nothing through it by itself; and a directory for pins. Gone when dropped.
pub(crate) struct Rig {
    pub(crate) interface: String,
    pub(crate) settings: ProbeConfig,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Rig {
    pub(crate) fn new() -> Self {
        let unique = format!("ut{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let settings = ProbeConfig {
            pin_dir: PathBuf::from("/sys/fs/bpf").join(&unique),
            max_flows: 256,
            max_subscribers: 16,
            max_prefixes: 16,
            max_measured: 64,
            max_apps: 64,
            ring_bytes: 1 << 18,
            sample_packets: 4,
            ..ProbeConfig::new(&unique)
        };
        let rig = Self { interface: unique, settings };
        rig.make_interface();
        rig
    }

    pub(crate) fn make_interface(&self) {
        let name = &self.interface;
        ip(&["link", "add", name, "type", "veth", "peer", "name", &self.peer()]);
    }

    /// The interface's other end.
    pub(crate) fn peer(&self) -> String {
        self.interface.replace("ut", "up")
    }

    /// Brings both ends up; the kernel still sends nothing by itself.
    pub(crate) fn up(&self) {
        for end in [&self.interface, &self.peer()] {
            ip(&["link", "set", end, "addrgenmode", "none", "up"]);
        }
    }

    pub(crate) fn remove_interface(&self) {
        ip(&["link", "del", &self.interface]);
    }

    pub(crate) fn load(&self) -> Result<Whole, ProbeError> {
        Whole::load(self.settings.clone())
    }

    /// A probe with the usual subscriber bound.
    pub(crate) fn probe(&self) -> Whole {
        let mut probe = self.load().expect("the probe loads");
        probe.bind(net("10.0.0.2/32"), SLOT).expect("binds");
        probe.bind(net("2001:db8:1::/48"), SLOT).expect("binds");
        probe
    }
}

/// Both halves of a probe, in the one hand of a test.
#[derive(Debug)]
pub(crate) struct Whole {
    probe: Probe,
    flows: Flows,
}

impl Whole {
    pub(crate) fn load(settings: ProbeConfig) -> Result<Self, ProbeError> {
        Probe::load(settings).map(|(probe, flows)| Self { probe, flows })
    }

    pub(crate) fn name_flow(
        &mut self,
        key: &FlowKey,
        class: Class,
        sampling: bool,
    ) -> Result<bool, ProbeError> {
        self.flows.name_flow(key, class, sampling)
    }

    pub(crate) fn count_for_app(&mut self, key: &FlowKey, app: Option<&str>) -> ForApp {
        self.flows.count_for_app(key, app)
    }

    pub(crate) async fn next_sample(&mut self) -> Option<Sample<'static>> {
        self.flows.next_sample().await
    }

    pub(crate) fn detach(self) -> Result<(), ProbeError> {
        self.probe.detach()
    }
}

impl Deref for Whole {
    type Target = Probe;

    fn deref(&self) -> &Probe {
        &self.probe
    }
}

impl DerefMut for Whole {
    fn deref_mut(&mut self) -> &mut Probe {
        &mut self.probe
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.settings.pin_dir);
        let _ = Command::new("ip").args(["link", "del", &self.interface]).stderr(Stdio::null()).status();
    }
}

/// An interface beside a rig's, gone when dropped.
pub(crate) struct Temporary(pub(crate) String);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

pub(crate) fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).status().expect("ip runs");
    assert!(done.success(), "ip {arguments:?}");
}

/// Where frames are sent through an interface.
pub(crate) fn wire(interface: &str) -> pcap::Capture<pcap::Active> {
    pcap::Capture::from_device(interface).and_then(pcap::Capture::open).expect("opens")
}

/// Bytes and frames that an interface has counted itself, received and sent.
pub(crate) fn interface_counters(interface: &str) -> [u64; 4] {
    ["rx_bytes", "rx_packets", "tx_bytes", "tx_packets"].map(|name| {
        let file = format!("/sys/class/net/{interface}/statistics/{name}");
        let text = std::fs::read_to_string(file).expect("the interface counts");
        text.trim().parse().expect("a number")
    })
}

/// The names of what is pinned.
pub(crate) fn pins(rig: &Rig) -> Vec<String> {
    let pins = std::fs::read_dir(&rig.settings.pin_dir).into_iter().flatten().flatten();
    pins.map(|pin| pin.file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// Runs a frame once.
pub(crate) fn run(probe: &Probe, direction: Direction, frame: &[u8]) -> Verdict {
    probe.trial(&Trial::once(direction, frame)).expect("the program runs").verdict
}

/// Runs a super-packet once.
pub(crate) fn run_super(probe: &Probe, direction: Direction, frame: &[u8], segment_bytes: u32) -> Verdict {
    let trial = Trial { segment_bytes, ..Trial::once(direction, frame) };
    probe.trial(&trial).expect("the program runs").verdict
}

pub(crate) fn cell(probe: &Probe, slot: u32, class: Class, direction: Direction) -> Cell {
    probe.usage(slot).expect("reads").cells[class.index()][direction.index()]
}

pub(crate) fn passed(bytes: u64, packets: u64) -> Cell {
    Cell { bytes, packets, ..Cell::default() }
}

pub(crate) fn tally(probe: &Probe, reason: Reason, direction: Direction) -> Tally {
    let all = probe.counters().expect("reads");
    all.into_iter().find(|(r, d, _)| (*r, *d) == (reason, direction)).expect("there").2
}

/// All packets counted anywhere, by usage or as outside of it.
pub(crate) fn everything(probe: &Probe) -> (u64, u64) {
    let mut packets = 0;
    let mut bytes = 0;
    for slot in 0..probe.slots() {
        for cell in probe.usage(slot).expect("reads").cells.iter().flatten() {
            packets += cell.packets + cell.dropped_packets;
            bytes += cell.bytes + cell.dropped_bytes;
        }
    }
    for (reason, _, tally) in probe.counters().expect("reads") {
        if reason.outside_usage() {
            packets += tally.packets;
            bytes += tally.bytes;
        }
    }
    (packets, bytes)
}

pub(crate) fn samples(probe: &mut Whole) -> Vec<Sample<'static>> {
    std::iter::from_fn(|| probe.flows.try_next_sample()).collect()
}

/// The flow of [`tcp`] and [`udp`] frames.
pub(crate) fn flow(protocol: u8, subscriber_port: u16, remote_port: u16) -> FlowKey {
    FlowKey {
        subscriber: mapped(SUBSCRIBER),
        remote: mapped(SERVER),
        subscriber_port,
        remote_port,
        protocol,
        zero: [0; 3],
    }
}

pub(crate) fn mapped(v4: [u8; 4]) -> [u8; 16] {
    match IpAddr::from(v4) {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

/// A TCP segment between the subscriber's `port` and the server's 443.
pub(crate) fn tcp(direction: Direction, port: u16, payload: &[u8]) -> Vec<u8> {
    let (from, to, source, destination) = match direction {
        Direction::Up => (SUBSCRIBER, SERVER, port, 443),
        Direction::Down => (SERVER, SUBSCRIBER, 443, port),
    };
    let mut frame = Vec::new();
    ethernet()
        .ipv4(from, to, 64)
        .tcp(source, destination, 1, 1_000)
        .write(&mut frame, payload)
        .expect("writes");
    frame
}

/// A TCP segment with `flags` alone and no payload, between the subscriber's port 4000 and the server's 443.
pub(crate) fn tcp_with(flags: TcpFlags, direction: Direction) -> Vec<u8> {
    let mut frame = tcp(direction, 4000, b"");
    frame[14 + 20 + 13] = flags.0;
    frame
}

/// A TCP segment from `subscriber` to the server.
pub(crate) fn tcp_of(subscriber: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet()
        .ipv4(subscriber, SERVER, 64)
        .tcp(4_000, 443, 1, 1_000)
        .write(&mut frame, payload)
        .expect("writes");
    frame
}

/// A UDP datagram from the subscriber's `port` to the server's `remote_port`.
pub(crate) fn udp(port: u16, remote_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet()
        .ipv4(SUBSCRIBER, SERVER, 64)
        .udp(port, remote_port)
        .write(&mut frame, payload)
        .expect("writes");
    frame
}

/// A UDP datagram over IPv6, to port 443.
pub(crate) fn udp6(direction: Direction, port: u16, payload: &[u8]) -> Vec<u8> {
    let (from, to, source, destination) = match direction {
        Direction::Up => (SUBSCRIBER6, SERVER6, port, 443),
        Direction::Down => (SERVER6, SUBSCRIBER6, 443, port),
    };
    let mut frame = Vec::new();
    ethernet().ipv6(from, to, 64).udp(source, destination).write(&mut frame, payload).expect("writes");
    frame
}

/// The frame with `tags` in it, outermost first, as (ethertype of the tag, VLAN).
pub(crate) fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for (ethertype, vlan) in tags {
        out.extend(ethertype.to_be_bytes());
        out.extend(vlan.to_be_bytes());
    }
    out.extend(&frame[12..]);
    out
}

/// An IPv6 frame whose headers after the fixed one are `rest`, the first of number `next`.
pub(crate) fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(SUBSCRIBER6);
    frame.extend(SERVER6);
    frame.extend(rest);
    frame
}

/// A UDP header and payload, without checksum.
pub(crate) fn udp_header(port: u16, remote_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("short");
    let mut out = Vec::new();
    for field in [port, remote_port, length, 0] {
        out.extend(field.to_be_bytes());
    }
    out.extend(payload);
    out
}

/// A GTP-U packet (3GPP TS 29.281, 5.1) with a PDU session container around `inner`.
pub(crate) fn gtpu_payload(inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x34, 0xff, 0, 0, 0, 0, 0, 7, 0, 1, 0, 0x85, 1, 0x10, 9, 0];
    payload.extend(inner);
    payload
}

/// An Ethernet frame with a GTP-U packet around `inner`, from a base station to a gateway.
pub(crate) fn gtpu(inner: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64)
        .udp(2152, 2152)
        .write(&mut frame, &gtpu_payload(inner))
        .expect("writes");
    frame
}
