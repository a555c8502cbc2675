//! The orchestrator daemon: arguments, configuration, logs, run, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use miette::MietteHandlerOpts;
use tracing_subscriber::EnvFilter;
use usher_orchestrator::config::{LogConfig, LogFormat};
use usher_orchestrator::elements::ElementsError;
use usher_orchestrator::policy::PolicyErrors;
use usher_orchestrator::run;

/// Something it cannot do without failed.
const FAILED: u8 = 1;
/// Wrong usage, or a mistake in the configuration, the policy or the profiles.
const MISTAKE: u8 = 2;

/// Decides for each subscriber what, if anything, to do, and does it.
///
/// Exit codes: 0 stopped as told, 1 failed, 2 wrong usage or a mistake in a file. SIGHUP reads policy and profiles again,
/// SIGTERM and SIGINT stop. RUST_LOG goes before the configured log level.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/usher/orchestrator.yaml")]
    config: PathBuf,
    /// Check the configuration and everything it names, then end.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the days that are kept, or copy the newest, up to this moment, to one file; the daemon may be running
    #[command(
        after_help = "Examples:\n  usher-orchestrator record\n  usher-orchestrator record --output today.day && usher replay today.day\n\nDays are kept where the configuration has a section `record`."
    )]
    Record {
        /// The file to write
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A message stays on its line, for people and for scripts.
    let _ = miette::set_hook(Box::new(|_| Box::new(MietteHandlerOpts::new().wrap_lines(false).build())));
    let loaded = match run::load(&arguments.config) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            say(&format!("usher-orchestrator:\n{mistakes:?}"));
            return ExitCode::from(MISTAKE);
        }
    };
    if arguments.check {
        say("usher-orchestrator: no mistakes found");
        return ExitCode::SUCCESS;
    }
    if let Some(Command::Record { output }) = arguments.command {
        return match run::record(&loaded.config, output.as_deref()) {
            Ok(told) => {
                let _ = std::io::stdout().write_all(told.as_bytes());
                ExitCode::SUCCESS
            }
            Err(error) => {
                say(&format!("usher-orchestrator: {error:#}"));
                ExitCode::from(FAILED)
            }
        };
    }
    start_logging(&loaded.config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run::run(loaded)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("usher-orchestrator: {error:#}"));
            let mistake = error.is::<ElementsError>() || error.is::<PolicyErrors>();
            ExitCode::from(if mistake { MISTAKE } else { FAILED })
        }
    }
}

fn start_logging(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&config.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

/// Nobody is told where standard error is closed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
