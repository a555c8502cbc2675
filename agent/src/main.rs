//! The agent daemon: arguments, configuration, logs, run, exit code.
//!
//! Exit codes: 0 done; 1 failed; 2 the arguments or the configuration cannot be used.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use usher_agent::catalogue::LoadError;
use usher_agent::config::{Config, Source};
use usher_agent::dataplane::probe_config;
use usher_agent::probe::Probe;
use usher_agent::sessions::SessionsError;
use usher_agent::{catalogue_command, check, classify_command, logs, run};

/// Sees how each service is used on a gateway, and holds traffic to the settings of its subscribers.
#[derive(Parser)]
#[command(name = "usher-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Run(ConfigFile),
    /// Say whether the agent would start, touching neither network nor kernel, and what it would cost
    Check(ConfigFile),
    /// List the flows of capture files
    Classify(classify_command::Args),
    /// Ask the catalogue of apps, check or compile an operator's own
    Catalogue(catalogue_command::Args),
    /// Take the probe off its interfaces and end its counters; without it they outlive the agent
    Detach(ConfigFile),
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/usher/agent.yaml")]
    config: PathBuf,
}

/// What went wrong, and the exit code that says whose it is to mend.
struct Failure(u8, anyhow::Error);

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, error)) => {
            // Where standard error is gone there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "usher-agent: {error:#}");
            ExitCode::from(code)
        }
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure(1, error.into())
}

fn mistaken(error: impl Into<anyhow::Error>) -> Failure {
    Failure(2, error.into())
}

fn dispatch(command: Command) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match command {
        Command::Run(file) => {
            let config = load(&file)?;
            logs::start(&config.log).map_err(mistaken)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let ended = runtime.map_err(failed)?.block_on(run::run(config));
            ended.map_err(|error| {
                let is_mistake = error.is::<SessionsError>() || error.is::<LoadError>();
                if is_mistake { mistaken(error) } else { failed(error) }
            })
        }
        Command::Check(file) => {
            let summary = check::check(&load(&file)?).map_err(mistaken)?;
            write!(out, "{summary}").map_err(failed)
        }
        Command::Classify(arguments) => classify_command::run(&arguments, &mut out.lock()).map_err(failed),
        Command::Catalogue(arguments) => catalogue_command::run(&arguments, &mut out.lock()).map_err(failed),
        Command::Detach(file) => match load(&file)?.source {
            Source::Probe(source) => Probe::remove(&probe_config(&source)).map_err(failed),
            Source::Capture(_) => {
                Err(mistaken(anyhow::anyhow!("the source is a capture: there is no probe")))
            }
        },
    }
}

fn load(file: &ConfigFile) -> Result<Config, Failure> {
    Config::load(&file.config).map_err(mistaken)
}
