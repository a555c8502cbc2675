//! What the decision engine costs: batches as they come off the wire, decoded, deduplicated, resolved to subscribers, made
//! facts, moments and decisions of, under the default policy, snapshots being taken all the while. A decision of eight actions
//! is timed under a policy that has one.
//!
//! Thread CPU time of the one thread that does all of it; what the ledger's own transactions cost is not in it. Memory is
//! what the process grew by. The subscribers of a gateway come in an order that has nothing to do with theirs here.

use std::io::{BufReader, BufWriter};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use prost::Message as _;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use usher_benches::{say, target_folder};
use usher_models::telemetry;
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::agents;
use usher_orchestrator::engine::Engine;
use usher_orchestrator::engine::io::{Effect, Input, Observed, SessionSeen};
use usher_orchestrator::identity::{Consent, Directory, Offer, Profile};
use usher_orchestrator::inputs::{Intake, Taken};
use usher_orchestrator::ledger::SessionRow;
use usher_orchestrator::policy::Policy;

const POLICY: &str = include_str!("../../../deploy/policy.yaml");
/// Has a moment with eight actions.
const EIGHT: &str = include_str!("engine.yaml");
const PLANS: &str = "plans:
  basic: {settings: {video: sd, roam_pass: none, roam_gate: open, qos_up: normal, qos_down: normal},
    numbers: {price: 15.0, quota: 2.0e10, over_price: 2.0, roam_limit: 50.0, up_bps: 2.0e7, down_bps: 1.0e8},
    currency: EUR}
countries:
  \"262\": {name: Testland, pass_price: 3.0, expected_per_day: 12.0, currency: EUR}
subscribers: []
";
/// Subscribers of one gateway.
const OF_AGENT: u32 = 15_625;
/// A minute before a Saturday noon in Berlin.
const START: i64 = 1_795_258_740;
/// Event time played: a minute in which streams begin, the default policy's windows and holds of a minute each, and something after.
const SECONDS: i64 = 190;
/// A snapshot every so many seconds.
const SNAPSHOT_EVERY: i64 = 20;
/// Decisions timed.
const DECISIONS: u32 = 20_000;

/// What was measured at one size.
#[derive(Debug, Serialize)]
struct Case {
    #[serde(rename = "case")]
    name: String,
    subscribers: u32,
    records: u64,
    records_per_s: f64,
    bytes_per_subscriber: f64,
    /// Of one moment with eight actions, wall clock.
    decision_p99_us: f64,
    /// From the arrival of the batch that closed a window to a push that came of it, batches of other agents that came between
    /// included: thread CPU time, and by the wall clock.
    push_p99_ms: f64,
    push_wall_p99_ms: f64,
    decisions: u64,
    /// From a snapshot on disk to an engine that takes the next batch, wall clock.
    recovery_s: f64,
    snapshot_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Case>,
}

fn main() -> anyhow::Result<()> {
    let sizes = std::env::args().skip(1).map(|size| asked(&size)).collect::<anyhow::Result<Vec<u32>>>()?;
    let all = [10_000, 100_000, 1_000_000, 10_000_000];
    let mut report = Report { cases: Vec::new() };
    for size in if sizes.is_empty() { &all[..] } else { &sizes } {
        if free_bytes()? < u64::from(*size) * 900 {
            say(&format!("SKIPPED {size} subscribers: not enough free memory"));
            continue;
        }
        report.cases.push(measure(*size)?);
        print(&report);
    }
    usher_benches::write("engine", &report)?;
    Ok(())
}

/// How many subscribers an argument asks for.
fn asked(argument: &str) -> anyhow::Result<u32> {
    let expected = || {
        format!("`{argument}`: expected a number of subscribers in plain digits, as 1000000; none: all sizes")
    };
    argument.parse().map(NonZeroU32::get).with_context(expected)
}

fn measure(subscribers: u32) -> anyhow::Result<Case> {
    let policy = Policy::parse("policy.yaml", POLICY)?;
    let directory = Directory::parse("plans.yaml", PLANS)?;
    let decision_p99_us = decisions(&Policy::parse("engine.yaml", EIGHT)?, &directory)?;
    let before = resident()?;
    let mut engine = Engine::new(policy, &directory)?;
    engine.step(second(0), Input::Tick);
    // What is to be made durable is taken away as it comes, as the daemon does.
    for number in 0..subscribers {
        engine.step(second(0), Input::Profile(profile(number)));
        engine.take_dirty();
    }
    for agent in 0..agents_of(subscribers) {
        let sessions = of_agent(agent, subscribers).map(session).collect();
        engine.step(second(0), Input::Observed(observed(agent, sessions)));
        engine.take_dirty();
    }
    let rows = (0..agents_of(subscribers))
        .flat_map(|agent| of_agent(agent, subscribers).map(move |number| row(agent, number)));
    let mut intake = Intake::new(engine, rows, []);
    let (mut records, mut cpu, mut decisions) = (0_u64, Duration::ZERO, 0);
    let (mut pushes, mut walls) = (Vec::new(), Vec::new());
    let mut since_boundary = (Duration::ZERO, Duration::ZERO);
    let file = target_folder().join("bench").join(format!("engine-{}.snapshot", std::process::id()));
    std::fs::create_dir_all(target_folder().join("bench"))?;
    let mut writer: Option<std::thread::JoinHandle<anyhow::Result<()>>> = None;
    for at in 1..=SECONDS {
        for agent in 0..agents_of(subscribers) {
            let told = batch(agent, at, subscribers);
            let (of_batch, encoded) = (told.usage.len() as u64, told.encode_to_vec());
            let name = agent_name(agent);
            let (began, wall) = (thread_time(), Instant::now());
            let was_crossing = intake.engine.is_crossing();
            let now = second(at + 1).after(Duration::from_millis(u64::from(agent % 1_000)));
            let batch = agents::decode(&name, &encoded, now)?;
            let taken = intake.batch(batch, &directory, now).context("apply a batch")?;
            let Taken::Now(applied) = taken else { anyhow::bail!("a batch was applied before") };
            // What changed for good leaves with each step.
            let dirty = intake.engine.take_dirty();
            let took = thread_time().saturating_sub(began);
            if at > 10 {
                cpu += took;
                records += of_batch;
            }
            drop(dirty);
            decisions += applied.effects.iter().filter(|it| matches!(it, Effect::Decided(_))).count() as u64;
            let before = if was_crossing { since_boundary } else { (Duration::ZERO, Duration::ZERO) };
            since_boundary = (before.0 + took, before.1 + wall.elapsed());
            for _ in applied.effects.iter().filter(|effect| matches!(effect, Effect::Desire(_))) {
                pushes.push(since_boundary.0);
                walls.push(since_boundary.1);
            }
        }
        if at % SNAPSHOT_EVERY == 0 && writer.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
            if let Some(writer) = writer.take() {
                writer.join().map_err(|_| anyhow::anyhow!("the writer of snapshots panicked"))??;
            }
            let began = thread_time();
            let snapshot = intake.engine.snapshot(0);
            cpu += thread_time().saturating_sub(began);
            let path = file.clone();
            writer = Some(std::thread::spawn(move || {
                snapshot.write(BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?))?;
                Ok(())
            }));
        }
    }
    if let Some(writer) = writer.take() {
        writer.join().map_err(|_| anyhow::anyhow!("the writer of snapshots panicked"))??;
    }
    ensure!(!pushes.is_empty(), "nothing was decided that led to a push");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes_per_subscriber = (resident()? - before) as f64 / f64::from(subscribers);
    intake.engine.snapshot(0).write(BufWriter::with_capacity(1 << 20, std::fs::File::create(&file)?))?;
    let snapshot_bytes = std::fs::metadata(&file)?.len();
    let facts = intake.engine.facts_of(&id(7), second(SECONDS));
    ensure!(facts["video_capped"].is_some(), "nothing was measured: {facts:?}");
    drop(intake);
    let began = Instant::now();
    let (engine, _) = Engine::from_snapshot(BufReader::with_capacity(1 << 20, std::fs::File::open(&file)?))?;
    let recovered = Intake::resume(engine, []);
    let recovery_s = began.elapsed().as_secs_f64();
    ensure!(recovered.engine.subscribers() == subscribers as usize, "somebody was lost");
    drop(recovered);
    std::fs::remove_file(&file)?;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok(Case {
        name: name_of(subscribers),
        subscribers,
        records,
        records_per_s: records as f64 / cpu.as_secs_f64(),
        bytes_per_subscriber,
        decision_p99_us,
        push_p99_ms: p99(pushes).as_secs_f64() * 1e3,
        push_wall_p99_ms: p99(walls).as_secs_f64() * 1e3,
        decisions,
        recovery_s,
        snapshot_bytes,
    })
}

/// The time of a decision with eight actions: a session opens abroad, and all of them are weighed.
fn decisions(policy: &Policy, directory: &Directory) -> anyhow::Result<f64> {
    let mut engine = Engine::new(policy.clone(), directory)?;
    for number in 0..DECISIONS {
        engine.step(second(0), Input::Profile(profile(number)));
    }
    let mut took = Vec::new();
    for number in 0..DECISIONS {
        let abroad = SessionSeen { roaming: true, serving_plmn: "26201".into(), ..session(number) };
        let input = Input::Observed(observed(0, vec![abroad]));
        let began = Instant::now();
        let effects = engine.step(second(1), input);
        took.push(began.elapsed());
        let weighed = effects.iter().find_map(|effect| match effect {
            Effect::Decided(decision) => Some(decision.candidates.len()),
            _ => None,
        });
        ensure!(weighed == Some(8), "expected a decision of eight: {effects:?}");
    }
    Ok(p99(took).as_secs_f64() * 1e6)
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

fn agents_of(subscribers: u32) -> u32 {
    subscribers.div_ceil(OF_AGENT)
}

fn agent_name(agent: u32) -> String {
    format!("gw-{agent}")
}

/// The subscribers of an agent, in an order of its own.
fn of_agent(agent: u32, subscribers: u32) -> impl Iterator<Item = u32> {
    let count = OF_AGENT.min(subscribers - agent * OF_AGENT);
    (0..count).map(move |index| scatter(agent * OF_AGENT + index, subscribers))
}

/// A permutation: `subscribers` has no factor in common with a large prime.
fn scatter(number: u32, subscribers: u32) -> u32 {
    let scattered = u64::from(number) * 2_654_435_761 % u64::from(subscribers);
    u32::try_from(scattered).unwrap_or_default()
}

/// One subscriber in so many has use in a second.
fn one_in(subscribers: u32) -> u32 {
    if subscribers > 2_000_000 { 32 } else { 4 }
}

/// One in so many streams all the time, and is held back from some second of the first minute on.
const HELD_BACK: u32 = 500;

/// One second of one agent: a part of its subscribers, another one each time, and those who stream all the time. Two classes
/// each, both ways.
fn batch(agent: u32, at: i64, subscribers: u32) -> telemetry::Batch {
    let count = OF_AGENT.min(subscribers - agent * OF_AGENT);
    let turn = u32::try_from(at).unwrap_or_default();
    let mut usage = Vec::new();
    for place in 0..count {
        let number = scatter(agent * OF_AGENT + place, subscribers);
        let is_held_back = number.is_multiple_of(HELD_BACK) && number / HELD_BACK % 60 < turn;
        if place % one_in(subscribers) != turn % one_in(subscribers) && !is_held_back {
            continue;
        }
        let first = match number % 10 {
            0..5 => telemetry::Class::Video,
            5 | 6 => telemetry::Class::Social,
            7 => telemetry::Class::Game,
            8 => telemetry::Class::Call,
            _ => telemetry::Class::Bulk,
        };
        for class in [first, telemetry::Class::Web] {
            for (direction, bytes) in
                [(telemetry::Direction::Up, 20_000), (telemetry::Direction::Down, 400_000)]
            {
                let bytes = bytes + u64::from(number.wrapping_mul(turn) % 50_000);
                let held = class == telemetry::Class::Video && direction == telemetry::Direction::Down;
                usage.push(telemetry::Usage {
                    session: session_id(number),
                    class: class.into(),
                    direction: direction.into(),
                    bytes,
                    packets: bytes / 900,
                    dropped_bytes: 0,
                    dropped_packets: 0,
                    rate_bits_per_second: if held { 1_500_000 } else { 0 },
                    at_cap: held.then(|| if is_held_back { 1.0 } else { f64::from(number % 7) / 10.0 }),
                    path: (direction == telemetry::Direction::Down).then(|| round_trips(number)),
                    qoo: (class == telemetry::Class::Call).then(|| f64::from(60 + number % 40)),
                    ..telemetry::Usage::default()
                });
            }
        }
    }
    telemetry::Batch {
        boot: vec![7; agents::BOOT_LENGTH],
        sequence: u64::try_from(at).unwrap_or_default(),
        start_us: second(at).get(),
        end_us: second(at + 1).get(),
        sessions: Vec::new(),
        usage,
        flows: Vec::new(),
        apps: Vec::new(),
    }
}

fn round_trips(number: u32) -> telemetry::RoundTrips {
    let p50_ms = 20.0 + f64::from(number % 40);
    telemetry::RoundTrips { p50_ms, p90_ms: p50_ms, p95_ms: p50_ms, p99_ms: p50_ms, samples: 40 }
}

fn id(number: u32) -> SubscriberId {
    SubscriberId(format!("line-{number:08}"))
}

fn session_id(number: u32) -> String {
    format!("s{number:011}")
}

fn profile(number: u32) -> Profile {
    Profile {
        id: id(number),
        keys: std::iter::once(format!("imsi:00101{number:010}")).collect(),
        plan: "basic".into(),
        addons: std::collections::BTreeSet::new(),
        consent: Consent { service: true, advice: true },
        active: true,
        complaint_open: false,
        organisation: None,
        time_zone: Some("Europe/Berlin".into()),
        bill_day: u8::try_from(number % 28 + 1).unwrap_or(1),
        moved: false,
        offer: Offer::default(),
    }
}

fn session(number: u32) -> SessionSeen {
    SessionSeen {
        subscriber: id(number),
        session: session_id(number),
        open: true,
        serving_plmn: "00101".into(),
        roaming: false,
        time_zone: String::new(),
        rat: "eutran".into(),
    }
}

fn observed(agent: u32, sessions: Vec<SessionSeen>) -> Observed {
    Observed {
        agent: agent_name(agent),
        start: second(0),
        end: second(1),
        sessions,
        usage: Vec::new(),
        named: Vec::new(),
        apps: Vec::new(),
    }
}

fn row(agent: u32, number: u32) -> SessionRow {
    SessionRow {
        agent: agent_name(agent),
        session: session_id(number),
        subscriber: Some(id(number)),
        open: true,
        prefixes: Vec::new(),
        keys: Vec::new(),
        serving_plmn: String::new(),
        roaming: false,
        rat: String::new(),
        time_zone: String::new(),
        since: second(0),
        changed: second(0),
    }
}

fn second(at: i64) -> Micros {
    Micros::new((START + at) * 1_000_000)
}

fn name_of(subscribers: u32) -> String {
    match subscribers {
        size if size >= 1_000_000 => format!("{}m", size / 1_000_000),
        size => format!("{}k", size / 1_000),
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Bytes of memory the process has, but for what the allocator only holds on to.
#[expect(unsafe_code, reason = "the standard library has no word for it")]
fn resident() -> anyhow::Result<i64> {
    // SAFETY: it changes nothing but which free pages the allocator keeps.
    unsafe { libc::malloc_trim(0) };
    let text = std::fs::read_to_string("/proc/self/statm").context("read what memory is used")?;
    let pages: i64 = text.split(' ').nth(1).context("expected pages")?.parse()?;
    Ok(pages * 4096)
}

fn free_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read what memory is free")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable")).context("expected MemAvailable")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("expected a number")?.parse()?;
    Ok(kilobytes * 1024)
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "records/s",
        "bytes/subscriber",
        "decision p99 us",
        "push p99 ms (wall)",
        "decisions",
        "recovery s",
        "snapshot MB",
    ]);
    for case in &report.cases {
        table.add_row([
            case.name.clone(),
            format!("{:.2} M", case.records_per_s / 1e6),
            format!("{:.0}", case.bytes_per_subscriber),
            format!("{:.0}", case.decision_p99_us),
            format!("{:.1} ({:.1})", case.push_p99_ms, case.push_wall_p99_ms),
            case.decisions.to_string(),
            format!("{:.2}", case.recovery_s),
            (case.snapshot_bytes / 1_000_000).to_string(),
        ]);
    }
    say(&table.to_string());
}
