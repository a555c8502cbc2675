//! SSH to a device (RFC 6242): TCP, handshake, host key, login, subsystem, hellos. Blocking, with a bound on every wait.
//!
//! The host key is checked before anything of ours is sent but the key exchange. `flush()` is never called on the
//! channel: libssh2 takes it as leave to throw unread input away.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ssh2::{CheckResult, HashType, KnownHostFileKind, MethodType};

use super::error::NetconfError;
use super::session::{Event, Reply, Session};
use crate::elements::NetconfConfig;

/// Longest wait for the answer to the first request of a session. Some servers lose it; a new session does.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// A request that asks for nothing.
const PROBE: &str = r#"<get-config><source><running/></source><filter type="subtree"></filter></get-config>"#;

/// An open session over SSH.
pub(super) struct Link {
    ssh: ssh2::Session,
    channel: ssh2::Channel,
    session: Session,
}

impl Link {
    /// Connects and proves that requests are answered; connects a second time where the first one is not.
    pub(super) fn open(config: &NetconfConfig) -> Result<Self, NetconfError> {
        let first = FIRST_ANSWER.min(config.rpc);
        let mut link = Self::connect(config)?;
        if let Err(NetconfError::TimedOut(_) | NetconfError::Lost(_)) = link.call(PROBE, first) {
            link = Self::connect(config)?;
            link.call(PROBE, config.rpc)?;
        }
        Ok(link)
    }

    /// What the device announces.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// One request and its answer. After an error the link is of no use any more.
    pub(super) fn call(&mut self, operation: &str, timeout: Duration) -> Result<Reply, NetconfError> {
        let deadline = Instant::now() + timeout;
        let expected = self.session.request(operation);
        self.send(deadline, timeout)?;
        loop {
            while let Some(event) = self.session.next_event() {
                match event {
                    // An answer to something not understood bears no id; only one request is ever under way.
                    Event::Reply(id, reply) if id == expected || id == 0 => return Ok(reply),
                    Event::Reply(..) | Event::Notification | Event::Open => {}
                }
            }
            self.read(deadline, timeout)?;
        }
    }

    /// False where the device has closed the session meanwhile. Does not wait.
    pub(super) fn is_alive(&mut self) -> bool {
        self.ssh.set_blocking(false);
        let mut buffer = [0_u8; 4096];
        let alive = match self.channel.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => self.session.receive(&buffer[..length]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        self.ssh.set_blocking(true);
        while self.session.next_event().is_some() {}
        alive && !self.channel.eof()
    }

    /// Tells the device that we are still there.
    pub(super) fn keep_alive(&mut self) -> bool {
        self.ssh.keepalive_send().is_ok()
    }

    fn connect(config: &NetconfConfig) -> Result<Self, NetconfError> {
        let deadline = Instant::now() + config.connect;
        let failed = |why: String| NetconfError::Connect { address: config.address.clone(), why };
        let (host, port) = host_and_port(&config.address)?;
        let tcp = connect_tcp(host, port, deadline).map_err(|error| failed(error.to_string()))?;
        let mut ssh = ssh2::Session::new().map_err(|error| failed(error.to_string()))?;
        prefer_known_types(&ssh, &config.known_hosts, host, port);
        ssh.set_tcp_stream(tcp);
        bound(&ssh, deadline);
        ssh.handshake().map_err(|error| failed(format!("SSH handshake: {}", error.message())))?;
        check_host_key(&ssh, config, host, port)?;
        bound(&ssh, deadline);
        log_in(&ssh, config)?;
        bound(&ssh, deadline);
        let mut channel =
            ssh.channel_session().map_err(|error| failed(format!("SSH channel: {}", error.message())))?;
        channel
            .subsystem("netconf")
            .map_err(|error| failed(format!("SSH subsystem `netconf`: {}", error.message())))?;
        ssh.set_keepalive(true, 10);
        let mut link = Self { ssh, channel, session: Session::new() };
        link.send(deadline, config.connect)?;
        loop {
            match link.session.next_event() {
                Some(Event::Open) => return Ok(link),
                Some(_) => {}
                None => link.read(deadline, config.connect).map_err(|error| match error {
                    NetconfError::TimedOut(_) => failed(format!("no hello within {:?}", config.connect)),
                    other => other,
                })?,
            }
        }
    }

    fn send(&mut self, deadline: Instant, timeout: Duration) -> Result<(), NetconfError> {
        let output = self.session.take_output();
        let mut left = output.as_slice();
        while !left.is_empty() {
            self.wait_until(deadline, timeout)?;
            match self.channel.write(left) {
                Ok(0) => return Err(NetconfError::Lost("the device takes no more bytes".to_owned())),
                Ok(written) => left = &left[written..],
                Err(error) => return Err(ended(&error, timeout)),
            }
        }
        Ok(())
    }

    fn read(&mut self, deadline: Instant, timeout: Duration) -> Result<(), NetconfError> {
        self.wait_until(deadline, timeout)?;
        let mut buffer = [0_u8; 16 << 10];
        match self.channel.read(&mut buffer) {
            Ok(0) => Err(NetconfError::Lost("closed by the device".to_owned())),
            Ok(length) => Ok(self.session.receive(&buffer[..length])?),
            Err(error) => Err(ended(&error, timeout)),
        }
    }

    fn wait_until(&self, deadline: Instant, timeout: Duration) -> Result<(), NetconfError> {
        if Instant::now() >= deadline {
            return Err(NetconfError::TimedOut(timeout));
        }
        bound(&self.ssh, deadline);
        Ok(())
    }
}

/// What libssh2 does from here on ends at `deadline`. Zero would mean "no bound" to it.
fn bound(ssh: &ssh2::Session, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    ssh.set_timeout(u32::try_from(left).unwrap_or(u32::MAX).max(1));
}

fn ended(error: &std::io::Error, timeout: Duration) -> NetconfError {
    if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) {
        NetconfError::TimedOut(timeout)
    } else {
        NetconfError::Lost(error.to_string())
    }
}

/// `host:port`, with an IPv6 address in brackets.
pub(super) fn host_and_port(address: &str) -> Result<(&str, u16), NetconfError> {
    let wrong = || NetconfError::Connect {
        address: address.to_owned(),
        why: "expected `host:port`, as in `bng1.example:830` or `[2001:db8::1]:830`".to_owned(),
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').ok_or_else(wrong)?,
        None if host.contains(':') || host.is_empty() => return Err(wrong()),
        None => host,
    };
    Ok((host, port))
}

fn connect_tcp(host: &str, port: u16, deadline: Instant) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Keys of `host` in a known_hosts file: (type, base64). Hashed names are left to libssh2's own check.
fn known_keys(known_hosts: &Path, host: &str, port: u16) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(known_hosts).unwrap_or_default();
    let with_port = format!("[{host}]:{port}");
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let names = fields.next().filter(|names| !names.starts_with(['#', '@']))?;
            let ours = names.split(',').any(|name| name == with_port || name == host);
            let (kind, key) = (fields.next()?, fields.next()?);
            ours.then(|| (kind.to_owned(), key.to_owned()))
        })
        .collect()
}

/// Asks the device first for a key of a type we know it by; it may have several.
fn prefer_known_types(ssh: &ssh2::Session, known_hosts: &Path, host: &str, port: u16) {
    let mut types: Vec<&str> = Vec::new();
    let known = known_keys(known_hosts, host, port);
    for (kind, _) in &known {
        match kind.as_str() {
            "ssh-rsa" => types.extend(["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]),
            other => types.push(other),
        }
    }
    let supported = ssh.supported_algs(MethodType::HostKey).unwrap_or_default();
    types.extend(supported.iter().filter(|kind| **kind != "ssh-dss"));
    types.retain(|kind| supported.contains(kind));
    if !types.is_empty() {
        // A refusal leaves libssh2's own order, which is only less likely to meet the key we know.
        let _ = ssh.method_pref(MethodType::HostKey, &types.join(","));
    }
}

fn check_host_key(
    ssh: &ssh2::Session,
    config: &NetconfConfig,
    host: &str,
    port: u16,
) -> Result<(), NetconfError> {
    let unusable =
        |why: String| NetconfError::File { what: "known_hosts", path: config.known_hosts.clone(), why };
    let mut known = ssh.known_hosts().map_err(|error| unusable(error.to_string()))?;
    known
        .read_file(&config.known_hosts, KnownHostFileKind::OpenSSH)
        .map_err(|error| unusable(error.message().to_owned()))?;
    let shown = ssh.host_key_hash(HashType::Sha256).map_or_else(String::new, fingerprint);
    let (key, _) = ssh.host_key().ok_or_else(|| NetconfError::Connect {
        address: config.address.clone(),
        why: "the device shows no host key".to_owned(),
    })?;
    match known.check_port(host, port, key) {
        CheckResult::Match => Ok(()),
        CheckResult::NotFound => Err(NetconfError::HostKeyUnknown {
            address: config.address.clone(),
            known_hosts: config.known_hosts.clone(),
            seen: shown,
        }),
        CheckResult::Mismatch => Err(NetconfError::HostKeyChanged {
            address: config.address.clone(),
            known_hosts: config.known_hosts.clone(),
            expected: expected(&known_keys(&config.known_hosts, host, port)),
            seen: shown,
        }),
        CheckResult::Failure => Err(unusable("the key could not be checked against it".to_owned())),
    }
}

fn expected(known: &[(String, String)]) -> String {
    let mut text = String::new();
    for (kind, key) in known {
        let separator = if text.is_empty() { "" } else { ", " };
        let print = STANDARD.decode(key).ok().and_then(|key| sha256(&key)).map(|hash| fingerprint(&hash));
        let _ = write!(text, "{separator}{kind} {}", print.as_deref().unwrap_or("(unreadable)"));
    }
    if text.is_empty() { "another key under a hashed name".to_owned() } else { text }
}

/// As OpenSSH prints it.
fn fingerprint(hash: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(hash))
}

fn sha256(bytes: &[u8]) -> Option<Vec<u8>> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    Some(suite.common.hash_provider.hash(bytes).as_ref().to_vec())
}

/// Key, then password, then the password where it is asked for.
fn log_in(ssh: &ssh2::Session, config: &NetconfConfig) -> Result<(), NetconfError> {
    let mut tried = Vec::new();
    if let Some(key) = &config.key {
        if let Err(error) = std::fs::metadata(key) {
            return Err(NetconfError::File {
                what: "private key",
                path: key.clone(),
                why: error.to_string(),
            });
        }
        match ssh.userauth_pubkey_file(&config.user, None, key, None) {
            Ok(()) => return Ok(()),
            Err(error) => tried.push(format!("key {}: {}", key.display(), error.message())),
        }
    }
    if let Some(path) = &config.password {
        let password = std::fs::read_to_string(path).map_err(|error| NetconfError::File {
            what: "password file",
            path: path.clone(),
            why: error.to_string(),
        })?;
        let password = password.trim_end_matches(['\r', '\n']);
        match ssh.userauth_password(&config.user, password) {
            Ok(()) => return Ok(()),
            Err(error) => tried.push(format!("password: {}", error.message())),
        }
        let mut prompt = Prompt(password);
        match ssh.userauth_keyboard_interactive(&config.user, &mut prompt) {
            Ok(()) => return Ok(()),
            Err(error) => tried.push(format!("keyboard-interactive: {}", error.message())),
        }
    }
    let why = if tried.is_empty() {
        "neither `key` nor `password` is configured".to_owned()
    } else {
        tried.join("; ")
    };
    Err(NetconfError::Login { address: config.address.clone(), user: config.user.clone(), why })
}

/// Answers each question with the password.
struct Prompt<'a>(&'a str);

impl ssh2::KeyboardInteractivePrompt for Prompt<'_> {
    fn prompt(&mut self, _: &str, _: &str, prompts: &[ssh2::Prompt<'_>]) -> Vec<String> {
        prompts.iter().map(|_| self.0.to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_port_and_brackets_around_colons() {
        assert_eq!(host_and_port("bng1.example:830").unwrap(), ("bng1.example", 830));
        assert_eq!(host_and_port("[2001:db8::1]:830").unwrap(), ("2001:db8::1", 830));
        for wrong in ["bng1", "bng1:", ":830", "2001:db8::1:830", "[::1:830", "bng1:99999"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fingerprint_reads_as_ssh_keygen_prints_it() {
        let empty = sha256(b"").unwrap();
        assert_eq!(fingerprint(&empty), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
    }
}
