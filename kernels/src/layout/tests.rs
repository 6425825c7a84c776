use super::{Layer, Layout, LayoutError, Order};
use crate::reference;

/// Where each byte of a chunk of 2 blocks comes from, in a cache whose byte i is i.
fn gathered(layout: &Layout, blocks: &[u32]) -> Vec<u8> {
    let cache: Vec<u8> = (0..layout.cache_bytes()).map(|at| at as u8).collect();
    let mut chunk = vec![0xff; layout.chunk_bytes() as usize];
    reference::gather(layout, &cache, &mut chunk, blocks, 0);
    chunk
}

#[test]
fn each_order_puts_a_chunk_together_as_written_down() {
    let layers = vec![Layer::new(0, 4, 2), Layer::new(20, 3, 3)];
    let layered = Layout::new(Order::LayerFirst, layers, 4, 2, 40).unwrap();
    assert_eq!(gathered(&layered, &[3, 1]), [12, 13, 4, 5, 29, 30, 31, 23, 24, 25]);

    let blocks = Layout::new(Order::BlockFirst, vec![Layer::new(1, 10, 4)], 3, 2, 40).unwrap();
    assert_eq!(gathered(&blocks, &[2, 0]), [21, 22, 23, 24, 1, 2, 3, 4]);

    let layers = vec![Layer::latent(0, 12, 3, 2, 4), Layer::latent(36, 4, 2, 1, 2)];
    let latent = Layout::new(Order::Latent, layers, 3, 2, 48).unwrap();
    assert_eq!(gathered(&latent, &[1, 0]), [12, 13, 16, 17, 20, 21, 0, 1, 4, 5, 8, 9, 40, 42, 36, 38]);
}

#[test]
fn a_cache_that_is_block_first_can_be_cut_layer_first() {
    // Blocks of 6 bytes, each two layers of 3; the chunk has the layers apart.
    let layers = vec![Layer::new(0, 6, 3), Layer::new(3, 6, 3)];
    let layout = Layout::new(Order::LayerFirst, layers, 4, 2, 24).unwrap();
    assert_eq!(gathered(&layout, &[2, 1]), [12, 13, 14, 6, 7, 8, 15, 16, 17, 9, 10, 11]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let one = |order, layer| Layout::new(order, vec![layer], 4, 2, 40);
    assert!(one(Order::LayerFirst, Layer::new(0, 10, 10)).is_ok());
    assert!(one(Order::Latent, Layer::latent(0, 10, 3, 2, 4)).is_ok());
    for (order, layer) in [
        (Order::LayerFirst, Layer::new(1, 10, 10)),
        (Order::LayerFirst, Layer::new(0, 10, 11)),
        (Order::LayerFirst, Layer::new(0, 10, 0)),
        (Order::LayerFirst, Layer::latent(0, 10, 2, 5, 5)),
        (Order::BlockFirst, Layer::latent(0, 10, 2, 5, 5)),
        (Order::Latent, Layer::latent(0, 10, 0, 2, 2)),
        (Order::Latent, Layer::latent(0, 10, 3, 5, 5)),
        (Order::Latent, Layer::latent(0, 10, 3, 2, 1)),
        (Order::Latent, Layer::latent(0, u64::MAX, u64::MAX, 2, 2)),
    ] {
        assert!(matches!(one(order, layer), Err(LayoutError::Layer { .. })), "{order:?} {layer:?}");
    }
    let two = Layout::new(Order::BlockFirst, vec![Layer::new(0, 9, 9); 2], 4, 2, 40);
    assert_eq!(two, Err(LayoutError::BlockFirst(2)));
}
