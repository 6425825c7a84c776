//! Random histories against an oracle that adds everything up anew.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BUDGETS: Budgets = Budgets { space_bytes_max: 5, bytes_max: 8, pins_max: 4 };

fn pins() -> Pins<u32, u8> {
    Pins::new(BUDGETS)
}

fn slots(numbers: &[u32]) -> Vec<(u32, u64)> {
    numbers.iter().map(|slot| (*slot, 1)).collect()
}

#[test]
fn a_pin_is_cut_where_its_budget_ends_and_what_is_shared_counts_once() {
    let mut pins = pins();
    assert_eq!(pins.add(1, 0, slots(&[1, 2, 3]), Duration::from_secs(9)), 3);
    assert_eq!(pins.add(2, 0, slots(&[1, 2, 3, 4, 5, 6]), Duration::from_secs(5)), 5, "three are paid for");
    assert_eq!((pins.bytes(), pins.space_bytes(0)), (5, 5));
    assert_eq!(pins.add(3, 1, slots(&[11, 12, 13, 14]), Duration::from_secs(7)), 3, "all have eight");
    assert_eq!(pins.add(4, 1, slots(&[15]), Duration::from_secs(7)), 0);
    assert_eq!(pins.len(), 3, "a pin of nothing is none");
    assert_eq!(pins.expired(Duration::from_secs(4)), None);
    assert_eq!(pins.expired(Duration::from_secs(5)), Some(2));
    assert_eq!(pins.end(2), Some(vec![1, 2, 3, 4, 5]));
    assert_eq!(pins.bytes(), 6, "the first still keeps three");
    assert_eq!((pins.end(2), pins.check_invariants()), (None, Ok(())));
}

#[derive(Debug, Clone)]
enum Happening {
    Add { space: u8, first: u32, count: u32, seconds: u64 },
    End { which: u32 },
    Expire { seconds: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (0_u8..3, 0_u32..6, 1_u32..8, 0_u64..30)
            .prop_map(|(space, first, count, seconds)| Happening::Add { space, first, count, seconds }),
        2 => (0_u32..20).prop_map(|which| Happening::End { which }),
        1 => (0_u64..10).prop_map(|seconds| Happening::Expire { seconds }),
    ]
}

/// Pins as a list; everything else is computed from it.
#[derive(Debug, Default)]
struct Oracle {
    pins: BTreeMap<u32, Pin<u8>>,
    /// The planted mistake: a chunk that two pins name counts twice.
    twice: bool,
}

impl Oracle {
    fn bytes(&self, space: Option<u8>) -> u64 {
        let named = self.pins.values().filter(|pin| space.is_none_or(|space| pin.space == space));
        let mut all: Vec<(u32, u64)> = named.flat_map(|pin| pin.slots.clone()).collect();
        all.sort_unstable();
        if !self.twice {
            all.dedup();
        }
        all.iter().map(|(_, bytes)| bytes).sum()
    }

    fn add(&mut self, id: u32, pin: &Pin<u8>) -> usize {
        let fits = |count: &usize| {
            let pin = Pin { slots: pin.slots[..*count].to_vec(), ..pin.clone() };
            let mut after = Oracle { pins: self.pins.clone(), twice: self.twice };
            after.pins.insert(id, pin.clone());
            after.pins.len() <= BUDGETS.pins_max
                && after.bytes(None) <= BUDGETS.bytes_max
                && after.bytes(Some(pin.space)) <= BUDGETS.space_bytes_max
        };
        let count = (1..=pin.slots.len()).rev().find(fits).unwrap_or(0);
        if count > 0 {
            self.pins.insert(id, Pin { slots: pin.slots[..count].to_vec(), ..pin.clone() });
        }
        count
    }
}

fn play(happenings: &[Happening], mut oracle: Oracle) -> Result<(), String> {
    let (mut pins, mut now) = (pins(), 0);
    for (id, happening) in (0_u32..).zip(happenings) {
        match *happening {
            Happening::Add { space, first, count, seconds } => {
                // Spaces have no slot in common, as namespaces have none; the second slot of each is twice as large.
                let of_space = (first..first + count).map(|slot| u32::from(space) * 100 + slot);
                let slots: Vec<(u32, u64)> = of_space.map(|slot| (slot, 1 + u64::from(slot % 2))).collect();
                let expires = Duration::from_secs(now + seconds);
                let expected = oracle.add(id, &Pin { space, slots: slots.clone(), expires });
                let kept = pins.add(id, space, slots, expires);
                if kept != expected {
                    return Err(format!("{kept} kept, not {expected}, of {happening:?}"));
                }
            }
            Happening::End { which } => {
                let expected = oracle.pins.remove(&which);
                let expected = expected.map(|pin| pin.slots.iter().map(|(slot, _)| *slot).collect());
                if pins.end(which) != expected {
                    return Err("another pin ended".to_owned());
                }
            }
            Happening::Expire { seconds } => {
                now += seconds;
                while let Some(id) = pins.expired(Duration::from_secs(now)) {
                    pins.end(id);
                }
                oracle.pins.retain(|_, pin| pin.expires > Duration::from_secs(now));
            }
        }
        pins.check_invariants()?;
        let same = pins.iter().map(|(id, pin)| (id, pin.clone())).eq(oracle.pins.clone());
        let bytes = (0..3).all(|space| pins.space_bytes(space) == oracle.bytes(Some(space)));
        if !same || !bytes || pins.bytes() != oracle.bytes(None) {
            return Err(format!("pins differ after {happening:?}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn pins_are_what_a_list_of_them_says(happenings in prop::collection::vec(happening(), 1..80)) {
        prop_assert_eq!(play(&happenings, Oracle::default()), Ok(()));
    }
}

/// The control: an oracle that counts shared chunks twice must be found to differ.
#[test]
fn the_comparison_sees_what_is_counted_twice() {
    let add = |first| Happening::Add { space: 0, first, count: 2, seconds: 9 };
    assert_eq!(play(&[add(0), add(0)], Oracle::default()), Ok(()));
    assert!(play(&[add(0), add(0)], Oracle { twice: true, ..Oracle::default() }).is_err());
}
