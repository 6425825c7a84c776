use super::*;
use crate::client::Answer;
use std::time::Duration;

#[test]
fn percentiles_are_nearest_rank() {
    let values: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!(percentile(&values, 0.50), Some(50.0));
    assert_eq!(percentile(&values, 0.99), Some(99.0));
    assert_eq!(percentile(&values[..10], 0.99), Some(10.0));
    assert_eq!(percentile(&values[..1], 0.50), Some(1.0));
    assert_eq!(percentile(&[], 0.50), None);
}

#[test]
fn imbalance_is_largest_over_mean() {
    assert_eq!(imbalance(&[10, 10, 10, 10]), Some(1.0));
    assert_eq!(imbalance(&[40, 0, 0, 0]), Some(4.0));
    assert_eq!(imbalance(&[0, 0]), None);
    assert_eq!(imbalance(&[]), None);
}

fn answer(prompt_tokens: u64, cached_tokens: u64) -> Answer {
    Answer { ttft: Duration::from_millis(10), prompt_tokens, cached_tokens }
}

#[test]
fn engines_and_answers_must_agree_about_tokens() {
    let stats = [
        EngineStats { prompt_tokens: 100, cached_tokens: 40 },
        EngineStats { prompt_tokens: 50, cached_tokens: 0 },
    ];
    let outcome = |answers: &[Answer]| Outcome { answers: answers.to_vec(), ..Outcome::default() };
    let mut good = outcome(&[answer(100, 40), answer(50, 0)]);
    check_tokens(&mut good, &stats);
    assert_eq!(good.errors, 0);
    let mut wrong = outcome(&[answer(100, 60), answer(50, 0)]);
    check_tokens(&mut wrong, &stats);
    assert_eq!(wrong.errors, 1);
    assert!(wrong.samples[0].contains("150 input tokens, 40 of them cached"), "{}", wrong.samples[0]);
}
