//! `larder-proxy`: argv to config to process to exit code, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use larder_proxy::assemble::Files;
use larder_proxy::{app, config};
use larder_settings::{EX_USAGE, parse_args};

const EXITS: &str =
    "Exit status: 0 after a drain, 64 for a bad command line or configuration, 1 for what fails later";

/// Larder's gateway: sends each LLM request to the engine that holds its prompt's prefix.
#[derive(Parser)]
#[command(name = "larder-proxy", version, about, after_help = EXITS)]
struct Args {
    /// The TOML configuration; config/proxy.toml in the repository explains every key
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the files that it names, print every fault, and exit (64 if there is one)
    #[arg(long)]
    check: bool,
    /// Send requests by load alone until POST /v1/pass-through?on=false: no policy, no waiting, no cache node
    #[arg(long)]
    pass_through: bool,
}

#[expect(
    clippy::print_stderr,
    reason = "logging starts with the config, and these words are for whoever started us"
)]
fn main() -> ExitCode {
    let args: Args = match parse_args() {
        Ok(args) => args,
        Err(status) => return status,
    };
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(faults) => {
            // Each names the file.
            eprintln!("{faults}");
            return ExitCode::from(EX_USAGE);
        }
    };
    if args.check {
        if let Err(faults) = Files::read(&config) {
            faults.iter().for_each(|fault| eprintln!("{}: {fault}", args.config.display()));
            return ExitCode::from(EX_USAGE);
        }
        eprintln!("{}: ok", args.config.display());
        return ExitCode::SUCCESS;
    }
    match app::run(&args.config, config, args.pass_through) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("larder-proxy: {e}");
            ExitCode::FAILURE
        }
    }
}
