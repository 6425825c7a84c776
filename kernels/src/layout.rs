//! Where a chunk's pages lie in an engine's KV cache: the per-layer order (LBHNC).

/// One layer of a paged KV cache. Mirrors `Layer` in `cuda/pages.cu`, with a place in the cache for the pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Where block 0 begins, in bytes from the cache's beginning.
    pub pages: u64,
    /// Bytes from one block to the next.
    pub stride: u64,
    /// Bytes of a block's content: at least 1, at most the stride.
    pub page_bytes: u64,
}

/// Why a layout cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing to move, or more than a grid takes.
    #[error("{0} {1}; 1 to {2} can be moved")]
    Count(u64, &'static str, u64),
    /// A layer's pages overlap, are empty, or reach beyond the cache.
    #[error("layer {index} ({layer:?}) does not fit {blocks} blocks into a cache of {cache_bytes} bytes")]
    Layer {
        /// Which, from 0.
        index: usize,
        /// What it was.
        layer: Layer,
        /// Blocks in the cache.
        blocks: u32,
        /// Bytes of the cache.
        cache_bytes: u64,
    },
}

/// Layers of a cache: a grid's first dimension allows far more, models have some hundred.
const LAYERS_MAX: u64 = 4096;
/// Blocks in a chunk: some dozen in practice; their numbers must fit one slot of the kernels' notes.
pub(crate) const CHUNK_BLOCKS_MAX: u64 = 4096;
/// Bytes of a cache and of a chunk: so that no sum of places overflows.
const BYTES_MAX: u64 = 1 << 48;

/// A cache's layers, checked against its size, and the chunks that are cut from it.
///
/// A chunk is layer after layer, each layer's pages in the order of the chunk's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    layers: Vec<Layer>,
    blocks: u32,
    chunk_blocks: u32,
    cache_bytes: u64,
}

impl Layout {
    /// A cache of `cache_bytes` with `blocks` blocks, of which `chunk_blocks` make a chunk.
    ///
    /// # Errors
    /// A layer does not fit, or a count is beyond what a kernel can be started for.
    pub fn new(
        layers: Vec<Layer>,
        blocks: u32,
        chunk_blocks: u32,
        cache_bytes: u64,
    ) -> Result<Self, LayoutError> {
        for (count, what, most) in [
            (layers.len() as u64, "layers", LAYERS_MAX),
            (u64::from(blocks), "blocks", u64::from(u32::MAX)),
            (u64::from(chunk_blocks), "blocks in a chunk", CHUNK_BLOCKS_MAX),
            (cache_bytes, "bytes", BYTES_MAX),
        ] {
            if !(1..=most).contains(&count) {
                return Err(LayoutError::Count(count, what, most));
            }
        }
        for (index, layer) in layers.iter().copied().enumerate() {
            let last = layer.stride.checked_mul(u64::from(blocks) - 1);
            let end = last.and_then(|last| last.checked_add(layer.page_bytes)?.checked_add(layer.pages));
            let fits = end.is_some_and(|end| end <= cache_bytes);
            if !fits || layer.page_bytes == 0 || layer.page_bytes > layer.stride {
                return Err(LayoutError::Layer { index, layer, blocks, cache_bytes });
            }
        }
        let layout = Self { layers, blocks, chunk_blocks, cache_bytes };
        let chunk = layout.layers.iter().try_fold(0u64, |sum, layer| {
            sum.checked_add(layer.page_bytes.checked_mul(u64::from(chunk_blocks))?)
        });
        match chunk {
            Some(bytes) if bytes <= BYTES_MAX => Ok(layout),
            _ => Err(LayoutError::Count(chunk.unwrap_or(u64::MAX), "bytes in a chunk", BYTES_MAX)),
        }
    }

    /// The layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Blocks in a chunk.
    pub fn chunk_blocks(&self) -> u32 {
        self.chunk_blocks
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.page_bytes * u64::from(self.chunk_blocks)).sum()
    }

    /// Where each layer's first page lies in a chunk, in bytes.
    pub fn offsets(&self) -> Vec<u64> {
        let sum = |at: &mut u64, layer: &Layer| {
            let begin = *at;
            *at += layer.page_bytes * u64::from(self.chunk_blocks);
            Some(begin)
        };
        self.layers.iter().scan(0, sum).collect()
    }

    /// Why `blocks` from the chunk's block `first` on cannot be moved, if so.
    pub(crate) fn refuses(&self, blocks: &[u32], first: u32) -> Option<String> {
        if blocks.is_empty() || blocks.len() as u64 + u64::from(first) > u64::from(self.chunk_blocks) {
            return Some(format!("{} blocks from {first} in a chunk of {}", blocks.len(), self.chunk_blocks));
        }
        let wrong = blocks.iter().find(|block| **block >= self.blocks)?;
        Some(format!("block {wrong} in a cache of {}", self.blocks))
    }
}
