//! The agent daemon: arguments, configuration, logs, run, exit code.
//!
//! Exit codes: 0 done; 1 failed; 2 the arguments or the configuration cannot be used.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use usher_agent::catalogue::LoadError;
use usher_agent::config::{Config, LogFormat, Source};
use usher_agent::dataplane::probe_config;
use usher_agent::probe::Probe;
use usher_agent::sessions::SessionsError;
use usher_agent::{check, classify_command, run};

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
    /// Take the probe off the interface and end its counters; without it they outlive the agent
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

fn dispatch(command: Command) -> Result<(), Failure> {
    let failed = |error: anyhow::Error| Failure(1, error);
    match command {
        Command::Run(file) => {
            let config = load(&file)?;
            let filter = check::log_filter(&config.log.level).map_err(|error| Failure(2, error.into()))?;
            let logs = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            match config.log.format {
                LogFormat::Text => logs.init(),
                LogFormat::Json => logs.json().init(),
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let ended = runtime.map_err(|error| failed(error.into()))?.block_on(run::run(config));
            ended.map_err(|error| {
                let mistake = error.is::<SessionsError>() || error.is::<LoadError>();
                Failure(if mistake { 2 } else { 1 }, error)
            })
        }
        Command::Check(file) => {
            let summary = check::check(&load(&file)?).map_err(|error| Failure(2, error.into()))?;
            write!(std::io::stdout(), "{summary}").map_err(|error| failed(error.into()))
        }
        Command::Classify(arguments) => classify_command::run(&arguments, &mut std::io::stdout().lock())
            .map_err(|error| failed(error.into())),
        Command::Detach(file) => match load(&file)?.source {
            Source::Probe(source) => {
                Probe::remove(&probe_config(&source)).map_err(|error| failed(error.into()))
            }
            Source::Capture(_) => {
                Err(Failure(2, anyhow::anyhow!("the source is a capture: there is no probe to detach")))
            }
        },
    }
}

fn load(file: &ConfigFile) -> Result<Config, Failure> {
    Config::load(&file.config).map_err(|error| Failure(2, error.into()))
}
