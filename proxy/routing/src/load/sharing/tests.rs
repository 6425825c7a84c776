use super::*;
use crate::load::Load;
use crate::random::Random;
use crate::time::Now;

#[test]
fn waiting_is_first_come_first_served_at_width_one_and_even_shares_above() {
    assert_eq!(wait_s(&mut [4.0, 2.0], 1, 1.0), 6.0);
    // Beside one: both get half, and the short one is through after two seconds.
    assert_eq!(wait_s(&mut [4.0], 2, 1.0), 1.0);
    // The longer one has run four seconds of eight by then, and the rest of its own alone.
    assert_eq!(wait_s(&mut [4.0], 2, 9.0), 4.0);
    // No place is free for eight seconds.
    assert_eq!(wait_s(&mut [4.0, 4.0], 2, 1.0), 8.0);
    // What should be done holds no place.
    assert_eq!(wait_s(&mut [0.0, 4.0], 2, 1.0), 1.0);
}

/// Whatever is ahead: nobody waits longer than for all of it; one at a time for all of it; and where all have a place,
/// each delays it by what they have in common.
#[test]
fn waits_lie_between_those_of_even_shares_and_of_one_after_the_other() {
    let mut random = Random::new(7);
    for _ in 0..2_000 {
        let left: Vec<f64> = (0..random.below(12)).map(|_| random.below(1_000) as f64 / 64.0).collect();
        let own_s = random.below(1_000) as f64 / 64.0;
        let all: f64 = left.iter().sum();
        let common: f64 = left.iter().map(|left| left.min(own_s)).sum();
        let wait = |width| wait_s(&mut left.clone(), width, own_s);
        assert!((wait(1) - all).abs() < 1e-6 && (wait(WIDTH_MAX) - common).abs() < 1e-6, "{left:?} {own_s}");
        for width in 1..=WIDTH_MAX {
            assert!((common - 1e-6..=all + 1e-6).contains(&wait(width)), "{left:?} {own_s} {width}");
        }
    }
}

#[test]
fn short_ones_join_and_equals_do_not() {
    assert!(may_join([10.0].into_iter(), 1.0));
    assert!(!may_join([10.0].into_iter(), 2.0));
    assert!(!may_join([10.0].into_iter(), 10.0));
    assert!(!may_join([10.0, 0.5].into_iter(), 1.4), "the other short one loses as well");
    assert!(may_join([0.3].into_iter(), 10.0), "what is all but done is no reason to wait");
    assert!(may_join(std::iter::empty(), 5.0));
}

/// An engine that works on up to `width` prompts with even shares, in steps of a tenth of a second; every prompt of a
/// step that is done tells so at its end, in an order that means nothing.
struct Engine {
    width: usize,
    jobs: Vec<(u32, f64, Now)>,
    now: f64,
}

impl Engine {
    fn step(&mut self, load: &mut Load, random: &mut Random) {
        let mut budget = 0.1;
        self.now += budget;
        let active = self.jobs.len().min(self.width);
        let mut order: Vec<usize> = (0..active).collect();
        order.sort_by(|a, b| self.jobs[*a].1.total_cmp(&self.jobs[*b].1));
        for (done, at) in order.into_iter().enumerate() {
            let given = self.jobs[at].1.min(budget / (active - done) as f64);
            self.jobs[at].1 -= given;
            budget -= given;
        }
        // What a step has left goes to the next in line, as engines do.
        for job in self.jobs.iter_mut().skip(active) {
            let given = job.1.min(budget);
            job.1 -= given;
            budget -= given;
        }
        let mut done: Vec<_> = self.jobs.iter().copied().filter(|job| job.1 <= 1e-9).collect();
        self.jobs.retain(|job| job.1 > 1e-9);
        while !done.is_empty() {
            let (request, _, at) = done.swap_remove(random.below(done.len()));
            load.first_token(request, at, Now::from_secs_f64(self.now));
            load.end(request, Now::from_secs_f64(self.now));
        }
    }
}

fn takes(load: &Load, service_s: f64, now: f64) -> bool {
    let now = Now::from_secs_f64(now);
    load.backlog_s(now) <= 0.25 || load.lets_pass(service_s, now)
}

/// Sends hits and misses as the queue would, early ones included, and returns the width that was learned.
fn learn(load: &mut Load, width: usize, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let mut engine = Engine { width, jobs: Vec::new(), now: 1.0 };
    for request in 0..3_000 {
        let service_s = if random.below(5) == 0 { 4.0 } else { 0.05 + random.below(20) as f64 / 100.0 };
        while !takes(load, service_s, engine.now) {
            engine.step(load, &mut random);
        }
        let now = Now::from_secs_f64(engine.now);
        load.begin(request, 1, service_s, (true, now), now);
        engine.jobs.push((request, service_s, now));
        if random.below(3) == 0 {
            engine.step(load, &mut random);
        }
    }
    while !engine.jobs.is_empty() {
        engine.step(load, &mut random);
    }
    load.width()
}

#[test]
fn width_is_learned_from_the_order_of_first_tokens_and_unlearned() {
    for seed in 0..8 {
        // Negative control: one after the other, with several prompts done in one step in any order.
        assert_eq!(learn(&mut Load::default(), 1, seed), 1, "seed {seed}");
        let mut load = Load::default();
        let shared = learn(&mut load, 4, seed);
        assert!((2..=4).contains(&shared), "seed {seed}: {shared}");
        assert_eq!(learn(&mut load, 1, seed), 1, "seed {seed}: another engine under the same name");
    }
}
