use super::*;

fn terms(slot: u32, cost_s: f64, matched: u32) -> Terms {
    Terms {
        slot,
        digest: crate::random::name_digest(&format!("endpoint {slot}")),
        matched,
        matched_tokens: f64::from(matched) * 128.0,
        uncached_tokens: 0.0,
        wait_s: 0.0,
        base_s: 0.0,
        miss_s: 0.0,
        fetch_tokens: 0.0,
        fetch_s: 0.0,
        warehoused_tokens: 0.0,
        link_wait_s: 0.0,
        refetch_token_s: None,
        full: false,
        in_flight: 0,
        decoding: 0,
        coming: 0,
        coming_s: 0.0,
        cost_s,
    }
}

fn view<'a>(candidates: &'a [Terms], session: Option<u64>, chain: &'a [u64]) -> View<'a> {
    View { candidates, session, chain }
}

#[test]
fn equals_are_drawn_by_lot_and_the_dearer_never() {
    let candidates = [terms(0, 2.0, 0), terms(1, 1.0, 0), terms(2, 1.0, 0), terms(3, 1.0, 0)];
    let mut random = Random::new(1);
    let mut drawn = [0; 4];
    for _ in 0..3_000 {
        drawn[cheapest(&view(&candidates, None, &[1]), &mut random).index] += 1;
    }
    assert_eq!(drawn[0], 0);
    assert!(drawn[1..].iter().all(|&n| (850..1_150).contains(&n)), "{drawn:?}");
}

#[test]
fn reasons_say_what_happened() {
    let mut random = Random::new(1);
    let mut reason =
        |candidates: &[Terms], chain: &[u64]| cheapest(&view(candidates, None, chain), &mut random).reason;
    assert_eq!(reason(&[terms(0, 1.0, 0)], &[1]), Reason::OnlyCandidate);
    assert_eq!(reason(&[terms(0, 1.0, 0), terms(1, 2.0, 0)], &[]), Reason::NoAffinity);
    assert_eq!(reason(&[terms(0, 1.0, 0), terms(1, 2.0, 0)], &[1]), Reason::Cold);
    assert_eq!(reason(&[terms(0, 1.0, 5), terms(1, 2.0, 3)], &[1]), Reason::PrefixHit);
    assert_eq!(reason(&[terms(0, 1.0, 3), terms(1, 2.0, 5)], &[1]), Reason::Spill);
}

#[test]
fn larder_charges_misses_at_the_price() {
    let rates = Rates { followers: 3.0, link_followers: 0.0, recompute: 2.0 };
    let mut busy = terms(0, 0.0, 8);
    busy.wait_s = 5.9;
    let mut cold = terms(1, 0.0, 0);
    (cold.miss_s, cold.full) = (1.0, true);
    // (1 + 3) and half of (1 + 3) * (2 - 1): waiting up to 6 seconds beats one second of prefill into a full cache ...
    assert!((larder::Larder.cost(&cold, &rates) - 6.0).abs() < 1e-9);
    assert!(larder::Larder.cost(&busy, &rates) < larder::Larder.cost(&cold, &rates));
    // ... 4 seconds beat it into one with room, and for the request alone it is 1.
    cold.full = false;
    assert!((larder::Larder.cost(&cold, &rates) - 4.0).abs() < 1e-9);
    assert!(min_ttft::MinTtft.cost(&busy, &rates) > min_ttft::MinTtft.cost(&cold, &rates));
}

#[test]
fn round_robin_is_fair_whoever_is_missing() {
    let all = [terms(0, 0.0, 0), terms(3, 0.0, 0), terms(5, 0.0, 0)];
    let (mut policy, mut random) = (round_robin::RoundRobin::default(), Random::new(1));
    let mut next =
        |candidates: &[Terms]| candidates[policy.pick(&view(candidates, None, &[]), &mut random).index].slot;
    assert_eq!([next(&all), next(&all), next(&all), next(&all)], [0, 3, 5, 0]);
    assert_eq!([next(&all[..1]), next(&all), next(&all)], [0, 3, 5]);
}

#[test]
fn session_hash_agrees_between_proxies_and_moves_only_what_it_must() {
    let all: Vec<Terms> = (0..8).map(|slot| terms(slot, 0.0, 0)).collect();
    let mut random = Random::new(1);
    let mut pick = |candidates: &[Terms], session: Option<u64>, chain: &[u64]| {
        let pick = session_hash::SessionHash.pick(&view(candidates, session, chain), &mut random);
        (candidates[pick.index].slot, pick.reason)
    };
    let mut shares = [0; 8];
    let mut reversed = all.clone();
    reversed.reverse();
    for session in 0..4_000 {
        let (home, reason) = pick(&all, Some(session), &[1]);
        assert_eq!((home, reason), pick(&reversed, Some(session), &[2]), "neither order nor prompt matter");
        assert_eq!(reason, Reason::Session);
        shares[home as usize] += 1;
        let without_last = pick(&all[..7], Some(session), &[1]).0;
        assert!(home == 7 || home == without_last, "only the removed one's sessions move");
    }
    assert!(shares.iter().all(|&n| (400..600).contains(&n)), "{shares:?}");
    assert_eq!(pick(&all, None, &[1, 2, 3]), pick(&all, None, &[7, 3]));
    assert_eq!(pick(&all, None, &[3]).1, Reason::PromptHash);
    assert_eq!(pick(&all, None, &[]).1, Reason::NoAffinity);
}
