//! Faults made on purpose (`debug_faults = true`): the negative controls of the tests that say a check works.

use super::{ChunkName, Damage, Output, Store, Ticket};

impl Store {
    pub(super) fn damage(&mut self, ticket: Ticket, damage: &Damage, out: &mut Vec<Output>) {
        let held = self.held_in_order();
        let flip = match damage {
            Damage::Flip { key, nth, byte, bit } => {
                let named = |(_, name): &&(u32, ChunkName)| key.as_ref().is_none_or(|key| name.key == *key);
                let slot = held.iter().filter(named).nth(*nth).map(|(slot, _)| *slot);
                slot.and_then(|slot| {
                    let within = *byte < self.arena.held(slot)?.bytes;
                    within.then(|| (self.arena.offset(slot) + byte, bit % 8))
                })
            }
            Damage::Swap { first, second } => {
                let found = self.swap(held.get(*first), held.get(*second));
                return out.push(Output::Damaged { ticket, found, flip: None });
            }
        };
        out.push(Output::Damaged { ticket, found: flip.is_some(), flip });
    }

    /// Exchanges the names of two held chunks of one namespace.
    fn swap(&mut self, first: Option<&(u32, ChunkName)>, second: Option<&(u32, ChunkName)>) -> bool {
        let (Some((one, one_name)), Some((two, two_name))) = (first, second) else { return false };
        if one == two || one_name.namespace != two_name.namespace {
            return false;
        }
        for (slot, name) in [(*one, two_name), (*two, one_name)] {
            self.arena.held_mut(slot).expect("both are held").name = name.clone();
            self.chunks.insert(name.clone(), slot);
        }
        true
    }

    /// Every held chunk, in the order of slots.
    fn held_in_order(&self) -> Vec<(u32, ChunkName)> {
        let slots = self.arena.slots().map(|(slot, _)| slot);
        slots.filter_map(|slot| Some((slot, self.arena.held(slot)?.name.clone()))).collect()
    }
}
