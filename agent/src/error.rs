//! Errors that more than one room of the agent shows to people.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file of the operator's that cannot be used, and where in it the reason stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1; `None` where the whole file is at fault.
    pub at: Option<(u64, u64)>,
    /// What is wrong and what was expected.
    pub why: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl FileError {
    /// The whole file is at fault.
    pub fn whole(file: &Path, why: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), at: None, why: why.to_string() }
    }

    /// The fault is at a place that a [`serde_saphyr::Spanned`] value remembers.
    pub fn at(file: &Path, at: serde_saphyr::Location, why: impl fmt::Display) -> Self {
        let known = at.line() > 0;
        Self { file: file.to_owned(), at: known.then(|| (at.line(), at.column())), why: why.to_string() }
    }

    /// What the YAML reader says.
    pub fn yaml(file: &Path, error: &serde_saphyr::Error) -> Self {
        let mut why = error.without_snippet().to_string();
        let at = error.location().map(|at| (at.line(), at.column()));
        if let Some((line, column)) = at {
            let suffix = format!(" at line {line}, column {column}");
            if let Some(bare) = why.strip_suffix(&suffix) {
                why.truncate(bare.len());
            }
        }
        Self { file: file.to_owned(), at, why }
    }

    /// Reads a text file of bounded size: what an operator writes is small, what is not small is a mistake.
    pub fn read(file: &Path, at_most: u64) -> Result<String, Self> {
        let size = std::fs::metadata(file).map_err(|error| Self::whole(file, error))?.len();
        if size > at_most {
            return Err(Self::whole(
                file,
                format_args!("{size} bytes are too many: expected at most {at_most}"),
            ));
        }
        std::fs::read_to_string(file).map_err(|error| Self::whole(file, error))
    }
}
