//! The tier against its promises, and against a naive model of the same rules.

use proptest::prelude::*;

use super::*;

mod naive;
mod random;

const CHUNK: Chunk = Chunk { bytes: 8192, sum: 1, tokens: 32, end: 32 };

/// Segments of six records of 12 KiB and an index, four of them.
fn limits() -> Limits {
    Limits {
        capacity_bytes: 4 * 81_920,
        segment_bytes: 81_920,
        write_bytes_per_s: None,
        admit_uses: 2,
        writes_max: 100,
        loads_max: 2,
        half_life: Duration::from_secs(600),
    }
}

/// A tier whose work is done at once, and never fails.
struct Tier {
    disk: Disk<u32>,
    now: Duration,
}

impl Tier {
    fn new(limits: Limits) -> Self {
        Self { disk: Disk::new(limits, &[], Duration::ZERO), now: Duration::from_secs(1) }
    }

    fn step(&mut self, input: Input<u32>) -> Vec<Op<u32>> {
        let ops = self.disk.step(input, self.now);
        assert_eq!(self.disk.check_invariants(), Ok(()));
        ops
    }

    /// Uses a chunk for the second time; does what that asks for.
    fn put(&mut self, name: u32, parent: Option<u32>) -> Vec<Op<u32>> {
        let chunk = Chunk { end: name % 100 * 32 + 32, ..CHUNK };
        let ops = self.step(Input::Used { name, parent, chunk, uses: 2 });
        self.answer(&ops);
        ops
    }

    fn answer(&mut self, ops: &[Op<u32>]) {
        for op in ops {
            let more = match op {
                Op::Write { write, .. } => self.step(Input::Written { write: *write, outcome: Ok(()) }),
                Op::Seal { segment, .. } => self.step(Input::Sealed { segment: *segment, outcome: Ok(()) }),
                _ => Vec::new(),
            };
            self.answer(&more);
        }
    }
}

fn writes(ops: &[Op<u32>]) -> usize {
    ops.iter().filter(|op| matches!(op, Op::Write { .. })).count()
}

#[test]
fn a_chunk_is_written_at_its_second_use_and_once() {
    let mut tier = Tier::new(limits());
    for (uses, expected) in [(0, 0), (1, 0), (2, 1), (3, 0)] {
        let ops = tier.step(Input::Used { name: 1, parent: None, chunk: CHUNK, uses });
        assert_eq!(writes(&ops), expected, "use {uses}");
    }
    assert_eq!(tier.disk.chunk(&1), None, "not before it is written");
    assert!(tier.disk.has(&1));
}

#[test]
fn what_continues_a_chunk_that_is_not_there_is_not_written() {
    let mut tier = Tier::new(limits());
    assert_eq!(writes(&tier.put(1, Some(0))), 0);
    assert_eq!(tier.disk.stats().counts.dropped.orphans, 1);
    tier.put(0, None);
    assert_eq!(writes(&tier.put(1, Some(0))), 1);
}

#[test]
fn writing_is_held_to_a_rate_with_bursts() {
    let record = CHUNK.record_bytes();
    let mut tier = Tier::new(Limits { write_bytes_per_s: Some(record / 2), ..limits() });
    let burst = (0..20).filter(|name| writes(&tier.put(name * 100, None)) == 1).count();
    assert_eq!(burst, 5, "ten seconds' worth");
    assert_eq!(tier.disk.stats().counts.dropped.rate, 15);
    tier.now += Duration::from_secs(4);
    let later = (20..30).filter(|name| writes(&tier.put(name * 100, None)) == 1).count();
    assert_eq!(later, 2);
}

#[test]
fn the_segment_used_least_goes_and_what_continues_its_chunks_goes_first() {
    let mut tier = Tier::new(limits());
    // Six in each segment; chunk 201 of the third continues chunk 200 of the first.
    for name in [0, 100, 200, 300, 400, 500, 1000, 1100, 1200, 1300, 1400, 1500] {
        tier.put(name, None);
    }
    tier.put(201, Some(200));
    for name in [2100, 2200, 2300, 2400, 2500] {
        tier.put(name, None);
    }
    // The second and third are used once more; the first is not.
    [1000, 2100].into_iter().for_each(|name| drop(tier.put(name, None)));
    let ops = tier.put(3000, None);
    let removed: Vec<&Op<u32>> = ops.iter().filter(|op| matches!(op, Op::Remove { .. })).collect();
    assert_eq!(removed, [&Op::Remove { segment: 1 }]);
    assert!(!tier.disk.has(&200) && !tier.disk.has(&201), "gone together");
    assert!(tier.disk.has(&1000) && tier.disk.has(&2100) && tier.disk.has(&3000));
}

#[test]
fn making_room_goes_on_below_the_watermark_and_then_rests() {
    let mut tier = Tier::new(Limits { capacity_bytes: 100 * 81_920, ..limits() });
    let mut removals = Vec::new();
    for name in 0..1000 {
        let ops = tier.put(name * 100, None);
        if ops.iter().any(|op| matches!(op, Op::Create { .. })) {
            removals.push(ops.iter().filter(|op| matches!(op, Op::Remove { .. })).count());
        }
        assert!(tier.disk.stats().used_bytes <= 100 * 81_920);
    }
    let rounds = removals.iter().filter(|count| **count > 0).count();
    let all: usize = removals.iter().sum();
    assert!(rounds * 2 <= all, "{all} removals in {rounds} rounds");
}

#[test]
fn after_a_failure_nothing_is_written_for_a_while_that_doubles() {
    let mut tier = Tier::new(limits());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let ops = tier.step(Input::Used { name: 7, parent: None, chunk: CHUNK, uses: 2 });
        let write = ops.iter().find_map(|op| match op {
            Op::Write { write, .. } => Some(*write),
            _ => None,
        });
        let ops = tier.step(Input::Written { write: write.unwrap(), outcome: Err(WriteFault::Io) });
        assert!(matches!(ops[..], [Op::Seal { .. }]), "nothing goes behind a hole: {ops:?}");
        tier.answer(&ops);
        assert!(!tier.disk.has(&7));
        let failed = tier.now;
        while writes(&tier.step(Input::Used {
            name: 8,
            parent: None,
            chunk: Chunk { bytes: 1 << 40, ..CHUNK },
            uses: 2,
        })) == 0
            && tier.disk.paused_until > tier.now
        {
            tier.now += Duration::from_millis(500);
        }
        waits.push((tier.now - failed).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    assert!(tier.disk.segments.is_empty(), "what holds nothing is removed");
}

#[test]
fn a_full_file_system_is_given_a_segment_back() {
    let mut tier = Tier::new(limits());
    (0..7).for_each(|name| drop(tier.put(name * 100, None)));
    let ops = tier.step(Input::Used { name: 9900, parent: None, chunk: CHUNK, uses: 2 });
    let Op::Write { write, .. } = ops[0] else { panic!("{ops:?}") };
    let ops = tier.step(Input::Written { write, outcome: Err(WriteFault::Full) });
    assert!(ops.contains(&Op::Remove { segment: 1 }), "{ops:?}");
    assert_eq!(tier.disk.stats().counts.full_disks, 1);
}

#[test]
fn a_damaged_chunk_is_gone_with_all_that_continue_it() {
    let mut tier = Tier::new(limits());
    tier.put(0, None);
    tier.put(1, Some(0));
    tier.put(2, Some(1));
    let ops = tier.step(Input::Wanted { name: 1 });
    let Op::Load { load, .. } = ops[0] else { panic!("{ops:?}") };
    tier.step(Input::Loaded { load, outcome: Err(LoadFault::Damaged) });
    assert_eq!([0, 1, 2].map(|name| tier.disk.has(&name)), [true, false, false]);
    assert_eq!(tier.disk.stats().counts.damaged_chunks, 1);
}

#[test]
fn loads_are_bounded_and_keep_their_segment() {
    let mut tier = Tier::new(limits());
    (0..6).for_each(|name| drop(tier.put(name * 100, None)));
    let loads: Vec<usize> = (0..3).map(|name| tier.step(Input::Wanted { name: name * 100 }).len()).collect();
    assert_eq!(loads, [1, 1, 0]);
    assert_eq!(tier.disk.stats().counts.refused_loads, 1);
    (6..40).for_each(|name| drop(tier.put(name * 100, None)));
    assert!(tier.disk.has(&0), "its segment is being read");
}

fn found(offset: u64, name: u32, parent: Option<u32>) -> Found<u32> {
    Found { offset, name, parent, chunk: Chunk { end: name % 100 * 32 + 32, ..CHUNK } }
}

#[test]
fn what_earlier_runs_left_is_known_once_it_is_told() {
    let mut disk = Disk::new(limits(), &[(3, 81_920), (7, 81_920)], Duration::ZERO);
    let now = Duration::from_secs(1);
    let mut step = |input| {
        let ops = disk.step(input, now);
        assert_eq!(disk.check_invariants(), Ok(()));
        (ops, disk.stats())
    };
    // The child is found before its parent.
    step(Input::Found { segment: 7, chunks: vec![found(0, 1, Some(0))], last: None });
    step(Input::Found {
        segment: 7,
        chunks: vec![found(12_288, 2, Some(1)), found(24_576, 5, Some(4))],
        last: Some(45_056),
    });
    let (ops, stats) = step(Input::Used { name: 9, parent: None, chunk: CHUNK, uses: 2 });
    assert!(ops.is_empty() && stats.counts.dropped.recovering == 1, "it may lie in what was not read");
    let (_, stats) = step(Input::Found {
        segment: 3,
        chunks: vec![found(0, 0, None), found(12_288, 2, None)],
        last: Some(32_768),
    });
    assert_eq!((stats.chunks, stats.used_bytes, stats.unread_segments), (4, 45_056 + 32_768, 0));
    let (ops, _) = step(Input::Used { name: 9, parent: None, chunk: CHUNK, uses: 2 });
    assert_eq!(ops[0], Op::Create { segment: 8 }, "no number is used twice");
    let (ops, _) = step(Input::Wanted { name: 0 });
    let Op::Load { load, at: Location { segment: 3, offset: 0 }, .. } = ops[0] else { panic!("{ops:?}") };
    step(Input::Loaded { load, outcome: Err(LoadFault::Io) });
    assert!(
        !disk.has(&0) && !disk.has(&1) && !disk.has(&2) && disk.has(&5),
        "they were known to continue it"
    );
}

#[test]
fn a_smaller_capacity_than_before_is_kept() {
    let earlier: Vec<(u64, u64)> = (1..=9).map(|segment| (segment, 81_920)).collect();
    let mut disk = Disk::new(limits(), &earlier, Duration::ZERO);
    for segment in 1..=9 {
        let chunks = vec![found(0, segment as u32 * 100, None)];
        disk.step(Input::Found { segment, chunks, last: Some(81_920) }, Duration::ZERO);
    }
    assert_eq!(disk.check_invariants(), Ok(()));
    assert_eq!(disk.stats().segments, 4);
}

#[test]
fn clearing_forgets_everything_and_what_is_under_way_does_no_harm() {
    let mut tier = Tier::new(limits());
    (0..8).for_each(|name| drop(tier.put(name * 100, None)));
    let load = tier.step(Input::Wanted { name: 0 });
    let write = tier.step(Input::Used { name: 9900, parent: None, chunk: CHUNK, uses: 2 });
    let ops = tier.step(Input::Clear);
    assert_eq!(ops.len(), 2);
    let stats = tier.disk.stats();
    assert_eq!((stats.chunks, stats.segments, stats.used_bytes), (0, 0, 0));
    tier.answer(&write);
    let Op::Load { load, .. } = load[0] else { panic!("a load") };
    tier.step(Input::Loaded { load, outcome: Ok(()) });
    assert!(writes(&tier.put(1, None)) == 1);
}

#[test]
fn a_scrub_meets_every_chunk_in_the_order_of_places() {
    let mut tier = Tier::new(limits());
    (0..13).for_each(|name| drop(tier.put(name * 100, None)));
    let (mut at, mut met) = (Location { segment: 0, offset: 0 }, Vec::new());
    while let Some((name, next, _)) = tier.disk.next_to_scrub(at) {
        met.push(name / 100);
        at = next;
    }
    assert_eq!(met, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], "those of sealed segments");
}
