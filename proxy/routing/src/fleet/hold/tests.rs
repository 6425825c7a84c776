use super::*;
use crate::fleet::tests::{answered, at, chain, fleet_of, request};
use crate::{EndpointState, Outcome, Settings};

/// 128 tokens an element, at 1,000 tokens a second.
fn slow() -> Settings {
    Settings { default_prefill_tokens_per_s: 1_000.0, ..Settings::default() }
}

fn submit(fleet: &mut Fleet, chain: &[u64], now: f64) -> Submitted {
    fleet.submit(&request(chain), at(now)).unwrap()
}

fn go(submitted: Submitted) -> Decision {
    match submitted {
        Submitted::Go(decision) => decision,
        Submitted::Held(id) => panic!("held as {id:?}"),
    }
}

fn held(submitted: Submitted) -> HoldId {
    match submitted {
        Submitted::Held(id) => id,
        Submitted::Go(decision) => panic!("went to {}", decision.name),
    }
}

/// Serves a decision as an engine would whose cache is what the fleet believes; returns when it had its first token.
fn serve(fleet: &mut Fleet, decision: Decision, elements: u64, now: f64) -> f64 {
    let end = now + decision.miss_s;
    fleet.first_token(&decision.ticket, at(end));
    fleet.finish(decision.ticket, answered(elements * 128, decision.matched_tokens), at(end));
    end
}

#[test]
fn a_free_engine_never_waits() {
    let (mut fleet, _) = fleet_of(2, slow());
    let first = go(submit(&mut fleet, &chain(1, 0, 40), 1.0));
    let second = go(submit(&mut fleet, &chain(2, 0, 40), 1.0));
    assert_ne!(first.endpoint, second.endpoint);
    assert!(fleet.next_dispatch(at(1.0)).is_none());
    let third = held(submit(&mut fleet, &chain(3, 0, 40), 1.0));
    assert!(fleet.next_dispatch(at(1.0)).is_none(), "both are busy for another five seconds");
    let wake = fleet.next_wake(at(1.0)).unwrap().as_secs_f64();
    assert!((5.8..6.0).contains(&wake), "{wake}");
    let (id, decision) = fleet.next_dispatch(at(wake)).unwrap();
    let decision = decision.unwrap();
    assert_eq!((id, fleet.snapshot(at(wake)).held), (third, 0));
    assert!((decision.held_s - (wake - 1.0)).abs() < 1e-9, "{decision:?}");
    for decision in [first, second, decision] {
        fleet.finish(decision.ticket, Outcome::Aborted, at(9.0));
    }
}

/// Three come at one instant, the longest first: taken in together the shortest is served first, and one by one (the
/// negative control) whoever is first.
#[test]
fn of_those_who_come_together_the_shortest_goes_first() {
    let lengths = [400, 100, 20];
    let served = |together: bool| {
        let (mut fleet, _) = fleet_of(1, slow());
        let (mut now, mut order) = (1.0, Vec::new());
        let mut waiting: Vec<(HoldId, u64)> = Vec::new();
        for elements in lengths {
            let prompt = chain(elements, 0, elements);
            let submitted = match together {
                true => fleet.submit_together(&request(&prompt), at(now)).unwrap(),
                false => submit(&mut fleet, &prompt, now),
            };
            match submitted {
                Submitted::Held(id) => waiting.push((id, elements)),
                Submitted::Go(decision) => {
                    order.push(elements);
                    now = serve(&mut fleet, decision, elements, now);
                }
            }
        }
        while let Some((id, decision)) = fleet.next_dispatch(at(now)) {
            let (_, elements) = *waiting.iter().find(|(held, _)| *held == id).unwrap();
            order.push(elements);
            now = serve(&mut fleet, decision.unwrap(), elements, now);
        }
        order
    };
    assert_eq!(served(true), [20, 100, 400]);
    assert_eq!(served(false)[0], 400);
}

#[test]
fn together_or_not_a_free_engine_takes_whom_nobody_may_hold() {
    for settings in [Settings { max_held: 0, ..slow() }, Settings { hold_limit_s: 0.0, ..slow() }] {
        let (mut fleet, _) = fleet_of(1, settings);
        let decision = go(fleet.submit_together(&request(&chain(1, 0, 40)), at(1.0)).unwrap());
        fleet.finish(decision.ticket, Outcome::Aborted, at(1.0));
    }
}

/// One endpoint with a warm prompt, busy until the returned time; a miss waits from one second on, a hit from two.
fn busy_with_a_miss_and_a_hit(hold_limit_s: f64) -> (Fleet, f64, Decision, [HoldId; 2], Vec<u64>) {
    let (mut fleet, _) = fleet_of(1, Settings { hold_limit_s, ..slow() });
    let warm = chain(1, 0, 40);
    let decision = go(submit(&mut fleet, &warm, 1.0));
    let end = serve(&mut fleet, decision, 40, 1.0);
    let busy = go(submit(&mut fleet, &chain(2, 0, 200), end));
    let miss = held(submit(&mut fleet, &chain(3, 0, 100), end + 1.0));
    let hit = held(submit(&mut fleet, &warm, end + 2.0));
    (fleet, end, busy, [miss, hit], warm)
}

/// Everyone in the order of dispatch, each served at once.
fn order_of(fleet: &mut Fleet, now: f64) -> Vec<HoldId> {
    std::iter::from_fn(|| {
        let (id, decision) = fleet.next_dispatch(at(now))?;
        serve(fleet, decision.unwrap(), 100, now);
        Some(id)
    })
    .collect()
}

#[test]
fn hits_overtake_misses_within_the_limit() {
    let (mut fleet, begun, busy, [miss, hit], warm) = busy_with_a_miss_and_a_hit(30.0);
    let end = serve(&mut fleet, busy, 200, begun);
    assert!(end < begun + 30.0);
    let late_hit = held(submit(&mut fleet, &warm, end - 1.0));
    assert_eq!(order_of(&mut fleet, end), [hit, late_hit, miss]);
}

/// Beyond the limit the miss goes first, and those who come next have their share of the time before another late one.
#[test]
fn who_waited_beyond_the_limit_goes_first_for_a_share_of_the_time() {
    let (mut fleet, end, busy, [miss, hit], warm) = busy_with_a_miss_and_a_hit(8.0);
    let second = held(submit(&mut fleet, &chain(5, 0, 100), end + 3.0));
    let fresh = held(submit(&mut fleet, &warm, end + 24.0));
    let end = serve(&mut fleet, busy, 200, end);
    assert_eq!(order_of(&mut fleet, end), [miss, hit, fresh, second]);
    // Negative control: without a limit to speak of, the hits come first.
    let (mut fleet, end, busy, [miss, hit], warm) = busy_with_a_miss_and_a_hit(300.0);
    let second = held(submit(&mut fleet, &chain(5, 0, 100), end + 3.0));
    let fresh = held(submit(&mut fleet, &warm, end + 24.0));
    let end = serve(&mut fleet, busy, 200, end);
    assert_eq!(order_of(&mut fleet, end), [hit, fresh, miss, second]);
}

#[test]
fn an_idle_engine_steals_what_others_would_keep_waiting() {
    let (mut fleet, ids) = fleet_of(2, slow());
    let warm = chain(1, 0, 20);
    let decision = go(submit(&mut fleet, &warm, 1.0));
    let home = decision.endpoint;
    let end = serve(&mut fleet, decision, 20, 1.0);
    let other = *ids.iter().find(|id| **id != home).unwrap();
    // Both are busy: home for long, the other for longer.
    fleet.set_state(other, EndpointState::Draining);
    let long = go(submit(&mut fleet, &chain(2, 0, 400), end));
    fleet.set_state(other, EndpointState::Available);
    fleet.set_state(home, EndpointState::Draining);
    let longer = go(submit(&mut fleet, &chain(3, 0, 600), end));
    fleet.set_state(home, EndpointState::Available);
    let waits = held(submit(&mut fleet, &warm, end));
    assert_eq!(fleet.holds.len_at(home.slot), 1);
    // The other turns out to be free at once.
    fleet.finish(longer.ticket, Outcome::Aborted, at(end));
    let (id, decision) = fleet.next_dispatch(at(end)).unwrap();
    let decision = decision.unwrap();
    assert_eq!((id, decision.endpoint, decision.reason), (waits, other, Reason::Stolen));
    assert_eq!(fleet.snapshot(at(end)).stolen, 1);
    fleet.finish(decision.ticket, Outcome::Aborted, at(end));
    fleet.finish(long.ticket, Outcome::Aborted, at(end));
}

#[test]
fn an_endpoint_that_goes_leaves_nobody_behind() {
    let (mut fleet, ids) = fleet_of(2, slow());
    let running = [1, 2].map(|session| go(submit(&mut fleet, &chain(session, 0, 100), 1.0)));
    let waits = [3, 4].map(|session| held(submit(&mut fleet, &chain(session, 0, 100), 1.0)));
    fleet.remove_endpoint(ids[0]);
    assert!(fleet.next_dispatch(at(1.0)).is_none());
    assert_eq!(fleet.holds.len_at(ids[1].slot), 2);
    fleet.set_state(ids[1], EndpointState::Unavailable("gone".into()));
    let mut told: Vec<HoldId> = std::iter::from_fn(|| {
        let (id, decision) = fleet.next_dispatch(at(2.0))?;
        assert_eq!(decision.unwrap_err().unavailable, 1);
        Some(id)
    })
    .collect();
    told.sort();
    assert_eq!(told, waits);
    running.into_iter().for_each(|decision| fleet.finish(decision.ticket, Outcome::Aborted, at(3.0)));
    let end = fleet.snapshot(at(3.0));
    assert_eq!((end.held, end.held_bytes, end.in_flight), (0, 0, 0));
    assert_eq!(fleet.chain_bytes(), fleet.requests.chain_bytes());
}

#[test]
fn too_many_are_refused_and_told_when_to_come_back() {
    let settings = Settings { max_held: 1, ..slow() };
    let (mut fleet, _) = fleet_of(1, settings);
    let running = go(submit(&mut fleet, &chain(1, 0, 100), 1.0));
    let waits = held(submit(&mut fleet, &chain(2, 0, 100), 1.0));
    let refused = fleet.submit(&request(&chain(3, 0, 100)), at(1.0)).unwrap_err();
    let SubmitError::Full(full) = refused else { panic!("{refused}") };
    assert_eq!((full.held, full.max_held), (1, 1));
    assert!(full.retry_after_s > 12.0, "{full}");
    fleet.cancel(waits);
    fleet.cancel(waits);
    let next = held(submit(&mut fleet, &chain(3, 0, 100), 1.0));
    fleet.cancel(next);
    fleet.finish(running.ticket, Outcome::Aborted, at(2.0));
    assert_eq!((fleet.snapshot(at(2.0)).held, fleet.chain_bytes() - fleet.requests.chain_bytes()), (0, 0));
}

#[test]
fn nobody_is_held_where_holding_is_off() {
    let off: [(Settings, bool, bool); 4] = [
        (Settings { hold_limit_s: 0.0, ..slow() }, true, true),
        (Settings { policy: PolicyKind::MinTtft, ..slow() }, true, true),
        (slow(), false, true),
        (slow(), true, false),
    ];
    for (settings, whole, foreseen) in off {
        let (mut fleet, ids) = fleet_of(1, settings);
        fleet.set_view_is_whole(whole);
        if !foreseen {
            let endpoint = fleet.endpoint_mut(ids[0]).unwrap();
            (0..200).for_each(|_| endpoint.foresight.observe(1.0, 100.0));
        }
        for session in 0..4 {
            let decision = go(submit(&mut fleet, &chain(session, 0, 100), 1.0));
            std::mem::drop(decision);
        }
    }
}

#[test]
fn those_held_go_at_once_when_holding_ends() {
    let (mut fleet, _) = fleet_of(1, slow());
    let running = go(submit(&mut fleet, &chain(1, 0, 100), 1.0));
    let waits = held(submit(&mut fleet, &chain(2, 0, 100), 1.0));
    fleet.set_view_is_whole(false);
    let (id, decision) = fleet.next_dispatch(at(1.0)).unwrap();
    assert_eq!(id, waits);
    fleet.finish(decision.unwrap().ticket, Outcome::Aborted, at(1.0));
    fleet.finish(running.ticket, Outcome::Aborted, at(1.0));
}

/// Whatever happens in whatever order, everyone is named once, and everything is released.
#[test]
fn random_traffic_is_answered_once_each_and_leaves_nothing() {
    for seed in 0..20 {
        let mut random = crate::random::Random::new(seed);
        let (mut fleet, mut ids) = fleet_of(3, Settings { max_held: 40, ..slow() });
        let (mut waiting, mut running) = (Vec::new(), Vec::new());
        let mut now = 0.0;
        for step in 0..2_000_u64 {
            now += random.below(300) as f64 / 100.0;
            match random.below(10) {
                0..=4 => {
                    let prompt = chain(random.below(30) as u64, 5, 5 + random.below(60) as u64);
                    let submitted = match step % 3 {
                        0 => fleet.submit_together(&request(&prompt), at(now)),
                        _ => fleet.submit(&request(&prompt), at(now)),
                    };
                    match submitted {
                        Ok(Submitted::Go(decision)) => running.push(decision.ticket),
                        Ok(Submitted::Held(id)) => waiting.push(id),
                        Err(_) => {}
                    }
                }
                5 | 6 if !running.is_empty() => {
                    let ticket = running.swap_remove(random.below(running.len()));
                    fleet.first_token(&ticket, at(now));
                    fleet.finish(ticket, answered(1_000, 10), at(now));
                }
                7 if !waiting.is_empty() => fleet.cancel(waiting.swap_remove(random.below(waiting.len()))),
                8 if step % 7 == 0 => {
                    let pick = random.below(ids.len());
                    fleet.remove_endpoint(ids[pick]);
                    ids[pick] = fleet.add_endpoint(&format!("new {step}"), at(now));
                }
                9 => {
                    let state = match random.below(3) {
                        0 => EndpointState::Draining,
                        _ => EndpointState::Available,
                    };
                    fleet.set_state(ids[random.below(ids.len())], state);
                }
                _ => {}
            }
            while let Some((id, decision)) = fleet.next_dispatch(at(now)) {
                let place = waiting.iter().position(|other| *other == id).expect("named once");
                waiting.swap_remove(place);
                running.extend(decision.map(|decision| decision.ticket));
            }
            assert_eq!(fleet.snapshot(at(now)).held, waiting.len(), "seed {seed} step {step}");
            assert!(waiting.is_empty() || fleet.next_wake(at(now)).is_some_and(|wake| wake > at(now)));
        }
        waiting.into_iter().for_each(|id| fleet.cancel(id));
        running.into_iter().for_each(|ticket| fleet.finish(ticket, Outcome::Aborted, at(now)));
        let end = fleet.snapshot(at(now));
        assert_eq!((end.held, end.held_bytes, end.in_flight), (0, 0, 0));
        assert_eq!(fleet.holds.chain_bytes(), 0);
    }
}

/// On an engine that was seen to work on two prompts at the same time, a hit goes beside a miss, and a miss does not.
#[test]
fn a_hit_goes_beside_a_miss_where_the_engine_lets_it_pass() {
    let (mut fleet, ids) = fleet_of(1, slow());
    let warm = chain(1, 0, 40);
    let decision = go(submit(&mut fleet, &warm, 1.0));
    let mut now = serve(&mut fleet, decision, 40, 1.0);
    // The queue is off for once, so that a hit goes behind a miss, and its first token comes first.
    fleet.set_view_is_whole(false);
    let miss = go(submit(&mut fleet, &chain(2, 0, 400), now));
    let hit = go(submit(&mut fleet, &warm, now));
    fleet.first_token(&hit.ticket, at(now + 0.1));
    fleet.finish(hit.ticket, answered(40 * 128, 40 * 128), at(now + 0.1));
    now += 60.0;
    fleet.first_token(&miss.ticket, at(now));
    fleet.finish(miss.ticket, answered(400 * 128, 0), at(now));
    fleet.set_view_is_whole(true);
    assert_eq!(fleet.endpoint_mut(ids[0]).unwrap().load.width(), 2);

    let running = go(submit(&mut fleet, &chain(3, 0, 400), now));
    let waits = held(submit(&mut fleet, &chain(4, 0, 400), now));
    let beside = go(submit(&mut fleet, &warm, now));
    assert!(beside.wait_s < 1.0, "{beside:?}");
    let third = held(submit(&mut fleet, &warm, now));
    assert!(fleet.next_dispatch(at(now)).is_none(), "both places are taken");
    fleet.first_token(&beside.ticket, at(now + 0.1));
    assert_eq!(fleet.next_dispatch(at(now + 0.1)).map(|(id, _)| id), Some(third));
    fleet.cancel(waits);
    fleet.finish(beside.ticket, Outcome::Aborted, at(now));
    fleet.finish(running.ticket, Outcome::Aborted, at(now));
}
