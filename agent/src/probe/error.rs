//! What keeps a probe from running, and what to do about it.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

/// Why the probe could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The interface is not there.
    #[error("find interface `{name}`: this machine has {}", list(.present))]
    NoInterface {
        /// The interface asked for.
        name: String,
        /// Those there are.
        present: Vec<String>,
    },
    /// The interface carries frames of another kind.
    #[error(
        "attach to `{name}`: it carries neither Ethernet frames nor bare IP packets (link type {link_type}), and the probe reads no others"
    )]
    UnknownLink {
        /// The interface asked for.
        name: String,
        /// Its ARPHRD number.
        link_type: u16,
    },
    /// Its packets pass another interface, on which they are counted already.
    #[error(
        "attach to `{name}`: its packets pass `{other}` too, where they are counted already; name one of the two (a bond or bridge or its ports, a VLAN or what it is on)"
    )]
    CountedTwice {
        /// The interface asked for.
        name: String,
        /// The other one.
        other: String,
    },
    /// The program cannot be in the driver of an interface.
    #[error(
        "attach in the driver of `{name}` (XDP): {why}; or set `xdp` to `auto`, and traffic control counts where the driver cannot"
    )]
    NotInDriver {
        /// The interface.
        name: String,
        /// What is against it.
        why: String,
    },
    /// The kernel refused.
    #[error(
        "{doing}: not permitted; run the agent as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    NotPermitted {
        /// What was refused.
        doing: &'static str,
    },
    /// The directory of the pins is on no bpffs.
    #[error("pin maps in {}: it is on no BPF file system; run `mount -t bpf bpf {}` or choose a directory on one", .directory.display(), .mount_point.display())]
    NoBpffs {
        /// The directory asked for.
        directory: PathBuf,
        /// Where to mount one.
        mount_point: PathBuf,
    },
    /// Another agent runs with these pins.
    #[error("use the maps pinned in {}: another agent has them; stop it, or give this one a directory of its own", .directory.display())]
    InUse {
        /// Where the pins are.
        directory: PathBuf,
    },
    /// The pinned maps were made for another version of the records.
    #[error("adopt the maps pinned in {}: their layout is {pinned}, this agent's is {ours} ({}); go on with the agent that made them, or end their counters with this agent's `detach` and start again", .directory.display(), .differences.join("; "))]
    OtherLayout {
        /// Where the pins are.
        directory: PathBuf,
        /// The pinned maps' layout.
        pinned: u32,
        /// This agent's layout.
        ours: u32,
        /// Each map that differs, with both sizes.
        differences: Vec<String>,
    },
    /// A pinned map has another size.
    #[error("adopt the map {}: it has {what} {pinned}, this agent wants {ours}; configure what it has, or end its counters with `detach` and start again", .pin.display())]
    OtherSize {
        /// The map.
        pin: PathBuf,
        /// Which of its sizes.
        what: &'static str,
        /// The pinned map's.
        pinned: u32,
        /// This agent's.
        ours: u32,
    },
    /// Pins went while the agent ran, or their directory did.
    #[error("go on with the pins in {}: somebody has removed {gone}, or unmounted the BPF file system; start the agent again, its counters begin anew", .directory.display())]
    PinsGone {
        /// Where the pins were.
        directory: PathBuf,
        /// What is missing.
        gone: String,
    },
    /// A queueing discipline that is somebody else's is where the tree of classes is to be.
    #[error(
        "shape on `{interface}`: at its root is a queueing discipline of somebody else's (handle {handle:x}:); remove it (`tc qdisc del dev {interface} root`), or leave `shaping` out"
    )]
    ForeignQdisc {
        /// The interface.
        interface: String,
        /// The upper half of the discipline's handle.
        handle: u16,
    },
    /// The kernel forgets the class of a packet that it forwards.
    #[error(
        "shape what subscribers send: the kernel forgets the class of packets it forwards; set net.ipv4.ip_forward_update_priority to 0 (`sysctl -w`, and a file in /etc/sysctl.d), or leave `uplinks` out"
    )]
    ForwardingForgets,
    /// An interface is on both sides.
    #[error(
        "shape on `{name}`: it is among `interfaces` too; `uplinks` are those towards the internet, which carry no probe"
    )]
    UplinkCarriesProbe {
        /// The interface.
        name: String,
    },
    /// There is no interface to shape on.
    #[error("shape {way}: there is no interface yet that it leaves by")]
    NothingToShapeOn {
        /// Which packets.
        way: &'static str,
    },
    /// Each interface has all classes, and that is too many of them.
    #[error(
        "shape {way}: {interfaces} interfaces, and each would have all classes; name {most} at the most, or one below them"
    )]
    TooManyTrees {
        /// Which packets.
        way: &'static str,
        /// How many there are.
        interfaces: usize,
        /// How many may be.
        most: usize,
    },
    /// The kernel has no such queueing discipline.
    #[error("queue packets by {leaf}: the kernel has none; leave `leaf` out for the best it has")]
    NoSuchLeaf {
        /// As configured.
        leaf: &'static str,
    },
    /// A slot outside the maps.
    #[error("use subscriber slot {slot}: slots go from 1 to {}; raise `max_subscribers`", .slots.saturating_sub(1))]
    NoSuchSlot {
        /// The slot asked for.
        slot: u32,
        /// Slots there are.
        slots: u32,
    },
    /// The session table is full.
    #[error(
        "bind {prefix}: the session table holds {limit} prefixes; raise `max_subscribers`: there are four prefixes for each"
    )]
    SessionsFull {
        /// The prefix that did not fit.
        prefix: IpNet,
        /// Prefixes there is room for.
        limit: u32,
    },
    /// An IPv6 prefix that would take all of IPv4 with it.
    #[error(
        "bind {prefix}: it is so wide that it would take every IPv4 address with it; bind 2000::/3 or longer"
    )]
    PrefixTooWide {
        /// The prefix.
        prefix: IpNet,
    },
    /// The object has no map or program of a name.
    #[error("use the probe's object: it has no `{name}`; it was not built from this source")]
    NotInObject {
        /// The name.
        name: &'static str,
    },
    /// A file or directory.
    #[error("{doing} {}: {source}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// A call to the kernel.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// What came of it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ProbeError {
    /// A failed call to the kernel; a refusal for lack of rights becomes [`ProbeError::NotPermitted`].
    pub(super) fn kernel(
        doing: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| {
            let refused = matches!(errno(source.as_ref()), Some(libc::EPERM | libc::EACCES));
            // The verifier says EACCES too, with a log: then the rights were there.
            if refused && !source.to_string().contains("processed ") {
                Self::NotPermitted { doing }
            } else {
                Self::Kernel { doing, source }
            }
        }
    }
}

/// The operating system's error at the bottom of a chain.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
