//! An engine with its KV cache in GPUs: this process, with the emulator as its driver.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larder_emulator::{Controls, library};
use larder_kernels::{Driver, Event, Ticket, reference};
use larder_protocol::frame::frame;
use larder_protocol::message::{Attach, Fetch, Grant, Leased, Moved, Save, Verdict};
use larder_protocol::{DeviceId, GpuHandle, LeaseId, Tag, ToEngine, ToNode};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::cache::{CHUNK_BLOCKS, Cache, Setup, noise};
use crate::engine::{Engine, content, register};
use crate::node::{Node, PATIENCE, start_by};

/// The emulator's knobs are the process's, so one test at a time has it.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Turn {
    /// None on a GPU.
    controls: Option<Controls>,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// The engine's streams begin nothing, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.controls.iter().for_each(|controls| controls.hold(held));
    }

    pub(crate) fn on_gpu(&self) -> bool {
        self.controls.is_none()
    }
}

/// Whether the tests are to run on this machine's GPU and driver instead of the emulator.
fn on_gpu() -> bool {
    std::env::var_os("LARDER_REAL_CUDA").is_some_and(|value| value == "1")
}

/// A turn for a test that a GPU cannot do; None where the tests run on one.
#[expect(clippy::print_stdout, reason = "whoever runs the tests is to know what was left out")]
pub(crate) fn emulator_turn() -> Option<Turn> {
    if on_gpu() {
        println!("skipped: needs the emulator's knobs");
        return None;
    }
    Some(turn())
}

fn driver() -> Driver {
    let driver = if on_gpu() { Driver::load() } else { Driver::load_from(Some(&library().unwrap())) };
    driver.unwrap()
}

pub(crate) fn turn() -> Turn {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let controls = (!on_gpu()).then(|| Controls::of(&library().unwrap()).unwrap());
    Turn { controls, _turn: turn }
}

/// Tokens of a chunk of these engines.
const CHUNK_TOKENS: u32 = 16 * CHUNK_BLOCKS;

/// A node with the emulator as its driver.
pub(crate) struct GpuNode {
    pub(crate) node: Node,
    knobs: PathBuf,
}

pub(crate) fn node(lines: &str, variables: &[(&str, &str)]) -> GpuNode {
    node_in(tempfile::tempdir().unwrap(), lines, variables)
}

/// In a directory; of two variables of one name the last counts.
pub(crate) fn node_in(directory: tempfile::TempDir, lines: &str, variables: &[(&str, &str)]) -> GpuNode {
    let knobs = directory.path().join("knobs");
    // A node before it may have left it turned.
    std::fs::write(&knobs, "").unwrap();
    let mut program = vec!["env".to_owned(), format!("LARDER_EMULATOR_KNOBS={}", knobs.display())];
    if !on_gpu() {
        program.push(format!("LARDER_LIBCUDA={}", library().unwrap().display()));
    }
    program.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    GpuNode { node: start_by(directory, &format!("log = \"warn\"\n{lines}"), &program), knobs }
}

impl GpuNode {
    /// Turns the knobs of the node's emulator.
    pub(crate) fn knobs(&self, text: &str) {
        let beside = self.knobs.with_added_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &self.knobs).unwrap();
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.knobs.with_added_extension(extension)
    }

    /// Objects of the node's emulator that were made and not freed.
    pub(crate) fn left(&self) -> i64 {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let answer = self.beside("left");
        let _ = std::fs::remove_file(&answer);
        self.knobs(&format!("left {}", ASKED.fetch_add(1, Ordering::Relaxed)));
        let start = Instant::now();
        loop {
            // Empty while it is being written.
            let found = std::fs::read_to_string(&answer).ok().and_then(|text| text.parse().ok());
            if let Some(left) = found {
                return left;
            }
            assert!(start.elapsed() < PATIENCE, "the emulator says nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no more than so many are left.
    pub(crate) fn wait_for_left(&self, most: i64) {
        let start = Instant::now();
        while self.left() > most {
            assert!(start.elapsed() < PATIENCE, "{} objects are left of {most}", self.left());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The `nth` call of a function from now on fails.
    pub(crate) fn fails(&self, function: &str, nth: u64, code: u32) {
        let _ = std::fs::remove_file(self.beside("failed"));
        self.knobs(&format!("fail {function} {nth} {code}"));
    }

    /// Whether it did; if not it will not any more.
    pub(crate) fn failed(&self) -> bool {
        self.knobs("");
        self.beside("failed").exists()
    }

    /// Stages a prompt of so many chunks and a little more; every prompt begins alike.
    pub(crate) fn stage(&self, tag: u128, chunks: u64) -> serde_json::Value {
        let chain: Vec<String> = (0..chunks).map(|point| format!("{point:016x}")).collect();
        let bytes = 4 * u64::from(CHUNK_TOKENS);
        self.node.post(
            "/v1/stage",
            &serde_json::json!({
                "tag": format!("{tag:032x}"), "chain": chain, "run_bytes": bytes,
                "prompt_bytes": chunks * bytes + 12, "engine": "http://a", "deadline_ms": 20_000,
            }),
        )
    }

    pub(crate) fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.node.http("GET", "/v1/stats", "", "").1).unwrap()
    }
}

/// What is wrong with pages, and what the node says of it.
type WrongPages = (fn(&mut Attach), &'static str);

/// Pages that no node opens.
pub(crate) const WRONG_PAGES: [WrongPages; 7] = [
    (|it| it.device = DeviceId(1), "none of 2 devices is"),
    (|it| it.layers[1] = 1 << 40, "does not fit"),
    (|it| it.layers[3] -= 1, "part_bytes said"),
    (|it| it.handles[0] = GpuHandle([0; 64]), "cuIpcOpenMemHandle"),
    (|it| it.part_offsets[0] = 1 << 40, "a part of 8192 bytes"),
    (|it| it.events[0] = GpuHandle([0; 64]), "cuIpcOpenEventHandle"),
    (|it| (it.part_pieces[1], _) = (1, it.handles.pop()), "piece"),
];

pub(crate) struct GpuEngine {
    engine: Engine,
    caches: Vec<Cache>,
    /// The node's events, of each rank.
    events: Vec<Vec<Event>>,
    /// What each rank's pages were filled from last.
    seed: u64,
    /// What each rank saved of each chunk.
    saved: HashMap<(usize, u64), Vec<u8>>,
}

impl GpuEngine {
    /// Connects; its pages are not yet open to the node.
    pub(crate) fn unattached(node: &Node, name: &str, setup: &Setup, world: u32) -> Self {
        Self::unattached_at(&node.socket(), name, setup, world)
    }

    pub(crate) fn unattached_at(socket: &Path, name: &str, setup: &Setup, world: u32) -> Self {
        let driver = driver();
        let devices = driver.devices().unwrap();
        // Not the first first, so that none is found by chance.
        let device = |rank: u32| driver.device(devices[(rank as usize + 1) % devices.len()]).unwrap();
        let caches = (0..world).map(|rank| Cache::create(device(rank), setup)).collect();
        let register = larder_protocol::message::Register {
            blocks_per_chunk: CHUNK_BLOCKS,
            ..register(setup.layout().chunk_bytes(), world, 1)
        };
        let engine = Engine::connect_speaking(socket, name, register, &[1, 2, 3]);
        let events = (0..world).map(|_| Vec::new()).collect();
        let mut engine = Self { engine, caches, events, seed: 0, saved: HashMap::new() };
        engine.fill(1);
        engine
    }

    /// An engine whose pages are open, once all memory is pinned.
    pub(crate) fn start(node: &Node, name: &str, setup: &Setup, world: u32) -> Self {
        let mut engine = Self::unattached(node, name, setup, world);
        for rank in 0..world as usize {
            engine.attach_with(rank, |_| ()).unwrap();
        }
        let registered = &engine.engine.registered;
        node.wait_for_least("gpu_pinned_bytes", registered.slab_bytes + registered.region_bytes);
        engine
    }

    /// GPUs that this process sees.
    pub(crate) fn gpus(&self) -> usize {
        driver().devices().unwrap().len()
    }

    /// Connects again, to this node or another: a new run of the engine, with the same pages.
    pub(crate) fn reconnect_unattached(&mut self, node: &Node) {
        static RUN: AtomicU64 = AtomicU64::new(0);
        let name = format!("run-{}", RUN.fetch_add(1, Ordering::Relaxed));
        let register = self.engine.register.clone();
        self.engine = Engine::connect_speaking(&node.socket(), &name, register, &[1, 2, 3]);
    }

    pub(crate) fn reconnect(&mut self, node: &Node) {
        self.reconnect_unattached(node);
        for rank in 0..self.caches.len() {
            self.attach_with(rank, |_| ()).unwrap();
        }
        let registered = &self.engine.registered;
        node.wait_for_least("gpu_pinned_bytes", registered.slab_bytes + registered.region_bytes);
    }

    /// Closes its connections, and waits until no engine is connected.
    pub(crate) fn disconnect(&mut self, node: &Node) {
        let workers = self.engine.workers.iter().map(|worker| &worker.wire);
        for wire in workers.chain([&self.engine.wire]) {
            // It may be closed already.
            let _ = wire.stream.shutdown(Shutdown::Both);
        }
        node.wait_for("sessions", 0);
        node.wait_for("gpu_ranks", 0);
    }

    /// Opens a rank's pages to the node, with something changed in what it says of them.
    pub(crate) fn attach_with(
        &mut self,
        rank: usize,
        change: impl FnOnce(&mut Attach),
    ) -> Result<(), String> {
        let (mut attach, descriptors) = self.caches[rank].attach();
        change(&mut attach);
        let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let bytes = frame(&ToNode::from(attach).encode());
        let wire = &mut self.engine.workers[rank].wire;
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let pieces = [IoSlice::new(&bytes)];
        let sent = sendmsg::<()>(wire.stream.as_raw_fd(), &pieces, rights, MsgFlags::empty(), None);
        assert_eq!(sent.unwrap(), bytes.len());
        match wire.hear().expect("an answer") {
            ToEngine::Attached(attached) => {
                let open = |handle| self.caches[rank].open(handle);
                self.events[rank] = attached.events.iter().map(open).collect();
                Ok(())
            }
            ToEngine::Refused(refused) => Err(refused.message),
            ToEngine::ErrorAnswer(error) => Err(error.message),
            other => panic!("{other:?}"),
        }
    }

    /// What a rank's pages hold after they were filled.
    pub(crate) fn noise(&self, rank: usize, seed: u64) -> Vec<u8> {
        noise(seed + 1000 * rank as u64, self.caches[rank].setup.bytes())
    }

    /// Begins to fill all ranks' pages.
    pub(crate) fn begin_to_fill(&self, seed: u64) -> Vec<Ticket> {
        let fill = |(rank, cache): (usize, &Cache)| cache.begin_to_fill(&self.noise(rank, seed));
        self.caches.iter().enumerate().flat_map(fill).collect()
    }

    pub(crate) fn filled(&mut self, seed: u64, filling: Vec<Ticket>) {
        filling.into_iter().for_each(|ticket| ticket.wait().unwrap());
        self.seed = seed;
    }

    pub(crate) fn fill(&mut self, seed: u64) {
        let filling = self.begin_to_fill(seed);
        self.filled(seed, filling);
    }

    pub(crate) fn say(&mut self, rank: usize, message: impl Into<ToNode>) {
        self.engine.workers[rank].wire.say(message);
    }

    pub(crate) fn hear(&mut self, rank: usize) -> ToEngine {
        self.engine.workers[rank].wire.hear().expect("an answer")
    }

    pub(crate) fn ask(&mut self, rank: usize, message: impl Into<ToNode>) -> ToEngine {
        self.say(rank, message);
        self.hear(rank)
    }

    /// The end of a fetch or save.
    pub(crate) fn moved(&mut self, rank: usize, id: u64) -> Moved {
        loop {
            match self.hear(rank) {
                ToEngine::Moving(_) => {}
                ToEngine::Moved(moved) if moved.id == id => return moved,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Has chunks fetched, and reads all pages of the rank: behind the node's event, or without waiting for anything.
    pub(crate) fn fetch_and_read(&mut self, rank: usize, fetch: Fetch, waits: bool) -> Vec<u8> {
        self.say(rank, fetch);
        let moving = match self.hear(rank) {
            ToEngine::Moving(moving) => moving,
            other => panic!("{other:?}"),
        };
        if waits {
            self.caches[rank].stream.wait_for(&self.events[rank][moving.event as usize]).unwrap();
        }
        self.caches[rank].read()
    }

    /// Has chunks fetched, and reads all pages of the rank behind the node's event; nothing if the fetch fails.
    pub(crate) fn fetch_and_read_if_it_goes(&mut self, rank: usize, fetch: Fetch) -> Option<Vec<u8>> {
        let id = fetch.id;
        match self.ask(rank, fetch) {
            ToEngine::Moving(moving) => {
                self.caches[rank].stream.wait_for(&self.events[rank][moving.event as usize]).unwrap();
                let pages = self.caches[rank].read();
                self.moved(rank, id).ok.then_some(pages)
            }
            ToEngine::Moved(moved) if !moved.ok => None,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read(&self, rank: usize) -> Vec<u8> {
        self.caches[rank].read()
    }

    /// Reads all pages of a rank behind one of the node's events.
    pub(crate) fn read_after(&self, rank: usize, event: u32) -> Vec<u8> {
        self.caches[rank].stream.wait_for(&self.events[rank][event as usize]).unwrap();
        self.caches[rank].read()
    }

    /// Waits until a chunk has come up from disk.
    pub(crate) fn wait_for_chunk(&mut self, number: u64) {
        let ToEngine::Leased(leased) = self.engine.lookup_patiently(number..number + 1) else {
            panic!("chunk {number} is lost")
        };
        self.release(leased.lease);
    }

    /// Every rank has its part of chunks saved, in order; then they are committed.
    pub(crate) fn save_and_commit(&mut self, numbers: std::ops::Range<u64>, blocks: &[u32]) {
        let region_slots: Vec<u32> = (0..(numbers.end - numbers.start) as u32).collect();
        for rank in 0..self.caches.len() {
            let save =
                Save { id: 1, region_slots: region_slots.clone(), blocks: blocks.to_vec(), after: Some(0) };
            self.say(rank, save);
            let moved = self.moved(rank, 1);
            assert!(moved.ok, "{moved:?}");
            let (layout, pages) = (self.caches[rank].setup.layout(), self.noise(rank, self.seed));
            for (number, own) in numbers.clone().zip(blocks.chunks(CHUNK_BLOCKS as usize)) {
                let mut chunk = vec![0; layout.chunk_bytes() as usize];
                reference::gather(&layout, &pages, &mut chunk, own, 0);
                self.saved.insert((rank, number), chunk);
            }
        }
        let commit = self.engine.commit_message(numbers);
        match self.engine.ask(commit) {
            ToEngine::Committed(committed) => {
                assert!(committed.results.0.iter().all(|it| *it == Verdict::Accepted), "{committed:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    /// The engine's processes write chunks into the region themselves, and tell the request's tag.
    pub(crate) fn commit_tagged(&mut self, numbers: std::ops::Range<u64>, tag: u128) {
        (0..).zip(numbers.clone()).for_each(|(slot, number)| self.engine.write(slot, number));
        let count = (numbers.end - numbers.start) as u32;
        let mut commit = self.engine.commit_message(numbers);
        (commit.tag, commit.prompt_tokens) = (Some(Tag(tag)), Some(count * CHUNK_TOKENS + 3));
        assert!(matches!(self.engine.ask(commit), ToEngine::Committed(_)));
    }

    /// The grant that the node pushed: it was there before the stage call was answered.
    pub(crate) fn grant(&mut self) -> Grant {
        // Grants are put aside while the answer to something is awaited.
        self.engine.release(LeaseId(0));
        self.engine.grants.pop().expect("a grant")
    }

    pub(crate) fn release(&mut self, lease: LeaseId) {
        assert!(matches!(self.engine.release(lease), ToEngine::Okay(_)));
    }

    /// A rank's part of a chunk with its proper content.
    pub(crate) fn content(&self, rank: usize, number: u64) -> Vec<u8> {
        let part = self.engine.register.part_bytes as usize;
        let chunk = content(number, self.engine.register.part_bytes * u64::from(self.engine.register.world));
        chunk[rank * part..(rank + 1) * part].to_vec()
    }

    /// What a rank saved of a chunk.
    pub(crate) fn saved(&self, rank: usize, number: u64) -> Vec<u8> {
        self.saved[&(rank, number)].clone()
    }

    /// The engine's processes write chunks into the region themselves.
    pub(crate) fn commit_by_hand(&mut self, numbers: std::ops::Range<u64>) {
        assert!(self.engine.offload(numbers).iter().all(|verdict| *verdict == Verdict::Accepted));
    }

    pub(crate) fn lease(&mut self, numbers: std::ops::Range<u64>) -> Leased {
        self.engine.lease(numbers)
    }

    /// A rank's part of what the node holds of a chunk.
    pub(crate) fn held(&mut self, rank: usize, number: u64) -> Vec<u8> {
        let lease = self.lease(number..number + 1);
        let chunk = self.engine.read(lease.slots[0], lease.generations[0]).expect("it is leased");
        self.engine.release(lease.lease);
        let part = self.engine.register.part_bytes as usize;
        chunk[rank * part..(rank + 1) * part].to_vec()
    }

    /// A rank's part of a region slot.
    pub(crate) fn region(&self, rank: usize, slot: u32) -> Vec<u8> {
        self.engine.region(rank, slot)
    }
}
