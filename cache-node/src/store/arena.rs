//! The slab as numbers: extents, the slots they are cut into, who may be evicted. No memory is touched here.
//!
//! The slab is cut into extents of equal size. An extent is either in the pool or cut into slots of one **class** (a
//! stride in bytes). An extent whose slots are all free returns to the pool, so classes trade extents as the mix of
//! models changes. A slot's **generation** is even while a chunk can be read from it and odd otherwise; it grows with
//! every change and outlives re-cutting, so a reader that compares it before and after its copy knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use larder_protocol::{BlockKey, Checksum, StoreNamespace};
use larder_tiering::{Entry, Order, Rank};

/// Slot numbers that an extent takes up, whatever its class: number = extent * this + index.
pub const SLOTS_PER_EXTENT: u32 = 1024;

/// How long it takes until a use of a chunk counts half. Turns of a conversation come minutes apart; what nobody asked
/// for in an hour is worth a sixty-fourth of what is asked for now.
pub const HALF_LIFE: Duration = Duration::from_secs(600);

/// A chunk's name in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName {
    /// What keeps equal keys of different models apart.
    pub namespace: StoreNamespace,
    /// The engine's key.
    pub key: BlockKey,
}

/// A chunk that lies whole in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) name: ChunkName,
    /// Bytes of the chunk; the slot may be longer.
    pub(super) bytes: u64,
    pub(super) checksum: Checksum,
    /// When the bytes were last read back and found right.
    pub(super) verified: Option<Duration>,
    /// Grants, and commits when it was there already; before it was last evicted, too.
    pub(super) uses: u32,
}

/// What a slot is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Free => Writing.
    Free,
    /// A copy into it runs. Writing => (Held | Free); a copy between two mappings cannot fail, one from disk can.
    Writing(ChunkName),
    /// Readable. Held => (Free | Quarantined).
    Held(Held),
    /// Its bytes were found wrong; out of use until the node restarts, in case the memory is bad.
    Quarantined,
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) state: State,
    /// Leases (and verifications) that hold it.
    pub(super) pins: u32,
}

#[derive(Debug, Default)]
pub(super) struct Extent {
    /// The class it is cut for; none while in the pool.
    pub(super) stride: Option<u64>,
    pub(super) slots: Vec<Slot>,
    /// By index, grown on demand; kept when the extent is cut anew.
    pub(super) generations: Vec<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Class {
    /// Free slots, lowest first, so that high extents empty.
    pub(super) free: BTreeSet<u32>,
}

/// What came of asking for a slot.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The slot; none if all that would have to go is pinned, being written or quarantined.
    pub(super) slot: Option<u32>,
    /// What was evicted, whether there is a slot or not.
    pub(super) evicted: Vec<Held>,
    /// How many of these went for their owner's quota.
    pub(super) for_quota: u64,
    /// The quota is why there is no slot.
    pub(super) over_quota: bool,
}

/// The slots of the host slab.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) extent_bytes: u64,
    pub(super) extents: Vec<Extent>,
    pub(super) pool: BTreeSet<u32>,
    pub(super) classes: BTreeMap<u64, Class>,
    /// Every chunk held or being written, in the order in which they may go.
    pub(super) order: Order,
    pub(super) pinned_bytes: u64,
    /// Generations changed since they were last taken, in order.
    changes: Vec<(u32, u64)>,
}

impl Arena {
    pub(super) fn new(extent_bytes: u64, extents: u32) -> Self {
        Self {
            extent_bytes,
            extents: (0..extents).map(|_| Extent::default()).collect(),
            pool: (0..extents).collect(),
            classes: BTreeMap::new(),
            order: Order::new(HALF_LIFE),
            pinned_bytes: 0,
            changes: Vec::new(),
        }
    }

    /// The generations changed since the last call, in order. They must reach the shared table before any copy that
    /// was decided after them begins.
    pub(super) fn take_changes(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn slot(&self, slot: u32) -> &Slot {
        &self.extents[(slot / SLOTS_PER_EXTENT) as usize].slots[(slot % SLOTS_PER_EXTENT) as usize]
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.extents[(slot / SLOTS_PER_EXTENT) as usize].slots[(slot % SLOTS_PER_EXTENT) as usize]
    }

    pub(super) fn held(&self, slot: u32) -> Option<&Held> {
        match &self.slot(slot).state {
            State::Held(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn held_mut(&mut self, slot: u32) -> Option<&mut Held> {
        match &mut self.slot_mut(slot).state {
            State::Held(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn generation(&self, slot: u32) -> u64 {
        let generations = &self.extents[(slot / SLOTS_PER_EXTENT) as usize].generations;
        generations.get((slot % SLOTS_PER_EXTENT) as usize).copied().unwrap_or(0)
    }

    /// Bytes from one slot of this slot's class to the next.
    pub(super) fn stride(&self, slot: u32) -> u64 {
        self.extents[(slot / SLOTS_PER_EXTENT) as usize].stride.expect("a slot exists only in a cut extent")
    }

    /// Where the slot begins in the slab, in bytes.
    pub(super) fn offset(&self, slot: u32) -> u64 {
        let extent = u64::from(slot / SLOTS_PER_EXTENT);
        extent * self.extent_bytes + u64::from(slot % SLOTS_PER_EXTENT) * self.stride(slot)
    }

    /// Moves the generation on until it is even (`readable`) or odd.
    fn advance(&mut self, slot: u32, readable: bool) {
        let generations = &mut self.extents[(slot / SLOTS_PER_EXTENT) as usize].generations;
        let index = (slot % SLOTS_PER_EXTENT) as usize;
        if generations.len() <= index {
            generations.resize(index + 1, 0);
        }
        let generation = &mut generations[index];
        // 0 is even and was never readable: nobody is ever granted it.
        let wanted = (*generation).is_multiple_of(2) == readable && *generation > 0;
        if !wanted {
            *generation += 1 + u64::from(readable && *generation == 0);
            self.changes.push((slot, *generation));
        }
    }

    /// A slot to write `name` into, of the class that the entry's bytes are, and the chunks that were evicted for it;
    /// the chunk it continues is not one of them. An owner at its `quota` makes room with its own chunks first, and
    /// never with others' for what is beyond it.
    pub(super) fn allocate(
        &mut self,
        name: ChunkName,
        entry: Entry,
        quota: Option<u64>,
        used: u64,
        now: Duration,
    ) -> Room {
        let (stride, mut room) = (entry.bytes, Room::default());
        entry.parent.into_iter().for_each(|parent| self.order.hold(parent));
        room.over_quota = quota.is_some_and(|quota| !self.keep_within(quota, &entry, &mut room.evicted));
        room.for_quota = room.evicted.len() as u64;
        if !room.over_quota {
            room.slot = self.free_slot(stride).or_else(|| self.make_room(stride, &mut room.evicted));
        }
        entry.parent.into_iter().for_each(|parent| self.order.release(parent));
        let Some(slot) = room.slot else { return room };
        self.order.enter(slot, entry, used, now);
        self.classes.get_mut(&stride).expect("it has a free slot").free.remove(&slot);
        self.slot_mut(slot).state = State::Writing(name);
        self.advance(slot, false);
        room
    }

    /// Evicts the owner's coldest chunks until one more fits into its quota. False if it does not.
    fn keep_within(&mut self, quota: u64, entry: &Entry, evicted: &mut Vec<Held>) -> bool {
        // A chunk larger than the quota would cost all the others for nothing.
        while entry.bytes <= quota && self.order.owned_bytes(entry.owner) + entry.bytes > quota {
            let Some(rank) = self.order.coldest_of(entry.owner) else { return false };
            evicted.push(self.evict(rank.slot));
        }
        entry.bytes <= quota
    }

    fn free_slot(&mut self, stride: u64) -> Option<u32> {
        if let Some(slot) = self.classes.get(&stride).and_then(|class| class.free.first()) {
            return Some(*slot);
        }
        let extent = self.pool.pop_first()?;
        self.cut(extent, stride);
        Some(extent * SLOTS_PER_EXTENT)
    }

    fn cut(&mut self, extent: u32, stride: u64) {
        let fit = u32::try_from(self.extent_bytes / stride).unwrap_or(u32::MAX).min(SLOTS_PER_EXTENT);
        let cut = &mut self.extents[extent as usize];
        cut.stride = Some(stride);
        cut.slots = vec![Slot { state: State::Free, pins: 0 }; fit as usize];
        let first = extent * SLOTS_PER_EXTENT;
        self.classes.entry(stride).or_default().free.extend(first..first + fit);
    }

    /// Evicts: another class's extent, if all that has to go with it is worth less than this class's coldest chunk;
    /// else that chunk.
    fn make_room(&mut self, stride: u64, evicted: &mut Vec<Held>) -> Option<u32> {
        let own = self.order.coldest(stride);
        if let Some(doomed) = self.colder_extent(stride, own) {
            evicted.extend(doomed.into_iter().map(|slot| self.evict(slot)));
            return self.free_slot(stride);
        }
        evicted.push(self.evict(own?.slot));
        // Evicting the last chunk of an extent gives the whole extent back; it is cut anew at once.
        self.free_slot(stride)
    }

    /// What has to go, in this order, to empty the extent of another class that holds the coldest chunk there: its
    /// chunks and those that continue them, wherever these lie. None if one of them is in use or ranks at `than` or
    /// above (if `than` is none, this class has nothing to evict at all, and nothing ranks too high).
    fn colder_extent(&self, stride: u64, than: Option<Rank>) -> Option<Vec<u32>> {
        let coldest = self.order.coldest_beside(stride)?;
        let extent = coldest.slot / SLOTS_PER_EXTENT;
        let slots = &self.extents[extent as usize].slots;
        if slots.iter().any(|slot| matches!(slot.state, State::Writing(_) | State::Quarantined)) {
            return None;
        }
        let held = slots.iter().zip(extent * SLOTS_PER_EXTENT..);
        let held: Vec<u32> =
            held.filter(|(slot, _)| matches!(slot.state, State::Held(_))).map(|(_, slot)| slot).collect();
        self.order.with_descendants(&held, than)
    }

    /// Frees a held, unpinned slot that no held chunk continues. Returns what it held.
    pub(super) fn evict(&mut self, slot: u32) -> Held {
        assert!(
            self.order.may_go(slot),
            "a leased slot is never evicted, nor one that another chunk continues"
        );
        let State::Held(held) = std::mem::replace(&mut self.slot_mut(slot).state, State::Free) else {
            panic!("only a held slot is evicted");
        };
        self.order.remove(slot);
        self.advance(slot, false);
        self.freed(slot);
        held
    }

    /// Frees a slot into which nothing whole was written.
    pub(super) fn abandon(&mut self, slot: u32) {
        debug_assert!(matches!(self.slot(slot).state, State::Writing(_)), "only a write is abandoned");
        self.slot_mut(slot).state = State::Free;
        self.order.remove(slot);
        self.freed(slot);
    }

    /// Puts a slot back, and its extent into the pool if that was the last.
    fn freed(&mut self, slot: u32) {
        let (extent, stride) = (slot / SLOTS_PER_EXTENT, self.stride(slot));
        let class = self.classes.get_mut(&stride).expect("its class exists");
        class.free.insert(slot);
        let cut = &mut self.extents[extent as usize];
        if cut.slots.iter().all(|slot| slot.state == State::Free) {
            let first = extent * SLOTS_PER_EXTENT;
            (first..first + cut.slots.len() as u32).for_each(|slot| {
                class.free.remove(&slot);
            });
            cut.slots = Vec::new();
            cut.stride = None;
            self.pool.insert(extent);
            if class.free.is_empty() && !self.extents.iter().any(|extent| extent.stride == Some(stride)) {
                self.classes.remove(&stride);
            }
        }
    }

    /// A written slot becomes readable.
    pub(super) fn publish(&mut self, slot: u32, held: Held) {
        debug_assert!(matches!(self.slot(slot).state, State::Writing(_)), "only a write is published");
        self.slot_mut(slot).state = State::Held(held);
        self.order.release(slot);
        self.advance(slot, true);
    }

    /// Holds a slot against eviction until [`Self::unpin`].
    pub(super) fn pin(&mut self, slot: u32) {
        let stride = self.stride(slot);
        let found = self.slot_mut(slot);
        found.pins += 1;
        if found.pins == 1 {
            self.order.hold(slot);
            self.pinned_bytes += stride;
        }
    }

    pub(super) fn unpin(&mut self, slot: u32) {
        let stride = self.stride(slot);
        let found = self.slot_mut(slot);
        found.pins -= 1;
        if found.pins == 0 {
            // A slot quarantined meanwhile has left the order.
            self.order.release(slot);
            self.pinned_bytes -= stride;
        }
    }

    /// Takes a held slot out of use for good; whoever is reading it sees the generation change. Returns what it held.
    pub(super) fn quarantine(&mut self, slot: u32) -> Option<ChunkName> {
        let found = self.slot_mut(slot);
        if !matches!(found.state, State::Held(_)) {
            return None;
        }
        let State::Held(held) = std::mem::replace(&mut found.state, State::Quarantined) else { return None };
        self.order.remove(slot);
        self.advance(slot, false);
        Some(held.name)
    }

    /// Every slot of every cut extent, with its number.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.extents.iter().zip(0..).flat_map(|(extent, number)| {
            extent.slots.iter().zip(0..).map(move |(slot, index)| (number * SLOTS_PER_EXTENT + index, slot))
        })
    }
}
