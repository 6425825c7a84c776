//! Does all of this work on the GPU of this machine? What an operator asks before trusting it.
//!
//! For each order of a cache, by each kind of name, and by each way a transfer can take: a chunk is loaded into pages
//! and stored back, and every byte is compared, those that must not change too. 64-byte handles are of another process,
//! which compares on its own; pieces are of this one, since the driver lets a process open its own. Then, on a GPU and
//! never on the emulator, how fast each way is beside a plain copy of as many bytes.

mod caches;
mod engine;
mod speed;

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::Arc;

pub use engine::engine;

use crate::device::Device;
use crate::driver::Driver;
use crate::error::GpuError;
use crate::event::{Event, EventHandle};
use crate::imported::{ImportedKv, KvHandle};
use crate::kernels::Kernels;
use crate::layout::Layout;
use crate::memory::{HostBytes, LandingSlab, PinnedRegion};
use crate::plan::{Policy, Way, plan};
use crate::reference;
use crate::stream::CopyStream;
use crate::ticket::Ticket;
use caches::{Scale, blocks, layouts, noise};

/// What the emulator calls its devices; on these nothing is timed.
pub const EMULATOR: &str = "larder emulator";

/// Bytes of a piece, of which a mapped cache has several on a GPU.
const PIECE_BYTES: usize = 20 << 20;

/// Why a self-test could not be done to its end.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// A call of the driver failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The engine's process could not be spoken to, or the report not written.
    #[error("the engine's process, or the report: {0}")]
    Io(#[from] io::Error),
    /// The engine's process said something else than it should.
    #[error("the engine's process said {0:?}")]
    Engine(String),
}

/// A way that a transfer can take.
const WAYS: [(&str, Policy); 3] = [
    ("landing slab and kernel", Policy { run_bytes_min: u64::MAX, runs_max: 0, batch: false }),
    ("a copy for each run", Policy { run_bytes_min: 1, runs_max: 1 << 20, batch: false }),
    ("one batch of copies", Policy { run_bytes_min: 1, runs_max: 1 << 20, batch: true }),
];

/// The node's side.
struct Node {
    device: Device,
    kernels: Arc<Kernels>,
    stream: Arc<CopyStream>,
    memory: Arc<HostBytes>,
    host: Arc<PinnedRegion>,
    slab: Arc<LandingSlab>,
}

impl Node {
    /// With host memory and a slab of `bytes`.
    fn new(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        let memory = HostBytes::new(bytes);
        Ok(Self {
            kernels: Kernels::load(device)?,
            stream: Arc::new(CopyStream::create(device, 0)?),
            host: Arc::new(PinnedRegion::register(device, Arc::clone(&memory) as _)?),
            slab: Arc::new(LandingSlab::create(device, bytes)?),
            memory,
            device: device.clone(),
        })
    }

    fn load(&self, kv: &Arc<ImportedKv>, at: usize, policy: Policy) -> Result<Ticket, GpuError> {
        let (kernels, stream, host, slab) = (&self.kernels, &self.stream, (&self.host, at), (&self.slab, at));
        match plan(kv.layout(), &blocks(), 0, policy) {
            Way::Copies(runs) => Ticket::load_runs(kernels, stream, host, kv, (&runs, policy.batch)),
            Way::Kernel => Ticket::load(kernels, stream, host, slab, kv, (&blocks(), 0)),
        }
    }

    fn store(&self, kv: &Arc<ImportedKv>, at: usize, policy: Policy) -> Result<Ticket, GpuError> {
        let (kernels, stream, host, slab) = (&self.kernels, &self.stream, (&self.host, at), (&self.slab, at));
        match plan(kv.layout(), &blocks(), 0, policy) {
            Way::Copies(runs) => Ticket::store_runs(kernels, stream, kv, (&runs, policy.batch), host),
            Way::Kernel => Ticket::store(kernels, stream, kv, (&blocks(), 0), slab, host),
        }
    }

    /// Stores what was loaded, and gives back how many bytes are not as they were.
    fn stored_wrong(&self, kv: &Arc<ImportedKv>, policy: Policy) -> Result<usize, GpuError> {
        let bytes = kv.layout().chunk_bytes() as usize;
        let at = bytes.next_multiple_of(16);
        self.memory.write(at, &vec![0; bytes]);
        self.store(kv, at, policy)?.wait()?;
        Ok(differences(&self.memory.read(at, bytes), &noise(1, bytes)))
    }
}

fn differences(found: &[u8], expected: &[u8]) -> usize {
    found.iter().zip(expected).filter(|(a, b)| a != b).count() + found.len().abs_diff(expected.len())
}

/// The engine's process, spoken to over its standard input and output.
struct Engine {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Engine {
    fn ask(&mut self, line: &str) -> Result<String, SelftestError> {
        writeln!(self.to, "{line}")?;
        let mut answer = String::new();
        self.from.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

/// Runs all of it on `device`; `engine` is a process that runs [`engine()`], with its standard input and output piped.
/// Gives back how many checks failed.
///
/// # Errors
/// A check could not be made.
pub fn run(
    driver: &Driver,
    device: &Device,
    engine: &mut Child,
    report: &mut dyn Write,
) -> Result<usize, SelftestError> {
    let name = device.name()?;
    let on_emulator = name == EMULATOR;
    let version = (driver.version() / 1000, driver.version() % 1000 / 10);
    writeln!(report, "device: {name}, {}, CUDA {}.{}", device.uuid(), version.0, version.1)?;
    let (Some(to), Some(from)) = (engine.stdin.take(), engine.stdout.take()) else {
        return Err(SelftestError::Engine("nothing, since it is not piped".to_owned()));
    };
    let mut engine = Engine { to, from: BufReader::new(from) };
    let scale = if on_emulator { Scale::Emulator } else { Scale::Gpu };
    let mut failed = 0;
    for layout in layouts(scale) {
        let chunk = layout.chunk_bytes() as usize;
        // Two chunks, and all of the cache.
        let room = chunk.next_multiple_of(16) * 2;
        let node = Node::new(device, room.max(layout.cache_bytes() as usize))?;
        failed += handles(driver, &node, &layout, scale, &mut engine, report)?;
        failed += pieces(driver, &node, &layout, report)?;
        failed += sums(&node, chunk, report)?;
        if !on_emulator {
            speed::measure(driver, &node, &layout, report)?;
        }
    }
    if on_emulator {
        writeln!(report, "speed: not measured, since this is the emulator")?;
    }
    writeln!(report, "{failed} failed")?;
    Ok(failed)
}

/// One line of the report, and whether it is a failure.
fn say(report: &mut dyn Write, layout: &Layout, what: &str, wrong: usize) -> Result<usize, SelftestError> {
    let how = if wrong == 0 { "ok".to_owned() } else { format!("{wrong} bytes are wrong") };
    writeln!(report, "{:?}, {what}: {how}", layout.order())?;
    Ok(usize::from(wrong > 0))
}

/// The ways that this driver has.
fn ways(driver: &Driver) -> impl Iterator<Item = (&'static str, Policy)> {
    let batch = driver.has_batch_copies();
    WAYS.into_iter().filter(move |(_, policy)| batch || !policy.batch)
}

/// Another process's cache, by its handle, ordered by events both ways.
fn handles(
    driver: &Driver,
    node: &Node,
    layout: &Layout,
    scale: Scale,
    engine: &mut Engine,
    report: &mut dyn Write,
) -> Result<usize, SelftestError> {
    let mut failed = 0;
    for (name, policy) in ways(driver) {
        let answer = engine.ask(&format!("cache {} {}", layout.order() as usize, scale as usize))?;
        let handles = answer.split_once(' ').and_then(|(kv, event)| Some((unhex(kv)?, unhex(event)?)));
        let (handle, event) = handles.ok_or(SelftestError::Engine(answer))?;
        let part = KvHandle { handle, offset: 0, bytes: layout.cache_bytes() };
        let kv = Arc::new(ImportedKv::open(&node.device, vec![part.into()], layout.clone())?);
        let filled = Event::open(&node.device, EventHandle(event))?;
        node.stream.wait_for(&filled)?;
        node.memory.write(0, &noise(1, layout.chunk_bytes() as usize));
        let ticket = node.load(&kv, 0, policy)?;
        let answer = engine.ask(&format!("check {}", hex(&ticket.event().export()?.0)))?;
        let wrong = answer.parse().map_err(|_| SelftestError::Engine(answer))?;
        ticket.wait()?;
        failed += say(report, layout, &format!("another process's pages, load by {name}"), wrong)?;
        let wrong = node.stored_wrong(&kv, policy)?;
        failed += say(report, layout, &format!("another process's pages, store by {name}"), wrong)?;
        drop(kv);
        engine.ask("free")?;
    }
    Ok(failed)
}

/// A cache of mapped pieces, by their descriptors.
fn pieces(
    driver: &Driver,
    node: &Node,
    layout: &Layout,
    report: &mut dyn Write,
) -> Result<usize, SelftestError> {
    let mut failed = 0;
    let bytes = layout.cache_bytes() as usize;
    let cache = Arc::new(LandingSlab::map(&node.device, bytes, PIECE_BYTES)?);
    let kv = Arc::new(ImportedKv::open(&node.device, vec![cache.export()?], layout.clone())?);
    let Node { kernels, stream, host, memory, .. } = node;
    for (name, policy) in ways(driver) {
        memory.write(0, &noise(77, bytes));
        Ticket::copy_in(kernels, stream, (host, 0), (&cache, 0), bytes)?.wait()?;
        memory.write(0, &noise(1, layout.chunk_bytes() as usize));
        node.load(&kv, 0, policy)?.wait()?;
        let wrong = node.stored_wrong(&kv, policy)?;
        failed += say(report, layout, &format!("mapped pieces, store by {name}"), wrong)?;
        Ticket::copy_out(kernels, stream, (&cache, 0), (host, 0), bytes)?.wait()?;
        let wrong = differences(&memory.read(0, bytes), &caches::expected(layout));
        failed += say(report, layout, &format!("mapped pieces, load by {name}"), wrong)?;
    }
    Ok(failed)
}

/// A chunk's sums, made on the device of what is in the slab.
fn sums(node: &Node, chunk: usize, report: &mut dyn Write) -> Result<usize, SelftestError> {
    let Node { kernels, stream, host, slab, memory, .. } = node;
    let bytes = noise(1, chunk);
    memory.write(0, &bytes);
    Ticket::copy_in(kernels, stream, (host, 0), (slab, 0), chunk)?.wait()?;
    let (at, length) = (chunk.next_multiple_of(16), chunk.div_ceil(reference::PIECE_BYTES) * 8);
    Ticket::checksum(kernels, stream, slab, (0, chunk), at)?.wait()?;
    Ticket::copy_out(kernels, stream, (slab, at), (host, at), length)?.wait()?;
    let expected: Vec<u8> = reference::checksum(&bytes).into_iter().flat_map(u64::to_le_bytes).collect();
    let wrong = differences(&memory.read(at, length), &expected);
    let how = if wrong == 0 { "ok".to_owned() } else { format!("{wrong} bytes of the sums are wrong") };
    writeln!(report, "checksum of {chunk} bytes on the device: {how}")?;
    Ok(usize::from(wrong > 0))
}

fn hex(bytes: &[u8; 64]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}
