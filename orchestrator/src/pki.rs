//! Certificates for the uplink, for operators who have no authority of their own.
//!
//! Owns one directory: `ca.pem`, `ca.key`, `server.pem`, `server.key`, and `agent-NAME.pem`, `agent-NAME.key` for each
//! agent. Keys are made here, mode 0600. Refuses to overwrite anything.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::config::is_agent_name;

/// How long the authority is good.
const CA_LIFE: Duration = Duration::days(3650);

/// How long a certificate it signs is good.
const LEAF_LIFE: Duration = Duration::days(730);

/// Clocks of gateways that run behind by no more than this take a fresh certificate at once.
const CLOCK_SLACK: Duration = Duration::hours(24);

/// Why no certificate was made. Nothing that was there was changed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file that would have been overwritten.
    #[error(
        "{0} is there already and is never overwritten: choose another directory, or add an agent with `usher pki agent NAME --dir DIR`"
    )]
    Exists(PathBuf),
    /// Half of a pair.
    #[error("{present} is there without {missing}: put the missing one back, or remove the other")]
    Half {
        /// The one there.
        present: PathBuf,
        /// The other.
        missing: PathBuf,
    },
    /// A name no agent can have.
    #[error("`{0}` is no name of an agent: expected 1 to 64 of a-z, 0-9, `-` and `.`")]
    AgentName(String),
    /// No name for the server.
    #[error("no server name: give the host name or address agents reach the orchestrator by")]
    NoServerName,
    /// The authority's files cannot be used.
    #[error("{path} cannot be used as the authority: {why}; make one with `usher pki init`")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A name that cannot stand in a certificate, or the crypto library's refusal.
    #[error("certificate for {subject} cannot be made: {source}")]
    Make {
        /// For whom.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The file system refused.
    #[error("{path} cannot be written: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A certificate and its key, PEM files both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

impl Pair {
    fn named(dir: &Path, stem: &str) -> Self {
        Self { certificate: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) }
    }
}

/// What `init` made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The authority.
    pub ca: Pair,
    /// The orchestrator's own.
    pub server: Pair,
    /// One for each agent, by name.
    pub agents: Vec<(String, Pair)>,
}

impl Made {
    /// What to copy where.
    pub fn instructions(&self) -> String {
        let mut text = format!(
            "orchestrator.yaml, agents.tls:\n  certificate: {}\n  key: {}\n  ca: {}\n",
            self.server.certificate.display(),
            self.server.key.display(),
            self.ca.certificate.display(),
        );
        for (name, pair) in &self.agents {
            text.push_str(&agent_instructions(name, pair, &self.ca.certificate));
        }
        text + &format!("keep {} where only you can read it: it signs agents\n", self.ca.key.display())
    }
}

/// What to copy to the gateway of one agent.
pub fn agent_instructions(name: &str, pair: &Pair, ca: &Path) -> String {
    format!(
        "copy to the gateway of agent {name}, for its agent.yaml:\n  {}\n  {}\n  {}\n\
         and add {name} to agents.allowed in orchestrator.yaml\n",
        pair.certificate.display(),
        pair.key.display(),
        ca.display(),
    )
}

/// Makes an authority, the server's certificate for `server_names` (host names or addresses) and one for each agent.
pub fn init(dir: &Path, server_names: &[String], agents: &[String]) -> Result<Made, PkiError> {
    if server_names.is_empty() {
        return Err(PkiError::NoServerName);
    }
    agents.iter().try_for_each(|name| check_name(name))?;
    let (ca, server) = (Pair::named(dir, "ca"), Pair::named(dir, "server"));
    for path in [&ca.certificate, &ca.key, &server.certificate, &server.key] {
        if path.exists() {
            return Err(PkiError::Exists(path.clone()));
        }
    }
    // All are made before the first is written: a bad name leaves no half of a set behind.
    let made = |source| PkiError::Make { subject: "the authority".to_owned(), source };
    let ca_key = KeyPair::generate().map_err(made)?;
    let ca_params = authority();
    let ca_certificate = ca_params.self_signed(&ca_key).map_err(made)?;
    let (ca_pem, ca_key_pem) = (ca_certificate.pem(), ca_key.serialize_pem());
    let issuer = Issuer::new(ca_params, ca_key);
    let server_pems = leaf(&issuer, server_names, ExtendedKeyUsagePurpose::ServerAuth)?;

    fs::create_dir_all(dir).map_err(|source| PkiError::Io { path: dir.to_owned(), source })?;
    write_pair(&ca, &ca_pem, &ca_key_pem)?;
    write_pair(&server, &server_pems.0, &server_pems.1)?;
    let agents = agents
        .iter()
        .map(|name| Ok((name.clone(), signed_agent(dir, &issuer, name)?)))
        .collect::<Result<_, PkiError>>()?;
    Ok(Made { ca, server, agents })
}

/// Makes the certificate of a further agent with the authority in `dir`. One that is there already is left as it is.
pub fn agent(dir: &Path, name: &str) -> Result<Pair, PkiError> {
    check_name(name)?;
    let ca = Pair::named(dir, "ca");
    let unusable = |path: &Path, why: String| PkiError::Authority { path: path.to_owned(), why };
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()));
    let key = KeyPair::from_pem(&read(&ca.key)?).map_err(|error| unusable(&ca.key, error.to_string()))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca.certificate)?, key)
        .map_err(|error| unusable(&ca.certificate, error.to_string()))?;
    signed_agent(dir, &issuer, name)
}

fn check_name(name: &str) -> Result<(), PkiError> {
    if is_agent_name(name) { Ok(()) } else { Err(PkiError::AgentName(name.to_owned())) }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "usher uplink authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_LIFE);
    params
}

/// A certificate and key in PEM for `names`, the first of which also stands in its subject.
fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
) -> Result<(String, String), PkiError> {
    let failed = |source| PkiError::Make { subject: names.join(", "), source };
    let mut params = CertificateParams::new(names).map_err(failed)?;
    if let Some(name) = names.first() {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    (params.not_before, params.not_after) = validity(LEAF_LIFE);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn signed_agent(dir: &Path, issuer: &Issuer<'_, KeyPair>, name: &str) -> Result<Pair, PkiError> {
    let pair = Pair::named(dir, &format!("agent-{name}"));
    match (pair.certificate.exists(), pair.key.exists()) {
        (true, true) => return Ok(pair),
        (true, false) => return Err(PkiError::Half { present: pair.certificate, missing: pair.key }),
        (false, true) => return Err(PkiError::Half { present: pair.key, missing: pair.certificate }),
        (false, false) => {}
    }
    let (certificate, key) = leaf(issuer, &[name.to_owned()], ExtendedKeyUsagePurpose::ClientAuth)?;
    write_pair(&pair, &certificate, &key)?;
    Ok(pair)
}

fn validity(life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SLACK, now + life)
}

fn write_pair(pair: &Pair, certificate: &str, key: &str) -> Result<(), PkiError> {
    write(&pair.key, key, 0o600)?;
    write(&pair.certificate, certificate, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(path.to_owned()),
        _ => PkiError::Io { path: path.to_owned(), source },
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made =
            init(dir.path(), &names(&["orchestrator.example.net", "127.0.0.1"]), &names(&["gw1"])).unwrap();
        for key in [&made.ca.key, &made.server.key, &made.agents[0].1.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
        assert!(made.instructions().contains("agent-gw1.pem"));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), &names(&["localhost"]), &[]).unwrap();
        let before = fs::read(&made.ca.key).unwrap();
        let error = init(dir.path(), &names(&["localhost"]), &[]).unwrap_err();
        assert!(matches!(&error, PkiError::Exists(path) if *path == made.ca.certificate), "{error}");
        assert_eq!(fs::read(&made.ca.key).unwrap(), before);
    }

    #[test]
    fn an_agent_added_twice_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &names(&["localhost"]), &[]).unwrap();
        let pair = agent(dir.path(), "gw2").unwrap();
        let before = fs::read(&pair.key).unwrap();
        assert_eq!(agent(dir.path(), "gw2").unwrap(), pair);
        assert_eq!(fs::read(&pair.key).unwrap(), before);
        fs::remove_file(&pair.key).unwrap();
        assert!(matches!(agent(dir.path(), "gw2"), Err(PkiError::Half { .. })));
    }

    #[test]
    fn bad_names_and_a_missing_authority_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("pki");
        assert!(matches!(
            init(&made, &names(&["localhost"]), &names(&["../gw"])),
            Err(PkiError::AgentName(_))
        ));
        assert!(matches!(init(&made, &[], &[]), Err(PkiError::NoServerName)));
        assert!(matches!(agent(&made, "gw1"), Err(PkiError::Authority { .. })));
        assert!(!made.exists());
    }
}
