//! The engine's process: this program again, told by the environment to be it.
//!
//! It allocates a KV cache, hands out its names, and answers a line with a line:
//! `read HANDLE..` waits in its stream for the node's events, copies the cache out, and says `queued`; `peek` copies it
//! without waiting for anything, and says how many bytes are not as they should be; `compare` says so of what
//! was read; `fill SEED` fills the cache; `write SEED` begins to, which ends after `go`, and says the event of its end.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use larder_kernels::{Event, EventHandle, GpuError, ImportedKv, KvPart, LandingSlab, Layout, Order, Ticket};
use larder_kernels::{KvHandle, KvPieces, Layer, Piece, reference};

use crate::world::{PATIENCE, Side, emulator, noise, receive, send};

const SOCKET: &str = "LARDER_TEST_ENGINE";
const SETUP: &str = "LARDER_TEST_ENGINE_SETUP";

/// Bytes of a piece of mapped memory: what the emulator, and every device so far, gives at least.
const PIECE: usize = 2 << 20;

/// How an engine's process holds its cache.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) order: Order,
    /// Named by descriptors of pieces, and not by 64-byte handles.
    pub(crate) mapped: bool,
    /// Bytes of each allocation's part of the cache.
    pub(crate) parts: Vec<usize>,
}

pub(crate) const ORDERS: [Order; 3] = [Order::LayerFirst, Order::BlockFirst, Order::Latent];

impl Setup {
    /// The caches of the proof.
    pub(crate) fn of(order: Order, mapped: bool) -> Self {
        let parts = match order {
            Order::LayerFirst => vec![8192, 8192],
            Order::BlockFirst => vec![272_384],
            Order::Latent => vec![16_384, 4096],
        };
        Self { order, mapped, parts }
    }

    /// Each order, by each kind of name.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        ORDERS.into_iter().flat_map(|order| [false, true].map(|mapped| Self::of(order, mapped)))
    }

    /// One plain allocation.
    pub(crate) fn plain(bytes: usize) -> Self {
        Self { order: Order::LayerFirst, mapped: false, parts: vec![bytes] }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().sum()
    }

    /// Where a part begins in its allocation: a tensor rarely begins where its allocation does, and of mapped memory
    /// the part must lie in two pieces.
    fn offset(&self) -> usize {
        if self.mapped { PIECE - 3072 } else { 512 }
    }

    /// What `engine.py` is told.
    pub(crate) fn arguments(&self) -> [String; 3] {
        let parts: Vec<String> = self.parts.iter().map(usize::to_string).collect();
        [u8::from(self.mapped).to_string(), self.offset().to_string(), parts.join(",")]
    }

    pub(crate) fn text(&self) -> String {
        let parts: Vec<String> = self.parts.iter().map(usize::to_string).collect();
        format!("{} {} {}", self.order as usize, u8::from(self.mapped), parts.join(","))
    }

    pub(crate) fn read(text: &str) -> Self {
        let [order, mapped, parts] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
        let order = ORDERS[order.parse::<usize>().unwrap()];
        let parts = parts.split(',').map(|part| part.parse().unwrap()).collect();
        Self { order, mapped: mapped == "1", parts }
    }
}

/// What both sides know of the layer-first cache: pages of three sizes, one of which never lies at a multiple of 16.
pub(crate) fn layout() -> Layout {
    layout_of(Order::LayerFirst)
}

/// What both sides know: 16 blocks, of which 4 make a chunk.
pub(crate) fn layout_of(order: Order) -> Layout {
    let layers = match order {
        Order::LayerFirst => {
            vec![Layer::new(0, 256, 256), Layer::new(4096, 128, 112), Layer::new(8192 + 8, 41, 37)]
        }
        // Two tiles of a block, and each second block of a chunk at no multiple of 16.
        Order::BlockFirst => vec![Layer::new(32, 17_008, 17_000)],
        Order::Latent => vec![Layer::latent(0, 960, 6, 144, 160), Layer::latent(16_384, 200, 6, 33, 33)],
    };
    let bytes = Setup::of(order, false).bytes();
    Layout::new(order, layers, 16, 4, bytes as u64).unwrap()
}

/// The chunks of the proof: into which blocks, and from which block of the chunk on.
pub(crate) const CHUNKS: [(&[u32], u32); 3] = [(&[5, 2, 15, 0], 0), (&[7, 8], 2), (&[1, 3, 12], 0)];

/// What the cache must hold when all chunks are in it.
pub(crate) fn expected(setup: &Setup) -> Vec<u8> {
    let layout = layout_of(setup.order);
    let mut cache = noise(77, setup.bytes());
    for (seed, (blocks, first)) in (1..).zip(CHUNKS) {
        let chunk = noise(seed, layout.chunk_bytes() as usize);
        reference::scatter(&layout, &chunk, &mut cache, blocks, first);
    }
    cache
}

/// The engine's cache, and how it is copied.
pub(crate) struct Cache {
    pub(crate) side: Side,
    setup: Setup,
    slabs: Vec<Arc<LandingSlab>>,
}

impl Cache {
    pub(crate) fn create(setup: Setup) -> Self {
        let side = Side::new(setup.bytes()).unwrap();
        let slab = |bytes: &usize| {
            let bytes = setup.offset() + bytes;
            let slab = if setup.mapped {
                LandingSlab::map(&side.device, bytes, PIECE)
            } else {
                LandingSlab::create(&side.device, bytes)
            };
            Arc::new(slab.unwrap())
        };
        let slabs = setup.parts.iter().map(slab).collect();
        Self { side, setup, slabs }
    }

    fn copy(&self, into: bool) -> Vec<Ticket> {
        let Side { kernels, stream, host, .. } = &self.side;
        let mut at = 0;
        let parts = self.slabs.iter().zip(&self.setup.parts);
        let copies = parts.map(|(slab, bytes)| {
            let (slab, host) = ((slab, self.setup.offset()), (host, at));
            at += bytes;
            if into {
                Ticket::copy_in(kernels, stream, host, slab, *bytes).unwrap()
            } else {
                Ticket::copy_out(kernels, stream, slab, host, *bytes).unwrap()
            }
        });
        copies.collect()
    }

    /// Fills it with bytes of a seed.
    pub(crate) fn fill(&self, seed: u64) -> Vec<Ticket> {
        self.side.bytes.write(0, &noise(seed, self.setup.bytes()));
        self.copy(true)
    }

    /// How many bytes of what was copied out are not as they should be.
    pub(crate) fn wrong(&self) -> usize {
        let found = self.side.bytes.read(0, self.setup.bytes());
        found.iter().zip(expected(&self.setup)).filter(|(a, b)| **a != *b).count()
    }

    pub(crate) fn read(&self) {
        self.copy(false).into_iter().for_each(|ticket| ticket.wait().unwrap());
    }

    /// Its names, as text and descriptors.
    pub(crate) fn names(&self) -> (String, Vec<OwnedFd>) {
        let (mut text, mut descriptors) = (Vec::new(), Vec::new());
        for slab in &self.slabs {
            match slab.export().unwrap() {
                KvPart::Handle(name) => text.push(hex(&name.handle)),
                KvPart::Pieces(name) => {
                    text.push(format!("{}x{}", name.pieces.len(), name.pieces[0].bytes));
                    descriptors.extend(name.pieces.into_iter().map(|piece| piece.fd));
                }
            }
        }
        (text.join(" "), descriptors)
    }
}

/// Names that came from another process.
#[derive(Debug)]
pub(crate) struct Names {
    setup: Setup,
    text: String,
    descriptors: Vec<OwnedFd>,
}

impl Names {
    pub(crate) fn new(setup: Setup, text: &str, descriptors: Vec<OwnedFd>) -> Self {
        Self { setup, text: text.to_owned(), descriptors }
    }

    /// The parts of the cache, to be opened; as often as one likes.
    pub(crate) fn parts(&self) -> Vec<KvPart> {
        let mut descriptors = self.descriptors.iter();
        let offset = self.setup.offset() as u64;
        let parts = self.text.split_whitespace().zip(&self.setup.parts);
        let named = parts.map(|(name, bytes)| {
            let bytes = *bytes as u64;
            let Some((count, size)) = name.split_once('x') else {
                return KvPart::from(KvHandle { handle: unhex(name), offset, bytes });
            };
            let own = descriptors.by_ref().take(count.parse().unwrap());
            let piece = |fd: &OwnedFd| Piece { fd: fd.try_clone().unwrap(), bytes: size.parse().unwrap() };
            KvPieces { pieces: own.map(piece).collect(), offset, bytes }.into()
        });
        named.collect()
    }
}

/// Runs only as the engine's process.
#[test]
fn engine_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let to = UnixStream::connect(socket).unwrap();
    let mut from = BufReader::new(to.try_clone().unwrap());
    let emulator = emulator();
    let cache = Cache::create(Setup::read(&std::env::var(SETUP).unwrap()));
    let written = Event::create(&cache.side.device).unwrap();
    let fill = cache.fill(77);
    cache.side.stream.record(&written).unwrap();
    let (names, descriptors) = cache.names();
    let event = hex(&written.export().unwrap().0);
    send(&to, &format!("{names}|{event}|{}", cache.side.device.name().unwrap()), &descriptors);
    fill.into_iter().for_each(|ticket| ticket.wait().unwrap());
    let (mut reading, mut writing) = (None, Vec::new());
    let mut line = String::new();
    while from.read_line(&mut line).unwrap() > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["read", ..] => {
                let open =
                    |handle: &&str| Event::open(&cache.side.device, EventHandle(unhex(handle))).unwrap();
                let events: Vec<Event> = words[1..].iter().map(open).collect();
                events.iter().for_each(|event| cache.side.stream.wait_for(event).unwrap());
                reading = Some((cache.copy(false), events));
                "queued".to_owned()
            }
            ["peek"] => {
                cache.read();
                cache.wrong().to_string()
            }
            ["compare"] => {
                let (tickets, events) = reading.take().unwrap();
                tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
                drop(events);
                cache.wrong().to_string()
            }
            ["write", seed] => {
                emulator.controls.hold(true);
                writing = cache.fill(seed.parse().unwrap());
                cache.side.stream.record(&written).unwrap();
                event.clone()
            }
            ["go"] => {
                emulator.controls.hold(false);
                writing.drain(..).for_each(|ticket| ticket.wait().unwrap());
                "gone".to_owned()
            }
            ["fill", seed] => {
                let fill = cache.fill(seed.parse().unwrap());
                fill.into_iter().for_each(|ticket| ticket.wait().unwrap());
                "filled".to_owned()
            }
            _ => panic!("{line}"),
        };
        writeln!(&to, "{answer}").unwrap();
        line.clear();
    }
}

/// The node's hold on an engine's process.
pub(crate) struct Engine {
    pub(crate) process: Child,
    from: BufReader<UnixStream>,
    pub(crate) names: Names,
    pub(crate) written: EventHandle,
    /// What it ran on.
    pub(crate) device: String,
}

impl Engine {
    pub(crate) fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "engine::engine_process", "--nocapture", "--quiet"]);
        command.env(SOCKET, &socket).env(SETUP, setup.text());
        Self::start_by(setup, &socket, command)
    }

    /// Starts it by a command, which connects to the socket and says its cache's names.
    pub(crate) fn start_by(setup: Setup, socket: &Path, mut command: Command) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut process = command.spawn().unwrap();
        let stream = loop {
            if let Ok((stream, _)) = listener.accept() {
                break stream;
            }
            assert_eq!(process.try_wait().unwrap(), None, "the engine ended before it said a word");
            std::thread::sleep(Duration::from_millis(1));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (text, descriptors) = receive(&stream);
        let [names, written, device] = text.split('|').collect::<Vec<_>>()[..] else { panic!("{text}") };
        let names = Names::new(setup, names, descriptors);
        let (written, device) = (EventHandle(unhex(written)), device.to_owned());
        Self { process, from: BufReader::new(stream), names, written, device }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.from.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// Kills it, without a word to it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn hex(bytes: &[u8; 64]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> [u8; 64] {
    assert_eq!(text.len(), 128, "{text}");
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

/// The node's part: opens the engine's cache and event, and makes its stream wait for what the engine wrote.
pub(crate) fn open(node: &Side, engine: &Engine) -> Result<Arc<ImportedKv>, GpuError> {
    let layout = layout_of(engine.names.setup.order);
    let kv = ImportedKv::open(&node.device, engine.names.parts(), layout)?;
    node.stream.wait_for(&Event::open(&node.device, engine.written)?)?;
    Ok(Arc::new(kv))
}
