//! The sessions file as YAML.

use std::sync::Arc;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::check::{Placed, Row};
use super::{MAX_FILE, MAX_SESSIONS, SessionsError};
use crate::place;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sessions: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Spanned<String>,
    keys: Vec<Spanned<String>>,
    prefixes: Vec<Spanned<String>>,
    #[serde(default)]
    plmn: Option<Spanned<String>>,
    #[serde(default)]
    rat: Option<Spanned<String>>,
    #[serde(default)]
    time_zone: Option<Spanned<String>>,
}

pub(super) fn rows(file: &Arc<str>, text: &str) -> Result<Vec<Row>, SessionsError> {
    // Room for a dozen nodes a session; no aliases, for they are how YAML bombs are built.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: MAX_SESSIONS * 32,
            max_events: MAX_SESSIONS * 48,
            max_total_scalar_bytes: usize::try_from(MAX_FILE).unwrap_or(usize::MAX),
            max_aliases: 0,
            max_anchors: 0,
        },
    };
    let read: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (place, message) = place::of_error(file, &error);
        SessionsError::Wrong { place, message }
    })?;
    Ok(read.sessions.into_iter().map(row).collect())
}

fn row(entry: Entry) -> Row {
    Row {
        id: placed(entry.id),
        keys: entry.keys.into_iter().map(placed).collect(),
        prefixes: entry.prefixes.into_iter().map(placed).collect(),
        plmn: entry.plmn.map(placed),
        rat: entry.rat.map(placed),
        time_zone: entry.time_zone.map(placed),
    }
}

fn placed(value: Spanned<String>) -> Placed {
    Placed { line: value.referenced.line(), column: value.referenced.column(), text: value.value }
}
