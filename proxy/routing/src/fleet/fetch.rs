//! What a warehouse holds and by what it is read: from link to terms, and from a fetch to what it teaches.

use std::sync::Arc;

use super::requests::InFlight;
use super::route::Prompt;
use super::{Fleet, Pool};
use crate::endpoint::Endpoint;
use crate::link::{Link, Linked, Warehouse};
use crate::policy::Terms;
use crate::{EndpointId, Now, Ticket};

/// By what an endpoint reads a warehouse.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkSpec {
    /// Names the store: what one endpoint leaves in it, all that name it can fetch.
    pub warehouse: Arc<str>,
    /// Names the link: fetches of all endpoints that name it wait for each other.
    pub link: Arc<str>,
    /// Its speed before any fetch was observed, in tokens of KV per second.
    pub tokens_per_s: f64,
}

/// What came of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Tokens of the prompt's beginning that are ready for the endpoint, those that it had itself included.
    pub ready_tokens: u64,
    /// Tokens whose KV came over the link for that.
    pub moved_tokens: u64,
    /// Whether the warehouse has no more of the prompt than that; otherwise something else ended the fetch.
    pub all: bool,
}

/// A fetch that an endpoint may do for a request. All or nothing: to fetch the part that is there by the engine's turn
/// and to compute the rest was simulated, and makes no difference.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    /// Tokens that the warehouse has beyond those the endpoint holds; more than 0.
    pub(super) tokens: f64,
    pub(super) token_s: f64,
    pub(super) link_wait_s: f64,
}

impl Fleet {
    /// Says by what an endpoint reads which warehouse; `None`: it has none, and whatever it lacks it computes.
    pub fn set_link(&mut self, id: EndpointId, spec: Option<&LinkSpec>) {
        if self.endpoint(id).is_none() {
            return;
        }
        // The new one is joined first: what both use must outlive the change.
        let linked = spec.map(|spec| {
            let index = &mut self.index;
            let make = || Warehouse { holder: index.add_holder(), tokens: None };
            let warehouse = self.warehouses.join(&spec.warehouse, make);
            let link = self.links.join(&spec.link, || Link::new(spec.tokens_per_s));
            Linked { warehouse, link }
        });
        let before =
            self.endpoint_mut(id).and_then(|endpoint| std::mem::replace(&mut endpoint.linked, linked));
        self.unlink(before);
    }

    /// An endpoint no longer uses its link: what nobody uses any more goes.
    pub(super) fn unlink(&mut self, linked: Option<Linked>) {
        let Some(linked) = linked else { return };
        self.links.leave(linked.link);
        if let Some(warehouse) = self.warehouses.leave(linked.warehouse) {
            self.index.remove_holder(warehouse.holder, self.ghost);
        }
    }

    /// Sets the capacity of a warehouse that some endpoint reads, in tokens. Without it, the warehouse is believed to
    /// keep whatever fits into the index, until a fetch brings less.
    pub fn set_warehouse_tokens(&mut self, warehouse: &str, tokens: u64) {
        if let Some(warehouse) = self.warehouses.named(warehouse) {
            warehouse.tokens = Some(tokens);
        }
    }

    /// The fetch for a request is over. What was to be fetched and was not is computed, and counts as load from now on.
    ///
    /// May be called where nothing was to be fetched, too: what is ready then was not believed to be there.
    pub fn fetched(&mut self, ticket: &Ticket, fetched: Fetched, now: Now) {
        let Some(request) = self.requests.get_mut(ticket) else { return };
        let tokens = (fetched.ready_tokens as f64).min(request.prompt_tokens);
        let brought = (tokens - request.matched_tokens).max(0.0);
        let planned = std::mem::replace(&mut request.fetch_tokens, 0.0);
        request.staged |= brought > 0.0;
        request.uncached_tokens += planned - brought.min(planned);
        let (id, missing, linked) = (request.endpoint, planned - brought, request.linked);
        let elements = tokens / request.element_tokens().max(f64::MIN_POSITIVE);
        let chain = std::mem::take(&mut request.chain);
        let (pool, count, endpoints) = (self.pool_line(), self.ttft_count, self.slots.len());
        if let Some(endpoint) = self.endpoint_mut(id).filter(|_| planned > 0.0 || brought > 0.0) {
            let slope_s = endpoint.line(pool, count, endpoints).slope_s;
            endpoint.load.fetched(ticket.slot, missing, missing * slope_s, now);
        }
        if let Some(linked) = linked {
            if let Some(link) = self.links.get_mut(linked.link) {
                link.end(ticket.slot, Some(fetched.moved_tokens as f64), now);
            }
            if self.endpoint(id).is_some_and(|endpoint| endpoint.linked == Some(linked)) {
                self.believe(linked, &chain, (elements as usize).min(chain.len()), fetched.all);
            }
        }
        if let Some(request) = self.requests.get_mut(ticket) {
            request.chain = chain;
        }
    }

    /// A warehouse has the first `elements` of a chain and, if `all` is set, no more of it.
    fn believe(&mut self, linked: Linked, chain: &[u64], elements: usize, all: bool) {
        let Some(warehouse) = self.warehouses.get(linked.warehouse) else { return };
        let (holder, tokens) = (warehouse.holder, warehouse.tokens);
        if elements > 0 {
            self.index.enter(holder, &chain[..elements], false);
        }
        if all {
            self.index.forget(holder, chain, elements..chain.len());
        }
        let element_tokens = self.element_tokens();
        if let Some(tokens) = tokens.filter(|_| element_tokens > 0.0) {
            self.index.evict_beyond(holder, (tokens as f64 / element_tokens) as u64);
        }
        self.index.keep_budget();
    }

    /// What was computed at an endpoint has been written to its warehouse.
    pub(super) fn stored(&mut self, id: EndpointId, chain: &[u64]) {
        if let Some(linked) = self.endpoint(id).and_then(|endpoint| endpoint.linked) {
            self.believe(linked, chain, chain.len(), false);
        }
    }

    /// A request is over, whatever became of its fetch.
    pub(super) fn give_up_fetch(&mut self, request: &InFlight, slot: u32, now: Now) {
        if let Some(link) = request.linked.and_then(|linked| self.links.get_mut(linked.link)) {
            link.end(slot, None, now);
        }
    }

    /// What an endpoint could fetch of a prompt of which it holds `held_tokens`.
    pub(super) fn offer(
        &self,
        endpoint: &Endpoint,
        prompt: &Prompt<'_>,
        (matched, held_tokens): (&[u32], f64),
        pool: &Pool,
    ) -> Option<Offer> {
        let linked = endpoint.linked?;
        let warehouse = self.warehouses.get(linked.warehouse)?;
        let elements = matched.get(warehouse.holder as usize).copied().unwrap_or(0);
        let tokens = prompt.matched_tokens(elements) - held_tokens;
        let link = self.links.get(linked.link)?;
        (tokens > self.settings.min_fetch_tokens as f64).then(|| Offer {
            tokens,
            token_s: link.token_s(pool.link_token_s.unwrap_or_default()),
            link_wait_s: link.wait_s(pool.now),
        })
    }

    /// Seconds by which a token that an endpoint evicts comes back from its warehouse, if that has anything.
    pub(super) fn refetch_token_s(&self, endpoint: &Endpoint, pool: &Pool) -> Option<f64> {
        let warehouse = self.warehouses.get(endpoint.linked?.warehouse)?;
        pool.link_token_s.filter(|_| self.index.held(warehouse.holder) > 0)
    }
}

impl Offer {
    /// The terms with it, from those without.
    pub(super) fn applied(&self, without: Terms, slope_s: f64) -> Terms {
        let uncached_tokens = (without.uncached_tokens - self.tokens).max(0.0);
        Terms {
            uncached_tokens,
            miss_s: uncached_tokens * slope_s,
            fetch_tokens: self.tokens,
            fetch_s: self.tokens * self.token_s,
            link_wait_s: self.link_wait_s,
            ..without
        }
    }
}

#[cfg(test)]
mod tests;
