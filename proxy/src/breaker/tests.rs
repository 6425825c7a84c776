use proptest::prelude::*;

use super::*;

const SETTINGS: Settings =
    Settings { failures: 3, open: Duration::from_secs(1), open_max: Duration::from_secs(5) };

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn the_life_of_a_breaker() {
    let mut breaker = Breaker::new(SETTINGS);
    assert!(!breaker.failure(s(0.0), false) && !breaker.failure(s(0.0), false));
    breaker.success();
    assert!(!breaker.failure(s(0.0), false) && !breaker.failure(s(0.0), false), "in a row only");
    assert!(breaker.failure(s(0.0), false));
    assert!(!breaker.allows(s(0.9)) && breaker.allows(s(1.0)));
    assert!(!breaker.begin(s(0.9)), "too early for a probe");
    let mut now = 1.0;
    for wait in [2.0, 4.0, 5.0, 5.0] {
        assert!(breaker.begin(s(now)));
        assert!(!breaker.allows(s(now)) && !breaker.begin(s(now)), "one probe at a time");
        assert!(!breaker.failure(s(now), false), "only the probe counts");
        assert!(breaker.failure(s(now), true));
        assert!(!breaker.allows(s(now + wait - 0.01)) && breaker.allows(s(now + wait)), "{wait}");
        now += wait;
    }
    assert!(breaker.begin(s(now)));
    breaker.probe_lost(s(now));
    assert!(breaker.allows(s(now)) && breaker.begin(s(now)), "the next is the probe");
    breaker.success();
    assert!(breaker.is_closed());
}

#[test]
fn zero_failures_never_opens() {
    let mut breaker = Breaker::new(Settings { failures: 0, ..SETTINGS });
    assert!((0..1_000).all(|_| !breaker.failure(s(0.0), false) && breaker.allows(s(0.0))));
}

proptest! {
    /// Whatever happens: at most one probe runs, it never stays open longer than the limit, a success closes it,
    /// and it opens only after so many failures without a success.
    #[test]
    fn invariants(steps in prop::collection::vec((0u8..4, 0.0f64..3.0), 1..200)) {
        let mut breaker = Breaker::new(SETTINGS);
        let (mut now, mut probe, mut in_a_row) = (0.0, false, 0);
        for (what, later) in steps {
            now += later;
            match what {
                0 => {
                    let allowed = breaker.allows(s(now));
                    let begun = breaker.begin(s(now));
                    prop_assert!(!(begun && probe), "two probes");
                    prop_assert!(!begun || allowed);
                    probe |= begun;
                }
                1 => {
                    breaker.success();
                    (probe, in_a_row) = (false, 0);
                    prop_assert!(breaker.is_closed());
                }
                2 => {
                    in_a_row += 1;
                    breaker.failure(s(now), std::mem::take(&mut probe));
                }
                _ => {
                    if std::mem::take(&mut probe) {
                        breaker.probe_lost(s(now));
                    }
                }
            }
            prop_assert_eq!(breaker.is_closed(), in_a_row < SETTINGS.failures);
            prop_assert!(probe || breaker.allows(s(now) + SETTINGS.open_max));
        }
    }
}
