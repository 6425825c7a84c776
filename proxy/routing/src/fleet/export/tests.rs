use std::collections::BTreeMap;

use super::*;
use crate::fleet::tests::{answered, at, chain, fleet_of, request};
use crate::{Decision, Outcome, PolicyKind, RouteRequest, Settings};

const RUN_BYTES: u32 = 512;

/// Everything that is exported, in steps of `most` elements.
fn exported(fleet: &Fleet, most: usize) -> Vec<(String, Vec<u64>)> {
    let mut all = Vec::new();
    let mut next = Some(ExportCursor::START);
    while let Some(from) = next {
        next = fleet.export(from, most, |name, elements| all.push((name.to_owned(), elements.to_vec())));
    }
    all
}

fn total(pieces: &[(String, Vec<u64>)]) -> BTreeMap<String, usize> {
    let mut total = BTreeMap::new();
    for (name, elements) in pieces {
        *total.entry(name.clone()).or_default() += elements.len();
    }
    total
}

fn serve(fleet: &mut Fleet, request: &RouteRequest<'_>, now: f64) {
    let Decision { ticket, matched_tokens, .. } = fleet.route(request, at(now)).unwrap();
    fleet.first_token(&ticket, at(now));
    fleet.finish(ticket, answered(request.chain.len() as u64 * 128, matched_tokens), at(now));
}

fn used() -> Fleet {
    // Each endpoint gets some of them.
    let (mut fleet, _) = fleet_of(3, Settings { policy: PolicyKind::RoundRobin, ..Settings::default() });
    for n in 0..60 {
        // Sessions with a common beginning, some of them twice.
        serve(&mut fleet, &request(&chain(n % 40, 8, 20 + n % 7)), n as f64);
    }
    fleet
}

/// What each endpoint holds of each session.
fn view(fleet: &Fleet) -> Vec<(String, u64)> {
    let mut view = Vec::new();
    for session in 0..40 {
        let chain = chain(session, 8, 27);
        let mut candidates = fleet.explain(&request(&chain), at(100.0));
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
        view.extend(candidates.iter().map(|c| (c.name.to_string(), c.matched_tokens)));
    }
    view
}

#[test]
fn another_fleet_believes_the_same_afterwards() {
    let fleet = used();
    for most in [1, 7, 100, usize::MAX] {
        let mut pieces = exported(&fleet, most);
        let held: BTreeMap<String, usize> = fleet
            .snapshot(at(100.0))
            .endpoints
            .iter()
            .map(|e| (e.name.to_string(), e.elements as usize))
            .collect();
        assert_eq!(total(&pieces), held, "in steps of {most}");

        let (mut other, ids) = fleet_of(3, Settings::default());
        // Oldest first, so that the newest is the newest again.
        pieces.reverse();
        for (name, elements) in &pieces {
            let id = other.endpoint_named(name).unwrap();
            assert!(ids.contains(&id));
            other.remember_held(id, elements, RUN_BYTES);
        }
        assert_eq!(view(&other), view(&fleet), "in steps of {most}");
        let mut again = exported(&other, most);
        again.reverse();
        assert_eq!(total(&again), total(&pieces));
    }
}

#[test]
fn what_is_in_flight_and_confirmed_is_exported_and_what_is_not_is_not() {
    let (mut fleet, _) = fleet_of(1, Settings::default());
    let (seen, unseen) = (chain(1, 0, 10), chain(2, 0, 10));
    let first = fleet.route(&request(&seen), at(1.0)).unwrap();
    fleet.first_token(&first.ticket, at(1.0));
    let second = fleet.route(&request(&unseen), at(1.0)).unwrap();
    let pieces: Vec<u64> = exported(&fleet, 3).into_iter().flat_map(|(_, elements)| elements).collect();
    assert_eq!(pieces, seen);
    for decision in [first, second] {
        fleet.finish(decision.ticket, Outcome::Aborted, at(2.0));
    }
}

#[test]
fn an_export_ends_whatever_happens_in_between() {
    let mut fleet = used();
    let mut next = Some(ExportCursor::START);
    let mut steps = 0;
    while let Some(from) = next {
        next = fleet.export(from, 5, |_, _| {});
        // Uses what was just given, and what comes, and removes an endpoint in the middle.
        serve(&mut fleet, &request(&chain(steps % 40, 8, 27)), 100.0 + steps as f64);
        if steps == 20 {
            let id = fleet.endpoint_named("endpoint 1").unwrap();
            fleet.remove_endpoint(id);
        }
        steps += 1;
        assert!(steps < 10_000);
    }
}

#[test]
fn what_is_remembered_keeps_within_the_budget_and_the_capacity() {
    let settings = Settings { index_bytes: 64 << 10, default_kv_tokens: 128 * 1_000, ..Settings::default() };
    let (mut fleet, ids) = fleet_of(1, settings);
    for n in 0..200 {
        fleet.remember_held(ids[0], &chain(n, 0, 50), RUN_BYTES);
    }
    let stats = fleet.snapshot(at(1.0));
    assert!(stats.index_bytes <= 64 << 10, "{}", stats.index_bytes);
    assert!(stats.endpoints[0].elements > 1_000, "what it can hold is not known yet");
    serve(&mut fleet, &request(&chain(199, 0, 50)), 1.0);
    let held = fleet.snapshot(at(2.0)).endpoints[0].elements;
    assert!((100..=1_000).contains(&held), "{held}");
}
