//! How exactly a rate is held: the probe's token buckets in front of real floods, from 64 kbit/s to 5 Gbit/s.
//!
//! UDP is offered at half as much again as the rate, TCP sends as it likes. Measured is what the probe let through, in IP bytes, over
//! seconds after the burst is spent, on this process's clock. Beside it what was offered, and how much payload TCP's receiver got, by its
//! kernel. Where the machine cannot offer more than the rate, that is said, and the case says nothing of the probe. No machine at hand
//! offers 100 Gbit/s on a wire: there the program itself is run on one frame, again and again, off the wire, which offers more than that.
//!
//! Needs root. `rates [RATE...]`, in bits a second; fails where UDP is more than 2 % off, or TCP gets less than 90 % or more than 102 %.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_agent::probe::{Probe, Trial};
use usher_agent::service::rate_of;
use usher_benches::gateway::Gateway;
use usher_benches::{number, say, write};
use usher_models::units::BitsPerSecond;
use usher_models::wire::{Cell, Class, Direction, Enforcement, Rate};
use usher_tests::floods::{self, Flood, Servers};
use usher_tests::netns::{Lab, Place, Side};
use usher_tests::{process, skip};

const RATES: [u64; 6] = [64_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 5_000_000_000];
/// From here on frames are large and offloaded.
const FAST: u64 = 1_000_000_000;
/// Beyond any wire here.
const OFF_THE_WIRE: u64 = 100_000_000_000;
const SUBSCRIBER: &str = "10.77.0.11";
const SLOT: u32 = 1;
/// Payload of a frame there, no larger than the kernel takes.
const OFF_THE_WIRE_BYTES: usize = 3_400;
/// UDP may be off by so much, a share of the rate.
const TOLERANCE: f64 = 0.02;
/// What TCP reaches at the least.
const TCP_LEAST: f64 = 0.9;
/// Less than this of the rate offered says nothing of how it is held.
const OFFERED_LEAST: f64 = 1.05;

#[derive(Debug, Serialize)]
struct Figure {
    case: String,
    bits_per_second: u64,
    /// Let through over enforced.
    ratio: f64,
    /// Offered over enforced, held back included.
    offered: f64,
    /// What of it was payload that TCP's receiver got, over enforced.
    payload: Option<f64>,
    seconds: f64,
    outcome: &'static str,
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Figure>,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut rates = Vec::new();
    for argument in std::env::args().skip(1) {
        rates.push(argument.parse().with_context(|| format!("`{argument}`: expected bits a second"))?);
    }
    if rates.is_empty() {
        rates.extend(RATES);
    }
    if let Some(reason) = skip::why_no_probe().or_else(floods::why_not) {
        bail!("this bench cannot run here: {reason}");
    }
    bench(&rates)
}

fn bench(rates: &[u64]) -> anyhow::Result<ExitCode> {
    let lab = Lab::new(Place::new()?)?;
    let mut servers = Servers::start(&lab, 1)?;
    let gateway = Gateway::of(lab);
    let (mut probe, _flows) = gateway.probe()?;
    gateway.lab().connect()?;
    gateway.lab().add_device(&["10.77.0.11/24"])?;
    probe.bind("10.77.0.11/32".parse()?, SLOT)?;
    let mut cases = Vec::new();
    for &rate in rates {
        for tcp in [false, true] {
            // Fast ones in large frames, that the machine carries them.
            let mtu = match rate {
                ..FAST => 1_500,
                FAST => 9_000,
                _ if tcp => 9_000,
                _ => 60_000,
            };
            gateway.links(rate >= FAST, mtu)?;
            for direction in Direction::BOTH {
                cases.push(measure(&gateway, &mut servers, &mut probe, rate, direction, tcp)?);
            }
        }
    }
    for direction in Direction::BOTH {
        cases.push(off_the_wire(&mut probe, direction)?);
    }
    probe.detach()?;
    say(&table(&cases).to_string());
    let wrong = cases.iter().filter(|case| case.outcome == "wrong").count();
    write("rates", &Report { cases })?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    gateway: &Gateway,
    servers: &mut Servers,
    probe: &mut Probe,
    bits_per_second: u64,
    direction: Direction,
    tcp: bool,
) -> anyhow::Result<Figure> {
    let lane = Class::Other.index();
    let rate = rate_of(BitsPerSecond(bits_per_second));
    probe.enforce(SLOT, &Enforcement::default().with_rate(lane, direction, rate))?;
    let (settle, window) = if bits_per_second < 1_000_000 { (8, 12) } else { (2, 4) };
    // Slow ones in small datagrams, that one more or less is no error.
    let bytes = match bits_per_second {
        0..=1_000_000 => 200,
        1_000_001..FAST => 1_400,
        FAST => 8_900,
        _ => 59_000,
    };
    let flood = Flood {
        subscriber: SUBSCRIBER,
        down: direction == Direction::Down,
        udp: (!tcp).then_some((bits_per_second + bits_per_second / 2, bytes)),
        seconds: settle + window + 1,
    };
    let flooding = servers.flood(gateway.lab(), 0, flood)?;
    // iperf3 opens its control connection first, which the rate holds too.
    let begun = Instant::now();
    while counted(probe, direction)?.bytes < 1_000 && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(settle.into()));
    let lab = gateway.lab();
    let received = received(lab, direction)?;
    let (before, from) = (counted(probe, direction)?, Instant::now());
    std::thread::sleep(Duration::from_secs(window.into()));
    let (after, took) = (counted(probe, direction)?, from.elapsed().as_secs_f64());
    let received = self::received(lab, direction)?.saturating_sub(received);
    // Nothing holds the last words back.
    probe.enforce(SLOT, &Enforcement::default())?;
    if let Err(error) = flooding.end(Duration::from_mins(1)) {
        say(&format!("iperf3 has no last word: {error:#}"));
    }
    let payload = tcp.then(|| number(received) * 8.0 / took / number(bits_per_second));
    let kind = if tcp { "tcp" } else { "udp" };
    Ok(Figure::new(kind, bits_per_second, direction, [before, after], took, payload))
}

/// Payload that the receiver's TCP has in order so far, on all of its connections, in bytes.
fn received(lab: &Lab, direction: Direction) -> anyhow::Result<u64> {
    let side = if direction == Direction::Up { Side::Internet } else { Side::Subscribers };
    let printed = process::run(&mut lab.inside(side, "ss", ["--tcp", "--info", "--numeric", "--no-header"]))?;
    let words = printed.split_whitespace().filter_map(|word| word.strip_prefix("bytes_received:"));
    words.map(|bytes| bytes.parse::<u64>().context("read what `ss` printed")).sum()
}

/// The program on one frame after the other, off the wire: as many as it takes for a second, after as many as spend the burst.
fn off_the_wire(probe: &mut Probe, direction: Direction) -> anyhow::Result<Figure> {
    let lane = Class::Other.index();
    let rate = Rate::per_second(OFF_THE_WIRE, 0);
    probe.enforce(SLOT, &Enforcement::default().with_rate(lane, direction, rate))?;
    let (from, to) = ([10, 77, 0, 11], [10, 88, 0, 2]);
    let (from, to) = if direction == Direction::Up { (from, to) } else { (to, from) };
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .udp(4_000, 4_000)
        .write(&mut frame, &[0; OFF_THE_WIRE_BYTES])?;
    let trial = Trial { repeat: 1_000_000, ..Trial::once(direction, &frame) };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        probe.trial(&trial)?;
    }
    let (before, from) = (counted(probe, direction)?, Instant::now());
    while from.elapsed() < Duration::from_secs(2) {
        probe.trial(&trial)?;
    }
    let (after, took) = (counted(probe, direction)?, from.elapsed().as_secs_f64());
    probe.enforce(SLOT, &Enforcement::default())?;
    Ok(Figure::new("program", OFF_THE_WIRE, direction, [before, after], took, None))
}

/// What the probe has counted of the subscriber in one direction.
fn counted(probe: &Probe, direction: Direction) -> anyhow::Result<Cell> {
    Ok(probe.usage(SLOT)?.cells[Class::Other.index()][direction.index()])
}

impl Figure {
    /// Of the counters before and after, and the time between; says it.
    fn new(
        kind: &str,
        bits_per_second: u64,
        direction: Direction,
        [before, after]: [Cell; 2],
        seconds: f64,
        payload: Option<f64>,
    ) -> Self {
        let share = |bytes: u64| number(bytes) * 8.0 / seconds / number(bits_per_second);
        let ratio = share(after.bytes - before.bytes);
        let offered = ratio + share(after.dropped_bytes - before.dropped_bytes);
        let tcp = kind == "tcp";
        let outcome = match () {
            () if !tcp && offered < OFFERED_LEAST => "not offered enough",
            () if !tcp && (ratio - 1.0).abs() <= TOLERANCE => "held",
            () if tcp && (TCP_LEAST..=1.0 + TOLERANCE).contains(&ratio) => "held",
            // Nothing was held back: it is not the rate that TCP is slower than.
            () if tcp && after.dropped_packets == before.dropped_packets => "not offered enough",
            () => "wrong",
        };
        let way = if direction == Direction::Up { "up" } else { "down" };
        let case = format!("{kind}-{way}-{bits_per_second}");
        let told = payload.map_or_else(String::new, |payload| format!(", {payload:.4} as payload"));
        say(&format!("{case}: {ratio:.4} of the rate{told}, {offered:.2} offered: {outcome}"));
        Self { case, bits_per_second, ratio, offered, payload, seconds, outcome }
    }
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "let through / enforced", "offered / enforced", "payload / enforced", ""]);
    for figure in figures {
        table.add_row([
            figure.case.clone(),
            format!("{:.4}", figure.ratio),
            format!("{:.2}", figure.offered),
            figure.payload.map_or_else(String::new, |payload| format!("{payload:.3}")),
            figure.outcome.to_owned(),
        ]);
    }
    table
}
