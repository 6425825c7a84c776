//! Requests in flight: slots that tickets name.

use crate::link::Linked;
use crate::{EndpointId, Now, Ticket};

/// Chain buffers kept for reuse.
const SPARE_CHAINS: usize = 64;
/// Largest buffer worth keeping, in elements (16 KiB).
const SPARE_ELEMENTS: usize = 2_048;

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) endpoint: EndpointId,
    pub(super) epoch: u32,
    /// What is pinned in the index; empty when nothing is.
    pub(super) chain: Vec<u64>,
    /// Leading elements the endpoint held, and the pool had ever seen, at the time of routing.
    pub(super) matched: u32,
    pub(super) seen: u32,
    pub(super) run_bytes: u32,
    pub(super) prompt_bytes: u64,
    pub(super) media: u32,
    pub(super) prompt_tokens: f64,
    pub(super) matched_tokens: f64,
    /// To be fetched, while the fetch is owed.
    pub(super) fetch_tokens: f64,
    pub(super) linked: Option<Linked>,
    pub(super) uncached_tokens: f64,
    pub(super) streamed: bool,
    pub(super) routed_at: Now,
    pub(super) first_token_at: Option<Now>,
    /// There may not have been memory for it when it was sent: when its prefill began is not known.
    pub(super) waits_for_memory: bool,
    /// KV for it was put at the endpoint's hand: what it finds says nothing about what it keeps.
    pub(super) staged: bool,
    /// Seconds from its dispatch to its first token, as foreseen then.
    pub(super) foreseen_s: f64,
    /// Seconds of its prefill alone, once known.
    pub(super) prefill_s: Option<f64>,
}

impl InFlight {
    /// Tokens that one of its chain's elements stands for.
    pub(super) fn element_tokens(&self) -> f64 {
        f64::from(self.run_bytes) * self.prompt_tokens / self.prompt_bytes.max(1) as f64
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    request: Option<InFlight>,
}

/// A slab of requests, with its memory bounded by the most that were ever in flight together.
#[derive(Default)]
pub(super) struct Requests {
    slots: Vec<Slot>,
    free: Vec<u32>,
    spare: Vec<Vec<u64>>,
    chain_bytes: usize,
}

impl Requests {
    /// Requests in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of all chains kept here.
    pub(super) fn chain_bytes(&self) -> usize {
        self.chain_bytes
    }

    /// The slot that the next [`Requests::insert`] uses.
    pub(super) fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    /// A copy of `chain` in a reused buffer, counted until its request ends.
    pub(super) fn keep_chain(&mut self, chain: &[u64]) -> Vec<u64> {
        let mut kept = self.spare.pop().unwrap_or_default();
        self.chain_bytes -= kept.capacity() * size_of::<u64>();
        kept.clear();
        kept.reserve_exact(chain.len());
        kept.extend_from_slice(chain);
        self.chain_bytes += kept.capacity() * size_of::<u64>();
        kept
    }

    pub(super) fn insert(&mut self, request: InFlight) -> Ticket {
        let slot = self.next_slot();
        if self.free.pop().is_none() {
            self.slots.push(Slot::default());
        }
        let place = &mut self.slots[slot as usize];
        place.request = Some(request);
        Ticket { slot, generation: place.generation }
    }

    pub(super) fn get_mut(&mut self, ticket: &Ticket) -> Option<&mut InFlight> {
        let place = self.slots.get_mut(ticket.slot as usize)?;
        place.request.as_mut().filter(|_| place.generation == ticket.generation)
    }

    /// Takes a request out. `None` for a ticket of another fleet.
    pub(super) fn remove(&mut self, ticket: &Ticket) -> Option<InFlight> {
        self.get_mut(ticket)?;
        let place = &mut self.slots[ticket.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(ticket.slot);
        place.request.take()
    }

    /// Takes a finished request's chain back.
    pub(super) fn recycle(&mut self, chain: Vec<u64>) {
        if self.spare.len() < SPARE_CHAINS && (1..=SPARE_ELEMENTS).contains(&chain.capacity()) {
            self.spare.push(chain);
        } else {
            self.chain_bytes -= chain.capacity() * size_of::<u64>();
        }
    }

    /// Frees the buffers that finished requests left: their pool serves nobody.
    pub(super) fn drop_spare(&mut self) {
        let freed: usize = self.spare.iter().map(|chain| chain.capacity() * size_of::<u64>()).sum();
        self.spare = Vec::new();
        self.chain_bytes -= freed;
    }
}
