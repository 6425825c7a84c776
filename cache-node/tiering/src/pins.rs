//! Explicit pins: chunks that somebody asked to keep in the host tier for a while. Slots are numbers, `now` is an
//! argument; whoever uses this holds the slots that it names against eviction.
//!
//! A chunk that several pins name counts once, and stays until the last of them ends. Each space (a namespace) has a
//! budget of bytes and all together have one; a pin is cut short where either ends, and so keeps the beginning of a
//! prompt, which is all that an engine can use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// What pins may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes of each space.
    pub space_bytes_max: u64,
    /// Bytes of all spaces.
    pub bytes_max: u64,
    /// Pins at one time.
    pub pins_max: usize,
}

/// What one pin keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin<S> {
    /// The space it counts in.
    pub space: S,
    /// Its slots, each with its bytes, in the order of the prompt.
    pub slots: Vec<(u32, u64)>,
    /// When it ends.
    pub expires: Duration,
}

/// How often a slot is pinned, and what it takes.
#[derive(Debug, Clone, Copy)]
struct Kept {
    pins: u32,
    bytes: u64,
}

/// All pins. `I` names them, `S` names spaces.
#[derive(Debug)]
pub struct Pins<I, S> {
    budgets: Budgets,
    pins: BTreeMap<I, Pin<S>>,
    expiries: BTreeSet<(Duration, I)>,
    kept: HashMap<u32, Kept>,
    bytes: u64,
    space_bytes: BTreeMap<S, u64>,
}

impl<I: Copy + Ord + Hash, S: Copy + Ord + Hash> Pins<I, S> {
    /// No pins yet.
    pub fn new(budgets: Budgets) -> Self {
        Self {
            budgets,
            pins: BTreeMap::new(),
            expiries: BTreeSet::new(),
            kept: HashMap::new(),
            bytes: 0,
            space_bytes: BTreeMap::new(),
        }
    }

    /// How many of these slots, of different chunks, a new pin could keep: the leading ones within both budgets; none
    /// if there are as many pins as may be.
    pub fn fitting(&self, space: S, slots: &[(u32, u64)]) -> usize {
        if self.pins.len() >= self.budgets.pins_max {
            return 0;
        }
        let (mut all, mut own) = (self.bytes, self.space_bytes(space));
        let mut fits = |(slot, bytes): &(u32, u64)| {
            let more = if self.kept.contains_key(slot) { 0 } else { *bytes };
            (all, own) = (all.saturating_add(more), own.saturating_add(more));
            all <= self.budgets.bytes_max && own <= self.budgets.space_bytes_max
        };
        // A slot lies in one namespace, so what another pin keeps is in this space's bytes already.
        slots.iter().take_while(|slot| fits(slot)).count()
    }

    /// Keeps as many of these slots as fit, from the first on, until `expires`. Returns how many; a pin of none is not
    /// kept. `id` must be new.
    pub fn add(&mut self, id: I, space: S, mut slots: Vec<(u32, u64)>, expires: Duration) -> usize {
        debug_assert!(!self.pins.contains_key(&id), "ids are drawn anew");
        slots.truncate(self.fitting(space, &slots));
        let count = slots.len();
        if count == 0 {
            return 0;
        }
        for (slot, bytes) in &slots {
            let kept = self.kept.entry(*slot).or_insert(Kept { pins: 0, bytes: *bytes });
            kept.pins += 1;
            if kept.pins == 1 {
                self.bytes += bytes;
                *self.space_bytes.entry(space).or_default() += bytes;
            }
        }
        self.expiries.insert((expires, id));
        self.pins.insert(id, Pin { space, slots, expires });
        count
    }

    /// Ends a pin and returns its slots; each is to be let go once.
    pub fn end(&mut self, id: I) -> Option<Vec<u32>> {
        let Pin { space, slots, expires } = self.pins.remove(&id)?;
        self.expiries.remove(&(expires, id));
        for (slot, _) in &slots {
            let Some(kept) = self.kept.get_mut(slot) else { continue };
            kept.pins -= 1;
            if kept.pins == 0 {
                let bytes = kept.bytes;
                self.kept.remove(slot);
                self.bytes -= bytes;
                let left = self.space_bytes.get_mut(&space).map(|own| {
                    *own -= bytes;
                    *own
                });
                if left == Some(0) {
                    self.space_bytes.remove(&space);
                }
            }
        }
        Some(slots.into_iter().map(|(slot, _)| slot).collect())
    }

    /// A pin whose time is over.
    pub fn expired(&self, now: Duration) -> Option<I> {
        self.expiries.first().filter(|(expires, _)| *expires <= now).map(|(_, id)| *id)
    }

    /// Every pin, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (I, &Pin<S>)> {
        self.pins.iter().map(|(id, pin)| (*id, pin))
    }

    /// Pins at the moment.
    pub fn len(&self) -> usize {
        self.pins.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    /// Bytes that pins keep.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that pins of one space keep.
    pub fn space_bytes(&self, space: S) -> u64 {
        self.space_bytes.get(&space).copied().unwrap_or(0)
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Errors
    /// The name of the first that does not.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let within = self.bytes <= self.budgets.bytes_max
            && self.space_bytes.values().all(|bytes| *bytes <= self.budgets.space_bytes_max)
            && self.pins.len() <= self.budgets.pins_max;
        if !within {
            return Err("pins keep within their budgets");
        }
        let named: usize = self.pins.values().map(|pin| pin.slots.len()).sum();
        let counted: usize = self.kept.values().map(|kept| kept.pins as usize).sum();
        let bytes: u64 = self.kept.values().map(|kept| kept.bytes).sum();
        let spaces: u64 = self.space_bytes.values().sum();
        if named != counted || (bytes, spaces) != (self.bytes, self.bytes) {
            return Err("what pins keep is counted once, as often as it is named");
        }
        let expiries = self.pins.iter().map(|(id, pin)| (pin.expires, *id));
        if self.expiries != expiries.collect() { Err("every pin expires") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
