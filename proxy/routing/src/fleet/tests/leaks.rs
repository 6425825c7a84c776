//! Whatever happens, in whatever order: at the end nothing is in flight, owed or pinned.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Route { session: u64, length: u64, streamed: bool },
    FirstToken { request: usize },
    Finish { request: usize, outcome: u8 },
    Clear { endpoint: usize },
    Remove { endpoint: usize },
    Add,
    Drain { endpoint: usize, on: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_u64, 1..40_u64, any::<bool>())
            .prop_map(|(session, length, streamed)| Step::Route { session, length, streamed }),
        4 => (0..10_usize).prop_map(|request| Step::FirstToken { request }),
        5 => (0..10_usize, 0..4_u8).prop_map(|(request, outcome)| Step::Finish { request, outcome }),
        1 => (0..4_usize).prop_map(|endpoint| Step::Clear { endpoint }),
        1 => (0..4_usize).prop_map(|endpoint| Step::Remove { endpoint }),
        1 => Just(Step::Add),
        1 => (0..4_usize, any::<bool>()).prop_map(|(endpoint, on)| Step::Drain { endpoint, on }),
    ]
}

fn outcome(kind: u8, decision: &Decision) -> Outcome {
    match kind {
        0 => Outcome::FailedBeforeFirstByte,
        1 => Outcome::Aborted,
        2 => Outcome::Completed { usage: None },
        _ => answered(decision.prompt_tokens, decision.matched_tokens / 2),
    }
}

/// Applies a step at any instant, earlier or later than the one before.
fn apply(fleet: &mut Fleet, flying: &mut Vec<Decision>, names: &mut u32, step: Step, now: Now) {
    let nth = |fleet: &Fleet, n: usize| fleet.endpoints().map(|(id, _)| id).nth(n);
    match step {
        Step::Route { session, length, streamed } => {
            let long = chain(session, 4, length);
            flying.extend(fleet.route(&RouteRequest { streamed, ..request(&long) }, now));
        }
        Step::FirstToken { request } => {
            if let Some(decision) = flying.get(request) {
                fleet.first_token(&decision.ticket, now);
            }
        }
        Step::Finish { request, outcome: kind } => {
            if request < flying.len() {
                let decision = flying.swap_remove(request);
                let outcome = outcome(kind, &decision);
                fleet.finish(decision.ticket, outcome, now);
            }
        }
        Step::Clear { endpoint } => {
            if let Some(id) = nth(fleet, endpoint) {
                fleet.cleared(id);
            }
        }
        Step::Remove { endpoint } => {
            if let Some(id) = nth(fleet, endpoint) {
                fleet.remove_endpoint(id);
            }
        }
        Step::Add => {
            *names += 1;
            fleet.add_endpoint(&format!("added {names}"), now);
        }
        Step::Drain { endpoint, on } => {
            if let Some(id) = nth(fleet, endpoint) {
                fleet.set_state(id, if on { EndpointState::Draining } else { EndpointState::Available });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_interleavings_end_at_nothing(
        steps in proptest::collection::vec((step(), 0.0..100.0_f64), 1..150),
        policy in 0..4_usize,
        budget in prop_oneof![Just(0_usize), Just(24 << 10), Just(1 << 20)],
    ) {
        let settings = Settings {
            policy: PolicyKind::ALL[policy],
            index_bytes: budget,
            default_kv_tokens: 60 * ELEMENT,
            ..Settings::default()
        };
        let (mut fleet, _) = fleet_of(3, settings);
        let (mut flying, mut names) = (Vec::new(), 0);
        for (step, seconds) in steps {
            apply(&mut fleet, &mut flying, &mut names, step, at(seconds));
            let stats = fleet.snapshot(at(seconds));
            prop_assert_eq!(stats.in_flight, flying.len());
            prop_assert!(stats.price.is_finite() && stats.price >= 1.0);
            for endpoint in &stats.endpoints {
                prop_assert!(endpoint.wait_s.is_finite() && endpoint.wait_s >= 0.0);
                prop_assert!(endpoint.prefill_tokens_per_s.is_finite() && endpoint.prefill_tokens_per_s > 0.0);
            }
        }
        for (turn, decision) in flying.drain(..).enumerate() {
            let outcome = outcome(turn as u8 % 4, &decision);
            fleet.finish(decision.ticket, outcome, at(50.0));
        }
        let stats = fleet.snapshot(at(50.0));
        prop_assert_eq!(stats.in_flight, 0);
        for endpoint in &stats.endpoints {
            prop_assert_eq!((endpoint.in_flight, endpoint.uncached_tokens), (0, 0));
            prop_assert_eq!(endpoint.wait_s, 0.0);
        }
        prop_assert_eq!(fleet.index.pinned_bytes(), 0);
        let ids: Vec<EndpointId> = fleet.endpoints().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| fleet.remove_endpoint(id));
        fleet.index.clear(fleet.ghost);
        prop_assert_eq!(fleet.index.segments(), 0);
    }
}

/// Without endpoints nothing is known, and nothing is kept for it: the bytes are those of a fleet that never knew any.
#[test]
fn the_last_endpoint_takes_the_memory_with_it() {
    let mut fleet = Fleet::new(Settings::default());
    let life = |fleet: &mut Fleet, sessions: u64| {
        let ids: Vec<_> =
            (0..1 + sessions % 50).map(|n| fleet.add_endpoint(&format!("endpoint {n}"), Now::ZERO)).collect();
        let mut flying: Vec<_> = (0..sessions)
            .filter_map(|session| fleet.route(&request(&chain(session, 4, 1 + session % 30)), Now::ZERO).ok())
            .collect();
        // The order in which they go decides how much room vectors keep.
        while let Some(decision) = (!flying.is_empty()).then(|| flying.swap_remove(flying.len() * 2 / 3)) {
            let outcome = answered(decision.prompt_tokens, 0);
            fleet.finish(decision.ticket, outcome, Now::ZERO);
        }
        ids.into_iter().for_each(|id| fleet.remove_endpoint(id));
        fleet.snapshot(Now::ZERO).index_bytes
    };
    let once = life(&mut fleet, 1);
    assert_eq!([life(&mut fleet, 400), life(&mut fleet, 37)], [once; 2]);
}
