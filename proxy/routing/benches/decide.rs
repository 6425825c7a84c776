//! What a decision costs: `route` and `finish` of a 1,000-element chain, by pool size.
//!
//! Run with `cargo bench -p larder-routing`. Besides the times it prints the bytes that the index takes per
//! (element, endpoint) entry in the state that was timed.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use larder_routing::{EndpointId, Fleet, Now, Outcome, RouteRequest, Settings};

const ELEMENTS: u64 = 1_000;
/// Elements that all sessions share: a system prompt with tools of 4,000 tokens.
const SHARED: u64 = 32;
/// Live sessions per endpoint.
const SESSIONS: u64 = 8;

fn chain(session: u64, length: u64) -> Vec<u64> {
    // Distinct odd multiples: good enough for hashes that nobody attacks.
    let own = (session + 1) << 32;
    let element = |i: u64| (if i < SHARED { i + 1 } else { own + i }).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..length).map(element).collect()
}

fn request(chain: &[u64]) -> RouteRequest<'_> {
    let prompt_bytes = chain.len() as u64 * 512;
    RouteRequest {
        chain,
        run_bytes: 512,
        prompt_bytes,
        media: 0,
        session: None,
        streamed: true,
        exclude: &[],
    }
}

fn turn(fleet: &mut Fleet, chain: &[u64], now: f64) -> EndpointId {
    let decision =
        fleet.route(&request(chain), Now::from_secs_f64(now)).expect("all endpoints are available");
    let endpoint = decision.endpoint;
    fleet.finish(decision.ticket, Outcome::Completed { usage: None }, Now::from_secs_f64(now));
    endpoint
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route_and_finish");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for endpoints in [4_u64, 64, 512] {
        let mut fleet = Fleet::new(Settings { default_kv_tokens: 2_000_000, ..Settings::default() });
        for endpoint in 0..endpoints {
            fleet.add_endpoint(&format!("http://10.0.{}.{}:8000", endpoint / 256, endpoint % 256), Now::ZERO);
        }
        let mut now = 0.0;
        // Sessions grow turn by turn, so that their chains lie in several segments, as they do live.
        for length in [250, 500, 750, ELEMENTS - 10] {
            for session in 0..endpoints * SESSIONS {
                turn(&mut fleet, &chain(session, length), now);
                now += 0.1;
            }
        }
        let entries: u64 = fleet.snapshot(Now::ZERO).endpoints.iter().map(|e| e.elements).sum();
        let bytes = fleet.snapshot(Now::ZERO).index_bytes;
        eprintln!(
            "{endpoints} endpoints: {entries} entries, {:.1} bytes each",
            bytes as f64 / entries as f64
        );

        let chains: Vec<_> = (0..endpoints * SESSIONS).map(|session| chain(session, ELEMENTS)).collect();
        let mut next = 0;
        group.bench_function(BenchmarkId::new("warm", endpoints), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % chains.len();
                now += 0.1;
                black_box(turn(&mut fleet, &chains[next], now))
            });
        });
        let mut fresh = 1 << 30;
        group.bench_function(BenchmarkId::new("cold", endpoints), |bencher| {
            bencher.iter_batched(
                || {
                    fresh += 1;
                    chain(fresh, ELEMENTS)
                },
                |chain| black_box(turn(&mut fleet, &chain, now)),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
