//! What answers teach.

use super::*;

/// Fills one endpoint of 1,000 elements with 10 chats of 100 elements each.
fn full_endpoint() -> (Fleet, EndpointId) {
    let (mut fleet, ids) =
        fleet_of(1, Settings { default_kv_tokens: 1_000 * ELEMENT, ..Settings::default() });
    for session in 0..10 {
        turn(&mut fleet, &chain(session, 0, 100), session as f64);
    }
    assert_eq!(fleet.snapshot(at(99.0)).endpoints[0].elements, 1_000);
    (fleet, ids[0])
}

fn answer(fleet: &mut Fleet, chain: &[u64], cached: u64) {
    let decision = fleet.route(&request(chain), at(50.0)).unwrap();
    fleet.finish(decision.ticket, answered(chain.len() as u64 * ELEMENT, cached), at(50.0));
}

fn capacity(fleet: &Fleet) -> u64 {
    fleet.snapshot(at(0.0)).endpoints[0].kv_tokens
}

#[test]
fn a_full_cache_that_lost_more_than_modelled_is_smaller() {
    let (mut fleet, id) = full_endpoint();
    let reported = capacity(&fleet);
    answer(&mut fleet, &chain(5, 0, 100), 90 * ELEMENT);
    assert_eq!(capacity(&fleet), (reported as f64 * 0.99).round() as u64);
    let smaller = capacity(&fleet);
    answer(&mut fleet, &chain(9, 0, 100), 96 * ELEMENT);
    assert_eq!(capacity(&fleet), smaller, "within a sixteenth is right");
    for _ in 0..2_000 {
        answer(&mut fleet, &chain(5, 0, 100), 0);
    }
    assert_eq!(capacity(&fleet), reported / 8, "bounded");
    fleet.set_kv_tokens(id, reported);
    assert_eq!(capacity(&fleet), reported);
}

#[test]
fn a_cache_with_room_that_lost_something_is_no_smaller() {
    let (mut fleet, _) = fleet_of(1, Settings::default());
    let before = capacity(&fleet);
    turn(&mut fleet, &chain(1, 0, 100), 1.0);
    answer(&mut fleet, &chain(1, 0, 100), 0);
    assert_eq!(capacity(&fleet), before, "lost by a restart, not for lack of room");
}

#[test]
fn a_cache_that_kept_more_than_modelled_is_larger() {
    let (mut fleet, _) = full_endpoint();
    let before = capacity(&fleet);
    answer(&mut fleet, &chain(77, 0, 100), 50 * ELEMENT);
    assert_eq!(
        capacity(&fleet),
        before,
        "never seen here: those are tokens it generated, or another proxy's"
    );
    turn(&mut fleet, &chain(78, 0, 100), 60.0);
    answer(&mut fleet, &chain(0, 0, 100), 100 * ELEMENT);
    assert!(capacity(&fleet) > before, "modelled as evicted, and yet there");
}

#[test]
fn what_a_warehouse_put_there_is_not_the_engines_own() {
    let (mut fleet, _) = full_endpoint();
    let before = capacity(&fleet);
    turn(&mut fleet, &chain(78, 0, 100), 60.0);
    let long = chain(0, 0, 100);
    let decision = fleet.route(&request(&long), at(61.0)).unwrap();
    fleet.staged(&decision.ticket);
    fleet.finish(decision.ticket, answered(100 * ELEMENT, 100 * ELEMENT), at(61.0));
    assert_eq!(capacity(&fleet), before, "the test above shows that it would have grown");
}

#[test]
fn predictions_and_answers_are_summed() {
    let (mut fleet, _) = fleet_of(1, Settings::default());
    turn(&mut fleet, &chain(1, 0, 100), 1.0);
    answer(&mut fleet, &chain(1, 0, 100), 60 * ELEMENT);
    let stats = &fleet.snapshot(at(0.0)).endpoints[0];
    assert_eq!((stats.predicted_cached_tokens, stats.actual_cached_tokens), (100 * ELEMENT, 60 * ELEMENT));
    // An answer that does not tell its cached tokens counts on neither side.
    let decision = fleet.route(&request(&chain(1, 0, 100)), at(3.0)).unwrap();
    let usage = Some(Usage { prompt_tokens: 12_800, cached_tokens: None });
    fleet.finish(decision.ticket, Outcome::Completed { usage }, at(4.0));
    assert_eq!(fleet.snapshot(at(0.0)).endpoints[0].predicted_cached_tokens, 100 * ELEMENT);
}

/// An engine that restarts behind our back: each chat is promised a hit once in vain, and is right from then on.
#[test]
fn an_unannounced_restart_heals_with_one_answer_per_chat() {
    let (mut fleet, _) = fleet_of(2, Settings::default());
    let homes: Vec<EndpointId> = (0..8).map(|s| turn(&mut fleet, &chain(s, 0, 50), s as f64).0).collect();
    let mut wrong = 0;
    for round in 0..3 {
        for session in 0..8 {
            let long = chain(session, 0, 50 + round);
            let decision = fleet.route(&request(&long), at(100.0 + session as f64)).unwrap();
            assert_eq!(
                decision.endpoint, homes[session as usize],
                "it will have it again: no reason to move"
            );
            let actual = if round == 0 { 0 } else { (49 + round) * ELEMENT };
            wrong += u32::from(decision.matched_tokens != actual);
            fleet.finish(
                decision.ticket,
                answered((50 + round) * ELEMENT, actual),
                at(101.0 + session as f64),
            );
        }
    }
    assert_eq!(wrong, 8);
}

/// An engine that keeps nothing (prefix caching off): promises stop, and so does the pull of that endpoint.
#[test]
fn an_engine_that_keeps_nothing_loses_its_trust() {
    let (mut fleet, ids) = fleet_of(1, Settings::default());
    for turn in 0..120 {
        answer(&mut fleet, &chain(turn % 4, 0, 50), 0);
    }
    let stats = fleet.snapshot(at(0.0)).endpoints[0].clone();
    assert!(stats.kept_promises < 0.5, "{stats:?}");
    assert_eq!(stats.trust, crate::Trust::Broken);
    let decision = fleet.route(&request(&chain(1, 0, 50)), at(60.0)).unwrap();
    assert_eq!(decision.matched_tokens, 0);
    fleet.finish(decision.ticket, answered(50 * ELEMENT, 0), at(61.0));
    // Caching was turned on after all: its answers win the trust back.
    for turn in 0..200 {
        answer(&mut fleet, &chain(turn % 4, 0, 50), 50 * ELEMENT);
    }
    let stats = fleet.snapshot(at(0.0)).endpoints[0].clone();
    assert!(stats.kept_promises > 0.9, "{stats:?}");
    assert_eq!(stats.trust, crate::Trust::Estimated);
    assert_eq!(fleet.explain(&request(&chain(1, 0, 50)), at(70.0))[0].matched_tokens, 50 * ELEMENT);
    assert_eq!(ids.len(), 1);
}

#[test]
fn streamed_answers_teach_speed_and_unstreamed_ones_never_do() {
    let rate = |streamed| {
        let (mut fleet, _) = fleet_of(1, Settings::default());
        for session in 0..200 {
            let long = chain(session, 0, 10 + session % 30);
            let tokens = long.len() as u64 * ELEMENT;
            let begun = session as f64 * 100.0;
            let decision = fleet.route(&RouteRequest { streamed, ..request(&long) }, at(begun)).unwrap();
            let first = begun + tokens as f64 / 2_000.0;
            fleet.first_token(&decision.ticket, at(first));
            fleet.finish(decision.ticket, answered(tokens, 0), at(first + 30.0));
        }
        fleet.snapshot(at(0.0)).endpoints[0].prefill_tokens_per_s
    };
    assert!((rate(true) / 2_000.0 - 1.0).abs() < 0.1, "{}", rate(true));
    assert!((rate(false) - 8_000.0).abs() < 1e-6, "{}", rate(false));
}

#[test]
fn bytes_per_token_follow_the_engines_count() {
    let (mut fleet, _) = fleet_of(1, Settings::default());
    for session in 0..200 {
        let long = chain(session, 0, 100);
        let decision = fleet.route(&request(&long), at(1.0)).unwrap();
        fleet.finish(decision.ticket, answered(100 * 512 / 3, 0), at(2.0));
    }
    assert!((fleet.snapshot(at(0.0)).bytes_per_token - 3.0).abs() < 0.05);
    let decision = fleet.route(&request(&chain(900, 0, 100)), at(3.0)).unwrap();
    assert!(decision.prompt_tokens.abs_diff(100 * 512 / 3) < 300);
    fleet.finish(decision.ticket, Outcome::Aborted, at(3.0));
}
