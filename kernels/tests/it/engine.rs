//! The engine's process: this program again, told by the environment to be it.
//!
//! It allocates a KV cache, hands out its handle, and answers a line with a line:
//! `read HANDLE` waits in its stream for the node's event, copies the cache out, and says `queued`; `peek` copies it
//! without waiting for anything, and says how many bytes are not as they should be; `compare` says so of what
//! was read; `send BYTES SEED` fills the cache.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::Arc;

use larder_kernels::{Event, EventHandle, KvHandle, Layer, Layout, Order, Ticket, reference};

use crate::world::{Side, noise};

const SOCKET: &str = "LARDER_TEST_ENGINE";
const BYTES: &str = "LARDER_TEST_ENGINE_BYTES";

/// What both sides know: pages of three sizes, one of which never lies at a multiple of 16.
pub(crate) fn layout() -> Layout {
    let layers =
        vec![Layer::new(0, 256, 256), Layer::new(16 * 256, 128, 112), Layer::new(16 * 384 + 8, 41, 37)];
    Layout::new(Order::LayerFirst, layers, 16, 4, 8192).unwrap()
}

/// The chunks of the proof: into which blocks, and from which block of the chunk on.
pub(crate) const CHUNKS: [(&[u32], u32); 3] = [(&[5, 2, 15, 0], 0), (&[7, 8], 2), (&[1, 3, 12], 0)];

/// What the cache must hold when all chunks are in it.
fn expected() -> Vec<u8> {
    let layout = layout();
    let mut cache = background();
    for (seed, (blocks, first)) in (1..).zip(CHUNKS) {
        let chunk = noise(seed, layout.chunk_bytes() as usize);
        reference::scatter(&layout, &chunk, &mut cache, blocks, first);
    }
    cache
}

/// What the engine had written before.
pub(crate) fn background() -> Vec<u8> {
    noise(77, layout().cache_bytes() as usize)
}

/// Runs only as the engine's process.
#[test]
fn engine_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let bytes = std::env::var(BYTES).unwrap().parse().unwrap();
    let mut to = UnixStream::connect(socket).unwrap();
    let from = BufReader::new(to.try_clone().unwrap());
    let engine = Side::new(bytes).unwrap();
    let written = Event::create(&engine.device).unwrap();
    engine.bytes.write(0, &noise(77, bytes));
    let fill = copy(&engine, bytes, true);
    engine.stream.record(&written).unwrap();
    let kv = engine.slab.export().unwrap();
    writeln!(
        to,
        "{} {} {}",
        hex(&kv.handle),
        hex(&written.export().unwrap().0),
        engine.device.name().unwrap()
    )
    .unwrap();
    fill.wait().unwrap();
    let mut reading = None;
    for line in from.lines() {
        let line = line.unwrap();
        let wrong = || {
            let found = engine.bytes.read(0, bytes);
            format!("{}", found.iter().zip(expected()).filter(|(a, b)| **a != *b).count())
        };
        let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["read", handle] => {
                let event = Event::open(&engine.device, EventHandle(unhex(handle))).unwrap();
                engine.stream.wait_for(&event).unwrap();
                reading = Some((copy(&engine, bytes, false), event));
                "queued".to_owned()
            }
            ["peek"] => {
                copy(&engine, bytes, false).wait().unwrap();
                wrong()
            }
            ["compare"] => {
                let (ticket, event): (Ticket, Event) = reading.take().unwrap();
                ticket.wait().unwrap();
                drop(event);
                wrong()
            }
            ["fill", seed] => {
                engine.bytes.write(0, &noise(seed.parse().unwrap(), bytes));
                copy(&engine, bytes, true).wait().unwrap();
                "filled".to_owned()
            }
            _ => panic!("{line}"),
        };
        writeln!(to, "{answer}").unwrap();
    }
}

fn copy(engine: &Side, bytes: usize, into: bool) -> Ticket {
    let (slab, host) = ((&engine.slab, 0), (&engine.host, 0));
    if into {
        Ticket::copy_in(&engine.kernels, &engine.stream, host, slab, bytes).unwrap()
    } else {
        Ticket::copy_out(&engine.kernels, &engine.stream, slab, host, bytes).unwrap()
    }
}

/// The node's hold on an engine's process.
pub(crate) struct Engine {
    pub(crate) process: Child,
    from: BufReader<UnixStream>,
    pub(crate) kv: KvHandle,
    pub(crate) written: EventHandle,
    /// What it ran on.
    pub(crate) device: String,
    _dir: tempfile::TempDir,
}

impl Engine {
    pub(crate) fn start(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "engine::engine_process", "--nocapture", "--quiet"]);
        let process = command.env(SOCKET, &socket).env(BYTES, bytes.to_string()).spawn().unwrap();
        let mut from = BufReader::new(listener.accept().unwrap().0);
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let (handle, rest) = line.trim().split_once(' ').unwrap();
        let (written, device) = rest.split_once(' ').unwrap();
        let kv = KvHandle { handle: unhex(handle), offset: 0, bytes: bytes as u64 };
        let (written, device) = (EventHandle(unhex(written)), device.to_owned());
        Self { process, from, kv, written, device, _dir: dir }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.from.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
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

fn unhex(text: &str) -> [u8; 64] {
    assert_eq!(text.len(), 128, "{text}");
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

/// The node's part: opens the engine's cache and event, and makes its stream wait for what the engine wrote.
pub(crate) fn open(
    node: &Side,
    engine: &Engine,
) -> Result<Arc<larder_kernels::ImportedKv>, larder_kernels::GpuError> {
    let kv = larder_kernels::ImportedKv::open(&node.device, engine.kv, layout())?;
    node.stream.wait_for(&Event::open(&node.device, engine.written)?)?;
    Ok(Arc::new(kv))
}
