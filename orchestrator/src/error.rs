//! Errors in files an operator wrote: always with file, line, column and what was expected.

use std::path::{Path, PathBuf};

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceOffset, SourceSpan};

/// Something wrong in a file an operator wrote, or in what it names.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {message}", path.display(), position(*line, *column))]
pub struct FileError {
    path: PathBuf,
    line: u64,
    column: u64,
    message: String,
    excerpt: Option<Box<Excerpt>>,
}

/// The file's text and the place in it.
#[derive(Debug)]
struct Excerpt {
    source: NamedSource<String>,
    span: SourceSpan,
}

impl FileError {
    /// About the whole file.
    pub fn whole(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 0, column: 0, message: message.into(), excerpt: None }
    }

    /// About one place in it: line and column from 1, `text` the whole file.
    pub fn at(path: &Path, text: &str, line: u64, column: u64, message: impl Into<String>) -> Self {
        let mut error = Self::whole(path, message);
        error.line = line;
        error.column = column;
        if let (Ok(line @ 1..), Ok(column)) = (usize::try_from(line), usize::try_from(column.max(1))) {
            let offset = SourceOffset::from_location(text, line, column).offset().min(text.len());
            error.excerpt = Some(Box::new(Excerpt {
                source: NamedSource::new(path.display().to_string(), text.to_owned()),
                span: SourceSpan::from((offset, word_length(&text[floor(text, offset)..]))),
            }));
        }
        error
    }

    /// A file that did not parse.
    pub fn of_yaml(path: &Path, text: &str, error: &serde_saphyr::Error) -> Self {
        let location = error.location();
        let bare = error.without_snippet().to_string();
        let (line, column) = location.map_or((0, 0), |location| (location.line(), location.column()));
        // The parser ends its message with the place, which stands in front of ours.
        let message = bare.split(" at line ").next().unwrap_or(&bare).trim().to_owned();
        let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
        Self::at(path, text, line, column, message)
    }

    /// Line and column, from 1; zeros where the whole file is meant.
    pub const fn place(&self) -> (u64, u64) {
        (self.line, self.column)
    }
}

impl Diagnostic for FileError {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|excerpt| &excerpt.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.excerpt.as_ref()?.span;
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(Some("here".to_owned()), span))))
    }
}

fn position(line: u64, column: u64) -> String {
    match (line, column) {
        (0, _) => String::new(),
        (line, 0) => format!(":{line}"),
        (line, column) => format!(":{line}:{column}"),
    }
}

/// The largest character boundary not beyond `offset`.
fn floor(text: &str, mut offset: usize) -> usize {
    offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// How much of `rest` to underline: up to the next space.
fn word_length(rest: &str) -> usize {
    rest.find(char::is_whitespace).unwrap_or(rest.len())
}
