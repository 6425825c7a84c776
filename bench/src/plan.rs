//! The command line and the trace become one fixed plan: every default is decided here, and printed as "scale".

use crate::cli::{Policy, ReplayArgs};
use crate::error::Error;
use crate::order::SplitMix;
use crate::scale::{self, Capacity, THINK_CAP_S};
use crate::text::Prose;
use crate::trace::{Format, Trace};
use std::path::PathBuf;

/// Longest request body sent, in bytes. Gateways refuse larger ones; a smaller `--bytes-per-token` makes them shorter.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// Above this, the time between two systems' messages (about a millisecond) is worth seconds of the trace.
const TIME_SCALE_WARN: f64 = 1000.0;

/// Share of the wall budget that the trace is fitted into; the rest is for a machine that falls behind.
const BUDGET_USED: f64 = 0.95;

/// Everything that the runs of one command have in common.
#[derive(Debug)]
pub struct Plan {
    /// Requests used; agentic sessions lie in the order in which they start.
    pub trace: Trace,
    /// One run each.
    pub policies: Vec<Policy>,
    /// The figures that the results depend on.
    pub scale: Scale,
    /// Makes the prompts.
    pub prose: Prose,
    /// The proxy program.
    pub proxy_bin: PathBuf,
    /// The mock engine program.
    pub mock_bin: PathBuf,
    /// Kept folder for logs, if asked for.
    pub run_dir: Option<PathBuf>,
    /// Further lines of the proxy's `[routing]` table.
    pub routing: Vec<String>,
    /// What the user should know before trusting the figures.
    pub warnings: Vec<String>,
}

/// The figures that the results depend on; written into the results as "scale".
#[derive(Clone, Debug, serde::Serialize)]
pub struct Scale {
    /// Trace file name.
    pub trace: String,
    /// Its format.
    pub format: Format,
    /// Unit of every `_s` figure in the results.
    pub time_unit: &'static str,
    /// Trace seconds per wall second.
    pub time_scale: f64,
    /// Wall seconds that one policy may send requests for.
    pub duration_s: f64,
    /// Sessions used (0: the format knows none).
    pub sessions: usize,
    /// Requests of them.
    pub requests: usize,
    /// Sessions live at once (0: open loop).
    pub live_sessions: usize,
    /// Seed of order, starts and words.
    pub seed: u64,
    /// Longest think time replayed, trace seconds.
    pub think_cap_s: f64,
    /// Engines.
    pub engines: u64,
    /// KV capacity.
    pub capacity: Capacity,
    /// Tokens per trace block.
    pub block_tokens: u64,
    /// Tokens per engine block.
    pub engine_block_tokens: u64,
    /// Prefill rate of one engine, tokens per trace second.
    pub prefill_tokens_per_s: f64,
    /// Tokens of one engine step at most.
    pub max_batched_tokens: u64,
    /// Trace seconds of one decode step.
    pub decode_step_s: f64,
    /// Longest answer asked for, tokens.
    pub output_tokens: u64,
    /// Bytes of prompt text per token.
    pub bytes_per_token: f64,
    /// Bytes of one run of the prompt chain.
    pub run_bytes: u64,
}

impl Plan {
    /// Reads the trace and decides every open figure.
    ///
    /// # Errors
    /// [`Error::Usage`] for arguments that cannot work, [`Error::Trace`] for a malformed trace.
    pub fn new(args: &ReplayArgs) -> Result<Self, Error> {
        if let Some(plot) = &args.plot {
            crate::plot::kind(plot)?;
        }
        let mut trace = Trace::read(&args.trace, args.format, args.trace_block_tokens)?;
        let proxy_bin = program(args.proxy_bin.as_ref(), "larder-proxy", "--proxy-bin")?;
        let mock_bin = program(args.mock_bin.as_ref(), "larder-mock-engine", "--mock-bin")?;
        choose(&mut trace, args);
        let bytes_per_token = args.bytes_per_token.unwrap_or(default_bytes_per_token(args.format));
        let prose = Prose::new(args.seed, trace.block_tokens, bytes_per_token)
            .map_err(|reason| Error::Usage(format!("--bytes-per-token: {reason}")))?;
        let (scale, warnings) = scale(args, &trace, &prose, bytes_per_token)?;
        Ok(Self {
            policies: args.policy.clone(),
            scale,
            prose,
            proxy_bin,
            mock_bin,
            run_dir: args.run_dir.clone(),
            routing: routing(&args.routing)?,
            warnings,
            trace,
        })
    }

    /// Requests that a run sends if its budget suffices.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.scale.requests
    }
}

/// A body of 30 KB for the mean agentic prompt (122,000 tokens); Mooncake's prompts are a tenth of that.
fn default_bytes_per_token(format: Format) -> f64 {
    match format {
        Format::Agentic => 0.25,
        Format::Mooncake => 1.0,
    }
}

/// Shuffles sessions, then cuts to `--limit`.
fn choose(trace: &mut Trace, args: &ReplayArgs) {
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    match trace.format {
        Format::Agentic => {
            SplitMix::new(args.seed).shuffle(&mut trace.sessions);
            trace.sessions.truncate(limit);
        }
        Format::Mooncake => trace.sessions.iter_mut().for_each(|session| session.requests.truncate(limit)),
    }
}

fn scale(
    args: &ReplayArgs,
    trace: &Trace,
    prose: &Prose,
    bytes_per_token: f64,
) -> Result<(Scale, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let largest = trace.requests().map(|request| request.input_tokens).max().unwrap_or(0);
    if prose.bytes(largest) > BODY_BYTES_MAX {
        return Err(Error::Usage(format!(
            "--bytes-per-token {bytes_per_token}: the largest request ({largest} tokens) becomes {} bytes, more than \
             {BODY_BYTES_MAX}; use a smaller value",
            prose.bytes(largest)
        )));
    }
    let live = live_sessions(args, trace, &mut warnings);
    let floor =
        scale::kv_floor_tokens(trace, prose, bytes_per_token, args.output_tokens, args.engine_block_tokens);
    let unique = trace.unique_blocks() * trace.block_tokens;
    let capacity = scale::capacity(unique, args.capacity, args.engines, args.engine_block_tokens, floor);
    if let Some(asked) = capacity.raised_from {
        warnings.push(format!(
            "--capacity {}: {asked} KV tokens per engine cannot hold the largest request ({largest} tokens); \
             using {}, which is {:.3} of the distinct blocks",
            args.capacity, capacity.kv_tokens_per_engine, capacity.share
        ));
    }
    let rate = match args.prefill_tokens_per_s {
        Some(rate) => rate,
        None => {
            let cluster = capacity.kv_tokens_per_engine * args.engines;
            scale::prefill_tokens_per_s(trace, args.engines, live, cluster, args.utilization)
                .map_err(Error::Usage)?
        }
    };
    let time_scale = time_scale(args, trace, live, rate, &mut warnings);
    let scale = Scale {
        trace: trace.name.clone(),
        format: trace.format,
        time_unit: "trace seconds (wall seconds x time_scale)",
        time_scale,
        duration_s: args.duration_s,
        sessions: if trace.format == Format::Agentic { trace.sessions.len() } else { 0 },
        requests: trace.requests().count(),
        live_sessions: live,
        seed: args.seed,
        think_cap_s: THINK_CAP_S,
        engines: args.engines,
        capacity,
        block_tokens: trace.block_tokens,
        engine_block_tokens: args.engine_block_tokens,
        prefill_tokens_per_s: rate,
        max_batched_tokens: args.max_batched_tokens.unwrap_or(scale::step_tokens(rate)),
        decode_step_s: args.decode_step_s,
        output_tokens: args.output_tokens,
        bytes_per_token,
        run_bytes: args.run_bytes,
    };
    Ok((scale, warnings))
}

/// As given, or such that the slowest policy fits the budget; never slower than life: a short trace simply ends early.
fn time_scale(args: &ReplayArgs, trace: &Trace, live: usize, rate: f64, warnings: &mut Vec<String>) -> f64 {
    let expected_s = scale::expected_length_s(trace, args.engines, live, rate);
    let time_scale = args.time_scale.unwrap_or((expected_s / (BUDGET_USED * args.duration_s)).max(1.0));
    if time_scale > TIME_SCALE_WARN {
        warnings.push(format!(
            "time scale {time_scale:.0}: a millisecond of this machine counts as {:.1} trace seconds in every TTFT; \
             a longer --duration-s or a smaller --limit tells more",
            time_scale / 1000.0
        ));
    }
    time_scale
}

/// K of the closed loop; 0 for an open loop.
fn live_sessions(args: &ReplayArgs, trace: &Trace, warnings: &mut Vec<String>) -> usize {
    if trace.format == Format::Mooncake {
        if args.policy.contains(&Policy::SessionHash) {
            warnings.push("a mooncake trace has no sessions: session_hash gets no session header".into());
        }
        return 0;
    }
    let have = trace.sessions.len();
    let default = (have as f64 * scale::LIVE_SHARE).round() as u64;
    let asked = args.sessions.unwrap_or(default).max(1) as usize;
    if asked > have {
        warnings.push(format!("--sessions {asked}: only {have} sessions are used, all of them live at once"));
    }
    asked.min(have)
}

fn routing(lines: &[String]) -> Result<Vec<String>, Error> {
    for line in lines {
        let parsed: Result<toml::Table, _> = toml::from_str(line);
        if !parsed.is_ok_and(|table| table.len() == 1) {
            return Err(Error::Usage(format!("--routing {line}: not one KEY=VALUE in TOML")));
        }
    }
    Ok(lines.to_vec())
}

/// The program named, or the one beside this program.
fn program(given: Option<&PathBuf>, name: &str, option: &str) -> Result<PathBuf, Error> {
    let path = match given {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(|error| Error::Replay(format!("cannot find this program's own folder: {error}")))?
            .with_file_name(name),
    };
    if !path.is_file() {
        return Err(Error::Usage(format!(
            "{} is not there; build it (cargo build --release -p {name}) or name it with {option}",
            path.display()
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
