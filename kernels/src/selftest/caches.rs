//! The caches that are tried: of each order, small ones for the emulator and such as models have for a GPU.

use crate::layout::{Layer, Layout, Order};
use crate::reference;

/// Blocks of a cache, and of a chunk.
const BLOCKS: u32 = 64;
const CHUNK_BLOCKS: u32 = 16;

/// How large the caches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Some 100 KB: the emulator interprets each thread.
    Emulator,
    /// Some 100 MB.
    Gpu,
}

impl Scale {
    pub(super) fn numbered(number: usize) -> Option<Self> {
        [Self::Emulator, Self::Gpu].into_iter().find(|scale| *scale as usize == number)
    }
}

/// The engine's blocks of the chunk: near each other and far, none twice.
pub(super) fn blocks() -> Vec<u32> {
    (0..CHUNK_BLOCKS).map(|index| if index < 4 { index + 9 } else { index * 11 % BLOCKS }).collect()
}

/// A cache of each order.
pub(super) fn layouts(scale: Scale) -> [Layout; 3] {
    let (layers, page, block, latent_layers, rows, row) = match scale {
        // Odd sizes, so that every width of access is met.
        Scale::Emulator => (3, 48 + 4, 17_000, 2, 5, 36),
        // 32 layers of keys and values, 16 tokens of 8 heads of 128 halves; 2 MiB blocks; 61 layers of 64 tokens of 576
        // halves.
        Scale::Gpu => (64, 32 << 10, 2 << 20, 61, 64, 1152),
    };
    let blocks = u64::from(BLOCKS);
    let one = |order, layers: Vec<Layer>, bytes| {
        Layout::new(order, layers, BLOCKS, CHUNK_BLOCKS, bytes).expect("made to fit")
    };
    let first = (0..layers).map(|layer| Layer::new(layer * page * blocks, page, page)).collect();
    let latent = (0..latent_layers)
        .map(|layer| Layer::latent(layer * rows * row * blocks, rows * row, rows, row, row))
        .collect();
    [
        one(Order::LayerFirst, first, layers * page * blocks),
        one(Order::BlockFirst, vec![Layer::new(0, block, block)], block * blocks),
        one(Order::Latent, latent, latent_layers * rows * row * blocks),
    ]
}

/// What a cache of `noise(77)` holds when the chunk of `noise(1)` was loaded.
pub(super) fn expected(layout: &Layout) -> Vec<u8> {
    let mut cache = noise(77, layout.cache_bytes() as usize);
    reference::scatter(layout, &noise(1, layout.chunk_bytes() as usize), &mut cache, &blocks(), 0);
    cache
}

/// Bytes that depend on their place and a seed (xorshift64: <https://www.jstatsoft.org/article/view/v008i14>).
pub(super) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}
