//! Reading without changing: the admin page's explanation and the metrics' snapshot.

use super::Fleet;
use crate::{Candidate, EndpointState, EndpointStats, FleetStats, Now, Refused, RouteRequest};

impl Fleet {
    /// What [`Fleet::route`] would weigh for this request, cheapest first, endpoints that it would not consider
    /// last. Changes nothing.
    pub fn explain(&self, request: &RouteRequest<'_>, now: Now) -> Vec<Candidate> {
        let prompt = self.measure(request);
        let mut matched = Vec::new();
        self.index.matches(prompt.chain, &mut matched);
        let (pool, room) = (self.pool(now), self.room(now));
        let candidates = self.endpoints().map(|(id, endpoint)| {
            let terms = self.terms_of(id, endpoint, &pool, &prompt, &matched);
            let refused = match &endpoint.state {
                EndpointState::Available if request.exclude.contains(&id) => Some(Refused::Excluded),
                EndpointState::Available => (!self.has_room(endpoint, &room)).then_some(Refused::NoRoom),
                state => Some(Refused::State(state.clone())),
            };
            Candidate {
                endpoint: id,
                name: endpoint.name.clone(),
                refused,
                matched_tokens: terms.matched_tokens.round() as u64,
                uncached_tokens: terms.uncached_tokens.round() as u64,
                wait_s: terms.wait_s,
                base_s: terms.base_s,
                fetch_tokens: terms.fetch_tokens.round() as u64,
                fetch_s: terms.fetch_s,
                link_wait_s: terms.link_wait_s,
                miss_s: terms.miss_s,
                full: terms.full,
                in_flight: terms.in_flight,
                cost_s: terms.cost_s,
            }
        });
        let mut all: Vec<Candidate> = candidates.collect();
        all.sort_by(|a, b| a.refused.is_some().cmp(&b.refused.is_some()).then(a.cost_s.total_cmp(&b.cost_s)));
        all
    }

    /// The pool at this moment.
    pub fn snapshot(&self, now: Now) -> FleetStats {
        let pool = self.pool_line();
        let endpoints = self.endpoints().map(|(id, endpoint)| {
            let line = endpoint.line(pool, self.ttft_count, self.slots.len());
            EndpointStats {
                endpoint: id,
                name: endpoint.name.clone(),
                state: endpoint.state.clone(),
                in_flight: endpoint.load.in_flight(),
                held: self.holds.len_at(id.slot),
                wait_error: endpoint.foresight.error(),
                holding: self.may_hold() && endpoint.foresight.holds(),
                uncached_tokens: endpoint.load.uncached_tokens(),
                wait_s: endpoint.load.backlog_s(now),
                elements: self.index.held(endpoint.holder),
                kv_tokens: endpoint.capacity.tokens().round() as u64,
                prefill_tokens_per_s: 1.0 / line.slope_s,
                base_s: line.base_s,
                predicted_cached_tokens: endpoint.predicted_cached_tokens,
                actual_cached_tokens: endpoint.actual_cached_tokens,
                kept_promises: endpoint.promises.kept(),
                trust: endpoint.promises.trust(),
            }
        });
        let rates = self.price.rates();
        FleetStats {
            endpoints: endpoints.collect(),
            in_flight: self.requests.len(),
            held: self.holds.len(),
            held_bytes: self.holds.prompt_bytes(),
            holds: self.held_total,
            stolen: self.stolen,
            hold_refused: self.hold_refused,
            index_bytes: self.index.bytes() + self.chain_bytes(),
            index_bytes_max: self.settings.index_bytes,
            price: rates.price(),
            followers: rates.followers,
            recompute: rates.recompute,
            bytes_per_token: self.prompt.bytes_per_token(),
            unremembered: self.unremembered,
        }
    }
}
