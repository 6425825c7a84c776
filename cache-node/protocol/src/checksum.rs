//! The one checksum of a chunk, everywhere: XXH3-128 over the array of the chunk's per-4-KiB XXH64 sums.
//!
//! Two levels, so that many workers (threads, or the warps of a GPU kernel) can make the parts in any order. All
//! seeds are 0; the sums are laid out as u64 little-endian in the order of the pieces; the last piece may be short.
//! It finds corruption, not forgery. XXH64 and XXH3: <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;
use xxhash_rust::xxh64::xxh64;

/// Bytes covered by one part sum.
pub const PIECE_BYTES: usize = 4096;

/// The checksum of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(pub u128);

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({:032x})", self.0)
    }
}

/// Makes a chunk's checksum piece by piece, in order.
#[derive(Debug, Default)]
pub struct ChunkHasher {
    sums: Vec<u8>,
}

impl ChunkHasher {
    /// A hasher with room for the sums of a chunk of `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { sums: Vec::with_capacity(bytes.div_ceil(PIECE_BYTES) * 8) }
    }

    /// Adds the next piece: [`PIECE_BYTES`] long, only the chunk's last may be shorter.
    pub fn piece(&mut self, piece: &[u8]) {
        debug_assert!(piece.len() <= PIECE_BYTES, "a piece is at most 4 KiB");
        self.sums.extend_from_slice(&xxh64(piece, 0).to_le_bytes());
    }

    /// The checksum of all pieces.
    pub fn finish(self) -> Checksum {
        Checksum(xxh3_128(&self.sums))
    }
}

/// The checksum of a whole chunk in memory.
pub fn chunk_checksum(chunk: &[u8]) -> Checksum {
    let mut hasher = ChunkHasher::with_capacity(chunk.len());
    chunk.chunks(PIECE_BYTES).for_each(|piece| hasher.piece(piece));
    hasher.finish()
}

#[cfg(test)]
mod tests;
