//! The same rules without bookkeeping: everything is counted anew from lists of what happened, each time it is asked.

use super::*;

/// A chunk somewhere in a segment.
#[derive(Debug, Clone)]
struct Placed {
    name: u32,
    chunk: Chunk,
    at: Location,
    parent: Option<u32>,
    write: Option<WriteId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    Sealing,
    Sealed,
}

#[derive(Debug, Clone)]
struct Piece {
    number: u64,
    life: Life,
    records: Vec<u64>,
    /// When chunks of it were used, and their tokens.
    uses: Vec<(Duration, u32)>,
}

/// The model.
#[derive(Debug)]
pub(super) struct Naive {
    limits: Limits,
    chunks: Vec<Placed>,
    pieces: Vec<Piece>,
    segments_made: u64,
    ids: u64,
    writing: Vec<(WriteId, u64)>,
    loading: Vec<(LoadId, u32, Location)>,
    /// Bytes written, and when.
    spent: Vec<(Duration, u64)>,
    paused_until: Duration,
    failures_in_a_row: u32,
}

impl Piece {
    fn end(&self) -> u64 {
        self.records.iter().sum()
    }

    fn bytes(&self, limits: &Limits) -> u64 {
        match self.life {
            Life::Open => limits.segment_bytes,
            _ => self.end() + index_bytes(self.records.len() as u64),
        }
    }

    /// Its uses, each counting half after each half-life.
    fn heat(&self, now: Duration, half_life: Duration) -> f64 {
        let one = |(at, tokens): &(Duration, u32)| {
            f64::from(*tokens) * (-(now - *at).as_secs_f64() / half_life.as_secs_f64()).exp2()
        };
        self.uses.iter().map(one).sum()
    }
}

impl Naive {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            chunks: Vec::new(),
            pieces: Vec::new(),
            segments_made: 0,
            ids: 0,
            writing: Vec::new(),
            loading: Vec::new(),
            spent: Vec::new(),
            paused_until: Duration::ZERO,
            failures_in_a_row: 0,
        }
    }

    pub(super) fn names(&self) -> Vec<u32> {
        let mut names: Vec<u32> = self.chunks.iter().map(|chunk| chunk.name).collect();
        names.sort_unstable();
        names
    }

    fn chunk(&self, name: u32) -> Option<&Placed> {
        self.chunks.iter().find(|chunk| chunk.name == name)
    }

    fn used_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes(&self.limits)).sum()
    }

    /// What the bucket holds, by playing back all that was taken out of it. Nanoseconds that gain less than a byte are
    /// rounded, so the last byte is not certain.
    fn allowance(&self, now: Duration) -> Option<f64> {
        let rate = self.limits.write_bytes_per_s? as f64;
        let (mut level, mut at) = (rate * 10.0, Duration::ZERO);
        for (when, bytes) in self.spent.iter().chain([&(now, 0)]) {
            level = (level + rate * (*when - at).as_secs_f64()).min(rate * 10.0) - *bytes as f64;
            at = *when;
        }
        Some(level)
    }

    pub(super) fn used(
        &mut self,
        name: u32,
        parent: Option<u32>,
        chunk: Chunk,
        uses: u32,
        now: Duration,
    ) -> Vec<Op<u32>> {
        let mut out = Vec::new();
        if let Some(found) = self.chunk(name).cloned() {
            let ends_before =
                parent.and_then(|parent| self.chunk(parent)).is_some_and(|it| it.chunk.end < found.chunk.end);
            if found.parent.is_none() && ends_before {
                self.chunks.iter_mut().filter(|it| it.name == name).for_each(|it| it.parent = parent);
            }
            self.heat(name, now);
            return out;
        }
        let bytes = chunk.record_bytes();
        let refused = uses < self.limits.admit_uses
            || bytes + index_bytes(1) > self.limits.segment_bytes
            || parent.is_some_and(|parent| self.chunk(parent).is_none())
            || now < self.paused_until
            || self.writing.len() >= self.limits.writes_max
            || self.allowance(now).is_some_and(|left| left < bytes as f64);
        if refused {
            return out;
        }
        let Some(index) = self.piece_for(bytes, now, &mut out) else { return out };
        let at = Location { segment: self.pieces[index].number, offset: self.pieces[index].end() };
        self.pieces[index].records.push(bytes);
        self.ids += 1;
        let write = WriteId(self.ids);
        self.spent.push((now, bytes));
        let known = parent.filter(|parent| self.chunk(*parent).is_some_and(|it| it.chunk.end < chunk.end));
        self.chunks.push(Placed { name, chunk, at, parent: known, write: Some(write) });
        self.writing.push((write, at.segment));
        self.heat(name, now);
        out.push(Op::Write { write, at, name, parent, chunk });
        out
    }

    fn piece_for(&mut self, bytes: u64, now: Duration, out: &mut Vec<Op<u32>>) -> Option<usize> {
        let open = self.pieces.iter().position(|piece| piece.life == Life::Open);
        let fits = |piece: &Piece| {
            piece.end() + bytes + index_bytes(piece.records.len() as u64 + 1) <= self.limits.segment_bytes
        };
        if let Some(index) = open.filter(|index| fits(&self.pieces[*index])) {
            return Some(index);
        }
        open.into_iter().for_each(|index| self.seal(index, out));
        self.create(now, out).then(|| self.pieces.len() - 1)
    }

    fn heat(&mut self, name: u32, now: Duration) {
        let Some(chunk) = self.chunk(name) else { return };
        let (segment, tokens) = (chunk.at.segment, chunk.chunk.tokens);
        let piece = self.pieces.iter_mut().find(|piece| piece.number == segment);
        piece.into_iter().for_each(|piece| piece.uses.push((now, tokens)));
    }

    fn seal(&mut self, index: usize, out: &mut Vec<Op<u32>>) {
        let piece = &mut self.pieces[index];
        piece.life = Life::Sealing;
        out.push(Op::Seal { segment: piece.number, end: piece.end() });
    }

    fn create(&mut self, now: Duration, out: &mut Vec<Op<u32>>) -> bool {
        let (capacity, more) = (self.limits.capacity_bytes, self.limits.segment_bytes);
        if self.used_bytes() + more > capacity / 1000 * 970 {
            while self.used_bytes() + more > capacity / 1000 * 940 && self.reclaim(now, out) {}
        }
        if self.used_bytes() + more > capacity {
            return false;
        }
        self.segments_made += 1;
        let number = self.segments_made;
        self.pieces.push(Piece { number, life: Life::Open, records: Vec::new(), uses: Vec::new() });
        out.push(Op::Create { segment: number });
        true
    }

    fn reclaim(&mut self, now: Duration, out: &mut Vec<Op<u32>>) -> bool {
        let half_life = self.limits.half_life;
        let read = |number: u64| self.loading.iter().any(|(.., at)| at.segment == number);
        let free = self.pieces.iter().filter(|piece| piece.life == Life::Sealed && !read(piece.number));
        let coldest = free.min_by(|one, two| one.heat(now, half_life).total_cmp(&two.heat(now, half_life)));
        let Some(number) = coldest.map(|piece| piece.number) else { return false };
        let gone = self.chunks.iter().filter(|it| it.at.segment == number).map(|it| it.name).collect();
        self.drop_with_descendants(gone, out);
        true
    }

    fn drop_with_descendants(&mut self, mut gone: Vec<u32>, out: &mut Vec<Op<u32>>) {
        loop {
            let continues = |it: &&Placed| {
                !gone.contains(&it.name) && it.parent.is_some_and(|parent| gone.contains(&parent))
            };
            let more: Vec<u32> = self.chunks.iter().filter(continues).map(|it| it.name).collect();
            if more.is_empty() {
                break;
            }
            gone.extend(more);
        }
        self.chunks.retain(|chunk| !gone.contains(&chunk.name));
        self.sweep(out);
    }

    /// Removes sealed segments that hold nothing.
    fn sweep(&mut self, out: &mut Vec<Op<u32>>) {
        let empty = |piece: &&Piece| {
            piece.life == Life::Sealed && !self.chunks.iter().any(|it| it.at.segment == piece.number)
        };
        let removed: Vec<u64> = self.pieces.iter().filter(empty).map(|piece| piece.number).collect();
        self.pieces.retain(|piece| !removed.contains(&piece.number));
        out.extend(removed.into_iter().map(|segment| Op::Remove { segment }));
    }

    pub(super) fn written(
        &mut self,
        write: WriteId,
        outcome: Result<(), WriteFault>,
        now: Duration,
    ) -> Vec<Op<u32>> {
        let mut out = Vec::new();
        let Some(index) = self.writing.iter().position(|(known, _)| *known == write) else { return out };
        let (_, segment) = self.writing.remove(index);
        match outcome {
            Ok(()) => {
                self.failures_in_a_row = 0;
                self.chunks.iter_mut().filter(|it| it.write == Some(write)).for_each(|it| it.write = None);
            }
            Err(fault) => {
                let gone =
                    self.chunks.iter().filter(|it| it.write == Some(write)).map(|it| it.name).collect();
                self.drop_with_descendants(gone, &mut out);
                let open = |piece: &Piece| piece.life == Life::Open && piece.number == segment;
                let open = self.pieces.iter().position(open);
                open.into_iter().for_each(|index| self.seal(index, &mut out));
                self.failed(fault, now, &mut out);
            }
        }
        out
    }

    fn failed(&mut self, fault: WriteFault, now: Duration, out: &mut Vec<Op<u32>>) {
        if fault != WriteFault::Damaged && now >= self.paused_until {
            let pause = 2_u64.pow(self.failures_in_a_row.min(10)).min(60);
            self.paused_until = now + Duration::from_secs(pause);
            self.failures_in_a_row += 1;
            if fault == WriteFault::Full {
                self.reclaim(now, out);
            }
        }
    }

    pub(super) fn sealed(
        &mut self,
        segment: u64,
        outcome: Result<(), WriteFault>,
        now: Duration,
    ) -> Vec<Op<u32>> {
        let mut out = Vec::new();
        let waits = |piece: &&mut Piece| piece.number == segment && piece.life == Life::Sealing;
        let Some(piece) = self.pieces.iter_mut().find(waits) else { return out };
        piece.life = Life::Sealed;
        outcome.err().into_iter().for_each(|fault| self.failed(fault, now, &mut out));
        self.sweep(&mut out);
        out
    }

    pub(super) fn wanted(&mut self, name: u32, now: Duration) -> Vec<Op<u32>> {
        let found = self.chunk(name).filter(|chunk| chunk.write.is_none()).cloned();
        let Some(found) = found.filter(|_| self.loading.len() < self.limits.loads_max) else {
            return Vec::new();
        };
        self.ids += 1;
        let load = LoadId(self.ids);
        self.loading.push((load, name, found.at));
        self.heat(name, now);
        vec![Op::Load { load, at: found.at, name, chunk: found.chunk }]
    }

    pub(super) fn loaded(&mut self, load: LoadId, outcome: Result<(), LoadFault>) -> Vec<Op<u32>> {
        let mut out = Vec::new();
        let Some(index) = self.loading.iter().position(|(known, ..)| *known == load) else { return out };
        let (_, name, at) = self.loading.remove(index);
        if outcome.is_err() && self.chunk(name).is_some_and(|chunk| chunk.at == at) {
            self.drop_with_descendants(vec![name], &mut out);
        }
        out
    }
}
