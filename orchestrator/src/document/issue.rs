//! What is wrong with a file, and where.

use std::fmt;

use super::Span;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Issue {
    /// Where it stands.
    pub span: Span,
    /// What is wrong and what was expected: a lowercase fragment.
    pub message: String,
    /// What to do about it, where that is more than the message says.
    pub help: Option<String>,
}

impl Issue {
    /// A mistake at a place.
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: None }
    }

    /// With a word on what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// `line:column: message (help)`
impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.span.line, self.span.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with one file, in the order of the file. Displays as one `file:line:column: ...` a line; as a
/// [`miette::Diagnostic`] it shows the places in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issues {
    /// The file's name, as the reader knows it.
    pub file: String,
    /// Its text, for showing the places.
    pub text: String,
    /// Never empty.
    pub issues: Vec<Issue>,
}

impl Issues {
    /// Of a file; sorts by position.
    pub fn new(file: &str, text: &str, mut issues: Vec<Issue>) -> Self {
        issues.sort();
        issues.dedup();
        Self { file: file.to_owned(), text: text.to_owned(), issues }
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{issue}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Issues {}

impl miette::Diagnostic for Issues {
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        Some(Box::new(self.issues.iter().map(|issue| {
            let label = match &issue.help {
                Some(help) => format!("{} ({help})", issue.message),
                None => issue.message.clone(),
            };
            miette::LabeledSpan::new(Some(label), issue.span.offset, issue.span.length.max(1))
        })))
    }
}
