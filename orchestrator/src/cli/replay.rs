//! `usher replay` and `usher plan`: a recorded day, played again here and now. Asks the orchestrator for nothing but where its
//! days are, and changes nothing.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use usher_models::units::Micros;

use super::args::Format;
use super::check;
use super::client::Client;
use super::error::CliError;
use super::output::{self, Field, Sheet, table, when};
use crate::api::model::{Explanation, Page, PolicyStanding};
use crate::days::replay::{ReplayError, Report, Tally, Whom, engine_at, replay};
use crate::days::{Day, DayError, DayFile};
use crate::policy::Policy;

/// Bytes of a day read at a time.
const BUFFER: usize = 1 << 20;
/// What happened is in the day after so long at the latest.
const RECORDED_WITHIN: SignedDuration = SignedDuration::from_mins(2);

/// Plays `day`; where it was recorded as it is replayed, that is all. Beside it under `policy`, where one is given.
pub(super) fn replayed(
    format: Format,
    day: &Path,
    policy: Option<&Path>,
    names: u32,
) -> Result<(), CliError> {
    let policy = policy.map(check::policy).transpose()?;
    tell(format, &play(day, policy, names)?)
}

/// What would change if a policy, by default the one in the file, were put in force: from the newest recorded day.
pub(super) async fn planned(
    client: &Client,
    format: Format,
    policy: Option<&Path>,
    day: Option<PathBuf>,
    names: u32,
) -> Result<(), CliError> {
    let policy = match policy {
        Some(path) => check::policy(path)?,
        None => of_file(&parsed(&client.get(&["policy"], &[]).await?)?)?,
    };
    let day = match day {
        Some(day) => day,
        None => newest(client).await?,
    };
    tell(format, &play(&day, Some(policy), names)?)
}

/// The newest of the orchestrator's days.
pub(super) async fn newest(client: &Client) -> Result<PathBuf, CliError> {
    let page: Page<DayFile> = parsed(&client.get(&["days"], &[]).await?)?;
    let newest = page.items.into_iter().next_back().map(|day| day.path);
    newest.ok_or_else(|| {
        CliError::NotFound("no day is recorded yet: the first begins within a minute".to_owned())
    })
}

/// Puts in an explanation what the engine saw at `at`, where a recorded day reaches there; a day that was named has to.
pub(super) async fn look_back(
    client: &Client,
    at: jiff::Timestamp,
    named: Option<PathBuf>,
    explanation: &mut Explanation,
) -> Result<(), CliError> {
    let is_named = named.is_some();
    let day = match named {
        Some(day) => Some(day),
        // Where no days are kept, or none can be read from here, what the API said is all there is.
        None => match client.get(&["days"], &[]).await {
            Ok(body) => parsed::<Page<DayFile>>(&body)?
                .items
                .into_iter()
                .rev()
                .find(|day| day.began() <= Some(at) && day.written + RECORDED_WITHIN >= at)
                .map(|day| day.path)
                .filter(|path| path.exists()),
            Err(CliError::Refused(_)) => None,
            Err(error) => return Err(error),
        },
    };
    let Some(path) = day else { return Ok(()) };
    let (day, bar) = open(&path)?;
    let until = Micros::new(at.as_microsecond());
    if is_named && until < day.about.began {
        let message = format!("{} begins only after {at}", path.display());
        return Err(CliError::Usage(message));
    }
    let engine = engine_at(day, until).map_err(|error| unreadable(&path, &error));
    bar.finish_and_clear();
    let subscriber = explanation.subscriber.id.clone();
    if let Some(seen) = engine?.seen(&subscriber, until) {
        (explanation.facts, explanation.stands) = (seen.facts, seen.moments);
        explanation.seen_at = explanation.at;
    }
    Ok(())
}

fn of_file(standing: &PolicyStanding) -> Result<Policy, CliError> {
    let file = &standing.file;
    match (&file.text, &file.problem) {
        (Some(text), None) => {
            Policy::parse(&file.path.display().to_string(), text).map_err(|issues| check::refused(&issues))
        }
        (_, problem) => {
            let problem = problem.as_deref().unwrap_or("cannot be read");
            Err(CliError::Refused(format!("{}: {problem}", file.path.display())))
        }
    }
}

pub(super) fn parsed<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, CliError> {
    serde_json::from_slice(body).map_err(|error| {
        CliError::Failed(format!(
            "the orchestrator's answer cannot be read ({error}): are both of one version?"
        ))
    })
}

/// Opens a day; on a terminal, with a bar that says how far it has been read.
pub(super) fn open(path: &Path) -> Result<(Day<impl Read + use<>>, ProgressBar), CliError> {
    let failed = |error: DayError| unreadable(path, &error);
    let file = File::open(path).map_err(|error| failed(error.into()))?;
    let bytes = file.metadata().map_or(0, |file| file.len());
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(bytes).with_style(
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let day = Day::open(BufReader::with_capacity(BUFFER, bar.wrap_read(file))).map_err(failed)?;
    Ok((day, bar))
}

pub(super) fn unreadable(path: &Path, error: &DayError) -> CliError {
    let message = format!("{} {error}", path.display());
    match error {
        DayError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => CliError::NotFound(message),
        _ => CliError::Failed(message),
    }
}

fn play(path: &Path, policy: Option<Policy>, names: u32) -> Result<Report, CliError> {
    let (day, bar) = open(path)?;
    let report = replay(day, policy, names as usize).map_err(|error| match error {
        ReplayError::Day(error) => unreadable(path, &error),
        ReplayError::Policy(mistakes) => check::refused(&mistakes),
    });
    bar.finish_and_clear();
    report
}

fn tell(format: Format, report: &Report) -> Result<(), CliError> {
    match format {
        Format::Table => output::print(&sheet(report))?,
        Format::Json | Format::Yaml => output::structured(format, report)?,
    }
    if report.difference.is_some() { Err(CliError::Differs) } else { Ok(()) }
}

fn sheet(report: &Report) -> String {
    let mut sheet = Sheet::default();
    let to = if report.finished { "" } else { " (it is still being written)" };
    sheet
        .line("Day", format!("{} to {}{to}", when(report.began), when(report.ended)))
        .line("Inputs", format!("{} with {} usage records", report.inputs, report.usage_records))
        .line("Recorded", format!("{} by version {}", report.recorded, report.version))
        .line("Replayed", &report.replayed);
    match &report.difference {
        None => sheet.line("Decisions", "the same, bit for bit"),
        Some(at) => {
            let version = env!("CARGO_PKG_VERSION");
            sheet.line(
                "Decisions",
                format!("DIFFER from input {} of {} on; this is version {version}", at.position, when(at.at)),
            )
        }
    };
    if let Some(other) = &report.other {
        sheet.line(
            "Facts",
            if other.windows_go_on {
                "the same under both policies"
            } else {
                "others: they began anew with the day, and are unknown until their windows are covered"
            },
        );
    }
    let other = report.other.as_ref().map(|other| &other.under);
    let mut text = sheet.end();
    text.push('\n');
    text.push_str(&tallies(&report.under, other));
    if let Some(other) = &report.other {
        let mut sheet = Sheet::default();
        sheet
            .line("Would be changed", whom(&other.would_be_changed))
            .line("No longer changed", whom(&other.no_longer_changed))
            .line("Would be told", whom(&other.would_be_told))
            .line("No longer told", whom(&other.no_longer_told))
            .line("Would be left alone", whom(&other.would_be_left_alone));
        let _ = write!(text, "\n\n{}", sheet.end());
    }
    text
}

fn whom(whom: &Whom) -> String {
    if whom.count == 0 {
        return "nobody".to_owned();
    }
    let names: Vec<&str> = whom.first.iter().map(|id| id.0.as_str()).collect();
    let more = if (names.len() as u64) < whom.count && !names.is_empty() { ", ..." } else { "" };
    format!("{}: {}{more}", whom.count, names.join(", "))
}

type Count = fn(&Tally) -> u64;

/// What was done under the day's policy, and beside it what would have been.
fn tallies(own: &Tally, other: Option<&Tally>) -> String {
    let mut rows: Vec<(String, u64, u64)> = Vec::new();
    let of = |read: Count| (read(own), other.map_or(0, read));
    let counts: [(&str, Count); 9] = [
        ("decisions", |tally| tally.decisions),
        ("  to do nothing", |tally| tally.nothing),
        ("subscribers changed", |tally| tally.subscribers_changed),
        ("subscribers told", |tally| tally.subscribers_told),
        ("subscribers left alone", |tally| tally.subscribers_left_alone),
        ("messages", |tally| tally.messages),
        ("pushes", |tally| tally.pushes),
        ("pushes a minute at peak", |tally| tally.pushes_per_minute_peak),
        ("moments", |tally| tally.moments.values().sum()),
    ];
    for (name, read) in counts {
        let (a, b) = of(read);
        rows.push((name.to_owned(), a, b));
    }
    let empty = Tally::default();
    let beside = other.unwrap_or(&empty);
    for (kind, a, b) in [("moment", &own.moments, &beside.moments), ("action", &own.actions, &beside.actions)]
    {
        let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let count = |of: &std::collections::BTreeMap<String, u64>| of.get(name).copied().unwrap_or(0);
            rows.push((format!("{kind} {name}"), count(a), count(b)));
        }
    }
    let header = if other.is_some() { &["", "RECORDED", "OTHER"][..] } else { &["", "RECORDED"] };
    let rows = rows.into_iter().map(|(name, a, b)| {
        let mut row = vec![Field::text(name), Field::number(a)];
        if other.is_some() {
            row.push(Field::number(b));
        }
        row
    });
    table(header, rows.collect(), "none")
}
