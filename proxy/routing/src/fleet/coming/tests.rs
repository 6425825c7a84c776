use super::*;
use crate::fleet::Submitted;
use crate::fleet::tests::{answered, at, chain, fleet_of, request};
use crate::{Decision, EndpointState, Outcome, Settings};
use proptest::prelude::*;

/// 128 tokens an element, at 1,000 tokens a second.
fn slow() -> Settings {
    Settings { default_prefill_tokens_per_s: 1_000.0, ..Settings::default() }
}

fn go(fleet: &mut Fleet, chain: &[u64], now: f64) -> Decision {
    match fleet.submit(&request(chain), at(now)).unwrap() {
        Submitted::Go(decision) => decision,
        Submitted::Held(id) => panic!("held as {id:?}"),
    }
}

fn held(fleet: &mut Fleet, chain: &[u64], now: f64) -> HoldId {
    match fleet.submit(&request(chain), at(now)).unwrap() {
        Submitted::Held(id) => id,
        Submitted::Go(decision) => panic!("went to {}", decision.name),
    }
}

/// Two busy endpoints, and three turns of one session that wait: the first turn, another session's, the second turn.
fn two_turns(second: &[u64]) -> (Fleet, [Decision; 2], [HoldId; 3]) {
    let (mut fleet, _) = fleet_of(2, slow());
    let busy = [1, 2].map(|other| go(&mut fleet, &chain(other, 0, 80), 1.0));
    let first = held(&mut fleet, &chain(3, 0, 100), 1.0);
    let other = held(&mut fleet, &chain(4, 0, 60), 1.0);
    let then = held(&mut fleet, second, 2.0);
    (fleet, busy, [first, other, then])
}

fn queue_of(fleet: &mut Fleet, id: HoldId) -> u32 {
    fleet.holds.queued_mut(id).unwrap().0
}

#[test]
fn a_session_waits_where_its_last_turn_waits_and_goes_right_behind_it() {
    let (mut fleet, busy, [first, other, then]) = two_turns(&chain(3, 0, 110));
    assert_ne!(queue_of(&mut fleet, first), queue_of(&mut fleet, other));
    assert_eq!(queue_of(&mut fleet, then), queue_of(&mut fleet, first));
    for decision in busy {
        fleet.first_token(&decision.ticket, at(11.0));
        fleet.finish(decision.ticket, answered(80 * 128, 0), at(11.0));
    }
    let mut went = Vec::new();
    let mut now = 11.0;
    while let Some((id, decision)) = fleet.next_dispatch(at(now)).or_else(|| {
        now = fleet.next_wake(at(now))?.as_secs_f64();
        fleet.next_dispatch(at(now))
    }) {
        let decision = decision.unwrap();
        went.push((id, decision.endpoint, decision.matched_tokens));
        fleet.first_token(&decision.ticket, at(now + decision.miss_s));
        fleet.finish(decision.ticket, Outcome::Aborted, at(now + decision.miss_s));
    }
    let of = |id| *went.iter().find(|(went, ..)| *went == id).unwrap();
    assert_eq!((of(then).1, of(then).2), (of(first).1, 100 * 128), "{went:?}");
    // The control: another session of that length takes the shorter queue.
    let (mut fleet, _, [_, other, then]) = two_turns(&chain(5, 0, 110));
    assert_eq!(queue_of(&mut fleet, then), queue_of(&mut fleet, other));
}

#[test]
fn who_becomes_a_hit_passes_who_came_before() {
    let (mut fleet, _) = fleet_of(1, slow());
    let busy = go(&mut fleet, &chain(1, 0, 80), 1.0);
    let first = held(&mut fleet, &chain(3, 0, 100), 1.0);
    let other = held(&mut fleet, &chain(4, 0, 100), 1.5);
    let then = held(&mut fleet, &chain(3, 0, 110), 2.0);
    fleet.first_token(&busy.ticket, at(11.0));
    fleet.finish(busy.ticket, answered(80 * 128, 0), at(11.0));
    let mut order = Vec::new();
    let mut now = 11.0;
    while let Some((id, decision)) = fleet.next_dispatch(at(now)) {
        let decision = decision.unwrap();
        order.push(id);
        now += decision.miss_s;
        fleet.first_token(&decision.ticket, at(now));
        fleet.finish(decision.ticket, Outcome::Aborted, at(now));
    }
    assert_eq!(order, [first, then, other]);
}

#[test]
fn what_never_came_leaves_nothing() {
    let (mut fleet, busy, ids) = two_turns(&chain(3, 0, 110));
    let holder = |fleet: &Fleet, slot: usize| fleet.slots[slot].endpoint.as_ref().unwrap().queued;
    assert!((0..2).all(|slot| holder(&fleet, slot).is_some_and(|holder| fleet.index.held(holder) > 0)));
    ids.into_iter().for_each(|id| fleet.cancel(id));
    assert!((0..2).all(|slot| holder(&fleet, slot).is_some_and(|holder| fleet.index.held(holder) == 0)));
    for decision in busy {
        fleet.finish(decision.ticket, Outcome::FailedBeforeFirstByte, at(12.0));
    }
    assert_eq!(fleet.index.pinned_bytes(), 0);
}

proptest! {
    /// Whatever happens to those who wait, what the index says is on its way is what waits, no more and no less.
    #[test]
    fn what_is_announced_is_what_waits(steps in prop::collection::vec((0u8..8, 0u64..6, 1u64..60), 1..60)) {
        let (mut fleet, ids) = fleet_of(3, Settings { hold_limit_s: 5.0, ..slow() });
        let (mut now, mut waiting, mut running) = (1.0, Vec::new(), Vec::new());
        for (step, session, length) in steps {
            let id = ids[session as usize % 3];
            match step {
                0..=3 => match fleet.submit(&request(&chain(session, 2, length)), at(now)) {
                    Ok(Submitted::Go(decision)) => running.push(decision),
                    Ok(Submitted::Held(id)) => waiting.push(id),
                    Err(_) => {}
                },
                4 => if let Some(id) = waiting.pop() { fleet.cancel(id) },
                5 => if let Some(decision) = running.pop() {
                    fleet.first_token(&decision.ticket, at(now));
                    fleet.finish(decision.ticket, answered(length * 128, 0), at(now));
                },
                6 => fleet.set_state(id, EndpointState::Draining),
                _ => fleet.set_state(id, EndpointState::Available),
            }
            now += length as f64 / 20.0;
            while let Some((id, decision)) = fleet.next_dispatch(at(now)) {
                waiting.retain(|waits| *waits != id);
                running.extend(decision);
            }
            for slot in 0..3u32 {
                let mut all: Vec<u64> =
                    fleet.holds.at(slot).flat_map(|(_, held)| held.chain.iter().copied()).collect();
                all.sort_unstable();
                all.dedup();
                let queued = fleet.slots[slot as usize].endpoint.as_ref().unwrap().queued;
                prop_assert_eq!(queued.map_or(0, |holder| fleet.index.held(holder)), all.len() as u64);
            }
        }
    }
}
