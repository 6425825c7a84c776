use crate::fleet::tests::{at, chain, fleet_of, request};
use crate::{Decision, EndpointId, Fleet, HoldId, Outcome, PolicyKind, Settings, Submitted};

fn go(fleet: &mut Fleet, seed: u64, now: f64) -> Decision {
    match fleet.submit(&request(&chain(seed, 0, 2)), at(now)).unwrap() {
        Submitted::Go(decision) => decision,
        Submitted::Held(id) => panic!("held as {id:?}"),
    }
}

fn held(fleet: &mut Fleet, seed: u64, now: f64) -> HoldId {
    match fleet.submit(&request(&chain(seed, 0, 2)), at(now)).unwrap() {
        Submitted::Held(id) => id,
        Submitted::Go(decision) => panic!("went to {}", decision.name),
    }
}

fn end(fleet: &mut Fleet, decision: Decision, now: f64) {
    fleet.finish(decision.ticket, Outcome::FailedBeforeFirstByte, at(now));
}

fn most(fleet: &mut Fleet, ids: &[EndpointId], most: u32) {
    ids.iter().for_each(|id| fleet.set_max_in_flight(*id, Some(most)));
}

#[test]
fn a_full_endpoint_is_passed_over_and_waited_for_under_every_policy() {
    for policy in PolicyKind::ALL {
        let (mut fleet, ids) = fleet_of(2, Settings { policy, ..Settings::default() });
        most(&mut fleet, &ids, 2);
        // The same prompt, so that an unbounded choice would stay at one; far apart, so that nobody waits for prefill.
        let mut went: Vec<Decision> = (0..4).map(|n| go(&mut fleet, 7, 1.0 + 10.0 * f64::from(n))).collect();
        let at_first = went.iter().filter(|decision| decision.endpoint == ids[0]).count();
        assert_eq!(at_first, 2, "{policy}");

        let waits = held(&mut fleet, 7, 60.0);
        assert!(fleet.next_dispatch(at(60.0)).is_none(), "{policy}");
        let refused = fleet.route(&request(&chain(7, 0, 2)), at(60.0)).unwrap_err();
        assert_eq!(refused.full, 2, "{refused}");

        let gone = went.remove(0);
        let freed = gone.endpoint;
        end(&mut fleet, gone, 61.0);
        let (id, decision) = fleet.next_dispatch(at(61.0)).unwrap();
        let decision = decision.unwrap();
        assert_eq!((id, decision.endpoint), (waits, freed), "{policy}");
        went.push(decision);
        for decision in went {
            end(&mut fleet, decision, 62.0);
        }
    }
}

#[test]
fn whoever_waits_for_a_full_endpoint_goes_to_another_that_has_room() {
    let (mut fleet, ids) = fleet_of(2, Settings::default());
    most(&mut fleet, &ids, 1);
    let first = go(&mut fleet, 7, 1.0);
    let second = go(&mut fleet, 8, 1.0);
    // What it would find cached is at the first, so that it waits there.
    let waits = held(&mut fleet, 7, 1.0);
    let (home, other) = (first.endpoint, second.endpoint);
    end(&mut fleet, second, 2.0);
    let (id, decision) = fleet.next_dispatch(at(2.0)).unwrap();
    let decision = decision.unwrap();
    assert_eq!((id, decision.endpoint), (waits, other));
    assert_ne!(home, other);
    for decision in [first, decision] {
        end(&mut fleet, decision, 3.0);
    }
}

#[test]
fn who_waits_for_an_endpoint_that_fails_goes_elsewhere() {
    let slow = Settings { default_prefill_tokens_per_s: 1.0, ..Settings::default() };
    let (mut fleet, ids) = fleet_of(2, slow);
    let busy = [go(&mut fleet, 1, 1.0), go(&mut fleet, 2, 1.0)];
    let waits = [held(&mut fleet, 1, 1.0), held(&mut fleet, 2, 1.0)];
    fleet.set_avoided(ids[0], true);
    assert!(fleet.next_dispatch(at(1.0)).is_none());
    let queued = |fleet: &Fleet, n: usize| fleet.snapshot(at(1.0)).endpoints[n].held;
    assert_eq!((queued(&fleet, 0), queued(&fleet, 1)), (0, 2));
    // Idle and avoided: it steals nobody.
    let [first, second] = busy;
    let (bad, good) = if first.endpoint == ids[0] { (first, second) } else { (second, first) };
    end(&mut fleet, bad, 2.0);
    assert!(fleet.next_dispatch(at(2.0)).is_none());

    // Where all are to be avoided, none is.
    fleet.set_avoided(ids[1], true);
    let (id, decision) = fleet.next_dispatch(at(2.0)).unwrap();
    let decision = decision.unwrap();
    assert!(waits.contains(&id));
    assert_eq!(decision.endpoint, ids[0]);
    end(&mut fleet, decision, 3.0);
    end(&mut fleet, good, 3.0);
    let (_, decision) = fleet.next_dispatch(at(3.0)).unwrap();
    let decision = decision.unwrap();
    end(&mut fleet, decision, 4.0);
    assert_eq!(fleet.snapshot(at(4.0)).held, 0);
}

#[test]
fn who_comes_back_gets_its_share_by_and_by() {
    // By load alone: each takes half in the long run.
    let settings = Settings { policy: PolicyKind::RoundRobin, slow_start_s: 10.0, ..Settings::default() };
    let (mut fleet, ids) = fleet_of(2, settings);
    let mut all: Vec<Decision> = Vec::new();
    let count = |all: &[Decision]| all.iter().filter(|decision| decision.endpoint == ids[1]).count();
    fleet.returned(ids[1], at(100.0));
    for _ in 0..20 {
        all.push(go(&mut fleet, 1, 100.0));
    }
    assert_eq!(count(&all), 1);
    for _ in 0..20 {
        all.push(go(&mut fleet, 1, 105.0));
    }
    let half = count(&all);
    assert!((10..16).contains(&half), "{half}");
    // Over: it takes its turns again. The control is the first wave.
    let before = count(&all);
    for _ in 0..20 {
        all.push(go(&mut fleet, 1, 110.0));
    }
    assert_eq!(count(&all) - before, 10);
    for decision in all {
        end(&mut fleet, decision, 111.0);
    }
}

#[test]
fn a_pool_that_comes_back_as_a_whole_spares_nobody() {
    let (mut fleet, ids) = fleet_of(2, Settings { policy: PolicyKind::RoundRobin, ..Settings::default() });
    ids.iter().for_each(|id| fleet.returned(*id, at(1.0)));
    let all: Vec<Decision> = (0..20).map(|n| go(&mut fleet, n, 1.0)).collect();
    assert_eq!(all.iter().filter(|decision| decision.endpoint == ids[0]).count(), 10);
    for decision in all {
        end(&mut fleet, decision, 2.0);
    }
}
