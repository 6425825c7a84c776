//! The kernels against their reference, and what the layer and the driver refuse.

use std::cell::RefCell;
use std::sync::Arc;

use larder_emulator::POISON;
use larder_kernels::{
    Driver, Event, EventHandle, ImportedKv, KvHandle, LandingSlab, Layer, Layout, NoGpu, Ticket,
};
use larder_kernels::{GpuError, PinnedRegion, Uuid, reference};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::engine::{Engine, background, layout, open};
use crate::world::{Side, emulator, noise};

const CACHE: usize = 8192;

/// Layouts whose layers lie one after the other, with odd gaps, in a cache of [`CACHE`] bytes; and a transfer.
fn transfer() -> impl Strategy<Value = (Layout, Vec<u32>, u32)> {
    let layer = (1u64..200, 0u64..20, 0u64..20);
    (prop::collection::vec(layer, 1..4), 1u32..9, 1u32..6)
        .prop_flat_map(|(sizes, blocks, chunk_blocks)| {
            let mut at = 0;
            let mut layers = Vec::new();
            for (page_bytes, spare, gap) in sizes {
                layers.push(Layer { pages: at + gap, stride: page_bytes + spare, page_bytes });
                at += gap + (page_bytes + spare) * u64::from(blocks);
            }
            let layout = Layout::new(layers, blocks, chunk_blocks, CACHE as u64).expect("they fit");
            let numbers: Vec<u32> = (0..blocks).collect();
            let most = blocks.min(chunk_blocks) as usize;
            (Just(layout), prop::sample::subsequence(numbers, 1..=most).prop_shuffle(), 0..chunk_blocks)
        })
        .prop_map(|(layout, mut blocks, first)| {
            blocks.truncate((layout.chunk_blocks() - first) as usize);
            (layout, blocks, first)
        })
}

/// A layout of one page that is the whole cache: gathering it reads all bytes.
fn whole() -> Layout {
    let bytes = CACHE as u64;
    Layout::new(vec![Layer { pages: 0, stride: bytes, page_bytes: bytes }], 1, 1, bytes).unwrap()
}

#[test]
fn scatter_and_gather_do_what_their_reference_does() {
    let _emulator = emulator();
    let engine = RefCell::new(Engine::start(CACHE));
    let handle = engine.borrow().kv;
    let node = Side::new(CACHE + 16).unwrap();
    let all = Arc::new(ImportedKv::open(&node.device, handle, whole()).unwrap());
    let store = |kv: &Arc<ImportedKv>, blocks: &[u32], first: u32, at: usize| {
        let (slab, host) = ((&node.slab, at), (&node.host, at));
        Ticket::store(&node.kernels, &node.stream, kv, (blocks, first), slab, host).unwrap().wait().unwrap();
    };
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let places = (transfer(), 0usize..17);
    runner
        .run(&places, |((layout, blocks, first), at)| {
            assert_eq!(engine.borrow_mut().ask("fill 5"), "filled");
            let kv = Arc::new(ImportedKv::open(&node.device, handle, layout.clone()).unwrap());
            let bytes = layout.chunk_bytes() as usize;
            let chunk = noise(9, bytes);
            node.bytes.write(at, &chunk);
            let (host, slab) = ((&node.host, at), (&node.slab, at));
            let load = Ticket::load(&node.kernels, &node.stream, host, slab, &kv, (&blocks, first));
            load.unwrap().wait().unwrap();
            let mut cache = noise(5, CACHE);
            reference::scatter(&layout, &chunk, &mut cache, &blocks, first);
            store(&all, &[0], 0, 0);
            prop_assert!(node.bytes.read(0, CACHE) == cache, "scatter");

            // What the chunk has besides the gathered pages must stay as it was.
            let mut gathered = noise(11, bytes);
            node.bytes.write(at, &gathered);
            let fill = Ticket::copy_in(&node.kernels, &node.stream, host, slab, bytes);
            fill.unwrap().wait().unwrap();
            store(&kv, &blocks, first, at);
            reference::gather(&layout, &cache, &mut gathered, &blocks, first);
            prop_assert!(node.bytes.read(at, bytes) == gathered, "gather");
            Ok(())
        })
        .unwrap();
}

#[test]
fn checksums_are_the_protocols() {
    let _emulator = emulator();
    let room = 5 * 4096;
    let side = Side::new(room + 64).unwrap();
    let sums = |bytes: &[u8]| {
        side.bytes.write(0, bytes);
        let (host, slab) = ((&side.host, 0), (&side.slab, 0));
        let pieces = bytes.len().div_ceil(4096);
        Ticket::copy_in(&side.kernels, &side.stream, host, slab, bytes.len()).unwrap();
        Ticket::checksum(&side.kernels, &side.stream, &side.slab, (0, bytes.len()), room).unwrap();
        let out =
            Ticket::copy_out(&side.kernels, &side.stream, (&side.slab, room), (&side.host, room), pieces * 8);
        out.unwrap().wait().unwrap();
        let words = side.bytes.read(room, pieces * 8);
        words.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect::<Vec<_>>()
    };
    for bytes in [1, 3, 4, 7, 8, 31, 32, 33, 63, 4095, 4096, 4097, 8192, 4096 * 4 + 45] {
        let chunk = noise(bytes as u64, bytes);
        assert_eq!(sums(&chunk), reference::checksum(&chunk), "{bytes} bytes");
    }
    let mut chunk = noise(3, 5000);
    let good = sums(&chunk);
    chunk[4999] ^= 0x80;
    assert_eq!(sums(&chunk)[0], good[0]);
    assert_ne!(sums(&chunk)[1], good[1], "a flipped bit is found");
}

/// The protocol's own golden value: its checksum of a chunk is XXH3-128 over these sums.
#[test]
fn the_reference_is_the_protocols_definition() {
    let ramp: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    let sums: Vec<u8> = reference::checksum(&ramp).into_iter().flat_map(u64::to_le_bytes).collect();
    assert_eq!(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&sums)), "e61b383bcdf71f1a9ad6a8f17f29b2ec");
}

#[test]
fn memory_that_nobody_wrote_shows() {
    let _emulator = emulator();
    let side = Side::new(64).unwrap();
    let out = Ticket::copy_out(&side.kernels, &side.stream, (&side.slab, 0), (&side.host, 0), 64);
    out.unwrap().wait().unwrap();
    assert_eq!(side.bytes.read(0, 64), [POISON; 64]);
}

#[test]
fn two_streams_are_ordered_by_an_event_and_by_nothing_else() {
    let emulator = emulator();
    let side = Side::new(128).unwrap();
    let other = Arc::new(larder_kernels::CopyStream::create(&side.device, 0).unwrap());
    side.bytes.write(0, &[7; 64]);
    emulator.controls.hold(true);
    let into = Ticket::copy_in(&side.kernels, &side.stream, (&side.host, 0), (&side.slab, 0), 64).unwrap();
    other.wait_for(into.event()).unwrap();
    let out = Ticket::copy_out(&side.kernels, &other, (&side.slab, 0), (&side.host, 64), 64).unwrap();
    assert!(!into.is_done().unwrap() && !out.is_done().unwrap());
    emulator.controls.hold(false);
    out.wait().unwrap();
    assert!(into.is_done().unwrap());
    assert_eq!(side.bytes.read(64, 64), [7; 64]);
}

#[test]
fn a_dropped_ticket_waits_before_it_frees() {
    let emulator = emulator();
    let side = Side::new(64).unwrap();
    emulator.controls.slow(640);
    let ticket = Ticket::copy_in(&side.kernels, &side.stream, (&side.host, 0), (&side.slab, 0), 64).unwrap();
    let event = Event::create(&side.device).unwrap();
    side.stream.record(&event).unwrap();
    drop(ticket);
    emulator.controls.slow(0);
    side.stream.drain().unwrap();
    assert!(event.is_reached().unwrap());
}

/// The reason of a refusal.
fn why<T: std::fmt::Debug>(result: Result<T, GpuError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_wrong_is_refused_with_its_value() {
    let _emulator = emulator();
    let engine = Engine::start(CACHE);
    let node = Side::new(layout().chunk_bytes() as usize).unwrap();
    let kv = open(&node, &engine).unwrap();
    let load = |host: usize, slab: usize, blocks: &[u32], first: u32| {
        why(Ticket::load(
            &node.kernels,
            &node.stream,
            (&node.host, host),
            (&node.slab, slab),
            &kv,
            (blocks, first),
        ))
    };
    assert!(load(1, 0, &[1], 0).contains("at 1 of a buffer"), "host");
    assert!(load(0, usize::MAX, &[1], 0).contains("of a buffer"), "slab");
    assert!(load(0, 0, &[1, 16], 0).contains("block 16 in a cache of 16"));
    assert!(load(0, 0, &[1, 2], 3).contains("2 blocks from 3 in a chunk of 4"));
    assert!(load(0, 0, &[], 0).contains("0 blocks"));

    let beyond = KvHandle { offset: 1, ..engine.kv };
    assert!(why(ImportedKv::open(&node.device, beyond, layout())).contains("at 1 of an allocation of 8192"));
    let small = KvHandle { bytes: 8191, ..engine.kv };
    assert!(why(ImportedKv::open(&node.device, small, layout())).contains("8192 bytes in a part of 8191"));
    let none = KvHandle { handle: [9; 64], ..engine.kv };
    assert!(why(ImportedKv::open(&node.device, none, layout())).contains("INVALID_VALUE"));
    let own = LandingSlab::create(&node.device, CACHE).unwrap().export().unwrap();
    assert!(
        why(ImportedKv::open(&node.device, own, layout())).contains("INVALID_CONTEXT"),
        "of this process"
    );
    assert!(why(Event::open(&node.device, EventHandle([0; 64]))).contains("INVALID_VALUE"));
    let opened = Event::open(&node.device, engine.written).unwrap();
    assert!(why(opened.export()).contains("INVALID_VALUE"), "opened, so not ours to hand on");
    assert!(
        why(PinnedRegion::register(&node.device, Arc::clone(&node.bytes) as _)).contains("ALREADY"),
        "twice"
    );

    let layer = Layer { pages: 0, stride: 10, page_bytes: 11 };
    assert!(Layout::new(vec![layer], 2, 1, 100).unwrap_err().to_string().contains("layer 0"));
    let layer = Layer { pages: u64::MAX, stride: 10, page_bytes: 10 };
    assert!(Layout::new(vec![layer], 2, 1, 100).is_err());
    assert!(Layout::new(vec![], 2, 1, 100).unwrap_err().to_string().contains("0 layers"));
    assert_eq!(background().len(), CACHE);
}

#[test]
fn no_driver_is_an_answer() {
    let missing = Driver::load_from(Some(std::path::Path::new("no/such/libcuda.so")));
    assert!(matches!(missing, Err(NoGpu::NotOpened { .. })), "{missing:?}");
    let _emulator = emulator();
    let driver = Driver::load_from(Some(&larder_emulator::library().unwrap())).unwrap();
    assert_eq!(driver.version(), 12_080);
    assert!(why(driver.device(Uuid([1; 16]))).contains("none of 2 devices is GPU-01"));
}
