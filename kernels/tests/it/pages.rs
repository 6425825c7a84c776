//! The kernels against their reference, for every order: odd sizes and places, caches that end where memory does, and
//! every byte that is to be written.

use std::cell::RefCell;
use std::sync::Arc;

use larder_emulator::POISON;
use larder_kernels::{ImportedKv, LandingSlab, Layer, Layout, Order, Ticket, reference};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::engine::{Engine, Setup};
use crate::world::{Side, emulator, noise};

/// Bytes of the engine's allocation: room for blocks of more than one tile.
const CACHE: usize = 64 << 10;

/// How one layer is made: rows, bytes of a row, bytes between rows, between blocks, and before the layer.
type Sizes = (u64, u64, u64, u64, u64);

/// Sizes that exercise each width of access: multiples of 16, of 4, and any.
fn bytes(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![(1..=most / 16).prop_map(|n| n * 16), (1..=most / 4).prop_map(|n| n * 4), 1..=most,]
}

fn spare() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(16), Just(4), 0u64..20]
}

fn sizes(order: Order) -> BoxedStrategy<Vec<Sizes>> {
    let (layers, rows, most) = match order {
        Order::LayerFirst => (1..4, 1u64..2, 200),
        Order::BlockFirst => (1..2, 1..2, 20_000),
        // More rows than a block has warps, and rows longer than a warp moves at once.
        Order::Latent => (1..4, 1..11, 600),
    };
    prop::collection::vec((rows, bytes(most), spare(), spare(), spare()), layers).boxed()
}

/// A layout in a cache of [`CACHE`] bytes; `flush`: its last page ends where the cache does.
fn layout(order: Order, sizes: &[Sizes], blocks: u32, chunk_blocks: u32, flush: bool) -> Layout {
    let mut at = 0;
    let mut layers = Vec::new();
    for (rows, row_bytes, between_rows, between_blocks, before) in sizes.iter().copied() {
        let row_stride = row_bytes + between_rows;
        let span = (rows - 1) * row_stride + row_bytes;
        let stride = span + between_blocks;
        layers.push(Layer::latent(at + before, stride, rows, row_bytes, row_stride));
        at += before + stride * u64::from(blocks - 1) + span;
    }
    if flush {
        layers.iter_mut().for_each(|layer| layer.pages += CACHE as u64 - at);
    }
    Layout::new(order, layers, blocks, chunk_blocks, CACHE as u64).expect("they fit")
}

/// A layout, and a transfer: the engine's blocks, and from which block of the chunk on.
fn transfer(order: Order) -> impl Strategy<Value = (Layout, Vec<u32>, u32)> {
    let most = if order == Order::BlockFirst { 3u32 } else { 8 };
    (sizes(order), 1..=most, 1u32..6, any::<bool>())
        .prop_filter("fits", |(sizes, blocks, ..)| {
            let layer = |(rows, row, a, b, c): &Sizes| (rows * (row + a) + b) * u64::from(*blocks) + c;
            sizes.iter().map(layer).sum::<u64>() <= CACHE as u64
        })
        .prop_flat_map(move |(sizes, blocks, chunk_blocks, flush)| {
            let numbers: Vec<u32> = (0..blocks).collect();
            let most = blocks.min(chunk_blocks) as usize;
            let chosen = prop::sample::subsequence(numbers, 1..=most).prop_shuffle();
            (Just(layout(order, &sizes, blocks, chunk_blocks, flush)), chosen, 0..chunk_blocks)
        })
        .prop_map(|(layout, mut blocks, first)| {
            blocks.truncate((layout.chunk_blocks() - first) as usize);
            (layout, blocks, first)
        })
}

/// A layout of one page that is the whole cache: gathering it reads all bytes.
fn whole() -> Layout {
    let bytes = CACHE as u64;
    Layout::new(Order::LayerFirst, vec![Layer::new(0, bytes, bytes)], 1, 1, bytes).unwrap()
}

fn kernels_do_what_their_reference_does(order: Order) {
    let _emulator = emulator();
    let engine = RefCell::new(Engine::start(Setup::plain(CACHE)));
    let parts = || engine.borrow().names.parts();
    let node = Side::new(128 << 10).unwrap();
    let all = Arc::new(ImportedKv::open(&node.device, parts(), whole()).unwrap());
    let gather = |kv: &Arc<ImportedKv>, blocks: (&[u32], u32), at: usize| {
        // A byte that is not written shows.
        let slab = Arc::new(LandingSlab::create(&node.device, node.host.bytes()).unwrap());
        node.bytes.write(0, &vec![POISON; slab.bytes()]);
        Ticket::copy_in(&node.kernels, &node.stream, (&node.host, 0), (&slab, 0), slab.bytes()).unwrap();
        let ticket =
            Ticket::store(&node.kernels, &node.stream, kv, blocks, (&slab, at), (&node.host, at)).unwrap();
        ticket.wait().unwrap();
        node.bytes.read(at, kv.layout().chunk_bytes() as usize)
    };
    let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
    let places = (transfer(order), prop_oneof![Just(0usize), Just(16), 0usize..17]);
    runner
        .run(&places, |((layout, blocks, first), at)| {
            assert_eq!(engine.borrow_mut().ask("fill 5"), "filled");
            let kv = Arc::new(ImportedKv::open(&node.device, parts(), layout.clone()).unwrap());
            let chunk = noise(9, layout.chunk_bytes() as usize);
            node.bytes.write(at, &chunk);
            let (host, slab) = ((&node.host, at), (&node.slab, at));
            let load = Ticket::load(&node.kernels, &node.stream, host, slab, &kv, (&blocks, first));
            load.unwrap().wait().unwrap();
            let mut cache = noise(5, CACHE);
            reference::scatter(&layout, &chunk, &mut cache, &blocks, first);
            prop_assert!(gather(&all, (&[0], 0), 0) == cache, "scatter: touched and untouched bytes");

            let mut expected = vec![POISON; chunk.len()];
            reference::gather(&layout, &cache, &mut expected, &blocks, first);
            prop_assert!(gather(&kv, (&blocks, first), at) == expected, "gather: each byte, and no other");
            Ok(())
        })
        .unwrap();
}

#[test]
fn layer_first_kernels_do_what_their_reference_does() {
    kernels_do_what_their_reference_does(Order::LayerFirst);
}

#[test]
fn block_first_kernels_do_what_their_reference_does() {
    kernels_do_what_their_reference_does(Order::BlockFirst);
}

#[test]
fn latent_kernels_do_what_their_reference_does() {
    kernels_do_what_their_reference_does(Order::Latent);
}
