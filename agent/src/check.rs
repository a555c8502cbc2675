//! `usher-agent check`: would the agent start with this configuration? Touches neither the network nor the kernel's state.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::capture::CaptureError;
use crate::capture::file::CaptureFile;
use crate::catalogue::{self, LoadError};
use crate::config::{Config, ShapingSource, Size, Source};
use crate::dataplane::probe_config;
use crate::probe::{self, Leaf, ProbeError, Xdp};
use crate::sessions::{Sessions, SessionsError};
use crate::uplink::{UplinkError, client};

/// Why the agent would not start.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The sessions file.
    #[error(transparent)]
    Sessions(Box<SessionsError>),
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] LoadError),
    /// Certificates, key or address.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The capture file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The probe's interfaces.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// No such interface.
    #[error("find interface `{name}`: this machine has {}", present.join(", "))]
    NoInterface {
        /// As configured.
        name: String,
        /// What there is.
        present: Vec<String>,
    },
    /// More sessions than slots.
    #[error("{sessions} sessions in {file}, but `max_subscribers: {slots}`: raise it")]
    TooManySessions {
        /// In the file.
        sessions: usize,
        /// The file.
        file: String,
        /// As configured.
        slots: u32,
    },
    /// The log filter.
    #[error("`log.level: {level}`: {why}; expected error, warn, info, debug, trace, or a filter")]
    Log {
        /// As configured.
        level: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What the configuration amounts to.
#[derive(Debug)]
pub struct Summary {
    lines: Vec<(&'static str, String)>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(what, text)| writeln!(f, "{what:<12} {text}"))
    }
}

/// Reads everything the configuration names.
pub fn check(config: &Config) -> Result<Summary, CheckError> {
    log_filter(&config.log.level)?;
    let sessions = Sessions::load(&config.sessions, &config.home_plmns)
        .map_err(|error| CheckError::Sessions(Box::new(error)))?;
    let slots = config.max_subscribers();
    if sessions.len() > usize::try_from(slots).unwrap_or(usize::MAX) {
        let file = config.sessions.display().to_string();
        return Err(CheckError::TooManySessions { sessions: sessions.len(), file, slots });
    }
    let roaming = sessions.iter().filter(|session| session.roaming).count();
    let catalogue = catalogue::load(config.catalogue.as_deref())?;
    client::endpoint(&config.uplink)?;
    let mut lines = vec![("agent", config.agent.clone())];
    match &config.source {
        Source::Probe(probe) => {
            let on = probe::would_be_on(&probe_config(probe))?;
            let on = if on.is_empty() { "no interface yet".to_owned() } else { on.join(", ") };
            let meant: Vec<String> = probe.interfaces.iter().map(ToString::to_string).collect();
            let pins = probe.pin_dir.display();
            lines.push(("source", format!("probe on {on} ({}), pinned in {pins}", meant.join(", "))));
            lines.push(("xdp", in_driver(probe.xdp).to_owned()));
            lines.push(("rates", rates(probe.shaping.as_ref())?));
            let costs = probe::memory(&probe_config(probe), possible_cpus());
            let all = Size(costs.iter().map(|cost| cost.bytes).sum());
            lines.push(("memory", format!("{all} of the kernel's at the most, of which")));
            for cost in costs {
                lines.push((
                    "",
                    format!("{:>12} for {} {}", Size(cost.bytes).to_string(), cost.limit, cost.what),
                ));
            }
        }
        Source::Capture(capture) => {
            if let Some(name) = &capture.interface {
                interface(name)?;
                lines.push(("source", format!("capture of interface {name} (dry run)")));
            }
            if let Some(file) = &capture.file {
                CaptureFile::open(file)?;
                lines.push(("source", format!("capture file {} (dry run)", file.display())));
            }
        }
    }
    let (settings, values) = config.service.len();
    let home = if config.home_plmns.is_empty() { "none".to_owned() } else { config.home_plmns.join(", ") };
    lines.extend([
        ("sessions", format!("{} in {}, {roaming} roaming", sessions.len(), config.sessions.display())),
        ("home", home),
        ("catalogue", format!("{} rules for names and addresses", catalogue.len())),
        ("service", format!("{settings} settings, {values} values")),
        ("enforcement", if config.bypass { "off (bypass)".to_owned() } else { "on".to_owned() }),
        ("uplink", config.uplink.orchestrator.clone()),
        ("state", format!("{}, spool of {}", config.state_dir.display(), config.spool)),
        ("metrics", config.metrics.map_or("not served".to_owned(), |at| format!("http://{at}/metrics"))),
    ]);
    Ok(Summary { lines })
}

/// Where what subscribers send is met.
const fn in_driver(xdp: Xdp) -> &'static str {
    match xdp {
        Xdp::Off => "off: what subscribers send is met by traffic control",
        Xdp::Auto => {
            "auto: what subscribers send is met in the driver where it can be, else by traffic control"
        }
        Xdp::Native => "native: what subscribers send is met in the driver",
    }
}

/// How rates are kept.
fn rates(shaping: Option<&ShapingSource>) -> Result<String, ProbeError> {
    let Some(shaping) = shaping else { return Ok("policed: packets above them are dropped".to_owned()) };
    let leaf = match Leaf::choose(shaping.leaf) {
        Ok(leaf) => leaf.name(),
        Err(ProbeError::NotPermitted { .. }) => "the best there is, which only root is told",
        Err(error) => return Err(error),
    };
    let uplinks: Vec<String> = shaping.uplinks.iter().map(ToString::to_string).collect();
    let up = if uplinks.is_empty() {
        "what subscribers send is policed".to_owned()
    } else {
        format!("what subscribers send on {}", uplinks.join(", "))
    };
    let most = probe::MAX_CLASSES;
    Ok(format!("shaped by htb and {leaf}, {up}; at most {most} classes an interface, the rest is policed"))
}

/// The log filter of the configuration.
pub fn log_filter(level: &str) -> Result<tracing_subscriber::EnvFilter, CheckError> {
    tracing_subscriber::EnvFilter::try_new(level)
        .map_err(|error| CheckError::Log { level: level.to_owned(), why: error.to_string() })
}

fn interface(name: &str) -> Result<(), CheckError> {
    let interfaces = Path::new("/sys/class/net");
    if interfaces.join(name).exists() {
        return Ok(());
    }
    let mut present: Vec<String> = fs::read_dir(interfaces)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    present.sort_unstable();
    Err(CheckError::NoInterface { name: name.to_owned(), present })
}

/// CPUs that may ever come up: what per-CPU maps are sized by.
fn possible_cpus() -> u64 {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u64>().ok());
    last.map_or(1, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_named_with_those_there_are() {
        let error = interface("no-such-if").unwrap_err().to_string();
        assert!(error.contains("`no-such-if`") && error.contains("lo"), "{error}");
    }
}
