//! What a demo run showed: printed as it happens, as a table at the end, and as `target/demo/report.json`.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One step of the story.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// What was to happen.
    pub name: String,
    /// Whether it did.
    pub ok: bool,
    /// When it was known, from the start of the story, in milliseconds.
    pub at_ms: u64,
}

/// The same figure at two points of the story.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct VideoRates {
    /// At the plan's rate, bits per second of content.
    pub before: u64,
    /// After the push.
    pub after: u64,
}

/// A roamer's rates.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RoamingRates {
    /// Held to the roaming limit, bits per second of content.
    pub limited: u64,
    /// With the pass.
    pub with_pass: u64,
}

/// From the moment to the new setting in force, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Enforced {
    /// On the gateway's data plane; absent until measured.
    pub gateway: Option<u64>,
    /// On the NETCONF device; absent where there is none to be had.
    pub netconf: Option<u64>,
}

/// The same traffic, counted twice.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counted {
    /// By the probe (or the capture), both directions, as bytes of frames on the wire.
    pub probe: u64,
    /// By the interface itself (or the lengths in the capture file).
    pub interface: u64,
}

/// Where the packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// From the probe in the kernel.
    Probe,
    /// From the capture file in this repository.
    Capture,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Capture => "capture",
        })
    }
}

/// Everything a run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order they happened.
    pub steps: Vec<Step>,
    /// What subscriber A's player measured.
    pub video_bps: VideoRates,
    /// What subscriber B's browser measured.
    pub roaming_bps: RoamingRates,
    /// From a flow's first packet to its verdict, milliseconds.
    pub verdict_ms: f64,
    /// From the moment to the setting in force.
    pub enforced_ms: Enforced,
    /// All traffic of the run.
    pub bytes: Counted,
    /// Where the packets came from.
    pub mode: Mode,
    #[serde(skip)]
    began: Instant,
    #[serde(skip)]
    quiet: bool,
}

impl Report {
    /// A story that begins now; a quiet one prints nothing.
    pub fn new(mode: Mode, quiet: bool) -> Self {
        Self {
            steps: Vec::new(),
            video_bps: VideoRates::default(),
            roaming_bps: RoamingRates::default(),
            verdict_ms: 0.0,
            enforced_ms: Enforced::default(),
            bytes: Counted::default(),
            mode,
            began: Instant::now(),
            quiet,
        }
    }

    /// Notes and prints how a step ended; an error ends the story with it.
    pub fn step<T>(&mut self, name: &str, outcome: Result<(T, String)>) -> Result<T> {
        let at = self.began.elapsed();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.steps.push(Step { name: name.to_owned(), ok: outcome.is_ok(), at_ms });
        match outcome {
            Ok((value, seen)) => {
                self.tell(at, "ok", name, &seen);
                Ok(value)
            }
            Err(error) => {
                self.tell(at, "FAILED", name, &format!("{error:#}"));
                Err(error.context(format!("step `{name}`")))
            }
        }
    }

    /// Prints something that is no step.
    pub fn note(&self, text: &str) {
        self.tell(self.began.elapsed(), "", text, "");
    }

    fn tell(&self, at: Duration, mark: &str, name: &str, seen: &str) {
        if self.quiet {
            return;
        }
        let dash = if seen.is_empty() { "" } else { ": " };
        // A closed terminal is no reason to stop the story, let alone its cleaning up.
        let _ =
            writeln!(std::io::stdout().lock(), "{:6.1} s  {mark:<6} {name}{dash}{seen}", at.as_secs_f64());
    }

    /// True where there were steps and each held.
    pub fn held(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// The short table.
    pub fn table(&self) -> String {
        let rate = |bits: u64| format!("{:.2} Mbit/s", approximate(bits) / 1e6);
        let time =
            |milliseconds: Option<u64>| milliseconds.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["", "before", "after"]);
        table.add_row(["subscriber A's video", &rate(self.video_bps.before), &rate(self.video_bps.after)]);
        table.add_row([
            "subscriber B's roaming line",
            &rate(self.roaming_bps.limited),
            &rate(self.roaming_bps.with_pass),
        ]);
        let mut times = comfy_table::Table::new();
        times.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        times.set_header(["", "measured"]);
        times.add_row(["first packet to verdict", &format!("{:.1} ms", self.verdict_ms)]);
        times.add_row(["moment to enforced, gateway", &time(self.enforced_ms.gateway)]);
        times.add_row(["moment to enforced, netconf", &time(self.enforced_ms.netconf)]);
        let (ours, theirs) = match self.mode {
            Mode::Probe => ("frame bytes, probe", "frame bytes, interface's own counters"),
            Mode::Capture => ("frame bytes, counted", "frame bytes, lengths in the capture file"),
        };
        times.add_row([ours, &self.bytes.probe.to_string()]);
        times.add_row([theirs, &self.bytes.interface.to_string()]);
        format!("{table}\n{times}")
    }

    /// Writes it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
    }
}

/// For people to read.
#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn approximate(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_only_if_every_step_did() {
        let mut report = Report::new(Mode::Probe, true);
        assert!(!report.held(), "a story without steps shows nothing");
        report.step("one", Ok(((), String::new()))).unwrap();
        assert!(report.held());
        report.step::<()>("two", Err(anyhow::anyhow!("no"))).unwrap_err();
        assert!(!report.held());
    }

    #[test]
    fn the_report_has_the_promised_shape() {
        let mut report = Report::new(Mode::Capture, true);
        report.step("one", Ok(((), String::new()))).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        for pointer in [
            "/steps/0/name",
            "/steps/0/ok",
            "/steps/0/at_ms",
            "/video_bps/before",
            "/video_bps/after",
            "/roaming_bps/limited",
            "/roaming_bps/with_pass",
            "/verdict_ms",
            "/enforced_ms/gateway",
            "/enforced_ms/netconf",
            "/bytes/probe",
            "/bytes/interface",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer}");
        }
        assert_eq!(json["mode"], "capture");
    }
}
