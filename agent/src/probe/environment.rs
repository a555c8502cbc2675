//! What must be there before anything is loaded: an Ethernet interface and a BPF file system.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::ProbeError;

/// The magic number of a bpffs (linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where a bpffs is by convention, and where the agent mounts one that is missing.
const BPFFS: &str = "/sys/fs/bpf";

/// An interface that can carry the probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interface {
    /// The kernel's number for it.
    pub(super) index: u32,
    /// Whether its frames begin with an IP header.
    pub(super) no_link_layer: bool,
}

/// ARPHRD numbers (linux/if_arp.h) of interfaces whose frames begin with an IP header when programs see them: PPP, raw IP, tunnels of
/// IP in IP and GRE, and those of user space (TUN) and of WireGuard, which have none.
const NO_LINK_LAYER: [u16; 8] = [
    libc::ARPHRD_PPP,
    519,
    libc::ARPHRD_TUNNEL,
    libc::ARPHRD_TUNNEL6,
    libc::ARPHRD_SIT,
    libc::ARPHRD_IPGRE,
    823,
    libc::ARPHRD_NONE,
];

/// The interface of a name, if it can carry the probe.
///
/// Asks the kernel, not /sys: in a network namespace entered without its own mounts, /sys shows another one's interfaces.
pub(super) fn interface(name: &str) -> Result<Interface, ProbeError> {
    let missing = || ProbeError::NoInterface { name: name.to_owned(), present: interfaces() };
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .map_err(|error| ProbeError::kernel("open a socket")(io::Error::from(error).into()))?;
    let index = rustix::net::netdevice::name_to_index(&socket, name).map_err(|_| missing())?;
    match link_type(&socket, name) {
        Ok(libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) => Ok(Interface { index, no_link_layer: false }),
        Ok(link_type) if NO_LINK_LAYER.contains(&link_type) => Ok(Interface { index, no_link_layer: true }),
        Ok(link_type) => Err(ProbeError::UnknownLink { name: name.to_owned(), link_type }),
        Err(error) => Err(ProbeError::kernel("ask for the interface's link type")(error.into())),
    }
}

/// The ARPHRD number of an interface.
#[expect(unsafe_code, reason = "an ioctl that the safe wrappers do not have")]
fn link_type(socket: &impl std::os::fd::AsRawFd, name: &str) -> io::Result<u16> {
    // SAFETY: all-zero bytes are a valid `ifreq`: integers, and a union of integers and pointers never read as such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFHWADDR reads the name, which ends in zero, and writes within `request`, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel filled this member of the union; every bit pattern of it is valid.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr }.sa_family)
}

/// The names of the interfaces of this network namespace.
fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

/// Makes the directory of the pins, mounts the conventional bpffs if that is what it lacks, and locks it for this agent.
pub(super) fn pin_directory(directory: &Path) -> Result<File, ProbeError> {
    if !on_bpffs(directory)? {
        if !directory.starts_with(BPFFS) || !mount_bpffs() || !on_bpffs(directory)? {
            let mount_point = if directory.starts_with(BPFFS) {
                Path::new(BPFFS)
            } else {
                directory.parent().unwrap_or(directory)
            };
            return Err(ProbeError::NoBpffs {
                directory: directory.to_owned(),
                mount_point: mount_point.to_owned(),
            });
        }
        tracing::info!(mount_point = BPFFS, "mounted a BPF file system");
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            return ProbeError::NotPermitted { doing: "make the directory of the pins" };
        }
        ProbeError::File { doing: "make", path: directory.to_owned(), source }
    })?;
    lock(directory)
}

/// Keeps the directory of the pins to this process, for as long as the file is open.
pub(super) fn lock(directory: &Path) -> Result<File, ProbeError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            ProbeError::NotPermitted { doing: "lock the directory of the pins" }
        }
        _ => ProbeError::File { doing: "lock", path: directory.to_owned(), source },
    };
    let lock = File::open(directory).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ProbeError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether the nearest directory that exists is on a bpffs.
fn on_bpffs(directory: &Path) -> Result<bool, ProbeError> {
    for ancestor in directory.ancestors() {
        let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        match rustix::fs::statfs(ancestor) {
            Ok(status) => {
                // The field's width differs between architectures; the magic number fits all of them.
                #[expect(clippy::useless_conversion, reason = "i32 on some architectures")]
                return Ok(i64::from(status.f_type) == BPF_FS_MAGIC);
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::ACCESS) => {
                return Err(ProbeError::NotPermitted { doing: "look into the directory of the pins" });
            }
            Err(error) => {
                return Err(ProbeError::File {
                    doing: "look at",
                    path: ancestor.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
    Ok(false)
}

/// Mounts the conventional bpffs; false where that fails, for whatever reason.
fn mount_bpffs() -> bool {
    Command::new("mount")
        .args(["-t", "bpf", "-o", "mode=0700", "bpf", BPFFS])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_named_with_those_there_are() {
        let error = interface("usher-nowhere").expect_err("there is none of that name");
        let text = error.to_string();
        assert!(text.contains("`usher-nowhere`"), "{text}");
        assert!(text.contains("lo"), "{text}");
    }

    #[test]
    fn a_directory_on_no_bpffs_is_refused_with_the_remedy() {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let pins = elsewhere.path().join("pins");
        let error = pin_directory(&pins).expect_err("it is on a plain file system");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!pins.exists());
    }
}
