use super::*;
use crate::random::finish;
use crate::{Decision, NoEndpoint, Outcome, PolicyKind, Reason, RouteRequest, Ticket, Usage};

const RUN_BYTES: u32 = 512;
/// Tokens an element stands for at 4 bytes a token.
const ELEMENT: u64 = 128;

pub(super) fn at(seconds: f64) -> Now {
    Now::from_secs_f64(seconds)
}

/// `length` elements, the first `shared` of which are the same for all sessions.
pub(super) fn chain(session: u64, shared: u64, length: u64) -> Vec<u64> {
    (0..length).map(|i| finish(if i < shared { i } else { (session + 1) << 32 | i })).collect()
}

pub(super) fn request(chain: &[u64]) -> RouteRequest<'_> {
    RouteRequest {
        chain,
        run_bytes: RUN_BYTES,
        prompt_bytes: chain.len() as u64 * u64::from(RUN_BYTES),
        media: 0,
        session: None,
        streamed: true,
        exclude: &[],
    }
}

pub(super) fn fleet_of(count: usize, settings: Settings) -> (Fleet, Vec<EndpointId>) {
    let mut fleet = Fleet::new(settings);
    let ids = (0..count).map(|i| fleet.add_endpoint(&format!("endpoint {i}"), Now::ZERO)).collect();
    (fleet, ids)
}

pub(super) fn answered(prompt_tokens: u64, cached_tokens: u64) -> Outcome {
    Outcome::Completed { usage: Some(Usage { prompt_tokens, cached_tokens: Some(cached_tokens) }) }
}

/// Routes and answers as an engine would whose cache is what the fleet believes.
fn turn(fleet: &mut Fleet, chain: &[u64], now: f64) -> (EndpointId, u64, Reason) {
    let Decision { ticket, endpoint, matched_tokens, reason, miss_s, .. } =
        fleet.route(&request(chain), at(now)).unwrap();
    fleet.first_token(&ticket, at(now + miss_s));
    fleet.finish(ticket, answered(chain.len() as u64 * ELEMENT, matched_tokens), at(now + miss_s + 0.1));
    (endpoint, matched_tokens, reason)
}

#[test]
fn a_fleet_can_move_between_threads() {
    fn sendable<T: Send>() {}
    sendable::<Fleet>();
    sendable::<Ticket>();
}

/// What runs is kept where engines do so; in the caches of published simulations it goes as anything else.
#[test]
fn what_runs_is_pinned_where_engines_pin_it() {
    for (pins_running, kept) in [(true, 40 * ELEMENT), (false, 10 * ELEMENT)] {
        let settings = Settings { default_kv_tokens: 50 * ELEMENT, pins_running, ..Settings::default() };
        let (mut fleet, _) = fleet_of(1, settings);
        let tickets = [1, 2].map(|session| fleet.route(&request(&chain(session, 0, 40)), at(1.0)).unwrap());
        let now = fleet.explain(&request(&chain(1, 0, 40)), at(1.0));
        assert_eq!(now[0].matched_tokens, kept);
        tickets.into_iter().for_each(|decision| fleet.finish(decision.ticket, Outcome::Aborted, at(2.0)));
    }
}

#[test]
fn a_session_stays_where_it_is_warm() {
    let (mut fleet, _) = fleet_of(4, Settings::default());
    let (home, matched, reason) = turn(&mut fleet, &chain(1, 0, 40), 1.0);
    assert_eq!((matched, reason), (0, Reason::Cold));
    for length in 41..60 {
        let (endpoint, matched, reason) = turn(&mut fleet, &chain(1, 0, length), length as f64);
        assert_eq!((endpoint, matched, reason), (home, (length - 1) * ELEMENT, Reason::PrefixHit));
    }
}

#[test]
fn a_decision_explains_itself_and_explain_changes_nothing() {
    let (mut fleet, _) = fleet_of(3, Settings::default());
    let long = chain(1, 0, 40);
    let (home, ..) = turn(&mut fleet, &long, 1.0);
    let before = fleet.snapshot(at(9.0));
    let explained = fleet.explain(&request(&long), at(9.0));
    assert_eq!(fleet.snapshot(at(9.0)), before);
    assert_eq!((explained[0].endpoint, explained[0].matched_tokens), (home, 40 * ELEMENT));
    assert_eq!(explained[1].uncached_tokens, 40 * ELEMENT);

    let decision = fleet.route(&request(&long), at(9.0)).unwrap();
    let runner = decision.runner_up.as_ref().unwrap();
    assert_eq!((decision.endpoint, decision.candidates), (home, 3));
    assert_eq!((decision.cost_s, runner.cost_s), (explained[0].cost_s, explained[1].cost_s));
    assert_eq!((decision.prompt_tokens, runner.matched_tokens), (40 * ELEMENT, 0));
    fleet.finish(decision.ticket, Outcome::Aborted, at(9.0));
}

#[test]
fn no_endpoint_says_why() {
    let (mut fleet, ids) = fleet_of(4, Settings::default());
    fleet.set_state(ids[0], EndpointState::Draining);
    fleet.set_state(ids[1], EndpointState::Unavailable("connection refused".into()));
    fleet.set_state(ids[2], EndpointState::Unavailable("starting".into()));
    let exclude = [ids[3]];
    let before = fleet.snapshot(at(1.0));
    let refused = fleet.route(&RouteRequest { exclude: &exclude, ..request(&[1]) }, at(1.0)).unwrap_err();
    assert_eq!(fleet.snapshot(at(1.0)), before);
    let NoEndpoint { known, draining, unavailable, excluded, .. } = refused;
    assert_eq!((known, draining, unavailable, excluded), (4, 1, 2, 1));
    assert_eq!(
        refused.to_string(),
        "no endpoint can take the request: of 4 known, 1 draining, 1 already tried, 2 unavailable \
         (endpoint 1: connection refused)"
    );
    let only = fleet.route(&request(&[1]), at(1.0)).unwrap();
    assert_eq!((only.endpoint, only.reason, only.runner_up), (ids[3], Reason::OnlyCandidate, None));
    fleet.finish(only.ticket, Outcome::Aborted, at(1.0));
    assert_eq!(Fleet::new(Settings::default()).route(&request(&[]), at(0.0)).unwrap_err().known, 0);
}

#[test]
fn siblings_in_flight_see_each_other() {
    let (mut fleet, _) = fleet_of(4, Settings::default());
    let long = chain(1, 0, 100);
    let first = fleet.route(&request(&long), at(1.0)).unwrap();
    // Half of its 1.6 s of prefill is over: waiting for the rest beats computing it all again elsewhere.
    let second = fleet.route(&request(&long), at(1.8)).unwrap();
    assert_eq!((second.endpoint, second.matched_tokens), (first.endpoint, 100 * ELEMENT));
    // Both fail: what was never computed is forgotten, by the last to let go.
    fleet.finish(first.ticket, Outcome::FailedBeforeFirstByte, at(2.0));
    assert_eq!(fleet.explain(&request(&long), at(2.0))[0].matched_tokens, 100 * ELEMENT);
    fleet.finish(second.ticket, Outcome::FailedBeforeFirstByte, at(2.0));
    assert_eq!(fleet.explain(&request(&long), at(2.0))[0].matched_tokens, 0);
}

#[test]
fn a_failure_takes_back_only_its_own() {
    let (mut fleet, ids) = fleet_of(2, Settings::default());
    let (home, ..) = turn(&mut fleet, &chain(1, 0, 50), 1.0);
    let longer = chain(1, 0, 80);
    for outcome in [Outcome::FailedBeforeFirstByte, Outcome::Aborted] {
        let decision = fleet.route(&request(&longer), at(2.0)).unwrap();
        assert_eq!(decision.endpoint, home);
        fleet.finish(decision.ticket, outcome, at(3.0));
        let matched: Vec<u64> =
            fleet.explain(&request(&longer), at(3.0)).iter().map(|c| c.matched_tokens).collect();
        assert_eq!(matched, [50 * ELEMENT, 0], "{outcome:?}");
    }
    // Broken off after its first token, the prompt has been computed.
    let decision = fleet.route(&request(&longer), at(4.0)).unwrap();
    fleet.first_token(&decision.ticket, at(5.0));
    fleet.finish(decision.ticket, Outcome::Aborted, at(6.0));
    assert_eq!(fleet.explain(&request(&longer), at(6.0))[0].matched_tokens, 80 * ELEMENT);
    assert_eq!(ids.len(), 2);
}

#[test]
fn cold_prompts_spread_by_load_and_ties_by_lot() {
    // One after the other, never two at a time: only chance can spread them.
    let (mut fleet, ids) = fleet_of(4, Settings::default());
    let mut shares = [0; 4];
    for session in 0..400 {
        let (endpoint, ..) = turn(&mut fleet, &chain(session, 0, 8), session as f64 * 10.0);
        shares[ids.iter().position(|id| *id == endpoint).unwrap()] += 1;
    }
    assert!(shares.iter().all(|&n| (60..140).contains(&n)), "{shares:?}");
    // At once: load spreads them evenly.
    let decisions: Vec<Decision> =
        (0..40).map(|s| fleet.route(&request(&chain(1_000 + s, 0, 8)), at(1e5)).unwrap()).collect();
    for id in &ids {
        assert_eq!(decisions.iter().filter(|d| d.endpoint == *id).count(), 10);
    }
    decisions.into_iter().for_each(|d| fleet.finish(d.ticket, Outcome::Aborted, at(1e5)));
}

#[test]
fn waiting_that_costs_more_than_computing_spills() {
    let (mut fleet, _) = fleet_of(2, Settings::default());
    let shared = chain(0, 8, 8);
    let (home, ..) = turn(&mut fleet, &shared, 1.0);
    // 80,000 tokens, 10 s of prefill, land where the shared kilotoken is.
    let big = fleet.route(&request(&chain(1, 8, 640)), at(10.0)).unwrap();
    assert_eq!(big.endpoint, home);
    let small = fleet.route(&request(&chain(2, 8, 9)), at(10.0)).unwrap();
    assert_ne!(small.endpoint, home);
    assert_eq!((small.reason, small.matched_tokens), (Reason::Spill, 0));
    assert!(small.runner_up.unwrap().cost_s > small.cost_s);
    for ticket in [big.ticket, small.ticket] {
        fleet.finish(ticket, Outcome::Aborted, at(11.0));
    }
}

#[test]
fn the_same_seed_gives_the_same_decisions_and_another_seed_others() {
    let run = |seed| {
        let (mut fleet, _) = fleet_of(5, Settings { seed, ..Settings::default() });
        (0..200).map(|s| turn(&mut fleet, &chain(s % 40, 0, 5 + s / 40), s as f64).0.slot).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn removal_leaves_nothing_and_late_tickets_are_harmless() {
    let (mut fleet, ids) = fleet_of(2, Settings::default());
    let decision = fleet.route(&request(&chain(1, 0, 50)), at(1.0)).unwrap();
    fleet.remove_endpoint(decision.endpoint);
    fleet.remove_endpoint(decision.endpoint);
    assert_eq!(fleet.endpoint_named(&decision.name), None);
    let again = fleet.add_endpoint(&decision.name, at(1.0));
    assert!(!ids.contains(&again), "ids are never used twice");
    fleet.first_token(&decision.ticket, at(2.0));
    fleet.finish(decision.ticket, answered(50 * ELEMENT, 0), at(2.0));
    let stats = fleet.snapshot(at(3.0));
    assert!(stats.endpoints.iter().all(|e| e.elements == 0 && e.in_flight == 0));
    assert_eq!(stats.in_flight, 0);
}

#[test]
fn a_ticket_of_another_fleet_does_nothing() {
    let (mut one, _) = fleet_of(1, Settings::default());
    let (mut other, _) = fleet_of(1, Settings::default());
    let kept = one.route(&request(&[1]), at(0.0)).unwrap();
    one.first_token(&Ticket { slot: 7, generation: 0 }, at(0.0));
    let strange = other.route(&request(&[1]), at(0.0)).unwrap();
    other.finish(strange.ticket, Outcome::Aborted, at(0.0));
    let stale = Ticket { slot: kept.ticket.slot, generation: kept.ticket.generation + 1 };
    one.finish(stale, Outcome::Aborted, at(0.0));
    assert_eq!(one.snapshot(at(0.0)).in_flight, 1);
    one.finish(kept.ticket, Outcome::Aborted, at(0.0));
}

#[test]
fn requests_in_flight_over_a_clear_do_not_pin_what_came_after() {
    let (mut fleet, ids) = fleet_of(1, Settings::default());
    let long = chain(1, 0, 50);
    let old = fleet.route(&request(&long), at(1.0)).unwrap();
    fleet.cleared(ids[0]);
    let new = fleet.route(&request(&long), at(1.0)).unwrap();
    assert_eq!(new.matched_tokens, 0);
    fleet.finish(old.ticket, Outcome::FailedBeforeFirstByte, at(2.0));
    assert_eq!(fleet.explain(&request(&long), at(2.0))[0].matched_tokens, 50 * ELEMENT);
    fleet.finish(new.ticket, answered(50 * ELEMENT, 0), at(2.0));
    assert_eq!(fleet.explain(&request(&long), at(2.0))[0].matched_tokens, 50 * ELEMENT);
}

#[test]
fn odd_requests_stay_finite() {
    let long = vec![7; MAX_CHAIN + 10];
    for kind in PolicyKind::ALL {
        let (mut fleet, _) = fleet_of(2, Settings { policy: kind, ..Settings::default() });
        for odd in [
            RouteRequest { prompt_bytes: u64::MAX, media: u32::MAX, ..request(&[1, 2]) },
            RouteRequest { run_bytes: 0, ..request(&[1, 2]) },
            RouteRequest { run_bytes: u32::MAX, ..request(&long) },
            RouteRequest { prompt_bytes: 0, ..request(&[]) },
        ] {
            let decision = fleet.route(&odd, at(1.0)).unwrap();
            let numbers = [decision.wait_s, decision.miss_s, decision.cost_s, decision.price];
            assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0), "{decision:?}");
            fleet.first_token(&decision.ticket, at(0.5));
            fleet.finish(decision.ticket, answered(u64::MAX, u64::MAX), at(0.2));
        }
        let stats = fleet.snapshot(at(0.0));
        assert_eq!(
            stats.endpoints.iter().map(|e| u64::from(e.in_flight) + e.uncached_tokens).sum::<u64>(),
            0
        );
    }
}

#[test]
fn a_zero_budget_routes_by_load_alone() {
    let (mut fleet, _) = fleet_of(2, Settings { index_bytes: 0, ..Settings::default() });
    for session in 0..20 {
        let (_, matched, reason) = turn(&mut fleet, &chain(0, 0, 20), session as f64);
        assert_eq!((matched, reason), (0, Reason::Cold));
    }
    assert_eq!(fleet.snapshot(at(0.0)).unremembered, 20);
}

mod feedback;
mod leaks;
