//! The policy against engines it cannot see into: seeded, single-threaded, no clock. What is asserted are relations
//! between policies on the same traffic, with room to spare; the figures themselves are printed on failure.
#![allow(missing_docs)]

#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/engine.rs"]
mod engine;
#[path = "simulation/world.rs"]
mod world;

use clients::{Chats, Shared};
use larder_routing::PolicyKind;
use world::{Report, Setup, imbalance, run};

/// Long chats that together need about as much as four engines can keep: 13 to 22 % of all that is ever sent.
fn chats(policy: PolicyKind, seed: u64, told: f64) -> Report {
    let setup = Setup { policy, seed, engines: 4, capacity_blocks: 5_200, tokens_per_s: 4_000.0, told };
    let report = run(&setup, &mut Chats::new(80, 3_000));
    let share = 4.0 * 5_200.0 / report.unique_blocks as f64;
    assert!((0.10..=0.25).contains(&share), "the engines keep {share} of all blocks");
    report
}

#[test]
fn chats_under_memory_pressure_keep_their_prefixes() {
    for seed in [1, 2, 3] {
        let [larder, min_ttft, session, robin] = PolicyKind::ALL.map(|policy| chats(policy, seed, 1.0));
        let told = || format!("seed {seed}\n{larder:?}\n{min_ttft:?}\n{session:?}\n{robin:?}");
        assert!(larder.hit_rate >= 2.0 * robin.hit_rate, "{}", told());
        assert!(larder.hit_rate > min_ttft.hit_rate + 0.03, "{}", told());
        let others = [&min_ttft, &session, &robin];
        assert!(others.iter().all(|other| larder.ttft_mean_s < other.ttft_mean_s), "{}", told());
        assert!(imbalance(&larder.uncached_tokens) < 1.2, "{}", told());
        assert!((0.95..1.05).contains(&larder.promised), "{}", told());
    }
}

#[test]
fn a_capacity_told_wrong_costs_little() {
    let right = chats(PolicyKind::Larder, 1, 1.0);
    for told in [0.8, 1.2] {
        let wrong = chats(PolicyKind::Larder, 1, told);
        assert!(wrong.hit_rate > right.hit_rate - 0.05, "told {told}:\n{wrong:?}\n{right:?}");
        assert!((0.9..1.1).contains(&wrong.promised), "told {told}: {wrong:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(chats(PolicyKind::Larder, 4, 1.0), chats(PolicyKind::Larder, 4, 1.0));
    assert_ne!(chats(PolicyKind::Larder, 4, 1.0), chats(PolicyKind::Larder, 5, 1.0));
}

fn shared(policy: PolicyKind, clients: &mut Shared) -> Report {
    let setup =
        Setup { policy, seed: 1, engines: 4, capacity_blocks: 50_000, tokens_per_s: 4_000.0, told: 1.0 };
    run(&setup, clients)
}

/// Nine in ten prompts share 4,096 tokens; the engines are 70 % busy.
#[test]
fn a_system_prompt_that_everyone_shares_overloads_nobody() {
    let busy = || Shared {
        prompts: 4_000,
        sharing: 90,
        system_blocks: 64,
        own_blocks: 8,
        between_s: 0.086,
        decode_s: 2.0,
    };
    let larder = shared(PolicyKind::Larder, &mut busy());
    assert!(imbalance(&larder.uncached_tokens) < 1.2, "{larder:?}");
    assert!(imbalance(&larder.served) < 1.4, "{larder:?}");
    assert!(larder.hit_rate > 0.75, "{larder:?}");
    // The control: affinity without regard to load puts everything in one place.
    let blind = shared(PolicyKind::SessionHash, &mut busy());
    assert_eq!(imbalance(&blind.served), 4.0);
}

/// The same prompt before short questions with long answers: prefill is never a bottleneck, and yet they spread.
#[test]
fn long_answers_behind_one_system_prompt_spread_too() {
    let mut talkative = Shared {
        prompts: 3_000,
        sharing: 90,
        system_blocks: 64,
        own_blocks: 1,
        between_s: 0.2,
        decode_s: 100.0,
    };
    let report = shared(PolicyKind::Larder, &mut talkative);
    let most: Vec<u64> = report.decoding_most.iter().map(|&most| u64::from(most)).collect();
    assert!(imbalance(&most) < 1.4, "{report:?}");
}
