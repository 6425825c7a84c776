//! Requests that wait in the proxy: one queue for each endpoint, ordered by arrival plus price times miss.
//!
//! Pure bookkeeping: who waits where, in which order, and within which bounds. When one is let go, and to whom,
//! is `fleet::hold`'s.

use std::collections::{BTreeSet, VecDeque};

use crate::policy::Needed;
use crate::{EndpointId, Now, RouteRequest, Runner};

/// Names a held request of one [`Fleet`](crate::Fleet). Unique for the life of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A request that waits, with all that is needed to decide again.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) chain: Vec<u64>,
    pub(crate) run_bytes: u32,
    pub(crate) prompt_bytes: u64,
    pub(crate) media: u32,
    pub(crate) session: Option<u64>,
    pub(crate) streamed: bool,
    pub(crate) exclude: Vec<EndpointId>,
    pub(crate) arrived: Now,
    /// What it needs where it waits, by the last look.
    pub(crate) needs: Needed,
    /// Leading elements that are cached there, by the last look.
    pub(crate) matched: u32,
    /// Leading elements that those who wait there before it bring.
    pub(crate) coming: u32,
    /// Whether the index says that it brings its own.
    pub(crate) announced: bool,
    /// What the first decision knew of the alternatives.
    pub(crate) runner_up: Option<Runner>,
    pub(crate) candidates: usize,
}

impl Held {
    pub(crate) fn request(&self) -> RouteRequest<'_> {
        RouteRequest {
            chain: &self.chain,
            run_bytes: self.run_bytes,
            prompt_bytes: self.prompt_bytes,
            media: self.media,
            session: self.session,
            streamed: self.streamed,
            exclude: &self.exclude,
        }
    }

    fn chain_bytes(&self) -> usize {
        self.chain.capacity() * size_of::<u64>()
    }
}

/// A place in a queue: earliest due first, then first come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Key {
    pub(crate) due: Now,
    sequence: u64,
    pub(crate) id: HoldId,
}

impl Eq for Key {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let due = self.due.as_secs_f64().total_cmp(&other.due.as_secs_f64());
        due.then(self.sequence.cmp(&other.sequence)).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Where a held request stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Queue(u32, Key),
    Homeless,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    entry: Option<(Held, Place)>,
}

/// All held requests of a fleet.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// By endpoint slot.
    queues: Vec<BTreeSet<Key>>,
    /// Their endpoint went: to be placed anew, in order of arrival.
    homeless: VecDeque<HoldId>,
    sequence: u64,
    prompt_bytes: u64,
    chain_bytes: usize,
}

impl Holds {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Prompt bytes of all held requests: what their bodies take in the proxy's memory, about.
    pub(crate) fn prompt_bytes(&self) -> u64 {
        self.prompt_bytes
    }

    /// Bytes of the chains kept here.
    pub(crate) fn chain_bytes(&self) -> usize {
        self.chain_bytes
    }

    pub(crate) fn insert(&mut self, held: Held, endpoint: u32, due: Now) -> HoldId {
        self.prompt_bytes = self.prompt_bytes.saturating_add(held.prompt_bytes);
        self.chain_bytes += held.chain_bytes();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let id = HoldId { slot, generation: self.slots[slot as usize].generation };
        self.sequence += 1;
        let key = Key { due, sequence: self.sequence, id };
        self.enqueue(endpoint, key);
        self.slots[slot as usize].entry = Some((held, Place::Queue(endpoint, key)));
        id
    }

    pub(crate) fn get(&self, id: HoldId) -> Option<&Held> {
        self.entry(id).map(|(held, _)| held)
    }

    fn entry(&self, id: HoldId) -> Option<&(Held, Place)> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.entry.as_ref()
    }

    /// Takes a request out, wherever it stands.
    pub(crate) fn remove(&mut self, id: HoldId) -> Option<Held> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        let (held, place) = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.prompt_bytes = self.prompt_bytes.saturating_sub(held.prompt_bytes);
        self.chain_bytes -= held.chain_bytes();
        match place {
            Place::Queue(endpoint, key) => {
                self.queues[endpoint as usize].remove(&key);
            }
            Place::Homeless => self.homeless.retain(|other| *other != id),
        }
        Some(held)
    }

    /// Moves a request to a place of an endpoint's queue; its turn among equals stays.
    pub(crate) fn put(&mut self, id: HoldId, endpoint: u32, due: Now, needs: Needed) {
        let Some(slot) = self.slots.get_mut(id.slot as usize) else { return };
        let Some((held, place)) = slot.entry.as_mut().filter(|_| slot.generation == id.generation) else {
            return;
        };
        held.needs = needs;
        let sequence = match *place {
            Place::Queue(at, key) => {
                self.queues[at as usize].remove(&key);
                key.sequence
            }
            Place::Homeless => {
                self.homeless.retain(|other| *other != id);
                self.sequence += 1;
                self.sequence
            }
        };
        let key = Key { due, sequence, id };
        *place = Place::Queue(endpoint, key);
        self.enqueue(endpoint, key);
    }

    /// A request and the slot of the endpoint that it waits for.
    pub(crate) fn queued_mut(&mut self, id: HoldId) -> Option<(u32, &mut Held)> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        match slot.entry.as_mut()? {
            (held, Place::Queue(endpoint, _)) => Some((*endpoint, held)),
            (_, Place::Homeless) => None,
        }
    }

    /// What a look said about a request where it waits.
    pub(crate) fn found(&mut self, id: HoldId, matched: u32, coming: u32) {
        if let Some((_, held)) = self.queued_mut(id) {
            (held.matched, held.coming) = (matched, coming);
        }
    }

    fn enqueue(&mut self, endpoint: u32, key: Key) {
        if self.queues.len() <= endpoint as usize {
            self.queues.resize_with(endpoint as usize + 1, BTreeSet::new);
        }
        self.queues[endpoint as usize].insert(key);
    }

    /// An endpoint takes no more: all that wait for it are to be placed anew.
    pub(crate) fn evict(&mut self, endpoint: u32) {
        let Some(queue) = self.queues.get_mut(endpoint as usize) else { return };
        for key in std::mem::take(queue) {
            if let Some((_, place)) = self.slots[key.id.slot as usize].entry.as_mut() {
                *place = Place::Homeless;
                self.homeless.push_back(key.id);
            }
        }
    }

    /// The next that has no endpoint.
    pub(crate) fn homeless(&self) -> Option<HoldId> {
        self.homeless.front().copied()
    }

    pub(crate) fn is_empty_at(&self, endpoint: u32) -> bool {
        self.queues.get(endpoint as usize).is_none_or(BTreeSet::is_empty)
    }

    pub(crate) fn len_at(&self, endpoint: u32) -> usize {
        self.queues.get(endpoint as usize).map_or(0, BTreeSet::len)
    }

    /// The first in an endpoint's queue.
    pub(crate) fn first_at(&self, endpoint: u32) -> Option<Key> {
        self.queues.get(endpoint as usize)?.first().copied()
    }

    /// Everyone in an endpoint's queue, in order.
    pub(crate) fn at(&self, endpoint: u32) -> impl Iterator<Item = (Key, &Held)> {
        let queue = self.queues.get(endpoint as usize).into_iter().flatten();
        queue.filter_map(|key| Some((*key, self.get(key.id)?)))
    }

    /// Seconds of work that an endpoint's queue has ahead of a place due at `due`.
    pub(crate) fn ahead_s(&self, endpoint: u32, due: Now) -> f64 {
        self.at(endpoint).take_while(|(key, _)| key.due <= due).map(|(_, held)| held.needs.service_s).sum()
    }

    /// Slots of endpoints that someone waits for.
    pub(crate) fn waited_for(&self) -> impl Iterator<Item = u32> {
        self.queues.iter().enumerate().filter(|(_, queue)| !queue.is_empty()).map(|(slot, _)| slot as u32)
    }
}

#[cfg(test)]
mod tests;
