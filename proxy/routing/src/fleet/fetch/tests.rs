use super::*;
use crate::fleet::tests::{answered, at, chain, fleet_of, request};
use crate::random::Random;
use crate::{Decision, EndpointId, Outcome, Settings, Submitted};

/// 128 tokens an element, 1,000 tokens a second.
fn slow() -> Settings {
    Settings { default_prefill_tokens_per_s: 1_000.0, min_fetch_tokens: 0, ..Settings::default() }
}

fn link(name: &str, tokens_per_s: f64) -> LinkSpec {
    LinkSpec { warehouse: "w".into(), link: name.into(), tokens_per_s }
}

/// Endpoints that read one warehouse, each over a link of its own.
fn linked(count: usize, settings: Settings, tokens_per_s: f64) -> (Fleet, Vec<EndpointId>) {
    let (mut fleet, ids) = fleet_of(count, settings);
    for (n, id) in ids.iter().enumerate() {
        fleet.set_link(*id, Some(&link(&format!("l{n}"), tokens_per_s)));
    }
    (fleet, ids)
}

/// Serves a decision at once, as an engine would whose cache and warehouse are what the fleet believes.
fn serve(fleet: &mut Fleet, decision: Decision, elements: u64, now: f64) {
    let cached = decision.matched_tokens + decision.fetch_tokens;
    fleet.fetched(
        &decision.ticket,
        Fetched { ready_tokens: cached, moved_tokens: decision.fetch_tokens, all: false },
        at(now + decision.fetch_s),
    );
    let end = now + decision.fetch_s + decision.miss_s;
    fleet.first_token(&decision.ticket, at(end));
    fleet.finish(decision.ticket, answered(elements * 128, cached), at(end));
}

fn route(fleet: &mut Fleet, chain: &[u64], now: f64) -> Decision {
    fleet.route(&request(chain), at(now)).unwrap()
}

#[test]
fn what_one_endpoint_left_another_fetches_when_the_first_is_busy() {
    let (mut fleet, _) = linked(2, slow(), 20_000.0);
    let warm = chain(1, 0, 80);
    let first = route(&mut fleet, &warm, 1.0);
    let home = first.endpoint;
    assert_eq!((first.fetch_tokens, first.matched_tokens), (0, 0));
    serve(&mut fleet, first, 80, 1.0);
    // Idle, the holder has it.
    let again = route(&mut fleet, &warm, 100.0);
    assert_eq!((again.endpoint, again.fetch_tokens, again.matched_tokens), (home, 0, 80 * 128));
    serve(&mut fleet, again, 80, 100.0);
    // Ten seconds of something else there: half a second over the link is less.
    let other = chain(2, 0, 160);
    let busy = fleet.route(&RouteRequestFor(&other).only(&fleet, home), at(200.0)).unwrap();
    assert_eq!(busy.endpoint, home);
    let away = route(&mut fleet, &warm, 200.0);
    assert_ne!(away.endpoint, home);
    assert_eq!((away.matched_tokens, away.fetch_tokens), (0, 80 * 128));
    assert!((away.fetch_s - 80.0 * 128.0 / 20_000.0).abs() < 1e-6 && away.miss_s < 1e-9, "{away:?}");
    // The control: without a warehouse ten seconds of prefill elsewhere are no better than ten seconds here.
    let (mut control, ids) = fleet_of(2, slow());
    let first = route(&mut control, &warm, 1.0);
    let home = first.endpoint;
    serve(&mut control, first, 80, 1.0);
    let other = chain(2, 0, 60);
    let busy = control.route(&RouteRequestFor(&other).only(&control, home), at(200.0)).unwrap();
    let stays = route(&mut control, &warm, 200.0);
    assert_eq!((stays.endpoint, stays.fetch_tokens), (home, 0));
    for (fleet, decision) in [(&mut control, busy), (&mut fleet, away)] {
        fleet.finish(decision.ticket, Outcome::Aborted, at(201.0));
    }
    control.finish(stays.ticket, Outcome::Aborted, at(201.0));
    assert_eq!(ids.len(), 2);
}

/// A request that only one endpoint may take.
struct RouteRequestFor<'a>(&'a [u64]);

impl<'a> RouteRequestFor<'a> {
    fn only(&self, fleet: &Fleet, id: EndpointId) -> crate::RouteRequest<'a> {
        let others: Vec<EndpointId> =
            fleet.endpoints().map(|(other, _)| other).filter(|o| *o != id).collect();
        crate::RouteRequest { exclude: Vec::leak(others), ..request(self.0) }
    }
}

#[test]
fn a_warehouse_that_lies_costs_the_prefill_and_is_not_believed_again() {
    let (mut fleet, _) = linked(2, slow(), 20_000.0);
    let warm = chain(1, 0, 80);
    let first = route(&mut fleet, &warm, 1.0);
    let home = first.endpoint;
    serve(&mut fleet, first, 80, 1.0);
    let other = chain(2, 0, 160);
    let busy = fleet.route(&RouteRequestFor(&other).only(&fleet, home), at(200.0)).unwrap();
    let away = route(&mut fleet, &warm, 200.0);
    let slot = away.endpoint.slot as usize;
    let load = |fleet: &Fleet, now| fleet.slots[slot].endpoint.as_ref().unwrap().load.wait_s(0.0, at(now));
    assert!((load(&fleet, 200.0) - 0.512).abs() < 1e-6, "{}", load(&fleet, 200.0));
    // A quarter of it was there.
    let quarter = Fetched { ready_tokens: 20 * 128, moved_tokens: 20 * 128, all: true };
    fleet.fetched(&away.ticket, quarter, at(200.5));
    assert!((load(&fleet, 200.5) - 60.0 * 0.128).abs() < 1e-6, "{}", load(&fleet, 200.5));
    let uncached: u64 = fleet.snapshot(at(200.5)).endpoints[slot].uncached_tokens;
    assert_eq!(uncached, 60 * 128);
    let offer = fleet.explain(&request(&warm), at(200.5));
    let there = offer.iter().find(|c| c.endpoint == home).unwrap();
    assert_eq!((there.matched_tokens, there.fetch_tokens), (80 * 128, 0));
    let warehouse = fleet.warehouses.get(0).unwrap().holder;
    let mut matched = Vec::new();
    fleet.index.matches(&warm, &mut matched);
    assert_eq!(matched[warehouse as usize], 20);
    // A second word about the same fetch changes nothing.
    fleet.fetched(&away.ticket, Fetched { ready_tokens: 0, moved_tokens: 0, all: false }, at(200.6));
    assert_eq!(fleet.snapshot(at(200.6)).endpoints[slot].uncached_tokens, 60 * 128);
    fleet.finish(away.ticket, Outcome::Aborted, at(201.0));
    fleet.finish(busy.ticket, Outcome::Aborted, at(201.0));
    assert_eq!(fleet.links.iter().map(|link| link.wait_s(at(201.0))).sum::<f64>(), 0.0);
}

/// A pool in some state: warm prompts, some in flight.
fn random_pool(fleet: &mut Fleet, random: &mut Random) -> Vec<Decision> {
    let mut flying = Vec::new();
    for step in 0..60 {
        let now = f64::from(step) * 0.7;
        let length = 10 + random.below(90) as u64;
        let prompt = chain(random.below(12) as u64, 4, length);
        let decision = route(fleet, &prompt, now);
        if random.below(3) > 0 { serve(fleet, decision, length, now) } else { flying.push(decision) }
    }
    flying
}

/// The cost written out, from what is public about a candidate and the price.
fn naive(fleet: &Fleet, id: EndpointId, prompt: &[u64], fetch: bool, now: f64) -> Option<f64> {
    let endpoint = fleet.endpoint(id).unwrap();
    let pool = fleet.pool(at(now));
    let rates = fleet.price.rates_at(&endpoint.crowd, pool.rates);
    let line = endpoint.line(pool.line, fleet.ttft_count, fleet.slots.len());
    let mut matched = Vec::new();
    fleet.index.matches(prompt, &mut matched);
    let linked = endpoint.linked?;
    let (store, link) = (fleet.warehouses.get(linked.warehouse)?, fleet.links.get(linked.link)?);
    let token_s = pool.link_token_s?;
    let total = prompt.len() as f64 * 128.0;
    let held = f64::from(matched[endpoint.holder as usize]) * 128.0;
    let more = f64::from(matched[store.holder as usize]) * 128.0 - held;
    if fetch && more <= 0.0 {
        return None;
    }
    let fetched = if fetch { more } else { 0.0 };
    let miss_s = (total - held - fetched) * line.slope_s;
    let fetch_s = fetched * token_s;
    let wait_s = endpoint.load.wait_s(0.0, pool.now);
    let begins = if fetch { wait_s.max(link.wait_s(pool.now) + fetch_s) } else { wait_s };
    let space = if !fleet.is_full(endpoint, pool.element_tokens) {
        0.0
    } else if token_s < line.slope_s && fleet.index.held(store.holder) > 0 {
        (0.5 * (rates.recompute - 1.0) * (1.0 + rates.link_followers)).min(64.0) * (total - held) * token_s
    } else {
        (0.5 * (rates.recompute - 1.0) * (1.0 + rates.followers)).min(64.0) * miss_s
    };
    let load = &endpoint.load;
    let ties = 1e-4 * f64::from(load.in_flight()) + 0.01 * f64::from(load.decoding());
    Some(
        begins
            + line.base_s
            + (1.0 + rates.followers) * miss_s
            + rates.link_followers * fetch_s
            + space
            + ties,
    )
}

#[test]
fn the_cost_is_the_least_of_fetching_and_computing() {
    let (mut fetches, mut computes) = (0, 0);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let speed = [150.0, 400.0, 20_000.0][random.below(3)];
        let settings = Settings { default_kv_tokens: 40_000, ..slow() };
        let (mut fleet, ids) = linked(3, settings, speed);
        let flying = random_pool(&mut fleet, &mut random);
        for prompt in (0..12).map(|session| chain(session, 4, 100)) {
            for candidate in fleet.explain(&request(&prompt), at(42.0)) {
                let cost = |fetch| naive(&fleet, candidate.endpoint, &prompt, fetch, 42.0);
                let (computed, fetched) = (cost(false).unwrap(), cost(true).unwrap_or(f64::INFINITY));
                let least = computed.min(fetched);
                assert!((candidate.cost_s - least).abs() < 1e-6 * least.max(1.0), "{candidate:?} {least}");
                assert_eq!(candidate.fetch_tokens > 0, fetched < computed, "{candidate:?}");
                fetches += u32::from(candidate.fetch_tokens > 0);
                computes += u32::from(candidate.fetch_tokens == 0 && fetched.is_finite());
            }
        }
        assert_eq!(ids.len(), 3);
        flying.into_iter().for_each(|d| fleet.finish(d.ticket, Outcome::Aborted, at(43.0)));
    }
    assert!(fetches > 200 && computes > 50, "both happen: {fetches} {computes}");
}

#[test]
fn an_empty_warehouse_changes_no_decision() {
    for seed in 0..20 {
        let settings = Settings { default_kv_tokens: 40_000, seed, ..slow() };
        let (mut bare, _) = fleet_of(3, settings.clone());
        let (mut empty, _) = linked(3, settings, 20_000.0);
        empty.set_warehouse_tokens("w", 0);
        let mut random = Random::new(seed);
        let mut flying = Vec::new();
        for step in 0..200 {
            let now = f64::from(step) * 0.4;
            let length = 10 + random.below(90) as u64;
            let prompt = chain(random.below(16) as u64, 4, length);
            let decisions = [route(&mut bare, &prompt, now), route(&mut empty, &prompt, now)];
            let told =
                decisions.each_ref().map(|d| (d.endpoint, d.reason, d.matched_tokens, d.cost_s, d.price));
            assert_eq!(told[0], told[1], "seed {seed} step {step}");
            assert_eq!(decisions[1].fetch_tokens, 0);
            let [a, b] = decisions;
            if random.below(4) > 0 {
                serve(&mut bare, a, length, now);
                serve(&mut empty, b, length, now);
            } else {
                flying.push((a, b));
            }
        }
        for (a, b) in flying {
            bare.finish(a.ticket, Outcome::Aborted, at(99.0));
            empty.finish(b.ticket, Outcome::Aborted, at(99.0));
        }
    }
}

#[test]
fn more_in_the_warehouse_never_costs_more_while_a_token_is_quicker_fetched_than_computed() {
    let prompt = chain(1, 0, 100);
    for seed in 0..30 {
        let (mut fleet, ids) = linked(2, slow(), 20_000.0);
        let mut random = Random::new(seed);
        let flying = random_pool(&mut fleet, &mut random);
        let place = fleet.endpoint(ids[0]).unwrap().linked.unwrap();
        let cost = |fleet: &Fleet| {
            let all = fleet.explain(&request(&prompt), at(42.0));
            ids.iter().map(|id| all.iter().find(|c| c.endpoint == *id).unwrap().cost_s).collect::<Vec<_>>()
        };
        let holder = fleet.warehouses.get(place.warehouse).unwrap().holder;
        fleet.index.forget(holder, &prompt, 0..100);
        let mut before = cost(&fleet);
        for elements in [5, 20, 21, 60, 100] {
            fleet.believe(place, &prompt, elements, false);
            let after = cost(&fleet);
            assert!(after.iter().zip(&before).all(|(a, b)| *a <= b + 1e-9), "{seed}: {before:?} {after:?}");
            before = after;
        }
        flying.into_iter().for_each(|d| fleet.finish(d.ticket, Outcome::Aborted, at(43.0)));
    }
}

#[test]
fn a_shared_link_lets_nobody_starve_by_the_order_of_endpoints() {
    let settings = Settings { hold_limit_s: 30.0, ..slow() };
    let (mut fleet, ids) = fleet_of(3, settings);
    for id in &ids {
        fleet.set_link(*id, Some(&link("one", 4_000.0)));
    }
    let prompts: Vec<_> = (0..9).map(|n| chain(n, 0, 200)).collect();
    for (n, prompt) in prompts.iter().enumerate() {
        let only = RouteRequestFor(prompt).only(&fleet, ids[n % 3]);
        let decision = fleet.route(&only, at(n as f64)).unwrap();
        serve(&mut fleet, decision, 200, n as f64);
        fleet.cleared(ids[n % 3]);
    }
    // Everything is fetched over the one link, 6.4 s each, in the order of arrival.
    let mut order = Vec::new();
    let mut held = Vec::new();
    for (n, prompt) in prompts.iter().enumerate() {
        let now = at(1_000.0 + n as f64 * 0.01);
        match fleet.submit(&request(prompt), now).unwrap() {
            Submitted::Go(decision) => order.push((n, decision)),
            Submitted::Held(id) => held.push((id, n)),
        }
    }
    let mut now = 1_000.1;
    while order.len() < prompts.len() {
        now += 0.5;
        assert!(now < 1_200.0, "{} of {} went", order.len(), prompts.len());
        while let Some((id, decision)) = fleet.next_dispatch(at(now)) {
            let n = held.iter().find(|(known, _)| *known == id).unwrap().1;
            order.push((n, decision.unwrap()));
        }
    }
    let served: Vec<usize> = order.iter().map(|(n, _)| *n).collect();
    // Not one endpoint's after the other's: nobody is more than two turns off.
    let fair = |served: &[usize]| served.iter().enumerate().all(|(turn, n)| turn.abs_diff(*n) <= 2);
    assert!(fair(&served), "{served:?}");
    // The negative control: the same decisions, one endpoint's after the other's.
    let mut by_endpoint: Vec<_> = order.iter().map(|(n, decision)| (decision.endpoint.slot, *n)).collect();
    by_endpoint.sort_unstable();
    assert!(!fair(&by_endpoint.into_iter().map(|(_, n)| n).collect::<Vec<_>>()));
    order.into_iter().for_each(|(_, d)| fleet.finish(d.ticket, Outcome::Aborted, at(now)));
}

#[test]
fn endpoints_that_go_leave_no_warehouse_and_no_link_behind() {
    let (mut fleet, ids) = linked(3, slow(), 20_000.0);
    let decision = route(&mut fleet, &chain(1, 0, 50), 1.0);
    serve(&mut fleet, decision, 50, 1.0);
    assert!(fleet.index.held(fleet.warehouses.get(0).unwrap().holder) > 0);
    fleet.set_link(ids[0], None);
    fleet.set_link(ids[1], Some(&LinkSpec { warehouse: "other".into(), ..link("l1", 1.0) }));
    fleet.set_link(ids[1], Some(&link("l1", 1.0)));
    ids.iter().for_each(|id| fleet.remove_endpoint(*id));
    assert_eq!((fleet.warehouses.iter().count(), fleet.links.iter().count()), (0, 0));
    assert_eq!(fleet.index.segments(), 0);
    fleet.set_link(ids[0], Some(&link("l", 1.0)));
    assert_eq!(fleet.links.iter().count(), 0, "a removed endpoint joins nothing");
}
