//! From answers and engine counters to the figures of one run.

use crate::cli::Policy;
use crate::drive::Outcome;
use crate::fleet::EngineStats;
use crate::plan::Plan;

/// The results file. Rates are fractions of 1, `_s` are trace seconds unless the name says wall.
#[derive(Debug, serde::Serialize)]
pub struct Results {
    /// What the figures depend on.
    pub scale: crate::plan::Scale,
    /// One run each policy.
    pub runs: Vec<Run>,
}

/// One policy's figures. A figure that cannot be had (no answer at all) is null.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Run {
    /// Policy name.
    pub policy: &'static str,
    /// Trace file name.
    pub trace: String,
    /// Engines.
    pub engines: u64,
    /// Share of the distinct blocks that the cluster was asked to hold.
    pub capacity: f64,
    /// Cached input tokens over input tokens, as the engines counted them.
    pub hit_rate: Option<f64>,
    /// Largest over mean of the engines' uncached input tokens.
    pub imbalance: Option<f64>,
    /// Time to first token, mean.
    pub ttft_mean_s: Option<f64>,
    /// Median.
    pub ttft_p50_s: Option<f64>,
    /// 99th percentile, nearest rank.
    pub ttft_p99_s: Option<f64>,
    /// Complete answers per trace second, from the first start to the last answer.
    pub requests_per_s: Option<f64>,
    /// Requests without a complete answer, plus one if engines and answers disagree about tokens.
    pub errors: u64,
    /// Complete answers.
    pub requests: u64,
    /// Whether the wall budget ended before the trace did.
    pub truncated: bool,
    /// Live sessions (0: open loop).
    pub sessions: usize,
    /// Seed.
    pub seed: u64,
    /// Trace seconds per wall second.
    pub time_scale: f64,
    /// Wall seconds from start to last answer.
    pub wall_s: f64,
    /// Bytes of prompt text per token.
    pub bytes_per_token: f64,
    /// Prefill rate of one engine, tokens per trace second.
    pub prefill_tokens_per_s: f64,
    /// Longest think time replayed.
    pub think_cap_s: f64,
    /// Share of the distinct blocks that the cluster really held.
    pub capacity_share: f64,
    /// Input tokens that the engines counted (a chat template adds a little to the trace's).
    pub input_tokens: u64,
    /// Uncached input tokens of each engine.
    pub uncached_tokens: Vec<u64>,
    /// What the simulation gives for the same requests, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated_hit_rate: Option<f64>,
    /// The first reasons of errors.
    pub error_samples: Vec<String>,
}

impl Run {
    /// Puts the figures together; a disagreement between engines and answers becomes an error.
    pub(crate) fn new(
        plan: &Plan,
        policy: Policy,
        asked: f64,
        mut outcome: Outcome,
        stats: &[EngineStats],
    ) -> Self {
        check_tokens(&mut outcome, stats);
        let scale = &plan.scale;
        let mut ttfts: Vec<f64> =
            outcome.answers.iter().map(|answer| answer.ttft.as_secs_f64() * scale.time_scale).collect();
        ttfts.sort_unstable_by(f64::total_cmp);
        let input: u64 = stats.iter().map(|engine| engine.prompt_tokens).sum();
        let cached: u64 = stats.iter().map(|engine| engine.cached_tokens).sum();
        let uncached: Vec<u64> =
            stats.iter().map(|engine| engine.prompt_tokens.saturating_sub(engine.cached_tokens)).collect();
        let answered = outcome.answers.len() as u64;
        let length_s = outcome.wall.as_secs_f64() * scale.time_scale;
        Self {
            policy: policy.name(),
            trace: scale.trace.clone(),
            engines: scale.engines,
            capacity: asked,
            hit_rate: (input > 0).then(|| cached as f64 / input as f64),
            imbalance: imbalance(&uncached),
            ttft_mean_s: (!ttfts.is_empty()).then(|| ttfts.iter().sum::<f64>() / ttfts.len() as f64),
            ttft_p50_s: percentile(&ttfts, 0.50),
            ttft_p99_s: percentile(&ttfts, 0.99),
            requests_per_s: (length_s > 0.0).then(|| answered as f64 / length_s),
            errors: outcome.errors,
            requests: answered,
            truncated: outcome.truncated,
            sessions: scale.live_sessions,
            seed: scale.seed,
            time_scale: scale.time_scale,
            wall_s: outcome.wall.as_secs_f64(),
            bytes_per_token: scale.bytes_per_token,
            prefill_tokens_per_s: scale.prefill_tokens_per_s,
            think_cap_s: scale.think_cap_s,
            capacity_share: scale.capacity.share,
            input_tokens: input,
            uncached_tokens: uncached,
            simulated_hit_rate: None,
            error_samples: outcome.samples,
        }
    }
}

/// Two counts of the same tokens: the engines' totals and the sum of the answers' usage. They can only be compared when
/// every request was answered.
fn check_tokens(outcome: &mut Outcome, stats: &[EngineStats]) {
    if outcome.errors > 0 {
        return;
    }
    let sum = |count: fn(&EngineStats) -> u64| stats.iter().map(count).sum::<u64>();
    let engines = (sum(|engine| engine.prompt_tokens), sum(|engine| engine.cached_tokens));
    let answers = outcome.answers.iter().fold((0, 0), |(prompt, cached), answer| {
        (prompt + answer.prompt_tokens, cached + answer.cached_tokens)
    });
    if engines != answers {
        outcome.add_error(format!(
            "the engines counted {} input tokens, {} of them cached; the answers' usage says {} and {}",
            engines.0, engines.1, answers.0, answers.1
        ));
    }
}

/// Nearest-rank percentile of ascending values: the smallest that at least `share` of them do not exceed.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Largest over mean; `None` if nothing was counted.
pub(crate) fn imbalance(counts: &[u64]) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let largest = *counts.iter().max()?;
    (total > 0).then(|| largest as f64 * counts.len() as f64 / total as f64)
}

#[cfg(test)]
mod tests;
