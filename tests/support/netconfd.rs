//! A real NETCONF device: netconfd (of Debian's yuma123) behind a real sshd, on a free loopback port.
//!
//! Needs no root: both servers run as whoever starts them, and that user logs in to itself. Everything lies in one
//! temporary folder; both servers, and the sessions of sshd, are ended by their process ids. netconfd insists on a folder
//! `.yuma` in the user's home; where there was none, the empty one it makes is removed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::process::{self, Running};
use crate::wait::{self, Seen};

/// The device's own module.
const MODULE: &str = include_str!("../yang/usher-subscriber-services.yang");

const NAMESPACE: &str = "urn:usher:yang:subscriber-services";
const END: &str = "]]>]]>";
const STARTS_WITHIN: Duration = Duration::from_secs(15);
/// Until its whole answer to one request is there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Of a device that has stopped in the middle.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Why no NETCONF device can be had on this machine; `None`: one can.
pub fn why_not() -> Option<String> {
    ["netconfd", "netconf-subsystem", "sshd", "ssh", "ssh-keygen", "ssh-keyscan"]
        .into_iter()
        .find(|program| !process::installed(program))
        .map(|program| format!("{program} is not installed (Debian packages netconfd and openssh-server)"))
}

/// A device that runs.
#[derive(Debug)]
pub struct NetconfServer {
    /// `host:port`.
    pub address: String,
    /// SSH port.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// The user's private key.
    pub key: PathBuf,
    /// The device's host key, as it stands in known_hosts behind the name.
    pub host_key: String,
    /// A known_hosts file with that key.
    pub known_hosts: PathBuf,
    folder: TempDir,
    namespace: Option<PathBuf>,
    sshd: Option<Running>,
    netconfd: Option<Running>,
    /// A folder in the user's home that netconfd makes and leaves empty; ours to remove.
    leaves: Option<PathBuf>,
}

impl NetconfServer {
    /// Starts one and waits until it answers.
    pub fn start() -> Result<Self> {
        Self::start_in(&std::env::temp_dir(), None)
    }

    /// The same below `parent`, and reachable only from within a network namespace.
    pub fn start_in(parent: &Path, namespace: Option<PathBuf>) -> Result<Self> {
        if let Some(reason) = why_not() {
            bail!("{reason}");
        }
        let folder = TempDir::with_prefix_in("usher-netconfd-", parent).context("make a temporary folder")?;
        let path = folder.path();
        fs::create_dir(path.join("yang"))?;
        fs::create_dir(path.join("data"))?;
        fs::write(path.join("startup.xml"), r#"<config xmlns="urn:ietf:params:xml:ns:netconf:base:1.0"/>"#)?;
        fs::write(path.join("yang/usher-subscriber-services.yang"), MODULE)?;
        make_key(&path.join("key"))?;
        make_key(&path.join("host"))?;
        fs::copy(path.join("key.pub"), path.join("authorized"))?;
        let port = free_port()?;
        let mut server = Self {
            address: format!("127.0.0.1:{port}"),
            port,
            user: user()?,
            key: path.join("key"),
            host_key: String::new(),
            known_hosts: path.join("known_hosts"),
            folder,
            namespace,
            sshd: None,
            netconfd: None,
            leaves: home()?.map(|home| home.join(".yuma")).filter(|folder| !folder.exists()),
        };
        server.know_host_key()?;
        fs::write(server.path("sshd_config"), server.sshd_config())?;
        server.start_netconfd()?;
        server.start_sshd()?;
        Ok(server)
    }

    /// Where its files and logs are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the device applies to a subscriber's video, asked over a session of OpenSSH's own client; `None`: nothing.
    pub fn video_quality(&self, subscriber: &str) -> Result<Option<String>> {
        let entry = self.entry(subscriber)?;
        Ok(leaf(&entry, "video-quality"))
    }

    /// A subscriber's whole entry as the device prints it; empty where there is none.
    pub fn entry(&self, subscriber: &str) -> Result<String> {
        let mut client = self.client()?;
        let reply = client.ask(&format!(
            r#"<get-config><source><running/></source><filter type="subtree"><subscribers xmlns="{NAMESPACE}"><subscriber><id>{subscriber}</id></subscriber></subscribers></filter></get-config>"#
        ))?;
        let Some(start) = reply.find("<subscriber>") else { return Ok(String::new()) };
        let end = reply.find("</subscriber>").context("an entry that ends")?;
        Ok(reply[start..end].split_whitespace().collect::<String>() + "</subscriber>")
    }

    /// The device's whole configuration of subscribers, as it prints it.
    pub fn subscribers(&self) -> Result<String> {
        let reply = self.client()?.ask(&format!(
            r#"<get-config><source><running/></source><filter type="subtree"><subscribers xmlns="{NAMESPACE}"/></filter></get-config>"#
        ))?;
        let data = reply.split_once("<data").map_or("", |(_, data)| data);
        Ok(data.split_whitespace().collect())
    }

    /// How often its running configuration was edited since it started.
    pub fn transactions(&self) -> usize {
        let log = fs::read_to_string(self.path("netconfd.log")).unwrap_or_default();
        log.matches("on target 'running'").count()
    }

    /// Configures it behind Usher's back.
    pub fn configure(&self, subscribers: &str) -> Result<()> {
        let mut client = self.client()?;
        client.edit(subscribers)?;
        client.ask("<commit/>")?;
        Ok(())
    }

    /// A session of OpenSSH's own client: another manager of the same device.
    pub fn client(&self) -> Result<Client> {
        let mut command = self.command("ssh")?;
        command
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.known_hosts.display()))
            .arg("-i")
            .arg(&self.key)
            .args(["-p", &self.port.to_string(), "-l", &self.user, "-s", "127.0.0.1", "netconf"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut client = Client { child: command.spawn().context("start ssh")?, next_id: 1, closed: false };
        client.send(
            r#"<hello xmlns="urn:ietf:params:xml:ns:netconf:base:1.0"><capabilities><capability>urn:ietf:params:netconf:base:1.0</capability></capabilities></hello>"#,
        )?;
        client.receive().context("the device's hello")?;
        Ok(client)
    }

    /// `kill -9` for sshd and each of its sessions: the device is gone from one packet to the next.
    pub fn cut_off(&mut self) -> Result<()> {
        if let Some(mut sshd) = self.sshd.take() {
            let sessions = descendants(sshd.pid());
            sshd.kill()?;
            for session in sessions {
                process::kill(session);
            }
        }
        Ok(())
    }

    /// `kill -9` for the device's configuration engine, as in a power cut: sessions end, and what was not confirmed is
    /// gone.
    pub fn kill_engine(&mut self) -> Result<()> {
        if let Some(mut netconfd) = self.netconfd.take() {
            netconfd.kill()?;
        }
        Ok(())
    }

    /// Stops the device's configuration engine in its tracks: it takes bytes and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        self.engine()?.signal(rustix::process::Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.engine()?.signal(rustix::process::Signal::CONT)
    }

    fn engine(&self) -> Result<&Running> {
        self.netconfd.as_ref().context("netconfd runs")
    }

    /// Starts netconfd (again), with the configuration it had.
    pub fn start_netconfd(&mut self) -> Result<()> {
        let path = self.folder().to_owned();
        let socket = path.join("ncx.sock");
        let _ = fs::remove_file(&socket);
        let mut command = self.command("netconfd")?;
        command
            .arg(format!("--home={}", path.display()))
            .arg(format!("--superuser={}", self.user))
            .arg(format!("--port={}", self.port))
            .arg(format!("--ncxserver-sockname={}", socket.display()))
            .arg(format!("--modpath={}:/usr/share/yuma/modules", path.join("yang").display()))
            .arg(format!("--startup={}", path.join("startup.xml").display()))
            .args(["--target=candidate", "--access-control=off", "--log-level=info"])
            .arg("--module=usher-subscriber-services")
            // What a confirmed commit would be rolled back to lies in the current folder, and the rest of its state in
            // this one: no two servers may share them.
            .current_dir(&path)
            .env("YUMA_HOME", &path);
        let mut netconfd = Running::start("netconfd", command, &path)?;
        wait::until("the start of netconfd", STARTS_WITHIN, || {
            netconfd.expect_running()?;
            Ok(Seen::when(UnixReady::is(&socket), (), netconfd.last_words()))
        })?;
        self.netconfd = Some(netconfd);
        Ok(())
    }

    /// Starts sshd (again).
    pub fn start_sshd(&mut self) -> Result<()> {
        if rustix::process::geteuid().is_root() {
            // Where sshd locks itself into before login; the package's own service makes it, and it may not be running.
            fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
        }
        // An absolute path, for sshd starts itself anew for each connection.
        let mut command = self.command("sshd")?;
        command.arg("-D").arg("-e").arg("-f").arg(self.path("sshd_config"));
        let mut sshd = Running::start("sshd", command, self.folder())?;
        wait::until("the start of sshd", STARTS_WITHIN, || {
            sshd.expect_running()?;
            let port = self.port.to_string();
            let answer =
                process::run(self.command("ssh-keyscan")?.args(["-T", "2", "-p", &port, "127.0.0.1"]));
            let answers = answer.is_ok_and(|keys| keys.contains("ssh-"));
            Ok(Seen::when(answers, (), sshd.last_words()))
        })?;
        self.sshd = Some(sshd);
        Ok(())
    }

    /// Gives the device a new host key, as if it had been replaced; known_hosts keeps the old one.
    pub fn change_host_key(&mut self) -> Result<()> {
        self.cut_off()?;
        fs::remove_file(self.path("host"))?;
        fs::remove_file(self.path("host.pub"))?;
        make_key(&self.path("host"))?;
        self.start_sshd()
    }

    /// Writes known_hosts anew with the key the device has now.
    pub fn know_host_key(&mut self) -> Result<()> {
        let public = fs::read_to_string(self.path("host.pub"))?;
        let words: Vec<&str> = public.split_whitespace().take(2).collect();
        self.host_key = words.join(" ");
        fs::write(&self.known_hosts, format!("[127.0.0.1]:{} {}\n", self.port, self.host_key))?;
        Ok(())
    }

    /// A program where the device is.
    fn command(&self, program: &str) -> Result<Command> {
        let found = process::find(program).with_context(|| format!("{program} is not installed"))?;
        Ok(match &self.namespace {
            None => Command::new(found),
            Some(namespace) => process::within(namespace, found),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn sshd_config(&self) -> String {
        let folder = self.folder().display();
        let port = self.port;
        let subsystem = process::find("netconf-subsystem").unwrap_or_default();
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n\
             MaxStartups 100\nLogLevel ERROR\n\
             Subsystem netconf \"/usr/bin/env HOME={folder} {} --ncxserver-sockname={port}@{folder}/ncx.sock\"\n",
            subsystem.display()
        )
    }
}

impl Drop for NetconfServer {
    fn drop(&mut self) {
        // The sessions are processes of their own, and outlive the listener otherwise.
        let _ = self.cut_off();
        let _ = self.kill_engine();
        if let Some(folder) = &self.leaves {
            // Only where it is empty.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Looks whether somebody listens on a Unix socket.
struct UnixReady;

impl UnixReady {
    fn is(socket: &Path) -> bool {
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    }
}

/// A NETCONF session over OpenSSH's client, end-of-message framing.
#[derive(Debug)]
pub struct Client {
    child: Child,
    next_id: u32,
    closed: bool,
}

impl Client {
    /// One request; fails where the device answers with an error.
    pub fn ask(&mut self, operation: &str) -> Result<String> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&format!(
            r#"<rpc message-id="{id}" xmlns="urn:ietf:params:xml:ns:netconf:base:1.0">{operation}</rpc>"#
        ))?;
        let reply = self.receive()?;
        ensure!(!reply.contains("<rpc-error>"), "the device refused {operation}: {reply}");
        Ok(reply)
    }

    /// Edits the candidate: content of `subscribers`.
    pub fn edit(&mut self, subscribers: &str) -> Result<()> {
        self.ask(&format!(
            r#"<edit-config><target><candidate/></target><config><subscribers xmlns="{NAMESPACE}">{subscribers}</subscribers></config></edit-config>"#
        ))?;
        Ok(())
    }

    fn send(&mut self, message: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("ssh has an input")?;
        input.write_all(message.as_bytes())?;
        input.write_all(END.as_bytes())?;
        input.flush()?;
        Ok(())
    }

    fn receive(&mut self) -> Result<String> {
        let output = self.child.stdout.as_mut().context("ssh has an output")?;
        let input = self.child.stdin.as_mut().context("ssh has an input")?;
        let deadline = Instant::now() + ANSWERS_WITHIN;
        let mut message = Vec::new();
        let mut byte = [0_u8; 1];
        while !message.ends_with(END.as_bytes()) {
            if poll(&mut [PollFd::new(&*output, PollFlags::IN)], Some(&SILENCE))? == 0 {
                ensure!(
                    Instant::now() < deadline,
                    "the device has not answered within {} s; so far: {}",
                    ANSWERS_WITHIN.as_secs(),
                    String::from_utf8_lossy(&message)
                );
                // netconfd lets a request lie that it read together with the hello before it, until more bytes come; space between
                // messages is nothing to it.
                input.write_all(b"\n")?;
                continue;
            }
            ensure!(output.read(&mut byte)? == 1, "the session ended: {}", String::from_utf8_lossy(&message));
            message.push(byte[0]);
        }
        message.truncate(message.len() - END.len());
        Ok(String::from_utf8(message)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.closed {
            self.closed = true;
            let _ = self.ask("<close-session/>");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text of the first leaf of that name.
fn leaf(xml: &str, name: &str) -> Option<String> {
    let (_, after) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = after.split_once('<')?;
    Some(text.to_owned())
}

fn make_key(path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path);
    process::run(&mut command).map(drop)
}

fn user() -> Result<String> {
    Ok(process::run(Command::new("id").arg("-un"))?.trim().to_owned())
}

/// The user's home as the system knows it, whatever the environment says.
fn home() -> Result<Option<PathBuf>> {
    let line = process::run(Command::new("getent").arg("passwd").arg(user()?))?;
    Ok(line.split(':').nth(5).filter(|home| !home.is_empty()).map(PathBuf::from))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Processes started by `pid`, by those, and so on.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let children: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let child: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((child, parent))
        })
        .collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(children.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.remove(0);
    found
}
