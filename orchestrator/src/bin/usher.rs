//! The operator's CLI. `usher --help` says what it does; exit codes are documented there.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use usher_orchestrator::cli::{self, Cli, CliError};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(cli)),
        Err(error) => Err(CliError::Failed(format!("cannot start: {error}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What is wrong with a linted file stands on standard output already.
            if !matches!(error, CliError::Mistakes) {
                let _ = writeln!(std::io::stderr(), "usher: {error}");
            }
            error.exit_code()
        }
    }
}
