//! Whatever dies or fails: the other side goes on, no chunk is lost, and nothing is answered wrong.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder_kernels::reference;
use larder_protocol::message::{Fetch, Moved, Save};
use larder_protocol::{LeaseId, ToEngine};

use super::cache::{Setup, noise};
use super::engine::{GpuEngine, GpuNode, emulator_turn, node, node_in};
use crate::disk::{settle, tier};
use crate::node::PATIENCE;

const SOCKET: &str = "LARDER_TEST_GPU_NODE";
const BLOCKS: [u32; 4] = [3, 4, 6, 10];

fn fetch(id: u64, lease: LeaseId) -> Fetch {
    Fetch { id, lease, first: 0, skip: 0, blocks: BLOCKS.to_vec(), after: Some(0) }
}

/// The engine has chunk 1 in its pages, and nothing else has changed.
fn loads(engine: &mut GpuEngine, setup: &Setup) {
    engine.fill(2);
    let lease = engine.lease(1..2);
    let found = engine.fetch_and_read(0, fetch(90, lease.lease), true);
    assert!(engine.moved(0, 90).ok);
    let mut expected = noise(2, setup.bytes());
    reference::scatter(&setup.layout(), &engine.content(0, 1), &mut expected, &BLOCKS, 0);
    assert!(found == expected, "{setup:?}");
    engine.release(lease.lease);
}

/// Runs only as an engine's process: fetches when it is told to, and waits until it is killed.
#[test]
fn engine_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let socket = Path::new(&socket);
    let setup = &Setup::all()[std::env::var("LARDER_TEST_GPU_SETUP").unwrap().parse::<usize>().unwrap()];
    let mut engine = GpuEngine::unattached_at(socket, "dead", setup, 1);
    engine.attach_with(0, |_| ()).unwrap();
    let lease = engine.lease(1..2);
    while !socket.with_file_name("go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    engine.say(0, fetch(1, lease.lease));
    std::thread::sleep(PATIENCE);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_engine_killed_in_mid_copy_takes_nothing_with_it() {
    let Some(_turn) = emulator_turn() else { return };
    for which in [0, 1] {
        let setup = &Setup::all()[which];
        let node = node("", &[]);
        let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
        engine.commit_by_hand(1..2);
        let left = node.left();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "gpu::ends::engine_process", "--nocapture", "--quiet"]);
        command.env(SOCKET, node.node.socket()).env("LARDER_TEST_GPU_SETUP", which.to_string());
        let mut other = Killed(command.stdout(Stdio::null()).spawn().unwrap());
        node.node.wait_for("gpu_ranks", 2);
        node.knobs("hold");
        std::fs::write(node.node.socket().with_file_name("go"), "").unwrap();
        node.node.wait_for_least("gpu_moving_bytes", 1);
        other.0.kill().unwrap();
        other.0.wait().unwrap();
        node.node.wait_for("gpu_ranks", 1);
        assert_eq!(node.node.stat("gpu_jobs"), 1, "it stands still in mid-copy");
        assert!(node.node.stat("pinned_bytes") > 0);
        node.knobs("");
        node.node.wait_for("gpu_jobs", 0);
        node.node.wait_for("pinned_bytes", 0);
        assert_eq!((node.node.stat("gpu_stuck_total"), node.node.stat("orphaned_leases")), (0, 0));
        loads(&mut engine, setup);
        // Its next run registers anew.
        loads(&mut GpuEngine::start(&node.node, "dead", setup, 1), setup);
        node.node.wait_for("gpu_ranks", 1);
        node.wait_for_left(left);
    }
}

/// The engine's connection is lost while the GPU stands still in the middle of its fetch.
#[test]
fn what_is_on_its_way_keeps_pages_and_chunks_until_it_has_come() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[1];
    let node = node("", &[]);
    let mut other = GpuEngine::start(&node.node, "other", setup, 1);
    other.commit_by_hand(1..2);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    let left = node.left();
    let lease = engine.lease(1..2);
    node.knobs("hold");
    engine.say(0, fetch(1, lease.lease));
    assert!(matches!(engine.hear(0), ToEngine::Moving(_)));
    drop(engine);
    node.node.wait_for("sessions", 1);
    assert_eq!((node.node.stat("gpu_jobs"), node.node.stat("leases")), (1, 1));
    node.knobs("");
    node.node.wait_for("gpu_jobs", 0);
    node.node.wait_for("leases", 0);
    // Its pages are closed.
    node.wait_for_left(left - 1);
    loads(&mut other, setup);
}

#[test]
fn a_node_killed_in_mid_copy_is_followed_by_one_that_loads() {
    let Some(_turn) = emulator_turn() else { return };
    for setup in &Setup::all()[..2] {
        let directory = tempfile::tempdir().unwrap();
        let lines = tier(directory.path(), "");
        let node = node_in(directory, &lines, &[]);
        let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
        engine.commit_by_hand(1..2);
        settle(&node.node, 1);
        engine.fill(2);
        let lease = engine.lease(1..2);
        node.knobs("hold");
        // What waits for a dead node's event does not wait for ever, and no other page has changed.
        engine.say(0, fetch(1, lease.lease));
        let ToEngine::Moving(moving) = engine.hear(0) else { panic!("it has begun") };
        let directory = node.node.kill();
        let found = engine.read_after(0, moving.event);
        assert!(found == noise(2, setup.bytes()), "nothing had moved yet");
        let node = node_in(directory, &lines, &[]);
        node.node.wait_for("disk_unread_segments", 0);
        engine.reconnect(&node.node);
        engine.wait_for_chunk(1);
        loads(&mut engine, setup);
    }
}

#[test]
fn a_lost_device_fails_what_is_on_its_way_and_loses_no_chunk() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("[device]\nlanding = \"1MiB\"", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    engine.commit_by_hand(1..2);
    let lease = engine.lease(1..2);
    node.knobs("hold");
    engine.say(0, fetch(1, lease.lease));
    assert!(matches!(engine.hear(0), ToEngine::Moving(_)));
    node.knobs("lose 719");
    let moved = engine.moved(0, 1);
    assert!(!moved.ok && !moved.quiet, "{moved:?}");
    for id in 2..4 {
        let ToEngine::Moved(Moved { ok: false, quiet: true, .. }) = engine.ask(0, fetch(id, lease.lease))
        else {
            panic!("the next is refused");
        };
    }
    assert_eq!(node.node.stat("gpu_lost"), 1);
    assert_eq!(node.node.stat("gpu_stuck_total"), 1);
    // The engine copies for itself, as it would without a GPU; another is told to.
    assert_eq!(engine.held(0, 1), engine.content(0, 1));
    let mut other = GpuEngine::unattached(&node.node, "other", setup, 1);
    assert!(other.attach_with(0, |_| ()).unwrap_err().contains("is lost to this process"));
    assert_eq!(other.held(0, 1), other.content(0, 1));
}

/// What is being brought to a GPU that is lost is given up, or kept for good; nobody waits for it.
#[test]
fn a_device_lost_while_a_prompt_lands_costs_the_landing() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("[device]\nlanding = \"1MiB\"", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    assert_eq!(node.stage(1, 3)["reason"], "no_recipe");
    engine.commit_tagged(1..4, 1);
    node.knobs("hold");
    assert!(node.stage(2, 4)["lease"].is_string());
    node.node.wait_for_least("gpu_landing_chunks", 2);
    node.knobs("lose 719");
    node.node.wait_for("gpu_lost", 1);
    let grant = engine.grant();
    let ToEngine::Moved(Moved { ok: false, quiet: true, .. }) = engine.ask(0, fetch(1, grant.lease)) else {
        panic!("the engine copies for itself");
    };
    assert_eq!(engine.held(0, 1), engine.content(0, 1));
    assert!(node.stage(3, 4)["lease"].is_string(), "and staging goes on, to host memory");
}

/// Functions that an engine's coming, a fetch and a save, and its going call.
const CALLS: [&str; 27] = [
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuIpcCloseMemHandle",
    "cuIpcGetEventHandle",
    "cuIpcOpenEventHandle",
    "cuIpcOpenMemHandle_v2",
    "cuLaunchKernel",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemImportFromShareableHandle",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

/// An engine comes, has a chunk saved and one fetched, and goes. Whatever fails is said; what is said to be done is done.
fn round(node: &GpuNode, engine: &mut GpuEngine, setup: &Setup) {
    engine.reconnect_unattached(&node.node);
    if engine.attach_with(0, |_| ()).is_err() {
        assert_eq!(engine.held(0, 1), engine.content(0, 1), "it copies for itself");
        return;
    }
    engine.fill(2);
    let lease = engine.lease(1..2);
    engine.say(0, fetch(1, lease.lease));
    let moved = engine.moved(0, 1);
    if moved.ok {
        let mut expected = noise(2, setup.bytes());
        reference::scatter(&setup.layout(), &engine.content(0, 1), &mut expected, &BLOCKS, 0);
        assert!(engine.read(0) == expected, "{setup:?}");
    }
    engine.say(0, Save { id: 2, region_slots: vec![0], blocks: BLOCKS.to_vec(), after: Some(0) });
    let saved = engine.moved(0, 2);
    // Its region is being pinned by then, or is not.
    if saved.ok && moved.ok {
        assert_eq!(engine.region(0, 0), engine.content(0, 1));
    }
    engine.release(lease.lease);
}

/// What is called once in a node's life, each time in a new one: the first failure is said, the next engine is served.
#[test]
fn every_call_of_a_beginning_fails_once() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    for (function, nth) in [
        ("cuCtxSetCurrent", 1),
        ("cuDeviceGet", 1),
        ("cuDeviceGetCount", 1),
        ("cuDeviceGetUuid_v2", 1),
        ("cuDevicePrimaryCtxRetain", 1),
        ("cuMemAlloc_v2", 1),
        ("cuMemAlloc_v2", 2),
        ("cuMemHostRegister_v2", 1),
        ("cuModuleGetFunction", 1),
        ("cuModuleGetFunction", 7),
        ("cuModuleLoadData", 1),
        ("cuModuleLoadData", 2),
        ("cuStreamCreateWithPriority", 1),
    ] {
        let failure = format!("{function}:{nth}:2");
        let node = node("[device]\nlanding = \"1MiB\"", &[("LARDER_EMULATOR_FAIL", &failure)]);
        let mut engine = GpuEngine::unattached(&node.node, "a", setup, 1);
        engine.commit_by_hand(1..2);
        // The landing slab can be done without; so the second attempt at the latest.
        if let Err(says) = engine.attach_with(0, |_| ()) {
            assert!(says.contains(function), "{failure}: {says}");
            engine.attach_with(0, |_| ()).unwrap();
        }
        assert!(node.failed(), "{failure}");
        node.node.wait_for_least("gpu_pinned_bytes", 64 << 20);
        loads(&mut engine, setup);
    }
    for function in ["cuInit", "cuDriverGetVersion"] {
        let node = node("", &[("LARDER_EMULATOR_FAIL", &format!("{function}:1:2"))]);
        let mut engine = GpuEngine::unattached(&node.node, "a", setup, 1);
        assert!(engine.attach_with(0, |_| ()).unwrap_err().contains("no GPU"));
        engine.commit_by_hand(1..2);
        assert_eq!(engine.held(0, 1), engine.content(0, 1), "it copies for itself");
    }
}

/// Each call of each function fails once, in turn: no panic, no hang, no leak, no lost chunk.
#[test]
fn every_call_fails_once() {
    let Some(_turn) = emulator_turn() else { return };
    for which in [0, 1] {
        let setup = &Setup::all()[which];
        let node = node("", &[]);
        let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
        engine.commit_by_hand(1..2);
        round(&node, &mut engine, setup);
        engine.disconnect(&node.node);
        let (left, begun) = (node.left(), Instant::now());
        let (mut failures, mut kept) = (0, 0);
        for function in CALLS {
            for nth in 1..=40 {
                node.fails(function, nth, 2);
                round(&node, &mut engine, setup);
                engine.disconnect(&node.node);
                node.node.wait_for("gpu_jobs", 0);
                if !node.failed() {
                    break;
                }
                failures += 1;
                kept += i64::from(gives_back(function));
            }
        }
        println!("{failures} failures in {:?}", begun.elapsed());
        assert!(failures > 60, "{failures}");
        assert_eq!(node.node.stat("gpu_lost"), 0);
        // What cannot be given back stays, with what it is made of.
        node.wait_for_left(left + 4 * kept);
        round(&node, &mut engine, setup);
        loads(&mut engine, setup);
    }
}

/// Functions that bringing a prompt to the landing slab calls, and looking at it there.
const LANDING_CALLS: [&str; 8] = [
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuLaunchKernel",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
];

/// A prompt is staged and fetched. What could not be brought to the GPU, or not be looked at, comes from host memory.
#[test]
fn every_call_of_a_stage_fails_once() {
    let Some(_turn) = emulator_turn() else { return };
    let setup = &Setup::all()[0];
    let node = node("[device]\nlanding = \"1MiB\"\nverify = true", &[]);
    let mut engine = GpuEngine::start(&node.node, "a", setup, 1);
    assert_eq!(node.stage(1, 3)["reason"], "no_recipe");
    engine.commit_tagged(1..4, 1);
    let mut tag = 1;
    let mut round = |engine: &mut GpuEngine| {
        let settled = |node: &GpuNode| {
            let names = ["gpu_landed_chunks_total", "gpu_landings_failed_total"];
            names.iter().map(|name| node.node.stat(name)).sum::<u64>()
        };
        let before = settled(&node);
        tag += 1;
        let chunks = node.stage(tag, 4)["chunks"].as_u64().unwrap();
        let start = Instant::now();
        while settled(&node) < before + chunks {
            assert!(start.elapsed() < PATIENCE, "nothing lands");
            std::thread::sleep(Duration::from_millis(1));
        }
        let grant = engine.grant();
        engine.say(0, fetch(1, grant.lease));
        let moved = engine.moved(0, 1);
        engine.release(grant.lease);
        node.node.wait_for("gpu_landing_bytes", 0);
        node.node.wait_for("pinned_bytes", 0);
        moved.ok
    };
    assert!(round(&mut engine));
    let left = node.left();
    let mut failures = 0;
    for function in LANDING_CALLS {
        for nth in 1..=30 {
            node.fails(function, nth, 2);
            round(&mut engine);
            if !node.failed() {
                break;
            }
            failures += 1;
        }
    }
    println!("{failures} failures");
    assert!(failures > 40, "{failures}");
    assert!(node.node.stat("gpu_landings_failed_total") > 10);
    assert_eq!((node.node.stat("gpu_lost"), node.node.stat("gpu_landings_wrong_total")), (0, 0));
    // A destroyed event that was not, since no context could be made current for it.
    node.wait_for_left(left + 30);
    assert!(round(&mut engine));
    loads(&mut engine, setup);
}

fn gives_back(function: &str) -> bool {
    ["Free", "Close", "Release", "Unmap", "Destroy", "CtxSetCurrent"]
        .iter()
        .any(|part| function.contains(part))
}
