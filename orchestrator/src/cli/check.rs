//! `usher lint`: a policy and its profiles checked as the daemon would, with the places shown in the text.

use std::io::{self, Read as _};
use std::path::Path;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

use super::args::Format;
use super::error::CliError;
use super::output::{self, coloured, is_terminal};
use crate::api::lint::examine;
use crate::api::model::Severity;
use crate::document::{Issue, Issues};
use crate::policy::Policy;

/// Largest file that is read.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

pub(super) fn lint(
    format: Format,
    policy: &Path,
    profiles: Option<&Path>,
    strict: bool,
) -> Result<(), CliError> {
    let (name, text) = read(policy)?;
    let profiles = profiles.map(read).transpose()?;
    let profiles = profiles.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let found = examine(&name, &text, profiles);
    match format {
        Format::Table => {
            let errors = found.errors.iter().map(|issues| show(issues, Severity::Error));
            let warnings = found.warnings.iter().map(|issues| show(issues, Severity::Warning));
            let good = found
                .revision()
                .into_iter()
                .map(|revision| format!("{name}: no mistakes (revision {revision})\n"));
            output::print(&errors.chain(warnings).chain(good).collect::<String>())?;
        }
        Format::Json | Format::Yaml => output::structured(format, &found.lint())?,
    }
    if found.errors.is_empty() && (found.warnings.is_empty() || !strict) {
        Ok(())
    } else {
        Err(CliError::Mistakes)
    }
}

/// The policy in a file, checked by itself.
pub(super) fn policy(path: &Path) -> Result<Policy, CliError> {
    let (name, text) = read(path)?;
    let found = examine(&name, &text, None);
    found.policy.ok_or_else(|| {
        let told = found.errors.iter().map(|issues| show(issues, Severity::Error));
        CliError::Refused(format!("the policy has mistakes:\n{}", told.collect::<String>()))
    })
}

/// Mistakes of a policy beside the plans it was to work with.
pub(super) fn refused(issues: &Issues) -> CliError {
    CliError::Refused(format!("the policy has mistakes:\n{}", show(issues, Severity::Error)))
}

pub(super) fn read(path: &Path) -> Result<(String, String), CliError> {
    let name = path.display().to_string();
    let failed = |error: io::Error| CliError::Failed(format!("cannot read {name}: {error}"));
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().take(BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        return Ok(("standard input".to_owned(), text));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok((name, text))
}

/// Every mistake or warning of a file: one line that tools can read, then the place in the text.
fn show(issues: &Issues, severity: Severity) -> String {
    let what = if severity == Severity::Warning { "warning" } else { "mistake" };
    let theme = if coloured() { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    // One line a message where a program reads it.
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(110)
        .with_wrap_lines(is_terminal())
        .with_links(false);
    let source = NamedSource::new(&issues.file, issues.text.clone());
    let mut text = String::new();
    for issue in &issues.issues {
        let place = Place { file: &issues.file, issue, source: &source, severity };
        if handler.render_report(&mut text, &place).is_err() {
            text.push_str(&place.to_string());
        }
        text.push('\n');
    }
    let count = issues.issues.len();
    text + &format!("{}: {count} {what}{}\n", issues.file, if count == 1 { "" } else { "s" })
}

/// One mistake as miette shows it.
#[derive(Debug)]
struct Place<'a> {
    file: &'a str,
    issue: &'a Issue,
    source: &'a NamedSource<String>,
    severity: Severity,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let span = self.issue.span;
        write!(f, "{}:{}:{}: {}", self.file, span.line, span.column, self.issue.message)
    }
}

impl std::error::Error for Place<'_> {}

impl Diagnostic for Place<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.issue.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.issue.span;
        let label = LabeledSpan::new(Some("here".to_owned()), span.offset, span.length.max(1));
        Some(Box::new(std::iter::once(label)))
    }
}
