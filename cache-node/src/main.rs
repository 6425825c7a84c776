//! `larder-cache-node`: argv to config to process to exit code, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use larder_cache_node::{app, config};
use larder_settings::EX_USAGE;

/// Larder's cache node: keeps the KV that this host's engines computed, and hands it back.
#[derive(Parser)]
#[command(name = "larder-cache-node", version, about)]
struct Args {
    /// The TOML configuration; config/cache-node.toml in the repository explains every key
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
            eprintln!("{}", faults.in_file(&args.config));
            return ExitCode::from(EX_USAGE);
        }
    };
    if args.check {
        eprintln!("{}: ok", args.config.display());
        return ExitCode::SUCCESS;
    }
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-cache-node: {error}");
            ExitCode::FAILURE
        }
    }
}
