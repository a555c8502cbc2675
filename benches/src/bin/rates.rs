//! How exactly a rate is held, from 64 kbit/s to 5 Gbit/s, in front of real floods: by the probe's token buckets, and by classes of HTB.
//!
//! UDP is offered at half as much again as the rate, TCP sends as it likes. Measured is what came to the receiver, in IP bytes, by its kernel's
//! own counters, over seconds after the burst is spent, on this process's clock. Beside it what the probe saw offered, and how much of it was
//! payload that TCP's receiver got. Where the machine cannot offer more than the rate, that is said, and the case says nothing of the probe. No
//! machine at hand offers 100 Gbit/s on a wire: there the program itself is run on one frame, again and again, off the wire, which offers more
//! than that.
//!
//! Needs root. `rates [--allow-not-offered] [RATE...]`, in bits a second; fails where UDP is more than 2 % off, or TCP gets less than 90 % or
//! more than 102 %; and where the machine could not offer enough, unless that is allowed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_agent::probe::{Pattern, Probe, Shaping, Trial};
use usher_agent::service::rate_of;
use usher_benches::gateway::Gateway;
use usher_benches::{number, say, write};
use usher_models::units::BitsPerSecond;
use usher_models::wire::{Cell, Class, Direction, Enforcement, Rate};
use usher_tests::floods::{self, Flood, Servers};
use usher_tests::netns::{Lab, Place, Side};
use usher_tests::{process, skip};

const RATES: [u64; 6] = [64_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 5_000_000_000];
/// From here on datagrams are large, and joining and segmentation are the links'.
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
/// Headers of IPv4 and UDP, and of IPv4 and TCP with time stamps: what joined packets have once and had each on the wire.
const UDP_HEADERS: u64 = 28;
const TCP_HEADERS: u64 = 52;

// What came of a case.
const HELD: &str = "held";
const WRONG: &str = "wrong";
const NOT_OFFERED: &str = "not offered enough";

/// How rates are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kept {
    Policed,
    Shaped,
}

#[derive(Debug, Serialize)]
struct Figure {
    case: String,
    kept: Kept,
    bits_per_second: u64,
    /// Came through over enforced.
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
    let mut allow_not_offered = false;
    for argument in std::env::args().skip(1) {
        if argument == "--allow-not-offered" {
            allow_not_offered = true;
            continue;
        }
        let rate = argument.parse();
        rates.push(
            rate.with_context(|| format!("`{argument}`: expected --allow-not-offered or bits a second"))?,
        );
    }
    if rates.is_empty() {
        rates.extend(RATES);
    }
    if let Some(reason) = skip::why_no_probe().or_else(floods::why_not) {
        bail!("this bench cannot run here: {reason}");
    }
    let gateway = Gateway::of(Lab::new(Place::new()?)?);
    let lab = gateway.lab();
    lab.connect()?;
    lab.add_device(&["10.77.0.11/24"])?;
    // What subscribers send gets its class before it is forwarded.
    lab.shell(Side::Gateway, "echo 0 >/proc/sys/net/ipv4/ip_forward_update_priority")?;
    let mut servers = Servers::start(lab, 1)?;
    let mut cases = Vec::new();
    for kept in [Kept::Policed, Kept::Shaped] {
        // The probe asks for classes on the network that it is used on.
        cases.extend(lab.within(Side::Gateway, || bench(&gateway, &mut servers, kept, &rates))?);
    }
    say(&table(&cases).to_string());
    let [held, wrong, not_offered] =
        [HELD, WRONG, NOT_OFFERED].map(|outcome| cases.iter().filter(|case| case.outcome == outcome).count());
    write("rates", &Report { cases })?;
    say(&format!(
        "{held} rates {HELD}, {wrong} {WRONG}; {not_offered} {NOT_OFFERED}, which says nothing of the probe"
    ));
    let fails = wrong > 0 || (not_offered > 0 && !allow_not_offered);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn bench(gateway: &Gateway, servers: &mut Servers, kept: Kept, rates: &[u64]) -> anyhow::Result<Vec<Figure>> {
    let uplinks = vec![Pattern::new("core")];
    let shaping = (kept == Kept::Shaped).then_some(Shaping { uplinks, ..Shaping::default() });
    let (mut probe, _flows) = gateway.probe(shaping)?;
    probe.bind("10.77.0.11/32".parse()?, SLOT)?;
    let mut bench = Bench { gateway, servers, probe, kept };
    let mut cases = Vec::new();
    for &rate in rates {
        for tcp in [false, true] {
            // Fast ones in large frames, that the machine carries them; TCP of full size first, joined.
            let mtu = match rate {
                ..FAST => 1_500,
                FAST if tcp => 1_500,
                FAST => 9_000,
                _ if tcp => 9_000,
                _ => 60_000,
            };
            gateway.links(rate >= FAST, mtu)?;
            bench.probe.follow_interfaces()?;
            for direction in Direction::BOTH {
                cases.push(bench.measure(rate, direction, tcp)?);
            }
        }
    }
    if kept == Kept::Policed {
        for direction in Direction::BOTH {
            cases.push(bench.off_the_wire(direction)?);
        }
    }
    bench.probe.detach()?;
    Ok(cases)
}

struct Bench<'a> {
    gateway: &'a Gateway,
    servers: &'a mut Servers,
    probe: Probe,
    kept: Kept,
}

impl Bench<'_> {
    fn measure(&mut self, bits_per_second: u64, direction: Direction, tcp: bool) -> anyhow::Result<Figure> {
        let lane = Class::Other.index();
        let rate = rate_of(BitsPerSecond(bits_per_second));
        self.enforce(&Enforcement::default().with_rate(lane, direction, rate))?;
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
        let lab = self.gateway.lab();
        let flooding = self.servers.flood(lab, 0, flood)?;
        // iperf3 opens its control connection first, which the rate holds too.
        let begun = Instant::now();
        while self.counted(direction)?.bytes < 1_000 && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_secs(settle.into()));
        let before = self.look(direction, tcp)?;
        std::thread::sleep(Duration::from_secs(window.into()));
        let after = self.look(direction, tcp)?;
        // Nothing holds the last words back.
        self.enforce(&Enforcement::default())?;
        if let Err(error) = flooding.end(Duration::from_mins(1)) {
            say(&format!("iperf3 has no last word: {error:#}"));
        }
        let seen = Seen {
            offered: offered(before.counted, after.counted),
            came: after.came.saturating_sub(before.came),
            payload: tcp.then(|| after.payload.saturating_sub(before.payload)),
            // Of what waits there is no count here.
            held_back: self.kept == Kept::Shaped
                || after.counted.dropped_packets > before.counted.dropped_packets,
            seconds: (after.at - before.at).as_secs_f64(),
        };
        let kind = if tcp { "tcp" } else { "udp" };
        Ok(Figure::new(self.kept, kind, bits_per_second, direction, &seen))
    }

    fn look(&self, direction: Direction, tcp: bool) -> anyhow::Result<Look> {
        let lab = self.gateway.lab();
        let payload = if tcp { payload(lab, direction)? } else { 0 };
        let counted = self.counted(direction)?;
        let came = came(lab, direction, if tcp { TCP_HEADERS } else { UDP_HEADERS })?;
        Ok(Look { counted, came, payload, at: Instant::now() })
    }

    /// Puts rates in force as the agent does once a second.
    fn enforce(&mut self, enforcement: &Enforcement) -> anyhow::Result<()> {
        self.probe.shape_on();
        self.probe.enforce(SLOT, enforcement)?;
        let policed = self.probe.shaped().map_or([0, 0], |shaped| shaped.policed);
        ensure!(policed == [0, 0], "what should be shaped is policed");
        Ok(())
    }

    /// The program on one frame after the other, off the wire: as many as it takes for a second, after as many as spend the burst.
    fn off_the_wire(&mut self, direction: Direction) -> anyhow::Result<Figure> {
        let lane = Class::Other.index();
        let rate = Rate::per_second(OFF_THE_WIRE, 0);
        self.enforce(&Enforcement::default().with_rate(lane, direction, rate))?;
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
            self.probe.trial(&trial)?;
        }
        let (before, from) = (self.counted(direction)?, Instant::now());
        while from.elapsed() < Duration::from_secs(2) {
            self.probe.trial(&trial)?;
        }
        let (after, seconds) = (self.counted(direction)?, from.elapsed().as_secs_f64());
        self.enforce(&Enforcement::default())?;
        let seen = Seen {
            offered: offered(before, after),
            came: after.bytes - before.bytes,
            payload: None,
            held_back: after.dropped_packets > before.dropped_packets,
            seconds,
        };
        Ok(Figure::new(self.kept, "program", OFF_THE_WIRE, direction, &seen))
    }

    /// What the probe has counted of the subscriber in one direction.
    fn counted(&self, direction: Direction) -> anyhow::Result<Cell> {
        Ok(self.probe.usage(SLOT)?.cells[Class::Other.index()][direction.index()])
    }
}

/// Counters at one time.
struct Look {
    counted: Cell,
    came: u64,
    payload: u64,
    at: Instant,
}

/// What was seen of a flood; bytes.
struct Seen {
    offered: u64,
    came: u64,
    payload: Option<u64>,
    held_back: bool,
    seconds: f64,
}

/// What came to the probe, let through or not.
fn offered(before: Cell, after: Cell) -> u64 {
    after.bytes - before.bytes + after.dropped_bytes - before.dropped_bytes
}

const fn receiver(direction: Direction) -> Side {
    match direction {
        Direction::Up => Side::Internet,
        Direction::Down => Side::Subscribers,
    }
}

/// IP bytes that came to the receiver so far, by its kernel's counters: packets that were joined on the way as they were on the wire, each with
/// headers of so many bytes.
fn came(lab: &Lab, direction: Direction, headers: u64) -> anyhow::Result<u64> {
    let files = ["/proc/net/snmp", "/proc/net/netstat"];
    let printed = process::run(&mut lab.inside(receiver(direction), "cat", files))?;
    // Names in one line, values in the next. (nstat(8) tells less than it reads: it wraps at 4 GiB.)
    let mut counters = BTreeMap::new();
    let mut lines = printed.lines().map(str::split_whitespace);
    while let (Some(mut names), Some(mut values)) = (lines.next(), lines.next()) {
        let group = names.next();
        ensure!(group.is_some() && group == values.next(), "the kernel's counters are not as expected");
        let named = names.zip(values).map(|(name, value)| ((group.unwrap_or_default(), name), value));
        counters.extend(named);
    }
    let counter = |group, name: &str| {
        let value =
            counters.get(&(group, name)).with_context(|| format!("the kernel tells no {group} {name}"))?;
        value.parse::<u64>().context("read the kernel's counters")
    };
    // A joined packet is one of the first and as many of these as it is made of.
    let mut packets = 0;
    for congestion in ["NoECT", "ECT0", "ECT1", "CE"] {
        packets += counter("IpExt:", &format!("In{congestion}Pkts"))?;
    }
    let segments = packets.saturating_sub(counter("Ip:", "InReceives")?);
    Ok(counter("IpExt:", "InOctets")? + segments * headers)
}

/// Payload that the receiver's TCP has in order so far, on all of its connections, in bytes.
fn payload(lab: &Lab, direction: Direction) -> anyhow::Result<u64> {
    let words = ["--tcp", "--info", "--numeric", "--no-header"];
    let printed = process::run(&mut lab.inside(receiver(direction), "ss", words))?;
    let words = printed.split_whitespace().filter_map(|word| word.strip_prefix("bytes_received:"));
    words.map(|bytes| bytes.parse::<u64>().context("read what `ss` printed")).sum()
}

impl Figure {
    /// Of what was seen of a flood; says it.
    fn new(kept: Kept, kind: &str, bits_per_second: u64, direction: Direction, seen: &Seen) -> Self {
        let share = |bytes: u64| number(bytes) * 8.0 / seen.seconds / number(bits_per_second);
        let (ratio, offered, payload) = (share(seen.came), share(seen.offered), seen.payload.map(share));
        let tcp = kind == "tcp";
        let outcome = match () {
            () if !tcp && offered < OFFERED_LEAST => NOT_OFFERED,
            () if !tcp && (ratio - 1.0).abs() <= TOLERANCE => HELD,
            () if tcp && (TCP_LEAST..=1.0 + TOLERANCE).contains(&ratio) => HELD,
            // It is not the rate that TCP is slower than.
            () if tcp && !seen.held_back => NOT_OFFERED,
            () => WRONG,
        };
        let way = if direction == Direction::Up { "up" } else { "down" };
        let case = format!("{kind}-{way}-{bits_per_second}");
        let told = payload.map_or_else(String::new, |payload| format!(", {payload:.4} as payload"));
        say(&format!("{kept:?} {case}: {ratio:.4} of the rate{told}, {offered:.2} offered: {outcome}"));
        Self { case, kept, bits_per_second, ratio, offered, payload, seconds: seen.seconds, outcome }
    }
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "kept",
        "came through / enforced",
        "offered / enforced",
        "payload / enforced",
        "",
    ]);
    for figure in figures {
        table.add_row([
            figure.case.clone(),
            format!("{:?}", figure.kept).to_lowercase(),
            format!("{:.4}", figure.ratio),
            format!("{:.2}", figure.offered),
            figure.payload.map_or_else(String::new, |payload| format!("{payload:.3}")),
            figure.outcome.to_owned(),
        ]);
    }
    table
}
