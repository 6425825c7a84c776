//! An engine as the policy is to see it from outside: first come, first served prefill, and a paged LRU prefix cache
//! that frees a request's blocks when it ends, last block first. Every block by itself: the oracle.

use std::collections::{BTreeMap, HashMap, VecDeque};

pub(crate) const BLOCK_TOKENS: u64 = 64;

#[derive(Default)]
struct Block {
    pins: u32,
    place: Option<u64>,
}

/// A request being served.
pub(crate) struct Job {
    pub(crate) chain: Vec<u64>,
    pub(crate) request: usize,
}

/// What the engine reports when it turns to a request.
pub(crate) struct Started {
    pub(crate) job: Job,
    pub(crate) cached_tokens: u64,
    pub(crate) first_token_at: f64,
}

pub(crate) struct Engine {
    capacity: usize,
    tokens_per_s: f64,
    blocks: HashMap<u64, Block>,
    order: BTreeMap<u64, u64>,
    clock: u64,
    queue: VecDeque<Job>,
    busy: bool,
    pub(crate) decoding: u32,
    pub(crate) uncached_tokens: u64,
    pub(crate) requests: u64,
}

impl Engine {
    pub(crate) fn new(capacity: usize, tokens_per_s: f64) -> Self {
        Engine {
            capacity,
            tokens_per_s,
            blocks: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            queue: VecDeque::new(),
            busy: false,
            decoding: 0,
            uncached_tokens: 0,
            requests: 0,
        }
    }

    pub(crate) fn push(&mut self, job: Job) {
        self.requests += 1;
        self.queue.push_back(job);
    }

    /// Turns to the next request if idle.
    pub(crate) fn start(&mut self, now: f64) -> Option<Started> {
        if self.busy {
            return None;
        }
        let job = self.queue.pop_front()?;
        self.busy = true;
        let hits = job.chain.iter().take_while(|id| self.blocks.contains_key(id)).count();
        for id in &job.chain {
            let block = self.blocks.entry(*id).or_default();
            block.pins += 1;
            if let Some(place) = block.place.take() {
                self.order.remove(&place);
            }
        }
        while self.blocks.len() > self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.blocks.remove(&oldest);
        }
        let uncached = (job.chain.len() - hits) as u64 * BLOCK_TOKENS;
        self.uncached_tokens += uncached;
        let first_token_at = now + 0.01 + uncached as f64 / self.tokens_per_s;
        Some(Started { job, cached_tokens: hits as u64 * BLOCK_TOKENS, first_token_at })
    }

    /// The prefill is over; the request decodes.
    pub(crate) fn prefilled(&mut self) {
        self.busy = false;
        self.decoding += 1;
    }

    /// The request ends.
    pub(crate) fn end(&mut self, chain: &[u64]) {
        self.decoding -= 1;
        for id in chain.iter().rev() {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            block.pins -= 1;
            if block.pins == 0 {
                self.clock += 1;
                block.place = Some(self.clock);
                self.order.insert(self.clock, *id);
            }
        }
    }
}
