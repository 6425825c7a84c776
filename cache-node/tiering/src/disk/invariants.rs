//! What must hold between any two steps, each with its name. Tests check all of them after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use super::port::BLOCK_BYTES;
use super::{Disk, State};

/// A named check.
type Invariant<K> = (&'static str, fn(&Disk<K>) -> bool);

impl<K: Clone + Eq + Hash> Disk<K> {
    const INVARIANTS: [Invariant<K>; 9] = [
        ("names and chunks name each other", names_are_chunks),
        ("every chunk lies in one known segment, which lists it", chunks_lie_in_segments),
        ("records lie in blocks within their segment and do not overlap", records_are_apart),
        ("the bytes used are those of all segments, and within the capacity", bytes_are_counted),
        ("one segment at most is open, and a sealed one holds something", segments_live_their_life),
        ("no chunk is there without the one it continues", parents_outlive_children),
        ("a chunk waits for a write exactly while one is under way", writes_are_waited_for),
        ("a segment's loads are those under way", loads_are_counted),
        ("no more is under way or allowed than the limits say", limits_hold),
    ];

    /// Checks every invariant.
    ///
    /// # Errors
    /// The name of the first that does not hold.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        Self::INVARIANTS.iter().find(|(_, holds)| !holds(self)).map_or(Ok(()), |(name, _)| Err(name))
    }
}

fn names_are_chunks<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    disk.catalog.iter().count() == disk.catalog.names.len()
        && disk.catalog.iter().all(|(id, entry)| disk.catalog.id(&entry.name) == Some(id))
}

fn chunks_lie_in_segments<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let listed: usize = disk.segments.values().map(|segment| segment.chunks.len()).sum();
    listed == disk.catalog.names.len()
        && disk.catalog.iter().all(|(id, entry)| {
            disk.segments.get(&entry.at.segment).is_some_and(|segment| segment.chunks.contains(&id))
        })
}

fn records_are_apart<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let mut places: BTreeMap<u64, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for (_, entry) in disk.catalog.iter() {
        let place = (entry.at.offset, entry.at.offset + entry.chunk.record_bytes());
        places.entry(entry.at.segment).or_default().insert(place);
    }
    places.iter().all(|(segment, places)| {
        let length = disk.segments.get(segment).map_or(0, |segment| segment.length);
        let places: Vec<&(u64, u64)> = places.iter().collect();
        places.iter().all(|(from, to)| from.is_multiple_of(BLOCK_BYTES) && *to <= length)
            && places.windows(2).all(|pair| pair[0].1 <= pair[1].0)
    })
}

fn bytes_are_counted<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let used: u64 = disk.segments.values().map(|it| it.bytes(disk.limits.segment_bytes)).sum();
    // What earlier runs left may be more, until all of it has been read.
    used == disk.used_bytes && (disk.is_recovering() || used <= disk.limits.capacity_bytes)
}

fn segments_live_their_life<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let open: Vec<u64> =
        disk.segments.iter().filter(|(_, it)| it.state == State::Open).map(|(number, _)| *number).collect();
    open == disk.open.into_iter().collect::<Vec<u64>>()
        && disk.segments.values().all(|it| {
            it.length <= disk.limits.segment_bytes || !matches!(it.state, State::Open | State::Sealing)
        })
        && disk.segments.values().all(|it| it.state != State::Sealed || !it.chunks.is_empty())
        && disk.segments.keys().all(|number| *number < disk.next_segment)
}

fn parents_outlive_children<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let up = disk.catalog.iter().all(|(id, entry)| {
        entry.parent.is_none_or(|parent| {
            disk.catalog.get(parent).is_some_and(|parent| {
                parent.chunk.end < entry.chunk.end && disk.catalog.children(parent).any(|child| child == id)
            })
        })
    });
    let children: usize = disk.catalog.iter().map(|(_, entry)| disk.catalog.children(entry).count()).sum();
    up && children == disk.catalog.iter().filter(|(_, entry)| entry.parent.is_some()).count()
}

fn writes_are_waited_for<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    let waiting: BTreeMap<u32, _> =
        disk.catalog.iter().filter_map(|(id, entry)| Some((id, entry.write?))).collect();
    let waited: BTreeMap<u32, _> =
        disk.writes.iter().filter_map(|(write, (_, id))| Some(((*id)?, *write))).collect();
    waiting == waited
}

fn loads_are_counted<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    disk.segments.iter().all(|(number, segment)| {
        disk.loads.values().filter(|(at, _)| at.segment == *number).count() == segment.loads as usize
    })
}

fn limits_hold<K: Clone + Eq + Hash>(disk: &Disk<K>) -> bool {
    disk.writes.len() <= disk.limits.writes_max
        && disk.loads.len() <= disk.limits.loads_max
        && disk.bucket.is_within_its_size()
}
