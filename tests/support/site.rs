//! One installation of Usher: its folder with configuration and keys, its agent and its orchestrator.
//!
//! Stands on one of two grounds: the laboratory of three namespaces, or, where there is no root, this machine's loopback.
//! Everything it tells, it learnt the way an operator would: `/metrics`, the CLI, the outbox, `curl`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::netns::{ACCESS, GATEWAY, Lab, Place, Side};
use crate::process::{self, Running};
use crate::wait::{self, Seen};

/// How long a daemon may take until it answers, and until it has stopped.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where it stands.
#[derive(Debug)]
pub enum Ground {
    /// Both daemons are on the gateway; packets are seen by the probe.
    Lab(Lab),
    /// Both are on this machine's loopback; packets come from a capture file.
    Loopback(Place),
}

impl Ground {
    /// The place it stands in.
    pub fn place(&self) -> &Place {
        match self {
            Self::Lab(lab) => lab.place(),
            Self::Loopback(place) => place,
        }
    }

    /// The same, to say that its folder is to be kept.
    pub fn place_mut(&mut self) -> &mut Place {
        match self {
            Self::Lab(lab) => lab.place_mut(),
            Self::Loopback(place) => place,
        }
    }

    /// A program where the daemons run.
    pub fn command<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        match self {
            Self::Lab(lab) => lab.inside(Side::Gateway, program, arguments),
            Self::Loopback(_) => {
                process::command(process::find(program).unwrap_or_else(|| program.into()), arguments)
            }
        }
    }

    /// Ports nobody else listens on.
    fn ports<const N: usize>(&self) -> Result<[u16; N]> {
        if let Self::Lab(_) = self {
            return Ok(std::array::from_fn(|index| 7443 + u16::try_from(index).unwrap_or(0)));
        }
        // All held at once, so that they differ.
        let held: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let mut ports = [0; N];
        for (port, listener) in ports.iter_mut().zip(&held) {
            *port = listener.local_addr()?.port();
        }
        Ok(ports)
    }
}

/// What differs between one site and another.
#[derive(Debug, Default)]
pub struct Variant {
    /// The capture file to play; needed on loopback.
    pub capture: Option<PathBuf>,
    /// What is added to `orchestrator.yaml`: the section `elements:`.
    pub elements: String,
}

/// One installation.
#[derive(Debug)]
pub struct Site {
    // Dropped in this order: the daemons before the ground they stand on.
    agent: Option<Running>,
    orchestrator: Option<Running>,
    agent_metrics: u16,
    orchestrator_metrics: u16,
    ground: Ground,
}

impl Site {
    /// Writes its configuration and keys; starts nothing.
    pub fn new(ground: Ground, variant: &Variant) -> Result<Self> {
        let [uplink, agent_metrics, orchestrator_metrics, tap] = ground.ports()?;
        let source = match (&ground, &variant.capture) {
            (_, Some(file)) => format!("{{capture: {{file: \"{}\"}}}}", file.display()),
            (Ground::Lab(_), None) => {
                format!(
                    "{{probe: {{interface: {ACCESS}, pin_dir: \"{}\"}}}}",
                    ground.place().pins().display()
                )
            }
            (Ground::Loopback(_), None) => {
                bail!("on loopback packets come from a capture file: expected one")
            }
        };
        let tap = match &ground {
            Ground::Lab(_) => format!("{GATEWAY}:{tap}"),
            Ground::Loopback(_) => format!("127.0.0.1:{tap}"),
        };
        let words = [
            ("@SOURCE@", source),
            ("@UPLINK@", uplink.to_string()),
            ("@AGENT_METRICS@", agent_metrics.to_string()),
            ("@ORCHESTRATOR_METRICS@", orchestrator_metrics.to_string()),
            ("@TAP@", tap),
        ];
        let site = Self { agent: None, orchestrator: None, agent_metrics, orchestrator_metrics, ground };
        for (name, template) in [
            ("agent.yaml", include_str!("../demo/agent.yaml")),
            ("orchestrator.yaml", include_str!("../demo/orchestrator.yaml")),
            ("policy.yaml", include_str!("../demo/policy.yaml")),
            ("profiles.yaml", include_str!("../demo/profiles.yaml")),
            ("sessions.yaml", include_str!("../demo/sessions.yaml")),
        ] {
            let mut text =
                words.iter().fold(template.to_owned(), |text, (word, value)| text.replace(word, value));
            if name == "orchestrator.yaml" {
                text.push_str(&variant.elements);
            }
            fs::write(site.file(name), text)?;
        }
        site.make_keys()?;
        Ok(site)
    }

    /// The ground it stands on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The same, to say that its folder is to be kept.
    pub fn ground_mut(&mut self) -> &mut Ground {
        &mut self.ground
    }

    /// The laboratory it stands in.
    pub fn lab(&self) -> Result<&Lab> {
        match &self.ground {
            Ground::Lab(lab) => Ok(lab),
            Ground::Loopback(_) => bail!("this site stands on loopback"),
        }
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.ground.place().folder().join(name)
    }

    /// Replaces part of one of its files, in one step, as a careful operator does.
    pub fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) -> Result<()> {
        let file = self.file(name);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let new = self.file(&format!("{name}.new"));
        fs::write(&new, edit(text))?;
        fs::rename(&new, &file).with_context(|| format!("replace {}", file.display()))
    }

    fn make_keys(&self) -> Result<()> {
        let folder = self.file("pki").to_string_lossy().into_owned();
        process::run(&mut process::command(
            process::built_program("usher")?,
            ["pki", "init", "--dir", &folder, "--server", "127.0.0.1", "--agent", "gw-1"],
        ))
        .map(drop)
    }

    /// Starts the orchestrator and waits until it answers.
    pub fn start_orchestrator(&mut self) -> Result<()> {
        let program = process::built_program("usher-orchestrator")?;
        let words = [program.to_string_lossy().as_ref(), "--config", "orchestrator.yaml"].map(str::to_owned);
        let running = self.launch("orchestrator", &words)?;
        let running = self.orchestrator.insert(running);
        let url = format!("http://127.0.0.1:{}/metrics", self.orchestrator_metrics);
        answering(&self.ground, running, &url)
    }

    /// Starts the agent, in the laboratory as bounded as its unit does, and waits until it answers.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_of(None)
    }

    /// The same; `program` is another agent than the one built beside this program.
    pub fn start_agent_of(&mut self, program: Option<&Path>) -> Result<()> {
        let built = process::built_program("usher-agent")?;
        let program = program.unwrap_or(&built).to_string_lossy();
        let mut words = match &self.ground {
            Ground::Lab(_) => process::as_the_unit()?,
            // A capture takes no power.
            Ground::Loopback(_) => Vec::new(),
        };
        words.extend([program.as_ref(), "run", "--config", "agent.yaml"].map(str::to_owned));
        let running = self.launch("agent", &words)?;
        let running = self.agent.insert(running);
        let url = format!("http://127.0.0.1:{}/metrics", self.agent_metrics);
        answering(&self.ground, running, &url)
    }

    fn launch(&self, name: &str, words: &[String]) -> Result<Running> {
        let (program, arguments) = words.split_first().context("a program")?;
        let mut command = self.ground.command(program, arguments.iter().map(String::as_str));
        command.current_dir(self.ground.place().folder());
        Running::start(name, command, self.ground.place().folder())
    }

    /// The agent's process.
    pub fn agent(&mut self) -> Result<&mut Running> {
        self.agent.as_mut().context("the agent is not started")
    }

    /// The orchestrator's process.
    pub fn orchestrator(&mut self) -> Result<&mut Running> {
        self.orchestrator.as_mut().context("the orchestrator is not started")
    }

    /// `kill -9`, and the next one.
    pub fn replace_agent(&mut self) -> Result<()> {
        self.agent()?.kill()?;
        self.start_agent()
    }

    /// `kill -9`, and the next one.
    pub fn replace_orchestrator(&mut self) -> Result<()> {
        self.orchestrator()?.kill()?;
        self.start_orchestrator()
    }

    /// Fails where a daemon has ended by itself.
    pub fn expect_running(&mut self) -> Result<()> {
        for daemon in [&mut self.agent, &mut self.orchestrator].into_iter().flatten() {
            daemon.expect_running()?;
        }
        Ok(())
    }

    /// What both daemons printed last, for whoever has to find out what went wrong.
    pub fn last_words(&self) -> String {
        [("agent", &self.agent), ("orchestrator", &self.orchestrator)]
            .into_iter()
            .filter_map(|(name, daemon)| Some(format!("{name}:\n{}", daemon.as_ref()?.last_words())))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Stops both gracefully.
    pub fn stop(&mut self) -> Result<()> {
        for daemon in [&mut self.agent, &mut self.orchestrator] {
            if let Some(running) = daemon.as_mut() {
                let status = running.stop(PATIENCE)?;
                if !status.success() {
                    bail!("a graceful stop ended with {status}:\n{}", running.last_words());
                }
            }
            *daemon = None;
        }
        Ok(())
    }

    /// The CLI, as an operator types it.
    pub fn usher<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let socket = self.file("orchestrator.sock").to_string_lossy().into_owned();
        let mut command = process::command(process::built_program("usher")?, ["--socket", socket.as_str()]);
        command.args(arguments);
        Ok(command)
    }

    /// What the CLI prints as JSON.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let printed = process::run(&mut self.usher(arguments.iter().copied().chain(["-o", "json"]))?)?;
        serde_json::from_str(&printed)
            .with_context(|| format!("read what `usher {}` printed", arguments.join(" ")))
    }

    /// The agent's metrics.
    pub fn agent_metrics(&self) -> Result<Metrics> {
        self.metrics(self.agent_metrics)
    }

    /// The orchestrator's metrics.
    pub fn orchestrator_metrics(&self) -> Result<Metrics> {
        self.metrics(self.orchestrator_metrics)
    }

    fn metrics(&self, port: u16) -> Result<Metrics> {
        let url = format!("http://127.0.0.1:{port}/metrics");
        process::run(&mut self.ground.command("curl", ["-sS", "--fail", "--max-time", "5", &url]))
            .map(Metrics)
    }

    /// The messages in the outbox.
    pub fn outbox(&self) -> Result<Vec<Value>> {
        let folder = self.file("outbox");
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
            .into_iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "json"))
            .map(|file| read_json(&file))
            .collect()
    }
}

fn read_json(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {} as JSON", file.display()))
}

fn answering(ground: &Ground, daemon: &mut Running, url: &str) -> Result<()> {
    wait::until("the daemon answering", PATIENCE, || {
        daemon.expect_running()?;
        let answer = process::run(&mut ground.command("curl", ["-sS", "--fail", "--max-time", "2", url]));
        Ok(match answer {
            Ok(_) => Seen::Done(()),
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
    })
}

/// What a daemon's `/metrics` says.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of all samples of a metric whose labels contain each of `labels`, written as `name="value"`.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> Result<f64> {
        let mut found = false;
        let mut sum = 0.0;
        for line in self.0.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labelled) = series.split_once('{').unwrap_or((series, ""));
            if name == metric && labels.iter().all(|label| labelled.contains(label)) {
                found = true;
                sum += value.parse::<f64>().with_context(|| format!("a sample of {metric}: {value}"))?;
            }
        }
        if found { Ok(sum) } else { Err(anyhow!("there is no metric {metric} with {labels:?}")) }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let metrics =
            Metrics("# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\nb 1\n".to_owned());
        assert!((metrics.sum("a_total", &[]).unwrap() - 7.0).abs() < f64::EPSILON);
        assert!((metrics.sum("a_total", &["x=\"1\""]).unwrap() - 3.0).abs() < f64::EPSILON);
        assert!(metrics.sum("c", &[]).is_err());
    }
}
