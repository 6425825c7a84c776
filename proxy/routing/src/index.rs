//! Who holds which prefix: exact about what it was told, bounded in bytes, and empty after a removal.
//!
//! # Shape
//!
//! A chain element covers all before it, so equal elements have equal pasts. Consecutive elements that were
//! learned together lie in one *segment* (8 bytes an element), found by a hash of its first element alone; a chain
//! is read by hopping from segment to segment. Every segment lists the holders of its leading elements. A
//! (segment, holder) pair is a *record*: who pins it, and its place in two recency lists (its holder's, and
//! everyone's). Segments split where chains part, where one ends inside, or where a holder's part ends,
//! and merge when a request ends and nothing tells them apart any more.
//!
//! Segments do not know their parents. So a hole is nothing special: the segments behind it stay, a reader stops
//! at the first element that a holder lacks, and counts no further.
//!
//! # Eviction follows the engines
//!
//! vLLM frees a request's blocks to its LRU queue when the request ends, last block first, and cannot evict
//! blocks of running requests (`vllm/v1/core/kv_cache_manager.py`, `free`: "free blocks in reverse order so that
//! the tail blocks are freed first"). The same here: entered elements are pinned, a release queues them tail
//! first, and capacity is taken from the oldest record's tail, element by element. Prefixes outlive what hangs on
//! them.
//!
//! # Bytes
//!
//! [`Index::bytes`] is computed from capacities, [`Index::charge`] from lengths and never less than it; the
//! budget is kept by the charge. All slots are dense (`swap_remove`), so memory returns as content goes.

mod enter;
mod evict;
mod export;
mod list;
mod merge;
mod query;
mod release;

pub(crate) use export::Cursor;
use hashbrown::HashTable;
use list::{Lane, Link, List, NONE};

use crate::random;

/// Names one holder (an endpoint, or the ghost): a slot, reused after removal.
pub(crate) type HolderId = u32;

/// A run of elements known by its first.
struct Segment {
    run: Vec<u64>,
    /// Ends of the run: what a reader needs of it as long as it follows the whole, on one cache line with the rest.
    first: u64,
    last: u64,
    /// Sorted by holder; never empty while the segment lives.
    kept: Vec<Kept>,
}

/// How much of a segment one holder has.
#[derive(Clone, Copy)]
struct Kept {
    holder: HolderId,
    /// Leading elements held, 1 or more.
    held: u32,
    record: u32,
}

/// The mutable half of a (segment, holder) pair.
struct Record {
    segment: u32,
    holder: HolderId,
    /// Requests in flight that rely on it; pinned records are not evicted.
    pins: u32,
    /// A request that covers it was really answered. An unconfirmed record disappears with its last pin.
    confirmed: bool,
    links: [Link; 2],
}

/// Where a segment is, in the table: with enough of its hash that what is unknown is known to be so without a look at
/// any segment, which would be a cache miss or two. A new prompt asks that for each of its elements.
#[derive(Clone, Copy)]
struct Place {
    segment: u32,
    tag: u32,
}

/// Totals of one holder.
struct Holder {
    live: bool,
    /// Elements held, and of these pinned.
    held: u64,
    in_use: u64,
    /// Evictable records, oldest first to go.
    free: List,
    /// Pinned records, in no order that matters.
    pinned: List,
}

impl Holder {
    const fn new(live: bool) -> Self {
        Holder { live, held: 0, in_use: 0, free: List::EMPTY, pinned: List::EMPTY }
    }
}

/// The index. See the module's text.
pub(crate) struct Index {
    table: HashTable<Place>,
    segments: Vec<Segment>,
    records: Vec<Record>,
    holders: Vec<Holder>,
    /// All evictable records of all holders, by age.
    free: List,
    /// Bytes allocated by `run` and `kept` of all segments.
    heap_bytes: usize,
    /// What pinned records cost at most; see [`Index::has_room`].
    pinned_bytes: usize,
    /// Bytes the caller keeps elsewhere on this budget.
    reserved: usize,
    budget: usize,
    /// Reused by every walk: where in the chain its segments begin.
    starts: Vec<u32>,
}

const SEGMENT_BYTES: usize = size_of::<Segment>();
const RECORD_BYTES: usize = size_of::<Record>();
const KEPT_BYTES: usize = size_of::<Kept>();
/// Slots that a dense vector may keep beyond a quarter of its length: no reallocation while small.
const SPARE_SLOTS: usize = 64;
/// Slots of holders that are kept ready: what a vector of them takes at its first.
const HOLDERS_SPARE: usize = 4;
/// Upper bound of what one record brings with it: itself, its entry, and a segment of its own in the table.
const PINNED_RECORD_BYTES: usize = 256;

impl Index {
    /// An empty index that keeps its charge within `budget` bytes.
    pub(crate) fn new(budget: usize) -> Self {
        Index {
            table: HashTable::new(),
            segments: Vec::new(),
            records: Vec::new(),
            holders: Vec::new(),
            free: List::EMPTY,
            heap_bytes: 0,
            pinned_bytes: 0,
            reserved: 0,
            budget,
            starts: Vec::new(),
        }
    }

    /// A new holder, with nothing.
    pub(crate) fn add_holder(&mut self) -> HolderId {
        match self.holders.iter().position(|holder| !holder.live) {
            Some(slot) => {
                self.holders[slot] = Holder::new(true);
                slot as HolderId
            }
            None => {
                self.holders.push(Holder::new(true));
                (self.holders.len() - 1) as HolderId
            }
        }
    }

    /// Forgets everything about a holder, and of `shadow` what only the two had, and frees the slot.
    pub(crate) fn remove_holder(&mut self, holder: HolderId, shadow: HolderId) {
        self.clear_with(holder, shadow);
        self.holders[holder as usize].live = false;
        while self.holders.last().is_some_and(|last| !last.live) {
            self.holders.pop();
        }
        // A fleet that was once large must not leave its room behind, and removing an endpoint is rare.
        self.holders.shrink_to(HOLDERS_SPARE);
    }

    /// Elements that a holder has.
    pub(crate) fn held(&self, holder: HolderId) -> u64 {
        self.holders[holder as usize].held
    }

    /// Elements that requests in flight use, each counted once.
    pub(crate) fn in_use(&self, holder: HolderId) -> u64 {
        self.holders[holder as usize].in_use
    }

    /// Segments, for tests of what is left.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The claim of pinned records, for tests of what is left.
    #[cfg(test)]
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }

    /// Bytes allocated now.
    pub(crate) fn bytes(&self) -> usize {
        self.heap_bytes
            + self.segments.capacity() * SEGMENT_BYTES
            + self.records.capacity() * RECORD_BYTES
            + self.table.allocation_size()
            + self.holders.capacity() * size_of::<Holder>()
            + self.starts.capacity() * size_of::<u32>()
    }

    /// Bytes set against the budget: at least [`Index::bytes`] (`grown` and `shrunk` keep the vectors' slack below
    /// what is charged for it here), and falling with every eviction, which capacities do not.
    fn charge(&self) -> usize {
        let dense = self.segments.len() * SEGMENT_BYTES + self.records.len() * RECORD_BYTES;
        let spare = (SPARE_SLOTS + 1) * (SEGMENT_BYTES + RECORD_BYTES);
        self.heap_bytes
            + dense
            + dense / 4
            + spare
            + self.table.allocation_size()
            + self.holders.capacity() * size_of::<Holder>()
            + self.starts.capacity() * size_of::<u32>()
            + self.reserved
    }

    /// Sets aside bytes of the budget for something the caller keeps.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.reserved = bytes;
    }

    /// Whether a chain of `elements` may be pinned: pinned content cannot be evicted, so it may claim half the
    /// budget and no more, with each record charged as if it had a segment to itself.
    pub(crate) fn has_room(&self, elements: usize) -> bool {
        let claimed = self.reserved + self.pinned_bytes + 2 * elements * size_of::<u64>();
        claimed + PINNED_RECORD_BYTES <= self.budget / 2
    }

    /// The segment that begins with `first`.
    fn find(&self, first: u64) -> Option<u32> {
        let (segments, hash) = (&self.segments, hash(first));
        let is_it = |place: &Place| place.tag == tag(hash) && segments[place.segment as usize].first == first;
        self.table.find(hash, is_it).map(|place| place.segment)
    }

    /// The entry of `holder` in a segment.
    fn kept_at(&self, segment: u32, holder: HolderId) -> Option<usize> {
        self.segments[segment as usize].kept.binary_search_by_key(&holder, |kept| kept.holder).ok()
    }
}

/// Where an element goes in the table. Elements are hashes already, but the table wants its high and low bits
/// equally good and tests use small numbers: one folded multiplication.
fn hash(element: u64) -> u64 {
    random::finish(element)
}

impl Segment {
    /// Leading elements that the run shares with `chain`, whose first is the run's. An element covers all before it, so
    /// where two are equal all before them are: the ends decide, or a bisection.
    fn shared(&self, chain: &[u64]) -> usize {
        let length = self.run.len().min(chain.len());
        let end = if length == self.run.len() { self.last } else { self.run[length - 1] };
        if end == chain[length - 1] {
            return length;
        }
        bisected(&self.run, chain, length)
    }
}

/// Leading elements that two chains share, an element covering all before it. The first ones are equal; fewer than
/// `unequal` are.
pub(crate) fn bisected(a: &[u64], b: &[u64], mut unequal: usize) -> usize {
    let mut equal = 1;
    while unequal - equal > 1 {
        let middle = equal.midpoint(unequal);
        if a[middle - 1] == b[middle - 1] {
            equal = middle;
        } else {
            unequal = middle;
        }
    }
    equal
}

/// Bits of a hash that the table itself does not use: it takes the lowest for the place and the highest seven.
fn tag(hash: u64) -> u32 {
    (hash >> 25) as u32
}

/// Leading elements that two runs share.
fn common(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Makes room for one more, in steps of an eighth: doubling would break the byte bound.
fn grown<T>(dense: &mut Vec<T>) {
    if dense.len() == dense.capacity() {
        dense.reserve_exact((dense.len() / 8).max(SPARE_SLOTS / 2));
    }
}

/// Returns memory when more than a quarter of the length (and some slots) lies idle; halfway, so that the next
/// removals and insertions are free.
fn shrunk<T>(dense: &mut Vec<T>) {
    let length = dense.len();
    if dense.capacity() > length + length / 4 + SPARE_SLOTS {
        dense.shrink_to(length + length / 8);
    }
}

#[cfg(test)]
mod tests;
