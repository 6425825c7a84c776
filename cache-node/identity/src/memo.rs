//! Tool lists that were canonicalised before. Agents send the same one, tens of kilobytes of it, with every turn.

use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::{MEMO_SHARDS, MEMO_WAYS};

#[cfg(test)]
mod tests;

/// Run hashes of a tool list, padded to whole runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ToolsRuns {
    pub(crate) hashes: Vec<u64>,
    /// Canonical bytes with the padding.
    pub(crate) bytes: u64,
}

/// Names a tool list by its bytes as they lie in the body. 128 bits and the length: an entry is not compared with
/// the list it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoKey {
    pub(crate) hash: u128,
    pub(crate) len: usize,
}

/// A bounded map from raw tool lists to their run hashes, least recently used out first within a shard.
///
/// What it holds is a function of the key alone, so a lost or evicted entry costs time and nothing else.
#[derive(Default)]
pub(crate) struct ToolsMemo {
    shards: [Mutex<Shard>; MEMO_SHARDS],
}

#[derive(Default)]
struct Shard {
    clock: u64,
    entries: Vec<Entry>,
}

struct Entry {
    key: MemoKey,
    used: u64,
    runs: Arc<ToolsRuns>,
}

impl ToolsMemo {
    pub(crate) fn get(&self, key: MemoKey) -> Option<Arc<ToolsRuns>> {
        self.with_shard(key, |shard| {
            shard.clock += 1;
            let now = shard.clock;
            let entry = shard.entries.iter_mut().find(|entry| entry.key == key)?;
            entry.used = now;
            Some(Arc::clone(&entry.runs))
        })
    }

    pub(crate) fn insert(&self, key: MemoKey, runs: Arc<ToolsRuns>) {
        // Dropped behind the lock: freeing takes longer than the rest of the critical section.
        let _evicted = self.with_shard(key, |shard| {
            shard.clock += 1;
            let entry = Entry { key, used: shard.clock, runs };
            if let Some(same) = shard.entries.iter_mut().find(|old| old.key == key) {
                return Some(std::mem::replace(same, entry));
            }
            if shard.entries.len() < MEMO_WAYS {
                shard.entries.push(entry);
                return None;
            }
            let oldest = shard.entries.iter_mut().min_by_key(|old| old.used)?;
            Some(std::mem::replace(oldest, entry))
        });
    }

    fn with_shard<T>(&self, key: MemoKey, act: impl FnOnce(&mut Shard) -> T) -> T {
        let shard = &self.shards[(key.hash % MEMO_SHARDS as u128) as usize];
        // A shard is valid after every statement, so a panic elsewhere in a holder cannot have spoilt it.
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
