//! One pooled LRU prefix cache of the whole cluster's size: the reference that the open loop's load is defined by.

use crate::trace::Trace;
use std::collections::{BTreeMap, HashMap};

/// Input tokens of `trace` that such a cache of `capacity_tokens` would not serve, requests in the order of the trace.
/// A request hits its leading blocks that are held; all its blocks are then used, the deepest least recently.
#[must_use]
pub fn uncached_tokens(trace: &Trace, capacity_tokens: u64) -> u64 {
    let mut lru = Lru::new(capacity_tokens / trace.block_tokens);
    let mut uncached = 0;
    for request in trace.requests() {
        let whole = (request.input_tokens / trace.block_tokens).min(request.blocks.len()) as usize;
        let ids: Vec<u64> = request.blocks.iter().take(whole).collect();
        let held = ids.iter().take_while(|&&id| lru.holds(id)).count() as u64;
        // The last token is always computed: an answer needs its logits.
        uncached += (request.input_tokens - held * trace.block_tokens).max(1);
        ids.iter().rev().for_each(|&id| lru.touch(id));
    }
    uncached
}

struct Lru {
    capacity: u64,
    clock: u64,
    used: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Lru {
    fn new(capacity: u64) -> Self {
        Self { capacity, clock: 0, used: HashMap::new(), order: BTreeMap::new() }
    }

    fn holds(&self, id: u64) -> bool {
        self.used.contains_key(&id)
    }

    fn touch(&mut self, id: u64) {
        self.clock += 1;
        if let Some(before) = self.used.insert(id, self.clock) {
            self.order.remove(&before);
        }
        self.order.insert(self.clock, id);
        while self.used.len() as u64 > self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.used.remove(&oldest);
        }
    }
}
