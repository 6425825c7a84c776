//! How long an engine makes a request wait for memory: its blocks must fit beside those that run.
//!
//! Where running prompts fill the KV, it is not prefill that one waits for but somebody's last token. What
//! runs is what the index pins; that so much of it goes as answers end is foreseen from how long answers take.

use super::Fleet;
use crate::Now;
use crate::endpoint::Endpoint;

/// Share of one answer in the mean.
const STEP: f64 = 1.0 / 64.0;

/// Mean seconds from first to last token.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answers {
    seconds: f64,
    count: f64,
}

impl Answers {
    /// An answer took so long.
    pub(super) fn observe(&mut self, seconds: f64) {
        self.count += 1.0;
        self.seconds += (seconds - self.seconds) * STEP.max(1.0 / self.count);
    }
}

impl Fleet {
    /// Seconds until a prompt of so many tokens has room beside what runs at an endpoint and what waits there for
    /// room; 0 where nothing runs, since a prompt that has the memory to itself is never refused.
    ///
    /// Only where the engine said how much KV it has: a guess that is too small would hold requests back from an idle
    /// engine. Ends of what runs are taken to be spread evenly over the time that an answer takes.
    pub(super) fn memory_wait_s(&self, endpoint: &Endpoint, tokens: f64) -> f64 {
        let waits = self.settings.pins_running && self.settings.waits_for_memory;
        if !waits || !endpoint.capacity.known {
            return 0.0;
        }
        let in_use = self.index.in_use(endpoint.holder) as f64 * self.element_tokens();
        let capacity = endpoint.capacity.tokens();
        let missing = in_use + tokens - capacity;
        if in_use <= 0.0 || missing <= 0.0 {
            return 0.0;
        }
        self.answers.seconds * missing / in_use.min(capacity)
    }

    /// Whether nobody is to pass the first who waits for an endpoint: he lacks memory there and has waited beyond the
    /// limit. Smaller ones would otherwise keep it from ever being free.
    pub(super) fn keeps_memory_free(&self, slot: u32, now: Now) -> bool {
        let Some(((_, endpoint), (_, first))) = self.endpoint_at(slot).zip(self.holds.at(slot).next()) else {
            return false;
        };
        now.since(first.arrived) > self.settings.hold_limit_s
            && self.memory_wait_s(endpoint, first.needs.tokens) > 0.0
    }
}

#[cfg(test)]
mod tests;
