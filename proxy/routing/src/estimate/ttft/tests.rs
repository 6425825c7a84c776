use super::*;
use crate::random::Random;

/// Feeds `count` prompts of 16 to 4,000 uncached tokens at `base + tokens / rate`, noisy by a tenth.
fn feed(model: &mut TtftModel, random: &mut Random, count: usize, base_s: f64, rate: f64, outliers: bool) {
    for turn in 0..count {
        let tokens = (16 + random.below(4_000)) as f64;
        let noise = 0.9 + random.below(2_001) as f64 / 10_000.0;
        let odd = if outliers && turn % 20 == 7 { 100.0 } else { 1.0 };
        let seconds = (base_s + tokens / rate) * noise * odd;
        let expected = model.line().unwrap_or(TtftLine { base_s: 0.0, slope_s: 1.0 / 8_000.0 });
        model.observe(TtftSample { uncached_tokens: tokens, seconds }, expected, 0.0);
    }
}

fn rate(model: &TtftModel) -> f64 {
    1.0 / model.line().unwrap().slope_s
}

#[test]
fn starts_at_the_configured_speed() {
    assert!((rate(&TtftModel::new(5_000.0)) - 5_000.0).abs() < 1e-6);
    assert_eq!(TtftModel::empty().line(), None);
    assert!((rate(&TtftModel::new(f64::NAN)) - 8_000.0).abs() < 1e-6);
}

#[test]
fn learns_base_and_slope() {
    let mut model = TtftModel::new(8_000.0);
    feed(&mut model, &mut Random::new(1), 300, 0.04, 2_000.0, false);
    let line = model.line().unwrap();
    assert!((rate(&model) / 2_000.0 - 1.0).abs() < 0.15, "{}", rate(&model));
    assert!((0.0..0.12).contains(&line.base_s), "{}", line.base_s);
}

#[test]
fn follows_a_speed_far_from_the_configured_one_within_a_window() {
    for true_rate in [150.0, 120_000.0] {
        let mut model = TtftModel::new(8_000.0);
        feed(&mut model, &mut Random::new(2), 64, 0.0, true_rate, false);
        assert!((0.6..1.7).contains(&(rate(&model) / true_rate)), "{true_rate}: {}", rate(&model));
    }
}

#[test]
fn one_in_twenty_outliers_of_a_hundredfold_hardly_move_it() {
    let mut model = TtftModel::new(8_000.0);
    feed(&mut model, &mut Random::new(3), 600, 0.02, 8_000.0, true);
    assert!((0.7..1.3).contains(&(rate(&model) / 8_000.0)), "{}", rate(&model));
    // The control: the same observations without clipping are off by several times.
    let mut random = Random::new(3);
    let mut naive = TtftModel::new(8_000.0);
    for turn in 0..600 {
        let tokens = (16 + random.below(4_000)) as f64;
        let odd = if turn % 20 == 7 { 100.0 } else { 1.0 };
        naive.add(tokens, (0.02 + tokens / 8_000.0) * odd);
    }
    assert!(rate(&naive) < 8_000.0 / 3.0, "{}", rate(&naive));
}

#[test]
fn prompts_of_one_size_give_a_speed_all_the_same() {
    let mut model = TtftModel::empty();
    let expected = TtftLine { base_s: 0.0, slope_s: 0.001 };
    for _ in 0..10 {
        model.observe(TtftSample { uncached_tokens: 1_000.0, seconds: 1.0 }, expected, 0.0);
    }
    assert!((rate(&model) - 1_000.0).abs() < 1.0);
}

#[test]
fn nonsense_is_ignored_and_lines_stay_in_bounds() {
    let mut model = TtftModel::new(8_000.0);
    let before = model.line();
    let expected = before.unwrap();
    for (tokens, seconds) in [(f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, 1.0), (1.0, -1.0)] {
        model.observe(TtftSample { uncached_tokens: tokens, seconds }, expected, 0.0);
    }
    assert_eq!(model.line(), before);
    for turn in 0..200 {
        let sample = TtftSample { uncached_tokens: f64::from(turn % 7), seconds: 1e6 };
        model.observe(sample, model.line().unwrap(), 0.0);
        let line = model.line().unwrap();
        assert!((0.0..=BASE_MAX_S).contains(&line.base_s) && (SLOPE.0..=SLOPE.1).contains(&line.slope_s));
    }
}

#[test]
fn equal_hardware_ties_and_unequal_does_not() {
    let pool = TtftLine { base_s: 0.02, slope_s: 1.0 / 8_000.0 };
    let mut random = Random::new(4);
    let (mut same, mut slow) = (TtftModel::empty(), TtftModel::empty());
    feed(&mut same, &mut random, 100, 0.02, 8_300.0, false);
    feed(&mut slow, &mut random, 100, 0.02, 2_000.0, false);
    assert_eq!(same.within(pool, 0.0, 4), pool);
    assert!(slow.within(pool, 0.0, 4).slope_s > 3.0 * pool.slope_s);
    // Unheard of for long, it is given another chance.
    assert_eq!(slow.within(pool, 64.0 * 4.0 * 10.0, 4), pool);
}
