use proptest::prelude::*;

use super::{Depth, Kind, Limits, Queue};

const LIMITS: Limits = Limits { bytes_max: 100, store_bytes_max: 40, loads_max: 5, stores_max: 3 };

#[derive(Debug, Clone)]
enum Step {
    Push(Kind, u64),
    Next,
    /// Ends one of those on their way.
    End(prop::sample::Index),
    /// Forgets those whose number is a multiple of this.
    Forget(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![Just(Kind::Load), Just(Kind::Store)];
    // Some larger than every limit.
    let bytes = prop_oneof![4 => 1u64..60, 1 => Just(150u64), 1 => Just(0u64)];
    prop::collection::vec(
        prop_oneof![
            4 => (kind, bytes).prop_map(|(kind, bytes)| Step::Push(kind, bytes)),
            4 => Just(Step::Next),
            3 => any::<prop::sample::Index>().prop_map(Step::End),
            1 => (2usize..5).prop_map(Step::Forget),
        ],
        0..80,
    )
}

/// What waits, as a list; and what is on its way.
#[derive(Default)]
struct Model {
    waiting: Vec<(Kind, u64, usize)>,
    going: Vec<(Kind, u64)>,
}

impl Model {
    fn sum(list: impl Iterator<Item = (Kind, u64)>, kind: Kind) -> u64 {
        list.filter(|(is, _)| *is == kind).map(|(_, bytes)| bytes).sum()
    }

    fn depth(&self) -> Depth {
        let count = |kind| self.waiting.iter().filter(|(is, ..)| *is == kind).count();
        let waiting = |kind| Self::sum(self.waiting.iter().map(|(kind, bytes, _)| (*kind, *bytes)), kind);
        let going = |kind| Self::sum(self.going.iter().copied(), kind);
        Depth {
            loads: count(Kind::Load),
            stores: count(Kind::Store),
            load_bytes: waiting(Kind::Load),
            store_bytes: waiting(Kind::Store),
            loading_bytes: going(Kind::Load),
            storing_bytes: going(Kind::Store),
        }
    }

    fn begun(&mut self, kind: Kind, bytes: u64, number: usize) {
        let before = self.depth();
        let first = self.waiting.iter().position(|(is, ..)| *is == kind).expect("it waited");
        assert_eq!(self.waiting.remove(first), (kind, bytes, number), "first come, first served");
        self.going.push((kind, bytes));
        let after = self.depth();
        let on_its_way = after.loading_bytes + after.storing_bytes;
        if kind == Kind::Store {
            assert_eq!(before.loads, 0, "no store begins while a load waits");
            assert!(after.storing_bytes <= LIMITS.store_bytes_max || after.storing_bytes == bytes);
            assert!(on_its_way <= LIMITS.bytes_max || on_its_way == bytes);
        } else {
            assert!(
                on_its_way <= LIMITS.bytes_max || after.loading_bytes == bytes,
                "only alone it may be too large"
            );
        }
    }

    /// Nothing begins only if something is on its way that it must wait for.
    fn must_wait(&self) -> bool {
        let depth = self.depth();
        if depth.loads > 0 { depth.loading_bytes > 0 } else { depth.stores == 0 || !self.going.is_empty() }
    }
}

proptest! {
    #[test]
    fn loads_go_first_limits_hold_and_nothing_is_lost(steps in steps()) {
        let (mut queue, mut model) = (Queue::new(LIMITS), Model::default());
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(kind, bytes) => {
                    let depth = model.depth();
                    let full = match kind {
                        Kind::Load => depth.loads == LIMITS.loads_max,
                        Kind::Store => depth.stores == LIMITS.stores_max,
                    };
                    prop_assert_eq!(queue.push(kind, bytes, number).is_err(), full);
                    if !full {
                        model.waiting.push((kind, bytes, number));
                    }
                }
                Step::Next => match queue.begin(true) {
                    Some((kind, bytes, number)) => model.begun(kind, bytes, number),
                    None => prop_assert!(model.must_wait(), "{:?}", model.depth()),
                },
                Step::End(which) if !model.going.is_empty() => {
                    let (kind, bytes) = model.going.remove(which.index(model.going.len()));
                    queue.ended(kind, bytes);
                }
                Step::End(_) => {}
                Step::Forget(of) => {
                    let mut gone = queue.forget(|number| !number.is_multiple_of(of));
                    gone.sort_unstable();
                    let mut expected: Vec<usize> = model.waiting.iter().map(|(.., number)| *number).collect();
                    expected.retain(|number| number.is_multiple_of(of));
                    prop_assert_eq!(gone, expected);
                    model.waiting.retain(|(.., number)| !number.is_multiple_of(of));
                }
            }
            prop_assert_eq!(queue.depth(), model.depth());
        }
        // Whatever was pushed comes out in the end.
        loop {
            while let Some((kind, bytes, number)) = queue.begin(true) {
                model.begun(kind, bytes, number);
            }
            let Some((kind, bytes)) = model.going.pop() else { break };
            queue.ended(kind, bytes);
        }
        prop_assert!(model.waiting.is_empty());
        prop_assert_eq!(queue.depth(), Depth::default());
    }
}

#[test]
fn where_no_store_may_begin_a_load_still_does() {
    let mut queue = Queue::new(Limits::default());
    queue.push(Kind::Store, 1, 'a').unwrap();
    assert_eq!(queue.begin(false), None);
    queue.push(Kind::Load, 1, 'b').unwrap();
    assert_eq!(queue.begin(false), Some((Kind::Load, 1, 'b')));
    assert_eq!(queue.begin(true), Some((Kind::Store, 1, 'a')));
}
