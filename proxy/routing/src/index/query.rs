//! Reading: leading elements held, for all holders in one walk.

use super::{Index, common};

impl Index {
    /// For every holder slot, how many leading elements of `chain` it holds.
    ///
    /// One hop per segment and one step per holder of it: O(chain + holders on the path), never their product.
    pub(crate) fn matches(&self, chain: &[u64], matched: &mut Vec<u32>) {
        matched.clear();
        matched.resize(self.holders.len(), 0);
        let mut at = 0;
        while at < chain.len() {
            let Some(id) = self.find(chain[at]) else { return };
            let segment = &self.segments[id as usize];
            let length = segment.shared(&chain[at..]);
            let mut anyone = false;
            for kept in &segment.kept {
                let count = &mut matched[kept.holder as usize];
                // Exactly those that hold everything before this segment have counted up to its start.
                if *count as usize == at {
                    let held = (kept.held as usize).min(length);
                    *count = (at + held) as u32;
                    anyone |= held == length;
                }
            }
            if !anyone {
                return;
            }
            at += length;
        }
    }

    /// Calls `each(start, segment)` for every segment that lies wholly inside `chain`, in order. Elements that
    /// nobody holds are stepped over.
    pub(super) fn walk(&self, chain: &[u64], mut each: impl FnMut(usize, u32)) {
        let mut at = 0;
        while at < chain.len() {
            let Some(id) = self.find(chain[at]) else {
                at += 1;
                continue;
            };
            let run = &self.segments[id as usize].run;
            let length = common(run, &chain[at..]);
            if length == run.len() {
                each(at, id);
            }
            at += length;
        }
    }
}
