//! A link: transfers by each way it can take, loads before stores, engines that are not ready, and failures.

use std::sync::Arc;

use larder_kernels::{CopyStream, Event, EventHandle, ImportedKv, Kind, Limits, Link, LinkSettings, Order};
use larder_kernels::{Place, Policy, Progress, Ticket, Transfer, TransferId, reference};

use crate::engine::{CHUNKS, Engine, Setup, hex, layout_of, open, unhex};
use crate::world::{Side, emulator, noise, on_gpu, only_emulator};

const KERNEL: Policy = Policy { run_bytes_min: u64::MAX, runs_max: 1, batch: false };
const COPIES: Policy = Policy { run_bytes_min: 1, runs_max: 1000, batch: false };
const BATCH: Policy = Policy { batch: true, ..COPIES };

/// A node with an engine's cache and a link.
struct World {
    engine: Engine,
    node: Side,
    kv: Arc<ImportedKv>,
    link: Link,
    slot: usize,
}

impl World {
    fn new(setup: Setup, settings: LinkSettings) -> Self {
        let layout = layout_of(setup.order);
        let engine = Engine::start(setup);
        let bytes = layout.chunk_bytes() as usize;
        let slot = bytes.next_multiple_of(16);
        let node = Side::new(2 * slot * CHUNKS.len()).unwrap();
        let kv = open(&node, &engine).unwrap();
        node.stream.drain().unwrap();
        let link = Link::create(&node.kernels, bytes, 3, settings).unwrap();
        Self { engine, node, kv, link, slot }
    }

    /// A transfer between the chunk's place `at` and the blocks of chunk `index`.
    fn transfer(&self, kind: Kind, index: usize, at: usize) -> Transfer {
        let (blocks, first) = CHUNKS[index];
        Transfer {
            kind,
            place: Place::Host(Arc::clone(&self.node.host), at * self.slot),
            kv: Arc::clone(&self.kv),
            blocks: blocks.to_vec(),
            first,
            after: None,
        }
    }

    /// Puts the proof's chunks into host memory.
    fn write(&self) {
        for index in 0..CHUNKS.len() {
            let bytes = self.kv.layout().chunk_bytes() as usize;
            self.node.bytes.write(index * self.slot, &noise(index as u64 + 1, bytes));
        }
    }

    /// Polls until all is over.
    fn finish(&mut self) -> Vec<Progress> {
        let mut all = Vec::new();
        while !self.link.is_idle() {
            all.extend(self.link.poll());
            std::thread::yield_now();
        }
        all.extend(self.link.poll());
        all
    }
}

fn begun(progress: &[Progress]) -> Vec<(TransferId, EventHandle)> {
    let begun = progress.iter().filter_map(|news| match news {
        Progress::Begun(id, event) => Some((*id, *event)),
        Progress::Ended { .. } => None,
    });
    begun.collect()
}

/// How each transfer ended, by its id: whether well, and whether nothing of it moves any more.
fn ended(progress: &[Progress]) -> Vec<(TransferId, bool, bool)> {
    let ended = progress.iter().filter_map(|news| match news {
        Progress::Ended { id, result, is_quiet } => Some((*id, result.is_ok(), *is_quiet)),
        Progress::Begun(..) => None,
    });
    let mut ended: Vec<_> = ended.collect();
    ended.sort_unstable();
    ended
}

#[test]
fn each_way_loads_and_stores_what_the_reference_does() {
    for setup in Setup::all() {
        for policy in [KERNEL, COPIES, BATCH] {
            let emulator = emulator();
            let calls = |function| emulator.controls.calls(function);
            let (launches, batches) = (calls("cuLaunchKernel"), calls("cuMemcpyBatchAsync"));
            let settings = LinkSettings { policy, ..LinkSettings::default() };
            let mut world = World::new(setup.clone(), settings);
            world.write();
            // Loads, ordered with the engine's read by their events.
            emulator.controls.hold(true);
            for index in 0..CHUNKS.len() {
                world.link.submit(world.transfer(Kind::Load, index, index)).unwrap();
            }
            let events: Vec<String> =
                begun(&world.link.poll()).iter().map(|(_, event)| hex(&event.0)).collect();
            assert_eq!(events.len(), CHUNKS.len());
            assert_eq!(world.engine.ask(&format!("read {}", events.join(" "))), "queued");
            emulator.controls.hold(false);
            assert_eq!(world.engine.ask("compare"), "0", "{setup:?} {policy:?}");

            // Stores of what was loaded.
            for index in 0..CHUNKS.len() {
                world.link.submit(world.transfer(Kind::Store, index, CHUNKS.len() + index)).unwrap();
            }
            let over = ended(&world.finish());
            assert!(over.len() == 2 * CHUNKS.len() && over.iter().all(|(_, good, _)| *good), "{over:?}");
            for (index, (blocks, first)) in CHUNKS.into_iter().enumerate() {
                let page = |chunk: &[u8]| {
                    let mut cache = vec![0; setup.bytes()];
                    reference::scatter(world.kv.layout(), chunk, &mut cache, blocks, first);
                    cache
                };
                let bytes = world.kv.layout().chunk_bytes() as usize;
                let stored = world.node.bytes.read((CHUNKS.len() + index) * world.slot, bytes);
                assert!(page(&stored) == page(&noise(index as u64 + 1, bytes)), "{setup:?} {policy:?}");
            }
            let transfers = 2 * CHUNKS.len() as u64;
            let launched = if policy == KERNEL { transfers } else { 0 };
            let batched = if policy == BATCH { transfers } else { 0 };
            let counted = (calls("cuLaunchKernel") - launches, calls("cuMemcpyBatchAsync") - batches);
            assert!(on_gpu() || counted == (launched, batched), "{counted:?} for {policy:?}");
        }
    }
}

#[test]
fn without_batch_copies_each_run_is_a_call() {
    let Some(emulator) = only_emulator() else { return };
    emulator.controls.fail("cuGetProcAddress_v2", 1, 999);
    let mut world = World::new(
        Setup::of(Order::BlockFirst, false),
        LinkSettings { policy: BATCH, ..LinkSettings::default() },
    );
    world.write();
    let before = emulator.controls.calls("cuMemcpyBatchAsync");
    world.link.submit(world.transfer(Kind::Load, 0, 0)).unwrap();
    assert!(ended(&world.finish()).iter().all(|(_, good, _)| *good));
    assert_eq!(emulator.controls.calls("cuMemcpyBatchAsync"), before);
}

#[test]
fn a_chunk_that_was_staged_is_scattered_inside_the_device() {
    for setup in Setup::all() {
        let emulator = emulator();
        let mut world = World::new(setup.clone(), LinkSettings::default());
        world.write();
        let bytes = world.kv.layout().chunk_bytes() as usize;
        let Side { kernels, stream, host, slab, .. } = &world.node;
        for index in 0..CHUNKS.len() {
            let at = index * world.slot;
            Ticket::copy_in(kernels, stream, (host, at), (slab, at), bytes).unwrap().wait().unwrap();
        }
        let copies = emulator.controls.calls("cuMemcpyHtoDAsync_v2");
        for index in 0..CHUNKS.len() {
            let place = Place::Slab(Arc::clone(&world.node.slab), index * world.slot);
            world.link.submit(Transfer { place, ..world.transfer(Kind::Load, index, 0) }).unwrap();
        }
        assert!(ended(&world.finish()).iter().all(|(_, good, _)| *good));
        // The blocks' numbers, and nothing else.
        let copied = emulator.controls.calls("cuMemcpyHtoDAsync_v2") - copies;
        assert!(on_gpu() || copied == CHUNKS.len() as u64, "{copied}");
        assert_eq!(world.engine.ask("peek"), "0", "{setup:?}");
        let place = Place::Slab(Arc::clone(&world.node.slab), 0);
        let store = Transfer { place, ..world.transfer(Kind::Store, 0, 0) };
        assert!(world.link.submit(store).unwrap_err().to_string().contains("host memory"));
    }
}

#[test]
fn loads_go_before_stores_and_bytes_on_their_way_are_bounded() {
    let Some(emulator) = only_emulator() else { return };
    let chunk = layout_of(Order::LayerFirst).chunk_bytes();
    let limits = Limits { bytes_max: 2 * chunk, store_bytes_max: chunk, loads_max: 4, stores_max: 4 };
    let mut world = World::new(Setup::of(Order::LayerFirst, false), LinkSettings { policy: KERNEL, limits });
    emulator.controls.hold(true);
    let mut submit =
        |kind, index| world.link.submit(world.transfer(kind, index, index)).map_err(|e| e.to_string());
    let stores: Vec<_> = (0..4).map(|_| submit(Kind::Store, 0).unwrap()).collect();
    let loads: Vec<_> = (0..4).map(|_| submit(Kind::Load, 1).unwrap()).collect();
    assert!(submit(Kind::Store, 0).unwrap_err().contains("as many wait as may"));
    assert!(submit(Kind::Load, 1).unwrap_err().contains("as many wait as may"));
    let depth = world.link.depth();
    assert_eq!((depth.loads, depth.load_bytes, depth.loading_bytes), (4, 4 * chunk, 0));
    let first = begun(&world.link.poll());
    assert_eq!(
        first.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        loads[..2],
        "two fit, and they are loads"
    );
    let depth = world.link.depth();
    assert_eq!((depth.loads, depth.stores, depth.loading_bytes, depth.storing_bytes), (2, 4, 2 * chunk, 0));
    assert_eq!(world.link.poll(), [], "nothing moves");
    emulator.controls.hold(false);
    let rest: Vec<_> = begun(&world.finish()).iter().map(|(id, _)| *id).collect();
    assert_eq!(rest, [&loads[2..], &stores[..]].concat());
    assert!(world.link.is_idle());
}

#[test]
fn an_engine_that_is_not_ready_holds_up_nobody_else() {
    let Some(_emulator) = only_emulator() else { return };
    let setup = Setup::of(Order::LayerFirst, false);
    let mut world = World::new(setup.clone(), LinkSettings::default());
    let written = |world: &mut World| {
        let handle = EventHandle(unhex(&world.engine.ask("write 78")));
        Some(Arc::new(Event::open(&world.node.device, handle).unwrap()))
    };
    let after = written(&mut world);
    let late = world.link.submit(Transfer { after, ..world.transfer(Kind::Store, 0, 0) }).unwrap();
    let early = world.link.submit(world.transfer(Kind::Store, 1, 1)).unwrap();
    while !ended(&world.link.poll()).contains(&(early, true, true)) {
        std::thread::yield_now();
    }
    assert!(!world.link.is_idle());
    assert_eq!(world.engine.ask("go"), "gone");
    assert_eq!(ended(&world.finish()), [(late, true, true)]);
    let layout = world.kv.layout();
    let bytes = layout.chunk_bytes() as usize;
    let mut expected = world.node.bytes.read(0, bytes);
    reference::gather(layout, &noise(78, setup.bytes()), &mut expected, CHUNKS[0].0, CHUNKS[0].1);
    assert!(world.node.bytes.read(0, bytes) == expected, "what the engine wrote before its event");

    // It never becomes ready: its transfers are given up, once it is known to have gone.
    let after = written(&mut world);
    let first = world.link.submit(Transfer { after, ..world.transfer(Kind::Store, 0, 0) }).unwrap();
    world.engine.kill();
    world.link.poll();
    world.link.forget(&world.kv);
    assert_eq!(ended(&world.finish()), [(first, false, true)]);
}

#[test]
fn a_failed_transfer_ends_and_the_next_one_works() {
    let Some(emulator) = only_emulator() else { return };
    let mut world = World::new(
        Setup::of(Order::LayerFirst, false),
        LinkSettings { policy: KERNEL, ..LinkSettings::default() },
    );
    world.write();
    let calls = [
        "cuEventCreate",
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
        "cuEventRecord",
        "cuIpcGetEventHandle",
        "cuEventQuery",
        "cuCtxSetCurrent",
    ];
    for function in calls {
        // More often than there are slots: none may be lost.
        for _ in 0..4 {
            emulator.controls.fail(function, 1, 999);
            let id = world.link.submit(world.transfer(Kind::Load, 0, 0)).unwrap();
            assert_eq!(ended(&world.finish()), [(id, false, true)], "{function}");
        }
    }
    for index in 0..CHUNKS.len() {
        world.link.submit(world.transfer(Kind::Load, index, index)).unwrap();
    }
    assert!(ended(&world.finish()).iter().all(|(_, good, quiet)| *good && *quiet));
    assert_eq!(world.engine.ask("peek"), "0");
}

#[test]
fn on_a_lost_device_nobody_knows_what_still_moves() {
    let Some(emulator) = only_emulator() else { return };
    let mut world = World::new(Setup::of(Order::LayerFirst, true), LinkSettings::default());
    emulator.controls.hold(true);
    let first = world.link.submit(world.transfer(Kind::Load, 0, 0)).unwrap();
    assert_eq!(begun(&world.link.poll()).len(), 1);
    let second = world.link.submit(world.transfer(Kind::Load, 1, 1)).unwrap();
    emulator.controls.lose(719);
    emulator.controls.hold(false);
    assert_eq!(ended(&world.finish()), [(first, false, false), (second, false, false)]);
    emulator.controls.lose(0);
    drop(world);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let _emulator = emulator();
    let world = World::new(Setup::of(Order::LayerFirst, false), LinkSettings::default());
    let kernels = &world.node.kernels;
    for slots in [0, 257] {
        assert!(Link::create(kernels, 100, slots, LinkSettings::default()).is_err(), "{slots}");
    }
    assert!(Link::create(kernels, usize::MAX, 1, LinkSettings::default()).is_err());
    let mut small = Link::create(kernels, 100, 1, LinkSettings::default()).unwrap();
    let why = small.submit(world.transfer(Kind::Load, 0, 0)).unwrap_err().to_string();
    assert!(why.contains("for slots of 112"), "{why}");
    let mut link = world.link;
    let wrong = Transfer { blocks: vec![16], ..transfer_of(&world.node, &world.kv) };
    assert!(link.submit(wrong).unwrap_err().to_string().contains("block 16"));
    // Beyond host memory: found when it begins, before anything moves.
    let place = Place::Host(Arc::clone(&world.node.host), world.node.host.bytes());
    let id = link.submit(Transfer { place, ..transfer_of(&world.node, &world.kv) }).unwrap();
    assert_eq!(ended(&link.poll()), [(id, false, true)]);
    assert!(CopyStream::create(&world.node.device, 0).is_ok());
}

fn transfer_of(node: &Side, kv: &Arc<ImportedKv>) -> Transfer {
    let place = Place::Host(Arc::clone(&node.host), 0);
    Transfer { kind: Kind::Load, place, kv: Arc::clone(kv), blocks: vec![1], first: 0, after: None }
}
