//! The proof: the node's process writes chunks into pages that the engine's process owns, and the engine compares every
//! byte: for each order of the cache, for both kinds of names, on several streams at once. And its controls: with one
//! thing wrong each, the comparison must fail.

use larder_kernels::selftest::EMULATOR;
use larder_kernels::{Event, EventHandle, Ticket, reference};

use crate::engine::{CHUNKS, Engine, Setup, hex, layout_of, open, unhex};
use crate::world::{Side, emulator, noise, on_gpu};

/// What is done wrong on purpose.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// The engine reads without waiting for the node's event.
    NoWait,
    /// A page goes to the block after its own.
    Block,
    /// A byte changes on the way.
    Byte,
}

/// Loads all chunks, each on a stream of its own, and gives back what the engine found wrong.
fn wrong_bytes(wrong: Wrong, setup: Setup) -> usize {
    let emulator = emulator();
    let layout = layout_of(setup.order);
    let mut engine = Engine::start(setup.clone());
    println!("node and engine on: {}, {setup:?}", engine.device);
    assert!(on_gpu() || engine.device == EMULATOR);
    let chunk = layout.chunk_bytes() as usize;
    // 16-byte places, so that wide accesses are met too.
    let slot = chunk.next_multiple_of(16);
    let node = Side::new(slot * CHUNKS.len()).unwrap();
    let kv = open(&node, &engine).unwrap();
    // Nothing moves before the engine has queued its read: a missing wait shows every time.
    emulator.controls.hold(true);
    let mut tickets = Vec::new();
    for (index, (blocks, first)) in CHUNKS.into_iter().enumerate() {
        let (at, mut bytes, mut blocks) = (index * slot, noise(index as u64 + 1, chunk), blocks.to_vec());
        // Of the last chunk: a byte of block 1, and its last block.
        if wrong == Wrong::Byte && index == 2 {
            bytes[0] ^= 1;
        }
        if wrong == Wrong::Block && index == 2 {
            blocks[2] += 1;
        }
        tickets.push(node.load_after(engine.written, &kv, (at, &bytes), (&blocks, first)));
    }
    assert!(on_gpu() || tickets.iter().all(|ticket| !ticket.is_done().unwrap()), "held");
    let answer = if wrong == Wrong::NoWait {
        let answer = engine.ask("peek");
        emulator.controls.hold(false);
        answer
    } else {
        let events = tickets.iter().map(|ticket| hex(&ticket.event().export().unwrap().0));
        let events = events.collect::<Vec<_>>().join(" ");
        assert_eq!(engine.ask(&format!("read {events}")), "queued");
        emulator.controls.hold(false);
        engine.ask("compare")
    };
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    answer.parse().unwrap()
}

/// Bytes of a block's content.
fn block_bytes(setup: &Setup) -> usize {
    layout_of(setup.order).chunk_bytes() as usize / 4
}

/// What `LARDER_NEGATIVE_CONTROL` says is to be done wrong: with it the proof must fail.
fn switched() -> Wrong {
    match std::env::var("LARDER_NEGATIVE_CONTROL").as_deref() {
        Err(_) => Wrong::Nothing,
        Ok("wait") => Wrong::NoWait,
        Ok("block") => Wrong::Block,
        Ok("byte") => Wrong::Byte,
        Ok(other) => panic!("LARDER_NEGATIVE_CONTROL is wait, block or byte, and not {other}"),
    }
}

#[test]
fn the_engine_finds_every_byte_as_it_must_be() {
    for setup in Setup::all() {
        assert_eq!(wrong_bytes(switched(), setup.clone()), 0, "{setup:?}");
    }
}

#[test]
fn control_a_dropped_wait_is_found() {
    // A GPU is not held, so there the reader may come late enough all the same.
    if on_gpu() {
        return println!("skipped: needs the emulator's knobs");
    }
    for setup in Setup::all() {
        // 9 blocks are loaded; some bytes are the same by chance.
        let least = 8 * block_bytes(&setup);
        assert!(wrong_bytes(Wrong::NoWait, setup.clone()) > least, "{setup:?}");
    }
}

#[test]
fn control_a_shifted_page_is_found() {
    for setup in Setup::all() {
        // The block that it is missing from, and the one that it is in.
        let least = block_bytes(&setup) * 3 / 2;
        assert!(wrong_bytes(Wrong::Block, setup.clone()) > least, "{setup:?}");
    }
}

#[test]
fn control_a_flipped_byte_is_found() {
    for setup in Setup::all() {
        assert_eq!(wrong_bytes(Wrong::Byte, setup.clone()), 1, "{setup:?}");
    }
}

/// Gathers pages that the engine is about to write, and gives back how many bytes are not what it wrote.
fn wrong_in_store(waits: bool, setup: Setup) -> usize {
    let _emulator = emulator();
    let layout = layout_of(setup.order);
    let (mut engine, bytes) = (Engine::start(setup.clone()), layout.chunk_bytes() as usize);
    let node = Side::new(bytes).unwrap();
    let kv = open(&node, &engine).unwrap();
    node.stream.drain().unwrap();
    let written = Event::open(&node.device, EventHandle(unhex(&engine.ask("write 78")))).unwrap();
    if waits {
        node.stream.wait_for(&written).unwrap();
    }
    let (blocks, first) = CHUNKS[0];
    let (slab, host) = ((&node.slab, 0), (&node.host, 0));
    let ticket = Ticket::store(&node.kernels, &node.stream, &kv, (blocks, first), slab, host).unwrap();
    if !waits {
        ticket.wait().unwrap();
        assert_eq!(engine.ask("go"), "gone");
    } else {
        assert!(on_gpu() || !ticket.is_done().unwrap(), "it waits for the engine");
        assert_eq!(engine.ask("go"), "gone");
        ticket.wait().unwrap();
    }
    let mut expected = vec![0; bytes];
    reference::gather(&layout, &noise(78, setup.bytes()), &mut expected, blocks, first);
    node.bytes.read(0, bytes).iter().zip(expected).filter(|(a, b)| **a != *b).count()
}

#[test]
fn the_node_stores_what_the_engine_wrote() {
    for setup in Setup::all() {
        assert_eq!(wrong_in_store(true, setup.clone()), 0, "{setup:?}");
    }
}

#[test]
fn control_a_dropped_wait_for_the_engine_is_found() {
    // A GPU is not held, so there the reader may come late enough all the same.
    if on_gpu() {
        return println!("skipped: needs the emulator's knobs");
    }
    for setup in Setup::all() {
        assert!(wrong_in_store(false, setup.clone()) > 3 * block_bytes(&setup), "{setup:?}");
    }
}
