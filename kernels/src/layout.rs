//! Where a chunk's pages lie in an engine's KV cache: per layer (LBHNC), block first (BLHNC), or latent (MLA).

/// How an engine's memory orders its pages, and so which kernels move them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Each layer is its own array of blocks (LBHNC). Keys and values in two arrays are two layers.
    LayerFirst,
    /// A block holds all its layers (BLHNC): one layer, whose page is the whole block. A chunk is block after block.
    BlockFirst,
    /// MLA: each layer is an array of blocks, a page is one latent vector for each token.
    Latent,
}

/// One layer of a paged KV cache: with [`Layout::offsets`], a row of the table that `cuda/pages.cu` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Where block 0 begins, in bytes from the cache's beginning.
    pub pages: u64,
    /// Bytes from one block to the next.
    pub stride: u64,
    /// Rows of a page: 1, but for latent layers the tokens of a block.
    pub rows: u64,
    /// Bytes of a row's content.
    pub row_bytes: u64,
    /// Bytes from one row to the next: at least `row_bytes`; the chunk has rows without what is between them.
    pub row_stride: u64,
}

impl Layer {
    /// A layer whose page is one piece of `page_bytes`.
    pub fn new(pages: u64, stride: u64, page_bytes: u64) -> Self {
        Self { pages, stride, rows: 1, row_bytes: page_bytes, row_stride: page_bytes }
    }

    /// A latent layer: each page has `rows` of `row_bytes`, `row_stride` apart.
    pub fn latent(pages: u64, stride: u64, rows: u64, row_bytes: u64, row_stride: u64) -> Self {
        Self { pages, stride, rows, row_bytes, row_stride }
    }

    /// Bytes of a page's content in a chunk.
    pub fn page_bytes(&self) -> u64 {
        self.rows * self.row_bytes
    }

    /// Bytes from the first to the last of a page in the engine's memory; None where that overflows.
    fn page_span(&self) -> Option<u64> {
        self.row_stride.checked_mul(self.rows.checked_sub(1)?)?.checked_add(self.row_bytes)
    }

    /// Bytes from the cache's beginning to the end of its last page.
    fn end(&self, blocks: u32) -> Option<u64> {
        let last = self.stride.checked_mul(u64::from(blocks) - 1)?;
        last.checked_add(self.page_span()?)?.checked_add(self.pages)
    }

    /// Whether some byte may be of both. Layers may lie between each other's pages (a block that holds all layers), or
    /// between each other's rows, where their strides are the same; with other strides they must lie apart.
    fn meets(&self, other: &Self, blocks: u32) -> bool {
        let (Some(end), Some(other_end)) = (self.end(blocks), other.end(blocks)) else { return true };
        if end <= other.pages || other_end <= self.pages {
            return false;
        }
        let (Some(span), Some(other_span)) = (self.page_span(), other.page_span()) else { return true };
        if self.stride != other.stride {
            return true;
        }
        // Both repeat with the stride, so it is enough to look at one of its turns, which begins with a page of ours.
        let apart = |place: u64, ours: u64, theirs: u64, turn: u64| place >= ours && turn - place >= theirs;
        let place = other.pages.abs_diff(self.pages) % self.stride;
        let place = if other.pages < self.pages && place > 0 { self.stride - place } else { place };
        if apart(place, span, other_span, self.stride) {
            return false;
        }
        // The same for rows, of which a turn of the stride must hold whole ones.
        let turn = self.row_stride;
        let rows = turn == other.row_stride && self.stride.is_multiple_of(turn);
        !(rows && apart(place % turn, self.row_bytes, other.row_bytes, turn))
    }

    fn fits(&self, order: Order, blocks: u32, cache_bytes: u64) -> bool {
        let span = self.page_span().is_some_and(|span| span <= self.stride);
        let rows = self.row_bytes > 0 && self.row_bytes <= self.row_stride;
        let pieces = self.rows == 1 || order == Order::Latent;
        rows && span && pieces && self.end(blocks).is_some_and(|end| end <= cache_bytes)
    }
}

/// Why a layout cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing to move, or more than a grid takes.
    #[error("{0} {1}; 1 to {2} can be moved")]
    Count(u64, &'static str, u64),
    /// More than one layer where a block is one piece.
    #[error("{0} layers block first; a block is one page there")]
    BlockFirst(usize),
    /// Two layers may have bytes in common, so a load into one would change the other.
    #[error("layers {0} and {1} lie upon each other: {2:?} and {3:?}")]
    Overlap(usize, usize, Layer, Layer),
    /// A layer's pages or rows overlap, are empty, reach beyond the cache, or are rows where the order has none.
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
    order: Order,
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
        order: Order,
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
        if order == Order::BlockFirst && layers.len() > 1 {
            return Err(LayoutError::BlockFirst(layers.len()));
        }
        for (index, layer) in layers.iter().copied().enumerate() {
            if !layer.fits(order, blocks, cache_bytes) {
                return Err(LayoutError::Layer { index, layer, blocks, cache_bytes });
            }
        }
        for (index, layer) in layers.iter().enumerate() {
            let met = layers[..index].iter().position(|other| layer.meets(other, blocks));
            if let Some(other) = met {
                return Err(LayoutError::Overlap(other, index, layers[other], *layer));
            }
        }
        let layout = Self { order, layers, blocks, chunk_blocks, cache_bytes };
        let chunk = layout.layers.iter().try_fold(0u64, |sum, layer| {
            sum.checked_add(layer.page_bytes().checked_mul(u64::from(chunk_blocks))?)
        });
        match chunk {
            Some(bytes) if bytes <= BYTES_MAX => Ok(layout),
            _ => Err(LayoutError::Count(chunk.unwrap_or(u64::MAX), "bytes in a chunk", BYTES_MAX)),
        }
    }

    /// How the cache is ordered.
    pub fn order(&self) -> Order {
        self.order
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

    /// Bytes from a layer's first to its last.
    pub(crate) fn layer_bytes(&self, layer: &Layer) -> u64 {
        layer.end(self.blocks).expect("checked when the layout was made") - layer.pages
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.page_bytes() * u64::from(self.chunk_blocks)).sum()
    }

    /// Where each layer's first page lies in a chunk, in bytes.
    pub fn offsets(&self) -> Vec<u64> {
        let sum = |at: &mut u64, layer: &Layer| {
            let begin = *at;
            *at += layer.page_bytes() * u64::from(self.chunk_blocks);
            Some(begin)
        };
        self.layers.iter().scan(0, sum).collect()
    }

    /// Why `blocks` from the chunk's block `first` on cannot be moved, if so.
    pub(crate) fn refuses(&self, blocks: &[u32], first: u32) -> Option<String> {
        if blocks.is_empty() || blocks.len() as u64 + u64::from(first) > u64::from(self.chunk_blocks) {
            return Some(format!("{} blocks from {first} in a chunk of {}", blocks.len(), self.chunk_blocks));
        }
        if let Some(wrong) = blocks.iter().find(|block| **block >= self.blocks) {
            return Some(format!("block {wrong} in a cache of {}", self.blocks));
        }
        // Loaded twice, a block would hold pieces of both pages, as the threads happen to run.
        let mut sorted = blocks.to_vec();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(format!("block {} twice in one transfer", twice[0]))
    }
}

#[cfg(test)]
mod tests;
