//! `larder-sim`: runs seeds of the simulation until one fails.

use std::process::ExitCode;

use clap::Parser;
use larder_cache_node::store::Verify;
use larder_sim::{Settings, run};

/// Seeded simulation of a cache node's store and disk. Prints the first seed that fails, and how to see it again.
#[derive(Parser)]
#[command(name = "larder-sim", version, about)]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Things that happen in each
    #[arg(long, default_value_t = 1500)]
    steps: u64,
    /// Leave checksums off, to see that wrong bytes are seen
    #[arg(long)]
    checksums_off: bool,
}

#[expect(clippy::print_stdout, reason = "the result is this program's output")]
fn main() -> ExitCode {
    let args = Args::parse();
    let verify = if args.checksums_off { Verify::Off } else { Verify::Lease };
    let (mut compared, mut crashes) = (0, 0);
    for seed in args.from..args.from.saturating_add(args.seeds) {
        match run(Settings { seed, steps: args.steps, verify }) {
            Ok(report) => {
                compared += report.compared_chunks;
                crashes += report.crashes;
            }
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{} seeds, {crashes} crashes, {compared} chunks compared, no wrong byte, nothing left over",
        args.seeds
    );
    ExitCode::SUCCESS
}
