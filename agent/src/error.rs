//! Errors that more than one room of the agent shows to people.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::place::{self, Place};

/// A file of the operator's that cannot be used, and where in it the reason stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct FileError {
    /// The file, and the line and column where one is at fault.
    pub place: Place,
    /// What is wrong and what was expected.
    pub why: String,
}

impl FileError {
    /// The whole file is at fault.
    pub fn whole(file: &Path, why: impl fmt::Display) -> Self {
        Self { place: Place { file: name(file), line: 0, column: 0 }, why: why.to_string() }
    }

    /// The fault is at a place that a [`serde_saphyr::Spanned`] value remembers.
    pub fn at(file: &Path, at: serde_saphyr::Location, why: impl fmt::Display) -> Self {
        Self { place: Place::of(&name(file), at), why: why.to_string() }
    }

    /// What the YAML reader says.
    pub fn yaml(file: &Path, error: &serde_saphyr::Error) -> Self {
        let (place, why) = place::of_error(&name(file), error);
        Self { place, why }
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

fn name(file: &Path) -> Arc<str> {
    file.display().to_string().into()
}

/// An error and all that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Libraries like to repeat their cause in their own words.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
