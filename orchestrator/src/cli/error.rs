//! What goes wrong, and the exit code scripts see.

use std::process::ExitCode;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Something failed on the way.
    #[error("{0}")]
    Failed(String),
    /// It cannot be asked like this.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It was understood and refused.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// A replay led to something else than was recorded; the report was printed.
    #[error("the replay led to something else than was recorded")]
    Differs,
    /// What is wrong was printed already; a refusal.
    #[error("the file has mistakes")]
    Mistakes,
}

impl CliError {
    /// The exit code, as `usher --help` documents it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Refused(_) | Self::Mistakes => 4,
            Self::Unreachable(_) => 5,
            Self::Differs => 6,
        })
    }
}
