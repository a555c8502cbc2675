//! Printing: tables for people, the API's own answer for programs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::args::Format;
use super::error::CliError;
use crate::api::model::Time;

/// Whether standard output takes colours: a terminal, and nobody said no.
pub(super) fn coloured() -> bool {
    is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a person reads standard output.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Prints an answer of the API: as it is, as YAML, or as `table` makes it of it.
pub(super) fn answer<T: serde::de::DeserializeOwned>(
    format: Format,
    body: &[u8],
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    let unreadable = |error: serde_json::Error| {
        CliError::Failed(format!(
            "the orchestrator's answer cannot be read ({error}): are both of one version?"
        ))
    };
    match format {
        Format::Table => print(&table(&serde_json::from_slice(body).map_err(unreadable)?)),
        Format::Json | Format::Yaml => {
            let value: serde_json::Value = serde_json::from_slice(body).map_err(unreadable)?;
            structured(format, &value)
        }
    }
}

/// Prints a value as JSON or YAML.
pub(super) fn structured<T: serde::Serialize>(format: Format, value: &T) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("cannot print this: {error}"));
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| failed(&error))?,
        Format::Table | Format::Json => {
            serde_json::to_string_pretty(value).map_err(|error| failed(&error))?
        }
    };
    print(&text)
}

/// Prints text, with a line end. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// How a word is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// As it should be.
    Good,
    /// Not there yet.
    Waiting,
    /// Needs somebody.
    Bad,
}

/// One field of a table.
pub(super) struct Field {
    cell: Cell,
    right: bool,
}

impl Field {
    pub(super) fn text(text: impl Into<String>) -> Self {
        let text = plain(&text.into());
        Self { cell: Cell::new(if text.is_empty() { "-" } else { &text }), right: false }
    }

    pub(super) fn number(number: impl ToString) -> Self {
        Self { cell: Cell::new(number).set_alignment(CellAlignment::Right), right: true }
    }

    pub(super) fn mood(text: &str, mood: Mood) -> Self {
        let colour = match mood {
            Mood::Good => Color::Green,
            Mood::Waiting => Color::Yellow,
            Mood::Bad => Color::Red,
        };
        Self { cell: Cell::new(text).fg(colour), right: false }
    }
}

/// A table without lines; `none` is printed where there are no rows.
pub(super) fn table(header: &[&str], rows: Vec<Vec<Field>>, none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if coloured() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let headings = header.iter().zip(&rows[0]).map(|(name, field)| {
        let alignment = if field.right { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(name).add_attribute(Attribute::Bold).set_alignment(alignment)
    });
    table.set_header(headings);
    for row in rows {
        table.add_row(row.into_iter().map(|field| field.cell).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// A sheet of labelled lines and sections.
#[derive(Default)]
pub(super) struct Sheet {
    text: String,
    lines: Vec<(String, String)>,
}

impl Sheet {
    /// One labelled line; one without a value is left out.
    pub(super) fn line(&mut self, label: &str, value: impl Into<String>) -> &mut Self {
        let value = plain(&value.into());
        if !value.is_empty() {
            self.lines.push((label.to_owned(), value));
        }
        self
    }

    /// A section of text below a heading.
    pub(super) fn section(&mut self, heading: &str, body: &str) -> &mut Self {
        self.end_lines();
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let _ = writeln!(self.text, "{}", strong(&plain(heading)));
        for line in body.lines() {
            let _ = writeln!(self.text, "  {line}");
        }
        self
    }

    /// The whole sheet.
    pub(super) fn end(mut self) -> String {
        self.end_lines();
        self.text
    }

    fn end_lines(&mut self) {
        let width = self.lines.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0) + 1;
        for (label, value) in self.lines.drain(..) {
            let label = plain(&label);
            let _ = writeln!(self.text, "{:width$}  {value}", format!("{label}:"));
        }
    }
}

/// Text from elsewhere (agents, devices, profiles) on one line, and unable to steer the terminal it is shown on.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Stands out on a terminal.
pub(super) fn strong(text: &str) -> String {
    if coloured() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// To the second, in UTC.
pub(super) fn when(time: Time) -> String {
    time.to_string()
}

/// The same of a time there may not be.
pub(super) fn when_any(time: Option<Time>) -> String {
    time.map(when).unwrap_or_default()
}

/// The time between two, in its largest fitting units.
pub(super) fn between(from: Time, to: Time) -> String {
    let micros = to.0.as_microsecond() - from.0.as_microsecond();
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let text = match micros {
        0..1_000 => format!("{micros} us"),
        1_000..10_000_000 => format!("{} ms", micros / 1_000),
        10_000_000..120_000_000 => format!("{} s", micros / 1_000_000),
        120_000_000..7_200_000_000 => format!("{} min", micros / 60_000_000),
        7_200_000_000..172_800_000_000 => format!("{} h", micros / 3_600_000_000),
        _ => format!("{} d", micros / 86_400_000_000),
    };
    format!("{sign}{text}")
}

/// How long ago it was.
pub(super) fn ago(time: Time) -> String {
    let now = Time(jiff::Timestamp::now());
    if now.0.as_second() - time.0.as_second() < 10 {
        return "just now".to_owned();
    }
    format!("{} ago", between(time, now))
}

/// `yes` or `no`.
pub(super) const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(micros: i64) -> Time {
        Time(jiff::Timestamp::from_microsecond(micros).unwrap())
    }

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        for (micros, told) in [
            (999, "999 us"),
            (14_000, "14 ms"),
            (9_999_000, "9999 ms"),
            (61_000_000, "61 s"),
            (180_000_000, "3 min"),
            (10_800_000_000, "3 h"),
            (259_200_000_000, "3 d"),
            (-14_000, "-14 ms"),
        ] {
            assert_eq!(between(time(0), time(micros)), told);
        }
    }

    #[test]
    fn times_say_that_they_are_utc() {
        assert_eq!(when(time(1_700_000_000_123_456)), "2023-11-14 22:13:20Z");
    }

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        let mut sheet = Sheet::default();
        sheet.line("Error", "\u{1b}]0;owned\u{7}\rfine\nmore");
        let text = sheet.end() + &table(&["A"], vec![vec![Field::text("\u{1b}[2J")]], "");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn an_empty_table_says_so_and_columns_line_up() {
        assert_eq!(table(&["ID"], Vec::new(), "no sessions"), "no sessions");
        let rows = vec![
            vec![Field::text("a"), Field::number(7)],
            vec![Field::text("longer"), Field::number(1_234_567)],
        ];
        let text = table(&["ID", "BYTES"], rows, "");
        assert_eq!(text, "ID        BYTES\na             7\nlonger  1234567\n");
    }

    #[test]
    fn a_sheet_lines_its_values_up_and_leaves_out_what_is_not_there() {
        let mut sheet = Sheet::default();
        sheet
            .line("Plan", "basic")
            .line("Organisation", "")
            .line("Id", "x")
            .section("Keys", "imsi:1\nimsi:2");
        assert_eq!(sheet.end(), "Plan:  basic\nId:    x\n\nKeys\n  imsi:1\n  imsi:2\n");
    }
}
