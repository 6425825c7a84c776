//! All mutable state of one pool.

mod coming;
mod export;
mod fetch;
mod finish;
mod hold;
mod memory;
mod report;
mod requests;
mod room;
mod route;
mod shadow;
mod steal;

pub use export::ExportCursor;
pub use fetch::{Fetched, LinkSpec};
pub use hold::{QueueFull, SubmitError, Submitted};
use memory::Answers;
use requests::Requests;

use crate::endpoint::{Capacity, Endpoint};
use crate::estimate::{PromptModel, TtftLine, TtftModel};
use crate::hold::{HoldId, Holds};
use crate::index::{HolderId, Index};
use crate::link::{Link, Shared, Speed, Warehouse};
use crate::policy::{self, Policy, Terms};
use crate::price::{Price, Rates};
use crate::random::Random;
use crate::{EndpointId, EndpointState, Now, PolicyKind, Settings};

/// Longest chain that is looked at, in elements: 32 MiB of prompt at 512 bytes an element, more than any context.
pub const MAX_CHAIN: usize = 65_536;

/// Size of the ghost (the memory of what was ever seen) in multiples of the pool's KV capacity. From 2 upwards
/// the price is the same; 8 leaves room for a capacity that is wrong.
const GHOST_CAPACITIES: u64 = 8;

/// The endpoints of one pool, what they hold, what they have to do, and the policy that chooses among them.
///
/// Single-threaded and free of clocks: `now` is an argument, ties are drawn from a seed, so the same calls give the
/// same decisions. The proxy holds it behind one mutex; every call is a matter of microseconds.
pub struct Fleet {
    settings: Settings,
    policy: Box<dyn Policy>,
    random: Random,
    index: Index,
    /// Holds whatever was routed to anyone: what a cache that forgets nothing would have. What is lost with an
    /// endpoint goes from it too: to compute that again is not the price of crowding the caches.
    ghost: HolderId,
    slots: Vec<Slot>,
    /// What endpoints fetch from, and by what.
    warehouses: Shared<Warehouse>,
    links: Shared<Link>,
    requests: Requests,
    holds: Holds,
    /// Whether this proxy's view of the load is whole, so that holding is worth something.
    view_is_whole: bool,
    /// When the last slow start is over.
    ramping_until: Now,
    held_total: u64,
    stolen: u64,
    hold_refused: u64,
    prompt: PromptModel,
    /// The pool's prefill line and how many observations it has had.
    ttft: TtftModel,
    ttft_count: f64,
    price: Price,
    answers: Answers,
    /// Of the latest request with a chain.
    run_bytes: u32,
    /// Requests that were not entered into the index for lack of room.
    unremembered: u64,
    scratch: Scratch,
}

/// A place for an endpoint. The generation counts its tenants.
struct Slot {
    generation: u32,
    endpoint: Option<Endpoint>,
}

/// What all endpoints of one decision share, computed once.
struct Pool {
    now: Now,
    line: TtftLine,
    rates: Rates,
    /// Seconds that a token's KV takes over the mean link, where there is one.
    link_token_s: Option<f64>,
    element_tokens: f64,
}

/// Reused by every decision.
#[derive(Default)]
struct Scratch {
    matched: Vec<u32>,
    /// The held request that `matched` was looked up for, as long as the index is what it was then.
    looked_up: Option<HoldId>,
    terms: Vec<Terms>,
}

impl Fleet {
    /// A pool without endpoints.
    pub fn new(settings: Settings) -> Self {
        let mut index = Index::new(settings.index_bytes);
        let ghost = index.add_holder();
        Fleet {
            policy: policy::of(settings.policy),
            random: Random::new(settings.seed),
            index,
            ghost,
            slots: Vec::new(),
            warehouses: Shared::default(),
            links: Shared::default(),
            requests: Requests::default(),
            holds: Holds::default(),
            view_is_whole: true,
            ramping_until: Now::ZERO,
            held_total: 0,
            stolen: 0,
            hold_refused: 0,
            prompt: PromptModel::new(settings.default_bytes_per_token),
            ttft: TtftModel::new(settings.default_prefill_tokens_per_s),
            ttft_count: 0.0,
            price: Price::default(),
            answers: Answers::default(),
            run_bytes: 0,
            unremembered: 0,
            scratch: Scratch::default(),
            settings,
        }
    }

    /// How it chooses.
    pub fn policy(&self) -> PolicyKind {
        self.settings.policy
    }

    /// Goes by other settings from now on. What was learned stays, and so do the index' budget, the seed, and what was
    /// a prior of something that has been observed since.
    pub fn retune(&mut self, settings: Settings) {
        let Settings { index_bytes, seed, .. } = self.settings;
        if settings.policy != self.settings.policy {
            self.policy = policy::of(settings.policy);
        }
        self.settings = Settings { index_bytes, seed, ..settings };
    }

    /// Adds an available endpoint. A name that is known already is left as it is and keeps its id.
    ///
    /// Their number is bounded by the caller's configuration; decisions are designed for up to 2,000.
    pub fn add_endpoint(&mut self, name: &str, _now: Now) -> EndpointId {
        if let Some(known) = self.endpoint_named(name) {
            return known;
        }
        let holder = self.index.add_holder();
        let endpoint = Some(Endpoint::new(name, holder, self.settings.default_kv_tokens));
        let slot = match self.slots.iter().position(|slot| slot.endpoint.is_none()) {
            Some(free) => free,
            None => {
                self.slots.push(Slot { generation: 0, endpoint: None });
                self.slots.len() - 1
            }
        };
        self.slots[slot].endpoint = endpoint;
        EndpointId { slot: slot as u32, generation: self.slots[slot].generation }
    }

    /// The endpoint of a name.
    pub fn endpoint_named(&self, name: &str) -> Option<EndpointId> {
        self.endpoints().find(|(_, endpoint)| &*endpoint.name == name).map(|(id, _)| id)
    }

    /// Removes an endpoint and all that is known about it. Its requests in flight may still be finished.
    pub fn remove_endpoint(&mut self, id: EndpointId) {
        if self.endpoint(id).is_none() {
            return;
        }
        self.evict_queue(id);
        let slot = &mut self.slots[id.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if let Some(endpoint) = slot.endpoint.take() {
            for holder in [Some(endpoint.holder), endpoint.queued].into_iter().flatten() {
                self.index.remove_holder(holder, self.ghost);
            }
            self.unlink(endpoint.linked);
        }
        if self.endpoints().next().is_none() {
            self.index.clear(self.ghost);
            self.index.drop_spare();
            self.requests.drop_spare();
        }
    }

    /// Makes an endpoint available or not. Does nothing for a removed one, like all setters.
    pub fn set_state(&mut self, id: EndpointId, state: EndpointState) {
        let Some(endpoint) = self.endpoint_mut(id) else { return };
        endpoint.state = state;
        if endpoint.state != EndpointState::Available {
            self.evict_queue(id);
        }
    }

    /// Sets the KV capacity that the engine reports, in tokens, and drops what feedback had made of an earlier one.
    pub fn set_kv_tokens(&mut self, id: EndpointId, tokens: u64) {
        if let Some(endpoint) = self.endpoint_mut(id) {
            (endpoint.capacity, endpoint.filled) = (Capacity::new(tokens, true), false);
        }
    }

    /// The engine restarted or its cache was reset: forgets what it held. Its load stays until the requests end.
    pub fn cleared(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoint_mut(id) else { return };
        endpoint.epoch = endpoint.epoch.wrapping_add(1);
        endpoint.filled = false;
        let holder = endpoint.holder;
        self.index.clear_with(holder, self.ghost);
    }

    fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.endpoint.as_ref()
    }

    fn endpoint_mut(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.endpoint.as_mut()
    }

    fn endpoints(&self) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| {
            let id = EndpointId { slot: slot as u32, generation: entry.generation };
            entry.endpoint.as_ref().map(|endpoint| (id, endpoint))
        })
    }

    /// The pool's prefill line; its prior makes sure that there is one.
    fn pool_line(&self) -> TtftLine {
        self.ttft.line().unwrap_or(TtftLine { base_s: 0.0, slope_s: 1.0 / 8_000.0 })
    }

    /// What all endpoints of one decision share.
    fn pool(&self, now: Now) -> Pool {
        Pool {
            now,
            line: self.pool_line(),
            rates: self.price.rates(),
            link_token_s: Speed::mean_s(self.links.iter().map(Link::speed)),
            element_tokens: self.element_tokens(),
        }
    }

    /// Bytes of the chains that are kept for requests in flight and held.
    fn chain_bytes(&self) -> usize {
        self.requests.chain_bytes() + self.holds.chain_bytes()
    }

    /// Tokens that one chain element stands for; 0 before any chain was seen.
    fn element_tokens(&self) -> f64 {
        f64::from(self.run_bytes) / self.prompt.bytes_per_token()
    }
}

#[cfg(test)]
mod tests;
