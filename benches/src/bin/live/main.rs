//! How soon a flow's class stands in the kernel, live: the real agent and probe, real frames, real clients and servers.
//!
//! ```text
//!   subscribers                     gateway                       internet
//!   raw frames: 20,000 flows/s ---> access [probe, agent] core -> dropped
//!   curl, a QUIC client        <--> access                core <-> nginx, a QUIC server
//! ```
//!
//! Needs root. Three namespaces joined by veth, on however many CPUs there are: the load, the clients, the servers and the
//! agent share them. `live-20k` is the load and downloads in it; `downloads` the same downloads without load.
//!
//! - **verdict**: from just before a flow's deciding packet is sent to its class in the probe's flow table, as a witness
//!   sees it that reads the pinned table ([`generate`]). Beside it the agent's own histogram over every flow, from the probe's
//!   time stamp of that packet to after the write: `usher_agent_decision_seconds`.
//! - **lost**: packets that the probe could not show to the agent, for whatever reason.
//! - **first megabyte**: each download is the only flow of its subscriber. What was counted for it in another class than its
//!   own came before the verdict; a flow is *right* where that is less than 5 % of its first 1,000,000 bytes, both
//!   directions, IP headers included. `first_megabyte_right` is the share of right flows,
//!   `first_megabyte_bytes_right` that of the first megabytes' bytes.

mod downloads;
mod frames;
mod generate;
mod maps;
mod quic;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Table, presets};
use serde::{Deserialize as _, Serialize};
use usher_benches::{say, write};
use usher_models::wire::Class;
use usher_tests::netns::{ACCESS, Lab, Place, Side};
use usher_tests::nginx::Nginx;
use usher_tests::process::{self, Running};
use usher_tests::wait::{self, Seen};

use downloads::{Downloads, FirstMegabyte};
use generate::Sent;

const FLOWS_PER_SECOND: u32 = 20_000;
const SECONDS: u32 = 30;
/// Of the load; a gateway of some thousand lines.
const SUBSCRIBERS: u32 = 4_000;
const METRICS: &str = "127.0.0.1:9464";

/// One measured case.
#[derive(Debug, Serialize)]
struct Case {
    #[serde(rename = "case")]
    name: &'static str,
    new_flows_per_s: f64,
    frames_per_s: f64,
    flows_named_per_s: f64,
    /// By the witness, over the watched flows.
    verdict_p50_ms: f64,
    verdict_p99_ms: f64,
    verdict_max_ms: f64,
    watched: usize,
    unnamed: u64,
    wrong: u64,
    /// By the agent, over all flows.
    decisions: f64,
    decisions_within_5ms: f64,
    decision_p99_below_ms: f64,
    decision_max_below_ms: f64,
    /// Packets the probe could not show.
    lost: f64,
    lost_by_reason: Vec<(String, f64)>,
    /// Of one CPU.
    agent_cpu_share: f64,
    verdicts_thread_cpu_share: f64,
    load_cpu_share: f64,
    #[serde(flatten)]
    first_megabyte: FirstMegabyte,
}

#[derive(Debug, Serialize)]
struct Figures {
    cases: Vec<Case>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "generate", task] => {
            let task = serde_json::from_str(task)?;
            say(&serde_json::to_string(&runtime.block_on(generate::generate(&task))?)?);
            Ok(())
        }
        [_, "quic-serve", task] => runtime.block_on(quic::serve(&serde_json::from_str(task)?)),
        [_, "quic-fetch", task] => runtime.block_on(quic::fetch(&serde_json::from_str(task)?)),
        [_] => bench(FLOWS_PER_SECOND, SECONDS),
        [_, flows_per_second, seconds] => bench(flows_per_second.parse()?, seconds.parse()?),
        _ => bail!("expected nothing, or flows a second and seconds"),
    }
}

fn bench(flows_per_second: u32, seconds: u32) -> Result<()> {
    let mut stage = Stage::set()?;
    let measured = stage.measure(flows_per_second, seconds);
    if measured.is_err() {
        say(&stage.agent.last_words());
    }
    let figures = Figures { cases: measured? };
    print(&figures);
    write("live", &figures)?;
    Ok(())
}

/// The laboratory with everything in it running.
struct Stage {
    // Dropped in this order: what runs before the ground it stands on.
    agent: Running,
    _quic: Running,
    nginx: Nginx,
    lab: Lab,
}

impl Stage {
    fn set() -> Result<Self> {
        if let Some(reason) = usher_tests::skip::why_no_probe() {
            bail!("this bench cannot run here: {reason}");
        }
        let lab = Lab::new(Place::new()?)?;
        let folder = lab.place().folder().to_owned();
        let shell = |side, script: &str| process::run(&mut lab.inside(side, "sh", ["-ec", script])).map(drop);
        let neighbour = downloads::address(0);
        shell(
            Side::Gateway,
            &format!(
                "ip route add 198.18.0.0/15 via 10.88.0.2 dev core; \
                 ip route add 100.64.0.0/16 via {neighbour} dev access"
            ),
        )?;
        quic::certificates(&folder.join("pki"), &downloads::NAMES.map(|(name, _)| name))?;
        let nginx = Nginx::start(&lab)?;
        let task = serde_json::to_string(&downloads::quic_task(&folder.join("pki"), vec![], 0))?;
        let quic = Running::start("quic", role(&lab, Side::Internet, "quic-serve", &task)?, &folder)?;
        configure(&lab)?;
        let program = process::built_program("usher-agent")?;
        let mut command =
            lab.inside(Side::Gateway, &program.to_string_lossy(), ["run", "--config", "agent.yaml"]);
        command.current_dir(&folder);
        let agent = Running::start("agent", command, &folder)?;
        let mut stage = Self { agent, _quic: quic, nginx, lab };
        wait::until("the agent answering", Duration::from_secs(30), || {
            stage.agent.expect_running()?;
            Ok(match stage.metrics() {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            })
        })?;
        stage.lab.connect()?;
        let addresses: Vec<String> = downloads::addresses().map(|address| format!("{address}/24")).collect();
        stage.lab.add_device(&addresses.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(stage)
    }

    fn measure(&mut self, flows_per_second: u32, seconds: u32) -> Result<Vec<Case>> {
        let quiet = self.case("downloads", 0, seconds.min(10))?;
        let loaded = self.case("live-20k", flows_per_second, seconds)?;
        Ok(vec![loaded, quiet])
    }

    /// Downloads, in a load of so many flows a second.
    fn case(&mut self, case: &'static str, flows_per_second: u32, seconds: u32) -> Result<Case> {
        let downloads = Downloads::new(&self.lab, self.nginx.authority(), usize::from(flows_per_second > 0));
        let (before, cpu_before, began) = (self.metrics()?, self.cpu()?, Instant::now());
        let load = (flows_per_second > 0).then(|| self.load(flows_per_second, seconds)).transpose()?;
        downloads.fetch(Duration::from_secs(u64::from(seconds)))?;
        let (sent, load_cpu) = load.map_or_else(|| Ok((None, 0.0)), |load| load.finish(seconds))?;
        let took = began.elapsed().as_secs_f64();
        let (cpu, after) = (self.cpu()?, self.metrics()?);
        self.agent.expect_running()?;
        let rise = |metric: &str, labels: &[&str]| after.sum(metric, labels) - before.sum(metric, labels);
        let mut lost_by_reason = Vec::new();
        for reason in ["sample_lost", "sample_rationed", "flow_table_full"] {
            let label = format!("reason=\"{reason}\"");
            lost_by_reason.push((reason.to_owned(), rise("usher_agent_packets_total", &[&label])));
        }
        let mut aside = format!("{case}:");
        for metric in ["flows_untold", "flows_gone", "naming_failures", "no_verdict"] {
            let _ = write!(aside, " {metric} {}", rise(&format!("usher_agent_{metric}_total"), &[]));
        }
        say(&aside);
        let decisions = Decisions::between(&before, &after);
        let ms = sent.as_ref().map_or(&[][..], |sent| &sent.verdict_ms);
        let first_megabyte = downloads.first_megabyte()?;
        let sent_seconds = sent.as_ref().map_or(took, |sent| sent.seconds);
        Ok(Case {
            name: case,
            new_flows_per_s: sent.as_ref().map_or(0.0, |sent| per_second(sent.flows, sent.seconds)),
            frames_per_s: sent.as_ref().map_or(0.0, |sent| per_second(sent.frames, sent.seconds)),
            flows_named_per_s: rise("usher_agent_verdicts_total", &[]) / sent_seconds,
            verdict_p50_ms: quantile(ms, 0.5),
            verdict_p99_ms: quantile(ms, 0.99),
            verdict_max_ms: quantile(ms, 1.0),
            watched: ms.len(),
            unnamed: sent.as_ref().map_or(0, |sent| sent.unnamed),
            wrong: sent.as_ref().map_or(0, |sent| sent.wrong),
            decisions: decisions.all(),
            decisions_within_5ms: decisions.within(0.005),
            decision_p99_below_ms: decisions.quantile(0.99) * 1e3,
            decision_max_below_ms: decisions.quantile(1.0) * 1e3,
            lost: lost_by_reason.iter().map(|(_, count)| count).sum(),
            lost_by_reason,
            agent_cpu_share: (cpu.0 - cpu_before.0) / took,
            verdicts_thread_cpu_share: (cpu.1 - cpu_before.1) / took,
            load_cpu_share: load_cpu / took,
            first_megabyte,
        })
    }

    fn load(&self, flows_per_second: u32, seconds: u32) -> Result<Load> {
        let task = generate::Task {
            interface: "line".to_owned(),
            macs: [self.mac(Side::Subscribers, "line")?, self.mac(Side::Gateway, ACCESS)?],
            pins: self.lab.place().pins(),
            subscribers: SUBSCRIBERS,
            flows_per_second,
            seconds,
        };
        let command = role(&self.lab, Side::Subscribers, "generate", &serde_json::to_string(&task)?)?;
        Ok(Load(Running::start("load", command, self.lab.place().folder())?))
    }

    fn mac(&self, side: Side, interface: &str) -> Result<[u8; 6]> {
        let printed = process::run(&mut self.lab.inside(side, "ip", ["-j", "link", "show", interface]))?;
        let parsed: serde_json::Value = serde_json::from_str(&printed)?;
        let text = parsed.pointer("/0/address").and_then(serde_json::Value::as_str).context("no address")?;
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        bytes?.try_into().map_err(|_| anyhow::anyhow!("{text} is no link-layer address"))
    }

    fn metrics(&self) -> Result<Page> {
        let url = format!("http://{METRICS}/metrics");
        let mut command = self.lab.inside(Side::Gateway, "curl", ["-sS", "--fail", "--max-time", "5", &url]);
        process::run(&mut command).map(Page)
    }

    /// CPU seconds of the agent, and of its verdicts' thread.
    fn cpu(&self) -> Result<(f64, f64)> {
        let process = PathBuf::from(format!("/proc/{}", self.agent.pid()));
        let mut verdicts = 0.0;
        for task in std::fs::read_dir(process.join("task"))?.flatten() {
            if std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "verdicts") {
                verdicts = cpu_seconds(&task.path())?;
            }
        }
        Ok((cpu_seconds(&process)?, verdicts))
    }
}

/// The load while it runs.
struct Load(Running);

impl Load {
    /// What it sent, and the CPU seconds it took, the kernel's work for its frames included.
    fn finish(mut self, seconds: u32) -> Result<(Option<Sent>, f64)> {
        let process = PathBuf::from(format!("/proc/{}", self.0.pid()));
        let mut cpu = 0.0;
        let status =
            wait::until("the end of the load", Duration::from_secs(u64::from(seconds) + 60), || {
                if let Ok(used) = cpu_seconds(&process) {
                    cpu = used;
                }
                Ok(match self.0.wait(Duration::ZERO) {
                    Ok(status) => Seen::Done(status),
                    Err(error) => Seen::NotYet(format!("{error:#}")),
                })
            })?;
        ensure!(status.success(), "the load ended ({status}): {}", self.0.last_words());
        let printed = self.0.printed();
        let figures = printed.find('{').map_or("", |at| &printed[at..]);
        let mut deserializer = serde_json::Deserializer::from_str(figures);
        let sent = Sent::deserialize(&mut deserializer).context("read what the load printed")?;
        Ok((Some(sent), cpu))
    }
}

/// This program in another role, in one of the namespaces.
fn role(lab: &Lab, side: Side, role: &str, task: &str) -> Result<Command> {
    let program = std::env::current_exe()?;
    Ok(lab.inside(side, &program.to_string_lossy(), [role, task]))
}

/// An agent that nobody answers: it spools, which is the most a disk is asked for.
fn configure(lab: &Lab) -> Result<()> {
    let folder = lab.place().folder();
    let config = format!(
        "agent: gw-live
source: {{probe: {{interface: {ACCESS}, pin_dir: \"{pins}\", max_flows: 1500000, max_subscribers: 8192}}}}
sessions: sessions.yaml
home_plmns: [\"00101\"]
uplink:
  orchestrator: https://127.0.0.1:9
  server_name: {name}
  ca: pki/authority.pem
  certificate: pki/server.pem
  key: pki/server.key
state_dir: state
spool: 1 GiB
metrics: {METRICS}
log: {{format: text, level: info}}
",
        pins = lab.place().pins().display(),
        name = downloads::NAMES[0].0,
    );
    std::fs::write(folder.join("agent.yaml"), config)?;
    let mut sessions = "sessions:\n".to_owned();
    let load = (0..SUBSCRIBERS).map(|number| (generate::FIRST.to_bits() + number).into());
    for address in downloads::addresses().chain(load) {
        let _ = writeln!(
            sessions,
            "  - {{id: \"s-{address}\", keys: [\"account:{address}\"], prefixes: [{address}/32]}}"
        );
    }
    std::fs::write(folder.join("sessions.yaml"), sessions).context("write the sessions")
}

/// A page of metrics.
struct Page(String);

impl Page {
    /// The sum of a metric's samples that carry all of these labels.
    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.samples(metric, labels).map(|(_, value)| value).sum()
    }

    fn samples<'a>(&'a self, metric: &'a str, labels: &'a [&'a str]) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, carried) = series.split_once('{').unwrap_or((series, ""));
            (name == metric && labels.iter().all(|label| carried.contains(label)))
                .then_some((carried, value.parse().ok()?))
        })
    }

    /// A histogram: upper bounds, and how many observations lie below each.
    fn histogram(&self, metric: &str) -> Vec<(f64, f64)> {
        self.samples(metric, &[])
            .filter_map(|(labels, count)| {
                let bound = labels.split_once("le=\"")?.1.split_once('"')?.0;
                Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, count))
            })
            .collect()
    }
}

/// The agent's histogram of decisions between two moments.
struct Decisions(Vec<(f64, f64)>);

impl Decisions {
    fn between(before: &Page, after: &Page) -> Self {
        const METRIC: &str = "usher_agent_decision_seconds_bucket";
        let before = before.histogram(METRIC);
        let counted = |bound: f64| {
            before.iter().find(|(other, _)| other.total_cmp(&bound).is_eq()).map_or(0.0, |(_, n)| *n)
        };
        let rise = after.histogram(METRIC).into_iter().map(|(bound, count)| (bound, count - counted(bound)));
        Self(rise.collect())
    }

    fn all(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The share of decisions within a bound of the histogram's.
    fn within(&self, seconds: f64) -> f64 {
        let below = self.0.iter().find(|(bound, _)| *bound >= seconds).map_or(0.0, |(_, count)| *count);
        if self.all() > 0.0 { below / self.all() } else { f64::NAN }
    }

    /// The bound below which this share of decisions lies.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = self.all() * share;
        self.0.iter().find(|(_, count)| *count >= wanted).map_or(f64::NAN, |(bound, _)| *bound)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to print")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list from a share of it"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// User and system time of a process or thread (fields 14 and 15 of proc(5) stat), in ticks of 10 ms.
fn cpu_seconds(process: &std::path::Path) -> Result<f64> {
    let stat = std::fs::read_to_string(process.join("stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("read /proc/PID/stat")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields.get(11).context("no time")?.parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn print(figures: &Figures) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(std::iter::once("").chain(figures.cases.iter().map(|case| case.name)));
    let mut row = |name: &str, value: &dyn Fn(&Case) -> String| {
        table.add_row(std::iter::once(name.to_owned()).chain(figures.cases.iter().map(value)));
    };
    row("new flows/s", &|case| format!("{:.0}", case.new_flows_per_s));
    row("frames/s of the load", &|case| format!("{:.0}", case.frames_per_s));
    row("flows named/s", &|case| format!("{:.0}", case.flows_named_per_s));
    row("verdict p50 / p99 / max, ms (witness)", &|case| {
        format!("{:.2} / {:.2} / {:.2}", case.verdict_p50_ms, case.verdict_p99_ms, case.verdict_max_ms)
    });
    row("watched, unnamed, wrong", &|case| format!("{}, {}, {}", case.watched, case.unnamed, case.wrong));
    row("decisions within 5 ms (agent)", &|case| {
        format!("{:.3} % of {:.0}", case.decisions_within_5ms * 100.0, case.decisions)
    });
    row("decision p99 / max below, ms (agent)", &|case| {
        format!("{} / {}", case.decision_p99_below_ms, case.decision_max_below_ms)
    });
    row("samples lost", &|case| format!("{:.0}", case.lost));
    row("CPU: agent (its verdicts' thread), load", &|case| {
        format!(
            "{:.2} ({:.2}), {:.2}",
            case.agent_cpu_share, case.verdicts_thread_cpu_share, case.load_cpu_share
        )
    });
    row("downloads right: TLS, QUIC", &|case| {
        format!(
            "{} of {}, {} of {}",
            case.first_megabyte.tls.right,
            case.first_megabyte.tls.flows,
            case.first_megabyte.quic.right,
            case.first_megabyte.quic.flows
        )
    });
    row("first megabytes' bytes right", &|case| format!("{:.3} %", case.first_megabyte.bytes_right * 100.0));
    say(&table.to_string());
    say(&format!(
        "{} names; {} CPUs shared by load, agent, clients and servers; classes: {}",
        generate::names(),
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        Class::COUNT
    ));
}
