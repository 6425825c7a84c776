//! Memory as the allocator counts it. One test: another one in this process would be counted too.
#![allow(missing_docs)]

use std::alloc::System;

use larder_routing::{EndpointId, Fleet, Now, Outcome, PolicyKind, RouteRequest, Settings};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ELEMENTS: u64 = 500;
const BUDGET: usize = 32 << 20;

fn allocated() -> usize {
    let stats = COUNTING.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// A chat of `ELEMENTS` in five turns, entered turn by turn.
fn chat(fleet: &mut Fleet, session: u64) {
    let chain: Vec<u64> =
        (1..=ELEMENTS).map(|i| (session << 20 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    for turn in 1..=5 {
        let chain = &chain[..turn * ELEMENTS as usize / 5];
        let request = RouteRequest {
            chain,
            run_bytes: 512,
            prompt_bytes: chain.len() as u64 * 512,
            media: 0,
            session: Some(session),
            streamed: true,
            exclude: &[],
        };
        let decision = fleet.route(&request, Now::ZERO).expect("all are available");
        fleet.finish(decision.ticket, Outcome::Completed { usage: None }, Now::ZERO);
    }
}

fn elements(fleet: &Fleet) -> u64 {
    fleet.snapshot(Now::ZERO).endpoints.iter().map(|endpoint| endpoint.elements).sum()
}

#[test]
fn memory_is_counted_rightly_bounded_and_given_back() {
    let settings = Settings {
        policy: PolicyKind::SessionHash,
        index_bytes: BUDGET,
        default_kv_tokens: 1 << 40,
        ..Settings::default()
    };
    let before = allocated();
    let mut fleet = Fleet::new(settings);
    let ids: Vec<EndpointId> =
        (0..3).map(|i| fleet.add_endpoint(&format!("endpoint {i}"), Now::ZERO)).collect();
    let empty = allocated() - before;
    assert!(empty < 16 << 10, "an empty fleet takes {empty} bytes");

    (0..1_000).for_each(|session| chat(&mut fleet, session));
    let full = allocated() - before;
    let told = fleet.snapshot(Now::ZERO).index_bytes;
    assert_eq!(elements(&fleet), 1_000 * ELEMENTS);
    assert!(told.abs_diff(full) < full / 50 + (16 << 10), "told {told}, allocated {full}");
    let each = full as f64 / elements(&fleet) as f64;
    assert!(each < 16.0, "{each} bytes for each (element, endpoint)");

    // Each endpoint gives back its share, and all together everything.
    let share = fleet.snapshot(Now::ZERO).endpoints[0].elements as f64 / elements(&fleet) as f64;
    fleet.remove_endpoint(ids[0]);
    let left = allocated() - before;
    let returned = (full - left) as f64 / full as f64;
    assert!(returned > 0.95 * share, "{returned} returned of a share of {share}");
    fleet.remove_endpoint(ids[1]);
    fleet.cleared(ids[2]);
    let left = allocated() - before;
    assert!(left < full / 20, "{left} of {full} bytes left");
    fleet.remove_endpoint(ids[2]);

    // A million elements and more through a budget that holds a part of them.
    fleet.add_endpoint("endpoint 3", Now::ZERO);
    for session in 1_000..8_000 {
        chat(&mut fleet, session);
        let now = allocated() - before;
        assert!(now < BUDGET + (64 << 10), "{now} bytes allocated at session {session}");
    }
    assert!(elements(&fleet) > 1_000 * ELEMENTS);
    drop(fleet);
    assert!(allocated() - before < 1_024, "{} bytes leaked", allocated() - before);
}
