//! `kill -9` of either process in the middle of a copy: the other neither hangs nor loses anything of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::Arc;

use larder_kernels::{Event, EventHandle, ImportedKv, Order, Ticket, reference};

use crate::engine::{CHUNKS, Cache, Engine, Names, Setup, hex, layout_of, open, unhex};
use crate::world::{Emulator, PATIENCE, Side, emulator, noise, only_emulator, receive, send};

const SOCKET: &str = "LARDER_TEST_NODE";

/// Loads chunk `index` into the engine's pages.
fn load(node: &Side, kv: &Arc<ImportedKv>, index: usize) -> Ticket {
    let bytes = kv.layout().chunk_bytes() as usize;
    let at = index * bytes.next_multiple_of(16);
    node.bytes.write(at, &noise(index as u64 + 1, bytes));
    let (blocks, first) = CHUNKS[index];
    Ticket::load(&node.kernels, &node.stream, (&node.host, at), (&node.slab, at), kv, (blocks, first))
        .unwrap()
}

/// Runs only as a node's process: gets an engine's names, and loads a chunk for each line `load INDEX`, or `hang INDEX`:
/// it has begun, and never ends.
#[test]
fn node_process() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let to = UnixStream::connect(socket).unwrap();
    let (text, descriptors) = receive(&to);
    let (setup, names) = text.split_once('|').unwrap();
    let (emulator, setup) = (emulator(), Setup::read(setup));
    let layout = layout_of(setup.order);
    let node = Side::new(layout.chunk_bytes().next_multiple_of(16) as usize * CHUNKS.len()).unwrap();
    let names = Names::new(setup, names, descriptors);
    let kv = Arc::new(ImportedKv::open(&node.device, names.parts(), layout).unwrap());
    // Only now may more be sent: what comes right behind the names could be read together with them.
    writeln!(&to, "ready").unwrap();
    let mut tickets = Vec::new();
    for line in BufReader::new(&to).lines() {
        let line = line.unwrap();
        let (how, index) = line.split_once(' ').unwrap();
        emulator.controls.hold(how == "hang");
        let ticket = load(&node, &kv, index.parse().unwrap());
        writeln!(&to, "{}", hex(&ticket.event().export().unwrap().0)).unwrap();
        tickets.push(ticket);
    }
}

/// The engine's hold on a node's process.
struct Node {
    process: Child,
    from: BufReader<UnixStream>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(cache: &Cache, setup: &Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("node");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "killed::node_process", "--nocapture", "--quiet"]);
        let process = command.env(SOCKET, &socket).spawn().unwrap();
        let stream = listener.accept().unwrap().0;
        let (names, descriptors) = cache.names();
        send(&stream, &format!("{}|{names}", setup.text()), &descriptors);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut node = Self { process, from: BufReader::new(stream), _dir: dir };
        assert_eq!(node.line(), "ready");
        node
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// The event of a load that has begun.
    fn ask(&mut self, cache: &Cache, line: &str) -> Event {
        writeln!(self.from.get_mut(), "{line}").unwrap();
        Event::open(&cache.side.device, EventHandle(unhex(&self.line()))).unwrap()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the engine has in its cache after the node's first `chunks` loads.
fn held(cache: &Cache, setup: &Setup, chunks: usize) -> bool {
    let layout = layout_of(setup.order);
    let mut expected = noise(77, setup.bytes());
    for (seed, (blocks, first)) in (1..).zip(CHUNKS).take(chunks) {
        let chunk = noise(seed, layout.chunk_bytes() as usize);
        reference::scatter(&layout, &chunk, &mut expected, blocks, first);
    }
    cache.read();
    cache.side.bytes.read(0, setup.bytes()) == expected
}

fn a_node_killed(_emulator: &Emulator, setup: Setup) {
    let cache = Cache::create(setup.clone());
    cache.fill(77).into_iter().for_each(|ticket| ticket.wait().unwrap());
    let mut node = Node::start(&cache, &setup);
    cache.side.stream.wait_for(&node.ask(&cache, "load 0")).unwrap();
    assert!(held(&cache, &setup, 1), "the first load is there");
    cache.side.stream.wait_for(&node.ask(&cache, "hang 1")).unwrap();
    node.kill();
    // The engine's stream does not wait for the dead, and nothing but the first chunk has changed.
    assert!(held(&cache, &setup, 1), "{setup:?}");

    // The next node, which knows nothing of the first, loads what was lost.
    let mut node = Node::start(&cache, &setup);
    for index in 0..CHUNKS.len() {
        cache.side.stream.wait_for(&node.ask(&cache, &format!("load {index}"))).unwrap();
    }
    assert!(held(&cache, &setup, CHUNKS.len()), "{setup:?}");
    assert_eq!(cache.wrong(), 0);
    node.kill();
}

#[test]
fn a_node_killed_in_mid_copy_takes_nothing_of_the_engines_with_it() {
    let Some(emulator) = only_emulator() else { return };
    let before = emulator.controls.left();
    Setup::all().for_each(|setup| a_node_killed(&emulator, setup));
    assert_eq!(emulator.controls.left(), before, "all of it was given back");
}

#[test]
fn an_engine_killed_in_mid_copy_takes_nothing_of_the_nodes_with_it() {
    for mapped in [false, true] {
        let emulator = emulator();
        let before = emulator.controls.left();
        let setup = Setup::of(Order::LayerFirst, mapped);
        let mut engine = Engine::start(setup.clone());
        let bytes = layout_of(setup.order).chunk_bytes() as usize;
        let node = Side::new(bytes.next_multiple_of(16) * CHUNKS.len()).unwrap();
        let kv = open(&node, &engine).unwrap();
        emulator.controls.hold(true);
        let ticket = load(&node, &kv, 0);
        engine.kill();
        emulator.controls.hold(false);
        // The mapping outlives its maker, so the copy ends like any other.
        ticket.wait().unwrap();
        load(&node, &kv, 1).wait().unwrap();
        assert_eq!(node.bytes.read(0, bytes), noise(1, bytes), "the chunk is still the node's");
        drop(kv);
        // A handle names nothing any more. A descriptor, while anybody has it, keeps the memory; its event is gone.
        assert!(open(&node, &engine).is_err());
        drop(node);
        assert_eq!(emulator.controls.left(), before, "all of it was given back");

        // The engine's next run registers anew.
        let engine = Engine::start(setup);
        let node = Side::new(bytes).unwrap();
        load(&node, &open(&node, &engine).unwrap(), 0).wait().unwrap();
    }
}
