use proptest::prelude::*;

use super::*;

const HALF_LIFE: Duration = Duration::from_secs(600);

/// The definition, as it reads: every use halved for each half-life that has passed.
fn rate(uses: &[f64], now: f64) -> f64 {
    uses.iter().map(|at| ((at - now) / HALF_LIFE.as_secs_f64()).exp2()).sum()
}

fn uses(at: &[f64]) -> Uses {
    let mut uses = Uses::first(Duration::from_secs_f64(at[0]), HALF_LIFE);
    at[1..].iter().for_each(|at| uses.again(Duration::from_secs_f64(*at), HALF_LIFE));
    uses
}

#[test]
fn two_uses_of_now_are_one_of_a_half_life_later() {
    let twice = uses(&[0.0, 0.0]);
    assert_eq!(twice.worth(32, 4096), uses(&[600.0]).worth(32, 4096));
    assert!(twice.worth(32, 4096) > uses(&[599.0]).worth(32, 4096));
    assert!(twice.worth(32, 4096) < uses(&[601.0]).worth(32, 4096));
}

#[test]
fn tokens_count_for_it_and_bytes_against() {
    let once = uses(&[5.0]);
    assert_eq!(once.worth(64, 8192), once.worth(32, 4096));
    assert!(once.worth(64, 4096) > once.worth(32, 4096));
    assert!(once.worth(32, 8192) < once.worth(32, 4096));
}

#[test]
fn years_and_nonsense_do_not_overflow() {
    let century = Duration::from_secs(100 * 366 * 86_400);
    let mut long = Uses::first(century, HALF_LIFE);
    long.again(century + Duration::from_secs(1), HALF_LIFE);
    let before = Uses::first(century, HALF_LIFE);
    assert!(long.worth(1, 1) > before.worth(1, 1));
    let none = Uses::first(Duration::MAX, Duration::ZERO);
    assert!(none.worth(0, 0) >= long.worth(1, 1));
}

proptest! {
    #[test]
    fn the_order_is_that_of_the_definition_whenever_it_is_asked(
        one in prop::collection::vec(0.0..10_000.0_f64, 1..20),
        two in prop::collection::vec(0.0..10_000.0_f64, 1..20),
        tokens in (1_u32..1000, 1_u32..1000),
        bytes in (1_u64..1 << 30, 1_u64..1 << 30),
        wait in 0.0..5_000.0_f64,
    ) {
        let now = 10_000.0 + wait;
        let plain = |uses: &[f64], tokens: u32, bytes: u64| rate(uses, now) * f64::from(tokens) / bytes as f64;
        let (first, second) = (plain(&one, tokens.0, bytes.0), plain(&two, tokens.1, bytes.1));
        prop_assume!((first / second).log2().abs() > 1e-6);
        let worths = (uses(&one).worth(tokens.0, bytes.0), uses(&two).worth(tokens.1, bytes.1));
        prop_assert_eq!(worths.0 < worths.1, first < second);
        let faded = worths.0.log2() - now / HALF_LIFE.as_secs_f64();
        prop_assert!((faded - first.log2()).abs() < 1e-6);
    }
}
