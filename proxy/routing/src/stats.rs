//! What the admin page and the metrics read.

use std::sync::Arc;

use crate::{EndpointId, EndpointState, Trust};

/// One endpoint's terms for a request, from [`Fleet::explain`](crate::Fleet::explain).
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Arc<str>,
    /// Why it could not be chosen; `None`: it could.
    pub refused: Option<Refused>,
    /// Prompt tokens expected in its cache.
    pub matched_tokens: u64,
    /// Prompt tokens to compute.
    pub uncached_tokens: u64,
    /// Seconds until it can turn to the request.
    pub wait_s: f64,
    /// Seconds of a prompt with nothing to compute.
    pub base_s: f64,
    /// Prompt tokens that would be fetched from a warehouse; the uncached ones are without them.
    pub fetch_tokens: u64,
    /// Seconds that takes, once the link turns to it.
    pub fetch_s: f64,
    /// Seconds until the link can turn to it.
    pub link_wait_s: f64,
    /// Seconds of prefill for the uncached tokens.
    pub miss_s: f64,
    /// Whether its cache is full, so that what is added evicts something.
    pub full: bool,
    /// Requests in flight there.
    pub in_flight: u32,
    /// The policy's cost: lower is better.
    pub cost_s: f64,
}

/// Why an endpoint was not a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is not available.
    State(EndpointState),
    /// It already failed this request.
    Excluded,
    /// It has as many requests in flight as it may have.
    NoRoom,
}

/// A pool at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetStats {
    /// Every endpoint, in the order of their slots.
    pub endpoints: Vec<EndpointStats>,
    /// Requests in flight, those at removed endpoints included.
    pub in_flight: usize,
    /// Requests held back.
    pub held: usize,
    /// Prompt bytes of requests held back.
    pub held_bytes: u64,
    /// Requests held back so far.
    pub holds: u64,
    /// Of these, those that went to an idle endpoint instead of the one they were held for.
    pub stolen: u64,
    /// Requests refused since too many were held back.
    pub hold_refused: u64,
    /// Bytes allocated by the index and the chains of requests in flight.
    pub index_bytes: usize,
    /// Their budget.
    pub index_bytes_max: usize,
    /// The shadow price X.
    pub price: f64,
    /// Its factor F: others delayed by one second of prefill.
    pub followers: f64,
    /// Its factor G: work over the work of a cache that forgets nothing.
    pub recompute: f64,
    /// Learned prompt bytes per token.
    pub bytes_per_token: f64,
    /// Requests routed without being remembered, since requests in flight hold half the index budget.
    pub unremembered: u64,
}

/// One endpoint at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointStats {
    /// Its id.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it may be chosen.
    pub state: EndpointState,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests held back for it.
    pub held: usize,
    /// Moving relative error of the foreseen time to first token, 0 to 1.
    pub wait_error: f64,
    /// Whether requests may be held back for it: not while more than half of its waits were misjudged.
    pub holding: bool,
    /// Uncached tokens of requests whose first token is owed.
    pub uncached_tokens: u64,
    /// Seconds until it can turn to one more prompt.
    pub wait_s: f64,
    /// Chain elements that the index says it holds.
    pub elements: u64,
    /// KV capacity that the model works with, in tokens.
    pub kv_tokens: u64,
    /// Learned prefill speed, in tokens per second.
    pub prefill_tokens_per_s: f64,
    /// Learned seconds of a prompt with nothing to compute.
    pub base_s: f64,
    /// Sum of cached tokens promised, over answers that told theirs.
    pub predicted_cached_tokens: u64,
    /// Sum of cached tokens those answers told.
    pub actual_cached_tokens: u64,
    /// Moving share of promised tokens that were really cached, 0 to 1.
    pub kept_promises: f64,
    /// How far the estimates are to be believed, and why not.
    pub trust: Trust,
}
