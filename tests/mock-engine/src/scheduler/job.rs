//! What goes into the scheduler and what comes out.

use crate::cache::BlockHash;

/// More requests than this wait in no sane test; beyond it the engine refuses instead of growing.
pub const WAITING_MAX: usize = 65_536;

/// What bounds a step and the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Blocks in the cache.
    pub blocks: u32,
    /// Token budget of a step.
    pub max_batched_tokens: u32,
    /// Requests that run at the same time.
    pub max_running: u32,
    /// Whether finished blocks can be found again.
    pub prefix_caching: bool,
    /// Whether blocks that contain generated tokens can be found again.
    pub cache_generated: bool,
    /// Model nanoseconds between two reports of tokens in the middle of streams. First tokens and ends are
    /// always reported by themselves.
    pub stream_grain_ns: u64,
}

/// Names a submitted job; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// One request, as the scheduler sees it. The output is known beforehand (the engine is an imitation).
#[derive(Clone, Debug)]
pub struct Job {
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens to generate, at least 1.
    pub output_tokens: u32,
    /// Hashes of the full blocks of prompt and output together, in order.
    pub hashes: Vec<BlockHash>,
    /// Whether every token is to be reported, or only the end.
    pub streamed: bool,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It could never run, even alone.
    #[error("the request needs {needed} tokens of KV cache, the engine has {capacity}")]
    TooLarge {
        /// Tokens of prompt and output.
        needed: u64,
        /// Tokens of the whole cache.
        capacity: u64,
    },
    /// A prompt or an output of no tokens.
    #[error("the request has no prompt or asks for no output")]
    Empty,
    /// [`WAITING_MAX`] reached.
    #[error("{WAITING_MAX} requests are waiting already")]
    QueueFull,
}

/// What became of a job since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Whose report.
    pub id: JobId,
    /// Output tokens so far.
    pub produced: u32,
    /// Prompt tokens that were found in the cache when the job was first scheduled.
    pub cached_tokens: u32,
    /// Whether the job is over.
    pub finished: bool,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens looked up in the prefix cache, each request once.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens of requests whose prefill ended, found or computed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that lost their blocks while running.
    pub preemptions: u64,
    /// Requests that ran to their end.
    pub finished: u64,
    /// Requests taken back before their end.
    pub aborted: u64,
}
