//! `cargo bench` in this folder: answers compared, bytes an entry, then the time of queries and of events.

use std::alloc::System;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use larder_index_peers::fleet::{self, History};
use larder_index_peers::indexes::{Chains, Compressed, Larder, Peer, Radix};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/agentic_sample.jsonl.xz");
/// Blocks of 64 tokens that each endpoint holds: a million tokens.
const BLOCKS: usize = 16_384;
/// The part of the trace that fills the fleet; queries are the next turns of its sessions.
const WARM: f64 = 0.6;
/// Queries that each measurement goes through in turn.
const QUERIES: usize = 64;

fn allocated() -> usize {
    let stats = COUNTING.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn filled<P: Peer>(history: &History, endpoints: u32) -> P {
    let mut index = P::new(endpoints, BLOCKS as u64);
    for event in &history.events {
        index.apply(P::news(event, &history.chains[event.chain]));
    }
    index.settle();
    index
}

/// The chains after the warm-up whose lengths are nearest to a share of all lengths.
fn queries(history: &History, share: f64) -> Vec<usize> {
    let mut lengths: Vec<usize> = history.chains.iter().map(|chain| chain.elements.len()).collect();
    lengths.sort_unstable();
    let length = lengths[(share * (lengths.len() - 1) as f64) as usize];
    let mut nearest: Vec<usize> = (history.events.len()..history.chains.len()).collect();
    nearest.sort_by_key(|&number| history.chains[number].elements.len().abs_diff(length));
    nearest.truncate(QUERIES);
    eprintln!("  {} queries of about {length} blocks", nearest.len());
    nearest
}

fn compared<P: Peer>(history: &History, asked: &[usize], index: &mut P, expected: &mut Vec<Vec<(u32, u32)>>) {
    let answers: Vec<_> = asked.iter().map(|&number| index.all(P::query(&history.chains[number]))).collect();
    if expected.is_empty() {
        *expected = answers;
        return;
    }
    let different = answers.iter().zip(&*expected).filter(|(a, b)| a != b).count();
    eprintln!("  {}: {different} of {} answers differ from the first index's", P::NAME, asked.len());
}

fn one<P: Peer>(
    criterion: &mut Criterion,
    history: &History,
    endpoints: u32,
    expected: &mut Vec<Vec<(u32, u32)>>,
) {
    let before = allocated();
    let mut index: P = filled(history, endpoints);
    let bytes = (allocated() - before) as f64;
    eprintln!(
        "  {}: {:.1} bytes an entry, {:.1} a distinct block",
        P::NAME,
        bytes / history.entries as f64,
        bytes / history.distinct as f64
    );
    let (median, long) = (queries(history, 0.5), queries(history, 0.99));
    let asked: Vec<usize> = (history.events.len()..history.chains.len()).step_by(3).collect();
    compared(history, &asked, &mut index, expected);
    for (kind, numbers) in [("median", &median), ("p99", &long)] {
        let queries: Vec<P::Query> =
            numbers.iter().map(|&number| P::query(&history.chains[number])).collect();
        let mut group = criterion.benchmark_group(format!("query/{kind}/{endpoints}"));
        group
            .sample_size(30)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(P::NAME), |bencher| {
            bencher.iter_batched(
                || {
                    next = (next + 1) % queries.len();
                    queries[next].clone()
                },
                |query| black_box(index.longest(query)),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
    drop(index);
    let mut group = criterion.benchmark_group(format!("events/{endpoints}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
    let fill = |history: &History| -> Vec<P::News> {
        history.events.iter().map(|event| P::news(event, &history.chains[event.chain])).collect()
    };
    group.bench_function(BenchmarkId::from_parameter(P::NAME), |bencher| {
        bencher.iter_batched(
            || (P::new(endpoints, BLOCKS as u64), fill(history)),
            |(mut index, news)| {
                news.into_iter().for_each(|news| index.apply(news));
                index.settle();
                index
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    for endpoints in [8, 64, 512] {
        let history = fleet::play(Path::new(TRACE), endpoints, BLOCKS, WARM);
        let stored: usize =
            history.events.iter().map(|event| history.chains[event.chain].elements.len() - event.held).sum();
        let removed: usize = history.events.iter().map(|event| event.removed.len()).sum();
        eprintln!(
            "{endpoints} endpoints: {} requests store {stored} and evict {removed} blocks; {} entries, {} distinct",
            history.events.len(),
            history.entries,
            history.distinct
        );
        let mut expected = Vec::new();
        one::<Chains>(criterion, &history, endpoints, &mut expected);
        one::<Radix>(criterion, &history, endpoints, &mut expected);
        one::<Compressed>(criterion, &history, endpoints, &mut expected);
        one::<Larder>(criterion, &history, endpoints, &mut expected);
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
