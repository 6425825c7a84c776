//! The store's side of the disk tier: telling it what was used, lending it slots to write from, bringing chunks up. What
//! goes to disk, where, and what is given up is decided in [`larder_tiering::disk`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use larder_protocol::message::{Verdict, Verdicts};
use larder_protocol::{BlockKey, Checksum};
use larder_tiering::Entry;
use larder_tiering::disk::{
    Chunk, Disk, Input, Limits, LoadFault, LoadId, Location, Op, Stats, WriteFault, WriteId,
};

use super::arena::Held;
use super::leases::Pinned;
use super::opening::{Nothing, OpeningRequest};
use super::{ChunkName, DiskInput, Output, Store, Ticket};

/// Uses that may wait to be told; with more they are told at once. Telling them is kept out of a lookup's way.
const TOUCHED_MAX: usize = 1024;

/// The disk tier and what the store does for it.
#[derive(Debug)]
pub(super) struct DiskTier {
    core: Disk<ChunkName>,
    /// Slots that are being written to disk, each pinned.
    writes: BTreeMap<WriteId, Pinned>,
    /// Slots that chunks are being loaded into.
    raises: BTreeMap<LoadId, Raise>,
    /// The same by slot.
    raising: BTreeMap<u32, LoadId>,
    scrub: Scrub,
}

/// How far the tier has been read back.
#[derive(Debug, Default)]
struct Scrub {
    /// The last chunk read; none begins anew.
    last: Option<Location>,
    /// One is being read.
    under_way: bool,
    /// None is read before that.
    not_before: Duration,
}

/// Between two readings of the whole tier: what rots, rots slowly.
const SCRUB_PAUSE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Raise {
    slot: u32,
    name: ChunkName,
    chunk: Chunk,
    /// Everything was forgotten meanwhile, this too.
    forgotten: bool,
}

/// What is coming up for one answer.
#[derive(Debug, Default)]
pub(super) struct Raising {
    pub(super) loads: BTreeSet<LoadId>,
    pub(super) chunks: u32,
    pub(super) bytes: u64,
}

/// A stage call that waits for chunks from disk.
#[derive(Debug)]
pub(super) struct Waiting {
    request: OpeningRequest,
    keys: Vec<BlockKey>,
    bytes_max: u64,
    loads: BTreeSet<LoadId>,
}

/// One use of a chunk: by a grant, or by a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touch {
    pinned: Pinned,
    /// The commit that brought it: no use of its own.
    is_first: bool,
}

impl DiskTier {
    pub(super) fn remembered_uses(&self, name: &ChunkName) -> u32 {
        self.core.remembered_uses(name)
    }

    /// The slots being written to disk, as often as each is.
    pub(super) fn written(&self) -> impl Iterator<Item = &Pinned> {
        self.writes.values()
    }

    /// The slots being loaded into.
    pub(super) fn raised(&self) -> impl Iterator<Item = u32> {
        self.raises.values().map(|raise| raise.slot)
    }

    pub(super) fn stats(&self) -> Stats {
        self.core.stats()
    }

    pub(super) fn check_invariants(&self) -> Result<(), &'static str> {
        self.core.check_invariants()?;
        let stats = self.core.stats();
        let agree = (self.writes.len() as u64, self.raises.len() as u64) == (stats.writes, stats.loads)
            && self.raises.iter().all(|(load, raise)| self.raising.get(&raise.slot) == Some(load))
            && self.raising.len() == self.raises.len();
        if agree { Ok(()) } else { Err("the store writes and loads exactly what the tier gave out") }
    }
}

impl Store {
    /// Adds a disk tier with segments of earlier runs, by number and length. Before the first step.
    pub fn with_disk(mut self, limits: Limits, earlier: &[(u64, u64)]) -> Self {
        let core = Disk::new(limits, earlier, Duration::ZERO);
        let (writes, raises, raising, scrub) = Default::default();
        self.disk = Some(DiskTier { core, writes, raises, raising, scrub });
        self
    }

    pub(super) fn is_on_disk(&self, name: &ChunkName) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.core.chunk(name).is_some())
    }

    /// Steps the tier and gives out what it wants done. Returns the load, if it gave one out.
    fn step_disk(&mut self, input: DiskInput, now: Duration, out: &mut Vec<Output>) -> Option<LoadId> {
        let ops = self.disk.as_mut().map(|disk| disk.core.step(input, now)).unwrap_or_default();
        let mut loading = None;
        for op in ops {
            let offset = match &op {
                Op::Write { write, name, .. } => self.lend(*write, name),
                Op::Load { load, name, .. } => {
                    loading = Some(*load);
                    self.chunks.get(name).map_or(0, |slot| self.arena.offset(*slot))
                }
                Op::Create { .. } | Op::Seal { .. } | Op::Remove { .. } => 0,
            };
            out.push(Output::Disk { op, offset });
        }
        loading
    }

    /// Pins the slot of a chunk that is to be written.
    fn lend(&mut self, write: WriteId, name: &ChunkName) -> u64 {
        let slot = *self.chunks.get(name).expect("the tier writes what was just used here");
        self.arena.pin(slot);
        let pinned = Pinned { slot, generation: self.arena.generation(slot) };
        let disk = self.disk.as_mut().expect("it gave the write out");
        disk.writes.insert(write, pinned);
        self.arena.offset(slot)
    }

    /// What happened to the tier outside.
    pub(super) fn disk_said(&mut self, input: DiskInput, now: Duration, out: &mut Vec<Output>) {
        match &input {
            Input::Written { write, outcome } => self.returned(*write, *outcome),
            Input::Loaded { load, outcome } => {
                let (load, outcome) = (*load, *outcome);
                self.raised(load, outcome, now, out);
                self.step_disk(input, now, out);
                return self.end_waits_for(load, now, out);
            }
            Input::Scrubbed { .. } => {
                self.disk.iter_mut().for_each(|disk| disk.scrub.under_way = false);
            }
            Input::Sealed { .. } | Input::Found { .. } => {}
            Input::Used { .. } | Input::Evicted { .. } | Input::Wanted { .. } | Input::Clear => return,
        }
        self.step_disk(input, now, out);
    }

    /// A slot that was lent comes back.
    fn returned(&mut self, write: WriteId, outcome: Result<(), WriteFault>) {
        let Some(pinned) = self.disk.as_mut().and_then(|disk| disk.writes.remove(&write)) else { return };
        if outcome == Err(WriteFault::Damaged) {
            self.quarantine(pinned);
        }
        self.arena.unpin(pinned.slot);
    }

    /// A chunk has come up, or not.
    fn raised(&mut self, load: LoadId, outcome: Result<(), LoadFault>, now: Duration, out: &mut Vec<Output>) {
        let Some(disk) = &mut self.disk else { return };
        let Some(Raise { slot, name, chunk, forgotten }) = disk.raises.remove(&load) else { return };
        disk.raising.remove(&slot);
        if outcome.is_ok() && !forgotten {
            self.counts.raised_chunks += 1;
            self.counts.raised_bytes += chunk.bytes;
            let checksum = Checksum(chunk.sum);
            self.arena
                .publish(slot, Held { name, bytes: chunk.bytes, checksum, verified: Some(now), uses: 0 });
        } else {
            self.chunks.remove(&name);
            self.arena.abandon(slot);
        }
        self.publish_generations(out);
    }

    /// Has what lies on disk brought up, as far as these keys, which follow the chunk in `parent`, are here, coming or
    /// there without a gap.
    pub(super) fn raise(
        &mut self,
        request: &OpeningRequest,
        keys: &[BlockKey],
        mut parent: Option<u32>,
        bytes_max: u64,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Raising {
        let mut raising = Raising::default();
        if self.disk.is_none() {
            return raising;
        }
        let mut bytes = 0_u64;
        let numbers = self.use_numbers(keys.len());
        for (index, key) in (0_u64..).zip(keys) {
            let name = ChunkName { namespace: request.namespace, key: key.clone() };
            let slot = match self.chunks.get(&name).copied() {
                Some(slot) if self.arena.held(slot).is_some() => slot,
                Some(slot) => {
                    // Being written: by an engine's commit, which nobody waits for, or from disk.
                    let Some((load, raise)) = self.raise_into(slot) else { break };
                    bytes += raise.chunk.bytes;
                    raising.add(load, raise.chunk.bytes);
                    slot
                }
                None => {
                    let more = self.is_on_disk(&name) && bytes < bytes_max;
                    let Some((load, slot, chunk)) = (more
                        .then(|| self.begin_raise(&name, request, parent, numbers - index, now, out)))
                    .flatten() else {
                        break;
                    };
                    bytes += chunk.bytes;
                    raising.add(load, chunk.bytes);
                    slot
                }
            };
            parent = Some(slot);
        }
        raising
    }

    fn raise_into(&self, slot: u32) -> Option<(LoadId, &Raise)> {
        let disk = self.disk.as_ref()?;
        let load = disk.raising.get(&slot)?;
        Some((*load, disk.raises.get(load)?))
    }

    /// Makes room for a chunk in the host tier and has it loaded.
    fn begin_raise(
        &mut self,
        name: &ChunkName,
        request: &OpeningRequest,
        parent: Option<u32>,
        used: u64,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Option<(LoadId, u32, Chunk)> {
        let layout = self.sessions.get(&request.session)?.layout.as_ref()?;
        let disk = self.disk.as_ref()?;
        // The namespace says how long a chunk is; one that is not is none.
        let chunk = disk.core.chunk(name).filter(|chunk| chunk.bytes == layout.chunk_bytes)?;
        if disk.core.loads_left() == 0 {
            return None;
        }
        let (tokens, end, owner) = (chunk.tokens, chunk.end, request.owner);
        let entry = Entry { bytes: layout.stride, tokens, end, parent, owner };
        let slot = self.take_slot(name, entry, used, now)?;
        self.publish_generations(out);
        let Some(load) = self.step_disk(Input::Wanted { name: name.clone() }, now, out) else {
            self.chunks.remove(name);
            self.arena.abandon(slot);
            return None;
        };
        let raise = Raise { slot, name: name.clone(), chunk, forgotten: false };
        let disk = self.disk.as_mut().expect("it gave the load out");
        disk.raises.insert(load, raise);
        disk.raising.insert(slot, load);
        Some((load, slot, chunk))
    }

    /// A stage call waits until these loads have ended, or its time is over.
    pub(super) fn wait(
        &mut self,
        request: OpeningRequest,
        keys: &[BlockKey],
        bytes_max: u64,
        loads: BTreeSet<LoadId>,
    ) {
        self.waiting.push(Waiting { request, keys: keys.to_vec(), bytes_max, loads });
    }

    fn end_waits_for(&mut self, load: LoadId, now: Duration, out: &mut Vec<Output>) {
        self.waiting.iter_mut().for_each(|waiting| {
            waiting.loads.remove(&load);
        });
        self.end_waits(now, out);
    }

    /// Opens what has come up for calls that wait for nothing any more, or whose time is over.
    pub(super) fn end_waits(&mut self, now: Duration, out: &mut Vec<Output>) {
        let over = |waiting: &mut Waiting| waiting.loads.is_empty() || waiting.request.stop_at <= now;
        let ended: Vec<Waiting> = self.waiting.extract_if(.., over).collect();
        for Waiting { request, keys, bytes_max, .. } in ended {
            let session = self.sessions.get(&request.session).filter(|session| session.ready);
            let layout = session.and_then(|session| session.layout.as_ref());
            if layout.is_none_or(|layout| layout.namespace != request.namespace) {
                self.answer_nothing(request.asker, Nothing::NoSession, out);
                continue;
            }
            // What is verified now was just read with its checksum, mostly; the rest has this long.
            let stop_at = request.stop_at.max(now.saturating_add(self.settings.lookup_deadline));
            self.open(OpeningRequest { stop_at, ..request }, &keys, bytes_max, false, now, out);
        }
    }

    /// A lease was granted on these chunks, the first of which is its prompt's first.
    pub(super) fn note_grant(&mut self, chunks: &[Pinned]) {
        let touch = |pinned: &Pinned| Touch { pinned: *pinned, is_first: false };
        self.note(None, chunks.iter().map(touch).collect());
    }

    /// These chunks of one commit are held, the first of which is its prompt's first, or follows `before`.
    pub(super) fn note_commit(&mut self, before: Option<ChunkName>, chunks: &[Pinned], results: &Verdicts) {
        let touch = |(pinned, verdict): (&Pinned, &Verdict)| Touch {
            pinned: *pinned,
            is_first: *verdict == Verdict::Accepted,
        };
        self.note(before, chunks.iter().zip(&results.0).map(touch).collect());
    }

    fn note(&mut self, before: Option<ChunkName>, touches: Vec<Touch>) {
        if self.disk.is_some() && self.touched.len() < TOUCHED_MAX {
            self.touched.push((before, touches));
        }
    }

    /// Tells the tier what was used since the last time.
    pub(super) fn tell_uses(&mut self, now: Duration, out: &mut Vec<Output>) {
        for (mut parent, touches) in std::mem::take(&mut self.touched) {
            for Touch { pinned, is_first } in touches {
                // A slot that was given away may not even exist any more.
                let there = self.arena.generation(pinned.slot) == pinned.generation;
                let tokens = if there { self.arena.order.tokens(pinned.slot) } else { None };
                let Some((tokens, end)) = tokens else { break };
                let Some(held) = self.arena.held_mut(pinned.slot) else { break };
                held.uses = held.uses.saturating_add(u32::from(!is_first));
                let (name, uses) = (held.name.clone(), held.uses);
                let chunk = Chunk { bytes: held.bytes, sum: held.checksum.0, tokens, end };
                if self.may_lend(pinned.slot) {
                    let used = Input::Used { name: name.clone(), parent, chunk, uses };
                    self.step_disk(used, now, out);
                } else {
                    self.counts.unlent_chunks += 1;
                }
                parent = Some(name);
            }
        }
    }

    /// Whether one more pin keeps within the limit.
    fn may_lend(&self, slot: u32) -> bool {
        let more = if self.arena.slot(slot).pins == 0 { self.arena.stride(slot) } else { 0 };
        self.arena.pinned_bytes + more <= self.settings.pinned_bytes_max
    }

    /// Has the next chunk on disk read back, if it is time for that.
    pub(super) fn scrub(&mut self, now: Duration, out: &mut Vec<Output>) {
        let rate = self.settings.scrub_bytes_per_s;
        let Some(disk) = self.disk.as_mut().filter(|_| rate > 0) else { return };
        // Before all is found, a look would end at what is not there yet, and the pause be taken for nothing.
        if disk.scrub.under_way || now < disk.scrub.not_before || disk.core.is_recovering() {
            return;
        }
        let from = disk.scrub.last.unwrap_or(Location { segment: 0, offset: 0 });
        let Some((name, at, chunk)) = disk.core.next_to_scrub(from) else {
            disk.scrub = Scrub { last: None, under_way: false, not_before: now.saturating_add(SCRUB_PAUSE) };
            return;
        };
        let takes = Duration::from_secs_f64(chunk.record_bytes() as f64 / rate as f64);
        disk.scrub = Scrub { last: Some(at), under_way: true, not_before: now.saturating_add(takes) };
        out.push(Output::Scrub { name, at, chunk });
    }

    /// Forgets everything that nobody holds.
    pub(super) fn clear(&mut self, ticket: Ticket, now: Duration, out: &mut Vec<Output>) {
        self.touched.clear();
        self.settle_uses();
        self.end_all_pins();
        let mut chunks = 0;
        // Leaves go first, and what they continued becomes one.
        while let Some(rank) = self.arena.order.coldest_beside(0) {
            let gone = self.arena.evict(rank.slot);
            self.chunks.remove(&gone.name);
            chunks += 1;
        }
        self.counts.evicted_chunks += chunks;
        self.publish_generations(out);
        if let Some(disk) = &mut self.disk {
            disk.raises.values_mut().for_each(|raise| raise.forgotten = true);
            self.step_disk(Input::Clear, now, out);
        }
        out.push(Output::Cleared { ticket, chunks, kept: self.chunks.len() as u64 });
    }

    /// A chunk was evicted from the host tier.
    pub(super) fn left_host(&mut self, gone: Held, now: Duration) {
        if let Some(disk) = &mut self.disk {
            let ops = disk.core.step(Input::Evicted { name: gone.name, uses: gone.uses }, now);
            debug_assert!(ops.is_empty(), "nothing has to be done for what is only remembered");
        }
    }
}

impl Raising {
    fn add(&mut self, load: LoadId, bytes: u64) {
        self.loads.insert(load);
        self.chunks += 1;
        self.bytes += bytes;
    }
}
