//! The chunks of one tier in the order in which they may go.
//!
//! Chunks of one prompt form a path: an engine can use a chunk only if all before it are there. So a chunk that another
//! one here continues (its child) is never named for eviction; leaves go first, and prompts shrink from their end. Who
//! continues whom is learnt from the messages that name both; a chunk nobody named beside its parent counts as a root.
//! A parent ends at a lower token than its child, as noted when each entered, so no message can make a circle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::{Uses, Worth};

/// Who stored a chunk, and whose quota it counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Owner(pub u32);

impl Owner {
    /// Nobody in particular: without a quota.
    pub const NOBODY: Self = Self(0);
}

/// What is known of a chunk when it enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it takes in this tier, in bytes: the class it belongs to.
    pub bytes: u64,
    /// Tokens that one use of it saves.
    pub tokens: u32,
    /// Tokens of its prompt that end with it.
    pub end: u32,
    /// The chunk before it, or the nearest one known.
    pub parent: Option<u32>,
    /// Who brought it.
    pub owner: Owner,
}

/// A chunk's place in the order; the lowest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// What it is worth.
    pub worth: Worth,
    /// The number of its last use, which breaks ties.
    pub used: u64,
    /// Its slot.
    pub slot: u32,
}

#[derive(Debug)]
struct Chunk {
    bytes: u64,
    tokens: u32,
    end: u32,
    owner: Owner,
    parent: Option<u32>,
    children: BTreeSet<u32>,
    uses: Uses,
    used: u64,
    /// Who needs it to stay: its writer, and those who pin it.
    holds: u32,
}

impl Chunk {
    fn rank(&self, slot: u32) -> Rank {
        Rank { worth: self.uses.worth(self.tokens, self.bytes), used: self.used, slot }
    }

    fn may_go(&self) -> bool {
        self.holds == 0 && self.children.is_empty()
    }
}

/// The chunks of one owner.
#[derive(Debug, Default)]
struct Owned {
    bytes: u64,
    chunks: u64,
    /// Those that nobody holds and nothing continues.
    leaves: BTreeSet<Rank>,
}

/// The chunks of one tier.
#[derive(Debug)]
pub struct Order {
    half_life: Duration,
    /// By slot: numbers of ours, which nobody chooses to collide.
    chunks: HashMap<u32, Chunk, FixedState>,
    /// By class, those that nobody holds and nothing continues.
    leaves: BTreeMap<u64, BTreeSet<Rank>>,
    /// By owner, all but [`Owner::NOBODY`]'s.
    owned: BTreeMap<Owner, Owned>,
}

impl Order {
    /// An empty tier, in which a use counts half after each `half_life`.
    pub fn new(half_life: Duration) -> Self {
        Self { half_life, chunks: HashMap::default(), leaves: BTreeMap::new(), owned: BTreeMap::new() }
    }

    /// A chunk enters at `slot`, held once (it is being written), used now. `used` grows with every use of any chunk.
    /// A parent that is not here, or ends no earlier, is none.
    pub fn enter(&mut self, slot: u32, entry: Entry, used: u64, now: Duration) {
        self.remove(slot);
        let Entry { bytes, tokens, end, parent, owner } = entry;
        let uses = Uses::first(now, self.half_life);
        let children = BTreeSet::new();
        let chunk = Chunk { bytes, tokens, end, owner, parent: None, children, uses, used, holds: 1 };
        self.chunks.insert(slot, chunk);
        if owner != Owner::NOBODY {
            let owned = self.owned.entry(owner).or_default();
            owned.bytes += bytes;
            owned.chunks += 1;
        }
        if let Some(parent) = parent {
            self.link(slot, parent);
        }
    }

    /// Notes that `slot` continues `parent`, if it is not known to continue another.
    pub fn link(&mut self, slot: u32, parent: u32) {
        let (Some(child), Some(before)) = (self.chunks.get(&slot), self.chunks.get(&parent)) else { return };
        if child.parent.is_some() || before.end >= child.end {
            return;
        }
        self.change(slot, |chunk| chunk.parent = Some(parent));
        self.change(parent, |chunk| {
            chunk.children.insert(slot);
        });
    }

    /// A chunk was used.
    pub fn touch(&mut self, slot: u32, used: u64, now: Duration) {
        let half_life = self.half_life;
        self.change(slot, |chunk| {
            chunk.uses.again(now, half_life);
            chunk.used = used;
        });
    }

    /// One more needs the chunk to stay.
    pub fn hold(&mut self, slot: u32) {
        self.change(slot, |chunk| chunk.holds += 1);
    }

    /// One of those that held it no longer needs it.
    pub fn release(&mut self, slot: u32) {
        self.change(slot, |chunk| {
            debug_assert!(chunk.holds > 0, "released as often as held");
            chunk.holds = chunk.holds.saturating_sub(1);
        });
    }

    /// The chunk is gone, whatever the reason. Chunks that continue it stay, as roots.
    pub fn remove(&mut self, slot: u32) {
        let Some(gone) = self.chunks.remove(&slot) else { return };
        self.unlist(gone.bytes, gone.owner, &gone.rank(slot));
        if let Some(owned) = self.owned.get_mut(&gone.owner) {
            owned.bytes -= gone.bytes;
            owned.chunks -= 1;
            if owned.chunks == 0 {
                self.owned.remove(&gone.owner);
            }
        }
        for child in gone.children {
            self.change(child, |chunk| chunk.parent = None);
        }
        if let Some(parent) = gone.parent {
            self.change(parent, |chunk| {
                chunk.children.remove(&slot);
            });
        }
    }

    /// The chunk of a class that goes first.
    pub fn coldest(&self, class: u64) -> Option<Rank> {
        self.leaves.get(&class)?.first().copied()
    }

    /// The chunk of all other classes that goes first.
    pub fn coldest_beside(&self, class: u64) -> Option<Rank> {
        let others = self.leaves.iter().filter(|(other, _)| **other != class);
        others.filter_map(|(_, leaves)| leaves.first().copied()).min()
    }

    /// An owner's chunk that goes first, of whatever class; none of [`Owner::NOBODY`]'s.
    pub fn coldest_of(&self, owner: Owner) -> Option<Rank> {
        self.owned.get(&owner)?.leaves.first().copied()
    }

    /// What an owner's chunks take, in bytes; 0 for [`Owner::NOBODY`].
    pub fn owned_bytes(&self, owner: Owner) -> u64 {
        self.owned.get(&owner).map_or(0, |owned| owned.bytes)
    }

    /// These chunks and all that continue them, in an order in which each goes before what it continues: what has to
    /// go with them. `None` if one of these is held, or ranks at `than` or above.
    pub fn with_descendants(&self, slots: &[u32], than: Option<Rank>) -> Option<Vec<u32>> {
        let mut found = BTreeSet::new();
        let mut open: Vec<u32> = slots.to_vec();
        while let Some(slot) = open.pop() {
            let Some(chunk) = self.chunks.get(&slot) else { continue };
            if chunk.holds > 0 || than.is_some_and(|than| chunk.rank(slot) >= than) {
                return None;
            }
            if found.insert((std::cmp::Reverse(chunk.end), slot)) {
                open.extend(&chunk.children);
            }
        }
        Some(found.into_iter().map(|(_, slot)| slot).collect())
    }

    /// The tokens that a use of a chunk saves, and those of its prompt that end with it.
    pub fn tokens(&self, slot: u32) -> Option<(u32, u32)> {
        self.chunks.get(&slot).map(|chunk| (chunk.tokens, chunk.end))
    }

    /// Whether a chunk may go now: it is here, nobody holds it, and nothing here continues it.
    pub fn may_go(&self, slot: u32) -> bool {
        self.chunks.get(&slot).is_some_and(Chunk::may_go)
    }

    /// Every chunk's slot and class and whether it may go now, in no order.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, u64, bool)> {
        self.chunks.iter().map(|(slot, chunk)| (*slot, chunk.bytes, chunk.may_go()))
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Errors
    /// The name of the first that does not.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let listed: usize = self.leaves.values().map(BTreeSet::len).sum();
        let leaves = self.chunks.iter().filter(|(_, chunk)| chunk.may_go());
        let right = leaves.clone().all(|(slot, chunk)| {
            self.leaves.get(&chunk.bytes).is_some_and(|leaves| leaves.contains(&chunk.rank(*slot)))
        });
        if !right || listed != leaves.count() {
            return Err("exactly the chunks that nobody holds and nothing continues may go");
        }
        if !self.owners_agree() {
            return Err("each owner has its chunks' bytes, and those of its chunks that may go");
        }
        let child_of = |child: &u32, slot: &u32, end: u32| {
            self.chunks.get(child).is_some_and(|child| child.parent == Some(*slot) && child.end > end)
        };
        let down = self
            .chunks
            .iter()
            .all(|(slot, chunk)| chunk.children.iter().all(|child| child_of(child, slot, chunk.end)));
        let up = self.chunks.iter().all(|(slot, chunk)| {
            let listed = |parent: &u32| self.chunks.get(parent).is_some_and(|it| it.children.contains(slot));
            chunk.parent.as_ref().is_none_or(listed)
        });
        if down && up { Ok(()) } else { Err("parents and children name each other, and children end later") }
    }

    fn owners_agree(&self) -> bool {
        let mut by_owner: BTreeMap<Owner, Owned> = BTreeMap::new();
        for (slot, chunk) in self.chunks.iter().filter(|(_, chunk)| chunk.owner != Owner::NOBODY) {
            let owned = by_owner.entry(chunk.owner).or_default();
            owned.bytes += chunk.bytes;
            owned.chunks += 1;
            owned.leaves.extend(chunk.may_go().then(|| chunk.rank(*slot)));
        }
        let same = |(one, other): (&Owned, &Owned)| {
            (one.bytes, one.chunks, &one.leaves) == (other.bytes, other.chunks, &other.leaves)
        };
        by_owner.keys().eq(self.owned.keys()) && by_owner.values().zip(self.owned.values()).all(same)
    }

    /// Changes a chunk and keeps the list of leaves right. Nothing happens if it is not here.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Chunk)) {
        let Some(chunk) = self.chunks.get_mut(&slot) else { return };
        // Most chunks are continued by others and not listed: their ranks need not be known.
        let before = chunk.may_go().then(|| chunk.rank(slot));
        change(chunk);
        let after = chunk.may_go().then(|| chunk.rank(slot));
        let (class, owner) = (chunk.bytes, chunk.owner);
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.unlist(class, owner, &before);
        }
        if let Some(after) = after {
            self.leaves.entry(class).or_default().insert(after);
            if let Some(owned) = self.owned.get_mut(&owner) {
                owned.leaves.insert(after);
            }
        }
    }

    fn unlist(&mut self, class: u64, owner: Owner, rank: &Rank) {
        if let Some(owned) = self.owned.get_mut(&owner) {
            owned.leaves.remove(rank);
        }
        if let Some(leaves) = self.leaves.get_mut(&class) {
            leaves.remove(rank);
            if leaves.is_empty() {
                self.leaves.remove(&class);
            }
        }
    }
}

#[cfg(test)]
mod tests;
