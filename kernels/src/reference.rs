//! What the kernels do, said on the CPU: the other half of their tests, and what a node without a GPU does.

use crate::layout::Layout;
use xxhash_rust::xxh64::xxh64;

/// Bytes that one part of a checksum covers: the protocol's `PIECE_BYTES`.
pub const PIECE_BYTES: usize = 4096;

/// Where each row of a transfer lies in the cache and in the chunk: (cache, chunk, bytes).
fn rows(layout: &Layout, blocks: &[u32], first: u32) -> Vec<(usize, usize, usize)> {
    let mut all = Vec::new();
    for (layer, offset) in layout.layers().iter().zip(layout.offsets()) {
        for (index, block) in (u64::from(first)..).zip(blocks) {
            for row in 0..layer.rows {
                let in_cache = layer.pages + u64::from(*block) * layer.stride + row * layer.row_stride;
                let in_chunk = offset + index * layer.page_bytes() + row * layer.row_bytes;
                all.push((in_cache as usize, in_chunk as usize, layer.row_bytes as usize));
            }
        }
    }
    all
}

/// Chunk into pages.
///
/// # Panics
/// `cache`, `chunk` or a block is not of `layout`.
pub fn scatter(layout: &Layout, chunk: &[u8], cache: &mut [u8], blocks: &[u32], first: u32) {
    for (in_cache, in_chunk, bytes) in rows(layout, blocks, first) {
        cache[in_cache..in_cache + bytes].copy_from_slice(&chunk[in_chunk..in_chunk + bytes]);
    }
}

/// Pages into a chunk.
///
/// # Panics
/// As [`scatter`].
pub fn gather(layout: &Layout, cache: &[u8], chunk: &mut [u8], blocks: &[u32], first: u32) {
    for (in_cache, in_chunk, bytes) in rows(layout, blocks, first) {
        chunk[in_chunk..in_chunk + bytes].copy_from_slice(&cache[in_cache..in_cache + bytes]);
    }
}

/// The XXH64 of each piece of a chunk.
pub fn checksum(chunk: &[u8]) -> Vec<u64> {
    chunk.chunks(PIECE_BYTES).map(|piece| xxh64(piece, 0)).collect()
}
