//! `larder-bench`: argv to exit code.

use larder_bench::cli::{self, Command};
use larder_bench::error::{EXIT_FAILED, Error};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // clap's texts bring their own "error:".
            let text = error.to_string();
            let prefix =
                if text.starts_with("error:") || text.starts_with("Usage:") { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{prefix}{text}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<ExitCode, Error> {
    let Some(cli) = cli::parse(std::env::args_os())? else { return Ok(ExitCode::SUCCESS) };
    let mut out = std::io::stdout();
    let clean = match cli.command {
        Command::Replay(args) => larder_bench::run::replay(&args, &mut out)?,
        Command::Store(args) => {
            larder_bench::store::command(&args, &mut out)?;
            true
        }
        Command::Simulate(args) => {
            larder_bench::simulate::command(&args, &mut out)?;
            true
        }
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}
