//! The store with its memory and disk: what it says is carried out, at once or when it is a job's turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larder_cache_node::medium::disk::log;
use larder_cache_node::medium::disk::media::Media as _;
use larder_cache_node::medium::disk::media::fake::Fake;
use larder_cache_node::medium::disk::recipes::{self, Journal};
use larder_cache_node::medium::disk::work::{Append, Appender, Load, WRITES_AT_ONCE, load};
use larder_cache_node::store::{
    Check, ChunkName, ConnectionId, CopyId, DiskInput, DiskOp, Finding, HALF_LIFE, Input, JournalOp, Output,
    SessionId, Settings, Store, Verify, VerifyId,
};
use larder_cache_node::transfer::disk::tellings;
use larder_protocol::{NodeId, ToEngine, chunk_checksum};
use larder_tiering::disk::{BLOCK_BYTES, Chunk, Limits, LoadFault, Location};
use larder_tiering::pins::Budgets;

const MIB: u64 = 1 << 20;

/// Extents of the slab: some sixty slots of the smallest kind.
const EXTENTS: u32 = 4;

/// Work that the store waits for, but that of the disk's one writer.
#[derive(Debug)]
enum Job {
    Copy { copy: CopyId, bytes: Vec<u8>, to: u64 },
    Verify { verify: VerifyId, checks: Vec<Check> },
    Load { op: DiskOp, to: u64 },
}

/// What the disk's one writer is to do.
#[derive(Debug)]
enum Writing {
    Disk(DiskOp, u64),
    Recipes(JournalOp),
}

/// A node's store, memory and disk.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) now: Duration,
    pub(crate) media: Arc<Fake>,
    verify: Verify,
    appender: Appender,
    journal: Journal,
    slab: Vec<u8>,
    generations: HashMap<u32, u64>,
    regions: HashMap<SessionId, Vec<u8>>,
    /// Which session each connection was registered for.
    pub(crate) sessions: HashMap<ConnectionId, SessionId>,
    jobs: Vec<Job>,
    writing: VecDeque<Writing>,
    found: VecDeque<Input>,
    scrubs: VecDeque<(ChunkName, Location, Chunk)>,
    /// What was said to engines and not taken yet.
    pub(crate) said: Vec<(ConnectionId, ToEngine)>,
    runs: u128,
}

fn settings(runs: u128, verify: Verify) -> Settings {
    Settings {
        node: NodeId(runs << 64),
        extent_bytes: MIB,
        extents: EXTENTS,
        region_bytes: MIB,
        lease_ttl: Duration::from_secs(5),
        lookup_deadline: Duration::from_millis(40),
        stage_deadline: Duration::from_secs(2),
        verify,
        verify_fresh: Duration::ZERO,
        single_tenant: false,
        sessions_max: 8,
        leases_max: 64,
        verifications_max: 16,
        copies_max: 64,
        pinned_bytes_max: 3 * MIB,
        pins: Budgets { space_bytes_max: 1 << 20, bytes_max: 1 << 20, pins_max: 16 },
        pin_ttl_max: Duration::from_secs(3600),
        tenant_bytes_max: None,
        tenant_quotas: Vec::new(),
        recipe_bytes_max: 1 << 20,
        hello_timeout: Duration::from_secs(5),
        scrub_bytes_per_s: MIB,
    }
}

/// Eight segments of a dozen chunks or two.
fn limits() -> Limits {
    Limits {
        capacity_bytes: 2 * MIB,
        segment_bytes: MIB / 4,
        write_bytes_per_s: Some(MIB),
        admit_uses: 1,
        writes_max: 24,
        loads_max: 12,
        half_life: HALF_LIFE,
    }
}

/// Reads one chunk back.
fn load_one(media: &Fake, verify: Verify, one: Load<'_>) -> Result<(), LoadFault> {
    let mut outcome = Ok(());
    load(media, verify, vec![one], &mut |_, ended| outcome = ended);
    outcome
}

/// Bytes of a chunk and what fills its last block.
fn in_blocks(bytes: u64) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES) as usize
}

impl World {
    pub(crate) fn new(verify: Verify) -> Self {
        let media = Arc::new(Fake::default());
        Self {
            store: Store::new(settings(0, verify)).with_disk(limits(), &[]).with_recipe_log(&[]),
            now: Duration::from_secs(1),
            verify,
            appender: Appender::new(media.clone(), verify),
            media,
            journal: Journal::new(),
            slab: vec![0; (MIB * u64::from(EXTENTS)) as usize],
            generations: HashMap::new(),
            regions: HashMap::new(),
            sessions: HashMap::new(),
            jobs: Vec::new(),
            writing: VecDeque::new(),
            found: VecDeque::new(),
            scrubs: VecDeque::new(),
            said: Vec::new(),
            runs: 0,
        }
    }

    /// The process is gone, whatever it was doing, and another one starts: memory is empty, the disk is as it was.
    pub(crate) fn restart(&mut self) {
        self.media.restart();
        self.runs += 1;
        let length = |segment| Some((segment, self.media.length(segment).ok()?));
        let all = self.media.segments().unwrap_or_default().into_iter();
        let (files, segments): (Vec<u64>, Vec<u64>) = all.partition(|number| *number >= recipes::FIRST);
        let earlier: Vec<(u64, u64)> = segments.into_iter().filter_map(length).collect();
        let settings = settings(self.runs, self.verify);
        self.store = Store::new(settings).with_disk(limits(), &earlier).with_recipe_log(&files);
        self.journal = Journal::new();
        self.appender = Appender::new(self.media.clone(), self.verify);
        self.slab.fill(0xee);
        self.generations.clear();
        self.regions.clear();
        self.sessions.clear();
        self.jobs.clear();
        self.writing.clear();
        self.said.clear();
        self.found.clear();
        self.scrubs.clear();
        let mut found = Vec::new();
        for file in files {
            // What cannot be read is not there.
            let _ = recipes::read(&*self.media, file, |recipe| found.push(recipe));
        }
        self.found.push_back(Input::Recipes { found, last: true });
        for (segment, length) in earlier.into_iter().rev() {
            let contents = log::recover(&*self.media, segment);
            let contents = contents.unwrap_or(log::Contents { records: Vec::new(), length });
            self.found
                .extend(tellings(segment, contents.records, contents.length).into_iter().map(Input::Disk));
        }
    }

    pub(crate) fn step(&mut self, input: Input) -> Result<(), String> {
        for output in self.store.step(input, self.now) {
            self.carry_out(output)?;
        }
        self.store.check_invariants().map_err(|name| format!("not so: {name}"))
    }

    fn carry_out(&mut self, output: Output) -> Result<(), String> {
        match output {
            Output::SetGeneration { slot, generation } => {
                if self.generations.insert(slot, generation).is_some_and(|before| before >= generation) {
                    return Err(format!("the generation of slot {slot} fell"));
                }
            }
            Output::Send { connection, message } | Output::Grant { connection, message, .. } => {
                self.said.push((connection, message));
            }
            Output::Register { connection, session, message } => {
                self.sessions.insert(connection, session);
                self.regions.entry(session).or_insert_with(|| vec![0; message.region_bytes as usize]);
                self.said.push((connection, message.into()));
            }
            Output::DropRegion { session } => drop(self.regions.remove(&session)),
            Output::Copy { copy, session, from, to, bytes } => {
                let region = self.regions.get(&session).ok_or("a copy out of a region that is gone")?;
                let bytes = region[from as usize..(from + bytes) as usize].to_vec();
                // From here on what was there is lost.
                self.slab[to as usize..to as usize + bytes.len()].fill(0xdd);
                self.jobs.push(Job::Copy { copy, bytes, to });
            }
            Output::Verify { verify, checks, .. } => self.jobs.push(Job::Verify { verify, checks }),
            Output::Disk { op: op @ DiskOp::Load { .. }, offset } => {
                self.jobs.push(Job::Load { op, to: offset })
            }
            Output::Disk { op, offset } => self.writing.push_back(Writing::Disk(op, offset)),
            Output::Recipes(op) => self.writing.push_back(Writing::Recipes(op)),
            Output::Scrub { name, at, chunk } => self.scrubs.push_back((name, at, chunk)),
            Output::Answer { .. }
            | Output::Close { .. }
            | Output::Forget { .. }
            | Output::Damaged { .. }
            | Output::Device(_)
            | Output::Pinned { .. }
            | Output::Released { .. }
            | Output::QuotaSet { .. }
            | Output::Cleared { .. } => {}
        }
        Ok(())
    }

    /// How much there is to do.
    pub(crate) fn waiting(&self) -> usize {
        let queues = [!self.writing.is_empty(), !self.found.is_empty() || !self.scrubs.is_empty()];
        self.jobs.len() + queues.into_iter().filter(|some| *some).count()
    }

    /// Does one of the jobs.
    pub(crate) fn work(&mut self, which: usize) -> Result<(), String> {
        if which < self.jobs.len() {
            return self.work_on(which);
        }
        if which == self.jobs.len() && !self.writing.is_empty() {
            return self.write();
        }
        match self.found.pop_front() {
            Some(input) => self.step(input),
            None => self.scrub(),
        }
    }

    fn scrub(&mut self) -> Result<(), String> {
        let Some((name, at, chunk)) = self.scrubs.pop_front() else { return Ok(()) };
        let bytes = &mut vec![0; in_blocks(chunk.bytes)];
        let outcome = load_one(&self.media, self.verify, Load { at, chunk, bytes });
        self.step(Input::Disk(DiskInput::Scrubbed { name, at, outcome }))
    }

    fn work_on(&mut self, which: usize) -> Result<(), String> {
        match self.jobs.swap_remove(which) {
            Job::Copy { copy, bytes, to } => {
                self.slab[to as usize..to as usize + bytes.len()].copy_from_slice(&bytes);
                self.step(Input::Copied { copy, checksum: chunk_checksum(&bytes) })
            }
            Job::Verify { verify, checks } => {
                let find = |check: &Check| {
                    let bytes = &self.slab[check.offset as usize..(check.offset + check.bytes) as usize];
                    if chunk_checksum(bytes) == check.checksum { Finding::Good } else { Finding::Bad }
                };
                let found = checks.iter().map(find).collect();
                self.step(Input::Verified { verify, found })
            }
            Job::Load { op: DiskOp::Load { load: id, at, chunk, .. }, to } => {
                let bytes = &mut self.slab[to as usize..to as usize + in_blocks(chunk.bytes)];
                let outcome = load_one(&self.media, self.verify, Load { at, chunk, bytes });
                self.step(Input::Disk(DiskInput::Loaded { load: id, outcome }))
            }
            Job::Load { .. } => Ok(()),
        }
    }

    /// The writer's next job, or the next few writes in a row.
    fn write(&mut self) -> Result<(), String> {
        let (op, from) = match self.writing.pop_front() {
            None => return Ok(()),
            Some(Writing::Recipes(JournalOp::Append { file, records })) => {
                self.journal.append(&*self.media, file, &records);
                return Ok(());
            }
            Some(Writing::Recipes(JournalOp::Remove { file })) => {
                self.journal.remove(&*self.media, file);
                return Ok(());
            }
            Some(Writing::Disk(op, from)) => (op, from),
        };
        match op {
            DiskOp::Create { segment } => self.appender.create(segment),
            DiskOp::Remove { segment } => self.appender.remove(segment),
            DiskOp::Seal { segment, end } => {
                let outcome = self.appender.seal(segment, end);
                return self.step_unless_crashed(vec![DiskInput::Sealed { segment, outcome }]);
            }
            DiskOp::Load { .. } => {}
            DiskOp::Write { .. } => {
                let mut writes = vec![(op, from)];
                let next = |it: &mut Writing| matches!(it, Writing::Disk(DiskOp::Write { .. }, _));
                while writes.len() < WRITES_AT_ONCE
                    && let Some(Writing::Disk(op, from)) = self.writing.pop_front_if(next)
                {
                    writes.push((op, from));
                }
                return self.append(writes);
            }
        }
        Ok(())
    }

    fn append(&mut self, writes: Vec<(DiskOp, u64)>) -> Result<(), String> {
        let record = |(op, from)| match op {
            DiskOp::Write { write, at, name, parent, chunk } => {
                let parent = parent.map(|parent: ChunkName| parent.key);
                Some((write, at, log::Record { name, parent, chunk }, from))
            }
            _ => None,
        };
        let writes: Vec<_> = writes.into_iter().filter_map(record).collect();
        let appends: Vec<Append<'_>> = writes
            .iter()
            .map(|(_, at, record, from): &(_, _, log::Record, u64)| Append {
                at: *at,
                record,
                bytes: &self.slab[*from as usize..*from as usize + in_blocks(record.chunk.bytes)],
            })
            .collect();
        let mut inputs = Vec::new();
        self.appender.append(&appends, &mut |index, outcome| {
            inputs.push(DiskInput::Written { write: writes[index].0, outcome });
        });
        if let Some(segment) = self.appender.due_sync() {
            // A failure is only told to the log.
            let _ = self.media.sync(segment);
        }
        self.step_unless_crashed(inputs)
    }

    /// A process that ended within a call hears of nothing.
    fn step_unless_crashed(&mut self, inputs: Vec<DiskInput>) -> Result<(), String> {
        if self.media.has_crashed() {
            return Ok(());
        }
        inputs.into_iter().try_for_each(|input| self.step(Input::Disk(input)))
    }

    /// An engine writes into its region.
    pub(crate) fn put(&mut self, session: SessionId, offset: u64, bytes: &[u8]) {
        if let Some(region) = self.regions.get_mut(&session) {
            region[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// An engine copies out of the slab; none if the generation is not what it was told.
    pub(crate) fn get(&self, slot: u32, generation: u64, offset: u64, bytes: usize) -> Option<&[u8]> {
        let readable = self.generations.get(&slot) == Some(&generation);
        readable.then(|| &self.slab[offset as usize..offset as usize + bytes])
    }
}
