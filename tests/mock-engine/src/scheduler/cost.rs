//! How long a step of the modelled engine takes.

/// The engine's speed, in model seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Prompt tokens that one second of prefill computes.
    pub prefill_tokens_per_s: f64,
    /// Attention: seconds for each pair of a prefilled token and a token before it (0 = linear prefill).
    pub prefill_quadratic_s: f64,
    /// The shortest step, which is also the time of a step that only decodes.
    pub step_floor_s: f64,
}

/// Shorter steps than this would not move the clock, and a step must.
const SHORTEST_STEP_NS: u64 = 1;

impl Cost {
    /// Seconds to prefill `tokens` tokens behind a context of `context` tokens:
    /// the linear part plus one pair per token and predecessor.
    pub fn prefill_s(&self, context: u32, tokens: u32) -> f64 {
        let (context, tokens) = (f64::from(context), f64::from(tokens));
        let pairs = tokens * context + tokens * tokens / 2.0;
        tokens / self.prefill_tokens_per_s + pairs * self.prefill_quadratic_s
    }

    /// The length of a step in model nanoseconds: reading the weights (the floor) overlaps with computing, so
    /// the longer of the two counts.
    pub fn step_ns(&self, prefill_s: f64) -> u64 {
        let seconds = prefill_s.max(self.step_floor_s);
        ((seconds * 1e9) as u64).max(SHORTEST_STEP_NS)
    }
}
