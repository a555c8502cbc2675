//! What the agent costs at scale: 200,000 subscribers with a million flows, idle, and with 100,000 flows a second that change.
//!
//! The real agent and orchestrator in the laboratory, their sessions from a file. Packets come from the probe's own driver under
//! BPF_PROG_TEST_RUN, in a process of its own within the gateway: each second 100,000 flows get one packet up and one down. The
//! agent counts, stores and sends what that makes: told is the CPU time of its process, and of its verdicts' thread alone. Beside it
//! the orchestrator's, which is told the same. Needs root. `drain [SECONDS [AGENT]]`; AGENT is another agent's program to measure. Fails
//! where the agent takes more than a tenth of a core.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::tc::TcAttachType;
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_benches::drive::{Driver, IPV4, Packets, SUBSCRIBER, Ways, attached};
use usher_benches::{say, write};
use usher_tests::netns::{ACCESS, Lab, Place, Side};
use usher_tests::process::Running;
use usher_tests::site::{Ground, Site, Variant};
use usher_tests::skip;
use usher_tests::wait::{self, Seen};

const SUBSCRIBERS: u32 = 200_000;
const FLOWS: u32 = 1 << 20;
/// Flows that get packets each second.
const ACTIVE: u32 = 100_000;
/// Parts of a second in which they are sent.
const PARTS: u32 = 20;
const SECONDS: u32 = 20;
/// The agent may take so much of a core.
const BAR: f64 = 0.1;

const PACKETS: Packets =
    Packets { shape: IPV4, flows: FLOWS, subscribers: SUBSCRIBERS, ways: Ways::Both, payload: false };

#[derive(Debug, Serialize)]
struct Figure {
    case: &'static str,
    seconds: f64,
    /// Flows that had a packet each way.
    flows_per_s: f64,
    /// Of one core.
    agent_cpu_share: f64,
    verdicts_thread_cpu_share: f64,
    orchestrator_cpu_share: f64,
    batches_per_s: f64,
    batch_bytes_per_s: f64,
    drains: f64,
    resident_mb: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Figure>,
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |seconds: &str| seconds.parse().with_context(|| format!("`{seconds}`: expected seconds"));
    let (seconds, agent) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "load"] => return load().map(|()| ExitCode::SUCCESS),
        [_] => (SECONDS, None),
        [_, seconds] => (asked(seconds)?, None),
        [_, seconds, agent] => (asked(seconds)?, Some(PathBuf::from(agent))),
        _ => bail!("expected nothing, seconds, or seconds and an agent's program"),
    };
    if let Some(reason) = skip::why_no_probe() {
        bail!("this bench cannot run here: {reason}");
    }
    let mut site = site()?;
    site.start_orchestrator()?;
    let began = Instant::now();
    site.start_agent_of(agent.as_deref())?;
    wait::until("the sessions in force", Duration::from_mins(3), || {
        site.expect_running()?;
        Ok(Seen::when(site.agent()?.printed().contains("sessions in force"), (), "not yet"))
    })?;
    say(&format!("{SUBSCRIBERS} sessions in force after {:.1} s", began.elapsed().as_secs_f64()));
    let load = Running::start("load", role(site.lab()?)?, site.ground().place().folder())?;
    wait::until("a million flows", Duration::from_mins(2), || {
        Ok(Seen::when(load.printed().contains("flows are there"), (), load.last_words()))
    })?;
    load.signal(rustix::process::Signal::STOP)?;
    settle(&mut site)?;
    let idle = measure(&mut site, &load, "idle", seconds)?;
    load.signal(rustix::process::Signal::CONT)?;
    std::thread::sleep(Duration::from_secs(3));
    let busy = measure(&mut site, &load, "busy", seconds)?;
    drop(load);
    let held = idle.agent_cpu_share <= BAR && busy.agent_cpu_share <= BAR;
    let cases = vec![idle, busy];
    say(&table(&cases).to_string());
    write("drain", &Report { cases })?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A site of that size.
fn site() -> Result<Site> {
    let site = Site::new(Ground::Lab(Lab::new(Place::new()?)?), &Variant::default())?;
    let sizes = format!("max_flows: {FLOWS}, max_subscribers: {SUBSCRIBERS}");
    site.edit("agent.yaml", |text| {
        let text = text.replace("interface: access,", &format!("interface: access, {sizes},"));
        text.replace("usher_agent=debug", "usher_agent=info") + "spool: 1 GiB\n"
    })?;
    site.edit("sessions.yaml", |_| {
        let mut sessions = "sessions:\n".to_owned();
        for number in 0..SUBSCRIBERS {
            let address = std::net::Ipv4Addr::from_bits(SUBSCRIBER + number);
            let imsi = 1_020_000_000_000_u64 + u64::from(number);
            let _ = writeln!(
                sessions,
                "  - {{id: \"s-{number}\", keys: [\"imsi:{imsi:015}\"], prefixes: [{address}/32]}}"
            );
        }
        sessions
    })?;
    Ok(site)
}

/// Waits until the agent has told what there was, and nothing waits to be sent.
fn settle(site: &mut Site) -> Result<()> {
    wait::until("an empty spool", Duration::from_mins(3), || {
        site.expect_running()?;
        let waiting = site.agent_metrics()?.sum("usher_agent_spool_bytes", &[])?;
        Ok(Seen::when(waiting < 4_096.0, (), format!("{waiting} bytes wait")))
    })
}

fn measure(site: &mut Site, load: &Running, case: &'static str, seconds: u32) -> Result<Figure> {
    let (cpu, metrics, flows, from) = (Cpu::of(site)?, site.agent_metrics()?, driven(load)?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let (cpu_after, metrics_after, flows_after, took) =
        (Cpu::of(site)?, site.agent_metrics()?, driven(load)?, from.elapsed().as_secs_f64());
    site.expect_running()?;
    let rise = |metric: &str, labels: &[&str]| {
        let before = metrics.sum(metric, labels).unwrap_or(0.0);
        metrics_after.sum(metric, labels).unwrap_or(0.0) - before
    };
    let drains = rise("usher_agent_drains_total", &["result=\"told\""]);
    ensure!(case == "idle" || flows_after > flows, "the load has ended: {}", load.last_words());
    ensure!(
        drains >= took * 0.5,
        "{drains} drains in {took:.0} s: the agent does not keep up: {}",
        site.last_words()
    );
    Ok(Figure {
        case,
        seconds: took,
        flows_per_s: f64::from(flows_after - flows) / took,
        agent_cpu_share: (cpu_after.agent - cpu.agent) / took,
        verdicts_thread_cpu_share: (cpu_after.verdicts - cpu.verdicts) / took,
        orchestrator_cpu_share: (cpu_after.orchestrator - cpu.orchestrator) / took,
        batches_per_s: rise("usher_agent_batches_sent_total", &[]) / took,
        batch_bytes_per_s: rise("usher_agent_batch_bytes_total", &[]) / took,
        drains,
        resident_mb: cpu_after.resident_mb,
    })
}

/// CPU seconds of the daemons.
struct Cpu {
    agent: f64,
    verdicts: f64,
    orchestrator: f64,
    resident_mb: f64,
}

impl Cpu {
    fn of(site: &mut Site) -> Result<Self> {
        let process = |pid: u32| PathBuf::from(format!("/proc/{pid}"));
        let agent = process(site.agent()?.pid());
        let mut verdicts = 0.0;
        for task in std::fs::read_dir(agent.join("task"))?.flatten() {
            if std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "verdicts") {
                verdicts = cpu_seconds(&task.path())?;
            }
        }
        let status = std::fs::read_to_string(agent.join("status"))?;
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(Self {
            agent: cpu_seconds(&agent)?,
            verdicts,
            orchestrator: cpu_seconds(&process(site.orchestrator()?.pid()))?,
            resident_mb: resident.context("no VmRSS")?.parse::<f64>()? / 1024.0,
        })
    }
}

/// Time on a CPU of a process's threads, or of one thread, in all its life so far (the first field of proc(5) schedstat, nanoseconds);
/// `stat` has ticks of 10 ms alone.
fn cpu_seconds(process: &std::path::Path) -> Result<f64> {
    let of = |task: &std::path::Path| -> Result<f64> {
        let text = std::fs::read_to_string(task.join("schedstat"))?;
        Ok(text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()? / 1e9)
    };
    let Ok(tasks) = std::fs::read_dir(process.join("task")) else { return of(process) };
    // A thread that ends meanwhile takes its time along: there are none that do.
    Ok(tasks.flatten().filter_map(|task| of(&task.path()).ok()).sum())
}

/// Flows that the load has given packets so far.
fn driven(load: &Running) -> Result<u32> {
    let printed = load.printed();
    Ok(printed.lines().next_back().context("the load says nothing")?.parse().unwrap_or(0))
}

/// This program as the load, within the gateway.
fn role(lab: &Lab) -> Result<Command> {
    let program = std::env::current_exe()?;
    Ok(lab.inside(Side::Gateway, &program.to_string_lossy(), ["load"]))
}

/// Makes the flows, then goes on with some of them, until it is ended; says with how many so far, again and again.
fn load() -> Result<()> {
    let mut driver = Driver::load(PACKETS, 1)?;
    let (up, down) = (attached(ACCESS, TcAttachType::Ingress)?, attached(ACCESS, TcAttachType::Egress)?);
    driver.probe([&up, &down], 2 * FLOWS)?;
    say("flows are there");
    let mut next = Instant::now();
    for part in 1.. {
        match driver.probe([&up, &down], 2 * ACTIVE / PARTS) {
            // The signal that stops the load ends a run as well.
            Err(error) if interrupted(&error) => {}
            run => drop(run?),
        }
        say(&(part * (ACTIVE / PARTS)).to_string());
        next += Duration::from_secs(1) / PARTS;
        // What could not be sent in time is not made up for.
        if next.elapsed() > Duration::from_secs(1) {
            next = Instant::now();
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn interrupted(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::Interrupted)
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "flows/s",
        "agent, of a core",
        "its verdicts' thread",
        "orchestrator",
        "batches/s",
        "MB/s",
        "drains",
        "resident MB",
    ]);
    for figure in figures {
        table.add_row([
            figure.case.to_owned(),
            format!("{:.0}", figure.flows_per_s),
            format!("{:.1} %", figure.agent_cpu_share * 100.0),
            format!("{:.1} %", figure.verdicts_thread_cpu_share * 100.0),
            format!("{:.1} %", figure.orchestrator_cpu_share * 100.0),
            format!("{:.1}", figure.batches_per_s),
            format!("{:.2}", figure.batch_bytes_per_s / 1e6),
            format!("{:.0}", figure.drains),
            format!("{:.0}", figure.resident_mb),
        ]);
    }
    table
}
