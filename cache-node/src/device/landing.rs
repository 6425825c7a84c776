//! What lies in a GPU's landing slab, and what is to come there. Pure: no memory is touched here.
//!
//! Stages share the slab by deadline: what is needed first is brought first, and what is needed later makes room for it. A
//! chunk's part goes with the last lease that wants it: when it was scattered, or when that lease has ended. What has no
//! room stays in pinned host memory, from where it is loaded as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use larder_protocol::LeaseId;

/// Places in the slab are multiples of this: kernels access 16 bytes at once, and GPUs move memory in lines of 128.
const GRAIN_BYTES: u64 = 256;
/// Parts that wait for their turn; a stage of more is brought as far as that.
const WAITING_MAX: usize = 16_384;

/// A chunk's part, by where it begins in the host slab. A lease that wants it pins it there.
pub(super) type PartPlace = u64;

/// A part to be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    /// For whom, first; its lease pins the part in host memory.
    pub(super) lease: LeaseId,
    pub(super) place: PartPlace,
    pub(super) bytes: u64,
    /// Where it goes in the slab, in bytes.
    pub(super) at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Filling,
    Ready,
    /// Its bytes came wrong, or not at all.
    Bad,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    /// What it takes of the slab.
    taken: u64,
    state: State,
    /// Scatters under way.
    uses: u32,
    needed_by: Duration,
    wanted: BTreeSet<LeaseId>,
}

/// What waits, in the order of its turn: deadline, then order of asking.
type Turn = (Duration, u64);

/// The slab's contents.
#[derive(Debug)]
pub(super) struct Landing {
    /// Free ranges: where each begins, and its bytes. No two touch.
    free: BTreeMap<u64, u64>,
    entries: HashMap<PartPlace, Entry>,
    waiting: BTreeMap<Turn, (PartPlace, u64, LeaseId)>,
    /// Of each lease, how many of its parts wait; none that has none.
    waiting_of: HashMap<LeaseId, usize>,
    next: u64,
    /// Parts that made room for others.
    pub(super) displaced: u64,
}

impl Landing {
    pub(super) fn new(bytes: u64) -> Self {
        let bytes = bytes - bytes % GRAIN_BYTES;
        let free = (bytes > 0).then_some((0, bytes));
        Self {
            free: free.into_iter().collect(),
            entries: HashMap::new(),
            waiting: BTreeMap::new(),
            waiting_of: HashMap::new(),
            next: 0,
            displaced: 0,
        }
    }

    /// A lease's parts are to come, in this order, as far as there is room.
    pub(super) fn want(
        &mut self,
        lease: LeaseId,
        needed_by: Duration,
        parts: impl Iterator<Item = (PartPlace, u64)>,
    ) {
        for (place, bytes) in parts {
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.wanted.insert(lease);
                entry.needed_by = entry.needed_by.min(needed_by);
            } else if self.waiting.len() < WAITING_MAX {
                self.next += 1;
                self.waiting.insert((needed_by, self.next), (place, bytes, lease));
                *self.waiting_of.entry(lease).or_default() += 1;
            }
        }
    }

    /// The next part to bring, with `extra` bytes behind it in the slab. What has no room is forgotten, with all that is
    /// of the same lease and comes behind it: a load uses the beginning first.
    pub(super) fn next(&mut self, extra: impl Fn(u64) -> u64) -> Option<Fill> {
        while let Some(((needed_by, _), (place, bytes, lease))) = self.waiting.pop_first() {
            let waiting = self.waiting_of.get_mut(&lease).expect("what waits is counted");
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting_of.remove(&lease);
            }
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.wanted.insert(lease);
                entry.needed_by = entry.needed_by.min(needed_by);
                continue;
            }
            let taken = (bytes + extra(bytes)).next_multiple_of(GRAIN_BYTES);
            let Some(at) = self.room(taken, needed_by) else {
                self.wait_no_more(lease);
                continue;
            };
            let wanted = [lease].into();
            self.entries
                .insert(place, Entry { at, taken, state: State::Filling, uses: 0, needed_by, wanted });
            return Some(Fill { lease, place, bytes, at });
        }
        None
    }

    /// A range of the slab, for which parts go that are needed later, the last first.
    fn room(&mut self, bytes: u64, needed_by: Duration) -> Option<u64> {
        loop {
            let found =
                self.free.iter().find(|(_, length)| **length >= bytes).map(|(at, length)| (*at, *length));
            if let Some((at, length)) = found {
                self.free.remove(&at);
                if length > bytes {
                    self.free.insert(at + bytes, length - bytes);
                }
                return Some(at);
            }
            let idle =
                self.entries.iter().filter(|(_, entry)| entry.state != State::Filling && entry.uses == 0);
            let (last, entry) = idle.max_by_key(|(place, entry)| (entry.needed_by, **place))?;
            if entry.needed_by <= needed_by {
                return None;
            }
            let last = *last;
            self.remove(last);
            self.displaced += 1;
        }
    }

    /// A part has been brought, or could not be.
    pub(super) fn filled(&mut self, place: PartPlace, is_good: bool) {
        let entry = self.entries.get_mut(&place).expect("what is being brought has its range");
        entry.state = if is_good { State::Ready } else { State::Bad };
        self.drop_unused(place);
    }

    /// Where a part lies, if it is there; it stays until [`Landing::scattered`].
    pub(super) fn take(&mut self, place: PartPlace) -> Option<u64> {
        let entry = self.entries.get_mut(&place).filter(|entry| entry.state == State::Ready)?;
        entry.uses += 1;
        Some(entry.at)
    }

    /// A scatter of a part has ended, and its lease needs it no more. Where it may still be read, its range is lost.
    pub(super) fn scattered(&mut self, place: PartPlace, lease: LeaseId, is_quiet: bool) {
        let entry = self.entries.get_mut(&place).expect("what is taken stays");
        entry.wanted.remove(&lease);
        if is_quiet {
            entry.uses -= 1;
        }
        self.drop_unused(place);
    }

    /// A lease has ended.
    pub(super) fn unwant(&mut self, lease: LeaseId) {
        self.wait_no_more(lease);
        let mut unwanted = Vec::new();
        for (place, entry) in &mut self.entries {
            if entry.wanted.remove(&lease) && entry.wanted.is_empty() {
                unwanted.push(*place);
            }
        }
        unwanted.into_iter().for_each(|place| self.drop_unused(place));
    }

    fn drop_unused(&mut self, place: PartPlace) {
        let unused = |entry: &Entry| entry.state != State::Filling && entry.uses == 0;
        let entry = self.entries.get(&place).filter(|entry| unused(entry));
        if entry.is_some_and(|entry| entry.wanted.is_empty() || entry.state == State::Bad) {
            self.remove(place);
        }
    }

    fn remove(&mut self, place: PartPlace) {
        let Entry { mut at, taken: mut bytes, .. } =
            self.entries.remove(&place).expect("only what is there goes");
        if let Some((before, length)) = self.free.range(..at).next_back().map(|(at, length)| (*at, *length))
            && before + length == at
        {
            self.free.remove(&before);
            (at, bytes) = (before, bytes + length);
        }
        if let Some(length) = self.free.remove(&(at + bytes)) {
            bytes += length;
        }
        self.free.insert(at, bytes);
    }

    /// Whether something of a lease waits for its turn.
    pub(super) fn waits_for(&self, lease: LeaseId) -> bool {
        self.waiting_of.contains_key(&lease)
    }

    /// Nothing more is brought.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_of.clear();
    }

    fn wait_no_more(&mut self, lease: LeaseId) {
        if self.waiting_of.remove(&lease).is_some() {
            self.waiting.retain(|_, (_, _, other)| *other != lease);
        }
    }

    /// Whether nothing waits for its turn.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of the slab that are taken, and parts there.
    pub(super) fn held(&self) -> (u64, u64) {
        (self.entries.values().map(|entry| entry.taken).sum(), self.entries.len() as u64)
    }
}

#[cfg(test)]
mod tests;
