use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One block at a time, by time stamps.
struct Naive {
    capacity: usize,
    clock: u64,
    used: BTreeMap<u32, u64>,
    pins: BTreeMap<u32, u32>,
}

impl Naive {
    fn held(&self, chain: &[Span]) -> u64 {
        blocks(chain).iter().take_while(|block| self.used.contains_key(block)).count() as u64
    }

    fn touch(&mut self, chain: &[Span]) {
        for &block in blocks(chain).iter().rev() {
            self.clock += 1;
            self.used.insert(block, self.clock);
            if self.used.len() > self.capacity {
                let oldest = self.used.iter().min_by_key(|(_, clock)| **clock).map(|(block, _)| *block);
                self.used.remove(&oldest.expect("it is over capacity"));
            }
        }
    }

    fn evict(&mut self, reserved: usize) {
        while self.used.len() + reserved > self.capacity {
            let free = self.used.iter().filter(|(block, _)| !self.pins.contains_key(block));
            let Some((&oldest, _)) = free.min_by_key(|(_, clock)| **clock) else { return };
            self.used.remove(&oldest);
        }
    }

    fn pin(&mut self, chain: &[Span]) {
        for block in blocks(chain) {
            self.used.entry(block).or_insert(0);
            *self.pins.entry(block).or_insert(0) += 1;
        }
    }

    fn unpin(&mut self, chain: &[Span]) {
        for block in blocks(chain).into_iter().rev() {
            let pins = self.pins.get_mut(&block).expect("it was pinned");
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(&block);
                self.clock += 1;
                self.used.insert(block, self.clock);
            }
        }
    }
}

fn blocks(chain: &[Span]) -> Vec<u32> {
    chain.iter().flat_map(|&(first, len)| first..first + len).collect()
}

/// A random tree of paths, as interning makes them: ids count up as blocks first appear.
fn chains(choices: &[(u8, u8, u8)]) -> Vec<Vec<Span>> {
    let mut next = 0;
    let mut chains: Vec<Vec<Span>> = Vec::new();
    for &(parent, keep, add) in choices {
        let mut path: Vec<u32> = match chains.len() {
            0 => Vec::new(),
            n => blocks(&chains[parent as usize % n]),
        };
        path.truncate(keep as usize);
        path.extend(next..next + u32::from(add));
        next += u32::from(add);
        let mut chain: Vec<Span> = Vec::new();
        path.iter().for_each(|&block| crate::simulate::workload::push(&mut chain, block, 1));
        chains.push(chain);
    }
    chains
}

proptest! {
    #[test]
    fn extents_are_the_list_of_single_blocks(
        choices in prop::collection::vec((any::<u8>(), 0_u8..40, 0_u8..20), 1..30),
        touches in prop::collection::vec(any::<prop::sample::Index>(), 1..120),
        capacity in 0_usize..120,
    ) {
        let chains = chains(&choices);
        let mut cache = Cache::new(capacity as u64);
        let mut naive = Naive { capacity, clock: 0, used: BTreeMap::new(), pins: BTreeMap::new() };
        for touch in &touches {
            let chain = touch.get(&chains);
            prop_assert_eq!(cache.held(chain), naive.held(chain));
            cache.touch(chain);
            naive.touch(chain);
            prop_assert_eq!(cache.used(), naive.used.len() as u64);
            for chain in &chains {
                prop_assert_eq!(cache.held(chain), naive.held(chain));
            }
        }
    }
}

proptest! {
    #[test]
    fn pinned_extents_are_the_list_of_single_blocks(
        choices in prop::collection::vec((any::<u8>(), 0_u8..40, 0_u8..20), 1..30),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..6), 1..120),
        capacity in 0_usize..120,
    ) {
        let chains = chains(&choices);
        let mut cache = Cache::new(capacity as u64);
        let mut naive = Naive { capacity, clock: 0, used: BTreeMap::new(), pins: BTreeMap::new() };
        let (mut running, mut reserved): (Vec<&Vec<Span>>, usize) = (Vec::new(), 0);
        for (chain, kind) in &steps {
            match kind {
                0..=2 => {
                    let chain = chain.get(&chains);
                    cache.pin(chain);
                    naive.pin(chain);
                    running.push(chain);
                }
                3 | 4 if !running.is_empty() => {
                    let chain = running.swap_remove(chain.index(running.len()));
                    cache.unpin(chain);
                    naive.unpin(chain);
                }
                _ if reserved > 0 => {
                    cache.unreserve(reserved as u64);
                    reserved = 0;
                }
                _ => {
                    reserved = 7;
                    cache.reserve(7);
                }
            }
            naive.evict(reserved);
            prop_assert_eq!(cache.used(), naive.used.len() as u64);
            prop_assert_eq!(cache.pinned, naive.pins.len() as u64);
            for chain in &chains {
                prop_assert_eq!(cache.held(chain), naive.held(chain));
                let free = blocks(chain).iter().filter(|block| !naive.pins.contains_key(block)).count();
                let fits = naive.pins.len() + reserved == 0 || naive.pins.len() + reserved + free <= capacity;
                prop_assert_eq!(cache.admits(chain), fits);
            }
        }
    }
}

/// Negative control of the property above: evicting from the front of a chain would be another cache.
#[test]
fn tails_go_first() {
    let mut cache = Cache::new(10);
    cache.touch(&[(0, 8)]);
    cache.touch(&[(100, 5)]);
    assert_eq!((cache.held(&[(0, 8)]), cache.held(&[(100, 5)]), cache.used()), (5, 5, 10));
    cache.touch(&[(0, 8)]);
    assert_eq!((cache.held(&[(0, 8)]), cache.held(&[(100, 5)])), (8, 2));
}

#[test]
fn a_chain_larger_than_the_cache_leaves_its_head() {
    let mut cache = Cache::new(4);
    cache.touch(&[(0, 3), (7, 6)]);
    assert_eq!((cache.held(&[(0, 3), (7, 6)]), cache.used()), (4, 4));
}
