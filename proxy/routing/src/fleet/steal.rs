//! An idle engine takes what it serves cheaper than those who have it would, waiting included.

use super::Fleet;
use crate::hold::HoldId;
use crate::policy::Terms;
use crate::{EndpointState, Now};

/// Held requests that one search for something to steal looks up in the index. They are taken by what stealing
/// them could gain at most, so those left out hardly matter, and the search stays a matter of microseconds.
const STEAL_LOOKS: usize = 32;
/// The least gain, in seconds, worth moving a request for.
const STEAL_GAIN_S: f64 = 1e-3;

/// A chance to steal: at most how good it is, and whom it concerns.
struct Chance {
    bound_s: f64,
    id: HoldId,
    endpoint: u32,
    /// Seconds until the endpoint that has it would turn to it.
    wait_s: f64,
}

impl Fleet {
    /// The held request that gains most from going to an idle endpoint, and which.
    pub(super) fn best_steal(&self, now: Now) -> Option<(HoldId, u32)> {
        let room = self.room(now);
        let idle: Vec<(u32, f64)> = self
            .endpoints()
            .filter(|(_, endpoint)| endpoint.state == EndpointState::Available && !endpoint.avoided)
            .filter(|(id, _)| self.is_idle(id.slot, &room, now))
            .map(|(id, endpoint)| (id.slot, endpoint.load.wait_s(0.0, now)))
            .collect();
        if idle.is_empty() {
            return None;
        }
        // One look at the pool for all pairs: nothing changes between them.
        let pool = self.pool(now);
        let price = pool.rates.price();
        let mut best: Option<(f64, HoldId, u32)> = None;
        let mut matched = Vec::new();
        for chance in self.chances(price, now).into_iter().take(STEAL_LOOKS) {
            if chance.bound_s <= best.map_or(STEAL_GAIN_S, |(gain, ..)| gain) {
                break;
            }
            let Some(held) = self.holds.get(chance.id) else { continue };
            self.index.matches(&held.chain, &mut matched);
            let prompt = self.measure(&held.request());
            let Some(there) = self.terms_at(chance.endpoint, &pool, &prompt, &matched) else { continue };
            let there = if held.coming > there.matched {
                Terms { miss_s: held.needs.service_s, fetch_s: 0.0, fetch_tokens: 0.0, ..there }
            } else {
                there
            };
            for (slot, wait_s) in &idle {
                let Some(here) = self.terms_at(*slot, &pool, &prompt, &matched) else { continue };
                let excluded = held.exclude.iter().any(|id| id.slot == *slot);
                if !self.can_start((*slot, here.needed()), &room, now) {
                    continue;
                }
                let delay_s = |terms: &Terms, wait_s| Terms { wait_s, ..*terms }.begins_s();
                let gain = delay_s(&there, chance.wait_s) - delay_s(&here, *wait_s)
                    + price * (there.service_s() - here.service_s());
                if !excluded && gain > best.map_or(STEAL_GAIN_S, |(gain, ..)| gain) {
                    best = Some((gain, chance.id, *slot));
                }
            }
        }
        best.map(|(_, id, slot)| (id, slot))
    }

    /// Everyone who waits, by the most that stealing could gain for him.
    fn chances(&self, price: f64, now: Now) -> Vec<Chance> {
        let mut chances = Vec::with_capacity(self.holds.len());
        for endpoint in self.holds.waited_for() {
            let Some((_, owner)) = self.endpoint_at(endpoint) else { continue };
            let memory_s = self.memory_wait_s(owner, 0.0);
            let mut wait_s = owner.load.backlog_s(now).max(memory_s);
            let link = owner.linked.and_then(|linked| self.links.get(linked.link));
            let link_wait_s = link.map_or(0.0, |link| link.wait_s(now));
            for (key, held) in self.holds.at(endpoint) {
                let begins_s = if held.needs.fetch_s > 0.0 {
                    wait_s.max(link_wait_s + held.needs.fetch_s)
                } else {
                    wait_s
                };
                let bound_s = begins_s + price * held.needs.service_s;
                chances.push(Chance { bound_s, id: key.id, endpoint, wait_s });
                wait_s += held.needs.service_s;
            }
        }
        chances.sort_by(|a, b| b.bound_s.total_cmp(&a.bound_s).then(a.id.cmp(&b.id)));
        chances
    }
}
