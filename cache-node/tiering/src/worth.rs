//! What a chunk is worth: tokens saved per byte and second, with use that fades.
//!
//! A use counts half after each half-life, so the sum of a chunk's fading uses estimates how often it is asked for now.
//! Each use saves the chunk's tokens, and keeping it takes its bytes: worth = rate × tokens / bytes.
//!
//! All sums fade alike, so their order never changes by time alone. It is enough to weigh each use by
//! `2^(time / half-life)` once, forward, and to compare the sums (forward decay: Cormode, Shkapenyuk, Srivastava, Xu,
//! "Forward Decay: A Practical Time Decay Model for Streaming Systems", ICDE 2009). The sums are kept as logarithms,
//! which no running time overflows.

use std::time::Duration;

/// The fading uses of one chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uses {
    /// log2 of the sum of `2^(time / half-life)` over all uses.
    log2_sum: f64,
}

impl Uses {
    /// No use at all: worth less than anything that was ever used.
    pub const NONE: Self = Self { log2_sum: f64::MIN };

    /// One use at `now`.
    pub fn first(now: Duration, half_life: Duration) -> Self {
        Self { log2_sum: half_lives(now, half_life) }
    }

    /// One more at `now`, in any order.
    pub fn again(&mut self, now: Duration, half_life: Duration) {
        self.add(now, half_life, 1);
    }

    /// `weight` uses at once at `now`, in any order; none if `weight` is 0.
    pub fn add(&mut self, now: Duration, half_life: Duration, weight: u32) {
        let one = match weight {
            0 => return,
            1 => half_lives(now, half_life),
            weight => half_lives(now, half_life) + f64::from(weight).log2(),
        };
        let (more, less) = if self.log2_sum > one { (self.log2_sum, one) } else { (one, self.log2_sum) };
        self.log2_sum = more + (less - more).exp2().ln_1p() / std::f64::consts::LN_2;
    }

    /// What a chunk with these uses is worth.
    pub fn worth(&self, tokens: u32, bytes: u64) -> Worth {
        let log2 = self.log2_sum + f64::from(tokens.max(1)).log2() - (bytes.max(1) as f64).log2();
        // A cast saturates, and a log2 below 2^31 fits whole: that is 40,000 years of ten-minute half-lives.
        Worth((log2 * Worth::SCALE) as i64)
    }
}

/// Tokens saved per byte and second, as log2 relative to a moment that all share, in steps of 2^-32.
/// Two may be compared if their half-life is the same, whenever each was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worth(i64);

impl Worth {
    const SCALE: f64 = (1_u64 << 32) as f64;

    /// As log2.
    pub fn log2(self) -> f64 {
        self.0 as f64 / Self::SCALE
    }
}

fn half_lives(now: Duration, half_life: Duration) -> f64 {
    now.as_secs_f64() / half_life.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests;
