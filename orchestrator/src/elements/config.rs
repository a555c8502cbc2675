//! The `elements:` section of the orchestrator's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use jiff::fmt::serde::unsigned_duration::friendly::compact::required as duration;

use crate::engine::io::Elements;

/// What accepts settings, and with how much patience.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElementsConfig {
    /// Every agent's gateway is an element by itself; here is only how it is treated.
    pub gateway: GatewayConfig,
    /// NETCONF devices.
    pub netconf: Vec<NetconfConfig>,
    /// How pushes are carried out.
    pub pushes: PushesConfig,
}

impl ElementsConfig {
    /// What accepts which settings, as the engine is told.
    pub fn accepted(&self) -> Elements {
        let others = self
            .netconf
            .iter()
            .map(|device| (format!("netconf:{}", device.name), device.settings.keys().cloned().collect()));
        Elements { gateways: self.gateway.settings.clone(), others: others.collect() }
    }
}

/// How gateways take part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Setting names gateways accept; absent: all.
    pub settings: Option<BTreeSet<String>>,
    /// How long an agent may take to answer one step.
    #[serde(with = "duration")]
    pub rpc: Duration,
    /// After how long an agent puts back by itself what was not confirmed.
    #[serde(with = "duration")]
    pub confirm: Duration,
    /// Plan and report; send nothing.
    pub dry_run: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self { settings: None, rpc: Duration::from_secs(5), confirm: Duration::from_secs(30), dry_run: false }
    }
}

/// One NETCONF device (RFC 6241 over SSH, RFC 6242).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetconfConfig {
    /// Its name in logs, metrics, the ledger and the CLI.
    pub name: String,
    /// `host:port`; the port NETCONF is registered for is 830.
    pub address: String,
    /// SSH user.
    pub user: String,
    /// Private key file, tried first.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// File that holds the password, tried where there is no key or it is refused.
    #[serde(default)]
    pub password: Option<PathBuf>,
    /// OpenSSH known_hosts file that holds the device's key. There is no way to do without.
    pub known_hosts: PathBuf,
    /// Template file with the device's payloads.
    pub template: PathBuf,
    /// What it accepts: setting name -> value -> what the template calls things by.
    pub settings: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
    /// How long connecting, from TCP to hello, may take.
    #[serde(default = "five_seconds", with = "duration")]
    pub connect: Duration,
    /// How long the device may take to answer one request.
    #[serde(default = "ten_seconds", with = "duration")]
    pub rpc: Duration,
    /// How long to try for the device's locks while somebody else holds them.
    #[serde(default = "five_seconds", with = "duration")]
    pub lock: Duration,
    /// After how long the device puts back by itself what was not confirmed (whole seconds).
    #[serde(default = "thirty_seconds", with = "duration")]
    pub confirm: Duration,
    /// Plan and report; send nothing that changes anything.
    #[serde(default)]
    pub dry_run: bool,
}

/// How pushes are carried out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushesConfig {
    /// How many pushes, of different subscribers, run at once.
    pub at_once: usize,
    /// How often a push is tried before it counts as failed; then it is tried on at the longest pause.
    pub attempts: u32,
    /// Pause after the first failed attempt; doubles with each further one.
    #[serde(with = "duration")]
    pub first_retry: Duration,
    /// The longest pause between two attempts.
    #[serde(with = "duration")]
    pub longest_retry: Duration,
}

impl Default for PushesConfig {
    fn default() -> Self {
        Self {
            at_once: 64,
            attempts: 60,
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_mins(1),
        }
    }
}

const fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

const fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

const fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_told_of_every_element_by_its_name() {
        let config = serde_json::json!({
            "gateway": {"settings": ["video"]},
            "netconf": [{
                "name": "bng-1", "address": "192.0.2.9:830", "user": "usher", "known_hosts": "hosts", "template": "bng.yaml",
                "settings": {"qos_up": {"interactive": {}}, "video": {"hd": {}, "sd": {}}},
            }],
        });
        let config: ElementsConfig = serde_json::from_value(config).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let accepted = config.accepted();
        assert_eq!(accepted.gateways, Some(names(&["video"])));
        assert_eq!(
            accepted.others,
            BTreeMap::from([("netconf:bng-1".to_owned(), names(&["qos_up", "video"]))])
        );
        assert_eq!(ElementsConfig::default().accepted(), Elements::default());
    }
}
