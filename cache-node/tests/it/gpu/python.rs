//! The node and pages that a process in Python owns, on NVIDIA's own bindings, as real engines are: it has the pages and
//! waits for the node's events, this process speaks for it.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};

use larder_emulator::library;
use larder_kernels::{Driver, reference};
use larder_protocol::frame::frame;
use larder_protocol::message::{Attach, Fetch, Register};
use larder_protocol::{DeviceId, GpuHandle, ToEngine, ToNode};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::cache::{CHUNK_BLOCKS, Setup, noise};
use super::engine::{node, turn};
use crate::engine::{Engine, content, owned, register};
use crate::node::PATIENCE;

/// Names a Python that has cuda-bindings.
const PYTHON: &str = "LARDER_TEST_PYTHON";

/// The process that owns the pages.
struct Pages {
    process: Child,
    from: BufReader<UnixStream>,
    attach: Attach,
    descriptors: Vec<OwnedFd>,
    directory: tempfile::TempDir,
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn unhex(text: &str) -> GpuHandle {
    GpuHandle(std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()))
}

/// Its first line, with descriptors.
fn receive(from: &UnixStream) -> (String, Vec<OwnedFd>) {
    let (mut line, mut room) = (vec![0; 16 << 10], nix::cmsg_space!([i32; 32]));
    let mut parts = [IoSliceMut::new(&mut line)];
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            descriptors.extend(raw.into_iter().map(owned));
        }
    }
    let bytes = message.bytes;
    (String::from_utf8(line[..bytes].to_vec()).unwrap().trim().to_owned(), descriptors)
}

impl Pages {
    /// Starts it; its pages hold noise of seed 1.
    fn start(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (socket, first) = (directory.path().join("engine"), directory.path().join("first"));
        std::fs::write(&first, noise(1, setup.bytes())).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let python =
            std::env::var(PYTHON).unwrap_or_else(|_| panic!("{PYTHON} names a Python with cuda-bindings"));
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/tests/it/engine.py"));
        command.arg(&socket).arg(&first).args(setup.arguments());
        // The bindings open libcuda.so.1 by that name and no other.
        std::os::unix::fs::symlink(library().unwrap(), directory.path().join("libcuda.so.1")).unwrap();
        command.env("LD_LIBRARY_PATH", directory.path());
        let process = command.spawn().unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (text, descriptors) = receive(&stream);
        let [names, written, _device] = text.split('|').collect::<Vec<_>>()[..] else { panic!("{text}") };
        let driver = Driver::load_from(Some(&library().unwrap())).unwrap();
        // It takes the last.
        let device = DeviceId::from_bytes(driver.devices().unwrap().last().unwrap().0);
        let mut attach = Attach { device, events: vec![unhex(written)], ..setup.attach() };
        for name in names.split(' ') {
            match name.split_once('x') {
                None => {
                    attach.part_pieces.push(0);
                    attach.handles.push(unhex(name));
                }
                Some((count, bytes)) => {
                    let count: u32 = count.parse().unwrap();
                    attach.part_pieces.push(count);
                    attach.piece_bytes.extend((0..count).map(|_| bytes.parse::<u64>().unwrap()));
                }
            }
        }
        Self { process, from: BufReader::new(stream), attach, descriptors, directory }
    }

    fn ask(&mut self, line: &str) {
        writeln!(self.from.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }

    /// All its bytes, as it read them.
    fn dump(&mut self) -> Vec<u8> {
        let file = self.directory.path().join("last");
        self.ask(&format!("dump {}", file.display()));
        std::fs::read(file).unwrap()
    }
}

/// How many bytes the process in Python found otherwise than they must be.
fn wrong_bytes(setup: &Setup, waits: bool) -> usize {
    let _turn = turn();
    let node = node("", &[]);
    let bytes = setup.layout().chunk_bytes();
    let register = Register { blocks_per_chunk: CHUNK_BLOCKS, ..register(bytes, 1, 1) };
    let mut engine = Engine::connect_speaking(&node.node.socket(), "a", register, &[1, 2, 3]);
    engine.offload(1..2);
    let mut pages = Pages::start(setup);
    let raw: Vec<i32> = pages.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = frame(&ToNode::from(pages.attach.clone()).encode());
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let worker = engine.workers[0].wire.stream.as_raw_fd();
    sendmsg::<()>(worker, &[IoSlice::new(&sent)], rights, MsgFlags::empty(), None).unwrap();
    let events = match engine.workers[0].wire.hear() {
        Some(ToEngine::Attached(attached)) => attached.events,
        other => panic!("{other:?}"),
    };
    node.node.wait_for_least("gpu_pinned_bytes", engine.registered.slab_bytes);
    let lease = engine.lease(1..2).lease;
    let blocks = vec![3, 4, 6, 10];
    // Nothing moves before it has queued its read.
    node.knobs("hold");
    engine.workers[0].wire.say(Fetch { id: 5, lease, first: 0, skip: 0, blocks, after: Some(0) });
    let Some(ToEngine::Moving(moving)) = engine.workers[0].wire.hear() else { panic!("it has begun") };
    let found = if waits {
        let handle: String =
            events[moving.event as usize].0.iter().map(|byte| format!("{byte:02x}")).collect();
        pages.ask(&format!("read {handle}"));
        node.knobs("");
        pages.dump()
    } else {
        pages.ask("read");
        let found = pages.dump();
        node.knobs("");
        found
    };
    match engine.workers[0].wire.hear() {
        Some(ToEngine::Moved(moved)) => assert!(moved.ok, "{moved:?}"),
        other => panic!("{other:?}"),
    }
    let mut expected = noise(1, setup.bytes());
    reference::scatter(&setup.layout(), &content(1, bytes), &mut expected, &[3, 4, 6, 10], 0);
    found.iter().zip(expected).filter(|(one, other)| **one != *other).count()
}

#[test]
#[ignore = "needs a Python with cuda-bindings: tests/run --gpu-toolchain"]
fn a_node_loads_into_pages_of_a_process_in_python() {
    for setup in Setup::all() {
        assert_eq!(wrong_bytes(&setup, true), 0, "{setup:?}");
    }
}

#[test]
#[ignore = "needs a Python with cuda-bindings: tests/run --gpu-toolchain"]
fn control_a_dropped_wait_of_a_process_in_python_is_found() {
    for setup in Setup::all() {
        assert!(wrong_bytes(&setup, false) > setup.layout().chunk_bytes() as usize * 9 / 10, "{setup:?}");
    }
}
