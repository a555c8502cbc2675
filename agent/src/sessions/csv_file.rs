//! The sessions file as CSV.

use std::sync::Arc;

use csv::{ReaderBuilder, StringRecord, Trim};

use super::SessionsError;
use super::check::{Placed, Row};
use crate::place::Place;

/// The columns, in the order of [`Columns`].
const COLUMNS: [&str; 6] = ["id", "keys", "prefixes", "plmn", "rat", "time_zone"];
/// How many of them, from the first, must be there.
const REQUIRED: usize = 3;

/// At which field each of [`COLUMNS`] stands.
type Columns = [Option<usize>; COLUMNS.len()];

pub(super) fn rows(file: &Arc<str>, text: &str) -> Result<Vec<Row>, SessionsError> {
    let mut reader = ReaderBuilder::new()
        .trim(Trim::None)
        .comment(Some(b'#'))
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut columns: Option<Columns> = None;
    let mut rows = Vec::new();
    let mut record = StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(unreadable(file, &error)),
        }
        let line = Line { file, text, record: &record };
        match &columns {
            None => columns = Some(header(&line)?),
            Some(columns) => rows.push(line.row(columns)),
        }
    }
    if columns.is_none() {
        let place = Place { file: Arc::clone(file), line: 1, column: 1 };
        let message =
            format!("empty: expected a first line that names the columns, as in `{}`", COLUMNS.join(","));
        return Err(SessionsError::Wrong { place, message });
    }
    Ok(rows)
}

fn header(line: &Line<'_>) -> Result<Columns, SessionsError> {
    let mut columns: Columns = [None; COLUMNS.len()];
    for (field, name) in line.record.iter().enumerate() {
        let known = COLUMNS.iter().position(|column| *column == name.trim());
        let slot = known.map(|column| &mut columns[column]);
        let message = match slot {
            Some(slot @ None) => {
                *slot = Some(field);
                continue;
            }
            Some(Some(_)) => format!("column `{}` is there twice", name.trim()),
            None => {
                format!("unknown column `{}`: expected {}", name.trim().escape_debug(), COLUMNS.join(", "))
            }
        };
        return Err(SessionsError::Wrong { place: line.place(field), message });
    }
    if let Some(missing) = (0..REQUIRED).find(|column| columns[*column].is_none()) {
        let message = format!("missing column `{}`: expected {}", COLUMNS[missing], COLUMNS.join(", "));
        return Err(SessionsError::Wrong { place: line.place(0), message });
    }
    Ok(columns)
}

/// One record, and the text it comes from.
struct Line<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    record: &'a StringRecord,
}

impl Line<'_> {
    fn row(&self, columns: &Columns) -> Row {
        let field = |column: usize| {
            columns[column].map(|field| self.placed(field)).filter(|placed| !placed.text.is_empty())
        };
        let list = |column: usize| -> Vec<Placed> {
            let whole = field(column);
            whole
                .iter()
                .flat_map(|whole| {
                    let words = whole.text.split([' ', ';']).filter(|word| !word.is_empty());
                    words.map(|word| Placed { text: word.to_owned(), ..*whole })
                })
                .collect()
        };
        let id = field(0).unwrap_or_else(|| self.placed(columns[0].unwrap_or(0)));
        Row { id, keys: list(1), prefixes: list(2), plmn: field(3), rat: field(4), time_zone: field(5) }
    }

    fn placed(&self, field: usize) -> Placed {
        let Place { line, column, .. } = self.place(field);
        Placed { line, column, text: self.record.get(field).unwrap_or_default().trim().to_owned() }
    }

    /// Where a field begins: the csv crate knows the record's first byte, the fields are counted from there.
    fn place(&self, field: usize) -> Place {
        let (mut line, start) = self.record.position().map_or((0, 0), |at| (at.line(), at.byte()));
        let rest = usize::try_from(start).ok().and_then(|start| self.text.get(start..)).unwrap_or_default();
        let (mut column, mut left, mut quoted) = (1, field, false);
        for character in rest.chars() {
            // The record's position may be that of empty lines and comments before it.
            if left == 0 && !(column == 1 && field == 0 && matches!(character, '\n' | '\r')) {
                break;
            }
            match character {
                '"' => quoted = !quoted,
                ',' if !quoted => left -= 1,
                _ => {}
            }
            if character == '\n' {
                (line, column) = (line + 1, 1);
            } else {
                column += 1;
            }
        }
        Place { file: Arc::clone(self.file), line, column }
    }
}

fn unreadable(file: &Arc<str>, error: &csv::Error) -> SessionsError {
    let line = error.position().map_or(0, csv::Position::line);
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields: expected {expected_len}, as the first line has")
        }
        _ => error.to_string(),
    };
    SessionsError::Wrong { place: Place { file: Arc::clone(file), line, column: 1 }, message }
}
