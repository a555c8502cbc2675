//! Whatever way a demo run ends, what it made is gone.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use usher_tests::netns::Place;
use usher_tests::wait::{self, Seen};
use usher_tests::{process, skip};

/// Until a demo has said any of the words here.
const SAYS_WITHIN: Duration = Duration::from_mins(2);

/// Starts the demo, and gives it back once it has printed something with `words` in it.
fn demo_that_has_said(words: &str, report: &Path) -> Child {
    let mut command = process::command(
        process::built_program("usher-demo").unwrap(),
        ["--mode", "probe", "--report", &report.to_string_lossy()],
    );
    let mut demo = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let (saying, said) = mpsc::channel();
    // All of it is read, or the demo would wait for someone to read it.
    std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| drop(saying.send(line)));
    });
    let deadline = Instant::now() + SAYS_WITHIN;
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|line: &String| line.contains(words)) {
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => heard.push(line),
            Err(why) => {
                let _ = demo.kill();
                panic!("the demo did not say `{words}` ({why}); it said:\n{}", heard.join("\n"));
            }
        }
    }
    demo
}

/// Everything on this machine that is named after a run.
fn left_of(run: u32) -> Vec<String> {
    let prefix = format!("usher-demo-{run}-");
    let temporary = std::env::temp_dir().to_string_lossy().into_owned();
    let made = ["/run/netns", "/sys/fs/bpf", temporary.as_str()]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains(&prefix));
    made.chain(running_in(&prefix)).collect()
}

/// Processes that were started with a path of the run, or work in its folder.
fn running_in(prefix: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let concerned = words.contains(prefix) || folder.to_string_lossy().contains(prefix);
            concerned.then(|| format!("process {}: {words}", entry.file_name().display()))
        })
        .collect()
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    if let Some(reason) = skip::why_no_probe() {
        return skip::skipped("a_demo_that_is_interrupted_leaves_nothing_behind", &reason);
    }
    let folder = tempfile::tempdir().unwrap();
    for (words, signal) in [
        ("three namespaces", Signal::INT),
        ("A streams at the plan's SD rate", Signal::TERM),
        ("video: hd is pushed", Signal::HUP),
    ] {
        let mut demo = demo_that_has_said(words, &folder.path().join("report.json"));
        assert_ne!(left_of(demo.id()), Vec::<String>::new(), "it has made something");
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let status = wait::until("the demo's end", Duration::from_secs(20), || {
            Ok(demo.try_wait()?.map_or_else(|| Seen::NotYet("running".to_owned()), Seen::Done))
        })
        .unwrap();
        assert_eq!(status.code(), Some(1), "an interrupted demo has not shown what it was to show");
        assert_eq!(left_of(demo.id()), Vec::<String>::new(), "interrupted after `{words}`");
    }
}

#[test]
fn the_next_run_removes_what_a_killed_demo_left_behind() {
    if let Some(reason) = skip::why_no_probe() {
        return skip::skipped("the_next_run_removes_what_a_killed_demo_left_behind", &reason);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo_that_has_said("A streams at the plan's SD rate", &folder.path().join("report.json"));
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert_ne!(left_of(demo.id()), Vec::<String>::new(), "it had no time to clean up");
    let next = Place::new().unwrap();
    assert_eq!(left_of(demo.id()), Vec::<String>::new());
    drop(next);
}
