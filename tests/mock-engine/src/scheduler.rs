//! Continuous batching with chunked prefill, in model time.
//!
//! The rules are those of vLLM's V1 scheduler (`vllm/v1/core/sched/scheduler.py`): a step has a token budget;
//! running requests are served first, in order, then waiting ones first come first served while blocks last;
//! prefix hits skip prefill, but at least the last prompt token is computed; a full block is findable from the
//! moment its step is scheduled; when a running request needs a block and none is free, the youngest running
//! request is preempted, loses its blocks and computes them again later.
//!
//! Time is an argument. [`Scheduler::advance`] plays every step that ended by `now`, whatever their number, so
//! a caller that wakes late or seldom sees the same history as one that wakes at every step.

mod cost;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use cost::Cost;

use crate::cache::{BlockCache, BlockHash, BlockId};

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

/// When to call [`Scheduler::advance`] next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Model time in nanoseconds.
    pub at: u64,
    /// Whether a first token or an end may come then; otherwise being late changes nothing but the grain of a
    /// stream.
    pub urgent: bool,
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

#[derive(Debug)]
struct Sequence {
    id: JobId,
    job: Job,
    arrived: u64,
    blocks: Vec<BlockId>,
    /// Blocks at the front that are findable already.
    published: usize,
    /// Tokens whose KV is in the cache.
    computed: u32,
    /// Tokens computed by the step under way.
    scheduled: u32,
    /// Output tokens.
    produced: u32,
    /// `produced` as of the last report.
    reported: u32,
    /// Set when first scheduled.
    cached_tokens: Option<u32>,
}

impl Sequence {
    fn tokens(&self) -> u32 {
        self.job.prompt_tokens + self.produced
    }

    fn update(&self, finished: bool) -> Update {
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        Update { id: self.id, produced: self.produced, cached_tokens, finished }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    cost: Cost,
    cache: BlockCache,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// When the step under way ends; none while idle.
    step_end: Option<u64>,
    /// The latest time seen or played.
    clock: u64,
    next_id: u64,
    counters: Counters,
    first_tokens: Vec<u64>,
    found: Vec<BlockId>,
}

impl Scheduler {
    /// An idle engine with an empty cache.
    pub fn new(limits: Limits, cost: Cost) -> Self {
        Self {
            limits,
            cost,
            cache: BlockCache::new(limits.blocks, limits.prefix_caching),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step_end: None,
            clock: 0,
            next_id: 0,
            counters: Counters::default(),
            first_tokens: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Takes a job that arrived at `now`; an idle engine starts on it at once, a busy one after its step.
    /// Call [`Scheduler::advance`] with the same `now` before.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn submit(&mut self, now: u64, job: Job) -> Result<JobId, Refusal> {
        let needed = u64::from(job.prompt_tokens) + u64::from(job.output_tokens);
        let capacity = u64::from(self.limits.blocks) * u64::from(self.limits.block_tokens);
        if job.prompt_tokens == 0 || job.output_tokens == 0 {
            return Err(Refusal::Empty);
        }
        if needed > capacity {
            return Err(Refusal::TooLarge { needed, capacity });
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Refusal::QueueFull);
        }
        self.clock = self.clock.max(now);
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence {
            id,
            job,
            arrived: now,
            blocks: Vec::new(),
            published: 0,
            computed: 0,
            scheduled: 0,
            produced: 0,
            reported: 0,
            cached_tokens: None,
        });
        if self.step_end.is_none() {
            self.begin_step(self.clock);
        }
        Ok(id)
    }

    /// Takes a job back and frees its blocks at once; false if it is over or was never there.
    pub fn abort(&mut self, id: JobId) -> bool {
        let sequence = if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            self.running.remove(at)
        } else if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            let Some(sequence) = self.waiting.remove(at) else { return false };
            sequence
        } else {
            return false;
        };
        self.cache.release(&sequence.blocks);
        self.counters.aborted += 1;
        true
    }

    /// Plays all steps that ended by `now` and appends to `updates` one report for each job that ended and each
    /// streamed job that produced tokens.
    pub fn advance(&mut self, now: u64, updates: &mut Vec<Update>) {
        while let Some(end) = self.step_end.filter(|end| *end <= now) {
            self.clock = end;
            self.end_step(end, updates);
            self.begin_step(end);
        }
        self.clock = self.clock.max(now);
        for sequence in &mut self.running {
            if sequence.job.streamed && sequence.produced > sequence.reported {
                sequence.reported = sequence.produced;
                updates.push(sequence.update(false));
            }
        }
    }

    /// When something happens next; none while idle. Between now and then nothing a client could see changes.
    pub fn next_wake(&self) -> Option<Wake> {
        let end = self.step_end?;
        let mut steps_left = u32::MAX;
        let mut quiet = self.waiting.is_empty();
        let mut urgent = false;
        for sequence in &self.running {
            let decoding = sequence.produced > 0;
            let reaches_output = sequence.computed + sequence.scheduled >= sequence.tokens();
            let remaining = sequence.job.output_tokens - sequence.produced;
            quiet &= decoding && reaches_output && !sequence.job.streamed;
            urgent |= reaches_output && (!decoding || remaining == 1);
            steps_left = steps_left.min(remaining);
        }
        if quiet && !self.running.is_empty() {
            // Only unstreamed decoding: every step takes the floor, and the first to be seen is the first end.
            let skipped = u64::from(steps_left.saturating_sub(1)) * self.cost.step_ns(0.0);
            return Some(Wake { at: end.saturating_add(skipped), urgent: true });
        }
        Some(Wake { at: end, urgent })
    }

    /// Requests in the running batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests not yet admitted, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The block cache.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Moves the times to first token (model nanoseconds) seen since the last call into `times`.
    pub fn drain_first_tokens(&mut self, times: &mut Vec<u64>) {
        times.append(&mut self.first_tokens);
    }

    /// Forgets cached prefixes; false while requests hold blocks.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.cache.reset()
    }

    fn begin_step(&mut self, at: u64) {
        let mut budget = self.limits.max_batched_tokens;
        let mut prefill_s = 0.0;
        let preempted = self.schedule_running(&mut budget, &mut prefill_s);
        if !preempted {
            self.admit(&mut budget, &mut prefill_s);
        }
        let scheduled = budget < self.limits.max_batched_tokens;
        self.step_end = scheduled.then(|| at.saturating_add(self.cost.step_ns(prefill_s)));
    }

    /// Gives each running request its share of the budget, in order; true if one had to be preempted.
    fn schedule_running(&mut self, budget: &mut u32, prefill_s: &mut f64) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let tokens = (self.running[at].tokens() - self.running[at].computed).min(*budget);
            while !self.grow(at, tokens) {
                preempted = true;
                self.preempt_youngest();
                if at == self.running.len() {
                    return true;
                }
            }
            self.charge(at, tokens, budget, prefill_s);
            at += 1;
        }
        preempted
    }

    /// Admits waiting requests in order while budget, places and blocks last.
    fn admit(&mut self, budget: &mut u32, prefill_s: &mut f64) {
        while *budget > 0 && self.running.len() < self.limits.max_running as usize {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let block_tokens = self.limits.block_tokens;
            // The last token is never taken from the cache: computing it is what yields the first output token.
            let reusable = ((sequence.tokens() - 1) / block_tokens) as usize;
            let reusable = &sequence.job.hashes[..reusable.min(sequence.job.hashes.len())];
            self.cache.find(reusable, &mut self.found);
            let hit = self.found.len() as u32 * block_tokens;
            let tokens = (sequence.tokens() - hit).min(*budget);
            let fresh = (hit + tokens).div_ceil(block_tokens) - self.found.len() as u32;
            if !self.cache.take(&self.found, fresh, &mut sequence.blocks) {
                self.waiting.push_front(sequence);
                return;
            }
            sequence.computed = hit;
            sequence.published = self.found.len();
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(hit);
                self.counters.prefix_queries += u64::from(sequence.tokens());
                self.counters.prefix_hits += u64::from(hit);
            }
            self.running.push(sequence);
            self.charge(self.running.len() - 1, tokens, budget, prefill_s);
        }
    }

    /// Enters `tokens` of a running request into the step and publishes the blocks they fill.
    fn charge(&mut self, at: usize, tokens: u32, budget: &mut u32, prefill_s: &mut f64) {
        let sequence = &mut self.running[at];
        sequence.scheduled = tokens;
        *budget -= tokens;
        if sequence.produced == 0 || tokens > 1 {
            *prefill_s += self.cost.prefill_s(sequence.computed, tokens);
        }
        let last = if self.limits.cache_generated {
            sequence.computed + tokens
        } else {
            (sequence.computed + tokens).min(sequence.job.prompt_tokens)
        };
        let full = ((last / self.limits.block_tokens) as usize).min(sequence.job.hashes.len());
        for index in sequence.published..full {
            self.cache.publish(sequence.blocks[index], sequence.job.hashes[index]);
        }
        sequence.published = sequence.published.max(full);
    }

    /// Allocates what `tokens` more tokens of a running request need; false if blocks are short.
    fn grow(&mut self, at: usize, tokens: u32) -> bool {
        let sequence = &mut self.running[at];
        let needed = (sequence.computed + tokens).div_ceil(self.limits.block_tokens);
        let fresh = needed.saturating_sub(sequence.blocks.len() as u32);
        self.cache.take(&[], fresh, &mut sequence.blocks)
    }

    fn preempt_youngest(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        self.cache.release(&sequence.blocks);
        sequence.blocks.clear();
        sequence.computed = 0;
        sequence.published = 0;
        sequence.scheduled = 0;
        self.counters.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Credits the step that ended at `end`: computed tokens, output tokens, finished requests.
    fn end_step(&mut self, end: u64, updates: &mut Vec<Update>) {
        let Self { running, cache, counters, first_tokens, .. } = self;
        running.retain_mut(|sequence| {
            let scheduled = std::mem::take(&mut sequence.scheduled);
            sequence.computed += scheduled;
            if scheduled == 0 || sequence.computed < sequence.tokens() {
                return true;
            }
            sequence.produced += 1;
            counters.generation_tokens += 1;
            if sequence.produced == 1 {
                counters.prompt_tokens += u64::from(sequence.job.prompt_tokens);
                first_tokens.push(end.saturating_sub(sequence.arrived));
            }
            let finished = sequence.produced == sequence.job.output_tokens;
            if finished {
                cache.release(&sequence.blocks);
                counters.finished += 1;
                updates.push(sequence.update(true));
            }
            !finished
        });
    }
}
