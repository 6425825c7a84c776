use proptest::prelude::*;

use super::naive::{self, Fate};
use super::*;

const MS: u64 = 1_000_000;

fn limits(blocks: u32) -> Limits {
    Limits {
        block_tokens: 16,
        blocks,
        max_batched_tokens: 1000,
        max_running: 8,
        prefix_caching: true,
        cache_generated: true,
        stream_grain_ns: 0,
    }
}

/// 1000 tokens a second, so that a token of prefill is a millisecond; a step is 10 ms or more.
fn cost() -> Cost {
    Cost { prefill_tokens_per_s: 1000.0, prefill_quadratic_s: 0.0, step_floor_s: 0.01 }
}

/// A prompt whose blocks are numbered from `first_hash`.
fn job(first_hash: u64, prompt_tokens: u32, output_tokens: u32) -> Job {
    let blocks = u64::from((prompt_tokens + output_tokens) / 16);
    let hashes = (first_hash..first_hash + blocks).map(BlockHash).collect();
    Job { prompt_tokens, output_tokens, hashes, streamed: true }
}

/// Runs until idle, waking exactly when told to; each report with its time.
fn run(scheduler: &mut Scheduler) -> Vec<(u64, Update)> {
    let mut seen = Vec::new();
    let mut updates = Vec::new();
    while let Some(at) = scheduler.next_wake() {
        scheduler.advance(at, &mut updates);
        seen.extend(updates.drain(..).map(|update| (at, update)));
    }
    seen
}

fn ends(seen: &[(u64, Update)]) -> Vec<(u64, u64)> {
    seen.iter().filter(|(_, update)| update.finished).map(|(at, update)| (update.id.0, at / MS)).collect()
}

#[test]
fn a_lone_request_takes_its_prefill_and_a_step_per_token() {
    let mut scheduler = Scheduler::new(limits(100), cost());
    scheduler.submit(5 * MS, job(0, 200, 3)).unwrap();
    let seen = run(&mut scheduler);
    let produced: Vec<_> = seen.iter().map(|(at, update)| (at / MS, update.produced)).collect();
    assert_eq!(produced, [(205, 1), (215, 2), (225, 3)]);
    assert_eq!(scheduler.next_wake(), None);
    assert_eq!(scheduler.cache().used(), 0, "a finished request holds nothing");
    let mut first_tokens = Vec::new();
    scheduler.drain_first_tokens(&mut first_tokens);
    assert_eq!(first_tokens, [200 * MS]);
}

#[test]
fn long_prompts_are_cut_into_chunks_and_decoding_goes_on_between() {
    let mut scheduler = Scheduler::new(limits(1000), cost());
    let mut updates = Vec::new();
    scheduler.submit(0, job(0, 16, 10)).unwrap();
    scheduler.advance(16 * MS, &mut updates);
    scheduler.submit(16 * MS, job(100, 2500, 1)).unwrap();
    let seen = run(&mut scheduler);
    // Budget 1000: one token for the first, 999 for the second, until 2500 are done.
    let second = seen.iter().find(|(_, update)| update.id.0 == 1).unwrap();
    assert_eq!(second.0 / MS, 26 + 999 + 999 + 502);
    let first_during = seen.iter().filter(|(at, update)| update.id.0 == 0 && *at < second.0).count();
    assert_eq!(first_during, 3, "one token in the step before and in each step with a chunk but the last");
}

#[test]
fn attention_makes_long_prefill_superlinear() {
    let cost = Cost { prefill_quadratic_s: 1e-6, ..cost() };
    assert!(cost.prefill_s(0, 2000) > 2.0 * cost.prefill_s(0, 1000));
    let halves = cost.prefill_s(0, 1000) + cost.prefill_s(1000, 1000);
    assert!((halves - cost.prefill_s(0, 2000)).abs() < 1e-9, "cutting into chunks changes no total");
}

#[test]
fn a_repeat_is_cached_but_for_its_last_block() {
    for (prompt, cached) in [(160, 144), (161, 160), (16, 0), (17, 16)] {
        let mut scheduler = Scheduler::new(limits(100), cost());
        scheduler.submit(0, job(0, prompt, 1)).unwrap();
        let first = run(&mut scheduler);
        scheduler.submit(1000 * MS, job(0, prompt, 1)).unwrap();
        let second = run(&mut scheduler);
        assert_eq!((first[0].1.cached_tokens, second[0].1.cached_tokens), (0, cached), "prompt of {prompt}");
        assert_eq!(second[0].0, (1000 + u64::from(prompt - cached).max(10)) * MS);
        let counters = scheduler.counters();
        assert_eq!(counters.prefix_hits, u64::from(cached));
        assert_eq!(
            (counters.prefix_queries, counters.prompt_tokens),
            (2 * u64::from(prompt), 2 * u64::from(prompt))
        );
    }
}

#[test]
fn generated_blocks_are_found_by_the_next_turn() {
    for (cache_generated, cached) in [(true, 112), (false, 64)] {
        let mut scheduler = Scheduler::new(Limits { cache_generated, ..limits(100) }, cost());
        // 64 + 60 tokens; the KV of the last one is never computed, so 123 are in the cache: 7 blocks.
        scheduler.submit(0, job(0, 64, 60)).unwrap();
        run(&mut scheduler);
        scheduler.submit(9000 * MS, job(0, 200, 1)).unwrap();
        assert_eq!(run(&mut scheduler)[0].1.cached_tokens, cached, "cache_generated {cache_generated}");
    }
}

#[test]
fn two_conversations_larger_than_the_cache_evict_each_other() {
    // 20 blocks each; the beginning of the older one outlives its end in what the other left over.
    for (blocks, cached) in [(21, 16), (30, 160), (40, 304)] {
        let mut scheduler = Scheduler::new(limits(blocks), cost());
        let mut last = 0;
        for turn in 0..6 {
            scheduler.submit(turn * 10_000 * MS, job(turn % 2 * 1000, 320, 1)).unwrap();
            last = run(&mut scheduler)[0].1.cached_tokens;
        }
        assert_eq!(last, cached, "{blocks} blocks");
    }
}

#[test]
fn concurrent_requests_share_blocks() {
    let mut scheduler = Scheduler::new(limits(12), cost());
    scheduler.submit(0, job(0, 161, 4)).unwrap();
    scheduler.submit(0, job(0, 161, 4)).unwrap();
    let seen = run(&mut scheduler);
    assert!(seen.iter().any(|(_, update)| update.id.0 == 1 && update.cached_tokens == 160));
    assert_eq!(scheduler.counters().preemptions, 0, "11 blocks and 1 more are enough for both");
}

#[test]
fn waiting_requests_are_admitted_in_order() {
    let mut scheduler = Scheduler::new(Limits { max_running: 1, ..limits(100) }, cost());
    for first in [0, 1000, 2000] {
        scheduler.submit(0, job(first, 100, 2)).unwrap();
    }
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
    assert_eq!(ends(&run(&mut scheduler)), [(0, 110), (1, 220), (2, 330)]);
}

#[test]
fn the_youngest_is_preempted_and_still_finishes() {
    let mut scheduler = Scheduler::new(limits(10), cost());
    scheduler.submit(0, job(0, 64, 40)).unwrap();
    scheduler.submit(0, job(1000, 64, 40)).unwrap();
    let seen = run(&mut scheduler);
    assert!(scheduler.counters().preemptions > 0, "2 x 7 blocks do not fit in 10");
    let order: Vec<u64> = ends(&seen).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [0, 1]);
    assert_eq!(scheduler.counters().generation_tokens, 80, "no token is produced twice");
}

#[test]
fn abort_frees_blocks_at_once_and_lets_others_in() {
    let mut scheduler = Scheduler::new(limits(10), cost());
    let running = scheduler.submit(0, job(0, 150, 10)).unwrap();
    let waiting = scheduler.submit(0, job(1000, 150, 10)).unwrap();
    let dropped = scheduler.submit(0, job(2000, 150, 10)).unwrap();
    assert_eq!((scheduler.running(), scheduler.waiting(), scheduler.cache().used()), (1, 2, 10));
    assert!(scheduler.abort(dropped) && scheduler.abort(running));
    assert!(!scheduler.abort(running), "only once");
    assert_eq!((scheduler.running(), scheduler.waiting(), scheduler.cache().used()), (0, 1, 0));
    let seen = run(&mut scheduler);
    assert_eq!(ends(&seen).first().map(|(id, _)| JobId(*id)), Some(waiting));
    assert_eq!((scheduler.counters().aborted, scheduler.counters().finished), (2, 1));
}

#[test]
fn what_can_never_run_is_refused() {
    let mut scheduler = Scheduler::new(limits(10), cost());
    assert_eq!(scheduler.submit(0, job(0, 160, 1)), Err(Refusal::TooLarge { needed: 161, capacity: 160 }));
    assert_eq!(scheduler.submit(0, job(0, 0, 1)), Err(Refusal::Empty));
    assert_eq!(scheduler.submit(0, job(0, 1, 0)), Err(Refusal::Empty));
    assert!(scheduler.submit(0, job(0, 159, 1)).is_ok());
    for _ in 0..WAITING_MAX {
        scheduler.submit(0, job(0, 159, 1)).unwrap();
    }
    assert_eq!(scheduler.submit(0, job(0, 159, 1)), Err(Refusal::QueueFull));
}

#[test]
fn prefix_cache_is_reset_only_when_idle() {
    let mut scheduler = Scheduler::new(limits(100), cost());
    scheduler.submit(0, job(0, 161, 1)).unwrap();
    assert!(!scheduler.reset_prefix_cache());
    run(&mut scheduler);
    assert!(scheduler.reset_prefix_cache());
    scheduler.submit(1000 * MS, job(0, 161, 1)).unwrap();
    assert_eq!(run(&mut scheduler)[0].1.cached_tokens, 0);
}

#[test]
fn unstreamed_decoding_needs_one_wake() {
    let mut scheduler = Scheduler::new(limits(1000), cost());
    scheduler.submit(0, Job { streamed: false, ..job(0, 100, 500) }).unwrap();
    let mut wakes = 0;
    let mut updates = Vec::new();
    while let Some(at) = scheduler.next_wake() {
        scheduler.advance(at, &mut updates);
        wakes += 1;
    }
    assert_eq!((wakes, updates.len()), (1, 1), "only its end can be seen");
}

/// The second prompt quotes what the first is still generating: each block that fills lessens what it lacks.
#[test]
fn a_blocked_request_gets_in_when_a_block_it_lacks_is_published() {
    let mut scheduler = Scheduler::new(limits(9), cost());
    scheduler.submit(0, Job { streamed: false, ..job(0, 64, 33) }).unwrap();
    scheduler.submit(0, job(0, 129, 1)).unwrap();
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1), "5 blocks lacking, 4 free");
    let seen = run(&mut scheduler);
    // The fifth block is full with the 16th generated token, computed by the 17th step: 64 ms + 15 steps, then
    // one step with 49 tokens of prefill.
    let first = seen.iter().find(|(_, update)| update.id.0 == 1).unwrap();
    assert_eq!((first.0 / MS, first.1.cached_tokens), (64 + 150 + 49, 80));
}

#[test]
fn streams_are_reported_in_grains_but_for_first_and_last_token() {
    let grain = Limits { stream_grain_ns: 100 * MS, ..limits(1000) };
    let mut scheduler = Scheduler::new(grain, cost());
    scheduler.submit(0, job(0, 95, 37)).unwrap();
    let produced: Vec<_> =
        run(&mut scheduler).iter().map(|(at, update)| (at / MS, update.produced)).collect();
    // A step of 10 ms; the grains are counted from the last report of all streams.
    assert_eq!(produced, [(95, 1), (105, 2), (205, 12), (305, 22), (405, 32), (455, 37)]);
}

#[derive(Clone, Debug)]
struct Load {
    limits: Limits,
    quadratic: bool,
    jobs: Vec<(u64, Job)>,
}

/// Prompts of a few families that share beginnings, in a cache that is often too small.
fn load() -> impl Strategy<Value = Load> {
    let one = (0..400_u64, 0..3_u64, 1..200_u32, 1..60_u32, any::<bool>());
    let jobs = proptest::collection::vec(one, 1..24);
    let shape = (17..60_u32, 8..300_u32, 1..6_u32, any::<bool>(), any::<bool>(), any::<bool>());
    (jobs, shape).prop_map(
        |(jobs, (blocks, max_batched_tokens, max_running, caching, generated, quadratic))| {
            let mut at = 0;
            let job =
                |(pause, family, prompt_tokens, output_tokens, streamed): (u64, u64, u32, u32, bool)| {
                    at += pause * MS + 1;
                    let hashes = u64::from((prompt_tokens + output_tokens) / 16);
                    let hash = |place: u64| BlockHash(if place < 3 { place } else { family * 1000 + place });
                    let hashes = (0..hashes).map(hash).collect();
                    (at, Job { prompt_tokens, output_tokens, hashes, streamed })
                };
            let limits = Limits {
                max_batched_tokens,
                max_running,
                prefix_caching: caching,
                cache_generated: generated,
                ..limits(blocks)
            };
            Load { limits, quadratic, jobs: jobs.into_iter().map(job).collect() }
        },
    )
}

/// Plays a load, calling `advance` at every wake if `every_wake`, and otherwise only before arrivals.
fn play(load: &Load, every_wake: bool) -> (Vec<Fate>, Scheduler) {
    let cost = load_cost(load);
    let mut scheduler = Scheduler::new(load.limits, cost);
    let mut fates = vec![Fate::default(); load.jobs.len()];
    let mut updates = Vec::new();
    let mut note = |at: u64, updates: &mut Vec<Update>| {
        for update in updates.drain(..) {
            let fate = &mut fates[naive::place(update.id)];
            fate.cached_tokens = Some(update.cached_tokens);
            fate.first_token_at.get_or_insert(at);
            if update.finished {
                fate.finished_at = Some(at);
            }
        }
    };
    for (at, job) in &load.jobs {
        while every_wake && let Some(wake) = scheduler.next_wake().filter(|wake| wake < at) {
            scheduler.advance(wake, &mut updates);
            note(wake, &mut updates);
        }
        scheduler.advance(*at, &mut updates);
        note(*at, &mut updates);
        scheduler.submit(*at, job.clone()).unwrap();
        scheduler.cache().audit().unwrap();
    }
    while let Some(wake) = scheduler.next_wake() {
        let wake = if every_wake { wake } else { u64::MAX / 2 };
        scheduler.advance(wake, &mut updates);
        note(wake, &mut updates);
    }
    (fates, scheduler)
}

fn load_cost(load: &Load) -> Cost {
    Cost { prefill_quadratic_s: if load.quadratic { 1e-6 } else { 0.0 }, ..cost() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn behaves_like_the_naive_scheduler(load in load()) {
        let expected = naive::play(load.limits, load_cost(&load), &load.jobs);
        let (seen, scheduler) = play(&load, true);
        for (place, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
            prop_assert_eq!(seen.cached_tokens, expected.cached_tokens, "job {}", place);
            prop_assert_eq!(seen.finished_at, expected.finished_at, "job {}", place);
            if load.jobs[place].1.streamed {
                prop_assert_eq!(seen.first_token_at, expected.first_token_at, "job {}", place);
            }
        }
        let preemptions: u32 = expected.iter().map(|fate| fate.preemptions).sum();
        prop_assert_eq!(scheduler.counters().preemptions, u64::from(preemptions));
    }

    /// Whoever wakes late finds the same history: same hits, same totals, same times to first token.
    #[test]
    fn waking_seldom_changes_no_history(load in load()) {
        let (often, mut one) = play(&load, true);
        let (seldom, mut other) = play(&load, false);
        prop_assert_eq!(one.counters(), other.counters());
        for (often, seldom) in often.iter().zip(&seldom) {
            prop_assert_eq!(often.cached_tokens, seldom.cached_tokens);
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        one.drain_first_tokens(&mut first);
        other.drain_first_tokens(&mut second);
        prop_assert_eq!(first, second);
    }

    #[test]
    fn everything_finishes_and_nothing_leaks(load in load()) {
        let (fates, scheduler) = play(&load, true);
        prop_assert!(fates.iter().all(|fate| fate.finished_at.is_some()));
        prop_assert_eq!((scheduler.cache().used(), scheduler.running(), scheduler.waiting()), (0, 0, 0));
        prop_assert_eq!(scheduler.cache().audit(), Ok(()));
        let outputs: u64 = load.jobs.iter().map(|(_, job)| u64::from(job.output_tokens)).sum();
        prop_assert_eq!(scheduler.counters().generation_tokens, outputs);
        for (fate, (_, job)) in fates.iter().zip(&load.jobs) {
            let cached = fate.cached_tokens.unwrap();
            prop_assert!(cached < job.prompt_tokens && cached % load.limits.block_tokens == 0);
        }
    }
}
