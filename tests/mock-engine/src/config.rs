//! The command line, and what it means once checked.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;

use crate::content::Tokeniser;
use crate::fault::Fault;
use crate::render::Renderer;
use crate::scheduler::{Cost, Limits};

/// An honest imitation of a vLLM server: paged prefix cache, continuous batching and the HTTP surface, without a
/// model. All model times are divided by --time-scale; times named "real" are not.
#[derive(Clone, Debug, Parser)]
#[command(name = "larder-mock-engine", version)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one, printed when ready
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Served model name; repeat for aliases, which share one cache namespace
    #[arg(long = "model", default_value = "mock-model")]
    pub models: Vec<String>,
    /// Served adapter name; repeatable, each with a cache namespace of its own
    #[arg(long = "lora")]
    pub loras: Vec<String>,
    /// Tokens in a cache block
    #[arg(long, default_value_t = 16)]
    pub block_tokens: u32,
    /// KV cache capacity in tokens, rounded down to whole blocks
    #[arg(long, default_value_t = 131_072)]
    pub kv_tokens: u32,
    /// Longest prompt plus output in tokens [default: the KV capacity]
    #[arg(long)]
    pub max_model_len: Option<u32>,
    /// Bytes of rendered prompt that make a token; may be below 1, a block must cover whole bytes
    #[arg(long, default_value_t = 4.0)]
    pub bytes_per_token: f64,
    /// Tokens that an image or another part that is no text takes in the prompt
    #[arg(long, default_value_t = 256)]
    pub media_tokens: u32,
    /// Switch prefix caching off
    #[arg(long)]
    pub no_prefix_caching: bool,
    /// Don't make blocks with generated tokens findable (vLLM does)
    #[arg(long)]
    pub no_cache_generated: bool,
    /// Token budget of a step
    #[arg(long, default_value_t = 8192)]
    pub max_batched_tokens: u32,
    /// Requests running at the same time
    #[arg(long, default_value_t = 256)]
    pub max_running: u32,
    /// Prefill speed in model tokens per second
    #[arg(long, default_value_t = 8000.0)]
    pub prefill_tokens_per_s: f64,
    /// Model seconds for each pair of a prefilled token and one before it (attention)
    #[arg(long, default_value_t = 0.0)]
    pub prefill_quadratic_s: f64,
    /// Shortest step in model seconds; a step that only decodes takes this long
    #[arg(long, default_value_t = 0.02)]
    pub decode_step_s: f64,
    /// How much faster than its model the engine runs
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// Real milliseconds between two writes in the middle of a stream; steps in between travel together, first
    /// and last tokens never wait. More saves CPU time when many streams run at a large time scale
    #[arg(long, default_value_t = 1.0)]
    pub stream_grain_ms: f64,
    /// Output tokens of a request that names no max_tokens
    #[arg(long, default_value_t = 16)]
    pub default_max_tokens: u32,
    /// Report cached_tokens in usage.prompt_tokens_details
    #[arg(long)]
    pub enable_prompt_tokens_details: bool,
    /// With details on, report null instead of 0 cached tokens, as vLLM did until 2025
    #[arg(long)]
    pub null_when_uncached: bool,
    /// Bearer token required under /v1
    #[arg(long)]
    pub api_key: Option<String>,
    /// Answer unknown paths with what was received instead of 404
    #[arg(long)]
    pub echo_unknown: bool,
    /// Real seconds from start during which everything but /debug answers 503
    #[arg(long, default_value_t = 0.0)]
    pub ready_after_s: f64,
    /// Real seconds after which an idle connection is closed, 0 for never (uvicorn: 5)
    #[arg(long, default_value_t = 0.0)]
    pub keep_alive_s: f64,
    /// Seed of the filler text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A fault to start with: the JSON that POST /debug/fault takes
    #[arg(long, value_parser = parse_fault)]
    pub fault: Option<Fault>,
    /// Whether the fault "die" ends the process, or (in a test's own process) only the server
    #[arg(skip)]
    pub die_exits_process: bool,
}

impl Default for Config {
    /// The command line's defaults, on a free port.
    fn default() -> Self {
        Self::parse_from(["larder-mock-engine", "--listen", "127.0.0.1:0"])
    }
}

fn parse_fault(json: &str) -> Result<Fault, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// A setting that can't work, named with its value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(String);

/// The checked parts that the engine is built from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) limits: Limits,
    pub(crate) cost: Cost,
    pub(crate) renderer: Renderer,
    pub(crate) max_model_len: u32,
    pub(crate) ready_after: Duration,
    pub(crate) keep_alive: Option<Duration>,
}

/// Blocks beyond this would take gigabytes of this process's memory.
const BLOCKS_MAX: u32 = 1 << 26;

/// A thousand times the largest block that engines use.
const BLOCK_TOKENS_MAX: u32 = 1 << 16;

/// More than any model spends on an image; a part costs this many tokens of memory.
const MEDIA_TOKENS_MAX: u32 = 1 << 16;

impl Config {
    /// Checks all settings.
    ///
    /// # Errors
    /// [`BadConfig`] for the first that can't work.
    pub(crate) fn plan(&self) -> Result<Plan, BadConfig> {
        self.check_numbers()?;
        let blocks = self.kv_tokens / self.block_tokens;
        if blocks == 0 || blocks > BLOCKS_MAX {
            return Err(BadConfig(format!(
                "kv-tokens {} makes {blocks} blocks of {} tokens; 1 to {BLOCKS_MAX} are possible",
                self.kv_tokens, self.block_tokens
            )));
        }
        let capacity = blocks * self.block_tokens;
        let max_model_len = self.max_model_len.unwrap_or(capacity);
        if max_model_len == 0 || max_model_len > capacity {
            return Err(BadConfig(format!(
                "max-model-len {max_model_len} must be from 1 to the KV capacity of {capacity} tokens"
            )));
        }
        let tokeniser = Tokeniser::new(self.block_tokens, self.bytes_per_token)
            .map_err(|error| BadConfig(error.to_string()))?;
        Ok(Plan {
            limits: Limits {
                block_tokens: self.block_tokens,
                blocks,
                max_batched_tokens: self.max_batched_tokens,
                max_running: self.max_running,
                prefix_caching: !self.no_prefix_caching,
                cache_generated: !self.no_cache_generated,
                stream_grain_ns: (self.stream_grain_ms * 1e6 * self.time_scale) as u64,
            },
            cost: Cost {
                prefill_tokens_per_s: self.prefill_tokens_per_s,
                prefill_quadratic_s: self.prefill_quadratic_s,
                step_floor_s: self.decode_step_s,
            },
            renderer: Renderer { tokeniser, media_tokens: self.media_tokens },
            max_model_len,
            ready_after: seconds("ready-after-s", self.ready_after_s)?,
            keep_alive: Some(seconds("keep-alive-s", self.keep_alive_s)?).filter(|time| !time.is_zero()),
        })
    }

    fn check_numbers(&self) -> Result<(), BadConfig> {
        let counts = [
            ("block-tokens", self.block_tokens),
            ("max-batched-tokens", self.max_batched_tokens),
            ("max-running", self.max_running),
            ("default-max-tokens", self.default_max_tokens),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(BadConfig(format!("{name} must be at least 1")));
        }
        let bounded = [
            ("block-tokens", self.block_tokens, BLOCK_TOKENS_MAX),
            ("media-tokens", self.media_tokens, MEDIA_TOKENS_MAX),
        ];
        if let Some((name, value, most)) = bounded.iter().find(|(_, value, most)| value > most) {
            return Err(BadConfig(format!("{name} {value} must be at most {most}")));
        }
        let rates = [("prefill-tokens-per-s", self.prefill_tokens_per_s), ("time-scale", self.time_scale)];
        if let Some((name, value)) = rates.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(BadConfig(format!("{name} {value} must be above 0 and finite")));
        }
        let times = [
            ("prefill-quadratic-s", self.prefill_quadratic_s),
            ("decode-step-s", self.decode_step_s),
            ("stream-grain-ms", self.stream_grain_ms),
        ];
        times.iter().try_for_each(|(name, value)| seconds(name, *value).map(|_| ()))
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration, BadConfig> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| BadConfig(format!("{name} {value} must be a time of 0 or more seconds")))
}
