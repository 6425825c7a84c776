//! What is on its way to an endpoint: prompts of requests that wait for it will be in its cache when those behind them
//! have their turn.
//!
//! Requests of one session that come faster than they are answered, or many with a new system prompt, would each count
//! as a miss as long as the first of them waits, and be spread: the work is multiplied just when there is too much of
//! it. So who waits is entered in the index, under a holder of its endpoint's own, and who shares a beginning with him
//! is placed behind him; when he goes, they take the places of hits.

use super::route::Prompt;
use super::{Fleet, Pool};
use crate::endpoint::Endpoint;
use crate::hold::{Held, HoldId};
use crate::index::bisected;
use crate::policy::Terms;
use crate::price::Rates;
use crate::{EndpointId, Now};

/// Those who wait and may have become hits with one dispatch that are looked up again for it: one look is a matter of a
/// microsecond or two.
const PROMOTIONS: usize = 32;

impl Fleet {
    /// Terms with what is on its way there, if that makes it cheaper: the place in the queue is that of a miss, behind
    /// those who bring it.
    pub(super) fn with_coming(
        &self,
        terms: Terms,
        endpoint: &Endpoint,
        (prompt, matched): (&Prompt<'_>, &[u32]),
        rates: &Rates,
        pool: &Pool,
    ) -> Terms {
        let coming = endpoint.queued.and_then(|holder| matched.get(holder as usize)).map_or(0, |held| *held);
        if coming <= terms.matched || terms.uncached_tokens <= 0.0 {
            return terms;
        }
        let token_s = terms.miss_s / terms.uncached_tokens;
        let uncached_tokens = (prompt.tokens - prompt.matched_tokens(coming)).max(0.0);
        let miss_s = uncached_tokens * token_s;
        let then = Terms { uncached_tokens, miss_s, fetch_tokens: 0.0, fetch_s: 0.0, ..terms };
        let due = pool.now.plus(self.overtaken_s(pool, terms.service_s()));
        let then = self.weighed_by(
            then,
            endpoint.load.wait_s(miss_s, pool.now).max(self.memory_wait_s(endpoint, prompt.tokens)),
            due,
            rates,
        );
        if then.cost_s >= terms.cost_s {
            return terms;
        }
        Terms { coming, coming_s: miss_s, cost_s: then.cost_s, ..terms }
    }

    /// A request waits for an endpoint: so does its prompt.
    pub(super) fn announce(&mut self, id: HoldId) {
        let Some((slot, held)) = self.holds.queued_mut(id) else { return };
        let Some(endpoint) = self.slots.get_mut(slot as usize).and_then(|slot| slot.endpoint.as_mut()) else {
            return;
        };
        if held.announced || held.chain.is_empty() || !self.index.has_room(held.chain.len()) {
            return;
        }
        let index = &mut self.index;
        let holder = *endpoint.queued.get_or_insert_with(|| index.add_holder());
        index.enter(holder, &held.chain, true);
        held.announced = true;
    }

    /// A request is about to leave its queue.
    pub(super) fn retract(&mut self, id: HoldId) {
        let Some((slot, held)) = self.holds.queued_mut(id) else { return };
        held.coming = 0;
        let announced = std::mem::replace(&mut held.announced, false);
        let endpoint = self.slots.get(slot as usize).and_then(|slot| slot.endpoint.as_ref());
        if let Some(holder) = endpoint.and_then(|endpoint| endpoint.queued).filter(|_| announced) {
            self.index.release(holder, &held.chain);
            self.scratch.looked_up = None;
        }
    }

    /// An endpoint takes no more: all that wait for it are to be placed anew.
    pub(super) fn evict_queue(&mut self, id: EndpointId) {
        let all: Vec<HoldId> = self.holds.at(id.slot).map(|(key, _)| key.id).collect();
        all.into_iter().for_each(|id| self.retract(id));
        self.holds.evict(id.slot);
    }

    /// A prompt is on its way to an endpoint's engine: those of its queue that share more of it than they had there
    /// become hits.
    pub(super) fn promote(&mut self, slot: u32, chain: &[u64], now: Now) {
        if self.holds.is_empty_at(slot) {
            return;
        }
        let gains = |held: &Held| shared(&held.chain, chain) > held.matched as usize;
        let gaining =
            self.holds.at(slot).filter(|(_, held)| gains(held)).map(|(key, held)| (key, held.arrived));
        let gaining: Vec<_> = gaining.take(PROMOTIONS).collect();
        for (key, arrived) in gaining {
            let Some(needed) = self.needed_at(key.id, slot, now) else { continue };
            let due = arrived.plus(self.overtaken_s(&self.pool(now), needed.service_s));
            if due < key.due {
                self.holds.put(key.id, slot, due, needed);
            }
        }
    }
}

/// Leading elements that two chains share.
fn shared(a: &[u64], b: &[u64]) -> usize {
    let length = a.len().min(b.len());
    if length == 0 || a[0] != b[0] { 0 } else { bisected(a, b, length + 1) }
}

#[cfg(test)]
mod tests;
