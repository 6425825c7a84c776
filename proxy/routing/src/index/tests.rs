//! The index against a naive one that keeps every element by itself.

mod naive;

use std::collections::HashMap;

use naive::Naive;
use proptest::prelude::*;

use super::*;
use crate::random::{Random, finish};

const AMPLE: usize = 64 << 20;

/// A proper chain: each element covers all before it.
fn chain_of(path: &[u8]) -> Vec<u64> {
    let mut element: u64 = 1;
    path.iter()
        .map(|&step| {
            element = finish(element.wrapping_add(0x9E37_79B9_7F4A_7C15) ^ (u64::from(step) + 1));
            element
        })
        .collect()
}

/// Everything that must hold between the parts of an index, whatever happened to it.
fn check(index: &Index) {
    assert!(index.bytes() <= index.charge(), "{} allocated, {} charged", index.bytes(), index.charge());
    assert_eq!(index.table.len(), index.segments.len());
    let (mut heap, mut records) = (0, 0);
    for (id, segment) in index.segments.iter().enumerate() {
        heap += segment.run.capacity() * size_of::<u64>() + segment.kept.capacity() * KEPT_BYTES;
        records += segment.kept.len();
        assert!(!segment.kept.is_empty() && !segment.run.is_empty());
        assert_eq!((Some(&segment.first), Some(&segment.last)), (segment.run.first(), segment.run.last()));
        assert!(segment.kept.is_sorted_by(|a, b| a.holder < b.holder));
        let longest = segment.kept.iter().map(|kept| kept.held as usize).max().unwrap();
        assert_eq!(longest, segment.run.len(), "a run ends where its longest holding does");
        for kept in &segment.kept {
            let record = &index.records[kept.record as usize];
            assert_eq!((record.segment, record.holder), (id as u32, kept.holder));
        }
    }
    assert_eq!((heap, records), (index.heap_bytes, index.records.len()));

    let mut pinned_bytes = 0;
    let (mut held, mut in_use) = (HashMap::<HolderId, u64>::new(), HashMap::<HolderId, u64>::new());
    for record in &index.records {
        let count = index.held_in(record.segment, record.holder);
        *held.entry(record.holder).or_default() += count as u64;
        if record.pins > 0 {
            pinned_bytes += PINNED_RECORD_BYTES + 8 * count;
            *in_use.entry(record.holder).or_default() += count as u64;
        }
    }
    assert_eq!(pinned_bytes, index.pinned_bytes);
    let mut free = 0;
    for (id, holder) in index.holders.iter().enumerate() {
        assert_eq!(holder.held, held.get(&(id as u32)).copied().unwrap_or(0));
        assert_eq!(holder.in_use, in_use.get(&(id as u32)).copied().unwrap_or(0));
        free += members(index, &holder.free, Lane::Holder, |r| {
            r.pins == 0 && r.confirmed && r.holder == id as u32
        });
        records -= members(index, &holder.pinned, Lane::Holder, |r| r.pins > 0 && r.holder == id as u32);
    }
    assert_eq!(free, members(index, &index.free, Lane::All, |r| r.pins == 0));
    assert_eq!(free, records, "every record is in one list of its holder");
}

/// Length of a list, each member of which must be `fit` and linked both ways.
fn members(index: &Index, list: &List, lane: Lane, fit: impl Fn(&Record) -> bool) -> usize {
    let (mut count, mut before, mut at) = (0, NONE, list.oldest);
    while at != NONE {
        let record = &index.records[at as usize];
        assert!(fit(record));
        assert_eq!(record.links[lane as usize].older, before);
        (before, at) = (at, record.links[lane as usize].newer);
        count += 1;
    }
    assert_eq!(list.newest, before);
    count
}

#[derive(Debug, Clone)]
enum Step {
    Enter { holder: u32, path: Vec<u8>, pin: bool },
    Confirm { request: usize },
    Release { request: usize },
    Forget { holder: u32, path: Vec<u8>, from: usize, count: usize },
    Evict { holder: u32, capacity: u64 },
    Clear { holder: u32 },
    Ask { path: Vec<u8> },
}

const HOLDERS: u32 = 3;

/// Paths over few letters, long and short, so that they share much and part everywhere.
fn path() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(0..2_u8, 1..12),
        2 => (1..40_usize).prop_map(|n| vec![0; n]),
        1 => (1..30_usize, 0..3_u8).prop_map(|(n, last)| { let mut p = vec![0; n]; p.push(last); p }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let holder = 0..HOLDERS;
    prop_oneof![
        6 => (holder.clone(), path(), any::<bool>()).prop_map(|(holder, path, pin)| Step::Enter { holder, path, pin }),
        1 => (0..8_usize).prop_map(|request| Step::Confirm { request }),
        4 => (0..8_usize).prop_map(|request| Step::Release { request }),
        2 => (holder.clone(), path(), 0..30_usize, 1..9_usize)
            .prop_map(|(holder, path, from, count)| Step::Forget { holder, path, from, count }),
        2 => (holder.clone(), 0..60_u64).prop_map(|(holder, capacity)| Step::Evict { holder, capacity }),
        1 => holder.prop_map(|holder| Step::Clear { holder }),
        4 => path().prop_map(|path| Step::Ask { path }),
    ]
}

/// The index and the naive one, and the requests in flight at both.
struct Pair {
    index: Index,
    naive: Vec<Naive>,
    requests: Vec<(u32, Vec<u64>)>,
}

impl Pair {
    fn new() -> Self {
        let mut index = Index::new(AMPLE);
        let naive = (0..HOLDERS).map(|_| Naive::default()).collect();
        (0..HOLDERS).for_each(|_| _ = index.add_holder());
        Pair { index, naive, requests: Vec::new() }
    }

    fn apply(&mut self, step: Step) {
        let Pair { index, naive, requests } = self;
        match step {
            Step::Enter { holder, path, pin } => {
                let chain = chain_of(&path);
                index.enter(holder, &chain, pin);
                naive[holder as usize].enter(&chain, pin);
                if pin {
                    requests.push((holder, chain));
                }
            }
            Step::Confirm { request } => {
                if let Some((holder, chain)) = requests.get(request) {
                    index.confirm(*holder, chain);
                    naive[*holder as usize].confirm(chain);
                }
            }
            Step::Release { request } => {
                if request < requests.len() {
                    let (holder, chain) = requests.swap_remove(request);
                    index.release(holder, &chain);
                    naive[holder as usize].release(&chain);
                }
            }
            Step::Forget { holder, path, from, count } => {
                let chain = chain_of(&path);
                let range = from.min(chain.len())..(from + count).min(chain.len());
                index.forget(holder, &chain, range.clone());
                naive[holder as usize].forget(&chain[range]);
            }
            Step::Evict { holder, capacity } => {
                index.evict_beyond(holder, capacity);
                naive[holder as usize].evict_beyond(capacity as usize);
            }
            Step::Clear { holder } => {
                index.clear(holder);
                naive[holder as usize].clear();
                requests.retain(|(other, _)| *other != holder);
            }
            Step::Ask { path } => self.compare(&chain_of(&path)),
        }
    }

    fn compare(&self, chain: &[u64]) {
        let mut matched = Vec::new();
        self.index.matches(chain, &mut matched);
        let expected: Vec<u32> = self.naive.iter().map(|naive| naive.matched(chain)).collect();
        assert_eq!(matched, expected);
        for (holder, naive) in self.naive.iter().enumerate() {
            assert_eq!(self.index.held(holder as u32), naive.held() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Shared prefixes, holes, pins, evictions in the engines' order: always what the naive one says.
    #[test]
    fn agrees_with_the_naive_one(steps in proptest::collection::vec(step(), 1..120), asked in path()) {
        let mut pair = Pair::new();
        for step in steps {
            pair.apply(step);
        }
        check(&pair.index);
        pair.compare(&chain_of(&asked));
        // The end of all requests leaves nothing pinned, the removal of all holders nothing at all.
        while !pair.requests.is_empty() {
            pair.apply(Step::Release { request: 0 });
        }
        prop_assert_eq!(pair.index.pinned_bytes, 0);
        pair.compare(&chain_of(&asked));
        (0..HOLDERS).for_each(|holder| pair.index.clear(holder));
        check(&pair.index);
        prop_assert_eq!((pair.index.segments(), pair.index.records.len(), pair.index.heap_bytes), (0, 0, 0));
    }

    /// Elements that no hash would produce (repeats, any order) may confuse it, but not break it.
    #[test]
    fn survives_improper_chains(
        chains in proptest::collection::vec((0..HOLDERS, proptest::collection::vec(0..6_u64, 1..9), any::<bool>()), 1..60)
    ) {
        let mut index = Index::new(AMPLE);
        (0..HOLDERS).for_each(|_| _ = index.add_holder());
        for (holder, chain, pin) in &chains {
            index.enter(*holder, chain, *pin);
            index.evict_beyond(*holder, 10);
        }
        for (holder, chain, _) in chains.iter().filter(|(_, _, pin)| *pin) {
            index.confirm(*holder, chain);
            index.release(*holder, chain);
        }
        (0..HOLDERS).for_each(|holder| index.release_all(holder));
        prop_assert_eq!(index.pinned_bytes, 0);
        (0..HOLDERS).for_each(|holder| index.clear(holder));
        prop_assert_eq!((index.segments.len(), index.records.len(), index.heap_bytes), (0, 0, 0));
    }
}

/// A hole hides what lies behind it, and filling it shows that again.
#[test]
fn holes_hide_and_return() {
    let mut index = Index::new(AMPLE);
    let holder = index.add_holder();
    let chain = chain_of(&[0; 20]);
    let mut matched = Vec::new();
    index.enter(holder, &chain, false);
    index.forget(holder, &chain, 7..9);
    index.matches(&chain, &mut matched);
    assert_eq!((matched[0], index.held(holder)), (7, 18));
    index.enter(holder, &chain[..9], false);
    index.matches(&chain, &mut matched);
    assert_eq!(matched[0], 20, "elements behind the hole were never forgotten");
    check(&index);
}

/// As the design's bar: 10,000 random queries against sets with 2,000 holes.
#[test]
fn ten_thousand_queries_with_two_thousand_holes() {
    let mut random = Random::new(11);
    let mut pair = Pair::new();
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for round in 0..12_000_usize {
        let mut path = match paths.len() {
            0 => Vec::new(),
            known => paths[random.below(known)].clone(),
        };
        path.truncate(random.below(path.len() + 1));
        (0..1 + random.below(12)).for_each(|_| path.push(random.below(7) as u8));
        let chain = chain_of(&path);
        let holder = random.below(HOLDERS as usize) as u32;
        if round % 6 == 0 {
            let from = random.below(chain.len());
            pair.index.forget(holder, &chain, from..from + 1);
            pair.naive[holder as usize].forget(&chain[from..=from]);
        } else if paths.len() < 3_000 {
            pair.index.enter(holder, &chain, false);
            pair.naive[holder as usize].enter(&chain, false);
            paths.push(path);
        }
        pair.compare(&chain);
    }
    check(&pair.index);
}

/// Steady churn at a capacity: exactly the naive LRU, element by element, and bytes that do not creep.
#[test]
fn churn_keeps_exactly_the_most_recent() {
    // A million stores as a release build runs it; a fifth under the slower checks of a debug build.
    const STORES: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
    const CAPACITY: usize = 6_000;
    let mut random = Random::new(5);
    let mut pair = Pair::new();
    let (mut stores, mut most, mut round) = (0, 0, 0_usize);
    while stores < STORES {
        // Sessions drift: 200 live ones, each now and then replaced by a new one.
        let session = round / 50 + random.below(200);
        let mut path: Vec<u8> = vec![(session % 3) as u8; 5];
        path.extend(session.to_le_bytes());
        path.extend((0..random.below(40)).map(|_| 0));
        let chain = chain_of(&path);
        let holder = random.below(HOLDERS as usize) as u32;
        pair.index.enter(holder, &chain, true);
        pair.naive[holder as usize].enter(&chain, true);
        pair.requests.push((holder, chain.clone()));
        pair.apply(Step::Evict { holder, capacity: CAPACITY as u64 });
        if pair.requests.len() > 8 {
            let request = random.below(8);
            pair.apply(Step::Confirm { request });
            pair.apply(Step::Release { request });
        }
        pair.compare(&chain);
        stores += chain.len();
        round += 1;
        if most == 0 && stores > STORES * 2 / 3 {
            most = pair.index.bytes();
        }
    }
    check(&pair.index);
    assert!(
        pair.index.bytes() < most * 9 / 8,
        "{} bytes at two thirds, {} after churn",
        most,
        pair.index.bytes()
    );
}

/// The byte budget holds after every call, the survivors are the most recent, and growth does not thrash.
#[test]
fn budget_evicts_the_oldest_first() {
    const BUDGET: usize = 256 << 10;
    let mut index = Index::new(BUDGET);
    let holders = [index.add_holder(), index.add_holder()];
    let mut random = Random::new(3);
    let chains: Vec<Vec<u64>> =
        (0..20_000).map(|_| (0..1 + random.below(20)).map(|_| random.next()).collect()).collect();
    for (turn, chain) in chains.iter().enumerate() {
        index.enter(holders[turn % 2], chain, false);
        index.keep_budget();
        assert!(index.bytes() <= BUDGET);
    }
    check(&index);
    let mut matched = Vec::new();
    let kept: Vec<bool> = (0..chains.len())
        .map(|turn| {
            index.matches(&chains[turn], &mut matched);
            matched[turn % 2] as usize == chains[turn].len()
        })
        .collect();
    let first = kept.iter().position(|&kept| kept).unwrap();
    assert!(kept[first..].iter().all(|&kept| kept), "a younger chain went before an older one");
    assert!(index.bytes() > BUDGET * 3 / 4, "the budget is used: {}", index.bytes());
}

/// Pinned content may claim half the budget and no more, whatever is asked.
#[test]
fn pins_leave_room() {
    const BUDGET: usize = 128 << 10;
    let mut index = Index::new(BUDGET);
    let holder = index.add_holder();
    let mut random = Random::new(9);
    let mut refused = 0;
    for _ in 0..2_000 {
        let chain: Vec<u64> = (0..10).map(|_| random.next()).collect();
        if index.has_room(chain.len()) {
            index.enter(holder, &chain, true);
            index.keep_budget();
        } else {
            refused += 1;
        }
        assert!(index.bytes() <= BUDGET);
    }
    assert!(refused > 0);
    assert!(!Index::new(0).has_room(1));
    check(&index);
}

/// A chat entered turn by turn ends as one segment, splits again where another parts from it, and stays exact.
#[test]
fn turns_merge_when_their_requests_end() {
    let mut index = Index::new(AMPLE);
    let (ghost, holder) = (index.add_holder(), index.add_holder());
    let chain = chain_of(&[0; 60]);
    for turn in 1..=20 {
        index.enter(holder, &chain[..3 * turn], true);
        index.enter(ghost, &chain[..3 * turn], false);
        index.confirm(holder, &chain[..3 * turn]);
        index.release(holder, &chain[..3 * turn]);
        check(&index);
        assert_eq!(index.segments(), 1);
    }
    let mut other = [0; 40];
    other[30] = 1;
    index.enter(holder, &chain_of(&other), true);
    assert_eq!(index.segments(), 3);
    index.release(holder, &chain_of(&other));
    index.evict_beyond(holder, 45);
    check(&index);
    let mut matched = Vec::new();
    index.matches(&chain, &mut matched);
    assert_eq!(matched, [60, 45]);
}

#[test]
fn slots_of_removed_holders_are_used_again() {
    let mut index = Index::new(AMPLE);
    let (a, b) = (index.add_holder(), index.add_holder());
    index.enter(a, &[1, 2, 3], true);
    index.enter(b, &[1, 2, 3], false);
    index.remove_holder(a, b);
    check(&index);
    assert_eq!(index.add_holder(), a);
    assert_eq!((index.held(a), index.held(b)), (0, 0), "only the two had them");
}

#[test]
fn a_shadow_keeps_what_others_have_too_and_what_it_has_alone() {
    let mut index = Index::new(AMPLE);
    let [shadow, a, b] = [index.add_holder(), index.add_holder(), index.add_holder()];
    for chain in [&[1, 2, 3][..], &[1, 2, 4], &[9, 8]] {
        index.enter(shadow, chain, false);
    }
    index.enter(a, &[1, 2, 3], false);
    index.enter(b, &[1, 2], false);
    index.remove_holder(a, shadow);
    check(&index);
    let mut matched = Vec::new();
    for (chain, kept) in [(&[1, 2, 3][..], 2), (&[1, 2, 4], 3), (&[9, 8], 2)] {
        index.matches(chain, &mut matched);
        assert_eq!(matched[shadow as usize], kept);
    }
}
