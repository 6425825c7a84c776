//! The command line: what may be asked for. `plan` turns it into what is done.

mod simulate;

use crate::error::Error;
use crate::store::StoreArgs;
use crate::trace::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use simulate::SimulateArgs;
use std::path::PathBuf;

/// Benchmarks of Larder on public traces, through real processes.
#[derive(Debug, Parser)]
#[command(name = "larder-bench", version, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a trace through a proxy in front of mock engines, once for each policy
    ///
    /// Starts fresh mock engines and a fresh proxy for each policy, replays the same requests in the same order, and
    /// reports hit rate, load imbalance, time to first token (TTFT) and throughput. Times are trace seconds: wall time
    /// multiplied by the time scale, at which the engines run too.
    Replay(Box<ReplayArgs>),
    /// Simulate routing policies on a trace: no processes, all times are the trace's
    ///
    /// A deterministic discrete-event simulation of replicas with LRU prefix caches. `larder`, `larder_price_only` and
    /// `min_ttft` are the proxy's own routing crate; the others are published rules. Figures are simulated: they set a
    /// direction, they are no measurement of an engine.
    Simulate(Box<SimulateArgs>),
    /// Measure a cache node: what it moves, beside what the machine can and beside Redis
    ///
    /// Starts real `larder-cache-node` processes and is their engine. Limits are a plain copy with a checksum, and plain
    /// reads and writes past the page cache, between the node's own passes. A machine that does other work meanwhile
    /// measures that as well.
    Store(Box<StoreArgs>),
}

/// Routing policies of the proxy, by the names in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Policy {
    /// Shadow price and hit-first queue: Larder's own
    Larder,
    /// One engine after the other
    RoundRobin,
    /// Session header hashed onto the engines
    SessionHash,
    /// Lowest expected time to first token, no price on misses
    MinTtft,
}

impl Policy {
    /// The name in configuration and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::RoundRobin => "round_robin",
            Self::SessionHash => "session_hash",
            Self::MinTtft => "min_ttft",
        }
    }
}

/// Options of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Trace file, plain, .xz or .zst (agentic: also a folder with one .json file a session)
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Format of the trace
    #[arg(long)]
    pub format: Format,
    /// Number of mock engines
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub engines: u64,
    /// Share of the trace's distinct blocks that all engines together can hold (0.1 or 10%)
    #[arg(long, value_name = "F", default_value = "0.1", value_parser = share)]
    pub capacity: f64,
    /// Policies to run, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "round_robin,larder")]
    pub policy: Vec<Policy>,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the results into this file (.svg or .png)
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Sessions live at once (agentic) [default: 35 % of the sessions used]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub sessions: Option<u64>,
    /// Use only this many sessions of the shuffled order (agentic) or the first requests (mooncake)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Seed of the order of sessions, their staggered starts and the words of the prompts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Wall-clock budget of one policy, in seconds: no new request is sent after it
    #[arg(long, value_name = "S", default_value = "120", value_parser = positive)]
    pub duration_s: f64,
    /// Trace seconds per wall second [default: chosen so that the slowest policy fits the budget]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub time_scale: Option<f64>,
    /// Bytes of prompt text per token [default: 0.25 for agentic, 1 for mooncake]
    #[arg(long, value_name = "B", value_parser = positive)]
    pub bytes_per_token: Option<f64>,
    /// Prefill rate of one engine in tokens per trace second [default: agentic 625 * K / N; mooncake: such that a
    /// pooled cache of the same size runs at --utilization]
    #[arg(long, value_name = "R", value_parser = positive)]
    pub prefill_tokens_per_s: Option<f64>,
    /// Load that the default prefill rate is solved for (mooncake)
    #[arg(long, value_name = "U", default_value = "0.6", value_parser = positive)]
    pub utilization: f64,
    /// Tokens of a block of the trace (mooncake; agentic traces state it)
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub trace_block_tokens: u64,
    /// Longest answer asked for, in tokens: the figures are about prefill, longer answers only cost client time
    #[arg(long, value_name = "T", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub output_tokens: u64,
    /// KV block of the engines, in tokens
    #[arg(long, value_name = "T", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub engine_block_tokens: u64,
    /// Tokens that an engine prefills in one step at most [default: a quarter of a trace second of prefill]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    pub max_batched_tokens: Option<u64>,
    /// Trace seconds that an engine needs for one decode step
    #[arg(long, value_name = "S", default_value = "0.0001", value_parser = positive)]
    pub decode_step_s: f64,
    /// Bytes of one run of the proxy's prompt chain
    #[arg(long, value_name = "B", default_value_t = 64)]
    pub run_bytes: u64,
    /// Another line for the [routing] table of the proxy's configuration, as KEY=VALUE in TOML (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub routing: Vec<String>,
    /// Also simulate the same requests, print both hit rates, and fail where they are further apart than so many
    /// percentage points (session_hash is not compared: it depends on the ports that the engines get)
    #[arg(long, value_name = "POINTS", value_parser = positive, conflicts_with = "routing")]
    pub agree_with_simulate: Option<f64>,
    /// The proxy to start [default: larder-proxy beside this program]
    #[arg(long, value_name = "FILE")]
    pub proxy_bin: Option<PathBuf>,
    /// The mock engine to start [default: larder-mock-engine beside this program]
    #[arg(long, value_name = "FILE")]
    pub mock_bin: Option<PathBuf>,
    /// Keep the logs, configurations and the proxy's metrics of the run in this folder
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("must be a number above 0".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    match number.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value / unit <= 10.0 => Ok(value / unit),
        _ => Err("must be a share above 0 and at most 10, such as 0.1 or 10%".into()),
    }
}

/// Parses `argv`. `Ok(None)`: help or version was asked for and has been written.
///
/// # Errors
/// [`Error::Usage`] with clap's explanation, which lists the known names.
pub fn parse<I: IntoIterator<Item = std::ffi::OsString>>(argv: I) -> Result<Option<Cli>, Error> {
    match Cli::try_parse_from(argv) {
        Ok(cli) => Ok(Some(cli)),
        Err(error) if !error.use_stderr() => {
            error.print().map_err(|error| Error::Replay(format!("cannot write the help: {error}")))?;
            Ok(None)
        }
        Err(error) => Err(Error::Usage(error.to_string().trim_end().to_owned())),
    }
}

#[cfg(test)]
mod tests;
