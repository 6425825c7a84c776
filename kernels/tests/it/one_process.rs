//! Checksums, the order of work, and what the layer and the driver refuse.

use std::sync::Arc;

use larder_emulator::POISON;
use larder_kernels::{
    Driver, Event, EventHandle, ImportedKv, KvHandle, KvPart, KvPieces, LandingSlab, Layer, Layout, NoGpu,
    Order, Ticket,
};
use larder_kernels::{GpuError, PinnedRegion, Uuid, reference};

use crate::engine::{Engine, Setup, layout, open};
use crate::world::{Side, Untouched, device, emulator, noise, only_emulator};

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
    let Some(_emulator) = only_emulator() else { return };
    let side = Side::new(64).unwrap();
    let out = Ticket::copy_out(&side.kernels, &side.stream, (&side.slab, 0), (&side.host, 0), 64);
    out.unwrap().wait().unwrap();
    assert_eq!(side.bytes.read(0, 64), [POISON; 64]);
}

#[test]
fn two_streams_are_ordered_by_an_event_and_by_nothing_else() {
    let Some(emulator) = only_emulator() else { return };
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

#[test]
fn memory_is_made_present_before_it_is_pinned() {
    let _emulator = emulator();
    let device = device().unwrap();
    // Of several threads' shares, and one page.
    for bytes in [9 << 20, 4096] {
        let memory = Arc::new(Untouched::map(bytes));
        assert_eq!(memory.present(), 0);
        let region = PinnedRegion::register(&device, Arc::clone(&memory) as _).unwrap();
        assert_eq!((region.bytes(), memory.present()), (bytes, bytes));
    }
}

/// The reason of a refusal.
fn why<T: std::fmt::Debug>(result: Result<T, GpuError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_wrong_is_refused_with_its_value() {
    let _emulator = emulator();
    let engine = Engine::start(Setup::of(layout().order(), false));
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
    assert!(load(0, 0, &[3, 1, 3], 0).contains("block 3 twice"));

    let part = |turn: fn(&mut KvHandle)| {
        let mut parts = engine.names.parts();
        if let KvPart::Handle(name) = &mut parts[1] {
            turn(name);
        }
        why(ImportedKv::open(&node.device, parts, layout()))
    };
    assert!(part(|name| name.offset = 513).contains("a part of 8192 bytes at 513 of an allocation of 8704"));
    assert!(part(|name| name.offset = u64::MAX).contains("of an allocation of 8704"));
    assert!(part(|name| name.bytes = 659).contains("a layer of 652 bytes at 8200 in 2 parts of 8851 bytes"));
    assert!(part(|name| name.handle = [9; 64]).contains("INVALID_VALUE"));
    let own = LandingSlab::create(&node.device, 16_384).unwrap().export().unwrap();
    let own = why(ImportedKv::open(&node.device, vec![own], layout()));
    assert!(own.contains("INVALID_CONTEXT"), "of this process: {own}");
    let none = KvPieces { pieces: vec![], offset: 0, bytes: 0 };
    assert!(why(ImportedKv::open(&node.device, vec![none.into()], layout())).contains("0 pieces"));
    let mapped = LandingSlab::map(&node.device, 100, 100).unwrap();
    let Ok(KvPart::Pieces(mut name)) = mapped.export() else { panic!("a mapped slab has pieces") };
    name.pieces[0].bytes *= 2;
    assert!(why(ImportedKv::open(&node.device, vec![name.into()], layout())).contains("INVALID_VALUE"));
    assert!(why(Event::open(&node.device, EventHandle([0; 64]))).contains("INVALID_VALUE"));
    let opened = Event::open(&node.device, engine.written).unwrap();
    assert!(why(opened.export()).contains("INVALID_VALUE"), "opened, so not ours to hand on");
    assert!(
        why(PinnedRegion::register(&node.device, Arc::clone(&node.bytes) as _)).contains("ALREADY"),
        "twice"
    );

    let layer = Layer::new(0, 10, 11);
    assert!(
        Layout::new(Order::LayerFirst, vec![layer], 2, 1, 100).unwrap_err().to_string().contains("layer 0")
    );
    let layer = Layer::new(u64::MAX, 10, 10);
    assert!(Layout::new(Order::LayerFirst, vec![layer], 2, 1, 100).is_err());
    assert!(Layout::new(Order::LayerFirst, vec![], 2, 1, 100).unwrap_err().to_string().contains("0 layers"));
}

#[test]
fn no_driver_is_an_answer() {
    let missing = Driver::load_from(Some(std::path::Path::new("no/such/libcuda.so")));
    assert!(matches!(missing, Err(NoGpu::NotOpened { .. })), "{missing:?}");
    let Some(_emulator) = only_emulator() else { return };
    let driver = Driver::load_from(Some(&larder_emulator::library().unwrap())).unwrap();
    assert_eq!(driver.version(), 12_080);
    assert!(why(driver.device(Uuid([1; 16]))).contains("none of 2 devices is GPU-01"));
}
