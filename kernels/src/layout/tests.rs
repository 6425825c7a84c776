use proptest::prelude::*;

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

#[test]
fn layers_between_each_other_are_taken_and_upon_each_other_not() {
    let two = |a, b| Layout::new(Order::Latent, vec![a, b], 4, 2, 1000);
    // Behind each other; between each other's pages; between each other's rows.
    assert!(two(Layer::new(0, 10, 10), Layer::new(40, 3, 3)).is_ok());
    assert!(two(Layer::new(0, 10, 6), Layer::new(6, 10, 4)).is_ok());
    assert!(two(Layer::new(6, 10, 4), Layer::new(0, 10, 6)).is_ok());
    assert!(two(Layer::latent(0, 40, 4, 6, 10), Layer::latent(6, 40, 4, 4, 10)).is_ok());
    for (a, b) in [
        (Layer::new(0, 10, 10), Layer::new(39, 3, 3)),
        (Layer::new(0, 10, 7), Layer::new(6, 10, 4)),
        (Layer::new(0, 10, 6), Layer::new(6, 10, 5)),
        (Layer::new(0, 10, 6), Layer::new(6, 12, 4)),
        (Layer::latent(0, 40, 4, 6, 10), Layer::latent(5, 40, 4, 4, 10)),
        (Layer::new(0, 10, 10), Layer::new(0, 10, 10)),
    ] {
        assert_eq!(two(a, b), Err(LayoutError::Overlap(0, 1, a, b)));
    }
}

fn layer() -> impl Strategy<Value = Layer> {
    // Few strides, so that layers lie between each other often.
    (0u64..60, 1u64..4, 1u64..6, prop_oneof![Just(6u64), Just(8)], prop_oneof![Just(24u64), Just(32)])
        .prop_map(|(pages, rows, row, row_stride, stride)| {
            Layer::latent(pages, stride, rows, row.min(row_stride), row_stride)
        })
}

proptest! {
    #[test]
    fn no_byte_is_of_two_layers(layers in prop::collection::vec(layer(), 2..4), blocks in 1u32..4) {
        let mut owners = vec![0; 400];
        for layer in &layers {
            for at in 0..u64::from(blocks) * layer.rows * layer.row_bytes {
                let (page, rest) = (at / layer.page_bytes(), at % layer.page_bytes());
                let (row, byte) = (rest / layer.row_bytes, rest % layer.row_bytes);
                owners[(layer.pages + page * layer.stride + row * layer.row_stride + byte) as usize] += 1;
            }
        }
        let shared = owners.iter().any(|count| *count > 1);
        let made = Layout::new(Order::Latent, layers, blocks, 1, 400);
        prop_assert!(!shared || matches!(made, Err(LayoutError::Overlap(..))), "{made:?}");
    }
}
