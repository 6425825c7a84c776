use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;

fn lease(number: u128) -> LeaseId {
    LeaseId(number)
}

fn by(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Brings all that waits.
fn settle(landing: &mut Landing) -> Vec<PartPlace> {
    let mut places = Vec::new();
    while let Some(fill) = landing.next(|_| 0) {
        landing.filled(fill.place, true);
        places.push(fill.place);
    }
    places
}

fn want(landing: &mut Landing, number: u128, needed_by: u64, places: std::ops::Range<u64>) {
    landing.want(lease(number), by(needed_by), places.map(|place| (place, KIB)));
}

#[test]
fn the_head_of_a_prompt_lies_there_and_the_rest_does_not() {
    let mut landing = Landing::new(3 * KIB);
    want(&mut landing, 1, 10, 0..5);
    assert_eq!(settle(&mut landing), [0, 1, 2]);
    assert!((0..3).all(|place| landing.take(place).is_some()) && landing.take(3).is_none());
}

#[test]
fn a_part_goes_as_it_is_scattered_and_makes_room() {
    let mut landing = Landing::new(2 * KIB);
    want(&mut landing, 1, 10, 0..2);
    settle(&mut landing);
    assert!(landing.take(0).is_some());
    landing.scattered(0, lease(1), true);
    assert_eq!(landing.held(), (KIB, 1));
    want(&mut landing, 2, 20, 7..8);
    assert_eq!(settle(&mut landing), [7]);
}

#[test]
fn what_two_leases_want_stays_for_the_second() {
    let mut landing = Landing::new(2 * KIB);
    want(&mut landing, 1, 10, 0..1);
    settle(&mut landing);
    want(&mut landing, 2, 20, 0..1);
    assert_eq!(settle(&mut landing), [0u64; 0], "it is there already");
    let at = landing.take(0);
    landing.scattered(0, lease(1), true);
    assert_eq!(landing.take(0), at);
    landing.scattered(0, lease(2), true);
    assert_eq!(landing.held(), (0, 0));
}

#[test]
fn what_is_needed_first_is_brought_first_and_displaces_what_is_needed_later() {
    let mut landing = Landing::new(2 * KIB);
    want(&mut landing, 1, 30, 0..1);
    want(&mut landing, 2, 20, 5..6);
    assert_eq!(settle(&mut landing), [5, 0]);
    want(&mut landing, 3, 10, 9..10);
    assert_eq!(settle(&mut landing), [9]);
    assert!(landing.take(0).is_none() && landing.take(5).is_some());
    assert_eq!(landing.displaced, 1);
    // Neither what is scattered just now nor what is needed sooner goes.
    want(&mut landing, 4, 15, 20..22);
    assert_eq!(settle(&mut landing), [0u64; 0]);
    assert!(landing.is_settled());
}

#[test]
fn an_ended_lease_and_a_bad_part_leave_nothing() {
    let mut landing = Landing::new(4 * KIB);
    want(&mut landing, 1, 10, 0..4);
    let first = landing.next(|_| 0).unwrap();
    landing.filled(first.place, false);
    assert_eq!(landing.take(first.place), None);
    let second = landing.next(|_| 0).unwrap();
    landing.unwant(lease(1));
    assert!(landing.next(|_| 0).is_none(), "nothing more is brought for it");
    assert_eq!(landing.held().1, 1, "what is being brought keeps its range");
    landing.filled(second.place, true);
    assert_eq!(landing.held(), (0, 0));
}

#[test]
fn a_range_that_may_still_be_read_is_never_given_again() {
    let mut landing = Landing::new(KIB);
    want(&mut landing, 1, 10, 0..1);
    settle(&mut landing);
    landing.take(0);
    landing.scattered(0, lease(1), false);
    landing.unwant(lease(1));
    want(&mut landing, 2, 1, 1..2);
    assert_eq!(settle(&mut landing), [0u64; 0]);
}

proptest! {
    /// Whatever happens, ranges lie in the slab and apart, and all that was taken comes back.
    #[test]
    fn ranges_lie_apart(steps in prop::collection::vec((0..6u8, 0..4u128, 0..12u64, 1..3000u64), 1..120)) {
        let mut landing = Landing::new(16 * KIB);
        let (mut filling, mut taken) = (Vec::new(), Vec::new());
        for (what, number, place, bytes) in steps {
            match what {
                0 | 1 => landing.want(lease(number), by(bytes % 7), [(place, 100 + place * 200)].into_iter()),
                2 => filling.extend(landing.next(|bytes| bytes / 8)),
                3 => filling.pop().into_iter().for_each(|fill: Fill| landing.filled(fill.place, bytes % 5 > 0)),
                4 => taken.extend(landing.take(place).map(|_| (place, lease(number)))),
                _ if bytes % 2 == 0 => landing.unwant(lease(number)),
                _ => taken.pop().into_iter().for_each(|(place, by)| landing.scattered(place, by, true)),
            }
            let mut ranges: Vec<(u64, u64)> = landing.entries.values().map(|entry| (entry.at, entry.taken)).collect();
            ranges.extend(landing.free.iter().map(|(at, bytes)| (*at, *bytes)));
            ranges.sort_unstable();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0));
            let mut counted = HashMap::new();
            landing.waiting.values().for_each(|(_, _, lease)| *counted.entry(*lease).or_default() += 1);
            prop_assert_eq!(&counted, &landing.waiting_of);
            prop_assert_eq!(ranges.iter().map(|range| range.1).sum::<u64>(), 16 * KIB);
        }
        filling.into_iter().for_each(|fill| landing.filled(fill.place, true));
        taken.into_iter().for_each(|(place, by)| landing.scattered(place, by, true));
        (0..4).for_each(|number| landing.unwant(lease(number)));
        prop_assert_eq!(landing.free.into_iter().collect::<Vec<_>>(), [(0, 16 * KIB)]);
    }
}
