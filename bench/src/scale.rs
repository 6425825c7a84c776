//! How big, how fast and how compressed in time a replay is: arithmetic on the trace, no process started.
//!
//! The definitions are those of published router simulations on the same traces, so that figures can be compared:
//! capacity is the share of the trace's distinct blocks that the *cluster* holds; in a closed loop with K live sessions
//! each of N engines prefills `625 * K / N` tokens/s; in an open loop the rate is such that one pooled cache of the
//! cluster's size would run at the given utilization.

pub mod pooled;

use crate::text::{Prose, TEMPLATE_BYTES_PER_MESSAGE};
use crate::trace::{Format, Trace};

/// Prefill tokens per second and live session, over the whole cluster (agentic default).
pub const PREFILL_TOKENS_PER_S_AND_SESSION: f64 = 625.0;
/// Longest think time replayed, in trace seconds. Longer pauses are people going away; the cap is the usual one.
pub const THINK_CAP_S: f64 = 300.0;
/// Share of the sessions that is live by default: 200 of 567, the point that the public figures use.
pub const LIVE_SHARE: f64 = 200.0 / 567.0;
/// Length of a full engine step in trace seconds, from which its token budget follows: what 8,192 tokens (a common
/// setting) take at the 31,250 tokens/s of the public point. A budget that were long beside a think time would make a
/// cached request wait for the prefill of whoever shares its step.
pub const STEP_S: f64 = 0.25;
/// Smallest token budget of a step, so that a slow engine still takes several requests into one.
pub const STEP_TOKENS_MIN: u64 = 256;

/// KV capacity of one engine, and what it was made from.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Capacity {
    /// Distinct block tokens of the trace.
    pub unique_tokens: u64,
    /// KV tokens of one engine as started.
    pub kv_tokens_per_engine: u64,
    /// The cluster's share of the distinct tokens that this really is.
    pub share: f64,
    /// KV tokens of one engine as asked for, if that was too small for the largest request.
    pub raised_from: Option<u64>,
}

/// What the largest request and its answer need at least, in KV tokens; `spare` covers what a block is not filled by.
#[must_use]
pub fn kv_floor_tokens(trace: &Trace, prose: &Prose, bytes_per_token: f64, output: u64, spare: u64) -> u64 {
    let largest = trace.requests().map(|request| request.input_tokens).max().unwrap_or(0);
    let template = prose.messages(largest) * TEMPLATE_BYTES_PER_MESSAGE;
    largest + (template as f64 / bytes_per_token).ceil() as u64 + output + spare
}

/// Splits `share` of the trace's distinct tokens over `engines`, in whole engine blocks, at least `floor_tokens` each.
#[must_use]
pub fn capacity(
    unique_tokens: u64,
    share: f64,
    engines: u64,
    engine_block: u64,
    floor_tokens: u64,
) -> Capacity {
    let asked = (share * unique_tokens as f64 / engines as f64).round() as u64;
    let kv_tokens = asked.max(floor_tokens).div_ceil(engine_block) * engine_block;
    Capacity {
        unique_tokens,
        kv_tokens_per_engine: kv_tokens,
        share: if asked >= floor_tokens {
            share
        } else {
            (kv_tokens * engines) as f64 / unique_tokens as f64
        },
        raised_from: (asked < floor_tokens).then_some(asked),
    }
}

/// Prefill rate of one engine in tokens per trace second.
///
/// # Errors
/// A sentence, if the trace is too short to have an arrival rate.
pub fn prefill_tokens_per_s(
    trace: &Trace,
    engines: u64,
    live: usize,
    capacity_tokens: u64,
    utilization: f64,
) -> Result<f64, String> {
    match trace.format {
        Format::Agentic => Ok(PREFILL_TOKENS_PER_S_AND_SESSION * live as f64 / engines as f64),
        Format::Mooncake => {
            let length_s = length_s(trace);
            if length_s <= 0.0 {
                return Err("all requests of the trace arrive at once; give --prefill-tokens-per-s".into());
            }
            let work = pooled::uncached_tokens(trace, capacity_tokens);
            Ok(work as f64 / (engines as f64 * length_s * utilization))
        }
    }
}

/// Token budget of one engine step.
#[must_use]
pub fn step_tokens(prefill_tokens_per_s: f64) -> u64 {
    ((prefill_tokens_per_s * STEP_S).round() as u64).max(STEP_TOKENS_MIN)
}

/// Arrival of the last request, in trace seconds (open loop).
fn length_s(trace: &Trace) -> f64 {
    trace.requests().map(|request| request.at_s).fold(0.0, f64::max)
}

/// Trace seconds that the slowest policy is expected to take, to choose the time scale from.
///
/// Closed loop: all prefill work as if nothing were cached, plus think time spread over the live sessions, and no less
/// than the longest session's think time. Round robin at 10 % capacity misses 66-72 % of the agentic trace, but its
/// busiest engine has a third more than the mean and the last sessions run alone, so it comes close to that.
#[must_use]
pub fn expected_length_s(trace: &Trace, engines: u64, live: usize, prefill_tokens_per_s: f64) -> f64 {
    match trace.format {
        Format::Mooncake => length_s(trace),
        Format::Agentic => {
            let tokens: u64 = trace.requests().map(|request| request.input_tokens).sum();
            let thinks = trace.sessions.iter().map(|session| -> f64 {
                session.requests.iter().map(|request| request.think_s.min(THINK_CAP_S)).sum()
            });
            let (total, longest) =
                thinks.fold((0.0, 0.0), |(total, longest), s| (total + s, f64::max(longest, s)));
            let work_s = tokens as f64 / (engines as f64 * prefill_tokens_per_s);
            f64::max(work_s + total / live as f64, longest)
        }
    }
}

#[cfg(test)]
mod tests;
