//! What the probe costs on the wire: iperf3 through the gateway with the probe and without, in turns.
//!
//! Everything shares this machine: clients, servers, gateway. So what can be told is a ratio, of pairs measured one right after the
//! other: bits a second, and the machine's busy CPU time a gigabyte (proc(5) stat: user, system, interrupts). Beside it what the
//! kernel itself measures in the programs, nanoseconds a run (BPF_ENABLE_STATS), in rounds of their own, for measuring costs too. The
//! probe counts and holds to a rate that nothing reaches. Needs root. `wire [PAIRS]`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_agent::probe::Probe;
use usher_benches::gateway::Gateway;
use usher_benches::{number, say, write};
use usher_models::wire::{Class, Direction, Enforcement, Rate};
use usher_tests::floods::{self, Flood, Servers};
use usher_tests::netns::{Lab, Place};
use usher_tests::skip;

const PAIRS: usize = 7;
const SECONDS: u32 = 3;

/// What is sent.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    offloads: bool,
    down: bool,
    /// UDP at so many bits a second.
    udp: Option<u64>,
}

const KINDS: [Kind; 4] = [
    Kind { name: "tcp-down", offloads: true, down: true, udp: None },
    Kind { name: "tcp-up", offloads: true, down: false, udp: None },
    Kind { name: "tcp-down-frames", offloads: false, down: true, udp: None },
    // More than can be sent: as fast as it goes.
    Kind { name: "udp-down-frames", offloads: false, down: true, udp: Some(20_000_000_000) },
];

/// One round.
#[derive(Debug, Clone, Copy)]
struct Round {
    bits_per_second: f64,
    /// Of all CPUs, busy.
    cpu_seconds: f64,
}

impl Round {
    fn cpu_per_gigabyte(&self) -> f64 {
        self.cpu_seconds / (self.bits_per_second * f64::from(SECONDS) / 8e9)
    }
}

#[derive(Debug, Serialize)]
struct Figure {
    case: &'static str,
    /// Middle of the pairs.
    without_mbit_per_s: f64,
    with_mbit_per_s: f64,
    /// With over without, pair by pair: the middle one.
    throughput_ratio: f64,
    cpu_ratio: f64,
    cpu_s_per_gb_without: f64,
    cpu_s_per_gb_with: f64,
    /// In the programs, by the kernel.
    ns_per_run: f64,
    runs_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Figure>,
}

fn main() -> anyhow::Result<()> {
    let pairs = match std::env::args().nth(1) {
        None => PAIRS,
        Some(pairs) => pairs.parse().with_context(|| format!("`{pairs}`: expected a number of pairs"))?,
    };
    if let Some(reason) = skip::why_no_probe().or_else(floods::why_not) {
        bail!("this bench cannot run here: {reason}");
    }
    bench(pairs)
}

fn bench(pairs: usize) -> anyhow::Result<()> {
    let lab = Lab::new(Place::new()?)?;
    let mut servers = Servers::start(&lab, 1)?;
    let gateway = Gateway::of(lab);
    gateway.lab().connect()?;
    gateway.lab().add_device(&["10.77.0.11/24"])?;
    let mut cases = Vec::new();
    for kind in KINDS {
        gateway.links(kind.offloads, 1_500)?;
        let mut rounds: [Vec<Round>; 2] = Default::default();
        for pair in 0..pairs {
            // Whoever comes second has warm caches, or a tired machine: in turns.
            for with in if pair % 2 == 0 { [false, true] } else { [true, false] } {
                let probe = with.then(|| probe(&gateway)).transpose()?;
                rounds[usize::from(with)].push(round(&gateway, &mut servers, kind)?);
                probe.map(Probe::detach).transpose()?;
            }
        }
        let (ns_per_run, runs_per_s) = inside(&gateway, &mut servers, kind)?;
        let [without, with] = rounds;
        let paired = |of: fn(&Round) -> f64| {
            middle(with.iter().zip(&without).map(|(with, without)| of(with) / of(without)).collect())
        };
        let mbit =
            |rounds: &[Round]| middle(rounds.iter().map(|round| round.bits_per_second / 1e6).collect());
        let cpu = |rounds: &[Round]| middle(rounds.iter().map(Round::cpu_per_gigabyte).collect());
        cases.push(Figure {
            case: kind.name,
            without_mbit_per_s: mbit(&without),
            with_mbit_per_s: mbit(&with),
            throughput_ratio: paired(|round| round.bits_per_second),
            cpu_ratio: paired(Round::cpu_per_gigabyte),
            cpu_s_per_gb_without: cpu(&without),
            cpu_s_per_gb_with: cpu(&with),
            ns_per_run,
            runs_per_s,
        });
    }
    say(&table(&cases).to_string());
    write("wire", &Report { cases })?;
    Ok(())
}

/// The probe with everything on.
fn probe(gateway: &Gateway) -> anyhow::Result<Probe> {
    let (mut probe, _flows) = gateway.probe(None)?;
    probe.bind("10.77.0.11/32".parse()?, 1)?;
    let fast = Rate::per_second(1_000_000_000_000, 0);
    let lane = Class::Other.index();
    let limited =
        Direction::BOTH.iter().fold(Enforcement::default(), |all, way| all.with_rate(lane, *way, fast));
    probe.enforce(1, &limited)?;
    Ok(probe)
}

fn round(gateway: &Gateway, servers: &mut Servers, kind: Kind) -> anyhow::Result<Round> {
    let flood = Flood {
        subscriber: "10.77.0.11",
        down: kind.down,
        udp: kind.udp.map(|bits| (bits, 1_400)),
        seconds: SECONDS,
    };
    servers.wait_for(0)?;
    let before = busy_seconds()?;
    let bits_per_second = servers.flood(gateway.lab(), 0, flood)?.end(Duration::from_mins(1))?;
    Ok(Round { bits_per_second, cpu_seconds: busy_seconds()? - before })
}

/// Nanoseconds a run of the programs, and runs a second, by the kernel's own count.
fn inside(gateway: &Gateway, servers: &mut Servers, kind: Kind) -> anyhow::Result<(f64, f64)> {
    let probe = probe(gateway)?;
    let measuring = enable_stats(Stats::RunTime).context("have the kernel measure programs")?;
    let before = programs()?;
    round(gateway, servers, kind)?;
    let after = programs()?;
    drop(measuring);
    probe.detach()?;
    let runs = number(after.1 - before.1);
    let ns = number(u64::try_from(after.0.saturating_sub(before.0).as_nanos())?);
    Ok((ns / runs, runs / f64::from(SECONDS)))
}

/// Time and runs of all of the probe's programs that are loaded.
fn programs() -> anyhow::Result<(Duration, u64)> {
    let mut sum = (Duration::ZERO, 0);
    for program in loaded_programs() {
        let program = program.context("list the kernel's programs")?;
        if program.name_as_str().is_some_and(|name| name.starts_with("usher_")) {
            sum = (sum.0 + program.run_time(), sum.1 + program.run_count());
        }
    }
    Ok(sum)
}

/// CPU time that was not idle: of all CPUs together, in ticks of 10 ms.
fn busy_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
        bail!("/proc/stat is not as expected")
    };
    Ok((user + nice + system + irq + softirq) / 100.0)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "Mbit/s without",
        "with",
        "ratio",
        "CPU s/GB without",
        "with",
        "ratio",
        "ns a run",
        "runs/s",
    ]);
    for figure in figures {
        table.add_row([
            figure.case.to_owned(),
            format!("{:.0}", figure.without_mbit_per_s),
            format!("{:.0}", figure.with_mbit_per_s),
            format!("{:.3}", figure.throughput_ratio),
            format!("{:.2}", figure.cpu_s_per_gb_without),
            format!("{:.2}", figure.cpu_s_per_gb_with),
            format!("{:.3}", figure.cpu_ratio),
            format!("{:.0}", figure.ns_per_run),
            format!("{:.0}", figure.runs_per_s),
        ]);
    }
    table
}
