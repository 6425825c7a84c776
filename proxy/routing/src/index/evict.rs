//! Removal: by capacity, by budget, or of a whole holder. Slots stay dense and memory goes back.

use super::{HolderId, Index, Lane, NONE, PINNED_RECORD_BYTES, hash, shrunk};

impl Index {
    /// Takes elements from the holder's oldest records, tails first, until it has at most `capacity` of them or
    /// only pinned ones are left.
    pub(crate) fn evict_beyond(&mut self, holder: HolderId, capacity: u64) {
        loop {
            let owner = &self.holders[holder as usize];
            let excess = owner.held.saturating_sub(capacity);
            let oldest = owner.free.oldest;
            if excess == 0 || oldest == NONE {
                return;
            }
            let segment = self.records[oldest as usize].segment;
            let held = self.held_in(segment, holder) as u64;
            if excess >= held {
                self.remove_record(oldest);
                continue;
            }
            // `excess < held`, which came from a u32.
            self.shorten(segment, holder, excess as u32);
        }
    }

    /// Evicts the least recently used records of all holders until the charge is within the budget.
    pub(crate) fn keep_budget(&mut self) {
        while self.charge() > self.budget && self.free.oldest != NONE {
            self.remove_record(self.free.oldest);
        }
    }

    /// Forgets everything that a holder has, pinned or not.
    pub(crate) fn clear(&mut self, holder: HolderId) {
        self.clear_with(holder, holder);
    }

    /// [`Index::clear`], and what `shadow` holds of the same segments goes too, where nobody else has them.
    pub(crate) fn clear_with(&mut self, holder: HolderId, shadow: HolderId) {
        loop {
            let owner = &self.holders[holder as usize];
            let id = if owner.free.oldest == NONE { owner.pinned.oldest } else { owner.free.oldest };
            if id == NONE {
                return;
            }
            let first = self.segments[self.records[id as usize].segment as usize].first;
            self.remove_record(id);
            let Some(segment) = self.find(first) else { continue };
            if let [kept] = self.segments[segment as usize].kept[..]
                && kept.holder == shadow
                && self.records[kept.record as usize].pins == 0
            {
                self.remove_record(kept.record);
            }
        }
    }

    /// Takes `count` elements, fewer than it has, off the end of a holder's part of a segment.
    fn shorten(&mut self, segment: u32, holder: HolderId, count: u32) {
        if let Some(at) = self.kept_at(segment, holder) {
            self.segments[segment as usize].kept[at].held -= count;
            self.holders[holder as usize].held -= u64::from(count);
            self.trim(segment);
        }
    }

    /// Removes a record, and its segment when it was the last.
    pub(super) fn remove_record(&mut self, id: u32) {
        let record = &self.records[id as usize];
        let (segment, holder, pinned) = (record.segment, record.holder, record.pins > 0);
        let held = self.held_in(segment, holder);
        let owner = &mut self.holders[holder as usize];
        owner.held -= held as u64;
        if pinned {
            owner.pinned.unlink(&mut self.records, Lane::Holder, id);
            owner.in_use -= held as u64;
            self.pinned_bytes -= PINNED_RECORD_BYTES + held * size_of::<u64>();
        } else {
            owner.free.unlink(&mut self.records, Lane::Holder, id);
            self.free.unlink(&mut self.records, Lane::All, id);
        }
        self.drop_kept(segment, holder);
        self.drop_record_slot(id);
        if self.segments[segment as usize].kept.is_empty() {
            self.remove_segment(segment);
        } else {
            self.trim(segment);
        }
    }

    fn drop_kept(&mut self, segment: u32, holder: HolderId) {
        let Some(at) = self.kept_at(segment, holder) else { return };
        let kept = &mut self.segments[segment as usize].kept;
        kept.remove(at);
        let before = kept.capacity();
        if before > 2 * kept.len() {
            kept.shrink_to_fit();
        }
        self.heap_bytes -= (before - kept.capacity()) * super::KEPT_BYTES;
    }

    /// Frees an unlinked record's slot by moving the last record into it.
    pub(super) fn drop_record_slot(&mut self, id: u32) {
        self.records.swap_remove(id as usize);
        if let Some(moved) = self.records.get(id as usize) {
            let (segment, holder, pinned) = (moved.segment, moved.holder, moved.pins > 0);
            if let Some(at) = self.kept_at(segment, holder) {
                self.segments[segment as usize].kept[at].record = id;
            }
            let owner = &mut self.holders[holder as usize];
            if pinned {
                owner.pinned.moved(&mut self.records, Lane::Holder, id);
            } else {
                owner.free.moved(&mut self.records, Lane::Holder, id);
                self.free.moved(&mut self.records, Lane::All, id);
            }
        }
        shrunk(&mut self.records);
    }

    /// Frees a segment that nobody holds, and its slot.
    pub(super) fn remove_segment(&mut self, id: u32) {
        let segment = &self.segments[id as usize];
        self.heap_bytes -=
            segment.run.capacity() * size_of::<u64>() + segment.kept.capacity() * super::KEPT_BYTES;
        if let Ok(entry) = self.table.find_entry(hash(segment.first), |other| other.segment == id) {
            entry.remove();
        }
        self.segments.swap_remove(id as usize);
        if let Some(moved) = self.segments.get(id as usize) {
            let was = self.segments.len() as u32;
            if let Some(place) = self.table.find_mut(hash(moved.first), |other| other.segment == was) {
                place.segment = id;
            }
            for kept in &moved.kept {
                self.records[kept.record as usize].segment = id;
            }
        }
        shrunk(&mut self.segments);
        self.shrink_table();
    }

    /// The table doubles when it grows, so it halves only from a quarter: no rebuilding to and fro.
    fn shrink_table(&mut self) {
        const SMALLEST: usize = 64;
        let length = self.table.len();
        if self.table.capacity() > 4 * length + SMALLEST {
            let segments = &self.segments;
            self.table.shrink_to(2 * length, |place| hash(segments[place.segment as usize].first));
        }
    }

    /// Drops the end of a run that no holder has any more.
    fn trim(&mut self, segment: u32) {
        let segment = &mut self.segments[segment as usize];
        let longest = segment.kept.iter().map(|kept| kept.held).max().unwrap_or(0) as usize;
        segment.run.truncate(longest);
        segment.last = segment.run.last().copied().unwrap_or(segment.first);
        let before = segment.run.capacity();
        if before > 2 * longest {
            segment.run.shrink_to_fit();
            self.heap_bytes -= (before - segment.run.capacity()) * size_of::<u64>();
        }
    }
}
