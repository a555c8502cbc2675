//! What the benches share: a report of cases, printed as a table and written to target/bench/NAME.json.
//!
//! Every case is measured beside something else in the same run: a number alone says more about the machine than about us.

pub mod drive;
pub mod gateway;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;

/// One measured number, and what it stands beside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// What was done.
    pub case: String,
    /// How much it took.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it was measured beside, in the same run.
    pub beside: String,
    /// How much that took.
    pub beside_value: f64,
    /// The first over the second.
    pub ratio: f64,
}

impl Case {
    /// A number and what it stands beside.
    pub fn new(
        case: impl Into<String>,
        value: f64,
        unit: &'static str,
        beside: impl Into<String>,
        beside_value: f64,
    ) -> Self {
        let ratio = if beside_value > 0.0 { value / beside_value } else { f64::INFINITY };
        Self { case: case.into(), value, unit, beside: beside.into(), beside_value, ratio }
    }
}

/// The cases of one bench.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(skip)]
    name: &'static str,
    cases: Vec<Case>,
}

impl Report {
    /// An empty report of the bench `name`.
    pub fn new(name: &'static str) -> Self {
        Self { name, cases: Vec::new() }
    }

    /// Adds a case.
    pub fn add(&mut self, case: Case) {
        self.cases.push(case);
    }

    /// Prints the table and writes the file; gives its path.
    pub fn finish(&self) -> anyhow::Result<PathBuf> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["case", "value", "unit", "beside", "value", "ratio"]);
        for case in &self.cases {
            table.add_row([
                case.case.clone(),
                format!("{:.1}", case.value),
                case.unit.to_owned(),
                case.beside.clone(),
                format!("{:.1}", case.beside_value),
                format!("{:.2}", case.ratio),
            ]);
        }
        say(&table.to_string());
        write(self.name, self)
    }
}

/// Writes a bench's figures to target/bench/NAME.json; gives its path.
pub fn write(name: &str, figures: &impl Serialize) -> anyhow::Result<PathBuf> {
    let folder = target_folder().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(figures).context("write the report")?;
    fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    say(&format!("written to {}", path.display()));
    Ok(path)
}

/// The build's target folder: the executable is in target/PROFILE.
pub fn target_folder() -> PathBuf {
    let executable = std::env::current_exe().unwrap_or_default();
    executable.parent().and_then(Path::parent).map_or_else(|| PathBuf::from("target"), Path::to_owned)
}

/// The middle of several measurements; the clock's hiccups are at the ends.
pub fn median(mut measured: Vec<Duration>) -> Duration {
    measured.sort_unstable();
    measured.get(measured.len() / 2).copied().unwrap_or_default()
}

/// A count as a figure to print or to divide.
#[expect(clippy::cast_precision_loss, reason = "a figure to print")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// Prints a line: what a bench is for.
#[expect(clippy::print_stdout, reason = "a bench's result goes to the terminal")]
pub fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_not_moved_by_a_hiccup() {
        let measured = [5, 900, 4, 6, 5].map(Duration::from_nanos).to_vec();
        assert_eq!(median(measured), Duration::from_nanos(5));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn a_case_stands_beside_another() {
        let case = Case::new("a", 30.0, "ns", "b", 20.0);
        assert!((case.ratio - 1.5).abs() < 1e-9);
    }
}
