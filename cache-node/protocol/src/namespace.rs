//! The store namespace: what keeps equal block keys apart that stand for different KV.
//!
//! vLLM's block hash names tokens (and, in its extra keys, adapter, media and salt) but never the model, revision or
//! layout. So every stored chunk is named by (namespace, key), and the namespace digests everything else that decides
//! what the bytes of a chunk are. XXH3-128 over the encoding below: the engines of a node are one trust domain, and
//! `weights` and `layout` are cryptographic digests already.

use xxhash_rust::xxh3::xxh3_128;

use crate::id::StoreNamespace;

/// First bytes of the encoding. Changed whenever the encoding changes, so that old and new never meet.
const DOMAIN: &[u8] = b"larder-namespace-1";

/// Everything a namespace is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceParts<'a> {
    /// Digest of weights and everything that acts like weights.
    pub weights: &'a [u8],
    /// Raised whenever the weights changed in place.
    pub epoch: u64,
    /// Digest of how one rank's part of a chunk is laid out.
    pub layout: &'a [u8],
    /// The engine's block hash algorithm.
    pub hash: &'a str,
    /// Element type of the KV cache.
    pub dtype: &'a str,
    /// Tokens of one engine block.
    pub tokens_per_block: u32,
    /// Engine blocks of one chunk.
    pub blocks_per_chunk: u32,
    /// Bytes of one rank's part of a chunk.
    pub part_bytes: u64,
    /// Ranks, each holding a part.
    pub world: u32,
}

impl NamespaceParts<'_> {
    /// The namespace: XXH3-128 of the domain, then `weights`, `layout`, `hash` and `dtype` (each as u32 LE length and
    /// bytes), then epoch and part bytes (u64 LE), tokens per block, blocks per chunk and world (u32 LE).
    pub fn digest(&self) -> StoreNamespace {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(DOMAIN);
        for part in [self.weights, self.layout, self.hash.as_bytes(), self.dtype.as_bytes()] {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.part_bytes.to_le_bytes());
        for number in [self.tokens_per_block, self.blocks_per_chunk, self.world] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        StoreNamespace(xxh3_128(&bytes))
    }
}

#[cfg(test)]
mod tests;
