//! The threads of the disk tier: one that writes, some that read, one that tells what earlier runs left. The store decides,
//! these carry out.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use larder_tiering::disk::{BLOCK_BYTES, Chunk, Found, LoadId, Location, Op, WriteId};
use tokio::sync::mpsc::{Sender as Bounded, UnboundedSender};

use crate::medium::disk::log::{self, Contents, Placed, Record};
use crate::medium::disk::media::Media;
use crate::medium::disk::recipes::{self, Journal};
use crate::medium::disk::work::{self, Append, Appender, Load, Sealing};
use crate::medium::memory::SharedMemory;
use crate::store::{ChunkName, DiskInput, DiskOp, Input, JournalOp, Verify};

/// What was written is made durable after so much quiet.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// Chunks that are given to the medium in one call: several times what may be under way, so that the drive is seldom without
/// work; jobs of other kinds wait behind them.
const APPENDS_AT_ONCE: usize = 64;

/// Chunks of earlier runs that the store is told of at one time: it serves nobody meanwhile.
const FOUND_AT_ONCE: usize = 256;

/// Recipes of earlier runs that the store is told of at one time: each has a few hundred points and keys to be entered.
const RECIPES_AT_ONCE: usize = 16;

/// Tellings that may wait for the store; the reading waits then.
pub const FOUND_WAITING: usize = 4;

/// What the threads work with.
#[derive(Clone)]
pub struct DiskParts {
    /// Where segments lie.
    pub media: Arc<dyn Media>,
    /// The host tier.
    pub slab: Arc<SharedMemory>,
    /// Whether checksums are compared.
    pub verify: Verify,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Where results go: as many as jobs were given out.
    pub results: UnboundedSender<Input>,
}

/// A job of the writing thread.
enum WriteJob {
    Create(u64),
    Append { write: WriteId, at: Location, record: Record, from: u64 },
    Seal { segment: u64, end: u64 },
    Remove(u64),
    Recipes(JournalOp),
    Then(Box<dyn FnOnce() + Send>),
}

/// A chunk to be read back and forgotten.
#[derive(Debug)]
struct ScrubJob {
    name: ChunkName,
    at: Location,
    chunk: Chunk,
}

#[derive(Debug)]
struct LoadJob {
    load: LoadId,
    at: Location,
    chunk: Chunk,
    to: u64,
}

#[derive(Debug, Default)]
struct LoadQueue {
    /// As many as the tier gives out, which its limits bound.
    jobs: VecDeque<LoadJob>,
    /// Only when nobody waits for a load; one at a time.
    scrub: Option<ScrubJob>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Loads {
    queue: Mutex<LoadQueue>,
    changed: Condvar,
}

/// The threads. Dropping it lets what was given out finish, makes it durable, and joins them.
#[derive(Debug)]
pub struct DiskThreads {
    writer: Option<Sender<WriteJob>>,
    loads: Arc<Loads>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for WriteJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteJob")
    }
}

impl DiskThreads {
    /// Starts the threads, `readers` of them to read.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(parts: &DiskParts, readers: usize) -> std::io::Result<Self> {
        let (writer, jobs) = channel();
        let loads = Arc::new(Loads::default());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let mut threads = Vec::new();
        let writing = parts.clone();
        let (later, laters) = channel();
        threads.push(thread("disk-write").spawn(move || Writer::new(writing, later).work(&jobs))?);
        let finishing = parts.clone();
        threads.push(thread("disk-sync").spawn(move || finish(&finishing, &laters))?);
        // A medium that takes many reads at once needs no more than two threads: one hashes while the other waits.
        let readers = if parts.media.depth() > 1 { readers.min(2) } else { readers };
        for _ in 0..readers.max(1) {
            let (loads, reading) = (Arc::clone(&loads), parts.clone());
            threads.push(thread("disk-read").spawn(move || loads.work(&reading))?);
        }
        Ok(Self { writer: Some(writer), loads, threads })
    }

    /// Reads a chunk back when nothing is to be loaded.
    pub fn scrub(&self, name: ChunkName, at: Location, chunk: Chunk) {
        self.loads.lock().scrub = Some(ScrubJob { name, at, chunk });
        self.loads.changed.notify_one();
    }

    /// Carries out what the tier decided; `offset` is the chunk's in the slab.
    pub fn carry_out(&self, op: DiskOp, offset: u64) {
        let job = match op {
            Op::Load { load, at, chunk, .. } => {
                return self.loads.add(LoadJob { load, at, chunk, to: offset });
            }
            Op::Create { segment } => WriteJob::Create(segment),
            Op::Write { write, at, name, parent, chunk } => {
                let record = Record { name, parent: parent.map(|parent| parent.key), chunk };
                WriteJob::Append { write, at, record, from: offset }
            }
            Op::Seal { segment, end } => WriteJob::Seal { segment, end },
            Op::Remove { segment } => WriteJob::Remove(segment),
        };
        self.give(job);
    }

    /// Keeps recipes.
    pub fn keep_recipes(&self, op: JournalOp) {
        self.give(WriteJob::Recipes(op));
    }

    /// Calls this once all that was given to the writer before is done.
    pub fn then(&self, call: impl FnOnce() + Send + 'static) {
        self.give(WriteJob::Then(Box::new(call)));
    }

    fn give(&self, job: WriteJob) {
        if let Some(writer) = &self.writer {
            // A writer that panicked has said so, and what it was given is never answered: its slots stay pinned.
            let _ = writer.send(job);
        }
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        self.writer = None;
        self.loads.lock().closed = true;
        self.loads.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Bytes in whole blocks: what a record has behind its header.
fn in_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// What takes a drive long and nobody waits for: at most a segment's index and a sync for each segment that the tier has.
enum Later {
    Seal(u64, Sealing),
    Sync(u64),
}

/// Makes durable, while the writer goes on.
fn finish(parts: &DiskParts, jobs: &Receiver<Later>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Later::Seal(segment, sealing) => {
                let sealed = DiskInput::Sealed { segment, outcome: sealing.finish() };
                // If nobody listens the node is ending.
                let _ = parts.results.send(Input::Disk(sealed));
            }
            Later::Sync(segment) => {
                // It may have been given up meanwhile.
                if let Err(error) = parts.media.sync(segment) {
                    tracing::warn!(segment, %error, "what was written to disk may be lost with the power");
                }
            }
        }
    }
}

struct Writer {
    parts: DiskParts,
    appender: Appender,
    journal: Journal,
    later: Sender<Later>,
}

impl Writer {
    fn new(parts: DiskParts, later: Sender<Later>) -> Self {
        let appender =
            Appender::new(Arc::clone(&parts.media), parts.verify).with_segments_of(parts.segment_bytes);
        Self { parts, appender, journal: Journal::new(), later }
    }

    fn work(mut self, jobs: &Receiver<WriteJob>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => match jobs.recv_timeout(SYNC_AFTER) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        self.sync();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return self.sync(),
                },
            };
            next = self.carry_out(job, jobs);
        }
    }

    fn sync(&mut self) {
        self.appender.sync();
        self.journal.sync(&*self.parts.media);
    }

    /// Carries a job out, an append together with those behind it. Returns the job that came after them.
    fn carry_out(&mut self, job: WriteJob, jobs: &Receiver<WriteJob>) -> Option<WriteJob> {
        match job {
            WriteJob::Create(segment) => self.appender.create(segment),
            WriteJob::Remove(segment) => self.appender.remove(segment),
            WriteJob::Then(call) => call(),
            WriteJob::Recipes(JournalOp::Append { file, records }) => {
                self.journal.append(&*self.parts.media, file, &records);
            }
            WriteJob::Recipes(JournalOp::Remove { file }) => self.journal.remove(&*self.parts.media, file),
            WriteJob::Seal { segment, end } => {
                let sealing = self.appender.begin_seal(segment, end);
                match sealing {
                    // A thread that panicked has said so, and the segment stays without an index.
                    Ok(sealing) => drop(self.later.send(Later::Seal(segment, sealing))),
                    Err(fault) => self.say(DiskInput::Sealed { segment, outcome: Err(fault) }),
                }
            }
            WriteJob::Append { write, at, record, from } => {
                let at_once = if self.parts.media.depth() > 1 { APPENDS_AT_ONCE } else { 1 };
                let mut appends = vec![(write, at, record, from)];
                let mut next = None;
                while appends.len() < at_once && next.is_none() {
                    match jobs.try_recv() {
                        Ok(WriteJob::Append { write, at, record, from }) => {
                            appends.push((write, at, record, from))
                        }
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                self.append(&appends);
                self.sync_if_due();
                return next;
            }
        }
        None
    }

    fn append(&mut self, appends: &[(WriteId, Location, Record, u64)]) {
        let range =
            |(_, _, record, from): &(WriteId, Location, Record, u64)| (*from, in_blocks(record.chunk.bytes));
        let ranges: Vec<(u64, u64)> = appends.iter().map(range).collect();
        let appender = &mut self.appender;
        let results = &self.parts.results;
        self.parts.slab.with_bytes(&ranges, |slots| {
            let chunks = appends.iter().zip(slots.iter().copied());
            let chunks: Vec<Append<'_>> =
                chunks.map(|((_, at, record, _), bytes)| Append { at: *at, record, bytes }).collect();
            appender.append(&chunks, &mut |index, outcome| {
                let written = DiskInput::Written { write: appends[index].0, outcome };
                // If nobody listens the node is ending.
                let _ = results.send(Input::Disk(written));
            });
        });
    }

    /// Has what was written made durable, if it is time.
    fn sync_if_due(&mut self) {
        if let Some(segment) = self.appender.due_sync() {
            let _ = self.later.send(Later::Sync(segment));
        }
    }

    fn say(&self, input: DiskInput) {
        // If nobody listens the node is ending.
        let _ = self.parts.results.send(Input::Disk(input));
    }
}

impl Loads {
    fn lock(&self) -> MutexGuard<'_, LoadQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, job: LoadJob) {
        self.lock().jobs.push_back(job);
        self.changed.notify_one();
    }

    /// The next jobs, as many as the medium takes at once, or something to scrub; neither when there will be no more.
    fn next(&self, at_once: usize) -> (Vec<LoadJob>, Option<ScrubJob>) {
        let mut queue = self.lock();
        while queue.jobs.is_empty() && queue.scrub.is_none() && !queue.closed {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let count = queue.jobs.len().min(at_once.max(1));
        let scrub = if count == 0 && !queue.closed { queue.scrub.take() } else { None };
        (queue.jobs.drain(..count).collect(), scrub)
    }

    fn work(&self, parts: &DiskParts) {
        loop {
            let jobs = match self.next(parts.media.depth()) {
                (_, Some(job)) => {
                    scrub(parts, job);
                    continue;
                }
                (jobs, None) if jobs.is_empty() => return,
                (jobs, None) => jobs,
            };
            let range = |job: &LoadJob| (job.to, in_blocks(job.chunk.bytes));
            let ranges: Vec<(u64, u64)> = jobs.iter().map(range).collect();
            parts.slab.fill(&ranges, |slots| {
                let load = |(job, bytes): (&LoadJob, _)| Load { at: job.at, chunk: job.chunk, bytes };
                let loads: Vec<Load<'_>> = jobs.iter().zip(slots).map(load).collect();
                work::load(&*parts.media, parts.verify, loads, &mut |index, outcome| {
                    let loaded = DiskInput::Loaded { load: jobs[index].load, outcome };
                    // If nobody listens the node is ending.
                    let _ = parts.results.send(Input::Disk(loaded));
                });
            });
        }
    }
}

/// Reads a chunk back, past the host tier.
fn scrub(parts: &DiskParts, ScrubJob { name, at, chunk }: ScrubJob) {
    let (bytes, block) = (in_blocks(chunk.bytes) as usize, BLOCK_BYTES as usize);
    let mut buffer = vec![0; bytes + block];
    let start = buffer.as_ptr().align_offset(block).min(block);
    let load = Load { at, chunk, bytes: &mut buffer[start..start + bytes] };
    work::load(&*parts.media, parts.verify, vec![load], &mut |_, outcome| {
        // If nobody listens the node is ending.
        let _ = parts.results.send(Input::Disk(DiskInput::Scrubbed { name: name.clone(), at, outcome }));
    });
}

/// Tells the store what is in segments of earlier runs, the newest first, and ends. A segment that cannot be read holds
/// nothing, and is removed for that.
pub fn tell_found(media: &dyn Media, earlier: &[(u64, u64)], found: &Bounded<Input>) {
    let (mut chunks, started) = (0, std::time::Instant::now());
    for (segment, length) in earlier.iter().rev() {
        let Contents { records, length } = log::recover(media, *segment).unwrap_or_else(|error| {
            tracing::warn!(segment, %error, "a segment of an earlier run cannot be read");
            Contents { records: Vec::new(), length: *length }
        });
        chunks += records.len();
        for input in tellings(*segment, records, length) {
            if found.blocking_send(Input::Disk(input)).is_err() {
                return;
            }
        }
    }
    if !earlier.is_empty() {
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(segments = earlier.len(), chunks, seconds, "found what earlier runs left on disk");
    }
}

/// Tells the store what recipes earlier runs kept, in the order in which these were learnt. Before [`tell_found`]: without
/// recipes no prompt is staged, and they are few.
pub fn tell_recipes(media: &dyn Media, files: &[u64], found: &Bounded<Input>) {
    let (mut some, mut count) = (Vec::new(), 0);
    for file in files {
        let read = recipes::read(media, *file, |recipe| {
            some.push(recipe);
            count += 1;
            if some.len() >= RECIPES_AT_ONCE {
                // If nobody listens the node is ending.
                let _ = found.blocking_send(Input::Recipes { found: std::mem::take(&mut some), last: false });
            }
        });
        if let Err(error) = read {
            tracing::warn!(file, %error, "a file of recipes of an earlier run cannot be read");
        }
    }
    let _ = found.blocking_send(Input::Recipes { found: some, last: true });
    if count > 0 {
        tracing::info!(recipes = count, "found recipes of earlier runs");
    }
}

/// What a segment holds, in parts.
pub fn tellings(segment: u64, records: Vec<Placed>, length: u64) -> Vec<DiskInput> {
    let found = |(offset, record): Placed| {
        let parent = record.parent.map(|key| ChunkName { namespace: record.name.namespace, key });
        Found { offset, name: record.name, parent, chunk: record.chunk }
    };
    let mut chunks: Vec<Found<ChunkName>> = records.into_iter().map(found).collect();
    let mut parts = Vec::new();
    while chunks.len() > FOUND_AT_ONCE {
        let rest = chunks.split_off(FOUND_AT_ONCE);
        parts.push(DiskInput::Found { segment, chunks: std::mem::replace(&mut chunks, rest), last: None });
    }
    parts.push(DiskInput::Found { segment, chunks, last: Some(length) });
    parts
}
