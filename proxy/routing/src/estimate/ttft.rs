//! Time to first token of one request once the engine turns to it: a line through observations.
//!
//! `seconds = base + uncached tokens * slope`, by least squares over the last observations, each held to within a
//! factor of what the line expected of it. Attention makes long prompts slower than the line says; at the sizes
//! where that shows, the choice among endpoints hardly depends on it, so there is no square term.

use super::bounded;

/// How many observations the line remembers, as an exponential window.
const WINDOW: f64 = 64.0;
/// Share of the configured speed's weight that each observation leaves: half is gone after four, since the larger of
/// its two points would otherwise outweigh dozens of short prompts.
const PRIOR_KEEP: f64 = 0.85;
/// Two prompt sizes, in tokens, at which the configured speed counts as observed once.
const PRIOR_AT: [f64; 2] = [512.0, 8_192.0];
/// One observation moves the line as if it lay at most this factor from it ...
const CLIP: f64 = 3.0;
/// ... or this many seconds: what scheduling alone may add to a small prompt.
const CLIP_SLACK_S: f64 = 0.05;
/// So many observations in a row clipped on the same side are a new regime, not outliers.
const REGIME: i8 = 4;
/// Bounds of the slope, in seconds per token: 10 million down to 1 token per second.
const SLOPE: (f64, f64) = (1e-7, 1.0);
/// Noise may tilt the line flat or beyond, which would make every miss free: the slope keeps this share of seconds
/// per token.
const SLOPE_OF_RATIO_MIN: f64 = 0.02;
/// Bound of the base: beyond it the time was spent waiting, which is modelled elsewhere.
const BASE_MAX_S: f64 = 10.0;
/// Observations of the pool that weigh as much as an endpoint's own.
const POOL_WEIGHT: f64 = 8.0;
/// An endpoint within this share of the pool's line is on the pool's line: hardware differs in steps, noise does
/// not, and equal endpoints must tie exactly, or the luckiest estimate would draw every cold prompt.
const SAME: f64 = 0.25;
/// The same for the base, absolute.
const SAME_BASE_S: f64 = 0.01;

/// One observed prefill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TtftSample {
    /// Tokens that had to be computed.
    pub(crate) uncached_tokens: f64,
    /// Seconds from the moment the engine was free for it to its first token.
    pub(crate) seconds: f64,
}

/// A line: what is expected of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TtftLine {
    /// Seconds of a prompt with nothing to compute.
    pub(crate) base_s: f64,
    /// Seconds per uncached token.
    pub(crate) slope_s: f64,
}

impl TtftLine {
    fn seconds(&self, tokens: f64) -> f64 {
        self.base_s + self.slope_s * tokens
    }
}

/// The sums of least squares.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    product: f64,
}

impl Sums {
    fn scale(&mut self, keep: f64) {
        *self = Sums::default().plus(self, keep);
    }

    fn plus(mut self, other: &Sums, share: f64) -> Sums {
        self.weight += other.weight * share;
        self.tokens += other.tokens * share;
        self.seconds += other.seconds * share;
        self.tokens_squared += other.tokens_squared * share;
        self.product += other.product * share;
        self
    }

    fn add(&mut self, tokens: f64, seconds: f64) {
        let one =
            Sums { weight: 1.0, tokens, seconds, tokens_squared: tokens * tokens, product: tokens * seconds };
        *self = self.plus(&one, 1.0);
    }
}

/// Exponentially windowed least squares.
#[derive(Debug, Clone, Default)]
pub(crate) struct TtftModel {
    observed: Sums,
    prior: Sums,
    /// Consecutive clipped observations, positive above the line, negative below.
    clipped: i8,
    /// Observations of the whole pool when this one was last heard of.
    heard_at: f64,
}

impl TtftModel {
    /// A line of `tokens_per_s` that gives way to observations.
    pub(crate) fn new(tokens_per_s: f64) -> Self {
        let slope = 1.0 / bounded(tokens_per_s, 8_000.0, 1.0 / SLOPE.1, 1.0 / SLOPE.0);
        let mut model = TtftModel::empty();
        PRIOR_AT.into_iter().for_each(|tokens| model.prior.add(tokens, tokens * slope));
        model
    }

    /// No opinion: an endpoint that was not observed yet.
    pub(crate) fn empty() -> Self {
        TtftModel::default()
    }

    /// The line, or `None` without an observation.
    pub(crate) fn line(&self) -> Option<TtftLine> {
        let sums = self.observed.plus(&self.prior, 1.0);
        if sums.weight <= 0.0 {
            return None;
        }
        let (mean_tokens, mean_seconds) = (sums.tokens / sums.weight, sums.seconds / sums.weight);
        let variance = sums.tokens_squared / sums.weight - mean_tokens * mean_tokens;
        let covariance = sums.product / sums.weight - mean_tokens * mean_seconds;
        // All prompts of about one size say nothing about the slope: put all of the time on the tokens.
        let ratio = mean_seconds / mean_tokens.max(1.0);
        let spread = variance > 0.01 * mean_tokens * mean_tokens && variance > 1.0;
        let fitted = if spread { covariance / variance } else { ratio };
        // A line that would cross zero before zero tokens is better drawn through the origin.
        let crosses = mean_seconds < fitted * mean_tokens;
        let slope = if crosses { sums.product / sums.tokens_squared } else { fitted };
        let slope_s = bounded(slope.max(ratio * SLOPE_OF_RATIO_MIN), SLOPE.1, SLOPE.0, SLOPE.1);
        let base_s = bounded(mean_seconds - slope_s * mean_tokens, 0.0, 0.0, BASE_MAX_S);
        Some(TtftLine { base_s, slope_s })
    }

    /// Learns from one prefill; `expected` is the line in use for this endpoint.
    pub(crate) fn observe(&mut self, sample: TtftSample, expected: TtftLine, pool_count: f64) {
        let (tokens, seconds) = (sample.uncached_tokens, sample.seconds);
        if !(tokens.is_finite() && seconds.is_finite() && tokens >= 0.0 && seconds >= 0.0) {
            return;
        }
        let due = expected.seconds(tokens);
        let held = seconds.clamp((due / CLIP - CLIP_SLACK_S).max(0.0), due * CLIP + CLIP_SLACK_S);
        self.clipped = match seconds.partial_cmp(&held) {
            Some(std::cmp::Ordering::Greater) => self.clipped.max(0).saturating_add(1),
            Some(std::cmp::Ordering::Less) => self.clipped.min(0).saturating_sub(1),
            _ => 0,
        };
        let trusted = if self.clipped.abs() >= REGIME { seconds } else { held };
        self.add(tokens, trusted);
        self.heard_at = pool_count;
    }

    fn add(&mut self, tokens: f64, seconds: f64) {
        if self.observed.weight >= WINDOW {
            self.observed.scale(1.0 - 1.0 / WINDOW);
        }
        self.observed.add(tokens, seconds);
        self.prior.scale(PRIOR_KEEP);
    }

    /// The line to use for an endpoint: its own, leaning on the pool's while it was seen little or long ago, so
    /// that one bad estimate cannot keep an endpoint idle for ever.
    pub(crate) fn within(&self, pool: TtftLine, pool_count: f64, endpoints: usize) -> TtftLine {
        if self.observed.weight <= 0.0 {
            return pool;
        }
        let Some(own) = self.line() else { return pool };
        let silence = (pool_count - self.heard_at).max(0.0) / (WINDOW * endpoints.max(1) as f64);
        let weight = self.observed.weight * (-silence).exp();
        let blend = |own: f64, pool: f64| (weight * own + POOL_WEIGHT * pool) / (weight + POOL_WEIGHT);
        let slope_s = blend(own.slope_s, pool.slope_s);
        let base_s = blend(own.base_s, pool.base_s);
        let same_slope = (slope_s - pool.slope_s).abs() <= SAME * pool.slope_s;
        let same_base = (base_s - pool.base_s).abs() <= (SAME * pool.base_s).max(SAME_BASE_S);
        TtftLine {
            base_s: if same_base { pool.base_s } else { base_s },
            slope_s: if same_slope { pool.slope_s } else { slope_s },
        }
    }
}

#[cfg(test)]
mod tests;
