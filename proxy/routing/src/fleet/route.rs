//! From a request to a decision.

use super::requests::InFlight;
use super::{Fleet, GHOST_CAPACITIES, MAX_CHAIN, Pool};
use crate::endpoint::Endpoint;
use crate::policy::{Pick, Terms, View};
use crate::price::Rates;
use crate::{Decision, EndpointId, EndpointState, NoEndpoint, Now, RouteRequest, Runner};

/// A request measured in tokens.
#[derive(Clone, Copy)]
pub(super) struct Prompt<'a> {
    pub(super) chain: &'a [u64],
    pub(super) bytes: u64,
    pub(super) tokens: f64,
    pub(super) element_tokens: f64,
}

/// What was weighed, and what was picked.
pub(super) struct Choice<'a> {
    pub(super) prompt: Prompt<'a>,
    pub(super) terms: &'a [Terms],
    pub(super) pick: Pick,
    /// Leading elements that the pool had ever seen.
    pub(super) seen: u32,
    pub(super) pool: Pool,
}

impl Choice<'_> {
    pub(super) fn chosen(&self) -> Terms {
        self.terms[self.pick.index]
    }
}

impl Prompt<'_> {
    pub(super) fn matched_tokens(&self, elements: u32) -> f64 {
        (f64::from(elements) * self.element_tokens).min(self.tokens)
    }
}

impl Fleet {
    /// Chooses an endpoint, counts the request as its load and its prompt as about to be in its cache.
    ///
    /// # Errors
    /// [`NoEndpoint`] when every endpoint is unavailable, draining, excluded or without room; nothing has changed then.
    pub fn route(&mut self, request: &RouteRequest<'_>, now: Now) -> Result<Decision, NoEndpoint> {
        self.decide(request, now, |fleet, choice| fleet.go_if_room(request, choice))?
    }

    /// Weighs all candidates, picks one, and hands the choice to `then`. Only where nobody has room, those without are
    /// candidates.
    pub(super) fn decide<T>(
        &mut self,
        request: &RouteRequest<'_>,
        now: Now,
        then: impl FnOnce(&mut Fleet, Choice<'_>) -> T,
    ) -> Result<T, NoEndpoint> {
        let prompt = self.measure(request);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.looked_up = None;
        self.index.matches(prompt.chain, &mut scratch.matched);
        let pool = self.pool(now);
        let room = self.room(now);
        scratch.terms.clear();
        for with_room in [true, false] {
            scratch.terms.extend(self.endpoints().filter_map(|(id, endpoint)| {
                let fit = endpoint.state == EndpointState::Available && !request.exclude.contains(&id);
                let fit = fit && self.has_room(endpoint, &room) == with_room;
                fit.then(|| self.terms_of(id, endpoint, &pool, &prompt, &scratch.matched))
            }));
            if !scratch.terms.is_empty() {
                break;
            }
        }
        let decided = if scratch.terms.is_empty() {
            Err(self.no_endpoint(request.exclude, now))
        } else {
            let view = View { candidates: &scratch.terms, session: request.session, chain: prompt.chain };
            let pick = self.policy.pick(&view, &mut self.random);
            let seen = scratch.matched[self.ghost as usize];
            Ok(then(self, Choice { prompt, terms: &scratch.terms, pick, seen, pool }))
        };
        self.scratch = scratch;
        decided
    }

    /// Counts the request toward its endpoint's busy period and sends it there.
    pub(super) fn go(&mut self, request: &RouteRequest<'_>, choice: Choice<'_>) -> Decision {
        self.join(choice.chosen().slot, choice.pool.now);
        self.commit(request, choice)
    }

    /// Counts a request that was placed at `slot` toward its busy period and the price.
    pub(super) fn join(&mut self, slot: u32, now: Now) {
        let nobody_waits = self.holds.is_empty_at(slot);
        let endpoints = self.slots.len();
        let Some(endpoint) = self.slots[slot as usize].endpoint.as_mut() else { return };
        let predecessors = endpoint.load.join(nobody_waits, now);
        self.price.joined(predecessors, endpoints);
        endpoint.crowd.observe(predecessors, &self.price);
    }

    /// Cleans a request and estimates its tokens.
    pub(super) fn measure<'a>(&self, request: &RouteRequest<'a>) -> Prompt<'a> {
        let usable = if request.run_bytes == 0 { 0 } else { request.chain.len().min(MAX_CHAIN) };
        let chain = &request.chain[..usable];
        let covered = u64::from(request.run_bytes) * usable as u64;
        let bytes = request.prompt_bytes.max(covered);
        Prompt {
            chain,
            bytes,
            tokens: self.prompt.tokens(bytes, request.media),
            element_tokens: f64::from(request.run_bytes) / self.prompt.bytes_per_token(),
        }
    }

    /// One endpoint's terms.
    pub(super) fn terms_of(
        &self,
        id: EndpointId,
        endpoint: &Endpoint,
        pool: &Pool,
        prompt: &Prompt<'_>,
        matched: &[u32],
    ) -> Terms {
        let held = matched[endpoint.holder as usize];
        let line = endpoint.line(pool.line, self.ttft_count, self.slots.len());
        let matched_tokens = prompt.matched_tokens(held);
        let uncached_tokens = (prompt.tokens - matched_tokens).max(0.0);
        let rates = self.price.rates_at(&endpoint.crowd, pool.rates);
        let terms = Terms {
            slot: id.slot,
            digest: endpoint.digest,
            matched: held,
            matched_tokens,
            uncached_tokens,
            wait_s: 0.0,
            base_s: line.base_s,
            miss_s: uncached_tokens * line.slope_s,
            fetch_tokens: 0.0,
            fetch_s: 0.0,
            warehoused_tokens: 0.0,
            link_wait_s: 0.0,
            refetch_token_s: self.refetch_token_s(endpoint, pool).filter(|token_s| *token_s < line.slope_s),
            full: self.is_full(endpoint, pool.element_tokens),
            in_flight: endpoint.load.in_flight(),
            decoding: endpoint.load.decoding(),
            coming: 0,
            coming_s: 0.0,
            cost_s: 0.0,
        };
        let memory_s = self.memory_wait_s(endpoint, prompt.tokens);
        let wait_s = |terms: &Terms| endpoint.load.wait_s(terms.miss_s, pool.now).max(memory_s);
        let computed = self.weighed(terms, wait_s(&terms), &rates, pool);
        let Some(offer) = self.offer(endpoint, prompt, (matched, matched_tokens), pool) else {
            return self.with_coming(computed, endpoint, (prompt, matched), &rates, pool);
        };
        let fetched = offer.applied(terms, line.slope_s);
        let fetched = self.weighed(fetched, wait_s(&fetched), &rates, pool);
        let best = if fetched.cost_s < computed.cost_s { fetched } else { computed };
        let best = Terms { warehoused_tokens: offer.tokens, ..best };
        self.with_coming(best, endpoint, (prompt, matched), &rates, pool)
    }

    /// Terms with their wait and cost.
    fn weighed(&self, terms: Terms, wait_s: f64, rates: &Rates, pool: &Pool) -> Terms {
        let due = pool.now.plus(self.overtaken_s(pool, terms.service_s()));
        self.weighed_by(terms, wait_s, due, rates)
    }

    /// The same with the place that it has in the queue.
    pub(super) fn weighed_by(&self, mut terms: Terms, wait_s: f64, due: Now, rates: &Rates) -> Terms {
        terms.wait_s = wait_s + self.holds.ahead_s(terms.slot, due);
        let cost = self.policy.cost(&terms, rates);
        debug_assert!(cost.is_finite(), "{terms:?}");
        // A cost that is not a number would win or lose every comparison at random: last resort, cost the most.
        terms.cost_s = if cost.is_finite() { cost } else { f64::MAX };
        terms
    }

    /// Whether what is added to an endpoint's cache evicts something (98 % full).
    pub(super) fn is_full(&self, endpoint: &Endpoint, element_tokens: f64) -> bool {
        endpoint.filled
            || self.index.held(endpoint.holder) as f64 * element_tokens >= 0.98 * endpoint.capacity.tokens()
    }

    /// Records a choice everywhere it counts.
    pub(super) fn commit(&mut self, request: &RouteRequest<'_>, choice: Choice<'_>) -> Decision {
        let Choice { prompt, terms, pick, seen, pool } = choice;
        let (now, rates) = (pool.now, pool.rates);
        let chosen = terms[pick.index];
        let id = EndpointId { slot: chosen.slot, generation: self.slots[chosen.slot as usize].generation };
        let slot = self.requests.next_slot();
        let memory_s = self.endpoint(id).map_or(0.0, |e| self.memory_wait_s(e, prompt.tokens));
        let endpoint = self.slots[chosen.slot as usize].endpoint.as_mut();
        let endpoint = endpoint.expect("a candidate is a live endpoint");
        let uncached = chosen.uncached_tokens.round() as u64;
        let fetch_s = chosen.link_wait_s + chosen.fetch_s;
        let wait_s = endpoint.load.wait_s(chosen.miss_s, now).max(memory_s);
        let begins_s = if chosen.fetch_tokens > 0.0 { wait_s.max(fetch_s) } else { wait_s };
        let foreseen_s = begins_s + chosen.base_s + chosen.miss_s;
        let ready = if chosen.fetch_tokens > 0.0 { now.plus(fetch_s) } else { now };
        endpoint.load.begin(slot, uncached, chosen.miss_s, (request.streamed, ready), now);
        let (epoch, name, linked) = (endpoint.epoch, endpoint.name.clone(), endpoint.linked);
        let unseen = (prompt.tokens - prompt.matched_tokens(seen)).max(0.0);
        let per_token =
            if chosen.uncached_tokens > 0.0 { chosen.miss_s / chosen.uncached_tokens } else { 0.0 };
        let price = self.price.rates_at(&endpoint.crowd, rates).price();
        self.price.worked(chosen.miss_s, chosen.fetch_s, unseen * per_token);
        if let Some(link) =
            linked.filter(|_| chosen.fetch_tokens > 0.0).and_then(|l| self.links.get_mut(l.link))
        {
            let predecessors = link.begin(slot, chosen.fetch_s, now);
            self.price.fetches(predecessors);
        }

        let chain = self.remember(id, prompt.chain, request.run_bytes);
        self.promote(chosen.slot, prompt.chain, now);
        let ticket = self.requests.insert(InFlight {
            endpoint: id,
            epoch,
            chain,
            matched: chosen.matched,
            seen,
            run_bytes: request.run_bytes,
            prompt_bytes: prompt.bytes,
            media: request.media,
            prompt_tokens: prompt.tokens,
            matched_tokens: chosen.matched_tokens,
            fetch_tokens: chosen.fetch_tokens,
            linked,
            uncached_tokens: chosen.uncached_tokens,
            streamed: request.streamed,
            routed_at: now,
            first_token_at: None,
            waits_for_memory: memory_s > 0.0,
            staged: false,
            foreseen_s,
            prefill_s: None,
        });
        Decision {
            ticket,
            endpoint: id,
            name,
            reason: pick.reason,
            matched_tokens: chosen.matched_tokens.round() as u64,
            prompt_tokens: prompt.tokens.round() as u64,
            held_s: 0.0,
            wait_s: chosen.wait_s,
            fetch_tokens: chosen.fetch_tokens.round() as u64,
            warehoused_tokens: chosen.warehoused_tokens.round() as u64,
            fetch_s: chosen.fetch_s,
            link_wait_s: chosen.link_wait_s,
            miss_s: chosen.miss_s,
            cost_s: chosen.cost_s,
            price,
            runner_up: self.runner_up(terms, pick.index),
            candidates: terms.len(),
            would: None,
        }
    }

    /// Enters a routed chain for its endpoint, pinned, and for the ghost; then makes everything fit again.
    /// Returns the chain to release later, empty when nothing was entered.
    fn remember(&mut self, id: EndpointId, chain: &[u64], run_bytes: u32) -> Vec<u64> {
        if chain.is_empty() {
            return Vec::new();
        }
        self.run_bytes = run_bytes;
        if !self.index.has_room(chain.len()) {
            self.unremembered += 1;
            return Vec::new();
        }
        let element_tokens = self.element_tokens();
        let capacity = |fleet: &Fleet, id| {
            fleet.endpoint(id).map_or((fleet.ghost, 0), |e| (e.holder, e.capacity_elements(element_tokens)))
        };
        let (holder, own) = capacity(self, id);
        let pool =
            self.endpoints().map(|(_, e)| e.capacity_elements(element_tokens)).fold(0, u64::saturating_add);

        self.index.enter(holder, chain, self.settings.pins_running);
        let filled = self.index.held(holder) > own;
        self.index.evict_beyond(holder, own);
        if let Some(endpoint) = self.endpoint_mut(id) {
            endpoint.filled |= filled;
        }
        self.index.enter(self.ghost, chain, false);
        self.index.evict_beyond(self.ghost, pool.saturating_mul(GHOST_CAPACITIES));
        let kept = self.requests.keep_chain(chain);
        self.index.reserve(self.chain_bytes());
        self.index.keep_budget();
        kept
    }

    pub(super) fn runner_up(&self, terms: &[Terms], chosen: usize) -> Option<Runner> {
        let others = terms.iter().enumerate().filter(|(index, _)| *index != chosen).map(|(_, terms)| terms);
        let best = others.min_by(|a, b| a.cost_s.total_cmp(&b.cost_s))?;
        let slot = &self.slots[best.slot as usize];
        Some(Runner {
            endpoint: EndpointId { slot: best.slot, generation: slot.generation },
            name: slot.endpoint.as_ref()?.name.clone(),
            cost_s: best.cost_s,
            matched_tokens: best.matched_tokens.round() as u64,
        })
    }

    /// Says why nobody can take a request.
    pub(super) fn no_endpoint(&self, exclude: &[EndpointId], now: Now) -> NoEndpoint {
        let room = self.room(now);
        let mut why =
            NoEndpoint { known: 0, draining: 0, unavailable: 0, excluded: 0, full: 0, example: None };
        for (id, endpoint) in self.endpoints() {
            why.known += 1;
            match &endpoint.state {
                EndpointState::Available if exclude.contains(&id) => why.excluded += 1,
                EndpointState::Available => why.full += usize::from(!self.has_room(endpoint, &room)),
                EndpointState::Draining => why.draining += 1,
                EndpointState::Unavailable(reason) => {
                    why.unavailable += 1;
                    why.example.get_or_insert_with(|| format!("{}: {reason}", endpoint.name));
                }
            }
        }
        why
    }
}
