//! How a transfer is done: by copies of its own, or by a kernel that moves all its pages. Pure.
//!
//! A copy straight between host memory and the engine's pages costs the driver and the copy engine a fixed time, so it
//! pays for long runs only: a block-first cache whose blocks are megabytes. Pages of some kilobytes go through the
//! landing slab in one copy, and a kernel scatters them. Where the line lies depends on the GPU and its driver;
//! [`Policy::default`] is a guess that was measured nowhere.

use crate::layout::Layout;

/// A stretch of bytes that lies in one piece in the cache and in the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins, in bytes from the cache's beginning.
    pub cache: u64,
    /// Where it begins in the chunk.
    pub chunk: u64,
    /// Bytes of it.
    pub bytes: u64,
}

/// When copies are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Bytes that a transfer's runs must have on average.
    pub run_bytes_min: u64,
    /// Runs of one transfer at most; each is a call of the driver, or an entry of a batch.
    pub runs_max: usize,
    /// Give all runs in one call (`cuMemcpyBatchAsync`) where the driver has it. Off unless asked for: drivers have been
    /// seen to fail in it.
    pub batch: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { run_bytes_min: 256 << 10, runs_max: 64, batch: false }
    }
}

/// How a transfer is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A copy for each run, straight between host memory and the engine's pages.
    Copies(Vec<Run>),
    /// One copy between host memory and the landing slab, and a kernel between there and the pages.
    Kernel,
}

/// How to move the engine's `blocks`, which are the chunk's from `first` on. They are of the layout.
pub fn plan(layout: &Layout, blocks: &[u32], first: u32, policy: Policy) -> Way {
    let (mut merged, mut bytes) = (Vec::<Run>::new(), 0);
    for run in rows(layout, blocks, first) {
        bytes += run.run.bytes;
        if let Some(last) = merged.last_mut()
            && run.layer_goes_on
            && last.meets(run.run)
        {
            last.bytes += run.run.bytes;
        } else if merged.len() == policy.runs_max {
            // Not looked at to its end: a transfer can have millions of rows.
            return Way::Kernel;
        } else {
            merged.push(run.run);
        }
    }
    if merged.is_empty() || bytes / (merged.len() as u64) < policy.run_bytes_min {
        return Way::Kernel;
    }
    Way::Copies(merged)
}

impl Run {
    fn meets(&self, next: Run) -> bool {
        self.cache + self.bytes == next.cache && self.chunk + self.bytes == next.chunk
    }
}

/// A row, and whether it is of the same layer as the one before it: layers can lie in different allocations, however
/// near each other they are counted.
struct Row {
    run: Run,
    layer_goes_on: bool,
}

fn rows(layout: &Layout, blocks: &[u32], first: u32) -> impl Iterator<Item = Row> {
    let layers = layout.layers().iter().zip(layout.offsets());
    layers.flat_map(move |(layer, offset)| {
        (u64::from(first)..).zip(blocks).enumerate().flat_map(move |(number, (index, block))| {
            let (page, place) =
                (layer.pages + u64::from(*block) * layer.stride, offset + index * layer.page_bytes());
            (0..layer.rows).map(move |row| Row {
                run: Run {
                    cache: page + row * layer.row_stride,
                    chunk: place + row * layer.row_bytes,
                    bytes: layer.row_bytes,
                },
                layer_goes_on: number > 0 || row > 0,
            })
        })
    })
}

#[cfg(test)]
mod tests;
