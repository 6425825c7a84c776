//! The paged block cache of an engine: reference counts, prefix reuse by chained block hashes, and an
//! eviction queue in vLLM's order.
//!
//! A block is in one of two states. *Held*: at least one running request refers to it and it can't be
//! evicted. *Free*: it waits in the queue from whose head new allocations are served, and while it waits its
//! content stays findable by hash. A request that ends gives its blocks back last one first, so that of two
//! blocks freed together the one deeper in the prompt is evicted earlier: the shared beginning lives longest.
//! These are the rules of vLLM's `BlockPool` (`vllm/v1/core/block_pool.py`), with two differences: there is
//! no reserved null block, so every block is usable, and hashes are 64 bits wide.

mod free_queue;
#[cfg(test)]
pub(crate) mod naive;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use free_queue::FreeQueue;

/// Names the content of a block and of everything before it in the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// The number of a physical block, `0..blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub(crate) u32);

impl BlockId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Block hashes are already well mixed: hashing them again would only cost time.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// See the module documentation.
///
/// Several blocks may carry one hash. Twins are common: the last full block of a prompt is always recomputed, so
/// a repeated prompt whose length is a multiple of the block size fills a second block with the same content.
/// vLLM keeps all and answers with the oldest; here they form a ring in order of age, and the index names the
/// oldest.
#[derive(Debug)]
pub struct BlockCache {
    references: Vec<u32>,
    hashes: Vec<Option<BlockHash>>,
    by_hash: HashMap<BlockHash, BlockId, BuildHasherDefault<PassThrough>>,
    /// The next younger twin of a block that has a hash, after the youngest the oldest; itself if alone.
    younger: Vec<BlockId>,
    /// The ring the other way round.
    older: Vec<BlockId>,
    free: FreeQueue,
    caching: bool,
}

impl BlockCache {
    /// A cache of `blocks` empty blocks; with `caching` off nothing is ever found again.
    pub fn new(blocks: u32, caching: bool) -> Self {
        Self {
            references: vec![0; blocks as usize],
            hashes: vec![None; blocks as usize],
            // Room for all from the start: growing later would stop the engine while all entries move.
            by_hash: HashMap::with_capacity_and_hasher(blocks as usize, BuildHasherDefault::default()),
            younger: (0..blocks).map(BlockId).collect(),
            older: (0..blocks).map(BlockId).collect(),
            free: FreeQueue::full(blocks),
            caching,
        }
    }

    /// All blocks, held or free.
    pub fn total(&self) -> u32 {
        self.references.len() as u32
    }

    /// Blocks that an allocation could take now; cached content may be lost by taking them.
    pub fn free(&self) -> u32 {
        self.free.len()
    }

    /// Blocks referred to by at least one request.
    pub fn used(&self) -> u32 {
        self.total() - self.free()
    }

    /// Replaces the content of `found` by the blocks that hold the longest cached run at the start of `hashes`.
    ///
    /// Finding a block doesn't hold it: call [`BlockCache::take`] before anything else is taken.
    pub fn find(&self, hashes: &[BlockHash], found: &mut Vec<BlockId>) {
        found.clear();
        for hash in hashes {
            match self.by_hash.get(hash) {
                Some(id) => found.push(*id),
                None => return,
            }
        }
    }

    /// Takes a reference on each block of `found` and `fresh` blocks from the head of the free queue, appending
    /// all of them to `blocks` in that order. Takes nothing and returns false when there aren't enough.
    pub fn take(&mut self, found: &[BlockId], fresh: u32, blocks: &mut Vec<BlockId>) -> bool {
        if self.free.len() < self.idle_among(found) + fresh {
            return false;
        }
        blocks.reserve(found.len() + fresh as usize);
        for id in found {
            if self.references[id.index()] == 0 {
                self.free.remove(id.0);
            }
            self.references[id.index()] += 1;
            blocks.push(*id);
        }
        for _ in 0..fresh {
            let id = BlockId(self.free.pop_front().expect("the length was checked above"));
            self.forget(id);
            self.references[id.index()] = 1;
            blocks.push(id);
        }
        true
    }

    /// How many of `blocks` are free, so that taking them uses the free queue up.
    pub fn idle_among(&self, blocks: &[BlockId]) -> u32 {
        blocks.iter().filter(|id| self.references[id.index()] == 0).count() as u32
    }

    /// Makes a held block findable under `hash`. A block that has a hash already keeps it.
    pub fn publish(&mut self, id: BlockId, hash: BlockHash) {
        if !self.caching || self.hashes[id.index()].is_some() {
            return;
        }
        self.hashes[id.index()] = Some(hash);
        let oldest = *self.by_hash.entry(hash).or_insert(id);
        let youngest = if oldest == id { id } else { self.older[oldest.index()] };
        self.link(youngest, id);
        self.link(id, oldest);
    }

    fn link(&mut self, older: BlockId, younger: BlockId) {
        self.younger[older.index()] = younger;
        self.older[younger.index()] = older;
    }

    /// Drops one reference on each block, in reverse order: the last block of a request joins the free queue
    /// first and is evicted first.
    pub fn release(&mut self, blocks: &[BlockId]) {
        for id in blocks.iter().rev() {
            let references = &mut self.references[id.index()];
            debug_assert!(*references > 0, "block {id:?} released more often than taken");
            *references = references.saturating_sub(1);
            if *references == 0 {
                self.free.push_back(id.0);
            }
        }
    }

    /// Forgets all cached content. Refused (false) while any block is held, as in vLLM.
    pub fn reset(&mut self) -> bool {
        if self.used() > 0 {
            return false;
        }
        self.by_hash.clear();
        self.hashes.fill(None);
        true
    }

    fn forget(&mut self, id: BlockId) {
        let Some(hash) = self.hashes[id.index()].take() else { return };
        let (older, younger) = (self.older[id.index()], self.younger[id.index()]);
        if younger == id {
            self.by_hash.remove(&hash);
            return;
        }
        self.link(older, younger);
        if let Some(oldest) = self.by_hash.get_mut(&hash).filter(|oldest| **oldest == id) {
            *oldest = younger;
        }
    }

    /// Checks what must always hold, for tests: a block is free exactly when nothing refers to it, and the hash
    /// index and the blocks name each other.
    ///
    /// # Errors
    /// The first contradiction found, in words.
    pub fn audit(&self) -> Result<(), String> {
        let queued = self.free.ids();
        if queued.len() != self.free.len() as usize {
            return Err(format!("free queue walks {} ids, claims {}", queued.len(), self.free.len()));
        }
        let idle = self.references.iter().filter(|references| **references == 0).count();
        if idle != queued.len() || queued.iter().any(|id| self.references[*id as usize] != 0) {
            return Err(format!("{idle} blocks without references, {} in the free queue", queued.len()));
        }
        let mut named = 0;
        for (hash, oldest) in &self.by_hash {
            let mut id = *oldest;
            loop {
                if self.hashes[id.index()] != Some(*hash) {
                    return Err(format!(
                        "{id:?} is a twin of {hash:?} but holds {:?}",
                        self.hashes[id.index()]
                    ));
                }
                named += 1;
                id = self.younger[id.index()];
                if id == *oldest || named > self.hashes.len() {
                    break;
                }
            }
        }
        let hashed = self.hashes.iter().flatten().count();
        if hashed == named { Ok(()) } else { Err(format!("{hashed} blocks hashed, {named} indexed")) }
    }
}
