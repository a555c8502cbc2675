//! `usher-demo`: the closed loop on real packets, told step by step.
//!
//! Exit code 0 only if every step held. Whatever it makes is gone afterwards, also after Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use usher_tests::process::say;
use usher_tests::report::{Mode, Report};
use usher_tests::scenario::Story;
use usher_tests::{record, skip, stage, wait};

/// Shows what Usher does, on this machine: a subscriber's video gets more room when it is starved, a traveller gets one
/// message and one tap, and who does not want to be bothered is not.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where packets come from: the probe in the kernel, or the capture file; auto takes the probe where it can.
    #[arg(long, value_enum, default_value = "auto")]
    mode: Wanted,
    /// Where the report goes.
    #[arg(long, default_value = "target/demo/report.json")]
    report: PathBuf,
    /// Keep the folder with configuration, state and logs.
    #[arg(long)]
    keep: bool,
    /// Record the packets into this file (pcap.gz), for the capture mode.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Auto,
    Probe,
    Capture,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = listen_for_signals() {
        say(&format!("usher-demo: {error:#}"));
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("usher-demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// True where every step held.
fn run(arguments: &Arguments) -> Result<bool> {
    let mut story = set(arguments.mode)?;
    if arguments.keep {
        let place = story.site.ground_mut().place_mut();
        place.keep();
        say(&format!("configuration, state and logs are kept in {}", place.folder().display()));
    }
    let told = match &arguments.record {
        Some(file) => recorded(&mut story, file),
        None => story.play(&mut |_, _| Ok(())),
    };
    story.report.write(&arguments.report)?;
    if let Err(error) = told {
        if wait::interrupted() {
            say("interrupted: cleaning up");
        } else {
            say(&format!("the story ended early: {error:#}"));
            say(&story.site.last_words());
        }
        return Ok(false);
    }
    say(&format!("\n{}\n\nthe same in {}", story.report.table(), arguments.report.display()));
    Ok(story.report.held())
}

/// The stage: with the probe where that can be, and is wanted.
fn set(wanted: Wanted) -> Result<Story> {
    let reason = match (wanted, skip::why_no_probe()) {
        (Wanted::Capture, _) => return stage::on_loopback(Report::new(Mode::Capture, false)),
        (Wanted::Probe, _) => return stage::in_lab(Report::new(Mode::Probe, false)),
        (Wanted::Auto, Some(reason)) => reason,
        (Wanted::Auto, None) => match stage::in_lab(Report::new(Mode::Probe, false)) {
            // The kernel's own word (EPERM), or the agent's: namespaces or BPF are not for us, root or not.
            Err(error) if format!("{error:#}").contains("ot permitted") => format!("{error:#}"),
            set => return set,
        },
    };
    say(&format!(
        "the probe cannot be used here ({reason}): the same loop runs from the recording in tests/demo/, and the \
         gateway element is in dry-run"
    ));
    stage::on_loopback(Report::new(Mode::Capture, false))
}

fn recorded(story: &mut Story, file: &Path) -> Result<()> {
    story.unhurried();
    let recording = record::Recording::start(story.site.lab()?)?;
    story.play(&mut |_, _| Ok(()))?;
    recording.finish(story.report.bytes.interface, file)
}

/// Ctrl-C and SIGTERM end every wait, so that the story ends and everything is cleaned up on the way out.
fn listen_for_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                wait::interrupt();
            }
        });
    });
    Ok(())
}
