//! Writing: a holder now has these elements.

use super::{
    HolderId, Index, Kept, Lane, Link, NONE, PINNED_RECORD_BYTES, Place, Record, Segment, common, grown,
    hash, tag,
};

impl Index {
    /// Records that `holder` has every element of `chain`, as its most recently used.
    ///
    /// With `pin` the elements belong to a request in flight: not evictable until [`Index::release`], and gone
    /// with it unless something confirms them. Without, they are confirmed at once.
    pub(crate) fn enter(&mut self, holder: HolderId, chain: &[u64], pin: bool) {
        let mut starts = std::mem::take(&mut self.starts);
        starts.clear();
        let mut at = 0;
        while at < chain.len() {
            let segment = match self.find(chain[at]) {
                Some(known) => known,
                None => self.add_segment(chain[at..self.gap_end(chain, at)].to_vec(), Vec::new()),
            };
            starts.push(at as u32);
            at += self.fit(segment, holder, &chain[at..]);
            self.hold(segment, holder, pin);
        }
        if !pin {
            // Tail first, as engines queue what a finished request leaves.
            for &start in starts.iter().rev() {
                self.renew(holder, chain[start as usize]);
            }
        }
        self.keep_scratch(starts);
    }

    /// Gives the walk's scratch back, unless one long chain made it large.
    pub(super) fn keep_scratch(&mut self, starts: Vec<u32>) {
        const KEPT_STARTS: usize = 4_096;
        if starts.capacity() <= KEPT_STARTS {
            self.starts = starts;
        }
    }

    /// Frees the memory that is kept for what may come: the walks' scratch, and the spare room of segments and records.
    pub(crate) fn drop_spare(&mut self) {
        self.starts = Vec::new();
        self.segments.shrink_to_fit();
        self.records.shrink_to_fit();
        let segments = &self.segments;
        self.table.shrink_to_fit(|place| hash(segments[place.segment as usize].first));
    }

    /// Where the unknown elements that begin at `at` end: at the next that begins a segment.
    fn gap_end(&self, chain: &[u64], at: usize) -> usize {
        (at + 1..chain.len()).find(|&next| self.find(chain[next]).is_some()).unwrap_or(chain.len())
    }

    /// Splits a segment so that it ends no later than `chain` follows it and no later than the holder's part of
    /// it. Returns its length.
    fn fit(&mut self, segment: u32, holder: HolderId, chain: &[u64]) -> usize {
        let shared = common(&self.segments[segment as usize].run, chain);
        self.split(segment, shared);
        if let Some(kept) = self.kept_at(segment, holder) {
            let held = self.segments[segment as usize].kept[kept].held as usize;
            self.split(segment, held);
        }
        self.segments[segment as usize].run.len()
    }

    /// Cuts a segment in two at element `at`; every holder keeps exactly what it had. Nothing to do at the ends.
    pub(super) fn split(&mut self, segment: u32, at: usize) {
        let upper = &mut self.segments[segment as usize];
        if at == 0 || at >= upper.run.len() {
            return;
        }
        let before = upper.run.capacity();
        let tail = upper.run.split_off(at);
        upper.run.shrink_to_fit();
        self.heap_bytes -= (before - upper.run.capacity()) * size_of::<u64>();
        upper.last = upper.run[at - 1];
        let longer = upper.kept.iter().filter(|kept| kept.held as usize > at).count();
        if longer == 0 {
            return; // Nobody holds the tail: forgetting it is the split.
        }
        let lower = self.add_segment(tail, Vec::with_capacity(longer));
        for index in 0..self.segments[segment as usize].kept.len() {
            let kept = &mut self.segments[segment as usize].kept[index];
            if kept.held as usize > at {
                let rest = kept.held - at as u32;
                kept.held = at as u32;
                let (holder, twin) = (kept.holder, kept.record);
                let record = self.add_twin(twin, lower);
                self.segments[lower as usize].kept.push(Kept { holder, held: rest, record });
            }
        }
    }

    /// A record for the lower half of a split: as pinned and as old as the upper half's, and evicted before it.
    fn add_twin(&mut self, of: u32, segment: u32) -> u32 {
        let Record { holder, pins, confirmed, .. } = self.records[of as usize];
        let id = self.add_record(Record { segment, holder, pins, confirmed, links: [Link::ALONE; 2] });
        let owner = &mut self.holders[holder as usize];
        if pins > 0 {
            owner.pinned.insert_older(&mut self.records, Lane::Holder, id, of);
            self.pinned_bytes += PINNED_RECORD_BYTES;
        } else {
            owner.free.insert_older(&mut self.records, Lane::Holder, id, of);
            self.free.insert_older(&mut self.records, Lane::All, id, of);
        }
        id
    }

    /// Adds the holder to all of a segment, or pins what it has.
    fn hold(&mut self, segment: u32, holder: HolderId, pin: bool) {
        let length = self.segments[segment as usize].run.len() as u32;
        let id = match self.kept_at(segment, holder) {
            Some(kept) => self.segments[segment as usize].kept[kept].record,
            None => self.add_kept(segment, holder, length),
        };
        if !pin {
            self.records[id as usize].confirmed = true;
            return;
        }
        if self.records[id as usize].pins == 0 {
            let owner = &mut self.holders[holder as usize];
            owner.free.unlink(&mut self.records, Lane::Holder, id);
            self.free.unlink(&mut self.records, Lane::All, id);
            owner.pinned.push_newest(&mut self.records, Lane::Holder, id);
            owner.in_use += u64::from(length);
            self.pinned_bytes += PINNED_RECORD_BYTES + length as usize * size_of::<u64>();
        }
        self.records[id as usize].pins += 1;
    }

    /// A new, unconfirmed, evictable record of a whole segment.
    fn add_kept(&mut self, segment: u32, holder: HolderId, length: u32) -> u32 {
        let record = Record { segment, holder, pins: 0, confirmed: false, links: [Link::ALONE; 2] };
        let id = self.add_record(record);
        let owner = &mut self.holders[holder as usize];
        owner.held += u64::from(length);
        owner.free.push_newest(&mut self.records, Lane::Holder, id);
        self.free.push_newest(&mut self.records, Lane::All, id);

        let kept = &mut self.segments[segment as usize].kept;
        let before = kept.capacity();
        if kept.len() == before {
            kept.reserve_exact((before / 2).max(1));
        }
        let place = kept.partition_point(|other| other.holder < holder);
        kept.insert(place, Kept { holder, held: length, record: id });
        self.heap_bytes += (kept.capacity() - before) * super::KEPT_BYTES;
        id
    }

    /// Makes an evictable record its holder's, and everyone's, newest.
    fn renew(&mut self, holder: HolderId, first: u64) {
        let Some(segment) = self.find(first) else { return };
        let Some(kept) = self.kept_at(segment, holder) else { return };
        let id = self.segments[segment as usize].kept[kept].record;
        if self.records[id as usize].pins == 0 {
            let owner = &mut self.holders[holder as usize];
            owner.free.unlink(&mut self.records, Lane::Holder, id);
            self.free.unlink(&mut self.records, Lane::All, id);
            owner.free.push_newest(&mut self.records, Lane::Holder, id);
            self.free.push_newest(&mut self.records, Lane::All, id);
        }
    }

    fn add_record(&mut self, record: Record) -> u32 {
        grown(&mut self.records);
        self.records.push(record);
        let id = (self.records.len() - 1) as u32;
        // `NONE` is not an id: 4 billion records would be 128 GiB, beyond any budget that fits beside them.
        debug_assert_ne!(id, NONE);
        id
    }

    fn add_segment(&mut self, run: Vec<u64>, kept: Vec<Kept>) -> u32 {
        self.heap_bytes += run.capacity() * size_of::<u64>() + kept.capacity() * super::KEPT_BYTES;
        let (first, last) = (run[0], run[run.len() - 1]);
        grown(&mut self.segments);
        self.segments.push(Segment { run, first, last, kept });
        let id = (self.segments.len() - 1) as u32;
        let segments = &self.segments;
        let place = Place { segment: id, tag: tag(hash(first)) };
        self.table.insert_unique(hash(first), place, |other| hash(segments[other.segment as usize].first));
        id
    }
}
