//! The disk tier's decisions: which chunks are worth a write, where they go, which segments are given up. No file is
//! touched here. [`Disk::step`] takes one [`Input`] and the time, and returns what has to be done outside.
//!
//! The tier is a log of segments of fixed size. Chunks are appended to the one open segment; a full one is *sealed* with
//! an index; room is made by giving up whole segments, so nothing is ever rewritten:
//!
//! ```text
//! Create -> Open -(full, or a write failed)-> Sealing -(index written)-> Sealed -(coldest, or empty)-> Remove
//!                                                      Unread -(found at the start)-^
//! ```
//!
//! - *Admission*: a chunk is written at its `admit_uses`th use, if the chunk it continues is on disk, within a rate of
//!   bytes a second. What is not admitted is counted with its reason, and may be admitted at a later use.
//! - *Eviction*: past the high watermark the segments used least go, until the low one. A use weighs its tokens and counts
//!   half after each half-life, as in the host tier. A chunk that goes takes along all that continue it, wherever they
//!   lie: an engine could use nothing behind the hole.
//! - *Faults*: what cannot be written or read back is not there. After a failed write the segment is closed, and nothing
//!   is written for a while that doubles with each failure.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::time::Duration;

use crate::{Uses, Worth};

mod catalog;
mod counts;
mod ghosts;
mod invariants;
mod port;
mod rate;
mod room;

pub use counts::{Counts, Dropped, Stats};
pub use port::{
    BLOCK_BYTES, Chunk, Found, INDEX_ENTRY_BYTES, Input, LoadFault, LoadId, Location, Op, WriteFault,
    WriteId, index_bytes,
};

use catalog::{Catalog, Id};
use ghosts::Ghosts;
use rate::Bucket;

/// How long nothing is written after a failed write, at first: long enough not to fill the log, short enough that a
/// file system that was full for a moment is used again.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// And at most: a disk that is gone is asked once a minute.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the tier works within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all segments.
    pub capacity_bytes: u64,
    /// Bytes of one segment, its index included; at most a quarter of the capacity.
    pub segment_bytes: u64,
    /// Bytes that may be written a second, in the long run; none is no limit.
    pub write_bytes_per_s: Option<u64>,
    /// The use at which a chunk is written: 0 and 1 with its first.
    pub admit_uses: u32,
    /// Writes under way; what comes on top is not admitted.
    pub writes_max: usize,
    /// Loads under way; what comes on top is not loaded.
    pub loads_max: usize,
    /// How long until a use counts half.
    pub half_life: Duration,
}

/// The life of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// From an earlier run; what it holds has not been told. Unread => Sealed.
    Unread,
    /// Appended to. Open => Sealing.
    Open,
    /// Its index is being written. Sealing => Sealed.
    Sealing,
    /// Only read, until it is given up.
    Sealed,
}

#[derive(Debug)]
struct Segment {
    state: State,
    /// Where its records end, or its whole length once sealed.
    length: u64,
    /// Records appended, those since dropped included: its index has them all.
    records: u64,
    /// What is held in it.
    chunks: BTreeSet<Id>,
    /// Uses of its chunks, those since dropped included: they fade.
    uses: Uses,
    /// Loads under way; it is not given up meanwhile.
    loads: u32,
}

impl Segment {
    fn new(state: State, length: u64) -> Self {
        Self { state, length, records: 0, chunks: BTreeSet::new(), uses: Uses::NONE, loads: 0 }
    }

    /// What it counts for in the tier's size.
    fn bytes(&self, segment_bytes: u64) -> u64 {
        if self.state == State::Open { segment_bytes } else { self.length }
    }

    fn worth(&self) -> Worth {
        self.uses.worth(1, 1)
    }
}

/// The disk tier of one node. `K` names chunks.
#[derive(Debug)]
pub struct Disk<K> {
    limits: Limits,
    catalog: Catalog<K>,
    segments: BTreeMap<u64, Segment>,
    open: Option<u64>,
    next_segment: u64,
    next_id: u64,
    /// Writes under way, and the chunk; none if that was dropped meanwhile.
    writes: BTreeMap<WriteId, (Location, Option<Id>)>,
    loads: BTreeMap<LoadId, (Location, K)>,
    bucket: Bucket,
    ghosts: Ghosts,
    /// Nothing is written until then, and how long the next pause is.
    paused_until: Duration,
    pause: Duration,
    used_bytes: u64,
    counts: Counts,
}

impl<K: Clone + Eq + Hash> Disk<K> {
    /// A tier that finds these segments, with their lengths, from earlier runs. [`Input::Found`] tells later what is in
    /// each.
    pub fn new(limits: Limits, earlier: &[(u64, u64)], now: Duration) -> Self {
        let unread = earlier.iter().map(|(number, length)| (*number, Segment::new(State::Unread, *length)));
        let segments: BTreeMap<u64, Segment> = unread.collect();
        Self {
            bucket: Bucket::new(limits.write_bytes_per_s, now),
            next_segment: segments.last_key_value().map_or(1, |(last, _)| last + 1),
            used_bytes: segments.values().map(|segment| segment.length).sum(),
            segments,
            limits,
            catalog: Catalog::new(),
            open: None,
            next_id: 0,
            writes: BTreeMap::new(),
            loads: BTreeMap::new(),
            ghosts: Ghosts::default(),
            paused_until: Duration::ZERO,
            pause: PAUSE_MIN,
            counts: Counts::default(),
        }
    }

    /// Takes what happened and says what to do about it, in order. `now` counts from any fixed moment and never falls.
    pub fn step(&mut self, input: Input<K>, now: Duration) -> Vec<Op<K>> {
        let mut out = Vec::new();
        match input {
            Input::Used { name, parent, chunk, uses } => self.used(name, parent, chunk, uses, now, &mut out),
            Input::Evicted { name, uses } => self.evicted(&name, uses),
            Input::Wanted { name } => self.wanted(&name, now, &mut out),
            Input::Written { write, outcome } => self.written(write, outcome, now, &mut out),
            Input::Loaded { load, outcome } => self.loaded(load, outcome, &mut out),
            Input::Scrubbed { name, at, outcome } => {
                self.counts.scrubbed_chunks += 1;
                self.read_back(&name, at, outcome, &mut out);
            }
            Input::Sealed { segment, outcome } => self.sealed(segment, outcome, now, &mut out),
            Input::Found { segment, chunks, last } => self.found(segment, chunks, last, &mut out),
            Input::Clear => self.clear(&mut out),
        }
        out
    }

    /// What a chunk on disk is, if it can be read now.
    pub fn chunk(&self, name: &K) -> Option<Chunk> {
        let entry = self.catalog.get(self.catalog.id(name)?)?;
        entry.write.is_none().then_some(entry.chunk)
    }

    /// Whether a chunk is on disk or being written.
    pub fn has(&self, name: &K) -> bool {
        self.catalog.id(name).is_some()
    }

    /// Loads that may be begun now.
    pub fn loads_left(&self) -> usize {
        self.limits.loads_max.saturating_sub(self.loads.len())
    }

    /// The uses that a chunk begins with which enters the host tier: more than 0 if it was there before.
    pub fn remembered_uses(&self, name: &K) -> u32 {
        self.ghosts.uses(name)
    }

    /// A chunk that lies behind `after`, in the order of segments, for a scrub to read. Looks at no more than a few
    /// segments' chunks.
    pub fn next_to_scrub(&self, after: Location) -> Option<(K, Location, Chunk)> {
        let readable = |id: &Id| {
            let entry = self.catalog.get(*id).filter(|entry| entry.write.is_none())?;
            Some((entry.name.clone(), entry.at, entry.chunk))
        };
        let nearest = |(_, segment): (&u64, &Segment)| {
            let chunks = segment.chunks.iter().filter(|_| segment.state == State::Sealed);
            chunks.filter_map(readable).filter(|(_, at, _)| *at > after).min_by_key(|(_, at, _)| *at)
        };
        self.segments.range(after.segment..).find_map(nearest)
    }

    fn used(
        &mut self,
        name: K,
        parent: Option<K>,
        chunk: Chunk,
        uses: u32,
        now: Duration,
        out: &mut Vec<Op<K>>,
    ) {
        let parent_id = parent.as_ref().and_then(|parent| self.catalog.id(parent));
        if let Some(id) = self.catalog.id(&name) {
            parent_id.into_iter().for_each(|parent| self.catalog.link(id, parent));
            return self.heat(id, now);
        }
        if uses < self.limits.admit_uses {
            return;
        }
        match self.admit(&chunk, parent.is_some() && parent_id.is_none(), now, out) {
            Err(count) => *count(&mut self.counts.dropped) += 1,
            Ok(at) => self.write(name, parent, chunk, at, now, out),
        }
    }

    fn write(
        &mut self,
        name: K,
        parent: Option<K>,
        chunk: Chunk,
        at: Location,
        now: Duration,
        out: &mut Vec<Op<K>>,
    ) {
        // Making room may have taken the chunk before it along.
        let parent_id = parent.as_ref().and_then(|parent| self.catalog.id(parent));
        self.next_id += 1;
        let write = WriteId(self.next_id);
        let id = self.catalog.insert(name.clone(), chunk, at, Some(write));
        parent_id.into_iter().for_each(|parent| self.catalog.link(id, parent));
        self.segments.get_mut(&at.segment).into_iter().for_each(|segment| {
            segment.chunks.insert(id);
        });
        self.heat(id, now);
        self.writes.insert(write, (at, Some(id)));
        out.push(Op::Write { write, at, name, parent, chunk });
    }

    fn heat(&mut self, id: Id, now: Duration) {
        let Some(entry) = self.catalog.get(id) else { return };
        if let Some(segment) = self.segments.get_mut(&entry.at.segment) {
            segment.uses.add(now, self.limits.half_life, entry.chunk.tokens);
        }
    }

    fn evicted(&mut self, name: &K, uses: u32) {
        if !self.has(name) {
            self.ghosts.remember(name, uses);
        }
    }

    fn wanted(&mut self, name: &K, now: Duration, out: &mut Vec<Op<K>>) {
        let Some(id) = self.catalog.id(name) else { return };
        let Some(entry) = self.catalog.get(id).filter(|entry| entry.write.is_none()) else { return };
        if self.loads.len() >= self.limits.loads_max {
            self.counts.refused_loads += 1;
            return;
        }
        self.next_id += 1;
        let (load, at, chunk) = (LoadId(self.next_id), entry.at, entry.chunk);
        self.segments.get_mut(&at.segment).into_iter().for_each(|segment| segment.loads += 1);
        self.loads.insert(load, (at, name.clone()));
        self.heat(id, now);
        out.push(Op::Load { load, at, name: name.clone(), chunk });
    }

    fn written(
        &mut self,
        write: WriteId,
        outcome: Result<(), WriteFault>,
        now: Duration,
        out: &mut Vec<Op<K>>,
    ) {
        let Some((at, id)) = self.writes.remove(&write) else { return };
        match outcome {
            Ok(()) => {
                self.pause = PAUSE_MIN;
                self.counts.written_chunks += 1;
                if let Some(entry) = id.and_then(|id| self.catalog.get_mut(id)) {
                    entry.write = None;
                    self.counts.written_bytes += entry.chunk.record_bytes();
                }
            }
            Err(fault) => {
                self.drop_all(id, out);
                // A scan would end at the hole, so nothing more goes behind it.
                if self.open == Some(at.segment) {
                    self.seal(at.segment, out);
                }
                self.failed(fault, now, out);
            }
        }
    }

    fn failed(&mut self, fault: WriteFault, now: Duration, out: &mut Vec<Op<K>>) {
        self.counts.failed_writes += 1;
        if fault == WriteFault::Damaged {
            return;
        }
        // Writes that were under way when the first failed say nothing new.
        if now >= self.paused_until {
            self.paused_until = now.saturating_add(self.pause);
            self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
            if fault == WriteFault::Full {
                self.counts.full_disks += 1;
                self.reclaim_coldest(out);
            }
        }
    }

    fn loaded(&mut self, load: LoadId, outcome: Result<(), LoadFault>, out: &mut Vec<Op<K>>) {
        let Some((at, name)) = self.loads.remove(&load) else { return };
        if let Some(segment) = self.segments.get_mut(&at.segment) {
            segment.loads -= 1;
        }
        if outcome.is_ok() {
            self.counts.loaded_chunks += 1;
        }
        self.read_back(&name, at, outcome, out);
    }

    /// A chunk was read: if it could not be, or was not what it should be, it is not there.
    fn read_back(&mut self, name: &K, at: Location, outcome: Result<(), LoadFault>, out: &mut Vec<Op<K>>) {
        let Err(fault) = outcome else { return };
        match fault {
            LoadFault::Io => self.counts.failed_loads += 1,
            LoadFault::Damaged => self.counts.damaged_chunks += 1,
        }
        let there = self.catalog.id(name);
        let same = there.filter(|id| self.catalog.get(*id).is_some_and(|entry| entry.at == at));
        self.drop_all(same, out);
    }

    fn sealed(&mut self, segment: u64, outcome: Result<(), WriteFault>, now: Duration, out: &mut Vec<Op<K>>) {
        let Some(found) = self.segments.get_mut(&segment).filter(|found| found.state == State::Sealing)
        else {
            return;
        };
        found.state = State::Sealed;
        // Without an index its headers still tell what is in it.
        if let Err(fault) = outcome {
            self.failed(fault, now, out);
        }
        self.remove_if_empty(segment, out);
    }

    fn found(&mut self, number: u64, chunks: Vec<Found<K>>, last: Option<u64>, out: &mut Vec<Op<K>>) {
        if self.segments.get(&number).is_none_or(|segment| segment.state != State::Unread) {
            return;
        }
        for Found { offset, name, parent, chunk } in chunks {
            let at = Location { segment: number, offset };
            // A chunk may have been written twice; whichever was read first serves.
            if !self.has(&name) {
                let id = self.catalog.insert(name, chunk, at, None);
                parent.into_iter().for_each(|parent| self.catalog.adopt(id, &parent));
                self.segments.get_mut(&number).into_iter().for_each(|segment| {
                    segment.chunks.insert(id);
                });
                self.counts.recovered_chunks += 1;
            }
        }
        let Some(length) = last else { return };
        if let Some(segment) = self.segments.get_mut(&number) {
            self.used_bytes = self.used_bytes - segment.length + length;
            (segment.state, segment.length) = (State::Sealed, length);
        }
        self.remove_if_empty(number, out);
        if !self.is_recovering() {
            self.catalog.forget_orphans();
            // The config may allow less than it did.
            while self.used_bytes > self.limits.capacity_bytes && self.reclaim_coldest(out) {}
        }
    }

    /// Whether segments of earlier runs have not been read yet.
    pub fn is_recovering(&self) -> bool {
        self.segments.values().any(|segment| segment.state == State::Unread)
    }

    fn clear(&mut self, out: &mut Vec<Op<K>>) {
        let all: Vec<Id> = self.catalog.iter().map(|(id, _)| id).collect();
        self.open = None;
        self.forget(all);
        let segments = std::mem::take(&mut self.segments);
        out.extend(segments.into_keys().map(|segment| Op::Remove { segment }));
        self.used_bytes = 0;
    }

    /// What the tier holds and has done.
    pub fn stats(&self) -> Stats {
        Stats {
            counts: self.counts.clone(),
            capacity_bytes: self.limits.capacity_bytes,
            used_bytes: self.used_bytes,
            segments: self.segments.len() as u64,
            unread_segments: self.segments.values().filter(|s| s.state == State::Unread).count() as u64,
            chunks: self.catalog.names.len() as u64,
            writes: self.writes.len() as u64,
            loads: self.loads.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests;
