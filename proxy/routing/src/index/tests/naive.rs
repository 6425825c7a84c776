//! One holder, every element by itself, in the plainest containers.

use std::collections::{BTreeMap, HashMap};

#[derive(Default)]
struct Element {
    pins: u32,
    confirmed: bool,
    /// Place in the eviction order, while it may be evicted.
    place: Option<u64>,
}

#[derive(Default)]
pub(super) struct Naive {
    elements: HashMap<u64, Element>,
    order: BTreeMap<u64, u64>,
    clock: u64,
}

impl Naive {
    pub(super) fn held(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn matched(&self, chain: &[u64]) -> u32 {
        chain.iter().take_while(|element| self.elements.contains_key(element)).count() as u32
    }

    pub(super) fn enter(&mut self, chain: &[u64], pin: bool) {
        for id in chain {
            let element = self.elements.entry(*id).or_default();
            if pin {
                element.pins += 1;
                if let Some(place) = element.place.take() {
                    self.order.remove(&place);
                }
            } else {
                element.confirmed = true;
            }
        }
        if !pin {
            chain.iter().rev().for_each(|id| self.renew(*id));
        }
    }

    pub(super) fn confirm(&mut self, chain: &[u64]) {
        for id in chain {
            if let Some(element) = self.elements.get_mut(id) {
                element.confirmed = true;
            }
        }
    }

    pub(super) fn release(&mut self, chain: &[u64]) {
        for id in chain.iter().rev() {
            let Some(element) = self.elements.get_mut(id).filter(|element| element.pins > 0) else {
                continue;
            };
            element.pins -= 1;
            match (element.pins, element.confirmed) {
                (0, true) => self.renew(*id),
                (0, false) => _ = self.elements.remove(id),
                _ => {}
            }
        }
    }

    pub(super) fn forget(&mut self, chain: &[u64]) {
        for id in chain {
            if self.elements.get(id).is_some_and(|element| element.pins == 0) {
                self.remove(*id);
            }
        }
    }

    pub(super) fn evict_beyond(&mut self, capacity: usize) {
        while self.elements.len() > capacity {
            let Some((_, &oldest)) = self.order.first_key_value() else { return };
            self.remove(oldest);
        }
    }

    pub(super) fn clear(&mut self) {
        self.elements.clear();
        self.order.clear();
    }

    fn renew(&mut self, id: u64) {
        let Some(element) = self.elements.get_mut(&id).filter(|element| element.pins == 0) else { return };
        if let Some(place) = element.place {
            self.order.remove(&place);
        }
        self.clock += 1;
        element.place = Some(self.clock);
        self.order.insert(self.clock, id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(place) = self.elements.remove(&id).and_then(|element| element.place) {
            self.order.remove(&place);
        }
    }
}
