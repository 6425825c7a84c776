//! Undoing splits that no longer separate anything.
//!
//! A chat enters turn by turn, each turn a segment of its own: some 150 bytes for what may be two elements. Once its
//! last request has ended, the turns have the same holders and the same age, so one segment says all of it.

use super::{Index, Lane};

impl Index {
    /// Joins the neighbours among the segments of `chain` that begin at `starts`, wherever nothing tells them apart.
    pub(super) fn merge(&mut self, chain: &[u64], starts: &[u32]) {
        let mut upper = match starts.first() {
            Some(&start) => start as usize,
            None => return,
        };
        for &start in &starts[1..] {
            let start = start as usize;
            if !self.merge_pair(chain, upper, start) {
                upper = start;
            }
        }
    }

    fn merge_pair(&mut self, chain: &[u64], upper_at: usize, lower_at: usize) -> bool {
        let (Some(upper), Some(lower)) = (self.find(chain[upper_at]), self.find(chain[lower_at])) else {
            return false;
        };
        let adjacent = upper_at + self.segments[upper as usize].run.len() == lower_at;
        if upper == lower || !adjacent || !self.alike(upper, lower) {
            return false;
        }
        let tail = std::mem::take(&mut self.segments[lower as usize].run);
        let into = &mut self.segments[upper as usize];
        let before = into.run.capacity();
        into.run.reserve_exact(tail.len());
        into.run.extend_from_slice(&tail);
        into.last = tail[tail.len() - 1];
        self.heap_bytes += (into.run.capacity() - before) * size_of::<u64>();
        for index in 0..into.kept.len() {
            let held = self.segments[lower as usize].kept[index].held;
            self.segments[upper as usize].kept[index].held += held;
        }
        self.segments[lower as usize].run = tail;
        // One at a time, since removing a record may move another one that is still listed here.
        while let Some(kept) = self.segments[lower as usize].kept.pop() {
            let owner = &mut self.holders[kept.holder as usize];
            owner.free.unlink(&mut self.records, Lane::Holder, kept.record);
            self.free.unlink(&mut self.records, Lane::All, kept.record);
            self.drop_record_slot(kept.record);
        }
        self.remove_segment(lower);
        true
    }

    /// Whether all that is known of two neighbours is the same: holders, each with all of the upper one, nothing
    /// pinned, and in both recency lists the lower one next to go before the upper.
    fn alike(&self, upper: u32, lower: u32) -> bool {
        let (upper, lower) = (&self.segments[upper as usize], &self.segments[lower as usize]);
        upper.kept.len() == lower.kept.len()
            && upper.kept.iter().zip(&lower.kept).all(|(above, below)| {
                let (first, second) =
                    (&self.records[above.record as usize], &self.records[below.record as usize]);
                above.holder == below.holder
                    && above.held as usize == upper.run.len()
                    && first.pins == 0
                    && second.pins == 0
                    && second.links[Lane::Holder as usize].newer == above.record
                    && second.links[Lane::All as usize].newer == above.record
            })
    }
}
