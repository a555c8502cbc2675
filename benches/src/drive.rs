//! The driver of the probe's benches: makes each run's packet one of the next flow and calls a program by tail call.
//!
//! The program is `ebpf/src/bench.rs`; it runs under BPF_PROG_TEST_RUN, off the wire. Targets are its own (an empty one, a hash
//! map's look-up) or the probe's, attached to some interface.

#[path = "../../ebpf/src/bench_plan.rs"]
#[expect(unreachable_pub, reason = "the programs' file")]
mod plan;

use anyhow::Context as _;
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::tc::TcAttachType;
use aya::programs::{
    Program, ProgramFd, ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, loaded_programs,
};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use plan::{BOTH, DOWN, Plan, REMOTE, UP};
pub use plan::{GTPU, GTPU_AT, IPV4, IPV6, PLAIN_AT, SUBSCRIBER};
use usher_models::wire::FlowKey;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/usher-probe-bench.o");

/// Bytes of a frame without a tunnel.
const FRAME_BYTES: usize = 128;

/// A program attached to an interface by TCX, which Linux has from 6.6 on.
pub fn attached(interface: &str, hook: TcAttachType) -> anyhow::Result<ProgramFd> {
    let (_, programs) = SchedClassifier::query_tcx(interface, hook)?;
    Ok(programs.first().context("the probe is not attached by TCX: Linux 6.6 has it")?.fd()?)
}

/// The ports of every segment, whichever way it goes.
const PORTS: [u16; 2] = [443, 4_000];

/// The probe's program that was last put into an interface's driver.
pub fn in_driver() -> anyhow::Result<ProgramFd> {
    let programs: Result<Vec<ProgramInfo>, _> = loaded_programs().collect();
    let probes = programs?.into_iter().filter(|program| program.name_as_str() == Some("usher_xdp"));
    Ok(probes.max_by_key(ProgramInfo::id).context("no probe is in a driver")?.fd()?)
}

/// Which packets are driven.
#[derive(Debug, Clone, Copy)]
pub struct Packets {
    /// [`IPV4`], [`IPV6`] or [`GTPU`].
    pub shape: u32,
    /// Of so many flows, a power of two.
    pub flows: u32,
    /// Of so many subscribers.
    pub subscribers: u32,
    /// Which ways they go.
    pub ways: Ways,
    /// With a payload, which the classifier may want to see.
    pub payload: bool,
}

/// Which ways packets go, and so by which programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Down.
    Down,
    /// Up and down in turns.
    Both,
    /// Up, by programs of an interface's driver (XDP).
    UpInDriver,
}

impl Ways {
    /// The name of a program of the bench's for packets that go these ways.
    fn program(self, name: &str) -> String {
        if self == Self::UpInDriver { format!("{name}_xdp") } else { name.to_owned() }
    }
}

/// The driver, loaded with a frame and a plan.
pub struct Driver {
    ebpf: Ebpf,
    targets: ProgramArray<MapData>,
    plan: Array<MapData, [u32; 6]>,
    packets: Packets,
    frame: Vec<u8>,
    /// The probe's next turn.
    turn: u32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("packets", &self.packets).finish_non_exhaustive()
    }
}

impl Driver {
    /// Loads it; its own hash map has room for `remembered` flows.
    pub fn load(packets: Packets, remembered: u32) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().map_max_entries("bench_flows", remembered).load(OBJECT)?;
        for name in ["drive", "nothing", "look_up", "remember"] {
            match program(&mut ebpf, &packets.ways.program(name))? {
                Program::Xdp(program) => program.load()?,
                program => <&mut SchedClassifier>::try_from(program)?.load()?,
            }
        }
        let targets = if packets.ways == Ways::UpInDriver { "bench_targets_xdp" } else { "bench_targets" };
        let targets = ebpf.take_map(targets).context("no table of targets")?.try_into()?;
        let plan = ebpf.take_map("bench_plan").context("no plan")?.try_into()?;
        let frame = frame(packets.shape, packets.payload);
        Ok(Self { ebpf, targets, plan, packets, frame, turn: 0 })
    }

    /// One of the bench's own programs.
    pub fn own(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(program(&mut self.ebpf, &self.packets.ways.program(name))?.info()?.fd()?)
    }

    /// What is driven.
    pub fn packets(&self) -> &Packets {
        &self.packets
    }

    /// The flow of a number, as the probe tells it from others: of IPv4, seen down.
    pub fn flow(&self, number: u32) -> FlowKey {
        let mapped = |address: u32| std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets();
        FlowKey {
            subscriber: mapped(SUBSCRIBER + number % self.packets.subscribers),
            remote: mapped(REMOTE + number),
            subscriber_port: PORTS[1],
            remote_port: PORTS[0],
            protocol: 6,
            zero: [0; 3],
        }
    }

    /// Drives the probe through the next `runs` packets; nanoseconds of each. They go on where the last ones were, as connections do.
    pub fn probe(&mut self, programs: [&ProgramFd; 2], runs: u32) -> anyhow::Result<f64> {
        let turn = self.turn;
        self.turn = turn.wrapping_add(runs);
        self.drive(programs, runs, 0, turn)
    }

    /// Drives the targets of up and down through `runs` packets, from the first flow on; nanoseconds of each.
    pub fn run(&mut self, targets: [&ProgramFd; 2], runs: u32, remote_offset: u32) -> anyhow::Result<f64> {
        self.drive(targets, runs, remote_offset, 0)
    }

    fn drive(
        &mut self,
        targets: [&ProgramFd; 2],
        runs: u32,
        remote_offset: u32,
        turn: u32,
    ) -> anyhow::Result<f64> {
        for (place, target) in (0..).zip(targets) {
            self.targets.set(place, target, 0)?;
        }
        let plan = Plan {
            turn,
            shape: self.packets.shape,
            flow_mask: self.packets.flows - 1,
            subscribers: self.packets.subscribers,
            ways: match self.packets.ways {
                Ways::Down => DOWN,
                Ways::Both => BOTH,
                Ways::UpInDriver => UP,
            },
            remote_offset,
        };
        let words = [plan.turn, plan.shape, plan.flow_mask, plan.subscribers, plan.ways, plan.remote_offset];
        self.plan.set(0, words, 0)?;
        let options =
            TestRunOptions { data_in: Some(&self.frame), repeat: runs, ..TestRunOptions::default() };
        let taken = match program(&mut self.ebpf, &self.packets.ways.program("drive"))? {
            Program::Xdp(program) => program.test_run(options)?,
            program => <&mut SchedClassifier>::try_from(program)?.test_run(options)?,
        };
        Ok(taken.duration.as_secs_f64() * 1e9)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("the bench's object has no `{name}`"))
}

/// The subscriber's prefix: a host of IPv4, a /64 of IPv6.
pub fn prefix(shape: u32, number: u32) -> anyhow::Result<IpNet> {
    let address = if shape == IPV6 {
        let [a, b, c, d] = number.to_be_bytes();
        IpNet::new([0x20, 0x01, 0x0d, 0xb8, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0].into(), 64)
    } else {
        IpNet::new((SUBSCRIBER + number).to_be_bytes().into(), 32)
    };
    Ok(address?)
}

/// A TCP segment with time stamps, [`FRAME_BYTES`] long but for a tunnel's headers. The driver writes addresses and stamps.
///
/// Without payload, what follows the headers is padding of the frame.
fn frame(shape: u32, payload: bool) -> Vec<u8> {
    let ip_at = if shape == GTPU { GTPU_AT } else { PLAIN_AT };
    let inner_bytes = FRAME_BYTES - PLAIN_AT;
    let headers = if shape == IPV6 { 40 } else { 20 } + 32;
    let said_bytes = if payload { inner_bytes } else { headers };
    let mut inner = Vec::with_capacity(inner_bytes);
    if shape == IPV6 {
        inner.extend([0x60, 0, 0, 0]);
        inner.extend(length(said_bytes - 40));
        inner.extend([6, 64]);
        inner.extend([0; 32]);
    } else {
        ipv4(&mut inner, 6, said_bytes);
    }
    inner.extend(PORTS.map(u16::to_be_bytes).as_flattened());
    inner.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    inner.extend([1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
    inner.resize(inner_bytes, 0);

    let ethertype = if shape == IPV6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, ethertype[0], ethertype[1]];
    if shape == GTPU {
        ipv4(&mut frame, 17, ip_at - PLAIN_AT + inner_bytes);
        frame.extend([0x08, 0x68, 0x08, 0x68]);
        frame.extend(length(8 + 8 + inner_bytes));
        frame.extend([0, 0, 0x30, 0xff]);
        frame.extend(length(inner_bytes));
        frame.extend([0, 0, 0, 7]);
    }
    frame.extend(inner);
    frame
}

fn ipv4(to: &mut Vec<u8>, protocol: u8, bytes: usize) {
    to.extend([0x45, 0]);
    to.extend(length(bytes));
    to.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    to.extend([172, 16, 0, 1, 172, 16, 0, 2]);
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}
