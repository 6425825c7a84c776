use proptest::prelude::*;

use super::{Policy, Run, Way, plan};
use crate::layout::{Layer, Layout, Order};
use crate::reference;

const ALL: Policy = Policy { run_bytes_min: 1, runs_max: 1000, batch: false };

fn layouts() -> impl Strategy<Value = (Layout, Vec<u32>, u32)> {
    let layer = (1u64..4, 1u64..9, prop_oneof![Just(0u64), 0u64..4], prop_oneof![Just(0u64), 0u64..4]);
    (prop::collection::vec(layer, 1..4), 1u32..9, 1u32..6)
        .prop_flat_map(|(sizes, blocks, chunk_blocks)| {
            let (mut at, mut layers) = (0, Vec::new());
            for (rows, row_bytes, between_rows, between_blocks) in sizes {
                let row_stride = row_bytes + between_rows;
                let stride = rows * row_stride + between_blocks;
                layers.push(Layer::latent(at, stride, rows, row_bytes, row_stride));
                at += stride * u64::from(blocks);
            }
            let layout = Layout::new(Order::Latent, layers, blocks, chunk_blocks, at).expect("they fit");
            let most = blocks.min(chunk_blocks) as usize;
            let chosen = prop::sample::subsequence((0..blocks).collect::<Vec<_>>(), 1..=most);
            // In order, so that runs go over blocks, and shuffled.
            (Just(layout), prop_oneof![chosen.clone(), chosen.prop_shuffle()], 0..chunk_blocks)
        })
        .prop_map(|(layout, mut blocks, first)| {
            blocks.truncate((layout.chunk_blocks() - first) as usize);
            (layout, blocks, first)
        })
}

proptest! {
    #[test]
    fn copies_do_what_the_reference_does((layout, blocks, first) in layouts()) {
        let Way::Copies(runs) = plan(&layout, &blocks, first, ALL) else { panic!("runs of a byte are allowed") };
        let chunk: Vec<u8> = (0..layout.chunk_bytes()).map(|at| at as u8 | 1).collect();
        let (mut by_runs, mut by_reference) =
            (vec![0; layout.cache_bytes() as usize], vec![0; layout.cache_bytes() as usize]);
        let mut writes = vec![0; layout.cache_bytes() as usize];
        for Run { cache, chunk: from, bytes } in runs.iter().copied() {
            for at in 0..bytes as usize {
                by_runs[cache as usize + at] = chunk[from as usize + at];
                writes[cache as usize + at] += 1;
            }
        }
        reference::scatter(&layout, &chunk, &mut by_reference, &blocks, first);
        prop_assert_eq!(by_runs, by_reference);
        prop_assert!(writes.iter().all(|count| *count <= 1), "no byte is moved twice");
        // Merged as far as it goes, within a layer.
        let ends: Vec<u64> = layout.offsets();
        for pair in runs.windows(2) {
            let meets = pair[0].cache + pair[0].bytes == pair[1].cache && pair[0].chunk + pair[0].bytes == pair[1].chunk;
            prop_assert!(!meets || ends.contains(&pair[1].chunk), "{pair:?}");
        }
    }

    #[test]
    fn copies_are_never_more_or_shorter_than_allowed(
        (layout, blocks, first) in layouts(), run_bytes_min in 1u64..40, runs_max in 1usize..12,
    ) {
        let policy = Policy { run_bytes_min, runs_max, batch: false };
        let Way::Copies(all) = plan(&layout, &blocks, first, ALL) else { panic!("as above") };
        let mean = all.iter().map(|run| run.bytes).sum::<u64>() / all.len() as u64;
        let expected = if all.len() <= runs_max && mean >= run_bytes_min { Way::Copies(all) } else { Way::Kernel };
        prop_assert_eq!(plan(&layout, &blocks, first, policy), expected);
    }
}

#[test]
fn a_run_ends_where_a_layer_does() {
    // The second layer's block 0 lies right behind the first's last, in the cache and in the chunk.
    let layout =
        Layout::new(Order::LayerFirst, vec![Layer::new(0, 4, 4), Layer::new(4, 4, 4)], 1, 1, 8).unwrap();
    let Way::Copies(runs) = plan(&layout, &[0], 0, ALL) else { panic!("two runs") };
    assert_eq!(runs.len(), 2, "{runs:?}");
}

#[test]
fn big_blocks_are_copied_and_small_pages_are_not() {
    let mib = 1 << 20;
    let blocks =
        Layout::new(Order::BlockFirst, vec![Layer::new(0, 4 * mib, 4 * mib)], 64, 16, 256 * mib).unwrap();
    let Way::Copies(runs) = plan(&blocks, &[7, 8, 9, 20], 4, Policy::default()) else { panic!("4 MiB each") };
    assert_eq!(
        runs,
        [
            Run { cache: 28 * mib, chunk: 16 * mib, bytes: 12 * mib },
            Run { cache: 80 * mib, chunk: 28 * mib, bytes: 4 * mib },
        ]
    );
    let layers = (0..80).map(|layer| Layer::new(layer * mib, 16 << 10, 16 << 10)).collect();
    let pages = Layout::new(Order::LayerFirst, layers, 64, 16, 80 * mib).unwrap();
    assert_eq!(plan(&pages, &[1, 2, 3], 0, Policy::default()), Way::Kernel);
}
