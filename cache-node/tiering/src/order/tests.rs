//! Random histories against a naive oracle that computes everything anew from the definition.

use proptest::prelude::*;

use super::*;

const HALF_LIFE: Duration = Duration::from_secs(100);
const CLASSES: [u64; 2] = [4096, 65_536];

fn entry(bytes: u64, end: u32, parent: Option<u32>) -> Entry {
    Entry { bytes, tokens: 32, end, parent, owner: Owner::NOBODY }
}

/// A chunk that is written at once.
fn enter(order: &mut Order, slot: u32, entry: Entry, used: u64, now: u64) {
    order.enter(slot, entry, used, Duration::from_secs(now));
    order.release(slot);
}

#[test]
fn leaves_go_first_and_a_prompt_shrinks_from_its_end() {
    let mut order = Order::new(HALF_LIFE);
    for slot in 0..4_u32 {
        let parent = slot.checked_sub(1);
        enter(&mut order, slot, entry(4096, (slot + 1) * 32, parent), u64::from(slot), 0);
    }
    // The end is used most, and still it goes before what it needs.
    (0..5).for_each(|used| order.touch(3, 10 + used, Duration::from_secs(1)));
    let mut gone = Vec::new();
    while let Some(rank) = order.coldest(4096) {
        order.remove(rank.slot);
        gone.push(rank.slot);
    }
    assert_eq!(gone, [3, 2, 1, 0]);
}

#[test]
fn often_used_outlasts_just_used_until_it_fades() {
    let mut order = Order::new(HALF_LIFE);
    enter(&mut order, 0, entry(4096, 32, None), 1, 0);
    (0..7).for_each(|used| order.touch(0, 2 + used, Duration::ZERO));
    enter(&mut order, 1, entry(4096, 32, None), 20, 299);
    assert_eq!(order.coldest(4096).unwrap().slot, 1, "eight uses are worth more for three half-lives");
    enter(&mut order, 2, entry(4096, 32, None), 30, 301);
    order.remove(1);
    assert_eq!(order.coldest(4096).unwrap().slot, 0, "and less than one after that");
}

#[test]
fn a_circle_cannot_be_told() {
    let mut order = Order::new(HALF_LIFE);
    for slot in 0..3 {
        enter(&mut order, slot, entry(4096, (slot + 1) * 32, None), 1, 0);
    }
    for (child, parent) in [(1, 0), (2, 1), (0, 2), (1, 1), (0, 1), (7, 0), (0, 7)] {
        order.link(child, parent);
        assert_eq!(order.check_invariants(), Ok(()));
    }
    assert_eq!(order.chunks().filter(|(.., goes)| *goes).count(), 1);
    assert_eq!(order.with_descendants(&[0], None), Some(vec![2, 1, 0]));
    order.hold(2);
    assert_eq!(order.with_descendants(&[0], None), None, "what continues it is held");
}

/// One thing that happens; slots below 12.
#[derive(Debug, Clone)]
enum Happening {
    Enter { slot: u32, class: usize, tokens: u32, end: u32, parent: Option<u32>, owner: u32 },
    Link { slot: u32, parent: u32 },
    Touch { slot: u32 },
    Hold { slot: u32 },
    Release { slot: u32 },
    Remove { slot: u32 },
    Evict { class: usize },
    EvictOf { owner: u32 },
    Wait { seconds: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let slot = 0_u32..12;
    prop_oneof![
        6 => (slot.clone(), 0_usize..2, 1_u32..200, 1_u32..9, prop::option::of(slot.clone()), 0_u32..3)
            .prop_map(|(slot, class, tokens, end, parent, owner)| {
                Happening::Enter { slot, class, tokens, end, parent, owner }
            }),
        4 => (slot.clone(), slot.clone()).prop_map(|(slot, parent)| Happening::Link { slot, parent }),
        5 => slot.clone().prop_map(|slot| Happening::Touch { slot }),
        2 => slot.clone().prop_map(|slot| Happening::Hold { slot }),
        8 => slot.clone().prop_map(|slot| Happening::Release { slot }),
        1 => slot.prop_map(|slot| Happening::Remove { slot }),
        3 => (0_usize..2).prop_map(|class| Happening::Evict { class }),
        2 => (0_u32..3).prop_map(|owner| Happening::EvictOf { owner }),
        4 => (1_u64..300).prop_map(|seconds| Happening::Wait { seconds }),
    ]
}

#[derive(Debug)]
struct Plain {
    slot: u32,
    entry: Entry,
    uses: Vec<u64>,
    holds: u32,
}

/// The same by definition: a list, searched whole each time.
#[derive(Debug, Default)]
struct Oracle {
    chunks: Vec<Plain>,
    now: u64,
    /// The planted mistake: forgets that parents stay while a child lives.
    parents_go: bool,
    /// Another: counts everybody's chunks for everybody.
    all_own_all: bool,
}

impl Oracle {
    fn find(&mut self, slot: u32) -> Option<&mut Plain> {
        self.chunks.iter_mut().find(|chunk| chunk.slot == slot)
    }

    fn remove(&mut self, slot: u32) {
        self.chunks.retain(|chunk| chunk.slot != slot);
        let children = self.chunks.iter_mut().filter(|chunk| chunk.entry.parent == Some(slot));
        children.for_each(|chunk| chunk.entry.parent = None);
    }

    fn link(&mut self, slot: u32, parent: u32) {
        let end = self.find(parent).map_or(u32::MAX, |parent| parent.entry.end);
        if let Some(chunk) = self.find(slot)
            && chunk.entry.parent.is_none()
            && end < chunk.entry.end
        {
            chunk.entry.parent = Some(parent);
        }
    }

    fn worth(&self, chunk: &Plain) -> f64 {
        let fade = |at: &u64| (-((self.now - at) as f64) / HALF_LIFE.as_secs_f64()).exp2();
        chunk.uses.iter().map(fade).sum::<f64>() * f64::from(chunk.entry.tokens) / chunk.entry.bytes as f64
    }

    fn may_go(&self, chunk: &Plain) -> bool {
        let continued = self.chunks.iter().any(|other| other.entry.parent == Some(chunk.slot));
        chunk.holds == 0 && (self.parents_go || !continued)
    }

    fn owns(&self, owner: u32, chunk: &Plain) -> bool {
        owner > 0 && (self.all_own_all || chunk.entry.owner == Owner(owner))
    }

    fn lowest(&self, wanted: impl Fn(&Plain) -> bool) -> Option<f64> {
        let fitting = self.chunks.iter().filter(|chunk| wanted(chunk) && self.may_go(chunk));
        fitting.map(|chunk| self.worth(chunk)).min_by(f64::total_cmp)
    }
}

/// Plays a history on both; says where they first differ.
fn play(happenings: &[Happening], mut oracle: Oracle) -> Result<(), String> {
    let mut order = Order::new(HALF_LIFE);
    for (used, happening) in (0..).zip(happenings) {
        let now = Duration::from_secs(oracle.now);
        match *happening {
            Happening::Enter { slot, class, tokens, end, parent, owner } => {
                let entry = Entry { bytes: CLASSES[class], tokens, end, parent, owner: Owner(owner) };
                order.enter(slot, entry, used, now);
                oracle.remove(slot);
                let entry = Entry { parent: None, ..entry };
                oracle.chunks.push(Plain { slot, entry, uses: vec![oracle.now], holds: 1 });
                if let Some(parent) = parent {
                    oracle.link(slot, parent);
                }
            }
            Happening::Link { slot, parent } => {
                order.link(slot, parent);
                oracle.link(slot, parent);
            }
            Happening::Touch { slot } => {
                order.touch(slot, used, now);
                let now = oracle.now;
                if let Some(chunk) = oracle.find(slot) {
                    chunk.uses.push(now);
                }
            }
            Happening::Hold { slot } => {
                order.hold(slot);
                oracle.find(slot).into_iter().for_each(|chunk| chunk.holds += 1);
            }
            Happening::Release { slot } => {
                if let Some(chunk) = oracle.find(slot).filter(|chunk| chunk.holds > 0) {
                    chunk.holds -= 1;
                    order.release(slot);
                }
            }
            Happening::Remove { slot } => {
                order.remove(slot);
                oracle.remove(slot);
            }
            Happening::Evict { class } => {
                if let Some(rank) = order.coldest(CLASSES[class]) {
                    order.remove(rank.slot);
                    oracle.remove(rank.slot);
                }
            }
            Happening::EvictOf { owner } => {
                if let Some(rank) = order.coldest_of(Owner(owner)) {
                    order.remove(rank.slot);
                    oracle.remove(rank.slot);
                }
            }
            Happening::Wait { seconds } => oracle.now += seconds,
        }
        order.check_invariants()?;
        compare(&order, &oracle).map_err(|what| format!("{what} after {happening:?}"))?;
    }
    Ok(())
}

/// Of the chunks that are `wanted`, the right one goes first.
fn goes_first(oracle: &Oracle, found: Option<Rank>, wanted: impl Fn(&Plain) -> bool) -> Result<(), String> {
    let found =
        found.map(|rank| oracle.chunks.iter().find(|chunk| chunk.slot == rank.slot).expect("is there"));
    match (found, oracle.lowest(&wanted)) {
        (None, None) => Ok(()),
        // Worths closer than rounding may go in either order.
        (Some(chunk), Some(lowest))
            if wanted(chunk) && oracle.may_go(chunk) && oracle.worth(chunk) <= lowest * (1.0 + 1e-6) =>
        {
            Ok(())
        }
        (found, lowest) => Err(format!("{found:?} goes first and not the one of {lowest:?}")),
    }
}

fn compare(order: &Order, oracle: &Oracle) -> Result<(), String> {
    if order.chunks().count() != oracle.chunks.len() {
        return Err("another number of chunks".to_owned());
    }
    for (class, other) in [(CLASSES[0], CLASSES[1]), (CLASSES[1], CLASSES[0])] {
        if order.coldest_beside(class) != order.coldest(other) {
            return Err("another class's coldest".to_owned());
        }
        goes_first(oracle, order.coldest(class), |chunk| chunk.entry.bytes == class)?;
    }
    for owner in 0..3 {
        let bytes = oracle.chunks.iter().filter(|it| oracle.owns(owner, it)).map(|it| it.entry.bytes).sum();
        if order.owned_bytes(Owner(owner)) != bytes {
            return Err(format!("owner {owner} has {bytes} bytes"));
        }
        goes_first(oracle, order.coldest_of(Owner(owner)), |chunk| oracle.owns(owner, chunk))?;
    }
    for chunk in &oracle.chunks {
        let doomed = order.with_descendants(&[chunk.slot], None);
        for (place, slot) in doomed.iter().flatten().enumerate() {
            let parent = oracle.chunks.iter().find(|it| it.slot == *slot).and_then(|it| it.entry.parent);
            if parent.is_some_and(|parent| doomed.iter().flatten().take(place).any(|it| *it == parent)) {
                return Err("a parent goes before its child".to_owned());
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn what_goes_first_is_what_the_definition_says(happenings in prop::collection::vec(happening(), 1..200)) {
        prop_assert_eq!(play(&happenings, Oracle::default()), Ok(()));
    }
}

/// The control of the test above: held against an oracle with a planted mistake it must fail.
#[test]
fn the_comparison_sees_an_order_that_lets_parents_go() {
    let enter = |slot, end, parent| Happening::Enter { slot, class: 0, tokens: 32, end, parent, owner: 0 };
    let release = |slot| Happening::Release { slot };
    let happenings = [
        enter(0, 1, None),
        release(0),
        enter(1, 2, Some(0)),
        release(1),
        Happening::Wait { seconds: 50 },
        Happening::Touch { slot: 1 },
    ];
    assert_eq!(play(&happenings, Oracle::default()), Ok(()));
    let mistaken = Oracle { parents_go: true, ..Oracle::default() };
    assert!(play(&happenings, mistaken).unwrap_err().contains("goes first"));
}

/// And held against one that takes everybody's chunks for everybody's.
#[test]
fn the_comparison_sees_whose_chunks_are_whose() {
    let enter = |slot, owner| Happening::Enter { slot, class: 0, tokens: 32, end: 1, parent: None, owner };
    let happenings =
        [enter(0, 1), enter(1, 2), Happening::Release { slot: 0 }, Happening::Release { slot: 1 }];
    assert_eq!(play(&happenings, Oracle::default()), Ok(()));
    let mistaken = Oracle { all_own_all: true, ..Oracle::default() };
    assert!(play(&happenings, mistaken).unwrap_err().contains("owner "));
}
