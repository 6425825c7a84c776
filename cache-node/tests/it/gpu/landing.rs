//! The device tier: a stage call brings the beginning of a prompt from disk to host memory to the landing slab, and the
//! engine's fetch then scatters it inside the GPU.

use larder_kernels::reference;
use larder_protocol::LeaseId;
use larder_protocol::message::Fetch;

use super::cache::{CHUNK_BLOCKS, Setup, noise};
use super::engine::{GpuEngine, GpuNode, emulator_turn, node, turn};
use crate::disk::{settle, tier};
use crate::engine::{Engine, register};

/// Chunks of the prompt.
const CHUNKS: u64 = 3;

/// Blocks of all chunks in the engine's pages, in no order.
const BLOCKS: [u32; 12] = [3, 4, 6, 10, 12, 11, 13, 0, 9, 8, 1, 15];

/// Fetches the first chunks of a lease, and how many bytes of all pages are not as they must be then.
fn wrong_bytes(engine: &mut GpuEngine, setup: &Setup, lease: LeaseId, chunks: u64) -> usize {
    engine.fill(2);
    let blocks = BLOCKS[..(chunks * u64::from(CHUNK_BLOCKS)) as usize].to_vec();
    let fetch = Fetch { id: 7, lease, first: 0, skip: 0, blocks, after: Some(0) };
    let found = engine.fetch_and_read(0, fetch, true);
    let moved = engine.moved(0, 7);
    assert!(moved.ok, "{moved:?}");
    let mut expected = noise(2, setup.bytes());
    for (number, own) in (1..=chunks).zip(BLOCKS.chunks(CHUNK_BLOCKS as usize)) {
        reference::scatter(&setup.layout(), &engine.content(0, number), &mut expected, own, 0);
    }
    found.iter().zip(expected).filter(|(one, other)| **one != *other).count()
}

/// Engine "a" has stored a prompt whose recipe the node knows.
fn known(node: &GpuNode, setup: &Setup) -> GpuEngine {
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    assert_eq!(node.stage(1, CHUNKS)["reason"], "no_recipe");
    engine.commit_tagged(1..CHUNKS + 1, 1);
    engine
}

/// Stages the prompt; gives back the lease and its chunks.
fn staged(node: &GpuNode, engine: &mut GpuEngine, tag: u128) -> (LeaseId, u64) {
    let answer = node.stage(tag, CHUNKS + 1);
    let grant = engine.grant();
    assert_eq!(answer["chunks"].as_u64(), Some(grant.slots.len() as u64), "{answer}");
    assert!(grant.slots.len() >= 2, "{answer}");
    (grant.lease, grant.slots.len() as u64)
}

/// From disk to host memory to the landing slab to the pages.
fn staged_from_disk(setup: &Setup) {
    let directory = tempfile::tempdir().unwrap();
    let lines = format!("[device]\nlanding = \"8MiB\"\nverify = true\n{}", tier(directory.path(), ""));
    let node = node(&lines, &[]);
    let mut engine = known(&node, setup);
    settle(&node.node, CHUNKS);
    // A chunk of another size takes the only extent.
    let mut other = Engine::connect(&node.node.socket(), "other", register(16 << 20, 1, 9));
    other.offload(900..901);
    assert_eq!(node.node.stat("held_chunks"), 1, "the prompt is on disk only");
    let (lease, chunks) = staged(&node, &mut engine, 2);
    assert_eq!(node.node.stat("raised_chunks_total"), chunks);
    node.node.wait_for("gpu_landed_chunks_total", chunks);
    assert!(node.node.stat("gpu_landing_bytes") > 0);
    assert_eq!(wrong_bytes(&mut engine, setup, lease, chunks), 0, "{setup:?}");
    assert_eq!(node.node.stat("gpu_scattered_chunks_total"), chunks);
    assert_eq!(node.node.stat("gpu_landing_bytes"), 0, "freed as it was scattered");
    // Once more: nothing of it lies there now, and it comes from host memory.
    assert_eq!(wrong_bytes(&mut engine, setup, lease, chunks), 0, "{setup:?}");
    assert_eq!(node.node.stat("gpu_scattered_chunks_total"), chunks);
}

#[test]
fn what_is_staged_lies_in_the_gpu_and_is_scattered_there() {
    let _turn = turn();
    Setup::all().iter().for_each(staged_from_disk);
}

#[test]
fn only_the_head_lies_there_and_an_unused_stage_leaves_nothing() {
    let _turn = turn();
    // Chunks of 68,000 bytes; there is room for one.
    let setup = &Setup::all()[2];
    let node = node("[device]\nlanding = \"128KiB\"", &[]);
    let mut engine = known(&node, setup);
    let (lease, chunks) = staged(&node, &mut engine, 2);
    node.node.wait_for("gpu_landed_chunks_total", 1);
    assert_eq!(wrong_bytes(&mut engine, setup, lease, chunks), 0);
    assert_eq!(node.node.stat("gpu_scattered_chunks_total"), 1);
    engine.release(lease);
    let (lease, _) = staged(&node, &mut engine, 3);
    node.node.wait_for("gpu_landed_chunks_total", 2);
    assert_eq!(node.node.stat("gpu_landing_chunks"), 1);
    engine.release(lease);
    node.node.wait_for("gpu_landing_bytes", 0);
    node.node.wait_for("pinned_bytes", 0);
}

#[test]
fn without_a_budget_staging_stops_at_host_memory() {
    let _turn = turn();
    let setup = &Setup::all()[0];
    let node = node("", &[]);
    let mut engine = known(&node, setup);
    let (lease, chunks) = staged(&node, &mut engine, 2);
    assert_eq!(wrong_bytes(&mut engine, setup, lease, chunks), 0);
    assert_eq!(
        (node.node.stat("gpu_landed_chunks_total"), node.node.stat("gpu_scattered_chunks_total")),
        (0, 0)
    );
}

/// The first copy to the GPU is the table of the engine's layers, the second the first chunk.
#[test]
fn a_byte_that_flips_on_the_way_to_the_slab_is_found_there() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    for verify in [true, false] {
        let lines = format!("[device]\nlanding = \"8MiB\"\nverify = {verify}");
        let node = node(&lines, &[("LARDER_EMULATOR_FLIP", "2")]);
        let mut engine = known(&node, setup);
        let (lease, chunks) = staged(&node, &mut engine, 2);
        node.node.wait_for("gpu_landed_chunks_total", chunks - u64::from(verify));
        let wrong = wrong_bytes(&mut engine, setup, lease, chunks);
        // Without the look the control fails: the byte is wrong in the engine's pages.
        assert_eq!(wrong, usize::from(!verify));
        assert_eq!(node.node.stat("gpu_landings_wrong_total"), u64::from(verify));
        assert_eq!(node.node.stat("gpu_scattered_chunks_total"), chunks - u64::from(verify));
    }
}
