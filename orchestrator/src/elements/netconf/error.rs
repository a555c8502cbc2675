//! Why a device could not be talked to, in words for an operator.

use std::path::PathBuf;
use std::time::Duration;

use super::session::{RpcError, SessionError};

/// Why a device could not be talked to or did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetconfError {
    /// No TCP or SSH connection.
    #[error("no connection to {address}: {why}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The device shows another key than it is known by. Nothing was sent to it.
    #[error(
        "the host key of {address} has changed: {known_hosts} has {expected}, the device shows {seen}; nothing was sent. \
         If the device was replaced, check the new key with its owner and put it into {known_hosts}; otherwise somebody is \
         in between"
    )]
    HostKeyChanged {
        /// Where.
        address: String,
        /// The file it was checked against.
        known_hosts: PathBuf,
        /// Type and SHA-256 fingerprint of the keys known.
        expected: String,
        /// SHA-256 fingerprint of the key shown.
        seen: String,
    },
    /// The device's key is not known.
    #[error(
        "the host key of {address} is not in {known_hosts}: the device shows {seen}; nothing was sent. \
         Check the key with the device's owner and add it (ssh-keyscan prints the line)"
    )]
    HostKeyUnknown {
        /// Where.
        address: String,
        /// The file it was looked for in.
        known_hosts: PathBuf,
        /// SHA-256 fingerprint of the key shown.
        seen: String,
    },
    /// A file named in the configuration cannot be used.
    #[error("{what} {path} cannot be used: {why}")]
    File {
        /// What it is.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The device lets this user not in.
    #[error("{address} does not let user `{user}` in: {why}")]
    Login {
        /// Where.
        address: String,
        /// Who.
        user: String,
        /// What was tried.
        why: String,
    },
    /// The device does not announce something that is needed.
    #[error("the device does not announce {0}")]
    Incapable(String),
    /// No answer within the time allowed. The session was closed.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The session ended.
    #[error("the session ended: {0}")]
    Lost(String),
    /// The device is not understood.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The device refused.
    #[error("{operation} was refused: {}", shown(errors))]
    Refused {
        /// What it was asked.
        operation: &'static str,
        /// Why not.
        errors: Vec<RpcError>,
    },
    /// More requests wait for this device than are kept.
    #[error("too many requests wait for this device")]
    Busy,
}

impl NetconfError {
    /// Somebody else holds what is needed (RFC 6241 appendix A): worth another try soon.
    pub fn is_lock_denied(&self) -> bool {
        matches!(self, Self::Refused { errors, .. } if errors
            .iter()
            .any(|error| matches!(error.tag.as_str(), "lock-denied" | "in-use" | "resource-denied")))
    }

    /// The device itself said no, as against not having been heard.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The session is gone; a new one may do.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::TimedOut(_) | Self::Session(_))
    }
}

fn shown(errors: &[RpcError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
