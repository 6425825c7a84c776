//! Admission, and the room it needs: where a chunk is appended, and what goes for it.

use std::hash::Hash;
use std::time::Duration;

use super::counts::Dropped;
use super::port::{Chunk, Location, Op, index_bytes};
use super::{Disk, Segment, State};
use crate::disk::catalog::Id;

/// Past this part of the capacity segments are given up, in thousandths.
const HIGH: u64 = 970;

/// Down to this part: some at a time, so that not every new segment costs one removal.
const LOW: u64 = 940;

/// The count that a refused chunk goes to.
pub(super) type Reason = fn(&mut Dropped) -> &mut u64;

impl<K: Clone + Eq + Hash> Disk<K> {
    /// The place for a chunk that has been used often enough, or why there is none.
    pub(super) fn admit(
        &mut self,
        chunk: &Chunk,
        is_orphan: bool,
        now: Duration,
        out: &mut Vec<Op<K>>,
    ) -> Result<Location, Reason> {
        let bytes = chunk.record_bytes();
        if bytes.checked_add(index_bytes(1)).is_none_or(|bytes| bytes > self.limits.segment_bytes) {
            return Err(|dropped| &mut dropped.too_large);
        }
        if is_orphan {
            return Err(|dropped| &mut dropped.orphans);
        }
        if self.is_recovering() {
            // It may lie in a segment that is not read yet.
            return Err(|dropped| &mut dropped.recovering);
        }
        if now < self.paused_until {
            return Err(|dropped| &mut dropped.paused);
        }
        if self.writes.len() >= self.limits.writes_max {
            return Err(|dropped| &mut dropped.queue);
        }
        if !self.bucket.allows(bytes, now) {
            return Err(|dropped| &mut dropped.rate);
        }
        let at = self.place(bytes, out).ok_or::<Reason>(|dropped| &mut dropped.no_room)?;
        self.bucket.spend(bytes);
        Ok(at)
    }

    /// Where a record of `bytes` is appended.
    fn place(&mut self, bytes: u64, out: &mut Vec<Op<K>>) -> Option<Location> {
        if let Some(open) = self.open {
            let segment = self.segments.get(&open)?;
            if segment.length + bytes + index_bytes(segment.records + 1) > self.limits.segment_bytes {
                self.seal(open, out);
            }
        }
        let number = self.open.or_else(|| self.create(out))?;
        let segment = self.segments.get_mut(&number)?;
        let at = Location { segment: number, offset: segment.length };
        segment.length += bytes;
        segment.records += 1;
        Some(at)
    }

    fn create(&mut self, out: &mut Vec<Op<K>>) -> Option<u64> {
        let (capacity, more) = (self.limits.capacity_bytes, self.limits.segment_bytes);
        let part = |thousandths: u64| capacity / 1000 * thousandths;
        if self.used_bytes + more > part(HIGH) {
            while self.used_bytes + more > part(LOW) && self.reclaim_coldest(out) {}
        }
        if self.used_bytes + more > capacity {
            return None;
        }
        let segment = self.next_segment;
        self.next_segment += 1;
        self.used_bytes += more;
        self.segments.insert(segment, Segment::new(State::Open, 0));
        self.open = Some(segment);
        out.push(Op::Create { segment });
        Some(segment)
    }

    /// Lets nothing be appended to the open segment any more.
    pub(super) fn seal(&mut self, number: u64, out: &mut Vec<Op<K>>) {
        self.open = None;
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let end = segment.length;
        segment.state = State::Sealing;
        segment.length = end + index_bytes(segment.records);
        self.used_bytes = self.used_bytes - self.limits.segment_bytes + segment.length;
        out.push(Op::Seal { segment: number, end });
    }

    /// Gives up the sealed segment that was used least. False if there is none.
    pub(super) fn reclaim_coldest(&mut self, out: &mut Vec<Op<K>>) -> bool {
        let sealed = self.segments.iter().filter(|(_, it)| it.state == State::Sealed && it.loads == 0);
        let Some((_, number)) = sealed.map(|(number, segment)| (segment.worth(), *number)).min() else {
            return false;
        };
        let chunks: Vec<Id> =
            self.segments.get(&number).into_iter().flat_map(|it| &it.chunks).copied().collect();
        self.counts.reclaimed_segments += 1;
        self.drop_all(chunks, out);
        self.remove_if_empty(number, out);
        true
    }

    /// Drops chunks and all that continue them, and the segments that this empties.
    pub(super) fn drop_all(&mut self, ids: impl IntoIterator<Item = Id>, out: &mut Vec<Op<K>>) {
        for segment in self.forget(ids) {
            self.remove_if_empty(segment, out);
        }
    }

    /// Drops chunks and all that continue them, the last first. Returns the segments they lay in.
    pub(super) fn forget(&mut self, ids: impl IntoIterator<Item = Id>) -> Vec<u64> {
        let mut touched = Vec::new();
        for id in self.catalog.with_descendants(ids) {
            let Some(gone) = self.catalog.remove(id) else { continue };
            self.counts.dropped_chunks += 1;
            if let Some(write) = gone.write.and_then(|write| self.writes.get_mut(&write)) {
                write.1 = None;
            }
            if let Some(segment) = self.segments.get_mut(&gone.at.segment) {
                segment.chunks.remove(&id);
                touched.push(gone.at.segment);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// A sealed segment in which nothing is held any more only takes room.
    pub(super) fn remove_if_empty(&mut self, number: u64, out: &mut Vec<Op<K>>) {
        let Some(segment) = self.segments.get(&number) else { return };
        if segment.state == State::Sealed && segment.chunks.is_empty() {
            self.used_bytes -= segment.length;
            self.segments.remove(&number);
            out.push(Op::Remove { segment: number });
        }
    }
}
