//! Engines that behave.

use larder_protocol::ToEngine;
use larder_protocol::message::{Goodbye, Offload, Verdict};

use crate::engine::{Engine, keys, register};
use crate::node;

#[test]
fn what_one_engine_offloads_another_loads() {
    let node = node::start("");
    let mut one = Engine::connect(&node.socket(), "one", register(100_000, 1, 1));
    assert_eq!(one.offload(0..20), [Verdict::Accepted; 20]);
    let offload = Offload { id: one.id(), keys: keys(18..22) };
    let ToEngine::Offloading(offloading) = one.ask(offload) else { panic!("an answer to offload") };
    let (held, write) = (Verdict::Held, Verdict::Accepted);
    assert_eq!(offloading.verdicts.0, [held, held, write, write]);
    let mut two = Engine::connect(&node.socket(), "two", register(100_000, 1, 1));
    assert_eq!(two.load_and_compare(0..30), 20);
    let mut other = Engine::connect(&node.socket(), "other", register(100_000, 1, 2));
    assert_eq!(other.load_and_compare(0..30), 0, "other weights share nothing");
    // And after the first engine is gone.
    one.wire.say(Goodbye { reason: "done".into() });
    while one.wire.hear().is_some() {}
    node.wait_for("sessions", 2);
    assert_eq!(two.load_and_compare(0..30), 20);
}

#[test]
fn every_rank_reads_back_its_own_part() {
    let node = node::start("");
    let mut two = Engine::connect(&node.socket(), "two", register(50_000, 2, 1));
    assert_eq!(two.offload(0..8), [Verdict::Accepted; 8]);
    assert_eq!(two.load_and_compare(0..8), 8);
    let mut one = Engine::connect(&node.socket(), "one", register(100_000, 1, 1));
    assert_eq!(one.load_and_compare(0..8), 0, "a chunk of two parts is not a chunk of one");
}

#[test]
fn eviction_under_load_never_mixes_chunks() {
    // Three extents for eight engines of two layouts, whose keys together take twice as much.
    let node = node::start("host = { size = \"192MiB\" }\nverify_fresh = \"0s\"");
    std::thread::scope(|scope| {
        for number in 0..8_u64 {
            let socket = node.socket();
            scope.spawn(move || {
                let part = if number.is_multiple_of(2) { 130_000 } else { 300_000 };
                let mut engine = Engine::connect(&socket, &format!("e{number}"), register(part, 1, 1));
                let mut state = number + 1;
                for _ in 0..60 {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let first = (state >> 33) % 120 * 8;
                    if state >> 63 == 0 {
                        engine.offload(first..first + 8);
                    } else {
                        engine.load_and_compare(first..first + 8);
                    }
                }
            });
        }
    });
    assert!(node.stat("evicted_chunks_total") > 0, "the slab was too small for all, as meant");
    assert_eq!(node.stat("corrupt_chunks_total"), 0);
    node.wait_for("sessions", 0);
    node.wait_for("pinned_bytes", 0);
}
