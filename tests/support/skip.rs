//! Tests that cannot run on this machine say so; they never pass silently.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use usher_agent::probe::{Probe, ProbeConfig};

use crate::process;

/// Prints why the test `name` cannot run here; with `USHER_NO_SKIP=1`, as in CI, it fails instead.
///
/// The line starts with `SKIPPED`, and `make test` gathers such lines at its end.
///
/// # Panics
/// With `USHER_NO_SKIP=1`.
pub fn skipped(name: &str, reason: &str) {
    process::say(&format!("SKIPPED {name}: {reason}"));
    assert!(
        std::env::var_os("USHER_NO_SKIP").is_none_or(|value| value != "1"),
        "{name} cannot run here ({reason}), and USHER_NO_SKIP=1 allows no test to be left out"
    );
}

/// Why namespaces cannot be made and the probe cannot be loaded here; `None`: they can.
pub fn why_no_probe() -> Option<String> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    if !rustix::process::geteuid().is_root() {
        return Some("not root: namespaces and BPF need it".to_owned());
    }
    for tool in ["ip", "ethtool", "nsenter", "unshare", "setpriv", "nginx", "curl"] {
        if !process::installed(tool) {
            return Some(format!("{tool} is not installed (scripts/install.sh installs it)"));
        }
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Some("IPv6 is switched off in this kernel".to_owned());
    }
    REFUSED.get_or_init(refused).clone()
}

/// Why what only newer kernels have, TCX and with it the driver's programs, cannot be tested here; `None`: it can.
pub fn why_no_tcx() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < (6, 6))
        .then(|| format!("this kernel ({}) has no TCX, which came with Linux 6.6", release.trim()))
}

/// What this kernel, or whatever root is held in here, says to a namespace and to the probe; `None`: it takes both.
fn refused() -> Option<String> {
    if let Err(error) = process::run(&mut process::command("unshare", ["--net", "true"])) {
        return Some(format!("no network namespace can be made: {error:#}"));
    }
    let trial = ProbeConfig {
        pin_dir: PathBuf::from(format!("/sys/fs/bpf/usher-trial-{}", std::process::id())),
        max_flows: 16,
        max_subscribers: 2,
        max_prefixes: 4,
        max_measured: 16,
        ring_bytes: 1 << 16,
        ..ProbeConfig::new("lo")
    };
    let loaded = Probe::load(trial.clone()).and_then(|(probe, _)| probe.detach());
    loaded.err().map(|error| format!("the probe cannot be loaded: {error}"))
}
