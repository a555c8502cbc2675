//! Three network namespaces in a row: subscribers, gateway, internet. Gone when dropped.
//!
//! ```text
//!   subscribers            gateway                  internet
//!     line ------------ access   core ------------- net
//!     10.77.0.11..      10.77.0.1  10.88.0.1        10.88.0.2
//!     fd77::11..        fd77::1    fd88::1          fd88::2
//! ```
//!
//! `access` is the gateway's subscriber-facing interface. Offloads are off everywhere, so that a frame on it is a frame
//! on the wire and the interface's own counters can be compared byte for byte. The line stays down until
//! [`Lab::connect`], so that no frame passes before the probe is there to count it.
//!
//! [`Lab::stretched`] has a fourth in the middle of both lines, where frames pass only if somebody hands them on
//! ([`relay`](crate::relay)).

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process;
use crate::wait::{self, Seen};

/// Everything this makes is named with it, its maker's process id and a number.
const PREFIX: &str = "usher-demo-";

/// The gateway's address towards the subscribers.
pub const GATEWAY: &str = "10.77.0.1";
/// Where the internet's server listens.
pub const INTERNET: &str = "10.88.0.2";
/// The same over IPv6.
pub const INTERNET6: &str = "fd88::2";
/// The subscriber-facing interface.
pub const ACCESS: &str = "access";

static LABS: AtomicU32 = AtomicU32::new(0);

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the subscribers' devices are.
    Subscribers,
    /// Where the agent is.
    Gateway,
    /// Where the services are.
    Internet,
    /// In the middle of the two lines, where they are stretched.
    Relay,
}

impl Side {
    const ALL: [Self; 4] = [Self::Subscribers, Self::Gateway, Self::Internet, Self::Relay];
    const ENDS: [Self; 3] = [Self::Subscribers, Self::Gateway, Self::Internet];

    const fn word(self) -> &'static str {
        match self {
            Self::Subscribers => "subscribers",
            Self::Gateway => "gateway",
            Self::Internet => "internet",
            Self::Relay => "relay",
        }
    }
}

/// What an interface has counted itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of frames received, link-layer header included.
    pub rx_bytes: u64,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of frames sent, link-layer header included.
    pub tx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames handed to it that it could not send.
    pub tx_dropped: u64,
}

/// A place to work in: a folder, and a name unique on this machine. All it knows of is ended and removed when dropped.
#[derive(Debug)]
pub struct Place {
    name: String,
    folder: PathBuf,
    keep: bool,
}

impl Place {
    /// Makes it, and first removes what runs that died without cleaning up have left behind.
    pub fn new() -> Result<Self> {
        sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { name, folder, keep: false })
    }

    /// For state, logs, certificates.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where in the BPF file system the agent of this place pins.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// Leaves the folder with its logs behind.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.name, self.keep);
    }
}

/// The three namespaces.
#[derive(Debug)]
pub struct Lab {
    place: Place,
}

impl Lab {
    /// Makes them, wires them and gives them addresses. Needs root.
    pub fn new(place: Place) -> Result<Self> {
        let lab = Self::apart(place, &Side::ENDS)?;
        lab.wire((Side::Gateway, ACCESS), (Side::Subscribers, "line"))?;
        lab.wire((Side::Gateway, "core"), (Side::Internet, "net"))?;
        lab.address()
    }

    /// The same with both lines cut in the middle: their loose ends are in [`Side::Relay`], each named for the interface at its other end,
    /// `to-access`, `to-line`, `to-core` and `to-net`.
    pub fn stretched(place: Place) -> Result<Self> {
        let lab = Self::apart(place, &Side::ALL)?;
        // What is handed on there is what was sent: checksums are not left to an interface that nobody has.
        for (side, interface) in [
            (Side::Gateway, ACCESS),
            (Side::Subscribers, "line"),
            (Side::Gateway, "core"),
            (Side::Internet, "net"),
        ] {
            let loose = format!("to-{interface}");
            lab.wire((side, interface), (Side::Relay, &loose))?;
            process::run(&mut lab.inside(side, "ethtool", ["-K", interface, "tx", "off"]))?;
            let quiet =
                format!("echo 1 >/proc/sys/net/ipv6/conf/{loose}/disable_ipv6; ip link set {loose} up");
            lab.shell(Side::Relay, &quiet)?;
        }
        lab.address()
    }

    /// The namespaces, without a line between them.
    fn apart(place: Place, sides: &[Side]) -> Result<Self> {
        let lab = Self { place };
        for side in sides {
            process::run(&mut ip(["netns", "add", &lab.namespace(*side)]))?;
            // No duplicate address detection and no router solicitation: only what the demo sends is on the wire.
            // One congestion control wherever this runs: the plainest there is, on every kernel.
            lab.shell(
                *side,
                "echo reno >/proc/sys/net/ipv4/tcp_congestion_control; \
                 for kind in default all; do \
                 echo 0 >/proc/sys/net/ipv6/conf/$kind/accept_dad; \
                 echo 0 >/proc/sys/net/ipv6/conf/$kind/router_solicitations; done; ip link set lo up",
            )?;
        }
        Ok(lab)
    }

    /// Gives the ends of the lines their addresses, and all sides but the subscribers' their routes.
    fn address(self) -> Result<Self> {
        let lab = self;
        lab.shell(
            Side::Gateway,
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; \
             ip address add 10.77.0.1/24 dev access; ip address add fd77::1/64 dev access nodad; \
             ip address add 10.88.0.1/24 dev core; ip address add fd88::1/64 dev core nodad; \
             ip link set access up; ip link set core up",
        )?;
        lab.shell(
            Side::Internet,
            "ip address add 10.88.0.2/24 dev net; ip address add fd88::2/64 dev net nodad; ip link set net up; \
             ip route add default via 10.88.0.1; ip -6 route add default via fd88::1",
        )?;
        Ok(lab)
    }

    /// The place it stands in.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The same, to say that its folder is to be kept.
    pub fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }

    /// A subscriber's device appears: these addresses (CIDR notation) are on the line from now on.
    pub fn add_device(&self, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let mut words = vec![family, "address", "add", address, "dev", "line"];
            if family == "-6" {
                words.push("nodad");
            }
            process::run(&mut self.inside(Side::Subscribers, "ip", words))?;
        }
        Ok(())
    }

    /// Plugs the subscribers' line in.
    pub fn connect(&self) -> Result<()> {
        self.shell(
            Side::Subscribers,
            "ip link set line up; ip route replace default via 10.77.0.1 dev line onlink; \
             ip -6 route replace default via fd77::1 dev line onlink",
        )
    }

    /// Takes the gateway's end of the line down: from now on not one frame passes, nor does the gateway try to send one.
    pub fn disconnect(&self) -> Result<()> {
        wait::until("a quiet line", Duration::from_secs(10), || {
            let before = self.access_counters()?;
            thread::sleep(Duration::from_millis(200));
            let after = self.access_counters()?;
            Ok(Seen::when(
                before == after,
                (),
                format!("{} frames in 200 ms", after.tx_packets - before.tx_packets),
            ))
        })?;
        self.shell(Side::Gateway, "ip link set access down")
    }

    /// A program inside one of the namespaces; only its network is another.
    pub fn inside<'a>(
        &self,
        side: Side,
        program: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Command {
        let program = process::find(program).unwrap_or_else(|| program.into());
        let mut command = process::within(&self.namespace_file(side), program);
        command.args(arguments);
        command
    }

    /// Does something with another network: in one of the namespaces, on a thread of its own. What is opened there stays there.
    pub fn within<T: Send>(&self, side: Side, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.namespace_file(side)).context("open a namespace")?;
        let entered = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("enter a namespace")?;
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join())
            .map_err(|_| anyhow!("what was done there panicked"))?
    }

    /// The handle of one of the namespaces.
    pub fn namespace_file(&self, side: Side) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(side))
    }

    /// What the subscriber-facing interface has counted.
    pub fn access_counters(&self) -> Result<Counters> {
        self.counters(ACCESS)
    }

    /// What one of the gateway's interfaces has counted.
    pub fn counters(&self, interface: &str) -> Result<Counters> {
        let words = ["-s", "-j", "link", "show", interface];
        let printed = process::run(&mut self.inside(Side::Gateway, "ip", words))?;
        let parsed: serde_json::Value =
            serde_json::from_str(&printed).context("read what `ip -j` printed")?;
        let number = |pointer: &str| {
            parsed
                .pointer(pointer)
                .and_then(serde_json::Value::as_u64)
                .ok_or_else(|| anyhow!("`ip -s -j link` shows no {pointer}"))
        };
        Ok(Counters {
            rx_bytes: number("/0/stats64/rx/bytes")?,
            rx_packets: number("/0/stats64/rx/packets")?,
            tx_bytes: number("/0/stats64/tx/bytes")?,
            tx_packets: number("/0/stats64/tx/packets")?,
            tx_dropped: number("/0/stats64/tx/dropped")?,
        })
    }

    fn namespace(&self, side: Side) -> String {
        format!("{}-{}", self.place.name, side.word())
    }

    /// A shell script inside one of the namespaces.
    pub fn shell(&self, side: Side, script: &str) -> Result<()> {
        process::run(&mut self.inside(side, "sh", ["-ec", script])).map(drop)
    }

    fn wire(&self, near: (Side, &str), far: (Side, &str)) -> Result<()> {
        let (near_namespace, far_namespace) = (self.namespace(near.0), self.namespace(far.0));
        process::run(&mut ip([
            "link",
            "add",
            near.1,
            "netns",
            &near_namespace,
            "type",
            "veth",
            "peer",
            "name",
            far.1,
            "netns",
            &far_namespace,
        ]))?;
        for (side, interface) in [near, far] {
            process::run(&mut self.inside(
                side,
                "ethtool",
                ["-K", interface, "tso", "off", "gso", "off", "gro", "off"],
            ))?;
        }
        Ok(())
    }
}

fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    process::command("ip", arguments)
}

/// Removes what runs of the same user that are dead have left behind.
fn sweep() {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    let entries = |folder: &Path| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == own))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let mut names = entries(&std::env::temp_dir());
    names.extend(entries(Path::new("/run/netns")));
    names.extend(entries(Path::new("/sys/fs/bpf")));
    let mut dead: Vec<_> = names.iter().filter_map(|name| of_a_dead_run(name)).collect();
    dead.sort();
    dead.dedup();
    for name in dead {
        remove(&name, false);
    }
}

/// The name of the place something belonged to, where the process that made it is gone.
fn of_a_dead_run(name: &str) -> Option<String> {
    let mut words = name.strip_prefix(PREFIX)?.split('-');
    let (pid, number) = (words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?);
    (!process::alive(pid)).then(|| format!("{PREFIX}{pid}-{number}"))
}

/// Ends and removes everything of the place `name`; what is already gone is fine.
fn remove(name: &str, keep_folder: bool) {
    let folder = std::env::temp_dir().join(name);
    process::end_remembered(&folder);
    for side in Side::ALL {
        let namespace = format!("{name}-{}", side.word());
        if !Path::new("/run/netns").join(&namespace).exists() {
            continue;
        }
        let inside = process::run(&mut ip(["netns", "pids", &namespace])).unwrap_or_default();
        inside.split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(process::kill);
        if let Err(error) = process::run(&mut ip(["netns", "delete", &namespace])) {
            process::say(&format!("left behind: {error:#}"));
        }
    }
    let pins = Path::new("/sys/fs/bpf").join(name);
    for leftover in [Some(pins), (!keep_folder).then_some(folder)].into_iter().flatten() {
        if let Err(error) = fs::remove_dir_all(&leftover)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            process::say(&format!("left behind: {}: {error}", leftover.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_made_is_swept() {
        let own = std::process::id();
        assert_eq!(of_a_dead_run(&format!("usher-demo-{own}-0-gateway")), None);
        assert_eq!(of_a_dead_run("usher-demo-4194305-3-gateway").as_deref(), Some("usher-demo-4194305-3"));
        assert_eq!(of_a_dead_run("usher"), None);
        assert_eq!(of_a_dead_run("usher-demo-x"), None);
    }
}
