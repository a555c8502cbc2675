//! The policy in force, and the one in the file.

use std::path::PathBuf;

use super::Time;

/// Where the policy in force comes from, and until when it is in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyStanding {
    /// Revision of the policy in force.
    pub revision: String,
    /// Where it comes from.
    pub source: PolicySource,
    /// Name of the file it was applied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Time>,
    /// It goes then unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<Time>,
    /// What the policy's file says now.
    pub file: FilePolicy,
}

/// Where a policy in force comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicySource {
    /// The file that the configuration names.
    File,
    /// It was applied over the file and confirmed.
    Applied,
    /// It was applied and waits to be confirmed.
    Trial,
}

/// A policy's file as it is on the disk now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FilePolicy {
    /// Where.
    pub path: PathBuf,
    /// Its revision; absent: it cannot be read or has mistakes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What stands in it, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A policy to be put in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Its file's name, for messages.
    pub name: String,
    /// Its text.
    pub policy: String,
    /// It goes after so many seconds unless it is confirmed.
    pub confirm_within_s: u64,
}

/// A policy that came into force, on trial.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OnTrial {
    /// Its revision.
    pub revision: String,
    /// It goes then unless it is confirmed.
    pub confirm_by: Time,
}
