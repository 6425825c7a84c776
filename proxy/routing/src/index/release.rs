//! The end of a request, and taking back what turned out not to be there.

use std::ops::Range;

use super::{HolderId, Index, Lane, NONE, PINNED_RECORD_BYTES};

impl Index {
    /// Records that the engine has computed a pinned chain: it stays after its release.
    pub(crate) fn confirm(&mut self, holder: HolderId, chain: &[u64]) {
        let mut starts = self.starts_of(chain);
        for start in starts.drain(..) {
            if let Some(id) = self.record_at(holder, chain[start as usize]) {
                self.records[id as usize].confirmed = true;
            }
        }
        self.keep_scratch(starts);
    }

    /// Undoes one pin of `chain`. What nobody else pins is queued for eviction, tail first, if some request
    /// confirmed it, and forgotten if none did.
    pub(crate) fn release(&mut self, holder: HolderId, chain: &[u64]) {
        let starts = self.starts_of(chain);
        for &start in starts.iter().rev() {
            let Some(id) = self.record_at(holder, chain[start as usize]) else { continue };
            let record = &mut self.records[id as usize];
            match record.pins {
                0 => {} // Pinned under another name: only a collision of elements can do that.
                1 => self.unpin(id),
                _ => record.pins -= 1,
            }
        }
        self.merge(chain, &starts);
        self.keep_scratch(starts);
    }

    /// Ends every pin of a holder that has no request in flight. A no-op unless elements collided.
    pub(crate) fn release_all(&mut self, holder: HolderId) {
        loop {
            match self.holders[holder as usize].pinned.newest {
                NONE => return,
                id => self.unpin(id),
            }
        }
    }

    /// Forgets that `holder` has the elements `range` of `chain`, save what requests in flight pin.
    pub(crate) fn forget(&mut self, holder: HolderId, chain: &[u64], range: Range<usize>) {
        self.cut(chain, range.start);
        self.cut(chain, range.end);
        let mut starts = self.starts_of(chain);
        for start in starts.drain(..).rev().filter(|&start| range.contains(&(start as usize))) {
            if let Some(id) = self.record_at(holder, chain[start as usize])
                && self.records[id as usize].pins == 0
            {
                self.remove_record(id);
            }
        }
        self.keep_scratch(starts);
    }

    /// Makes every segment that `chain[..at]` enters end where it leaves it.
    fn cut(&mut self, chain: &[u64], at: usize) {
        let chain = &chain[..at.min(chain.len())];
        let mut start = 0;
        while start < chain.len() {
            match self.find(chain[start]) {
                None => start += 1,
                Some(id) => {
                    let length = super::common(&self.segments[id as usize].run, &chain[start..]);
                    self.split(id, length);
                    start += length;
                }
            }
        }
    }

    /// Where the segments of `chain` begin, in the reused scratch.
    fn starts_of(&mut self, chain: &[u64]) -> Vec<u32> {
        let mut starts = std::mem::take(&mut self.starts);
        starts.clear();
        self.walk(chain, |at, _| starts.push(at as u32));
        starts
    }

    fn record_at(&self, holder: HolderId, first: u64) -> Option<u32> {
        let segment = self.find(first)?;
        let kept = self.kept_at(segment, holder)?;
        Some(self.segments[segment as usize].kept[kept].record)
    }

    /// Ends the last pin of a record.
    fn unpin(&mut self, id: u32) {
        let record = &mut self.records[id as usize];
        if !record.confirmed {
            return self.remove_record(id);
        }
        record.pins = 0;
        let (holder, segment) = (record.holder, record.segment);
        let held = self.held_in(segment, holder);
        self.pinned_bytes -= PINNED_RECORD_BYTES + held * size_of::<u64>();
        let owner = &mut self.holders[holder as usize];
        owner.in_use -= held as u64;
        owner.pinned.unlink(&mut self.records, Lane::Holder, id);
        owner.free.push_newest(&mut self.records, Lane::Holder, id);
        self.free.push_newest(&mut self.records, Lane::All, id);
    }

    /// Elements of a segment that a holder has.
    pub(super) fn held_in(&self, segment: u32, holder: HolderId) -> usize {
        let kept = self.kept_at(segment, holder);
        kept.map_or(0, |at| self.segments[segment as usize].kept[at].held as usize)
    }
}
