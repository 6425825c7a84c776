//! The proof with an engine in Python, on NVIDIA's own bindings: what the plugin of a real engine would call.

use std::process::Command;

use larder_emulator::library;

use crate::engine::{CHUNKS, Engine, Setup, expected, hex, layout_of, open};
use crate::world::{Side, emulator, noise, on_gpu};

/// Names a Python that has cuda-bindings.
const PYTHON: &str = "LARDER_TEST_PYTHON";

/// How many bytes the engine found otherwise than they must be, and of how many.
fn wrong_bytes(setup: &Setup, waits: bool) -> (usize, usize) {
    let emulator = emulator();
    let dir = tempfile::tempdir().unwrap();
    let (first, last) = (dir.path().join("first"), dir.path().join("last"));
    std::fs::write(&first, noise(77, setup.bytes())).unwrap();
    let python =
        std::env::var(PYTHON).unwrap_or_else(|_| panic!("{PYTHON} names a Python with cuda-bindings"));
    let mut command = Command::new(python);
    let socket = dir.path().join("engine");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/engine.py")).arg(&socket).arg(&first);
    command.args(setup.arguments());
    if !on_gpu() {
        // The bindings open libcuda.so.1 by that name and no other.
        std::os::unix::fs::symlink(library().unwrap(), dir.path().join("libcuda.so.1")).unwrap();
        command.env("LD_LIBRARY_PATH", dir.path());
    }
    let mut engine = Engine::start_by(setup.clone(), &socket, command);
    println!("node in Rust and engine in Python on: {}, {setup:?}", engine.device);
    let layout = layout_of(setup.order);
    let chunk = layout.chunk_bytes() as usize;
    let slot = chunk.next_multiple_of(16);
    let node = Side::new(slot * CHUNKS.len()).unwrap();
    let kv = open(&node, &engine).unwrap();
    emulator.controls.hold(true);
    let mut tickets = Vec::new();
    for (index, (blocks, first)) in CHUNKS.into_iter().enumerate() {
        let at = index * slot;
        let bytes = noise(index as u64 + 1, chunk);
        tickets.push(node.load_after(engine.written, &kv, (at, &bytes), (blocks, first)));
    }
    let events: Vec<String> = tickets.iter().map(|ticket| hex(&ticket.event().export().unwrap().0)).collect();
    let dump = format!("dump {}", last.display());
    if waits {
        assert_eq!(engine.ask(&format!("read {}", events.join(" "))), "done");
        emulator.controls.hold(false);
        assert_eq!(engine.ask(&dump), "done");
    } else {
        assert_eq!(engine.ask("read"), "done");
        assert_eq!(engine.ask(&dump), "done");
        emulator.controls.hold(false);
    }
    tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
    let found = std::fs::read(&last).unwrap();
    assert_eq!(found.len(), setup.bytes());
    (found.iter().zip(expected(setup)).filter(|(a, b)| **a != *b).count(), 9 * chunk / 4)
}

#[test]
#[ignore = "needs a Python with cuda-bindings: tests/run --gpu-toolchain"]
fn an_engine_in_python_finds_every_byte_as_it_must_be() {
    for setup in Setup::all() {
        assert_eq!(wrong_bytes(&setup, true).0, 0, "{setup:?}");
    }
}

#[test]
#[ignore = "needs a Python with cuda-bindings: tests/run --gpu-toolchain"]
fn control_a_dropped_wait_in_python_is_found() {
    // A GPU is not held.
    if on_gpu() {
        return println!("skipped: needs the emulator's knobs");
    }
    for setup in Setup::all() {
        let (wrong, loaded) = wrong_bytes(&setup, false);
        assert!(wrong > loaded * 9 / 10, "{wrong} of {loaded} bytes, {setup:?}");
    }
}
