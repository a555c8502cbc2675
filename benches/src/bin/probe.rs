//! What the probe costs a packet: its programs under BPF_PROG_TEST_RUN, each run's packet one of the next flow.
//!
//! A driver program (`ebpf/src/bench.rs`) writes the flow's addresses and time stamps into the packet and calls the target by tail
//! call: the probe, an empty program, or one look-up of the 5-tuple in a hash map as large as the probe's table. The three
//! take turns within each round. Printed are the nanoseconds above the empty program, and their ratio to the look-up's.
//!
//! Counting and rates are on for every subscriber, and so large that nothing is held back. Quality is measured of the share of flows that the
//! agent chooses where packets come as fast as here, in turns, as shipped: `rtt-64k` is that in both directions. In `rtt-64k-every` it is of
//! every packet, as on a gateway with little to do. The share is printed. Needs root. With `--check` it fails where the median of a case's ratios
//! to the look-up is above what CI lets it cost: 2.2 for one flow; 1.6 for 65,536 flows of IPv4, one way and both, of IPv6, and in GTP-U; and
//! where a full table costs more than 2.2 times what the same flows do in one that has room for them.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aya::programs::ProgramFd;
use aya::programs::tc::TcAttachType;
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_agent::dataplane::Measured;
use usher_agent::probe::{Flows, Probe, ProbeConfig, Xdp};
use usher_agent::usage::Baseline;
use usher_agent::usage::quality::masks;
use usher_benches::drive::{Driver, GTPU, IPV4, IPV6, Packets, Ways, attached, in_driver, prefix};
use usher_benches::{say, write};
use usher_models::units::{BitsPerSecond, Micros};
use usher_models::wire::{ANONYMOUS, Class, Direction, Enforcement, Rate, Reason};

/// What a full table may cost, in times of what the same flows cost in one that has room for them; and what CI lets it, on machines that others
/// share.
const FULL_MOST: f64 = 1.5;
const FULL_LIMIT: f64 = 2.2;
const ROUNDS: usize = 11;
/// Bytes of a packet from its IP header on, without a tunnel.
const IP_BYTES: u64 = 114;
/// Runs of a target in a round, at the least.
const RUNS: u32 = 1 << 18;

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    shape: u32,
    flows: u32,
    subscribers: u32,
    ways: Ways,
    /// The table is full of other flows.
    full: bool,
    /// Every flow is measured all the time, as on a gateway with little to do.
    measured: bool,
    /// Every flow is counted for an app, a subscriber's all for the same.
    named: bool,
    /// The highest median ratio that `--check` lets pass.
    limit: Option<f64>,
}

const TCP4_64K: Case = Case {
    name: "tcp4-64k",
    shape: IPV4,
    flows: 1 << 16,
    subscribers: 8_192,
    ways: Ways::Down,
    full: false,
    measured: false,
    named: false,
    limit: Some(1.6),
};

const CASES: [Case; 10] = [
    Case { name: "tcp4-1", flows: 1, subscribers: 1, limit: Some(2.2), ..TCP4_64K },
    TCP4_64K,
    Case { name: "tcp4-1m", flows: 1 << 20, subscribers: 100_000, limit: None, ..TCP4_64K },
    Case { name: "apps-64k", named: true, limit: None, ..TCP4_64K },
    Case { name: "tcp6-64k", shape: IPV6, ..TCP4_64K },
    Case { name: "gtpu-64k", shape: GTPU, ..TCP4_64K },
    Case { name: "rtt-64k", ways: Ways::Both, ..TCP4_64K },
    Case { name: "rtt-64k-every", ways: Ways::Both, measured: true, limit: None, ..TCP4_64K },
    Case { name: "xdp-64k", ways: Ways::UpInDriver, limit: None, ..TCP4_64K },
    Case { name: "full", full: true, limit: None, ..TCP4_64K },
];

fn main() -> anyhow::Result<ExitCode> {
    let mut check = false;
    let mut wanted = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            name if CASES.iter().any(|case| case.name == name) => wanted.push(argument),
            _ => bail!("`{argument}`: expected --check or names of cases"),
        }
    }
    let mut cases = Vec::new();
    let mut over = Vec::new();
    for case in CASES.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case.name)) {
        let figure = measure(case).with_context(|| format!("measure {}", case.name))?;
        if let Some(limit) = case.limit.filter(|limit| figure.lookup_ratio.median > *limit) {
            over.push(format!(
                "{}: {:.2} look-ups, more than {limit}",
                case.name, figure.lookup_ratio.median
            ));
        }
        cases.push(figure);
    }
    say(&format!("nanoseconds a packet above an empty program, {ROUNDS} rounds: minimum / median"));
    say(&table(&cases).to_string());
    let net = |name: &str| cases.iter().find(|figure| figure.case == name).map(|figure| figure.net_ns.median);
    if let (Some(full), Some(warm)) = (net("full"), net(TCP4_64K.name)) {
        let told = format!("a full table costs {:.2} times what a warm one does", full / warm);
        let held = if full <= FULL_MOST * warm { "held" } else { "NOT HELD" };
        say(&format!("{told}; no more than {FULL_MOST}: {held}"));
        if full > FULL_LIMIT * warm {
            over.push(format!("{told}, more than {FULL_LIMIT}"));
        }
    }
    write("probe", &Report { cases })?;
    if check && !over.is_empty() {
        bail!("the probe costs too much: {}", over.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

/// The best and the middle round.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    minimum: f64,
    median: f64,
}

impl Spread {
    fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_unstable_by(f64::total_cmp);
        let at = |place: usize| rounds.get(place).copied().unwrap_or(f64::NAN);
        Self { minimum: at(0), median: at(rounds.len() / 2) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Figure>,
}

/// What came of a case.
#[derive(Debug, Serialize)]
struct Figure {
    case: &'static str,
    /// The probe, above the empty program.
    net_ns: Spread,
    /// The look-up in a hash map, above the empty program.
    lookup_ns: Spread,
    /// The first over the second, round by round.
    lookup_ratio: Spread,
    /// The empty program behind the driver.
    empty_ns: Spread,
    /// The agent's reading of one subscriber's counters.
    drain_ns: f64,
    /// A flow is measured in one of so many turns.
    measured_one_in: u32,
    /// Round-trip times that were measured, by a thousand packets.
    round_trips_per_1000: f64,
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "the probe", "one look-up", "ratio", "driver", "a drain", "measured"]);
    let both =
        |spread: Spread, digits: usize| format!("{:.digits$} / {:.digits$}", spread.minimum, spread.median);
    for figure in figures {
        table.add_row([
            figure.case.to_owned(),
            both(figure.net_ns, 0),
            both(figure.lookup_ns, 0),
            both(figure.lookup_ratio, 2),
            both(figure.empty_ns, 0),
            format!("{:.0}", figure.drain_ns),
            format!("1/{}", figure.measured_one_in),
        ]);
    }
    table
}

fn measure(case: &Case) -> anyhow::Result<Figure> {
    let interface = Interface::make()?;
    // As a gateway of that size is configured; the default where it is the larger.
    let base = ProbeConfig::new(&interface.name);
    let (mut probe, mut flows) = Probe::load(ProbeConfig {
        pin_dir: format!("/sys/fs/bpf/{}", interface.name).into(),
        max_flows: if case.full { 1_024 } else { base.max_flows.max(case.flows) },
        max_subscribers: base.max_subscribers.max(case.subscribers + 1),
        max_prefixes: base.max_prefixes.max(case.subscribers),
        max_measured: base.max_measured.max(case.subscribers * 2),
        // The first packet of a flow is shown to the agent, which is not there; the others are a warm flow's.
        sample_packets: 1,
        ring_bytes: 1 << 16,
        xdp: if case.ways == Ways::UpInDriver { Xdp::Native } else { Xdp::Off },
        sample_rate: BitsPerSecond(8_000),
        ..base.clone()
    })?;
    let figure = compare(case, (&mut probe, &mut flows), &interface.name, base.max_flows.max(case.flows));
    probe.detach()?;
    figure
}

fn compare(
    case: &Case,
    (probe, named): (&mut Probe, &mut Flows),
    interface: &str,
    lookup_flows: u32,
) -> anyhow::Result<Figure> {
    let fast = Rate::per_second(1_000_000_000_000, 0);
    let lane = Class::Other.index();
    let limited =
        Direction::BOTH.iter().fold(Enforcement::default(), |all, way| all.with_rate(lane, *way, fast));
    for number in 0..case.subscribers {
        probe.bind(prefix(case.shape, number)?, number + 1)?;
        probe.enforce(number + 1, &limited)?;
    }

    let Case { shape, flows, subscribers, ways, .. } = *case;
    let mut driver = Driver::load(Packets { shape, flows, subscribers, ways, payload: true }, lookup_flows)?;
    let nothing = driver.own("nothing")?;
    let look_up = driver.own("look_up")?;
    let remember = driver.own("remember")?;
    let probed = match ways {
        Ways::UpInDriver => [in_driver()?, in_driver()?],
        _ => [attached(interface, TcAttachType::Ingress)?, attached(interface, TcAttachType::Egress)?],
    };

    // Every flow once; then the look-up finds all of them, and the probe knows all that it can.
    let all = case.flows * if case.ways == Ways::Both { 2 } else { 1 };
    driver.run([&remember, &remember], all, 0)?;
    if case.full {
        driver.run([&probed[0], &probed[1]], all, case.flows)?;
    }
    driver.probe([&probed[0], &probed[1]], all * 2)?;
    // As the agent does every second; who found no place is entered then.
    probe.make_room()?;
    driver.probe([&probed[0], &probed[1]], all * 2)?;

    if case.named {
        for flow in 0..flows {
            // One in a hundred found its lines full.
            named.count_for_app(&driver.flow(flow), Some("streams"));
        }
        let apps = probe.apps();
        ensure!(apps == subscribers as usize, "{apps} apps of {subscribers} subscribers");
    }
    let runs = RUNS.max(all);
    let whole = driver.probe([&probed[0], &probed[1]], runs)?;
    let mask = if case.measured { 0 } else { mask(whole) };
    let before = packets(probe, case.subscribers)?;
    let full_before = table_full(probe)?;
    let app_bytes = by_app(probe);
    let _ = probe.measured(Micros::now());
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let empty = driver.run([&nothing, &nothing], runs, 0)?;
        let looked_up = driver.run([&look_up, &look_up], runs, 0)? - empty;
        let net = turns(&mut driver, probe, [&probed[0], &probed[1]], runs, mask)? - empty;
        for (rounds, value) in rounds.iter_mut().zip([net, looked_up, net / looked_up, empty]) {
            rounds.push(value);
        }
    }
    // What was measured is a probe that counts every packet, and knows the flows or has no room for them, as the case says.
    let drain = Instant::now();
    let counted = packets(probe, case.subscribers)? - before;
    let drain_ns = drain.elapsed().as_secs_f64() * 1e9 / f64::from(case.subscribers + 1);
    // To find a single flow's turn took a few more.
    let least = u64::from(runs) * ROUNDS as u64;
    let most = least + if case.flows == 1 { (u64::from(mask) + 1) * ROUNDS as u64 } else { 0 };
    ensure!((least..=most).contains(&counted), "{counted} packets counted of {ROUNDS} x {runs}");
    let full = table_full(probe)? - full_before;
    // In a table that has as many flows as it is made for, about one in a hundred finds no place, by the boot's luck.
    let most = if case.full { u64::MAX } else { counted / 50 };
    let least = if case.full { counted * 9 / 10 } else { 0 };
    ensure!((least..=most).contains(&full), "{full} of {counted} packets found the flow table full");
    // Flows without a place in the table are of no app either.
    let of_apps = (by_app(probe) - app_bytes) / IP_BYTES;
    let (least, most) = if case.named { (counted - counted / 50, counted) } else { (0, 0) };
    ensure!((least..=most).contains(&of_apps), "{of_apps} of {counted} packets counted for an app");
    let trips =
        |measured: &Measured| measured.counts.iter().map(|counts| u64::from(counts.round_trips)).sum::<u64>();
    let round_trips: u64 = probe.measured(Micros::now()).iter().map(trips).sum();
    let [net, looked_up, ratio, empty] = rounds.map(Spread::of);
    Ok(Figure {
        case: case.name,
        net_ns: net,
        lookup_ns: looked_up,
        lookup_ratio: ratio,
        empty_ns: empty,
        drain_ns,
        measured_one_in: u32::from(mask) + 1,
        round_trips_per_1000: per_thousand(round_trips, counted),
    })
}

/// Packets whose flow found no place in the table.
fn table_full(probe: &Probe) -> anyhow::Result<u64> {
    let counters = probe.counters()?.into_iter();
    let full = counters.filter(|(reason, ..)| *reason == Reason::FlowTableFull);
    Ok(full.map(|(_, _, tally)| tally.packets).sum())
}

/// Bytes down of all apps.
fn by_app(probe: &Probe) -> u64 {
    probe.moved_apps(&Baseline::default()).iter().map(|moved| moved.now[1]).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a figure to print")]
fn per_thousand(part: u64, whole: u64) -> f64 {
    part as f64 * 1e3 / whole as f64
}

/// The mask of the agent's choice, where a packet comes every so many nanoseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "packets a second, positive and few"
)]
fn mask(nanoseconds: f64) -> u16 {
    let mut packets = [0; Class::COUNT];
    packets[Class::Other.index()] = (1e9 / nanoseconds) as u64;
    masks(&packets, Duration::from_secs(1))[Class::Other.index()]
}

/// Drives the probe through `runs` packets in a turn of measuring; nanoseconds of each. Of many flows it is the turn of a share; a single one
/// has its turn for that share of the packets.
fn turns(
    driver: &mut Driver,
    probe: &mut Probe,
    probed: [&ProgramFd; 2],
    runs: u32,
    mask: u16,
) -> anyhow::Result<f64> {
    probe.next_turn([mask; Class::COUNT])?;
    if driver.packets().flows > 1 || mask == 0 {
        return driver.probe(probed, runs);
    }
    // Which turn is its own is not known beforehand: that in which something is measured.
    let share = (runs / (u32::from(mask) + 1)).max(1);
    let _ = probe.measured(Micros::now());
    for _ in 0..=mask {
        driver.probe(probed, 1)?;
        if !probe.measured(Micros::now()).is_empty() {
            break;
        }
        probe.next_turn([mask; Class::COUNT])?;
    }
    let own = driver.probe(probed, share)?;
    probe.next_turn([mask; Class::COUNT])?;
    let others = driver.probe(probed, runs - share)?;
    Ok((own * f64::from(share) + others * f64::from(runs - share)) / f64::from(runs))
}

/// Packets let through, of all subscribers of the bench; fails where one was held back or nobody's.
fn packets(probe: &Probe, subscribers: u32) -> anyhow::Result<u64> {
    let mut packets = 0;
    for slot in 0..=subscribers {
        let usage = probe.usage(slot)?;
        for cell in usage.cells.iter().flatten() {
            packets += cell.packets;
            ensure!(cell.dropped_packets == 0, "a packet of slot {slot} was held back");
            ensure!(slot != ANONYMOUS || cell.packets == 0, "a packet is nobody's");
        }
    }
    Ok(packets)
}

/// A pair of interfaces nobody sends through. Gone when dropped.
struct Interface {
    name: String,
}

impl Interface {
    fn make() -> anyhow::Result<Self> {
        let name = format!("ub{}", std::process::id());
        let peer = format!("uc{}", std::process::id());
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer])?;
        Ok(Self { name })
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // Nothing is left to do about it where this fails.
        let _ = ip(&["link", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run `ip` (Debian: iproute2)")?;
    ensure!(status.success(), "`ip {}` failed: this bench needs root", arguments.join(" "));
    Ok(())
}
