//! An LRU prefix cache over interned blocks, exact to the block but kept in extents.
//!
//! A request touches its blocks leaf first, so a parent is always more recent than its children: what is held is always
//! closed under prefixes, and the blocks of one request lie next to each other in the recency list. An *extent* is such
//! a run: consecutive ids along one path, the deepest the least recent. A touch moves a handful of extents instead of
//! thousands of blocks; the result is that of a list of single blocks (see the tests).

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
}

/// See the module.
pub(crate) struct Cache {
    capacity: u64,
    used: u64,
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
                self.unlink(at);
            }
            self.used -= u64::from(taken);
            done += taken;
        }
    }

    fn put_in(&mut self, first: u32, len: u32) {
        let extent = Extent { first, len, newer: NONE, older: self.newest };
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
        match self.newest {
            NONE => self.oldest = at,
            newest => self.extents[newest as usize].newer = at,
        }
        self.newest = at;
        self.by_first.insert(first, at);
        self.used += u64::from(len);
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
        self.free.push(at);
    }

    fn evict(&mut self) {
        while self.used > self.capacity {
            let excess = self.used - self.capacity;
            let at = self.oldest;
            let extent = &mut self.extents[at as usize];
            if u64::from(extent.len) > excess {
                extent.len -= excess as u32;
                self.used -= excess;
            } else {
                self.used -= u64::from(extent.len);
                let first = extent.first;
                self.by_first.remove(&first);
                self.unlink(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
