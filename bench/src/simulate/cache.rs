//! An LRU prefix cache over interned blocks, exact to the block but kept in extents.
//!
//! A request touches its blocks leaf first, so a parent is always more recent than its children: what is held is always
//! closed under prefixes, and the blocks of one request lie next to each other in the recency list. An *extent* is such
//! a run: consecutive ids along one path, the deepest the least recent. A touch moves a handful of extents instead of
//! thousands of blocks; the result is that of a list of single blocks (see the tests).
//!
//! An engine cannot evict what its running requests use, and what they leave grows old from their end (vLLM's
//! `KVCacheManager.free`): a pinned extent is in no order, and joins it as the most recent when its last pin goes. A
//! cache is used by touches or by pins, not by both.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// `(first id, count)` of consecutive ids along one path. A chain is a list of them, joined as far as possible: that
/// is what lets every extent be found by its first id.
pub(crate) type Span = (u32, u32);

const NONE: u32 = u32::MAX;

/// Multiplicative hash of dense ids (Knuth, TAOCP 6.4): ids are ours, nobody can choose them to collide.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }

    fn write_u32(&mut self, id: u32) {
        // The table takes its bucket from the low bits and its tag from the high ones.
        let product = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn write_u64(&mut self, value: u64) {
        self.write_u32(value as u32);
        self.write_u32((value >> 32) as u32);
    }
}

/// A map from dense ids.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

struct Extent {
    first: u32,
    len: u32,
    /// More recent.
    newer: u32,
    /// Less recent.
    older: u32,
    /// Running requests that use it; not in the order of recency while there are any.
    pins: u32,
}

/// See the module.
pub(crate) struct Cache {
    capacity: u64,
    used: u64,
    pinned: u64,
    reserved: u64,
    extents: Vec<Extent>,
    free: Vec<u32>,
    by_first: IdMap<u32, u32>,
    newest: u32,
    oldest: u32,
}

impl Cache {
    /// An empty cache of `capacity` blocks.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            used: 0,
            pinned: 0,
            reserved: 0,
            extents: Vec::new(),
            free: Vec::new(),
            by_first: IdMap::default(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// Blocks held.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Leading blocks of `chain` that are held.
    pub(crate) fn held(&self, chain: &[Span]) -> u64 {
        let mut held = 0;
        for &(first, len) in chain {
            let here = self.held_of(first, len);
            held += u64::from(here);
            if here < len {
                break;
            }
        }
        held
    }

    fn held_of(&self, first: u32, len: u32) -> u32 {
        let mut held = 0;
        while held < len {
            let Some(&at) = self.by_first.get(&(first + held)) else { break };
            held += self.extents[at as usize].len.min(len - held);
        }
        held
    }

    /// Uses all blocks of `chain`, the deepest least recently, and evicts what no longer fits.
    pub(crate) fn touch(&mut self, chain: &[Span]) {
        for &(first, len) in chain.iter().rev() {
            self.take_out(first, len);
            self.put_in(first, len);
        }
        self.evict();
    }

    fn take_out(&mut self, first: u32, len: u32) {
        let mut done = 0;
        while done < len {
            let Some(at) = self.by_first.remove(&(first + done)) else { return };
            let have = self.extents[at as usize].len;
            let taken = have.min(len - done);
            if taken < have {
                // What lies behind stays where it is in the order.
                let extent = &mut self.extents[at as usize];
                extent.first += taken;
                extent.len -= taken;
                self.by_first.insert(first + done + taken, at);
            } else {
                self.remove(at);
            }
            self.used -= u64::from(taken);
            done += taken;
        }
    }

    fn put_in(&mut self, first: u32, len: u32) {
        let at = self.add(first, len);
        self.link(at);
    }

    /// A new extent that is in no order yet.
    fn add(&mut self, first: u32, len: u32) -> u32 {
        let extent = Extent { first, len, newer: NONE, older: NONE, pins: 0 };
        let at = match self.free.pop() {
            Some(at) => {
                self.extents[at as usize] = extent;
                at
            }
            None => {
                self.extents.push(extent);
                (self.extents.len() - 1) as u32
            }
        };
        self.by_first.insert(first, at);
        self.used += u64::from(len);
        at
    }

    /// Makes an extent that is in no order the most recent.
    fn link(&mut self, at: u32) {
        (self.extents[at as usize].newer, self.extents[at as usize].older) = (NONE, self.newest);
        match self.newest {
            NONE => self.oldest = at,
            newest => self.extents[newest as usize].newer = at,
        }
        self.newest = at;
    }

    /// Takes an extent out of the order and away.
    fn remove(&mut self, at: u32) {
        self.unlink(at);
        self.free.push(at);
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older) = (self.extents[at as usize].newer, self.extents[at as usize].older);
        match newer {
            NONE => self.newest = older,
            newer => self.extents[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.extents[older as usize].newer = newer,
        }
    }

    /// Whether a request fits beside those that run, or has the cache to itself.
    pub(crate) fn admits(&self, chain: &[Span]) -> bool {
        let running = self.pinned + self.reserved;
        running == 0 || running + self.unpinned(chain) <= self.capacity
    }

    /// Blocks of `chain` that no running request uses, held or not.
    fn unpinned(&self, chain: &[Span]) -> u64 {
        let mut blocks: u64 = chain.iter().map(|&(_, len)| u64::from(len)).sum();
        for &(first, len) in chain {
            let mut done = 0;
            while done < len {
                let Some(&at) = self.by_first.get(&(first + done)) else { return blocks };
                let extent = &self.extents[at as usize];
                if extent.pins == 0 {
                    return blocks;
                }
                let used = extent.len.min(len - done);
                blocks -= u64::from(used);
                done += used;
            }
        }
        blocks
    }

    /// Keeps room for blocks that are being computed and are nobody's yet.
    pub(crate) fn reserve(&mut self, blocks: u64) {
        self.reserved += blocks;
        self.evict();
    }

    /// Gives back what was reserved.
    pub(crate) fn unreserve(&mut self, blocks: u64) {
        self.reserved -= blocks;
    }

    /// A running request uses all blocks of `chain`: they are held now, and nothing evicts them before
    /// [`Cache::unpin`].
    pub(crate) fn pin(&mut self, chain: &[Span]) {
        for &(first, len) in chain {
            let mut path = self.part(first, len);
            let have: u32 = path.iter().map(|&at| self.extents[at as usize].len).sum();
            if have < len {
                let at = self.add(first + have, len - have);
                self.link(at);
                path.push(at);
            }
            for at in path {
                if self.extents[at as usize].pins == 0 {
                    self.unlink(at);
                    self.pinned += u64::from(self.extents[at as usize].len);
                }
                self.extents[at as usize].pins += 1;
            }
        }
        self.evict();
    }

    /// A request that pinned `chain` has ended: what nobody else uses is the most recent now, its deepest block least.
    pub(crate) fn unpin(&mut self, chain: &[Span]) {
        for &(first, len) in chain.iter().rev() {
            let path = self.part(first, len);
            // The extent released before, which a shallower one that ends where it begins may join.
            let mut deeper = NONE;
            for at in path.into_iter().rev() {
                self.extents[at as usize].pins -= 1;
                if self.extents[at as usize].pins > 0 {
                    deeper = NONE;
                    continue;
                }
                self.pinned -= u64::from(self.extents[at as usize].len);
                if deeper == NONE {
                    self.link(at);
                    deeper = at;
                } else {
                    self.join(at, deeper);
                }
            }
        }
        self.evict();
    }

    /// Makes an extent that is in no order the front of the most recent one, which continues it.
    fn join(&mut self, at: u32, deeper: u32) {
        let (first, len) = (self.extents[at as usize].first, self.extents[at as usize].len);
        let joined = &mut self.extents[deeper as usize];
        self.by_first.remove(&joined.first);
        (joined.first, joined.len) = (first, joined.len + len);
        self.by_first.insert(first, deeper);
        self.free.push(at);
    }

    /// The extents that hold the blocks of a span, the last one cut where the span ends.
    fn part(&mut self, first: u32, len: u32) -> Vec<u32> {
        let (mut path, mut done) = (Vec::new(), 0);
        while done < len {
            let Some(&at) = self.by_first.get(&(first + done)) else { break };
            if self.extents[at as usize].len > len - done {
                self.cut(at, len - done);
            }
            path.push(at);
            done += self.extents[at as usize].len;
        }
        path
    }

    /// Cuts an extent after `len` blocks. What lies behind is as recent, and evicted before it.
    fn cut(&mut self, at: u32, len: u32) {
        let Extent { first, len: whole, older, pins, .. } = self.extents[at as usize];
        self.extents[at as usize].len = len;
        self.used -= u64::from(whole - len);
        let tail = self.add(first + len, whole - len);
        self.extents[tail as usize].pins = pins;
        if pins > 0 {
            return;
        }
        (self.extents[tail as usize].newer, self.extents[tail as usize].older) = (at, older);
        self.extents[at as usize].older = tail;
        match older {
            NONE => self.oldest = tail,
            older => self.extents[older as usize].newer = tail,
        }
    }

    fn evict(&mut self) {
        while self.used + self.reserved > self.capacity && self.oldest != NONE {
            let excess = self.used + self.reserved - self.capacity;
            let at = self.oldest;
            let extent = &mut self.extents[at as usize];
            if u64::from(extent.len) > excess {
                extent.len -= excess as u32;
                self.used -= excess;
            } else {
                self.used -= u64::from(extent.len);
                let first = extent.first;
                self.by_first.remove(&first);
                self.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
