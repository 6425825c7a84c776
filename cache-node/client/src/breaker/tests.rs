use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn the_life_of_a_breaker() {
    let start = Instant::now();
    let mut breaker = Breaker::new(BreakerSettings::default());
    let fail = |breaker: &mut Breaker, at: Duration| {
        let attempt = breaker.begin(start + at).unwrap();
        breaker.end(attempt, true, start + at);
    };
    fail(&mut breaker, MS);
    fail(&mut breaker, MS);
    assert!(breaker.would_try(start + MS), "two failures are not yet three");
    fail(&mut breaker, MS);
    let closed = breaker.begin(start + 100 * MS).unwrap_err();
    assert_eq!(closed, Closed { failures: 3, retry_in: 101 * MS });
    // One try when it is due, and nobody beside it.
    let probe = breaker.begin(start + 201 * MS).unwrap();
    assert!(breaker.begin(start + 202 * MS).is_err());
    breaker.end(probe, true, start + 202 * MS);
    assert!(!breaker.would_try(start + 601 * MS), "the pause has doubled");
    let probe = breaker.begin(start + 602 * MS).unwrap();
    breaker.end(probe, false, start + 603 * MS);
    assert!(breaker.begin(start + 603 * MS).is_ok(), "answered: open again");
    // And from the start again.
    for _ in 0..3 {
        fail(&mut breaker, 700 * MS);
    }
    assert!(breaker.would_try(start + 900 * MS));
}

#[test]
fn the_pause_is_bounded() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(BreakerSettings::default());
    for _ in 0..40 {
        while !breaker.would_try(now) {
            now += 10 * MS;
        }
        let attempt = breaker.begin(now).unwrap();
        breaker.end(attempt, true, now);
        let closed = breaker.begin(now);
        assert!(closed.is_ok() || closed.unwrap_err().retry_in <= BreakerSettings::default().pause_max);
    }
}

#[test]
fn a_late_success_opens_and_an_abandoned_try_is_due_again() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerSettings { failures_max: 1, ..BreakerSettings::default() });
    let slow = breaker.begin(now).unwrap();
    let failing = breaker.begin(now).unwrap();
    breaker.end(failing, true, now);
    assert!(!breaker.would_try(now));
    let probe = breaker.begin(now + 200 * MS).unwrap();
    breaker.abandon(&probe, now + 200 * MS);
    assert!(breaker.would_try(now + 200 * MS));
    breaker.end(slow, false, now + 201 * MS);
    assert!(breaker.begin(now + 201 * MS).is_ok());
}
