//! The books against the wire, twenty times: real floods, agents killed and sessions moved in the middle, offloads off and on and the
//! probe in the driver in turns. Fails where a single byte or frame is missing or too many. `exact [RUNS]`; needs root.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;
use usher_benches::{say, write};
use usher_tests::exactness::{self, Offloads, Outcome};
use usher_tests::{floods, skip};

const RUNS: u32 = 20;

#[derive(Debug, Serialize)]
struct Run {
    case: String,
    exact: bool,
    /// Up, then down.
    frames_passed: [u64; 2],
    frames_counted: [u64; 2],
    bytes_passed: [u64; 2],
    bytes_counted: [u64; 2],
    /// On their way down, counted, and not sent: the other end was full.
    frames_not_sent: u64,
}

impl Run {
    fn of(number: u32, offloads: Offloads, outcome: &Outcome) -> Self {
        let (passed, counted) = (outcome.passed, outcome.counted);
        Self {
            case: match offloads {
                Offloads::Off => format!("run-{number}-frames"),
                Offloads::On => format!("run-{number}-offloads"),
                Offloads::InDriver => format!("run-{number}-in-driver"),
            },
            exact: outcome.exact(),
            frames_passed: passed.map(|sum| sum.packets),
            frames_counted: counted.map(|sum| sum.packets),
            bytes_passed: passed.map(|sum| sum.bytes),
            bytes_counted: counted.map(|sum| sum.bytes),
            frames_not_sent: outcome.lost,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Run>,
}

fn main() -> anyhow::Result<ExitCode> {
    let runs = match std::env::args().nth(1) {
        None => RUNS,
        Some(runs) => runs.parse().with_context(|| format!("`{runs}`: expected a number of runs"))?,
    };
    if let Some(reason) = skip::why_no_probe().or_else(floods::why_not) {
        bail!("this bench cannot run here: {reason}");
    }
    let mut cases = Vec::new();
    for number in 1..=runs {
        let offloads = [Offloads::InDriver, Offloads::Off, Offloads::On][number as usize % 3];
        let outcome = exactness::run(offloads).with_context(|| format!("run {number}"))?;
        let case = Run::of(number, offloads, &outcome);
        say(&format!("{}: {}: {}", case.case, if case.exact { "exact" } else { "WRONG" }, outcome.shown()));
        cases.push(case);
    }
    let exact = cases.iter().filter(|case| case.exact).count();
    say(&format!("{exact} runs of {runs} exact"));
    let all = exact == cases.len();
    write("exact", &Report { cases })?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
