//! The agent's configuration file: one YAML file, units in the values, unknown keys refused.
//!
//! Owns the format (`deploy/agent.yaml` shows all of it) and the checks that need nothing but the file itself. Whether
//! the files it names can be used is for `usher-agent check` and for the start.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use usher_models::wire::FlowState;

pub use crate::capture::Pace;
use crate::error::FileError;
use crate::probe::{Leaf, Pattern, Shaping, Xdp};
use crate::service::{Effect, Service};
use crate::usage::{ANONYMOUS_SLOTS, MAX_ANONYMOUS};

/// The largest configuration file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Sessions at a time: as many as there are slots, less those of traffic of no session.
const MAX_SUBSCRIBERS: u32 = FlowState::MAX_SLOTS - 1 - ANONYMOUS_SLOTS;

/// Apps of sessions counted at a time: half a gigabyte of them.
const MAX_APPS: u32 = 1 << 22;

/// Prefixes of no session that are counted under a name, of all names together.
pub const MAX_ANONYMOUS_PREFIXES: u32 = 256;

/// Everything the agent is told by its operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The agent's name: what its certificate carries and what the orchestrator knows it by.
    pub agent: String,
    /// Where packets are seen.
    pub source: Source,
    /// Who is behind an address.
    pub sessions: PathBuf,
    /// Prefixes by the name under which traffic of no session is counted in them.
    pub anonymous: BTreeMap<String, Vec<IpNet>>,
    /// Networks, as MCC and MNC, on which a subscriber does not roam.
    pub home_plmns: Vec<String>,
    /// The operator's own additions to the catalogue of apps.
    pub catalogue: Option<PathBuf>,
    /// What settings do, and what holds for a roamer by default.
    pub service: Service,
    /// Turns all enforcement off: packets are counted and let through.
    pub bypass: bool,
    /// The way to the orchestrator.
    pub uplink: Uplink,
    /// Where the agent keeps what must survive.
    pub state_dir: PathBuf,
    /// How much of what the orchestrator has not acknowledged is kept.
    pub spool: Size,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    pub log: Log,
}

/// Where packets are seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By the probe in the kernel: counts everything, enforces.
    Probe(ProbeSource),
    /// By libpcap: counts what it sees, touches no packet.
    Capture(CaptureSource),
}

/// The probe's interfaces and sizes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSource {
    /// The interfaces towards the subscribers: `interfaces`, a list of names and patterns, or `interface`, a single one.
    #[serde(alias = "interface", deserialize_with = "one_or_several")]
    pub interfaces: Vec<Pattern>,
    /// Directory on a bpf file system where maps and links are kept while no agent runs.
    #[serde(default = "defaults::pin_dir")]
    pub pin_dir: PathBuf,
    /// Flows the kernel remembers at a time; beyond that, flows are counted without a name.
    #[serde(default = "defaults::max_flows")]
    pub max_flows: u32,
    /// Sessions at a time.
    #[serde(default = "defaults::max_subscribers")]
    pub max_subscribers: u32,
    /// Classes of sessions whose quality is measured at a time; beyond that, they are not measured.
    #[serde(default = "defaults::max_measured")]
    pub max_measured: u32,
    /// Apps of sessions whose bytes are counted at a time; beyond that, they are counted by class alone.
    #[serde(default = "defaults::max_apps")]
    pub max_apps: u32,
    /// Whether what subscribers send is met in the driver (XDP).
    #[serde(default)]
    pub xdp: Xdp,
    /// Packets above a rate wait in a queue; absent: they are dropped.
    pub shaping: Option<ShapingSource>,
}

/// How packets are shaped.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapingSource {
    /// The interfaces towards the internet, names and patterns; absent: what subscribers send is not shaped.
    #[serde(default, alias = "uplink", deserialize_with = "one_or_several")]
    pub uplinks: Vec<Pattern>,
    /// What packets wait in; absent: the best that the kernel has.
    pub leaf: Option<Leaf>,
}

impl From<ShapingSource> for Shaping {
    fn from(source: ShapingSource) -> Self {
        Self { uplinks: source.uplinks, leaf: source.leaf, ..Self::default() }
    }
}

/// A list of interfaces, or one.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pattern>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a name or pattern of interfaces, or a list of them")]
    enum Written {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::One(name) => vec![Pattern::new(name)],
        Written::Several(names) => names.into_iter().map(Pattern::new).collect(),
    })
}

/// A capture's input and pace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureSource {
    /// A live interface; this or `file`.
    pub interface: Option<String>,
    /// A capture file (pcap); this or `interface`.
    pub file: Option<PathBuf>,
    /// How fast a file is played.
    #[serde(default)]
    pub pace: Pace,
    /// Whether the agent ends with the file, once the orchestrator has acknowledged everything.
    #[serde(default)]
    pub exit_at_end: bool,
    /// Sessions at a time.
    #[serde(default = "defaults::max_subscribers")]
    pub max_subscribers: u32,
}

/// A prefix whose traffic of no session is counted under a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Anonymous {
    name: String,
    prefix: IpNet,
}

/// The way to the orchestrator: gRPC under mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// `https://host:port`.
    pub orchestrator: String,
    /// Certificates (PEM) that the orchestrator's must lead to.
    pub ca: PathBuf,
    /// The agent's own certificate (PEM).
    pub certificate: PathBuf,
    /// The agent's own key (PEM).
    pub key: PathBuf,
    /// The name in the orchestrator's certificate; absent: the host of `orchestrator`.
    pub server_name: Option<String>,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// How much: error, warn, info, debug, trace, or a filter as in `info,usher_agent::uplink=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An amount of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error =
            || format!("`{text}` is no size: expected a number and a unit, as in `64 MiB` (KiB, MiB, GiB)");
        let (number, unit) =
            text.trim().split_at(text.trim().find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?);
        let scale: u64 = match unit.trim() {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(error()),
        };
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return if tenths.is_multiple_of(10) {
                    write!(f, "{} {unit}", tenths / 10)
                } else {
                    write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

mod defaults {
    use std::path::PathBuf;

    use super::Size;

    pub(super) fn pin_dir() -> PathBuf {
        "/sys/fs/bpf/usher".into()
    }

    pub(super) fn max_flows() -> u32 {
        262_144
    }

    pub(super) fn max_subscribers() -> u32 {
        16_384
    }

    pub(super) fn max_measured() -> u32 {
        32_768
    }

    pub(super) fn max_apps() -> u32 {
        65_536
    }

    pub(super) fn state_dir() -> PathBuf {
        "/var/lib/usher-agent".into()
    }

    pub(super) fn spool() -> Size {
        Size(64 << 20)
    }
}

/// The file as it is written, before its parts are held against each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    agent: Spanned<String>,
    source: Spanned<Source>,
    sessions: PathBuf,
    #[serde(default)]
    anonymous: Vec<Spanned<Anonymous>>,
    #[serde(default)]
    home_plmns: Vec<Spanned<String>>,
    catalogue: Option<PathBuf>,
    #[serde(default)]
    service: BTreeMap<String, BTreeMap<String, Spanned<Effect>>>,
    roaming: Option<Spanned<Effect>>,
    #[serde(default)]
    bypass: bool,
    uplink: Spanned<Uplink>,
    #[serde(default = "defaults::state_dir")]
    state_dir: PathBuf,
    spool: Option<Spanned<Size>>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    log: Log,
}

impl Config {
    /// Reads and checks the file. Relative paths in it are meant from the directory it is in.
    pub fn load(file: &Path) -> Result<Self, FileError> {
        let text = FileError::read(file, MAX_FILE)?;
        Self::parse(file, &text)
    }

    /// [`Config::load`] of a text that is already read.
    pub fn parse(file: &Path, text: &str) -> Result<Self, FileError> {
        let written: Written = serde_saphyr::from_str(text).map_err(|error| FileError::yaml(file, &error))?;
        let base = file.parent().unwrap_or(Path::new(""));
        let resolve = |path: PathBuf| base.join(path);
        check_agent(file, &written.agent)?;
        for plmn in &written.home_plmns {
            if !(5..=6).contains(&plmn.value.len()) || !plmn.value.bytes().all(|byte| byte.is_ascii_digit()) {
                let why = format!("`{}` is no PLMN: expected MCC and MNC, 5 or 6 digits", plmn.value);
                return Err(FileError::at(file, plmn.referenced, why));
            }
        }
        let mut source = written.source.value;
        check_source(&source).map_err(|why| FileError::at(file, written.source.referenced, why))?;
        if let Source::Capture(capture) = &mut source {
            capture.file = capture.file.take().map(resolve);
        }
        check_uplink(&written.uplink.value)
            .map_err(|why| FileError::at(file, written.uplink.referenced, why))?;
        let uplink = written.uplink.value;
        let spool = match written.spool {
            Some(spool) if spool.value < Size(1 << 20) => {
                let why = format!("a spool of {} is too small: expected at least 1 MiB", spool.value);
                return Err(FileError::at(file, spool.referenced, why));
            }
            Some(spool) => spool.value,
            None => defaults::spool(),
        };
        Ok(Self {
            file: file.to_owned(),
            agent: written.agent.value,
            source,
            sessions: resolve(written.sessions),
            anonymous: check_anonymous(file, written.anonymous)?,
            home_plmns: written.home_plmns.into_iter().map(|plmn| plmn.value).collect(),
            catalogue: written.catalogue.map(resolve),
            service: check_service(file, written.service, written.roaming)?,
            bypass: written.bypass,
            uplink: Uplink {
                ca: resolve(uplink.ca),
                certificate: resolve(uplink.certificate),
                key: resolve(uplink.key),
                ..uplink
            },
            state_dir: resolve(written.state_dir),
            spool,
            metrics: written.metrics,
            log: written.log,
        })
    }

    /// The bound on sessions, whatever the source.
    pub fn max_subscribers(&self) -> u32 {
        match &self.source {
            Source::Probe(probe) => probe.max_subscribers,
            Source::Capture(capture) => capture.max_subscribers,
        }
    }
}

fn check_agent(file: &Path, agent: &Spanned<String>) -> Result<(), FileError> {
    let name = &agent.value;
    // What an orchestrator can let in: the name stands in the certificate as a DNS name.
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) || name.starts_with(['-', '.']) {
        let why = format!("`{name}` is no agent name: expected 1 to 63 of a-z, 0-9, `-` and `.`");
        return Err(FileError::at(file, agent.referenced, why));
    }
    Ok(())
}

fn check_source(source: &Source) -> Result<(), String> {
    let sizes = match source {
        Source::Probe(probe) => {
            if probe.interfaces.is_empty() {
                return Err(
                    "`interfaces` is empty: expected names or patterns, as in `[eth1, ppp*]`".to_owned()
                );
            }
            let uplinks = probe.shaping.iter().flat_map(|shaping| &shaping.uplinks);
            let mut names = probe.interfaces.iter().chain(uplinks);
            names.try_for_each(|interface| check_interface(&interface.to_string()))?;
            if probe.max_apps > MAX_APPS {
                return Err(format!(
                    "`max_apps: {}` is out of range: expected 0 to {MAX_APPS}",
                    probe.max_apps
                ));
            }
            if !probe.pin_dir.is_absolute() {
                return Err("`pin_dir` must be an absolute path on a bpf file system".to_owned());
            }
            [
                ("max_flows", probe.max_flows, 1 << 24),
                ("max_subscribers", probe.max_subscribers, MAX_SUBSCRIBERS),
            ]
        }
        Source::Capture(capture) => {
            match (&capture.interface, &capture.file) {
                (Some(interface), None) => check_interface(interface)?,
                (None, Some(_)) => {}
                _ => {
                    return Err("a capture is of one thing: expected either `interface` or `file`".to_owned());
                }
            }
            if capture.file.is_none() && (capture.exit_at_end || capture.pace != Pace::RealTime) {
                return Err("`pace` and `exit_at_end` are for a capture file: expected `file`".to_owned());
            }
            [("max_subscribers", capture.max_subscribers, MAX_SUBSCRIBERS); 2]
        }
    };
    for (name, size, most) in sizes {
        if !(1..=most).contains(&size) {
            return Err(format!("`{name}: {size}` is out of range: expected 1 to {most}"));
        }
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<(), String> {
    // The kernel's own bound (IFNAMSIZ) and the characters its `dev_valid_name` refuses.
    if name.is_empty()
        || name.len() > 15
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        return Err(format!("`{name}` is no interface name: expected 1 to 15 characters, as in `eth0`"));
    }
    Ok(())
}

fn check_anonymous(
    file: &Path,
    written: Vec<Spanned<Anonymous>>,
) -> Result<BTreeMap<String, Vec<IpNet>>, FileError> {
    let mut by_name: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let mut prefixes = 0;
    for entry in written {
        let place = entry.referenced;
        let wrong = |why: String| Err(FileError::at(file, place, why));
        let Anonymous { name, prefix } = entry.value;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            return wrong(format!("`{name}` is no name: expected 1 to 32 of a-z, 0-9, `-` and `_`"));
        }
        if prefix != prefix.trunc() {
            return wrong(format!("`{prefix}` is no prefix: expected `{}`", prefix.trunc()));
        }
        // One table for both families: IPv4 addresses are in this part of it.
        let ipv4 = IpNet::V6(Ipv6Net::new_assert([0, 0, 0, 0, 0, 0xffff, 0, 0].into(), 96));
        if prefix.contains(&ipv4) {
            return wrong(format!("`{prefix}` takes in IPv4: expected `2000::/3` or a longer prefix"));
        }
        if by_name.values().flatten().any(|other| *other == prefix) {
            return wrong(format!("`{prefix}` is there already"));
        }
        by_name.entry(name).or_default().push(prefix);
        prefixes += 1;
        if by_name.len() > MAX_ANONYMOUS || prefixes > MAX_ANONYMOUS_PREFIXES {
            return wrong(format!(
                "too much: expected at most {MAX_ANONYMOUS} names and {MAX_ANONYMOUS_PREFIXES} prefixes"
            ));
        }
    }
    Ok(by_name)
}

fn check_uplink(uplink: &Uplink) -> Result<(), String> {
    let url: tonic::transport::Uri = uplink
        .orchestrator
        .parse()
        .map_err(|error| format!("`orchestrator: {}`: {error}", uplink.orchestrator))?;
    if url.scheme_str() != Some("https") || url.host().is_none() {
        return Err(format!(
            "`orchestrator: {}` is no address of an orchestrator: expected `https://host:port`",
            uplink.orchestrator
        ));
    }
    Ok(())
}

fn check_service(
    file: &Path,
    written: BTreeMap<String, BTreeMap<String, Spanned<Effect>>>,
    roaming: Option<Spanned<Effect>>,
) -> Result<Service, FileError> {
    let mut settings = BTreeMap::new();
    for (name, values) in written {
        let gates = values.values().filter(|effect| effect.value.gate.is_some()).count();
        for (value, effect) in &values {
            let at =
                |why: String| FileError::at(file, effect.referenced, format!("`{name}: {value}`: {why}"));
            effect.value.check().map_err(at)?;
            if gates > 0 && effect.value.gate.is_none() {
                return Err(at(
                    "other values have a `gate`: expected one here too (pass, limit or block)".to_owned()
                ));
            }
        }
        settings.insert(name, values.into_iter().map(|(value, effect)| (value, effect.value)).collect());
    }
    let roaming = match roaming {
        None => Effect::PASS,
        Some(effect) => {
            let at = |why: String| FileError::at(file, effect.referenced, format!("`roaming`: {why}"));
            effect.value.check().map_err(at)?;
            if effect.value.gate.is_none() {
                return Err(at("expected a `gate` (pass, limit or block)".to_owned()));
            }
            effect.value
        }
    };
    Ok(Service::new(settings, roaming))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/agent.yaml");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("etc/agent.yaml"), text).map_err(|error| error.to_string())
    }

    fn refusal(from: &str, to: &str) -> String {
        assert!(EXAMPLE.contains(from), "{from}");
        parse(&EXAMPLE.replacen(from, to, 1)).unwrap_err()
    }

    #[test]
    fn the_shipped_example_is_read() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.agent, "gw-1");
        assert_eq!(config.spool, Size(64 << 20));
        assert!(matches!(&config.source, Source::Probe(probe) if probe.interfaces == [Pattern::new("eth1")]));
        assert_eq!(config.service.len(), (6, 14));
    }

    #[test]
    fn prefixes_under_a_name_are_checked() {
        let read = |entries: &str| {
            let start = EXAMPLE.find("anonymous:").unwrap();
            let end = start + EXAMPLE[start..].find("\n\n").unwrap();
            parse(&format!("{}anonymous: [{entries}]{}", &EXAMPLE[..start], &EXAMPLE[end..]))
        };
        let both = "{name: guests, prefix: 100.64.0.0/10}, {name: guests, prefix: 2001:db8::/32}";
        assert_eq!(read(both).unwrap().anonymous["guests"].len(), 2);
        for (wrong, expected) in [
            ("{name: guests, prefix: 100.64.0.1/10}", "expected `100.64.0.0/10`"),
            ("{name: Guests, prefix: 100.64.0.0/10}", "`Guests` is no name"),
            ("{name: all, prefix: '::/0'}", "takes in IPv4"),
            ("{name: a, prefix: 10.0.0.0/8}, {name: b, prefix: 10.0.0.0/8}", "is there already"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let many: Vec<_> =
            (0..=MAX_ANONYMOUS).map(|n| format!("{{name: n{n}, prefix: 10.{n}.0.0/16}}")).collect();
        assert!(read(&many.join(", ")).unwrap_err().contains("at most 64 names"));
    }

    #[test]
    fn relative_paths_are_meant_from_the_file() {
        let config = parse(&EXAMPLE.replace("/etc/usher/sessions.yaml", "sessions.yaml")).unwrap();
        assert_eq!(config.sessions, Path::new("etc/sessions.yaml"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_was_expected() {
        for (from, to, place, expected) in [
            ("agent: gw-1", "agent: gw 1", "etc/agent.yaml:", "expected 1 to 63 of a-z"),
            ("agent: gw-1", "agent: GW_1", "etc/agent.yaml:", "`GW_1` is no agent name"),
            ("state_dir:", "state_dri:", "etc/agent.yaml:", "state_dri"),
            ("spool: 64 MiB", "spool: 64", "etc/agent.yaml:", "expected a number and a unit"),
            ("spool: 64 MiB", "spool: 64 KiB", "etc/agent.yaml:", "expected at least 1 MiB"),
            ("down: 1.5 Mbit/s", "down: 1.5", "etc/agent.yaml:", "expected a number and a unit"),
            ("class: video, down: 1.5 Mbit/s", "class: vdeo, down: 1.5 Mbit/s", "etc/agent.yaml:", "vdeo"),
            ("https://", "http://", "etc/agent.yaml:", "expected `https://host:port`"),
            (
                "dscp: ef",
                "dscp: fast",
                "etc/agent.yaml:",
                "`fast` is no DSCP: expected a number from 0 to 63",
            ),
            ("\"00101\"", "\"1\"", "etc/agent.yaml:", "5 or 6 digits"),
            ("interfaces: [eth1]", "interfaces: [eth1, a/b]", "etc/agent.yaml:", "no interface name"),
            ("interfaces: [eth1]", "interfaces: []", "etc/agent.yaml:", "expected names or patterns"),
            ("interfaces: [eth1]", "interfaces: {eth1: 1}", "etc/agent.yaml:", "or a list of them"),
            ("interfaces: [eth1]", "interface: eth1\n    interfaces: [eth2]", "etc/agent.yaml:", "interface"),
            ("day: {gate: pass}", "day: {}", "etc/agent.yaml:", "expected one here too"),
        ] {
            let error = refusal(from, to);
            assert!(error.starts_with(place), "{error}");
            assert!(error.contains(expected), "{error}");
            let mut parts = error.split(':').skip(1);
            assert!(
                parts.next().is_some_and(|line| line.parse::<u32>().is_ok_and(|line| line > 1)),
                "{error}"
            );
            assert!(parts.next().is_some_and(|column| column.parse::<u32>().is_ok()), "{error}");
        }
    }

    #[test]
    fn shaping_is_asked_for_and_what_it_is_on_is_checked() {
        let shaped = |lines: &str| {
            let with = format!("interfaces: [eth1]\n    shaping: {lines}");
            parse(&EXAMPLE.replace("interfaces: [eth1]", &with)).map(|config| match config.source {
                Source::Probe(probe) => probe.shaping.map(Shaping::from),
                Source::Capture(_) => None,
            })
        };
        assert_eq!(shaped("{}").unwrap(), Some(Shaping::default()));
        let uplinks = vec![Pattern::new("eth0"), Pattern::new("wan*")];
        let both = Shaping { uplinks, leaf: Some(Leaf::FqCodel), ..Shaping::default() };
        assert_eq!(shaped("{uplinks: [eth0, wan*], leaf: fq_codel}").unwrap(), Some(both));
        assert!(shaped("{uplinks: [a/b]}").unwrap_err().contains("no interface name"));
        assert!(shaped("{leaf: codel}").unwrap_err().contains("fq_codel"));
    }

    #[test]
    fn one_interface_is_a_list_of_one() {
        let interfaces = |to: &str| {
            let config = parse(&EXAMPLE.replacen("interfaces: [eth1]", to, 1)).unwrap();
            let Source::Probe(probe) = config.source else { panic!("a probe") };
            probe.interfaces.iter().map(Pattern::to_string).collect::<Vec<_>>()
        };
        assert_eq!(interfaces("interface: eth1"), ["eth1"]);
        assert_eq!(interfaces("interfaces: eth1"), ["eth1"]);
        assert_eq!(interfaces("interfaces: [eth1, \"ppp*\", eth2.*]"), ["eth1", "ppp*", "eth2.*"]);
    }

    #[test]
    fn a_capture_is_of_a_file_or_an_interface_but_not_both() {
        let source = |text: &str| {
            let start = EXAMPLE.find("source:").unwrap();
            let end = start + EXAMPLE[start..].find("\n\n").unwrap();
            parse(&format!("{}source: {{capture: {text}}}{}", &EXAMPLE[..start], &EXAMPLE[end..]))
        };
        assert!(source("{file: a.pcap, exit_at_end: true, pace: fast}").is_ok());
        assert!(source("{interface: eth1}").is_ok());
        assert!(source("{file: a.pcap, interface: eth1}").unwrap_err().contains("either"));
        assert!(source("{interface: eth1, exit_at_end: true}").unwrap_err().contains("expected `file`"));
    }

    #[test]
    fn sizes_are_printed_as_they_are_read() {
        for text in ["64 MiB", "1 KiB", "3 GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn reading_a_config_never_panics(text in ".{0,400}") {
            let _ = parse(&text);
        }
    }
}
