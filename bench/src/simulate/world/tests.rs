use super::*;
use crate::simulate::cluster::{Prefill, WarehouseSetup};
use crate::simulate::workload::tests::{request, trace};
use crate::simulate::{Memory, Name, View};
use clap::ValueEnum;

/// 10 tokens a block, 10 tokens a second: a block is a second.
fn setup(policy: Name, replicas: usize, blocks: u64) -> Setup {
    Setup {
        cluster: ClusterSetup {
            replicas,
            blocks,
            rate: 10.0,
            decode_s: 0.0,
            prefill: Prefill::Fcfs,
            memory: Memory::Pinned,
            pooled: false,
            warehouse: None,
        },
        router: RouterSetup { policy, view: View::Exact, hold_limit_s: 30.0, max_held: 4_096, seed: 1 },
        live: 1,
        starts_over_s: 300.0,
        stretch: 1.0,
        as_given: false,
    }
}

fn close(found: &[f64], expected: &[f64]) {
    let equal =
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(equal, "{found:?} is not {expected:?}");
}

/// Requests at given times with 5 tokens behind their last block, as an open loop.
fn open(requests: &[(f64, &[(u64, u64)])]) -> Workload {
    let mut trace = trace(&[("", Vec::new())]);
    trace.format = Format::Mooncake;
    trace.sessions[0].requests = requests
        .iter()
        .map(|&(at_s, ranges)| {
            let tokens = 10 * ranges.iter().map(|&(_, len)| len).sum::<u64>() + 5;
            crate::trace::Request { at_s, ..request(0.0, tokens, ranges) }
        })
        .collect();
    Workload::new(&trace, 10).unwrap()
}

/// Computed by hand. Replica 0 of a round robin of two: 4 blocks from 0 s, first token at 4.5 s. Replica 1: another 4
/// blocks from 1 s to 5.5 s. Replica 0 again at 2 s: 2 of its blocks and 2 new ones, waits until 4.5 s, 2.5 s of work.
/// Replica 1 at 10 s: nothing of it there.
#[test]
fn golden_first_come_first_served() {
    let work = open(&[(0.0, &[(0, 4)]), (1.0, &[(10, 4)]), (2.0, &[(0, 2), (20, 2)]), (10.0, &[(0, 4)])]);
    let outcome = run(&work, setup(Name::RoundRobin, 2, 100)).unwrap();
    close(&outcome.ttfts, &[4.5, 4.5, 4.5, 5.0]);
    assert_eq!((outcome.tokens, outcome.local, outcome.uncached), (180, 20, vec![70, 90]));
    assert_eq!((outcome.requests, outcome.counted, outcome.refused), (4, 4, 0));
    close(&[outcome.gpu_s, outcome.counted_s], &[16.0, 14.5]);
}

/// Negative control: with half the capacity the tails are gone, and the golden figures change as they must.
#[test]
fn golden_small_cache() {
    let requests: [(f64, &[(u64, u64)]); 3] = [(0.0, &[(0, 4)]), (10.0, &[(10, 1)]), (20.0, &[(0, 4)])];
    let work = open(&requests);
    let large = run(&work, setup(Name::RoundRobin, 1, 5)).unwrap();
    close(&large.ttfts, &[0.5, 1.5, 4.5]);
    let small = run(&work, setup(Name::RoundRobin, 1, 3)).unwrap();
    // Blocks 0 and 1 are left beside the other one.
    close(&small.ttfts, &[1.5, 2.5, 4.5]);
    assert_eq!((large.local, small.local), (40, 20));
}

/// A prompt of 45 tokens and one of 15 at the same time: the queue has both before one goes, so the shorter goes first. A
/// millisecond apart (the negative control) the first is served first.
#[test]
fn golden_those_who_come_together() {
    let at = |second_s| open(&[(0.0, &[(0, 4)]), (second_s, &[(10, 1)])]);
    close(&run(&at(0.0), setup(Name::Larder, 1, 100)).unwrap().ttfts, &[1.5, 6.0]);
    close(&run(&at(0.001), setup(Name::Larder, 1, 100)).unwrap().ttfts, &[4.5, 5.999]);
    close(&run(&at(0.0), setup(Name::MinTtft, 1, 100)).unwrap().ttfts, &[4.5, 6.0]);
}

/// A prompt of 1,005 tokens and one of 15 that comes during its first step of 1 s.
#[test]
fn golden_chunked() {
    let work = open(&[(0.0, &[(0, 99), (200, 1)]), (0.2, &[(500, 1)])]);
    let chunked = |partial| {
        let mut setup = setup(Name::RoundRobin, 1, 1_000);
        setup.cluster.prefill = Prefill::Chunked { step_s: 1.0, partial };
        run(&work, setup).unwrap()
    };
    // From 1.0 s on each gets 5 of 10 tokens a step: 15 tokens are 3 steps, to 4.0 s.
    close(&chunked(2).ttfts, &[3.8, 102.0]);
    // One at a time is first come, first served.
    close(&chunked(1).ttfts, &[100.5, 101.8]);
}

/// With decode: the GPU is busy for it, the answer ends after it.
#[test]
fn golden_decode_and_warehouse() {
    let work = open(&[(0.0, &[(0, 4)]), (0.0, &[(10, 4)]), (50.0, &[(0, 4)]), (50.0, &[(0, 4)])]);
    let mut setup = setup(Name::RoundRobin, 1, 4);
    setup.cluster.decode_s = 2.0;
    setup.cluster.memory = Memory::Lru;
    setup.cluster.warehouse = Some(WarehouseSetup { blocks: 100, seconds_per_token: 0.01, shared: false });
    let outcome = run(&work, setup).unwrap();
    // 4.5 s; 2 s of decode and 4.5 s behind it; 0.4 s of fetch and 0.5 s for the last tokens; 2 s of decode and 0.5 s.
    close(&outcome.ttfts, &[0.9, 3.4, 4.5, 11.0]);
    assert_eq!((outcome.local, outcome.fetched), (40, 40));
    // The last first token comes at 53.4 s, and its answer's one token takes 64 times 2 s.
    close(&[outcome.counted_s, outcome.gpu_s], &[181.4, 18.0]);
    // A link slower than the prefill is not used.
    setup.cluster.warehouse = Some(WarehouseSetup { blocks: 100, seconds_per_token: 0.2, shared: false });
    assert_eq!(run(&work, setup).unwrap().fetched, 0);
}

/// Prompts of 4 blocks on a cache of 6; an answer runs for 128 s after its prefill and 2 s of GPU. 0 s: A, first token
/// at 4.5 s. 10 s: B, to 14.5 s. 30 s: A again while both run. 400 s: all have ended, B first, and C takes its last two
/// blocks. 600 s: B again.
#[test]
fn golden_memory() {
    let requests: [(f64, &[(u64, u64)]); 5] =
        [(0.0, &[(0, 4)]), (10.0, &[(10, 4)]), (30.0, &[(0, 4)]), (400.0, &[(20, 2)]), (600.0, &[(10, 4)])];
    let with = |memory| {
        let mut setup = setup(Name::RoundRobin, 1, 6);
        setup.cluster.decode_s = 2.0;
        setup.cluster.memory = memory;
        run(&open(&requests), setup).unwrap().ttfts
    };
    // Nothing pinned: B leaves 2 blocks of A, A again leaves 2 of B, C takes them.
    close(&with(Memory::Lru), &[2.5, 2.5, 4.5, 4.5, 4.5]);
    // All of A is there as long as it runs; B's end is earlier than the second A's, so that C takes B's.
    close(&with(Memory::Pinned), &[0.5, 2.5, 4.5, 4.5, 4.5]);
    // B waits until A has ended at 132.5 s, and the second A behind it until B has at 265 s and finds 2 blocks.
    close(&with(Memory::Admission), &[2.5, 4.5, 4.5, 127.0, 237.5]);
}

/// A closed loop of 40 sessions with 6 turns each.
fn sessions() -> Workload {
    let sessions: Vec<(String, Vec<crate::trace::Request>)> = (0..40_u64)
        .map(|session| {
            let turns = (1..=6).map(|turn| {
                let blocks = 3 * turn + session % 5;
                request(((session * 7 + turn * 13) % 40) as f64, 10 * blocks + 7, &[(0, blocks)])
            });
            (format!("s{session}"), turns.collect())
        })
        .collect();
    let named: Vec<(&str, Vec<_>)> =
        sessions.iter().map(|(id, turns)| (id.as_str(), turns.clone())).collect();
    Workload::new(&trace(&named), 10).unwrap()
}

#[test]
fn every_request_is_answered_once_and_tokens_add_up_under_every_policy() {
    let work = sessions();
    for &policy in Name::value_variants() {
        for (prefill, view) in [
            (Prefill::Fcfs, View::Exact),
            (Prefill::Fcfs, View::Estimated),
            (Prefill::Chunked { step_s: 0.5, partial: 3 }, View::Exact),
        ] {
            let mut setup = Setup { live: 20, ..setup(policy, 3, 60) };
            setup.router.view = view;
            setup.cluster.prefill = prefill;
            setup.cluster.pooled = matches!(policy, Name::PooledLru | Name::Infinite);
            let outcome = run(&work, setup).unwrap();
            let name = policy.name();
            assert_eq!((outcome.requests, outcome.ttfts.len()), (240, 240), "{name}");
            assert_eq!(outcome.tokens, outcome.local + outcome.uncached.iter().sum::<u64>(), "{name}");
            assert!(outcome.ttfts[0] > 0.0 && outcome.counted < 240, "{name}");
            assert_eq!(run(&work, setup).unwrap(), outcome, "{name} with the same seed");
        }
    }
}

#[test]
fn another_seed_is_another_order() {
    let work = sessions();
    let with = |seed| {
        let mut setup = Setup { live: 20, ..setup(Name::Larder, 3, 60) };
        setup.router.seed = seed;
        run(&work, setup).unwrap()
    };
    assert_ne!(with(1).ttfts, with(2).ttfts);
}

#[test]
fn the_queue_holds_and_no_limit_holds_nobody() {
    let work = sessions();
    let with = |policy| run(&work, Setup { live: 40, ..setup(policy, 2, 60) }).unwrap();
    assert!(with(Name::Larder).held_most > 0);
    assert_eq!(with(Name::LarderPriceOnly).held_most, 0);
    assert_eq!(with(Name::MinTtft).held_most, 0);
}

/// All but a few are turned away while the replicas are busy, and each of them is answered in the end.
#[test]
fn who_is_refused_comes_again() {
    let work = sessions();
    let with = |max_held| {
        let mut setup = Setup { live: 40, ..setup(Name::Larder, 2, 60) };
        setup.router.max_held = max_held;
        run(&work, setup).unwrap()
    };
    let (few, many) = (with(2), with(4_096));
    assert!(few.refused > 0 && few.held_most <= 2, "{few:?}");
    assert_eq!((few.requests, few.ttfts.len()), (240, 240));
    assert_eq!(many.refused, 0);
}

#[test]
fn as_given_is_the_order_of_the_workload() {
    let turns = |count| (0..count).map(|_| request(1.0, 20, &[(0, 2)])).collect::<Vec<_>>();
    let work = Workload::new(&trace(&[("a", turns(4)), ("b", turns(2)), ("c", turns(1))]), 10).unwrap();
    let counted = |as_given, seed| {
        let mut setup = Setup { as_given, ..setup(Name::RoundRobin, 1, 100) };
        setup.router.seed = seed;
        run(&work, setup).unwrap().counted
    };
    // One session after the other: what is done when the last of them starts.
    assert!((1..20).all(|seed| counted(true, seed) == 6));
    assert!((1..20).any(|seed| counted(false, seed) != 6));
}
