//! What must hold between any two steps, each with its name. Tests check all of them after every step.

use std::collections::{BTreeMap, BTreeSet};

use super::arena::State;
use super::disk::DiskTier;
use super::{SLOTS_PER_EXTENT, Store};

/// A named check.
type Invariant = (&'static str, fn(&Store) -> bool);

const INVARIANTS: [Invariant; 12] = [
    ("every named chunk has its slot, every slot in use its name", names_and_slots_agree),
    ("pins are exactly what leases, verifications, writes and explicit pins hold", pins_are_holds),
    ("a pinned slot is held or quarantined, never free or being written", pinned_slots_are_readable),
    (
        "the order has every chunk, and lets none go that is pinned or being written",
        the_order_has_every_chunk,
    ),
    ("the order keeps its own invariants", the_order_is_in_order),
    ("exactly the free slots of cut extents are in the free lists", free_lists_are_exact),
    ("an extent is in the pool or cut, and slots lie within it", extents_are_pooled_or_cut),
    ("a generation is even exactly where a chunk can be read", generations_say_readable),
    ("leases, expiries and sessions name each other", leases_are_known_everywhere),
    ("pinned bytes are within their limit", pinned_bytes_are_bounded),
    ("explicit pins keep within their budgets", explicit_pins_are_bounded),
    ("the disk tier keeps its own invariants, and waits for what the store does", the_disk_tier_agrees),
];

impl Store {
    /// Checks every invariant.
    ///
    /// # Errors
    /// The name of the first that does not hold.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        INVARIANTS.iter().find(|(_, holds)| !holds(self)).map_or(Ok(()), |(name, _)| Err(name))
    }
}

fn names_and_slots_agree(store: &Store) -> bool {
    let mut named = 0;
    let agree = store.arena.slots().all(|(slot, found)| {
        let name = match &found.state {
            State::Writing(name) => name,
            State::Held(held) => &held.name,
            State::Free | State::Quarantined => return true,
        };
        named += 1;
        store.chunks.get(name) == Some(&slot)
    });
    let raised: Vec<u32> = store.disk.iter().flat_map(DiskTier::raised).collect();
    let written_to = store.copies.values().map(|copying| copying.slot).chain(raised.iter().copied());
    let copied: BTreeSet<u32> = written_to.collect();
    let writing = store.arena.slots().filter(|(_, found)| matches!(found.state, State::Writing(_)));
    agree
        && named == store.chunks.len()
        && copied.len() == store.copies.len() + raised.len()
        && copied == writing.map(|(slot, _)| slot).collect()
}

fn pins_are_holds(store: &Store) -> bool {
    let pins: BTreeMap<u32, u32> = (store.arena.slots())
        .filter(|(_, found)| found.pins > 0)
        .map(|(slot, found)| (slot, found.pins))
        .collect();
    let bytes: u64 = pins.keys().map(|slot| store.arena.stride(*slot)).sum();
    pins == store.holds() && bytes == store.arena.pinned_bytes
}

fn pinned_slots_are_readable(store: &Store) -> bool {
    let mut pinned = store.arena.slots().filter(|(_, found)| found.pins > 0);
    pinned.all(|(_, found)| matches!(found.state, State::Held(_) | State::Quarantined))
}

fn the_order_has_every_chunk(store: &Store) -> bool {
    let expected = store.arena.slots().filter_map(|(slot, found)| {
        let held = matches!(found.state, State::Held(_));
        let there = held || matches!(found.state, State::Writing(_));
        there.then(|| (slot, store.arena.stride(slot), held && found.pins == 0))
    });
    let expected: BTreeMap<u32, (u64, bool)> =
        expected.map(|(slot, stride, free)| (slot, (stride, free))).collect();
    let right = |(slot, stride, may_go): (u32, u64, bool)| {
        // What may not go though nobody holds it is continued by another; the order's own invariant knows.
        expected.get(&slot).is_some_and(|(class, free)| *class == stride && (*free || !may_go))
    };
    store.arena.order.chunks().all(right) && store.arena.order.chunks().count() == expected.len()
}

fn the_order_is_in_order(store: &Store) -> bool {
    store.arena.order.check_invariants().is_ok()
}

fn free_lists_are_exact(store: &Store) -> bool {
    let expected: BTreeSet<u32> =
        store.arena.slots().filter(|(_, found)| found.state == State::Free).map(|(slot, _)| slot).collect();
    let listed: BTreeSet<u32> =
        store.arena.classes.values().flat_map(|class| class.free.iter().copied()).collect();
    let total: usize = store.arena.classes.values().map(|class| class.free.len()).sum();
    listed == expected && total == expected.len()
}

fn extents_are_pooled_or_cut(store: &Store) -> bool {
    store.arena.extents.iter().zip(0..).all(|(extent, number)| match extent.stride {
        None => store.arena.pool.contains(&number) && extent.slots.is_empty(),
        Some(stride) => {
            let used = extent.slots.iter().any(|slot| slot.state != State::Free);
            !store.arena.pool.contains(&number)
                && used
                && extent.slots.len() as u64 * stride <= store.arena.extent_bytes
                && extent.slots.len() <= SLOTS_PER_EXTENT as usize
        }
    })
}

fn generations_say_readable(store: &Store) -> bool {
    let readable = |slot: u32| {
        let generation = store.arena.generation(slot);
        generation > 0 && generation.is_multiple_of(2)
    };
    let cut =
        store.arena.slots().all(|(slot, found)| readable(slot) == matches!(found.state, State::Held(_)));
    let pooled = store.arena.pool.iter().all(|extent| {
        let first = extent * SLOTS_PER_EXTENT;
        (first..first + SLOTS_PER_EXTENT).all(|slot| !readable(slot))
    });
    cut && pooled
}

fn leases_are_known_everywhere(store: &Store) -> bool {
    let of_sessions: usize = store.sessions.values().map(|session| session.leases.len()).sum();
    let in_sessions = store.sessions.values().flat_map(|session| &session.leases);
    of_sessions == store.leases.len()
        && in_sessions.clone().all(|lease| store.leases.contains_key(lease))
        && store.expiries.iter().all(|(_, lease)| store.leases.contains_key(lease))
        && store.leases.len() + store.openings.len() + store.waiting.len() <= store.settings.leases_max
}

fn the_disk_tier_agrees(store: &Store) -> bool {
    store.disk.as_ref().is_none_or(|disk| disk.check_invariants().is_ok())
}

fn explicit_pins_are_bounded(store: &Store) -> bool {
    store.pins.check_invariants().is_ok() && store.pins.bytes() <= store.arena.pinned_bytes
}

fn pinned_bytes_are_bounded(store: &Store) -> bool {
    store.arena.pinned_bytes <= store.settings.pinned_bytes_max
}
