use proptest::prelude::*;

use super::naive::{NaiveCache, ReleaseOrder};
use super::*;

fn hashes(range: std::ops::Range<u64>) -> Vec<BlockHash> {
    range.map(BlockHash).collect()
}

fn take(cache: &mut BlockCache, found: &[BlockId], fresh: u32) -> Option<Vec<BlockId>> {
    let mut blocks = Vec::new();
    cache.take(found, fresh, &mut blocks).then_some(blocks)
}

fn find(cache: &BlockCache, wanted: &[BlockHash]) -> Vec<BlockId> {
    let mut found = Vec::new();
    cache.find(wanted, &mut found);
    found
}

/// Allocates and publishes one block per hash.
fn fill(cache: &mut BlockCache, wanted: &[BlockHash]) -> Vec<BlockId> {
    let blocks = take(cache, &[], wanted.len() as u32).unwrap();
    for (id, hash) in blocks.iter().zip(wanted) {
        cache.publish(*id, *hash);
    }
    blocks
}

#[test]
fn last_block_of_a_request_is_evicted_first() {
    let mut cache = BlockCache::new(4, true);
    let prompt = hashes(0..4);
    let blocks = fill(&mut cache, &prompt);
    cache.release(&blocks);
    for left in (1..4).rev() {
        fill(&mut cache, &hashes(100 + left..101 + left));
        assert_eq!(find(&cache, &prompt).len(), left as usize, "the tail goes block by block");
    }
}

#[test]
fn least_recently_released_request_is_evicted_first() {
    let mut cache = BlockCache::new(4, true);
    let (old, new) = (hashes(0..2), hashes(10..12));
    let (old_blocks, new_blocks) = (fill(&mut cache, &old), fill(&mut cache, &new));
    cache.release(&old_blocks);
    cache.release(&new_blocks);
    // A hit on the older makes it the younger.
    let hit = find(&cache, &old);
    let again = take(&mut cache, &hit, 0).unwrap();
    cache.release(&again);
    fill(&mut cache, &hashes(20..22));
    assert_eq!(find(&cache, &old).len(), 2);
    assert_eq!(find(&cache, &new).len(), 0);
}

#[test]
fn held_blocks_are_never_taken() {
    let mut cache = BlockCache::new(3, true);
    let blocks = fill(&mut cache, &hashes(0..2));
    assert_eq!(take(&mut cache, &[], 2), None, "only one block is free");
    assert_eq!((cache.free(), cache.used()), (1, 2), "a failed allocation takes nothing");
    let shared = find(&cache, &hashes(0..2));
    let second = take(&mut cache, &shared, 0).unwrap();
    cache.release(&blocks);
    assert_eq!(take(&mut cache, &[], 2), None, "the second holder keeps them");
    cache.release(&second);
    assert!(take(&mut cache, &[], 3).is_some());
    assert_eq!(find(&cache, &hashes(0..2)), []);
}

#[test]
fn a_found_free_block_is_not_counted_twice() {
    let mut cache = BlockCache::new(2, true);
    let blocks = fill(&mut cache, &hashes(0..2));
    cache.release(&blocks);
    let found = find(&cache, &hashes(0..1));
    assert_eq!(take(&mut cache, &found, 2), None, "two free blocks, one of which is the found one");
    assert_eq!(take(&mut cache, &found, 1).map(|blocks| blocks.len()), Some(2));
}

#[test]
fn twins_survive_each_other() {
    let mut cache = BlockCache::new(2, true);
    let first = fill(&mut cache, &hashes(7..8));
    let second = fill(&mut cache, &hashes(7..8));
    assert_eq!(find(&cache, &hashes(7..8)), first, "the older answers");
    cache.release(&first);
    cache.release(&second);
    fill(&mut cache, &hashes(1..2));
    assert_eq!(find(&cache, &hashes(7..8)), second, "the younger is left");
    cache.audit().unwrap();
}

#[test]
fn reset_needs_an_idle_cache() {
    let mut cache = BlockCache::new(2, true);
    let blocks = fill(&mut cache, &hashes(0..1));
    assert!(!cache.reset());
    cache.release(&blocks);
    assert!(cache.reset());
    assert_eq!(find(&cache, &hashes(0..1)), []);
}

#[test]
fn without_caching_nothing_is_found() {
    let mut cache = BlockCache::new(2, false);
    fill(&mut cache, &hashes(0..1));
    assert_eq!(find(&cache, &hashes(0..1)), []);
}

#[derive(Clone, Debug)]
enum Op {
    /// A request for the chain `chain` of `blocks` blocks arrives.
    Start {
        chain: u64,
        blocks: usize,
    },
    /// The running request at this place (modulo their number) ends.
    End(usize),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..4_u64, 1..8_usize).prop_map(|(chain, blocks)| Op::Start { chain, blocks }),
        6 => (0..16_usize).prop_map(Op::End),
        1 => Just(Op::Reset),
    ];
    proptest::collection::vec(op, 1..120)
}

/// Chains share their first two blocks, so that branches and shared holders occur.
fn chain(chain: u64, blocks: usize) -> Vec<BlockHash> {
    (0..blocks as u64).map(|at| BlockHash(if at < 2 { at } else { chain * 100 + at })).collect()
}

/// Plays `ops` on both; the first difference is the error.
fn compare(blocks: u32, ops: &[Op], order: ReleaseOrder) -> Result<(), String> {
    let (mut cache, mut naive) = (BlockCache::new(blocks, true), NaiveCache::new(blocks, true, order));
    let mut running: Vec<Vec<BlockId>> = Vec::new();
    for (step, op) in ops.iter().enumerate() {
        let same = match op {
            Op::Start { chain: of, blocks } => {
                let wanted = chain(*of, *blocks);
                // As in the scheduler: the last block is never taken from the cache.
                let reusable = &wanted[..wanted.len() - 1];
                let found = find(&cache, reusable);
                let fresh = (wanted.len() - found.len()) as u32;
                let mut same = found == naive.find(reusable);
                let taken = take(&mut cache, &found, fresh);
                same &= taken == naive.take(&found, fresh);
                for (id, hash) in taken.iter().flatten().zip(&wanted) {
                    cache.publish(*id, *hash);
                    naive.publish(*id, *hash);
                }
                running.extend(taken);
                same
            }
            Op::End(at) if !running.is_empty() => {
                let blocks = running.swap_remove(at % running.len());
                cache.release(&blocks);
                naive.release(&blocks);
                true
            }
            Op::End(_) => true,
            Op::Reset => cache.reset() == naive.reset(),
        };
        cache.audit()?;
        if !same || cache.free() != naive.free() {
            return Err(format!("step {step}: {op:?} differs"));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn behaves_like_the_naive_cache(blocks in 1..24_u32, ops in ops()) {
        prop_assert_eq!(compare(blocks, &ops, ReleaseOrder::LastFirst), Ok(()));
    }
}

/// The comparison is able to fail: an oracle that frees the first block first is told apart.
#[test]
fn comparison_notices_a_wrong_eviction_order() {
    let start = |chain, blocks| Op::Start { chain, blocks };
    let ops = [start(1, 6), Op::End(0), start(2, 4), start(1, 6)];
    assert_eq!(compare(6, &ops, ReleaseOrder::LastFirst), Ok(()));
    assert!(compare(6, &ops, ReleaseOrder::FirstFirst).is_err());
}
