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
mod job;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use cost::Cost;
pub use job::{Counters, Job, JobId, Limits, Refusal, Update, WAITING_MAX};

use crate::cache::{BlockCache, BlockHash, BlockId};

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

    /// The hashes that may be looked up: the last token is never taken from the cache, since computing it is
    /// what yields the first output token.
    fn reusable(&self, block_tokens: u32) -> &[BlockHash] {
        let blocks = ((self.tokens() - 1) / block_tokens) as usize;
        &self.job.hashes[..blocks.min(self.job.hashes.len())]
    }

    /// Tokens to compute first and blocks to allocate for them, with `found` blocks cached.
    fn first_chunk(&self, found: u32, block_tokens: u32, budget: u32) -> (u32, u32) {
        let hit = found * block_tokens;
        let tokens = (self.tokens() - hit).min(budget);
        (tokens, (hit + tokens).div_ceil(block_tokens) - found)
    }

    fn update(&self, finished: bool) -> Update {
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        Update { id: self.id, produced: self.produced, cached_tokens, finished }
    }
}

/// Why the head of the queue was not admitted, so that it needn't be looked up again at every step.
///
/// Its shortage `needed - free` can only shrink when blocks are released or when the first block it missed is
/// published; everything else (blocks taken, blocks it had found evicted) leaves it equal or makes it worse. Both
/// events drop this memo.
#[derive(Debug)]
struct Blocked {
    id: JobId,
    found: u32,
    revived: u32,
    free: u32,
    missing: Option<BlockHash>,
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
    blocked: Option<Blocked>,
    last_report: u64,
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
            blocked: None,
            last_report: 0,
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
        self.release(&sequence.blocks);
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
        let all = self.clock >= self.last_report.saturating_add(self.limits.stream_grain_ns);
        // A request may be preempted in the moment of its token: those wait in front of all that never ran.
        let preempted = self.waiting.iter_mut().take_while(|sequence| sequence.cached_tokens.is_some());
        for sequence in self.running.iter_mut().chain(preempted) {
            let news = sequence.job.streamed && sequence.produced > sequence.reported;
            if news && (all || sequence.reported == 0) {
                sequence.reported = sequence.produced;
                updates.push(sequence.update(false));
            }
        }
        if all {
            self.last_report = self.clock;
        }
    }

    /// When to call [`Scheduler::advance`] next, in model nanoseconds; none while idle.
    ///
    /// While all running requests produce a token a step and nothing can be admitted or preempted, nobody sees
    /// the steps before the first end or the next report of the streams, and they need no call of their own.
    pub fn next_wake(&self) -> Option<u64> {
        let end = self.step_end?;
        if self.running.is_empty() || self.may_admit() {
            return Some(end);
        }
        let mut steps = u32::MAX;
        let mut streamed = false;
        for sequence in &self.running {
            let produces = sequence.computed + sequence.scheduled >= sequence.tokens();
            let first_of_stream = sequence.job.streamed && sequence.produced == 0;
            if !produces || first_of_stream {
                return Some(end);
            }
            steps = steps.min(sequence.job.output_tokens - sequence.produced);
            streamed |= sequence.job.streamed;
        }
        // In this many more steps no request needs more blocks than its share of the free ones.
        let share = self.cache.free() / self.running.len() as u32;
        steps = steps.saturating_sub(1).min(share.saturating_mul(self.limits.block_tokens));
        let seen = end.saturating_add(u64::from(steps).saturating_mul(self.cost.step_ns(0.0)));
        let report = end.max(self.last_report.saturating_add(self.limits.stream_grain_ns));
        Some(if streamed { seen.min(report) } else { seen })
    }

    /// Whether a waiting request might get in before a running one leaves.
    fn may_admit(&self) -> bool {
        if self.waiting.is_empty() || self.running.len() >= self.limits.max_running as usize {
            return false;
        }
        match self.blocked.as_ref().map(|blocked| blocked.missing) {
            None => true,
            Some(None) => false,
            Some(Some(missing)) => {
                self.running.iter().any(|running| running.job.hashes[running.published..].contains(&missing))
            }
        }
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
        let block_tokens = self.limits.block_tokens;
        while *budget > 0 && self.running.len() < self.limits.max_running as usize {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if self.still_blocked(&sequence, *budget) {
                return self.waiting.push_front(sequence);
            }
            self.cache.find(sequence.reusable(block_tokens), &mut self.found);
            let found = self.found.len() as u32;
            let (tokens, fresh) = sequence.first_chunk(found, block_tokens, *budget);
            if !self.cache.take(&self.found, fresh, &mut sequence.blocks) {
                self.blocked = Some(Blocked {
                    id: sequence.id,
                    found,
                    revived: self.cache.idle_among(&self.found),
                    free: self.cache.free(),
                    missing: sequence.reusable(block_tokens).get(found as usize).copied(),
                });
                return self.waiting.push_front(sequence);
            }
            self.blocked = None;
            sequence.computed = found * block_tokens;
            sequence.published = self.found.len();
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(sequence.computed);
                self.counters.prefix_queries += u64::from(sequence.tokens());
                self.counters.prefix_hits += u64::from(sequence.computed);
            }
            self.running.push(sequence);
            self.charge(self.running.len() - 1, tokens, budget, prefill_s);
        }
    }

    /// Whether the memo about the head of the queue still tells that it doesn't fit.
    fn still_blocked(&self, sequence: &Sequence, budget: u32) -> bool {
        let Some(blocked) = self.blocked.as_ref().filter(|blocked| blocked.id == sequence.id) else {
            return false;
        };
        let (_, fresh) = sequence.first_chunk(blocked.found, self.limits.block_tokens, budget);
        blocked.revived + fresh > blocked.free
    }

    fn release(&mut self, blocks: &[BlockId]) {
        self.cache.release(blocks);
        self.blocked = None;
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
            let hash = sequence.job.hashes[index];
            self.cache.publish(sequence.blocks[index], hash);
            if self.blocked.as_ref().is_some_and(|blocked| blocked.missing == Some(hash)) {
                self.blocked = None;
            }
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
        self.release(&sequence.blocks);
        sequence.blocks.clear();
        sequence.computed = 0;
        sequence.published = 0;
        sequence.scheduled = 0;
        self.counters.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Credits the step that ended at `end`: computed tokens, output tokens, finished requests.
    fn end_step(&mut self, end: u64, updates: &mut Vec<Update>) {
        let Self { running, cache, counters, first_tokens, blocked, .. } = self;
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
                *blocked = None;
                counters.finished += 1;
                updates.push(sequence.update(true));
            }
            !finished
        });
    }
}
