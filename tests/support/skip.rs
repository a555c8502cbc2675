//! Tests that cannot run on this machine say so; they never pass silently.

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
    if !rustix::process::geteuid().is_root() {
        return Some("not root: namespaces and BPF need it".to_owned());
    }
    for tool in ["ip", "ethtool", "nsenter", "nginx", "curl"] {
        if !process::installed(tool) {
            return Some(format!("{tool} is not installed (scripts/install.sh installs it)"));
        }
    }
    None
}
