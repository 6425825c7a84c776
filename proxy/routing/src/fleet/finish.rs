//! From an answer to what it teaches, and the release of everything a request held.

use super::Fleet;
use super::requests::InFlight;
use crate::estimate::TtftSample;
use crate::{EndpointId, Now, Outcome, Ticket, Trust, Usage};

/// Predictions within this share of the prompt are right.
const TOLERANCE: f64 = 1.0 / 16.0;
/// One answer moves the modelled capacity by this share.
const CAPACITY_STEP: f64 = 0.01;

impl Fleet {
    /// The first token of a streamed answer came: its prefill is over and its prompt is in the cache.
    ///
    /// Ignored for unstreamed requests, for a second call, and for a ticket of another fleet.
    pub fn first_token(&mut self, ticket: &Ticket, now: Now) {
        let Some(request) = self.requests.get_mut(ticket) else { return };
        if request.first_token_at.is_some() || !request.streamed {
            return;
        }
        request.first_token_at = Some(now);
        let slot = self.slots.get_mut(request.endpoint.slot as usize);
        let Some(slot) = slot.filter(|slot| slot.generation == request.endpoint.generation) else { return };
        let Some(endpoint) = slot.endpoint.as_mut() else { return };
        endpoint.foresight.observe(request.foreseen_s, now.since(request.routed_at));
        request.prefill_s = endpoint.load.first_token(ticket.slot, request.routed_at, now);
        if request.epoch == endpoint.epoch {
            self.index.confirm(endpoint.holder, &request.chain);
        }
        let (id, chain) = (request.endpoint, std::mem::take(&mut request.chain));
        self.stored(id, &chain);
        if let Some(request) = self.requests.get_mut(ticket) {
            request.chain = chain;
        }
    }

    /// How far the estimates about an endpoint's cache are to be believed; `None` for a removed one.
    pub fn trust(&self, id: EndpointId) -> Option<Trust> {
        Some(self.endpoint(id)?.promises.trust())
    }

    /// KV of this request's prompt was staged for its endpoint from a warehouse: the cached tokens that its answer will
    /// report are not all the endpoint's own, so they teach nothing about its capacity.
    pub fn staged(&mut self, ticket: &Ticket) {
        if let Some(request) = self.requests.get_mut(ticket) {
            request.staged = true;
        }
    }

    /// Ends a request: releases its load and its pins exactly once, and learns from its answer.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome, now: Now) {
        let Some(request) = self.requests.remove(&ticket) else { return };
        let usage = match outcome {
            Outcome::Completed { usage } => usage,
            Outcome::FailedBeforeFirstByte | Outcome::Aborted => None,
        };
        let completed = matches!(outcome, Outcome::Completed { .. });
        self.give_up_fetch(&request, ticket.slot, now);
        if completed && request.first_token_at.is_none() {
            self.stored(request.endpoint, &request.chain);
        }
        if let Some(endpoint) = self.endpoint_mut(request.endpoint) {
            endpoint.load.end(ticket.slot, now);
            self.let_go(&request, completed);
        }
        if let Some(usage) = usage {
            self.prompt.observe(request.prompt_bytes, request.media, usage.prompt_tokens);
            if !request.staged {
                self.compare(&request, usage);
            }
        }
        if let Some(at) = request.first_token_at.filter(|_| completed) {
            self.answers.observe(now.since(at));
        }
        // The time that a load of KV takes says nothing about prefill.
        if completed && !request.staged && !request.waits_for_memory {
            self.time(&request, usage);
        }
        self.requests.recycle(request.chain);
        self.index.reserve(self.chain_bytes());
    }

    /// Releases what the request pinned. Only an answer, or its first token, proves that the prompt was computed.
    fn let_go(&mut self, request: &InFlight, completed: bool) {
        let Some(endpoint) = self.endpoint(request.endpoint) else { return };
        let (holder, idle) = (endpoint.holder, endpoint.load.in_flight() == 0);
        if endpoint.epoch == request.epoch {
            if completed {
                self.index.confirm(holder, &request.chain);
            }
            self.index.release(holder, &request.chain);
        }
        if idle {
            self.index.release_all(holder);
        }
    }

    /// Compares the cached tokens that were promised with those the engine found.
    fn compare(&mut self, request: &InFlight, usage: Usage) {
        let promised = tokens_of(request, request.matched, usage.prompt_tokens);
        let tolerance = usage.prompt_tokens as f64 * TOLERANCE;
        let Some(cached) = usage.cached_tokens else {
            if promised > tolerance
                && let Some(endpoint) = self.endpoint_mut(request.endpoint)
            {
                endpoint.promises.untold();
            }
            return;
        };
        let actual = cached.min(usage.prompt_tokens) as f64;
        let seen = tokens_of(request, request.seen, usage.prompt_tokens);
        let Some(endpoint) = self.endpoint(request.endpoint) else { return };
        let full = self.is_full(endpoint, self.element_tokens());
        let Some(endpoint) = self.endpoint_mut(request.endpoint) else { return };
        endpoint.predicted_cached_tokens =
            endpoint.predicted_cached_tokens.saturating_add(promised.round() as u64);
        endpoint.actual_cached_tokens = endpoint.actual_cached_tokens.saturating_add(actual as u64);

        let short = promised - actual > tolerance;
        if short && full {
            endpoint.capacity.scale(1.0 - CAPACITY_STEP);
        }
        // Only what was seen before can have been kept for longer than modelled: an engine also finds the tokens
        // it generated itself, which says nothing about its capacity.
        if actual.min(seen) - promised > tolerance {
            endpoint.capacity.scale(1.0 + CAPACITY_STEP);
        }
        endpoint.promises.told(promised, actual);
        // What was missing has been computed by this very request and is there now, so the index is right again as
        // it stands, unless this engine does not keep what it computes.
        let (holder, current) = (endpoint.holder, endpoint.epoch == request.epoch);
        if short && current && endpoint.promises.trust() == Trust::Broken {
            let kept = (actual / usage.prompt_tokens.max(1) as f64 * request.prompt_bytes as f64
                / f64::from(request.run_bytes.max(1))) as usize;
            let length = request.chain.len();
            self.index.forget(holder, &request.chain, kept.min(length)..length);
        }
    }

    /// Learns the speed of prefill from a first token that was seen.
    fn time(&mut self, request: &InFlight, usage: Option<Usage>) {
        let Some(seconds) = request.prefill_s else { return };
        let uncached_tokens = match usage {
            Some(Usage { prompt_tokens, cached_tokens: Some(cached) }) => {
                prompt_tokens.saturating_sub(cached) as f64
            }
            Some(Usage { prompt_tokens, cached_tokens: None }) => {
                prompt_tokens as f64 - tokens_of(request, request.matched, prompt_tokens)
            }
            None => request.uncached_tokens,
        };
        let sample = TtftSample { uncached_tokens, seconds };
        let (pool, count, endpoints) = (self.pool_line(), self.ttft_count, self.slots.len());
        self.ttft_count += 1.0;
        if let Some(endpoint) = self.endpoint_mut(request.endpoint) {
            let line = endpoint.line(pool, count, endpoints);
            endpoint.ttft.observe(sample, line, count + 1.0);
        }
        self.ttft.observe(sample, pool, count + 1.0);
    }
}

/// The share of `prompt_tokens` that `elements` of the chain stand for. By bytes of text, so that an error in bytes
/// per token is no error here; with media, by the estimate at the time of routing.
fn tokens_of(request: &InFlight, elements: u32, prompt_tokens: u64) -> f64 {
    let bytes = f64::from(elements) * f64::from(request.run_bytes);
    let prompt_bytes = request.prompt_bytes.max(1) as f64;
    let text_tokens = match request.media {
        0 => prompt_tokens as f64,
        _ => request.prompt_tokens.min(prompt_tokens as f64),
    };
    (bytes / prompt_bytes * text_tokens).min(prompt_tokens as f64)
}
