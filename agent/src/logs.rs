//! The daemon's log: on standard error, as the configuration says.

use std::io::IsTerminal as _;

use crate::check::{self, CheckError};
use crate::config::{Log, LogFormat};

/// Writes what is logged from now on; once in a process.
pub fn start(log: &Log) -> Result<(), CheckError> {
    let logs = tracing_subscriber::fmt()
        .with_env_filter(check::log_filter(&log.level)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
