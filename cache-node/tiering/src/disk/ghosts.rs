//! Chunks that left the host tier, remembered by a hash alone: one that comes again was not needed for the first time.
//! Without them a working set larger than the host tier would never reach the disk, since each chunk would be forgotten
//! before its second use.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Chunks remembered at one time: some tens of bytes each, and at 1 MiB a chunk those of the last TiB.
const GHOSTS_MAX: usize = 1 << 20;

/// How often each remembered chunk was used. A collision of hashes admits a chunk early, which costs one write.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    uses: HashMap<u64, u32>,
    order: VecDeque<u64>,
}

impl Ghosts {
    pub(super) fn remember<K: Hash>(&mut self, name: &K, uses: u32) {
        let hash = hash(name);
        if self.uses.insert(hash, uses).is_none() {
            self.order.push_back(hash);
        }
        if self.order.len() > GHOSTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.uses.remove(&oldest);
        }
    }

    /// The uses of a chunk that comes again: those it had, and that it comes again. 0 for one that is not remembered.
    pub(super) fn uses<K: Hash>(&self, name: &K) -> u32 {
        self.uses.get(&hash(name)).map_or(0, |uses| uses.saturating_add(1))
    }
}

/// `DefaultHasher::new` has fixed keys: the same history makes the same decisions.
fn hash<K: Hash>(name: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
