//! The oracle: the same cache with lists searched from end to end, written from the rules and not from the code.

use super::{BlockHash, BlockId};

/// In which order a request's blocks become free; only the first is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseOrder {
    LastFirst,
    FirstFirst,
}

/// See the module documentation.
pub(crate) struct NaiveCache {
    references: Vec<u32>,
    /// `(hash, block)` in order of publication; the older of two twins comes first.
    published: Vec<(BlockHash, u32)>,
    /// Free blocks, the next to be taken first.
    free: Vec<u32>,
    caching: bool,
    order: ReleaseOrder,
}

impl NaiveCache {
    pub(crate) fn new(blocks: u32, caching: bool, order: ReleaseOrder) -> Self {
        Self {
            references: vec![0; blocks as usize],
            published: Vec::new(),
            free: (0..blocks).collect(),
            caching,
            order,
        }
    }

    pub(crate) fn find(&self, hashes: &[BlockHash]) -> Vec<BlockId> {
        let holder = |hash: &BlockHash| self.published.iter().find(|(other, _)| other == hash);
        hashes.iter().map_while(|hash| holder(hash).map(|(_, id)| BlockId(*id))).collect()
    }

    pub(crate) fn take(&mut self, found: &[BlockId], fresh: u32) -> Option<Vec<BlockId>> {
        let rest: Vec<u32> = self.free.iter().copied().filter(|id| !found.contains(&BlockId(*id))).collect();
        if rest.len() < fresh as usize {
            return None;
        }
        let taken = &rest[..fresh as usize];
        self.free = rest[fresh as usize..].to_vec();
        self.published.retain(|(_, id)| !taken.contains(id));
        let blocks: Vec<BlockId> = found.iter().copied().chain(taken.iter().map(|id| BlockId(*id))).collect();
        for id in &blocks {
            self.references[id.0 as usize] += 1;
        }
        Some(blocks)
    }

    pub(crate) fn publish(&mut self, id: BlockId, hash: BlockHash) {
        let has_one = self.published.iter().any(|(_, other)| *other == id.0);
        if self.caching && !has_one {
            self.published.push((hash, id.0));
        }
    }

    pub(crate) fn release(&mut self, blocks: &[BlockId]) {
        let mut order = blocks.to_vec();
        if self.order == ReleaseOrder::LastFirst {
            order.reverse();
        }
        for id in order {
            self.references[id.0 as usize] -= 1;
            if self.references[id.0 as usize] == 0 {
                self.free.push(id.0);
            }
        }
    }

    pub(crate) fn reset(&mut self) -> bool {
        let idle = self.references.iter().all(|references| *references == 0);
        if idle {
            self.published.clear();
        }
        idle
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }
}
