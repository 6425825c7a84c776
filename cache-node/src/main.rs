//! `larder-cache-node`: argv to config to process to exit code, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use larder_cache_node::check::Verdict;
use larder_cache_node::{app, check, config, selftest};
use larder_settings::{EX_USAGE, parse_args};

const EXITS: &str =
    "Exit status: 0 when told to end, 64 for a bad command line or configuration, 1 for what fails later";

/// Larder's cache node: keeps the KV that this host's engines computed, and hands it back.
#[derive(Parser)]
#[command(name = "larder-cache-node", version, about, after_help = EXITS)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The TOML configuration; config/cache-node.toml in the repository explains every key
    #[arg(long, short, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration and try out what it asks of this machine, say what to change, and exit (64 if the node
    /// would not start or not go on)
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Test the GPU path on this machine: every order of a cache and every way of a transfer, byte for byte, and how
    /// fast each is. LARDER_LIBCUDA names a driver in an unusual place, or the emulator
    Selftest {
        /// Which GPU, of those that this process may see
        #[arg(long, value_name = "N", default_value_t = 0)]
        gpu: usize,
        /// Be the engine's process of a self-test
        #[arg(long, hide = true)]
        as_engine: bool,
    },
}

/// Runs the command; prints why it could not.
#[expect(clippy::print_stderr, reason = "these words are for whoever started us")]
fn run(command: &Command) -> ExitCode {
    let Command::Selftest { gpu, as_engine } = *command;
    let result = match as_engine {
        true => selftest::engine(gpu).map(|()| true),
        false => selftest::run(gpu, &mut std::io::stdout()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("larder-cache-node selftest: {error}");
            ExitCode::FAILURE
        }
    }
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
    if let Some(command) = &args.command {
        return run(command);
    }
    let file = args.config.expect("required where there is no command");
    let config = match config::load(&file) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{}", faults.in_file(&file));
            return ExitCode::from(EX_USAGE);
        }
    };
    if args.check {
        eprintln!("{}: ok", file.display());
        let found = check::run(&config);
        found.iter().for_each(|finding| eprintln!("{finding}"));
        let bad = found.iter().any(|finding| finding.verdict == Verdict::Bad);
        return if bad { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
    }
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-cache-node: {error}");
            ExitCode::FAILURE
        }
    }
}
