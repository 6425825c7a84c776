//! Options of `simulate`.

use super::{positive, share};
use crate::simulate::{Link, Memory, Model, Name, PrefillKind, View};
use crate::trace::Format;
use clap::Args;
use std::path::PathBuf;

/// Options of `simulate`. Without `--standard` and `--full`: one point.
#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// Trace file, plain, .xz or .zst (agentic: also a folder of session files). With --standard or --full: may be given
    /// twice, each with its --format
    #[arg(long, value_name = "FILE", required = true)]
    pub trace: Vec<PathBuf>,
    /// Format of the trace
    #[arg(long, required = true)]
    pub format: Vec<Format>,
    /// Number of replicas
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub endpoints: u64,
    /// Share of the trace's distinct blocks that all replicas together can hold (0.1 or 10%); a --model brings its own
    #[arg(long, value_name = "F", default_value = "0.1", value_parser = share)]
    pub capacity: f64,
    /// Sessions live at once (agentic)
    #[arg(long, value_name = "K", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub sessions: u64,
    /// Seconds over which the first of the live sessions begin, at random (agentic)
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = not_negative)]
    pub starts_over_s: f64,
    /// Policies, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub policy: Vec<Name>,
    /// What policies know of the caches: exact, or capacities told wrong by -20, 0 and +20 % in turn
    #[arg(long, default_value = "exact")]
    pub view: View,
    /// Seconds after which `larder` lets a held request go before later ones, for a quarter of its replica's time; 0 holds
    /// nobody back
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = not_negative)]
    pub hold_limit: f64,
    /// Requests that `larder` holds back at most; a refused one comes again when it was told to
    #[arg(long, value_name = "COUNT", default_value_t = 4_096, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub max_held: u64,
    /// Number of seeds: each another order of sessions; figures are means
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Open loop: leave out what arrives before this time of the trace, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = not_negative)]
    pub from_s: f64,
    /// Open loop: leave out what arrives after this time of the trace, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub to_s: Option<f64>,
    /// Tokens of a block in caches and policies [default: the trace's own; with --model 512]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub block_tokens: Option<u64>,
    /// Tokens of a block of the trace (mooncake; agentic traces state it)
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub trace_block_tokens: u64,
    /// Physical figures of a model: KV size, speed of prefill and decode, GPU memory for KV
    #[arg(long)]
    pub model: Option<Model>,
    /// Live sessions per replica (agentic, with --model; instead of --sessions)
    #[arg(long, value_name = "U", requires = "model", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub users: Option<u64>,
    /// Warehouse of so many times the cluster's KV capacity (with --model)
    #[arg(long, value_name = "X", requires = "model", value_parser = positive)]
    pub warehouse: Option<f64>,
    /// Links of 20 GB/s to the warehouse: one a replica, or one for all
    #[arg(long, default_value = "own")]
    pub link: Link,
    /// Prefill rate of one replica in tokens/s [default: agentic 625 * K / N; mooncake: such that a pooled cache of the
    /// same size runs at --utilization]
    #[arg(long, value_name = "R", value_parser = positive, conflicts_with = "model")]
    pub prefill_tokens_per_s: Option<f64>,
    /// Open loop: load of a pooled cache that the prefill rate (with --model: the arrival rate) is solved for
    #[arg(long, value_name = "U", default_value = "0.6", value_parser = positive)]
    pub utilization: f64,
    /// GPU seconds of one generated token [default: 0; a --model brings its own]
    #[arg(long, value_name = "S", value_parser = not_negative)]
    pub decode_s: Option<f64>,
    /// How a replica prefills: one request after the other, or in steps that all running requests share
    #[arg(long, default_value = "fcfs")]
    pub prefill: PrefillKind,
    /// Prefills that share a step (chunked); vLLM and SGLang have one by default
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub partial_prefills: u64,
    /// What running requests mean to a replica's cache
    #[arg(long, default_value = "lru")]
    pub memory: Memory,
    /// Run the standard points: the published tables' workloads, 1 seed
    #[arg(long, conflicts_with = "full")]
    pub standard: bool,
    /// Run the standard points with 3 seeds and both views
    #[arg(long)]
    pub full: bool,
    /// Points simulated at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: u64,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the results into this file (.svg or .png)
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("must be a number, 0 or more".into()),
    }
}
