//! A world for the store: it carries out outputs on a model of the slab, keeps what was said to whom, and checks
//! every invariant after every step.

use larder_protocol::control::{PinAnswer, QuotaAnswer};

use super::*;

/// What a slot's bytes stand for in the model: whose chunk, and whether a test damaged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) content: u64,
    pub(super) damaged: bool,
}

/// A job given out and not yet answered.
#[derive(Debug)]
pub(super) enum Job {
    Copy { copy: CopyId, content: u64, to: u64 },
    Verify { verify: VerifyId, checks: Vec<Check> },
    Disk { op: DiskOp, offset: u64 },
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) store: Store,
    pub(super) now: Duration,
    /// The slab by the offset where a slot begins.
    pub(super) slab: HashMap<u64, Bytes>,
    /// The shared generation table.
    pub(super) generations: HashMap<u32, u64>,
    /// Each session's region by offset.
    pub(super) regions: HashMap<(SessionId, u64), u64>,
    /// What was written to disk, by where its record begins.
    pub(super) disk: HashMap<Location, Bytes>,
    pub(super) jobs: Vec<Job>,
    pub(super) scrubs: Vec<(ChunkName, Location, Chunk)>,
    pub(super) device: Vec<DeviceOp>,
    pub(super) cleared: Vec<(u64, u64)>,
    pub(super) recipes: Vec<JournalOp>,
    pub(super) pinned: Vec<PinAnswer>,
    pub(super) released: Vec<bool>,
    pub(super) quotas: Vec<Option<QuotaAnswer>>,
    pub(super) said: Vec<(ConnectionId, ToEngine)>,
    pub(super) answers: Vec<(Ticket, larder_protocol::control::StageAnswer)>,
    pub(super) closed: Vec<ConnectionId>,
    pub(super) forgotten: Vec<ConnectionId>,
    fresh: u128,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store: Store::new(settings),
            now: Duration::from_secs(1),
            slab: HashMap::new(),
            generations: HashMap::new(),
            regions: HashMap::new(),
            disk: HashMap::new(),
            jobs: Vec::new(),
            scrubs: Vec::new(),
            device: Vec::new(),
            cleared: Vec::new(),
            recipes: Vec::new(),
            pinned: Vec::new(),
            released: Vec::new(),
            quotas: Vec::new(),
            said: Vec::new(),
            answers: Vec::new(),
            closed: Vec::new(),
            forgotten: Vec::new(),
            fresh: 0,
        }
    }

    /// A world with a disk tier of eight segments of 1 MiB, each of seven chunks of 128 KiB.
    pub(super) fn with_disk(settings: Settings, admit_uses: u32) -> Self {
        Self::with_earlier(settings, admit_uses, &[])
    }

    /// The same with segments of an earlier run, by number and length.
    pub(super) fn with_earlier(settings: Settings, admit_uses: u32, earlier: &[(u64, u64)]) -> Self {
        let limits = Limits {
            capacity_bytes: 8 * MIB,
            segment_bytes: MIB,
            write_bytes_per_s: Some(8 * MIB),
            admit_uses,
            writes_max: 6,
            loads_max: 6,
            half_life: HALF_LIFE,
        };
        let mut world = Self::new(settings.clone());
        world.store = Store::new(settings).with_disk(limits, earlier);
        world
    }

    pub(super) fn fresh(&mut self) -> LeaseId {
        self.fresh += 1;
        LeaseId(self.fresh)
    }

    pub(super) fn step(&mut self, input: Input) {
        for output in self.store.step(input, self.now) {
            self.carry_out(output);
        }
        assert_eq!(self.store.check_invariants(), Ok(()));
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::SetGeneration { slot, generation } => {
                let before = self.generations.insert(slot, generation).unwrap_or(0);
                assert!(generation > before, "slot {slot}: generation {before} became {generation}");
            }
            Output::Send { connection, message } => self.said.push((connection, message)),
            Output::Register { connection, message, .. } => self.said.push((connection, message.into())),
            Output::Grant { connection, message, ticket, answer } => {
                self.said.push((connection, message));
                self.answers.push((ticket, answer));
            }
            Output::Answer { ticket, answer } => self.answers.push((ticket, answer)),
            Output::Close { connection } => self.closed.push(connection),
            Output::Forget { connection } => self.forgotten.push(connection),
            Output::DropRegion { .. } => {}
            Output::Copy { copy, session, from, to, .. } => {
                // The copy begins at once: from here on the old bytes are gone.
                let content = self.regions[&(session, from)];
                self.slab.insert(to, Bytes { content: u64::MAX, damaged: false });
                self.jobs.push(Job::Copy { copy, content, to });
            }
            Output::Disk { op: DiskOp::Create { .. }, .. } => {}
            Output::Disk { op: DiskOp::Remove { segment }, .. } => {
                self.disk.retain(|at, _| at.segment != segment);
            }
            Output::Disk { op, offset } => self.jobs.push(Job::Disk { op, offset }),
            Output::Device(op) => self.device.push(op),
            Output::Scrub { name, at, chunk } => self.scrubs.push((name, at, chunk)),
            Output::Recipes(op) => self.recipes.push(op),
            Output::Pinned { answer, .. } => self.pinned.push(answer),
            Output::Released { released, .. } => self.released.push(released),
            Output::QuotaSet { answer, .. } => self.quotas.push(answer),
            Output::Cleared { chunks, kept, .. } => self.cleared.push((chunks, kept)),
            Output::Verify { verify, checks, .. } => self.jobs.push(Job::Verify { verify, checks }),
            Output::Damaged { flip, .. } => {
                if let Some((offset, _)) = flip {
                    self.slab.get_mut(&offset).expect("a chunk begins there").damaged ^= true;
                }
            }
        }
    }

    /// Carries out one job.
    pub(super) fn work(&mut self, index: usize) {
        match self.jobs.remove(index) {
            Job::Copy { copy, content, to } => {
                self.slab.insert(to, Bytes { content, damaged: false });
                self.step(Input::Copied { copy, checksum: Checksum(u128::from(content)) });
            }
            Job::Verify { verify, checks } => {
                let find = |check: &Check| {
                    let bytes = &self.slab[&check.offset];
                    let good = Checksum(u128::from(bytes.content)) == check.checksum && !bytes.damaged;
                    if good { Finding::Good } else { Finding::Bad }
                };
                let found = checks.iter().map(find).collect();
                self.step(Input::Verified { verify, found });
            }
            Job::Disk { op, offset } => self.work_on_disk(op, offset),
        }
    }

    fn work_on_disk(&mut self, op: DiskOp, offset: u64) {
        let right = |bytes: &Bytes, sum: u128| u128::from(bytes.content) == sum && !bytes.damaged;
        let input = match op {
            DiskOp::Write { write, at, chunk, .. } => {
                let bytes = self.slab[&offset].clone();
                let outcome = if right(&bytes, chunk.sum) { Ok(()) } else { Err(WriteFault::Damaged) };
                self.disk.insert(at, bytes);
                DiskInput::Written { write, outcome }
            }
            DiskOp::Load { load, at, chunk, .. } => {
                // Whatever lies there arrives; only the checksum tells what it is.
                let outcome = match self.disk.get(&at).cloned() {
                    None => Err(LoadFault::Io),
                    Some(bytes) => {
                        let right = right(&bytes, chunk.sum);
                        self.slab.insert(offset, bytes);
                        if right { Ok(()) } else { Err(LoadFault::Damaged) }
                    }
                };
                DiskInput::Loaded { load, outcome }
            }
            DiskOp::Seal { segment, .. } => DiskInput::Sealed { segment, outcome: Ok(()) },
            DiskOp::Create { .. } | DiskOp::Remove { .. } => return,
        };
        self.step(Input::Disk(input));
    }

    pub(super) fn work_all(&mut self) {
        while !self.jobs.is_empty() {
            self.work(0);
        }
    }

    pub(super) fn say(&mut self, connection: ConnectionId, message: impl Into<ToNode>) {
        let fresh = self.fresh();
        self.step(Input::Message { connection, message: message.into(), fresh });
    }

    /// Connects an engine of one rank whose scheduler is connection `2 * n` and whose worker is `2 * n + 1`.
    pub(super) fn engine(&mut self, n: u64, register: &Register) -> ConnectionId {
        self.engine_watched(n, register, true)
    }

    pub(super) fn engine_watched(&mut self, n: u64, register: &Register, watched: bool) -> ConnectionId {
        let (scheduler, worker) = (ConnectionId(2 * n), ConnectionId(2 * n + 1));
        for (connection, role) in [(worker, Role::Worker), (scheduler, Role::Scheduler)] {
            self.step(Input::Accepted { connection, watched });
            let hello = Hello {
                versions: vec![1, 2, 3, 7],
                role,
                rank: 0,
                engine: format!("e{n}"),
                endpoint: Some(format!("http://e{n}")),
                software: None,
            };
            self.say(connection, hello);
            self.say(connection, register.clone());
        }
        scheduler
    }

    /// The session of a connection.
    pub(super) fn session(&self, connection: ConnectionId) -> SessionId {
        self.store.connections[&connection].session.unwrap()
    }

    /// Commits chunks whose content is their key's number; region slots from 0.
    pub(super) fn commit(
        &mut self,
        scheduler: ConnectionId,
        numbers: std::ops::Range<u64>,
        tag: Option<Tag>,
    ) {
        self.commit_after(scheduler, numbers, tag, None);
    }

    /// Commits chunks that continue the one of the number `parent`.
    pub(super) fn commit_after(
        &mut self,
        scheduler: ConnectionId,
        numbers: std::ops::Range<u64>,
        tag: Option<Tag>,
        parent: Option<u64>,
    ) {
        let session = self.session(scheduler);
        let stride = self.store.sessions[&session].layout.as_ref().unwrap().stride;
        let count = numbers.end - numbers.start;
        for (index, number) in numbers.clone().enumerate() {
            self.regions.insert((session, index as u64 * stride), number);
        }
        let commit = Commit {
            id: 9,
            keys: keys(numbers.clone()),
            end_tokens: numbers.map(|number| (number as u32 % 1000 + 1) * 32).collect(),
            region_slots: (0..count as u32).collect(),
            request: None,
            tag,
            prompt_tokens: None,
            parent: parent.map(key),
        };
        self.say(scheduler, commit);
    }

    pub(super) fn store_all(
        &mut self,
        scheduler: ConnectionId,
        numbers: std::ops::Range<u64>,
    ) -> Vec<Verdict> {
        self.commit(scheduler, numbers, None);
        self.work_all();
        match self.last(scheduler) {
            ToEngine::Committed(committed) => committed.results.0.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn lookup(&mut self, scheduler: ConnectionId, numbers: std::ops::Range<u64>) -> ToEngine {
        let ends = (1..=(numbers.end - numbers.start) as u32).map(|index| index * 32).collect();
        let lookup = Lookup {
            id: 5,
            keys: keys(numbers),
            end_tokens: ends,
            request: None,
            tag: None,
            prompt_tokens: None,
        };
        self.say(scheduler, lookup);
        self.work_all();
        self.last(scheduler).clone()
    }

    /// Looks up and expects a lease.
    pub(super) fn lease(
        &mut self,
        scheduler: ConnectionId,
        numbers: std::ops::Range<u64>,
    ) -> larder_protocol::message::Leased {
        match self.lookup(scheduler, numbers) {
            ToEngine::Leased(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn load(&mut self, scheduler: ConnectionId, lease: LeaseId, count: u32) {
        self.say(scheduler, Load { id: 6, lease, first: 0, count });
    }

    pub(super) fn complete(&mut self, scheduler: ConnectionId, lease: LeaseId) {
        self.say(scheduler, Complete { id: 7, lease, ok: true, failed: None });
    }

    pub(super) fn release(&mut self, scheduler: ConnectionId, lease: LeaseId) {
        self.say(scheduler, Release { id: 8, lease });
    }

    pub(super) fn last(&self, connection: ConnectionId) -> &ToEngine {
        let mut said = self.said.iter().rev();
        &said.find(|(to, _)| *to == connection).expect("something was said").1
    }

    /// What a copy of a slot would read now: its content, if the generation is the lease's.
    pub(super) fn read(&self, slot: u32, generation: u64) -> Option<Bytes> {
        let readable = self.generations.get(&slot) == Some(&generation);
        readable.then(|| self.slab[&self.store.arena.offset(slot)].clone())
    }

    pub(super) fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.step(Input::Tick);
    }
}
