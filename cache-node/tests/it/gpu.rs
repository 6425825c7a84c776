//! The node and a GPU: the node's process copies into pages that the engine's process (this one) owns, as it asks, and
//! the engine compares every byte, touched or not. On the emulator, unless `LARDER_REAL_CUDA=1`.

use larder_kernels::reference;
use larder_protocol::ToEngine;
use larder_protocol::message::{Fetch, Moved, Save};

use crate::gpu::cache::{BLOCKS, CHUNK_BLOCKS, Setup, noise};
use crate::gpu::engine::{GpuEngine, emulator_turn, node, turn};

mod cache;
mod ends;
mod engine;
mod landing;
mod python;

/// What the engine does wrong on purpose.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// It reads its pages without waiting for the node's event.
    NoWait,
    /// It names a wrong block.
    Block,
}

/// Saves two chunks out of the engine's pages, commits them, overwrites the pages, and fetches both back into other
/// blocks, the first not whole. How many bytes of the pages are not as they must be.
fn wrong_bytes(setup: &Setup, wrong: Wrong) -> usize {
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    engine.save_and_commit(1..3, &[5, 2, 9, 0, 7, 8, 1, 15]);
    for (rank, chunk) in [(0, 1), (0, 2)] {
        assert_eq!(engine.held(rank, chunk), engine.saved(rank, chunk), "{setup:?}");
    }
    engine.fill(2);
    let lease = engine.lease(1..3);
    let asked: [u32; 7] = [3, 4, 6, 10, 12, 11, 13];
    let mut blocks = asked.to_vec();
    if wrong == Wrong::Block {
        blocks[6] = 14;
    }
    if wrong == Wrong::NoWait {
        node.knobs("hold");
    }
    let fetch = Fetch { id: 77, lease: lease.lease, first: 0, skip: 1, blocks, after: Some(0) };
    let found = engine.fetch_and_read(0, fetch, wrong != Wrong::NoWait);
    node.knobs("");
    let moved = engine.moved(0, 77);
    assert!(moved.ok && moved.quiet, "{moved:?}");
    let mut expected = noise(2, setup.bytes());
    let layout = setup.layout();
    reference::scatter(&layout, &engine.saved(0, 1), &mut expected, &asked[..3], 1);
    reference::scatter(&layout, &engine.saved(0, 2), &mut expected, &asked[3..], 0);
    found.iter().zip(expected).filter(|(one, other)| **one != *other).count()
}

/// What `LARDER_NEGATIVE_CONTROL` says is to be done wrong: with it the proof must fail.
fn switched() -> Wrong {
    match std::env::var("LARDER_NEGATIVE_CONTROL").as_deref() {
        Err(_) => Wrong::Nothing,
        Ok("wait") => Wrong::NoWait,
        Ok("block") => Wrong::Block,
        Ok(other) => panic!("LARDER_NEGATIVE_CONTROL is wait or block here, and not {other}"),
    }
}

#[test]
fn every_byte_is_where_it_must_be_and_no_other_has_changed() {
    let _turn = turn();
    for setup in Setup::all() {
        assert_eq!(wrong_bytes(&setup, switched()), 0, "{setup:?}");
    }
}

#[test]
fn control_a_dropped_wait_and_a_wrong_block_are_found() {
    let Some(_turn) = emulator_turn() else { return };
    for setup in Setup::all() {
        let block = setup.layout().chunk_bytes() as usize / CHUNK_BLOCKS as usize;
        assert!(wrong_bytes(&setup, Wrong::NoWait) > 5 * block, "{setup:?}");
        assert!(wrong_bytes(&setup, Wrong::Block) > block, "{setup:?}");
    }
}

#[test]
fn control_a_byte_that_flips_on_the_way_to_the_pages_is_found() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let mut found = 0;
    // The copies of a node, in its order: the table of layers, block numbers, pages out, block numbers, pages in.
    for copy in ["8", "9", "10", "11"] {
        let node = node("", &[("LARDER_EMULATOR_FLIP", copy)]);
        let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
        engine.commit_by_hand(1..2);
        engine.fill(2);
        let lease = engine.lease(1..2);
        for id in 0..4 {
            let blocks = vec![3, 4, 6, 10];
            let fetch = Fetch { id, lease: lease.lease, first: 0, skip: 0, blocks, after: Some(0) };
            // Whose number a copy has varies by one or two. In the table of layers a flip is an address that the kernel
            // may not touch: that fetch fails in words, the GPU is lost to this node, and the next copy is tried.
            let Some(pages) = engine.fetch_and_read_if_it_goes(0, fetch) else { break };
            let mut expected = noise(2, setup.bytes());
            reference::scatter(&setup.layout(), &engine.held(0, 1), &mut expected, &[3, 4, 6, 10], 0);
            found += usize::from(pages != expected);
        }
    }
    assert!(found > 0);
}

/// The node saves what the engine has written by then, and not what was there before.
#[test]
fn a_save_waits_for_the_engine_s_event() {
    let Some(turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    turn.hold(true);
    let writing = engine.begin_to_fill(5);
    let save = Save { id: 5, region_slots: vec![0], blocks: vec![0, 1, 2, 3], after: Some(0) };
    engine.say(0, save);
    node.node.wait_for("gpu_unready_jobs", 1);
    turn.hold(false);
    engine.filled(5, writing);
    let moved = engine.moved(0, 5);
    assert!(moved.ok, "{moved:?}");
    let mut expected = vec![0; setup.layout().chunk_bytes() as usize];
    reference::gather(&setup.layout(), &noise(5, setup.bytes()), &mut expected, &[0, 1, 2, 3], 0);
    assert_eq!(engine.region(0, 0), expected);
}

#[test]
fn each_rank_has_its_part_of_a_chunk_and_its_gpu() {
    let turn = turn();
    let setup = &Setup::all()[3];
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 2);
    engine.save_and_commit(1..2, &[4, 3, 2, 1]);
    engine.fill(9);
    let lease = engine.lease(1..2);
    for rank in 0..2 {
        assert_eq!(engine.held(rank, 1), engine.saved(rank, 1));
        let blocks = vec![8, 9, 10, 11];
        let fetch = Fetch { id: 1, lease: lease.lease, first: 0, skip: 0, blocks, after: Some(0) };
        let pages = engine.fetch_and_read(rank, fetch, true);
        assert!(engine.moved(rank, 1).ok);
        let mut expected = engine.noise(rank, 9);
        reference::scatter(&setup.layout(), &engine.saved(rank, 1), &mut expected, &[8, 9, 10, 11], 0);
        assert!(pages == expected, "rank {rank}");
    }
    assert_eq!(node.node.stat("fetches_total"), 2);
    assert_eq!(node.node.stat("gpu_ranks"), 2);
    let gpus = if turn.on_gpu() { engine.gpus().min(2) } else { 2 };
    assert_eq!(node.stats()["links"].as_array().unwrap().len(), gpus, "one for each GPU");
}

/// What a router must know: how far each link is behind. Loads go before stores that came before them.
#[test]
fn a_link_tells_what_waits_for_it() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    engine.commit_by_hand(1..41);
    let lease = engine.lease(1..41);
    node.knobs("hold");
    let blocks = [0, 1, 2, 3].repeat(40);
    for id in [1, 2] {
        let save = Save { id, region_slots: (0..40).collect(), blocks: blocks.clone(), after: None };
        engine.say(0, save);
    }
    let bytes = setup.layout().chunk_bytes();
    // Stores that come at the same time as loads would begin after these.
    node.node.wait_for("gpu_moving_bytes", 16 * bytes);
    node.node.wait_for("gpu_waiting_store_bytes", 64 * bytes);
    engine.say(0, Fetch { id: 3, lease: lease.lease, first: 0, skip: 0, blocks, after: None });
    // 32 pass at once, of which stores take half though they came first.
    node.node.wait_for("gpu_waiting_load_bytes", 24 * bytes);
    let link = &node.stats()["links"][0];
    assert_eq!((&link["waiting_loads"], &link["waiting_stores"]), (&24.into(), &64.into()), "{link}");
    assert_eq!(
        (&link["storing_bytes"], &link["loading_bytes"]),
        (&(16 * bytes).into(), &(16 * bytes).into()),
        "{link}"
    );
    node.knobs("");
    // What has begun ends as the GPU's streams get on; which begins first is the link's own, at any speed.
    let (mut begun, mut ended) = (Vec::new(), 0);
    while ended < 3 {
        match engine.hear(0) {
            ToEngine::Moving(moving) => begun.push(moving.id),
            ToEngine::Moved(moved) => {
                assert!(moved.ok, "{moved:?}");
                ended += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(begun, [3, 1, 2], "the load's last chunk begins before any store that waited with it");
    node.node.wait_for("gpu_moving_bytes", 0);
}

/// Engine and node see the GPUs in another order, or not all of them: the UUID says which is which.
#[test]
fn a_gpu_is_found_by_its_uuid_whatever_number_it_has() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    for (visible, serves) in [("1,0", true), ("1", true), ("0", false), ("", false)] {
        let node = node("", &[("CUDA_VISIBLE_DEVICES", visible)]);
        let mut engine = GpuEngine::unattached(&node.node, "a", setup, 1);
        let attached = engine.attach_with(0, |_| ());
        assert_eq!(attached.is_ok(), serves, "{visible}: {attached:?}");
        engine.commit_by_hand(1..2);
        if serves {
            let lease = engine.lease(1..2);
            node.node.wait_for_least("gpu_pinned_bytes", 64 << 20);
            let blocks = vec![3, 4, 6, 10];
            let fetch = Fetch { id: 1, lease: lease.lease, first: 0, skip: 0, blocks, after: Some(0) };
            let pages = engine.fetch_and_read(0, fetch, true);
            let mut expected = noise(1, setup.bytes());
            reference::scatter(&setup.layout(), &engine.content(0, 1), &mut expected, &[3, 4, 6, 10], 0);
            assert!(pages == expected, "{visible}");
        }
    }
}

/// Two engines of different layouts on one GPU, whose fetches are under way at the same time.
#[test]
fn engines_do_not_disturb_each_other() {
    let _turn = turn();
    // An extent for each size of chunks.
    let node = node("host = { size = \"128MiB\" }", &[]);
    let setups = [&Setup::all()[0], &Setup::all()[3]];
    let mut engines = ["a", "b"].into_iter().zip(setups).map(|(name, setup)| {
        let mut engine = GpuEngine::start(&node.node, name, setup, 1);
        engine.commit_by_hand(1..9);
        engine.fill(2);
        engine
    });
    let mut engines = [engines.next().unwrap(), engines.next().unwrap()];
    // On a GPU nobody looks at them.
    node.knobs("hold");
    let fetches = [(1, [3, 4, 6, 10]), (2, [12, 11, 13, 0]), (3, [9, 8, 1, 15])];
    for engine in &mut engines {
        let lease = engine.lease(1..9);
        for (number, blocks) in fetches {
            let first = number as u32 - 1;
            let blocks = blocks.to_vec();
            engine.say(0, Fetch { id: number, lease: lease.lease, first, skip: 0, blocks, after: Some(0) });
        }
    }
    node.knobs("");
    for (engine, setup) in engines.iter_mut().zip(setups) {
        let mut expected = noise(2, setup.bytes());
        for (number, blocks) in fetches {
            assert!(engine.moved(0, number).ok);
            reference::scatter(&setup.layout(), &engine.content(0, number), &mut expected, &blocks, 0);
        }
        assert!(engine.read(0) == expected, "{setup:?}");
    }
}

/// The node reads the pages before the engine has written them, if it is not told to wait.
#[test]
fn control_a_dropped_wait_for_the_engine_is_found() {
    let Some(turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    turn.hold(true);
    let writing = engine.begin_to_fill(5);
    engine.say(0, Save { id: 5, region_slots: vec![0], blocks: vec![0, 1, 2, 3], after: None });
    assert!(engine.moved(0, 5).ok);
    turn.hold(false);
    engine.filled(5, writing);
    let gathered = |seed| {
        let mut chunk = vec![0; setup.layout().chunk_bytes() as usize];
        reference::gather(&setup.layout(), &noise(seed, setup.bytes()), &mut chunk, &[0, 1, 2, 3], 0);
        chunk
    };
    assert!(engine.region(0, 0) == gathered(1) && gathered(1) != gathered(5));
}

#[test]
fn what_cannot_be_done_is_said_and_harms_nobody() {
    let _turn = turn();
    let setup = &Setup::all()[0];
    let node = node("", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    engine.commit_by_hand(1..2);
    let lease = engine.lease(1..2);
    let fetch =
        |blocks: Vec<u32>, skip, first| Fetch { id: 1, lease: lease.lease, first, skip, blocks, after: None };
    for (wrong, says) in [
        (fetch(vec![BLOCKS], 0, 0), "block 16 in a cache of 16"),
        (fetch(vec![1, 1], 0, 0), "block 1 twice"),
        (Fetch { after: Some(9), ..fetch(vec![1], 0, 0) }, "no event 9"),
    ] {
        let ToEngine::Moved(Moved { ok: false, quiet: true, message: Some(text), .. }) = engine.ask(0, wrong)
        else {
            panic!("{says}");
        };
        assert!(text.contains(says), "{text}");
    }
    for wrong in [fetch(vec![1; 5], 0, 0), fetch(vec![1], 0, 1), fetch(vec![], 0, 0), fetch(vec![1], 4, 0)] {
        assert!(matches!(engine.ask(0, wrong), ToEngine::ErrorAnswer(_)));
    }
    let save = |slot, blocks: Vec<u32>| Save { id: 1, region_slots: vec![slot], blocks, after: None };
    for wrong in [save(0, vec![1]), save(1 << 20, vec![1, 2, 3, 4]), save(0, vec![])] {
        assert!(matches!(engine.ask(0, wrong), ToEngine::ErrorAnswer(_)));
    }
    // The lease still loads.
    assert!(matches!(engine.ask(0, fetch(vec![1, 2, 3, 4], 0, 0)), ToEngine::Moving(_)));
    assert!(engine.moved(0, 1).ok);
}

#[test]
fn pages_that_cannot_be_opened_are_refused_and_the_engine_goes_on() {
    let _turn = turn();
    let node = node("", &[]);
    let setup = &Setup::all()[0];
    let mut engine = GpuEngine::unattached(&node.node, "a", setup, 1);
    for (change, says) in engine::WRONG_PAGES {
        let refused = engine.attach_with(0, change).unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }
    // As if nothing had been: it attaches, and loads.
    engine.attach_with(0, |_| ()).unwrap();
    assert!(engine.attach_with(0, |_| ()).unwrap_err().contains("open already"));
    engine.commit_by_hand(1..2);
}

#[test]
fn a_node_without_a_gpu_says_so_and_serves() {
    let setup = &Setup::all()[0];
    let _turn = turn();
    let node = node("", &[("LARDER_LIBCUDA", "no/such/libcuda.so")]);
    let mut engine = GpuEngine::unattached(&node.node, "a", setup, 1);
    let refused = engine.attach_with(0, |_| ()).unwrap_err();
    assert!(refused.contains("no GPU"), "{refused}");
    engine.commit_by_hand(1..2);
    assert_eq!(engine.lease(1..2).slots.len(), 1);
}
