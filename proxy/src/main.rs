//! `larder-proxy`: argv to config to process to exit code, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use larder_proxy::{app, config};
use larder_settings::EX_USAGE;

/// Larder's gateway: sends each LLM request to the engine that holds its prompt's prefix.
#[derive(Parser)]
#[command(name = "larder-proxy", version, about)]
struct Args {
    /// The TOML configuration; config/proxy.toml in the repository explains every key
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration, print every fault, and exit (64 if there is one)
    #[arg(long)]
    check: bool,
}

#[expect(
    clippy::print_stderr,
    reason = "logging starts with the config, and these words are for whoever started us"
)]
fn main() -> ExitCode {
    let args = Args::parse();
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{}: {faults}", args.config.display());
            return ExitCode::from(EX_USAGE);
        }
    };
    if args.check {
        eprintln!("{}: ok", args.config.display());
        return ExitCode::SUCCESS;
    }
    match app::run(&args.config, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("larder-proxy: {e}");
            ExitCode::FAILURE
        }
    }
}
