//! The product's policy: own time to first token, plus what the choice costs everyone else.

use super::{Pick, Policy, Terms, View, cheapest};
use crate::price::Rates;
use crate::random::Random;

/// Breaks ties toward fewer requests, in seconds per request in flight: too small to weigh against a hit.
const IN_FLIGHT_S: f64 = 1e-4;
/// What one more decoding request costs, in seconds. In continuous batching each sequence reads its own KV in
/// every step: 4,000 tokens of an 8B model are 0.5 GB, 0.17 ms of an H100's 3 TB/s, so 500 generated tokens make
/// each neighbour (and are made) some 80 ms later. An eighth of that is charged, since what batching costs differs
/// by engine. It matters where prefill never shows a queue: many short prompts behind one shared system prompt
/// would otherwise all decode at the one endpoint that holds it.
const DECODING_S: f64 = 0.01;

/// `max(wait, link wait + fetch) + miss + F * miss + F_link * fetch + space`, see [`crate::price`].
///
/// Space is what the insertion will cost those whose KV it evicts: it is computed again, or comes back over the link.
pub(super) struct Larder;

impl Policy for Larder {
    fn cost(&self, terms: &Terms, rates: &Rates) -> f64 {
        let space = match terms.refetch_token_s {
            _ if !terms.full => 0.0,
            Some(token_s) => rates.link_space() * (terms.uncached_tokens + terms.fetch_tokens) * token_s,
            None => rates.space() * terms.miss_s,
        };
        terms.begins_s()
            + terms.base_s
            + terms.miss_s
            + rates.followers * terms.miss_s
            + rates.link_followers * terms.fetch_s
            + space
            + IN_FLIGHT_S * f64::from(terms.in_flight)
            + DECODING_S * f64::from(terms.decoding)
    }

    fn pick(&mut self, view: &View<'_>, random: &mut Random) -> Pick {
        cheapest(view, random)
    }
}
