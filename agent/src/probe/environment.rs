//! What must be there before anything is loaded: a BPF file system, and the directory of the pins for nobody else.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::ProbeError;

/// The magic number of a bpffs (linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where a bpffs is by convention, and where the agent mounts one that is missing.
const BPFFS: &str = "/sys/fs/bpf";

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

/// Whether a directory is the one that was locked, and not gone or another one. Where that cannot be told, nothing is known against it.
pub(super) fn is_locked_by(directory: &Path, lock: &File) -> bool {
    match (fs::metadata(directory), lock.metadata()) {
        (Ok(there), Ok(locked)) => (there.dev(), there.ino()) == (locked.dev(), locked.ino()),
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        (Ok(_), Err(_)) => true,
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
    fn a_directory_on_no_bpffs_is_refused_with_the_remedy() {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let pins = elsewhere.path().join("pins");
        let error = pin_directory(&pins).expect_err("it is on a plain file system");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!pins.exists());
    }
}
