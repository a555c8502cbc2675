//! Places in files, for error messages: which file, line and column is at fault.

use std::sync::Arc;

use serde_saphyr::Location;

/// A place in a file, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name as given.
    pub file: Arc<str>,
    /// Line, from 1; 0 where unknown.
    pub line: u64,
    /// Column, from 1; 0 where unknown.
    pub column: u64,
}

impl Place {
    /// A location of the YAML reader in `file`.
    pub fn of(file: &Arc<str>, location: Location) -> Self {
        Self { file: Arc::clone(file), line: location.line(), column: location.column() }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.line, self.column) {
            (0, _) => write!(f, "{}", self.file),
            (line, 0) => write!(f, "{}:{line}", self.file),
            (line, column) => write!(f, "{}:{line}:{column}", self.file),
        }
    }
}

/// Where the YAML reader stopped, and why, on one line.
pub(crate) fn of_error(file: &Arc<str>, error: &serde_saphyr::Error) -> (Place, String) {
    let error = error.without_snippet();
    let place = match error.location() {
        Some(location) => Place::of(file, location),
        None => Place { file: Arc::clone(file), line: 0, column: 0 },
    };
    (place, bare_message(error))
}

/// The reader's message without the place, which stands before it already.
fn bare_message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    match first.find(" at line ") {
        Some(end) => first[..end].to_owned(),
        None => first.to_owned(),
    }
}
