//! The daemon's configuration file. `deploy/orchestrator.yaml` is its documented example.
//!
//! Owns shape, defaults and the check that what it names can be used. Paths are relative to the file itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use crate::days::RecordConfig;
use crate::elements::ElementsConfig;
use crate::error::FileError;
use crate::partners::PartnerConfig;

/// Longest name of an agent.
const NAME_MAX: usize = 64;

/// Everything the daemon is told.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the ledger and the link key live. Made where it is missing.
    pub state_dir: PathBuf,
    /// The operator's policy.
    pub policy: PathBuf,
    /// Plans, countries and subscribers.
    pub profiles: PathBuf,
    /// The uplinks of agents.
    pub agents: AgentsConfig,
    /// What accepts settings.
    #[serde(default)]
    pub elements: ElementsConfig,
    /// Messages and their links; needed as soon as the policy has an action that says something.
    #[serde(default)]
    pub advice: Option<AdviceConfig>,
    /// Whom to ask for stock and price before a partner's offer is made, by the name profiles have.
    #[serde(default)]
    pub partners: BTreeMap<String, PartnerConfig>,
    /// The operator's own way in.
    #[serde(default)]
    pub api: ApiConfig,
    /// Days kept to be played again; absent: none.
    #[serde(default)]
    pub record: Option<RecordConfig>,
    /// Where Prometheus reads; absent: nowhere.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
    /// What is written to standard error.
    #[serde(default)]
    pub log: LogConfig,
}

/// Uplinks of agents: gRPC under mutual TLS.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsConfig {
    /// Address to listen on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Who we are, and who vouches for agents.
    pub tls: MutualTls,
    /// Names of agents that are let in, as their certificates carry them.
    pub allowed: Vec<Spanned<String>>,
}

/// One end of mutual TLS. All files are PEM.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// Our certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the authorities that sign agents.
    pub ca: PathBuf,
}

/// A server's own end of TLS. Both files are PEM.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Our certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Messages and their links.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdviceConfig {
    /// What the links in messages begin with, as `https://advice.example.net`.
    pub public_url: Spanned<String>,
    /// Where the tap page is served, in plain HTTP for the operator's own TLS proxy.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Directory the messages are put into, one file each.
    pub outbox: PathBuf,
}

/// The operator's API.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Unix socket; whoever may write to it may do everything.
    pub socket: PathBuf,
    /// Also from afar.
    pub remote: Option<RemoteApiConfig>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/usher/orchestrator.sock"), remote: None }
    }
}

/// The API over TCP: TLS and a bearer token.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteApiConfig {
    /// Address to listen on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Who we are.
    pub tls: ServerTls,
    /// File that holds the token, mode 0600.
    pub token_file: PathBuf,
}

/// The metrics endpoint.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address to listen on; `/metrics` is served in plain HTTP.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

/// What is written to standard error. `RUST_LOG` goes before `level`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// A filter, as `info` or `info,usher_orchestrator::elements=debug`.
    #[serde(deserialize_with = "filter")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| FileError::whole(path, format!("cannot be read: {error}")))?;
        Self::parse(path, &text)
    }

    /// The configuration in `text`, whose file is `path`. Reads nothing.
    pub fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut config: Self =
            serde_saphyr::from_str(text).map_err(|error| FileError::of_yaml(path, text, &error))?;
        config.check(path, text)?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    fn check(&self, path: &Path, text: &str) -> Result<(), FileError> {
        let at = |spanned: &Spanned<String>, message: String| {
            let place = spanned.referenced;
            Err(FileError::at(path, text, place.line(), place.column(), message))
        };
        let mut seen = BTreeSet::new();
        for name in &self.agents.allowed {
            if !is_agent_name(&name.value) {
                return at(
                    name,
                    format!(
                        "`{}` is no name of an agent: expected 1 to {NAME_MAX} of a-z, 0-9, `-` and `.`",
                        name.value
                    ),
                );
            }
            if !seen.insert(&name.value) {
                return at(name, format!("agent `{}` stands here twice: remove one", name.value));
            }
        }
        if let Some(advice) = &self.advice {
            let url = &advice.public_url;
            let rest = url.value.strip_prefix("https://").or_else(|| url.value.strip_prefix("http://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
                return at(
                    url,
                    format!(
                        "`{}` is no URL to begin links with: expected `https://HOST[:PORT][/PATH]`",
                        url.value
                    ),
                );
            }
        }
        Ok(())
    }

    /// Makes every path relative to the directory the file is in.
    fn resolve(&mut self, base: &Path) {
        let resolve = |path: &mut PathBuf| *path = base.join(&*path);
        resolve(&mut self.state_dir);
        resolve(&mut self.policy);
        resolve(&mut self.profiles);
        resolve(&mut self.agents.tls.certificate);
        resolve(&mut self.agents.tls.key);
        resolve(&mut self.agents.tls.ca);
        for device in &mut self.elements.netconf {
            resolve(&mut device.known_hosts);
            resolve(&mut device.template);
            device.key.iter_mut().for_each(resolve);
            device.password.iter_mut().for_each(resolve);
        }
        if let Some(advice) = &mut self.advice {
            resolve(&mut advice.outbox);
        }
        if let Some(record) = &mut self.record {
            resolve(&mut record.dir);
        }
        self.partners.values_mut().filter_map(|partner| partner.ca.as_mut()).for_each(resolve);
        resolve(&mut self.api.socket);
        if let Some(remote) = &mut self.api.remote {
            resolve(&mut remote.tls.certificate);
            resolve(&mut remote.tls.key);
            resolve(&mut remote.token_file);
        }
    }

    /// Names of agents that are let in.
    pub fn allowed_agents(&self) -> BTreeSet<String> {
        self.agents.allowed.iter().map(|name| name.value.clone()).collect()
    }
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "`{text}` is no address to listen on: expected IP:PORT, as `0.0.0.0:7443`"
        ))
    })
}

fn filter<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    match tracing_subscriber::EnvFilter::try_new(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(serde::de::Error::custom(format!(
            "`{text}` is no log level: expected error, warn, info, debug or trace, or MODULE=LEVEL,... ({error})"
        ))),
    }
}

/// Names that can stand in a certificate's DNS name, a label and a file name.
pub fn is_agent_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
state_dir: state
policy: policy.yaml
profiles: /srv/profiles.yaml
agents:
  listen: 127.0.0.1:7443
  tls: {certificate: pki/server.pem, key: pki/server.key, ca: pki/ca.pem}
  allowed: [gw1, gw2]
advice: {public_url: 'https://advice.example.net', listen: 127.0.0.1:8080, outbox: outbox}
";

    fn parse(text: &str) -> Result<Config, FileError> {
        Config::parse(Path::new("/etc/usher/orchestrator.yaml"), text)
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/usher/state"));
        assert_eq!(config.profiles, Path::new("/srv/profiles.yaml"));
        assert_eq!(config.agents.tls.ca, Path::new("/etc/usher/pki/ca.pem"));
        assert_eq!(config.api.socket, Path::new("/run/usher/orchestrator.sock"));
        assert_eq!(config.allowed_agents().into_iter().collect::<Vec<_>>(), ["gw1", "gw2"]);
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let cases = [
            (GOOD.replace("state_dir", "state_directory"), (1, 1), "unknown field `state_directory`"),
            (
                GOOD.replace("127.0.0.1:7443", "everywhere"),
                (5, 11),
                "`everywhere` is no address to listen on: expected IP:PORT",
            ),
            (GOOD.replace("gw2", "gw1"), (7, 18), "agent `gw1` stands here twice"),
            (GOOD.replace("gw2", "'Gate Way'"), (7, 18), "`Gate Way` is no name of an agent"),
            (GOOD.replace("https://advice.example.net", "advice"), (8, 22), "`advice` is no URL"),
            (format!("{GOOD}log: {{format: xml}}\n"), (9, 15), "xml"),
            (format!("{GOOD}log: {{level: info=loud}}\n"), (9, 14), "`info=loud` is no log level"),
            (format!("{GOOD}policy: again.yaml\n"), (9, 1), "policy"),
            (
                GOOD.replace(
                    "  tls: {certificate: pki/server.pem, key: pki/server.key, ca: pki/ca.pem}\n",
                    "",
                ),
                (6, 3),
                "tls",
            ),
        ];
        for (text, place, expected) in cases {
            let error = parse(&text).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected), "{message}");
            assert_eq!(error.place(), place, "{message}");
            assert!(message.starts_with("/etc/usher/orchestrator.yaml:"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn the_documented_example_is_good() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/orchestrator.yaml");
        let config = Config::load(&example).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/usher-orchestrator"));
        let text = std::fs::read_to_string(&example).unwrap();
        // What is commented out is good too.
        let all = text
            .replace("  # netconf:", "  netconf:")
            .replace("  #   ", "    ")
            .replace("  # remote:", "  remote:");
        let all = Config::parse(&example, &all).unwrap();
        assert_eq!(all.elements.netconf[0].name, "bng-1");
        assert!(all.api.remote.is_some());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::load(Path::new("/nowhere/orchestrator.yaml")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/orchestrator.yaml: cannot be read"), "{error}");
    }
}
