use super::*;

fn at(seconds: f64) -> Now {
    Now::from_secs_f64(seconds)
}

#[test]
fn fetches_run_one_after_the_other_and_late_ones_owe_as_much_again() {
    let mut link = Link::new(1_000.0);
    assert_eq!((link.wait_s(at(1.0)), link.begin(1, 2.0, at(1.0))), (0.0, 0));
    assert_eq!((link.begin(2, 3.0, at(2.0)), link.wait_s(at(2.0))), (1, 4.0));
    // Both should be over at 6 s.
    assert_eq!(link.wait_s(at(7.5)), 1.5);
    assert_eq!(link.wait_s(at(700.0)), 5.0);
    link.end(1, None, at(7.5));
    assert_eq!(link.wait_s(at(7.5)), 3.0);
    link.end(2, None, at(8.0));
    link.end(2, None, at(8.0));
    assert_eq!((link.wait_s(at(8.0)), link.begin(3, 1.0, at(9.0))), (0.0, 0));
}

/// The speed that 10,000 tokens in 0.2 s leave after `configured`, in tokens per second.
fn learned(configured: f64) -> f64 {
    let mut link = Link::new(configured);
    let mut now = 0.0;
    for fetch in 0..600 {
        let _ = link.begin(fetch, 0.0, at(now));
        now += 0.2;
        link.end(fetch, Some(10_000.0), at(now));
    }
    1.0 / link.speed.token_s()
}

#[test]
fn a_link_may_turn_out_slower_than_configured_and_never_quicker() {
    for configured in [60_000.0, 10_000_000.0, f64::NAN] {
        let learned = learned(configured);
        assert!((learned / 50_000.0 - 1.0).abs() < 0.05, "{configured}: {learned}");
    }
    assert!((learned(1_000.0) / 1_000.0 - 1.0).abs() < 1e-9);
}

#[test]
fn what_waited_on_the_link_is_not_taken_for_slow() {
    let mut link = Link::new(10_000.0);
    for round in 0..100 {
        let now = f64::from(round) * 10.0;
        (0..4).for_each(|n| assert_eq!(link.begin(n, 1.0, at(now)), n));
        (0..4).for_each(|n| link.end(n, Some(10_000.0), at(now + 1.0 + f64::from(n))));
    }
    assert!((link.speed.token_s() - 1e-4).abs() < 1e-6, "{}", link.speed.token_s());
}

#[test]
fn what_is_shared_lives_as_long_as_its_last_user() {
    let mut shared = Shared::default();
    let (a, b) = (shared.join("a", || 1), shared.join("b", || 2));
    assert_eq!(shared.join("a", || 3), a);
    assert_eq!((shared.get(a), shared.get(b)), (Some(&1), Some(&2)));
    assert_eq!(shared.leave(a), None);
    assert_eq!(shared.leave(a), Some(1));
    assert_eq!(shared.get(a), None);
    assert_eq!(shared.leave(a), None);
    assert_eq!(shared.join("c", || 4), a);
    assert_eq!(shared.named("c").copied(), Some(4));
    assert_eq!(shared.named("a"), None);
}
