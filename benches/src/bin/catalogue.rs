//! What the catalogue costs: to load, in every form of an operator's file; to hold; and to ask, beside a `HashMap` of the
//! full names, which knows no suffixes.
//!
//! Loading is the whole of it: reading the file, checking it, and the built-in catalogue below. Times are CPU time of this
//! thread, the best of some rounds, for noise only adds.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};
use usher_agent::catalogue;
use usher_agent::classify::Catalogue;
use usher_benches::{Case, Report, target_folder};

const SIZES: [(u32, &str); 2] = [(35_000, "35,000"), (1_000_000, "1,000,000")];
const ROUNDS: usize = 5;
/// Names asked for in a round.
const ASKED: u32 = 1_000_000;
/// Domains under one app.
const OF_AN_APP: u32 = 50;

fn main() -> anyhow::Result<()> {
    let folder = target_folder().join("bench").join("catalogues");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut report = Report::new("catalogue");
    // Once in a process: whoever asks again shares it.
    let began = cpu();
    let built_in = Catalogue::built_in();
    let load = cpu().saturating_sub(began);
    let (took, map) = best(|| filled(35_000));
    report.add(Case::new(
        "built-in catalogue, load",
        millis(load),
        "ms",
        "fill a HashMap of 35,000",
        millis(took),
    ));
    report.add(Case::new(
        "built-in catalogue, hold",
        mega(built_in.held()),
        "MB",
        "that HashMap",
        mega(held(&map)),
    ));
    for (rules, written) in SIZES {
        measure(rules, written, &folder, &mut report)?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    report.finish()?;
    Ok(())
}

fn measure(rules: u32, written: &str, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let (fill, map) = best(|| filled(rules));
    let files = files(rules, folder)?;
    for (form, file) in &files {
        let (took, loaded) = best(|| catalogue::load(Some(file)));
        let loaded = loaded.with_context(|| format!("load {}", file.display()))?;
        ensure!(
            loaded.len() == Catalogue::built_in().len() + rules as usize,
            "{form}: {} rules",
            loaded.len()
        );
        let case = format!("{written} rules, load {form}");
        report.add(Case::new(case, millis(took), "ms", "fill a HashMap", millis(fill)));
        if *form == "compiled" {
            let own = loaded.held() - Catalogue::built_in().held();
            report.add(Case::new(
                format!("{written} rules, hold"),
                mega(own),
                "MB",
                "that HashMap",
                mega(held(&map)),
            ));
            let asked: Vec<String> = (0..ASKED).map(|turn| domain(scatter(turn, rules))).collect();
            let below: Vec<String> = asked.iter().map(|name| format!("www.{name}")).collect();
            let known = |names: &[String]| names.iter().filter(|name| loaded.look_up(name).is_some()).count();
            let (by_map, found) = best(|| asked.iter().filter(|name| map.contains_key(&***name)).count());
            let counts = [found, known(&asked), known(&below)];
            ensure!(counts == [asked.len(); 3], "of {} names {counts:?} are found", asked.len());
            let beside = "HashMap, the full name";
            for (what, names) in [("look up a rule's own name", &asked), ("look up a name below", &below)] {
                let (took, _) = best(|| black_box(known(names)));
                let case = format!("{written} rules, {what}");
                report.add(Case::new(case, nanos(took), "ns", beside, nanos(by_map)));
            }
        }
    }
    Ok(())
}

/// The same rules in every form that can be loaded.
fn files(rules: u32, folder: &Path) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let (mut yaml, mut quoted, mut list) = ("rules:\n".to_owned(), "rules:\n".to_owned(), String::new());
    for number in 0..rules {
        let app = number / OF_AN_APP % 10_000;
        if number % OF_AN_APP == 0 {
            writeln!(list, ":app-{app} web")?;
        }
        writeln!(list, "{}", domain(number))?;
        writeln!(yaml, "- {{domain: {}, app: app-{app}, class: web}}", domain(number))?;
        writeln!(
            quoted,
            "- {{\"domain\": \"{}\", \"app\": \"app-{app}\", \"class\": \"web\"}}",
            domain(number)
        )?;
    }
    let path = |name: &str| folder.join(format!("{rules}.{name}"));
    let files = vec![
        ("YAML", path("yaml")),
        ("quoted YAML", path("quoted.yaml")),
        ("a list", path("txt")),
        ("compiled", path("catalogue")),
    ];
    fs::write(path("yaml"), yaml).context("write the YAML")?;
    fs::write(path("quoted.yaml"), quoted).context("write the quoted YAML")?;
    fs::write(path("txt"), list).context("write the list")?;
    fs::write(path("catalogue"), catalogue::compiled(&path("txt"))?).context("write the compiled file")?;
    Ok(files)
}

/// Of the length that domains have.
fn domain(number: u32) -> String {
    format!("host-{number}.example-{}.test", number % 977)
}

/// The numbers below `rules`, in no order that a cache likes.
fn scatter(turn: u32, rules: u32) -> u32 {
    let mixed = u64::from(turn).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    u32::try_from(mixed % u64::from(rules)).unwrap_or_default()
}

fn filled(rules: u32) -> HashMap<Box<str>, u32> {
    (0..rules).map(|number| (domain(number).into_boxed_str(), number / OF_AN_APP)).collect()
}

/// Table and text, each text in a piece of a multiple of 16 bytes, 8 of which are the allocator's.
fn held(map: &HashMap<Box<str>, u32>) -> usize {
    let text: usize = map.keys().map(|name| (name.len() + 8).next_multiple_of(16).max(32)).sum();
    (map.capacity() * 8 / 7).next_power_of_two() * (size_of::<(Box<str>, u32)>() + 1) + text
}

fn best<T>(mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut timed = || {
        let began = cpu();
        let result = work();
        (cpu().saturating_sub(began), result)
    };
    let mut best = timed();
    for _ in 1..ROUNDS {
        let round = timed();
        if round.0 < best.0 {
            best = round;
        }
    }
    best
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9 / f64::from(ASKED)
}

fn mega(bytes: usize) -> f64 {
    u32::try_from(bytes).map_or(f64::INFINITY, f64::from) / 1e6
}
