use crate::fleet::Submitted;
use crate::fleet::tests::{answered, at, chain, fleet_of, request};
use crate::{Decision, Fleet, Outcome, Settings};

/// Engines of 200 elements, 128 tokens each, at 1,000 tokens a second.
fn small(count: usize, waits_for_memory: bool) -> Fleet {
    let settings =
        Settings { default_prefill_tokens_per_s: 1_000.0, waits_for_memory, ..Settings::default() };
    let (mut fleet, ids) = fleet_of(count, settings);
    ids.into_iter().for_each(|id| fleet.set_kv_tokens(id, 200 * 128));
    fleet
}

fn go(fleet: &mut Fleet, chain: &[u64], now: f64) -> Decision {
    match fleet.submit(&request(chain), at(now)).unwrap() {
        Submitted::Go(decision) => decision,
        Submitted::Held(id) => panic!("held as {id:?}"),
    }
}

/// One engine that has answered in 60 s and now decodes a prompt of 150 elements, which is until 100.0; then, at 50.0,
/// comes one of so many elements.
fn beside_a_long_answer(waits_for_memory: bool, elements: u64) -> (Fleet, Decision, Submitted) {
    let mut fleet = small(1, waits_for_memory);
    let first = go(&mut fleet, &chain(1, 0, 10), 1.0);
    fleet.first_token(&first.ticket, at(2.28));
    fleet.finish(first.ticket, answered(1_280, 0), at(62.28));
    let running = go(&mut fleet, &chain(2, 0, 150), 70.0);
    fleet.first_token(&running.ticket, at(70.0 + running.miss_s));
    let then = fleet.submit(&request(&chain(3, 0, elements)), at(95.0)).unwrap();
    (fleet, running, then)
}

#[test]
fn who_does_not_fit_beside_what_runs_waits_for_its_end() {
    let (mut fleet, running, then) = beside_a_long_answer(true, 60);
    let Submitted::Held(id) = then else { panic!("{then:?}") };
    assert!(fleet.next_dispatch(at(99.0)).is_none());
    fleet.finish(running.ticket, answered(150 * 128, 0), at(100.0));
    let (went, decision) = fleet.next_dispatch(at(100.0)).unwrap();
    assert_eq!(went, id);
    fleet.finish(decision.unwrap().ticket, Outcome::Aborted, at(101.0));
    // Who fits goes at once, and so does everyone where engines do not wait: the controls.
    assert!(matches!(beside_a_long_answer(true, 40).2, Submitted::Go(_)));
    assert!(matches!(beside_a_long_answer(false, 60).2, Submitted::Go(_)));
}

#[test]
fn where_more_room_is_a_prompt_is_foreseen_to_begin_sooner() {
    let mut fleet = small(2, true);
    let warm = go(&mut fleet, &chain(1, 0, 10), 1.0);
    fleet.first_token(&warm.ticket, at(2.28));
    fleet.finish(warm.ticket, answered(1_280, 0), at(62.28));
    let running = [2, 3].map(|session| go(&mut fleet, &chain(session, 0, 150 - session), 70.0));
    running.iter().for_each(|decision| fleet.first_token(&decision.ticket, at(90.0)));
    let roomy = running.iter().find(|decision| decision.prompt_tokens == 147 * 128).unwrap().endpoint;
    let explained = fleet.explain(&request(&chain(4, 0, 80)), at(91.0));
    assert_eq!(explained[0].endpoint, roomy, "{explained:?}");
    assert!(0.0 < explained[0].wait_s && explained[0].wait_s < explained[1].wait_s, "{explained:?}");
}

/// A prompt that many share is in memory once.
#[test]
fn what_is_shared_counts_once() {
    let mut fleet = small(1, true);
    let mut decisions = Vec::new();
    for session in 0..10 {
        let now = 1.0 + 20.0 * session as f64;
        let decision = go(&mut fleet, &chain(session, 90, 100), now);
        fleet.first_token(&decision.ticket, at(now + decision.miss_s));
        decisions.push(decision);
    }
    let holder = fleet.slots[0].endpoint.as_ref().unwrap().holder;
    assert_eq!(fleet.index.in_use(holder), 90 + 10 * 10);
    for decision in decisions {
        fleet.finish(decision.ticket, Outcome::Aborted, at(300.0));
    }
    assert_eq!(fleet.index.in_use(holder), 0);
}

/// Somebody who needs all the memory, and small ones that go on coming: he is served once the limit is over.
#[test]
fn a_large_one_is_not_passed_for_ever() {
    let (mut fleet, running, then) = beside_a_long_answer(true, 199);
    let Submitted::Held(large) = then else { panic!("{then:?}") };
    assert!(!fleet.keeps_memory_free(0, at(96.0)), "not yet");
    assert!(fleet.keeps_memory_free(0, at(126.0)));
    let small = fleet.submit(&request(&chain(9, 0, 5)), at(126.0)).unwrap();
    assert!(matches!(small, Submitted::Held(_)), "{small:?}");
    fleet.finish(running.ticket, answered(150 * 128, 0), at(130.0));
    assert!(!fleet.keeps_memory_free(0, at(130.0)));
    let mut went = Vec::new();
    while let Some((id, decision)) = fleet.next_dispatch(at(130.0)) {
        went.push(id);
        let decision = decision.unwrap();
        fleet.first_token(&decision.ticket, at(131.0));
        fleet.finish(decision.ticket, Outcome::Aborted, at(131.0));
    }
    assert!(went.contains(&large), "{went:?}");
}
