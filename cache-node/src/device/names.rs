//! What an engine says of its pages, as the driver layer takes it.

use std::os::fd::OwnedFd;

use larder_kernels::{KvHandle, KvPart, KvPieces, Layer, Layout, Order, Piece, Uuid};
use larder_protocol::code::PageOrder;
use larder_protocol::message::{Attach, LAYER_WORDS};

/// Events that an engine may name: one for each step that it is ahead.
const EVENTS_MAX: usize = 64;

/// The pages of a rank, named and not yet opened.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) device: Uuid,
    pub(super) layout: Layout,
    pub(super) parts: Vec<KvPart>,
}

/// Reads it; `part_bytes` is what the rank's share of a chunk must be.
///
/// # Errors
/// What cannot be, for people.
pub(super) fn read(
    attach: &Attach,
    descriptors: Vec<OwnedFd>,
    chunk_blocks: u32,
    part_bytes: u64,
) -> Result<Named, String> {
    let order = match attach.order {
        PageOrder::LayerFirst => Order::LayerFirst,
        PageOrder::BlockFirst => Order::BlockFirst,
        PageOrder::Latent => Order::Latent,
        PageOrder::Unknown => return Err("an order of pages that this node does not know".to_owned()),
    };
    if attach.events.len() > EVENTS_MAX {
        return Err(format!("{} events; {EVENTS_MAX} may be named", attach.events.len()));
    }
    if descriptors.len() != attach.piece_bytes.len() {
        return Err(format!("{} descriptors for {} pieces", descriptors.len(), attach.piece_bytes.len()));
    }
    let layers = attach.layers.chunks_exact(LAYER_WORDS).map(layer).collect();
    let cache_bytes = attach.part_bytes.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
    let cache_bytes = cache_bytes.ok_or("parts beyond all memory")?;
    let layout = Layout::new(order, layers, attach.blocks, chunk_blocks, cache_bytes);
    let layout = layout.map_err(|error| error.to_string())?;
    if layout.chunk_bytes() != part_bytes {
        let bytes = layout.chunk_bytes();
        return Err(format!("a chunk of these pages has {bytes} bytes, and part_bytes said {part_bytes}"));
    }
    let parts = parts(attach, descriptors);
    Ok(Named { device: Uuid(attach.device.to_bytes()), layout, parts })
}

fn layer(words: &[u64]) -> Layer {
    let [pages, stride, rows, row_bytes, row_stride] = words else { unreachable!("cut in fives") };
    Layer { pages: *pages, stride: *stride, rows: *rows, row_bytes: *row_bytes, row_stride: *row_stride }
}

/// The parts: the codec has seen that there are as many handles and pieces as they take.
fn parts(attach: &Attach, descriptors: Vec<OwnedFd>) -> Vec<KvPart> {
    let mut handles = attach.handles.iter();
    let mut pieces =
        descriptors.into_iter().zip(&attach.piece_bytes).map(|(fd, bytes)| Piece { fd, bytes: *bytes });
    let places = attach.part_bytes.iter().zip(&attach.part_offsets).zip(&attach.part_pieces);
    let part = |((bytes, offset), count): ((&u64, &u64), &u32)| {
        let (bytes, offset) = (*bytes, *offset);
        match *count {
            0 => handles.next().map(|handle| KvHandle { handle: handle.0, offset, bytes }.into()),
            count => {
                let pieces = pieces.by_ref().take(count as usize).collect();
                Some(KvPieces { pieces, offset, bytes }.into())
            }
        }
    };
    places.filter_map(part).collect()
}

#[cfg(test)]
mod tests;
