use super::*;

fn runs(value: u64) -> Arc<ToolsRuns> {
    Arc::new(ToolsRuns { hashes: vec![value], bytes: value })
}

fn key(hash: u128) -> MemoKey {
    MemoKey { hash, len: 1 }
}

#[test]
fn a_shard_is_bounded_and_drops_what_was_used_longest_ago() {
    let memo = ToolsMemo::default();
    let same_shard = |n: u64| key(u128::from(n) * MEMO_SHARDS as u128);
    for n in 0..MEMO_WAYS as u64 {
        memo.insert(same_shard(n), runs(n));
    }
    assert!(memo.get(same_shard(0)).is_some(), "and is now the one used last");
    memo.insert(same_shard(1000), runs(1000));
    assert!(memo.get(same_shard(1)).is_none(), "the oldest went");
    for n in [0, 2, 1000] {
        assert_eq!(memo.get(same_shard(n)).unwrap().hashes, [n]);
    }
    assert_eq!(memo.shards[0].lock().unwrap().entries.len(), MEMO_WAYS);
}

#[test]
fn length_is_part_of_the_key() {
    let memo = ToolsMemo::default();
    memo.insert(MemoKey { hash: 5, len: 1 }, runs(1));
    assert!(memo.get(MemoKey { hash: 5, len: 2 }).is_none());
}

#[test]
fn the_same_key_takes_one_place() {
    let memo = ToolsMemo::default();
    memo.insert(key(3), runs(1));
    memo.insert(key(3), runs(2));
    assert_eq!(memo.get(key(3)).unwrap().bytes, 2);
    assert_eq!(memo.shards[3].lock().unwrap().entries.len(), 1);
}
