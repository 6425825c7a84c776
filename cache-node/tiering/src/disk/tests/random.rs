//! Random histories: the tier and the naive model decide alike, and every invariant holds after every step.

use super::naive::Naive;
use super::*;

#[derive(Debug, Clone)]
enum Happening {
    Use { prompt: u32, depth: u32, uses: u32, large: bool },
    Finish { which: usize, fault: Option<u8> },
    Want { prompt: u32, depth: u32 },
    Wait { milliseconds: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let name = (0_u32..8, 0_u32..5);
    prop_oneof![
        10 => (name.clone(), 1_u32..5, any::<bool>())
            .prop_map(|((prompt, depth), uses, large)| Happening::Use { prompt, depth, uses, large }),
        10 => (any::<usize>(), prop::option::weighted(0.1, any::<u8>()))
            .prop_map(|(which, fault)| Happening::Finish { which, fault }),
        3 => name.prop_map(|(prompt, depth)| Happening::Want { prompt, depth }),
        2 => (1_u64..4000).prop_map(|milliseconds| Happening::Wait { milliseconds }),
    ]
}

struct Both {
    disk: Disk<u32>,
    naive: Naive,
    now: Duration,
    under_way: Vec<Op<u32>>,
}

impl Both {
    fn agree(&mut self, input: Input<u32>, mut expected: Vec<Op<u32>>) {
        let mut ops = self.disk.step(input, self.now);
        let ends = |op: &&Op<u32>| !matches!(op, Op::Create { .. } | Op::Remove { .. });
        self.under_way.extend(ops.iter().filter(ends).cloned());
        // Which of several empty segments goes first says nothing.
        let removals = |op: &Op<u32>| if let Op::Remove { segment } = op { *segment } else { 0 };
        ops.sort_by_key(removals);
        expected.sort_by_key(removals);
        assert_eq!(ops, expected);
        assert_eq!(self.disk.check_invariants(), Ok(()));
        let mut names: Vec<u32> = self.disk.catalog.names.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, self.naive.names());
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Use { prompt, depth, uses, large } => {
                let (name, parent) = (prompt * 100 + depth, depth.checked_sub(1).map(|up| prompt * 100 + up));
                let bytes = if large { 20_000 } else { 5000 };
                // No two segments are equally hot: their order would be chance.
                let tokens = 32 + self.disk.next_id as u32 % 61;
                let chunk = Chunk { bytes, sum: 7, tokens, end: depth * 32 + 32 };
                let expected = self.naive.used(name, parent, chunk, uses, self.now);
                self.agree(Input::Used { name, parent, chunk, uses }, expected);
            }
            Happening::Finish { which, fault } => self.finish(which, fault),
            Happening::Want { prompt, depth } => {
                let name = prompt * 100 + depth;
                let expected = self.naive.wanted(name, self.now);
                self.agree(Input::Wanted { name }, expected);
            }
            Happening::Wait { milliseconds } => self.now += Duration::from_millis(milliseconds),
        }
    }

    fn finish(&mut self, which: usize, fault: Option<u8>) {
        if self.under_way.is_empty() {
            return;
        }
        let faults = [WriteFault::Full, WriteFault::Io, WriteFault::Damaged];
        let written = fault.map_or(Ok(()), |fault| Err(faults[usize::from(fault) % 3]));
        let faults = [LoadFault::Io, LoadFault::Damaged];
        let loaded = fault.map_or(Ok(()), |fault| Err(faults[usize::from(fault) % 2]));
        match self.under_way.remove(which % self.under_way.len()) {
            Op::Write { write, .. } => {
                let expected = self.naive.written(write, written, self.now);
                self.agree(Input::Written { write, outcome: written }, expected);
            }
            Op::Seal { segment, .. } => {
                let expected = self.naive.sealed(segment, written, self.now);
                self.agree(Input::Sealed { segment, outcome: written }, expected);
            }
            Op::Load { load, .. } => {
                let expected = self.naive.loaded(load, loaded);
                self.agree(Input::Loaded { load, outcome: loaded }, expected);
            }
            Op::Create { .. } | Op::Remove { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn decides_as_the_naive_model_does(
        rate in prop::option::of(5_000_u64..40_000),
        happenings in prop::collection::vec(happening(), 1..400),
    ) {
        let limits = Limits { write_bytes_per_s: rate, writes_max: 8, ..limits() };
        let disk = Disk::new(limits.clone(), &[], Duration::ZERO);
        let naive = Naive::new(limits);
        let mut both = Both { disk, naive, now: Duration::from_secs(1), under_way: Vec::new() };
        for happening in &happenings {
            both.happen(happening);
        }
        while !both.under_way.is_empty() {
            both.finish(0, None);
        }
        let stats = both.disk.stats();
        prop_assert_eq!((stats.writes, stats.loads), (0, 0));
    }
}
