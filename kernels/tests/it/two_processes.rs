//! The proof: the node's process writes chunks into pages that the engine's process owns, and the engine compares every
//! byte. And its controls: with one thing wrong each, the comparison must fail.

use larder_kernels::Ticket;

use crate::engine::{CHUNKS, Engine, hex, layout, open};
use crate::world::{Side, emulator, noise};

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

/// Loads all chunks, and gives back what the engine found wrong.
fn wrong_bytes(wrong: Wrong) -> usize {
    let emulator = emulator();
    let mut engine = Engine::start(layout().cache_bytes() as usize);
    println!("node and engine on: {}", engine.device);
    assert_eq!(engine.device, "larder emulator");
    let chunk = layout().chunk_bytes() as usize;
    // 16-byte places, so that wide accesses are met too.
    let slot = chunk.next_multiple_of(16);
    let node = Side::new(slot * CHUNKS.len()).unwrap();
    let kv = open(&node, &engine).unwrap();
    // Nothing moves before the engine has queued its read: a missing wait shows every time.
    emulator.controls.hold(true);
    let mut tickets = Vec::new();
    for (index, (blocks, first)) in CHUNKS.into_iter().enumerate() {
        let (at, mut bytes, mut blocks) = (index * slot, noise(index as u64 + 1, chunk), blocks.to_vec());
        // Of the last chunk, which nothing overwrites: a byte of block 1, and its last block.
        if wrong == Wrong::Byte && index == 2 {
            bytes[0] ^= 1;
        }
        if wrong == Wrong::Block && index == 2 {
            blocks[2] += 1;
        }
        node.bytes.write(at, &bytes);
        let host = (&node.host, at);
        let ticket = Ticket::load(&node.kernels, &node.stream, host, (&node.slab, at), &kv, (&blocks, first));
        tickets.push(ticket.unwrap());
    }
    let last = tickets.last().unwrap();
    assert!(!last.is_done().unwrap(), "held");
    let answer = if wrong == Wrong::NoWait {
        let answer = engine.ask("peek");
        emulator.controls.hold(false);
        answer
    } else {
        assert_eq!(engine.ask(&format!("read {}", hex(&last.event().export().unwrap().0))), "queued");
        emulator.controls.hold(false);
        engine.ask("compare")
    };
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    answer.parse().unwrap()
}

#[test]
fn the_engine_finds_every_byte_as_it_must_be() {
    assert_eq!(wrong_bytes(Wrong::Nothing), 0);
}

#[test]
fn control_a_dropped_wait_is_found() {
    assert!(wrong_bytes(Wrong::NoWait) > 1000);
}

#[test]
fn control_a_shifted_page_is_found() {
    assert!(wrong_bytes(Wrong::Block) > 200);
}

#[test]
fn control_a_flipped_byte_is_found() {
    assert_eq!(wrong_bytes(Wrong::Byte), 1);
}

#[test]
fn an_engine_killed_under_a_load_takes_nothing_with_it() {
    let emulator = emulator();
    let mut engine = Engine::start(layout().cache_bytes() as usize);
    let node = Side::new(layout().chunk_bytes() as usize).unwrap();
    let kv = open(&node, &engine).unwrap();
    emulator.controls.hold(true);
    let load = |blocks: &[u32]| {
        Ticket::load(&node.kernels, &node.stream, (&node.host, 0), (&node.slab, 0), &kv, (blocks, 0))
    };
    let ticket = load(&[1, 2]).unwrap();
    engine.process.kill().unwrap();
    engine.process.wait().unwrap();
    emulator.controls.hold(false);
    // The mapping outlives its maker, so the copy ends like any other.
    ticket.wait().unwrap();
    load(&[3]).unwrap().wait().unwrap();
    drop(kv);
    assert!(open(&node, &engine).is_err(), "its handle names nothing any more");
}
