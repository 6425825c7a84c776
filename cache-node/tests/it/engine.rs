//! A fake engine of any number of ranks: real codec, real socket, real descriptors.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use larder_protocol::frame::frame;
use larder_protocol::message::{
    Commit, Complete, Grant, Hello, Leased, Load, Lookup, Register, Registered, Release, Role, Verdict,
};
use larder_protocol::{BlockKey, FrameBuffer, LeaseId, Tag, ToEngine, ToNode};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::node::PATIENCE;

/// One connection.
pub(crate) struct Wire {
    pub(crate) stream: UnixStream,
    buffer: FrameBuffer,
    descriptors: Vec<OwnedFd>,
}

impl Wire {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: FrameBuffer::new(), descriptors: Vec::new() }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn say(&mut self, message: impl Into<ToNode>) {
        self.raw(&frame(&message.into().encode()));
    }

    /// The next message; `None` once the node has closed the connection.
    pub(crate) fn hear(&mut self) -> Option<ToEngine> {
        loop {
            if let Some(body) = self.buffer.next_body().unwrap() {
                return Some(ToEngine::decode(body).unwrap());
            }
            let mut piece = vec![0; 64 << 10];
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let count = {
                let mut pieces = [IoSliceMut::new(&mut piece)];
                let fd = self.stream.as_raw_fd();
                let received =
                    match recvmsg::<()>(fd, &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                        Ok(received) => received,
                        Err(nix::errno::Errno::ECONNRESET) => return None,
                        // Another test of this process stopped or traced it for a moment.
                        Err(nix::errno::Errno::EINTR) => continue,
                        Err(error) => panic!("{error}"),
                    };
                for control in received.cmsgs().unwrap() {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        self.descriptors.extend(raw.into_iter().map(owned));
                    }
                }
                received.bytes
            };
            if count == 0 {
                return None;
            }
            self.buffer.push(&piece[..count]);
        }
    }

    pub(crate) fn ask(&mut self, message: impl Into<ToNode>) -> ToEngine {
        self.say(message);
        self.hear().expect("an answer")
    }
}

/// Takes a descriptor that was just received.
#[expect(
    unsafe_code,
    reason = "the kernel made this descriptor for this process, and nobody else knows its number"
)]
pub(crate) fn owned(raw: RawFd) -> OwnedFd {
    // SAFETY: recvmsg has just installed it here, open and owned by nobody.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// One rank: its connection and what it was handed.
pub(crate) struct Worker {
    pub(crate) wire: Wire,
    slab: File,
    generations: File,
    region: File,
}

pub(crate) struct Engine {
    pub(crate) wire: Wire,
    pub(crate) workers: Vec<Worker>,
    pub(crate) registered: Registered,
    pub(crate) register: Register,
    /// Grants heard while waiting for something else.
    pub(crate) grants: Vec<Grant>,
    next: u64,
}

pub(crate) fn hello(role: Role, rank: u32, engine: &str) -> Hello {
    Hello {
        versions: vec![1, 2],
        role,
        rank,
        engine: engine.to_owned(),
        endpoint: Some(format!("http://{engine}")),
        software: Some("fake 1".to_owned()),
    }
}

pub(crate) fn register(part_bytes: u64, world: u32, weights: u8) -> Register {
    Register {
        id: 1,
        model: "fake".into(),
        hash: "sha256_cbor".into(),
        weights: vec![weights; 32],
        epoch: 0,
        layout: vec![7; 32],
        dtype: "float32".into(),
        tokens_per_block: 16,
        blocks_per_chunk: 2,
        part_bytes,
        world,
    }
}

fn registered(wire: &mut Wire, register: &Register) -> Registered {
    match wire.ask(register.clone()) {
        ToEngine::Registered(registered) => registered,
        other => panic!("{other:?}"),
    }
}

/// What a chunk of this number has in it, every rank's part: never equal for two numbers.
pub(crate) fn content(number: u64, bytes: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut content: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(word).collect();
    content.truncate(bytes as usize);
    content
}

pub(crate) fn keys(numbers: std::ops::Range<u64>) -> Vec<BlockKey> {
    numbers.map(|number| BlockKey::new(&[&number.to_be_bytes()[..], &[0; 28]].concat()).unwrap()).collect()
}

impl Engine {
    pub(crate) fn connect(socket: &Path, name: &str, register: Register) -> Self {
        Self::connect_speaking(socket, name, register, &[1, 2])
    }

    pub(crate) fn connect_speaking(socket: &Path, name: &str, register: Register, versions: &[u16]) -> Self {
        let hello = |role, rank, name| Hello { versions: versions.to_vec(), ..hello(role, rank, name) };
        let workers = (0..register.world).map(|rank| {
            let mut wire = Wire::connect(socket);
            assert!(matches!(wire.ask(hello(Role::Worker, rank, name)), ToEngine::Welcome(_)));
            assert_eq!(registered(&mut wire, &register).fds, 3);
            let mut files = wire.descriptors.drain(..).map(File::from);
            let (slab, generations, region) =
                (files.next().unwrap(), files.next().unwrap(), files.next().unwrap());
            drop(files);
            Worker { wire, slab, generations, region }
        });
        let workers = workers.collect();
        let mut wire = Wire::connect(socket);
        assert!(matches!(wire.ask(hello(Role::Scheduler, 0, name)), ToEngine::Welcome(_)));
        let registered = registered(&mut wire, &register);
        assert_eq!((registered.fds, wire.descriptors.len()), (0, 0));
        Self { wire, workers, registered, register, grants: Vec::new(), next: 1 }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn chunk_bytes(&self) -> u64 {
        self.register.part_bytes * u64::from(self.register.world)
    }

    /// Each rank writes its part of a chunk into the region.
    pub(crate) fn write(&self, region_slot: u32, number: u64) {
        let content = content(number, self.chunk_bytes());
        let part = self.register.part_bytes;
        for (rank, worker) in (0..).zip(&self.workers) {
            let offset = u64::from(region_slot) * self.registered.region_stride + rank * part;
            let bytes = &content[(rank * part) as usize..((rank + 1) * part) as usize];
            worker.region.write_all_at(bytes, offset).unwrap();
        }
    }

    /// A rank's part of a region slot.
    pub(crate) fn region(&self, rank: usize, region_slot: u32) -> Vec<u8> {
        let part = self.register.part_bytes;
        let offset = u64::from(region_slot) * self.registered.region_stride + rank as u64 * part;
        let mut bytes = vec![0; part as usize];
        self.workers[rank].region.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Each rank copies its part of a leased chunk, checking its generation before and after. `None` if it changed.
    pub(crate) fn read(&self, slot: u32, generation: u64) -> Option<Vec<u8>> {
        let part = self.register.part_bytes;
        let offset = self.registered.slot_offset(slot).unwrap();
        let mut content = Vec::new();
        for (rank, worker) in (0..).zip(&self.workers) {
            let generation_is = || {
                let mut word = [0; 8];
                worker.generations.read_exact_at(&mut word, u64::from(slot) * 8).unwrap();
                u64::from_ne_bytes(word) == generation
            };
            let mut bytes = vec![0; part as usize];
            let before = generation_is();
            worker.slab.read_exact_at(&mut bytes, offset + rank * part).unwrap();
            if !(before && generation_is()) {
                return None;
            }
            content.extend(bytes);
        }
        Some(content)
    }

    /// The next answer on the scheduler's connection; grants are put aside.
    pub(crate) fn hear(&mut self) -> ToEngine {
        loop {
            match self.wire.hear().expect("an answer") {
                ToEngine::Grant(grant) => self.grants.push(grant),
                other => return other,
            }
        }
    }

    pub(crate) fn ask(&mut self, message: impl Into<ToNode>) -> ToEngine {
        self.wire.say(message);
        self.hear()
    }

    /// Like [`Self::ask`]; `None` if the node is gone.
    pub(crate) fn try_ask(&mut self, message: impl Into<ToNode>) -> Option<ToEngine> {
        self.wire.stream.write_all(&frame(&message.into().encode())).ok()?;
        loop {
            match self.wire.hear()? {
                ToEngine::Grant(grant) => self.grants.push(grant),
                other => return Some(other),
            }
        }
    }

    pub(crate) fn commit_message(&mut self, numbers: std::ops::Range<u64>) -> Commit {
        let tokens = self.register.tokens_per_block * self.register.blocks_per_chunk;
        let count = (numbers.end - numbers.start) as u32;
        Commit {
            id: self.id(),
            keys: keys(numbers),
            end_tokens: (1..=count).map(|index| index * tokens).collect(),
            region_slots: (0..count).collect(),
            request: Some("r".into()),
            tag: None,
            prompt_tokens: None,
            parent: None,
        }
    }

    /// Offloads chunks with their proper content.
    pub(crate) fn offload(&mut self, numbers: std::ops::Range<u64>) -> Vec<Verdict> {
        (0..).zip(numbers.clone()).for_each(|(slot, number)| self.write(slot, number));
        let commit = self.commit_message(numbers);
        match self.ask(commit.clone()) {
            ToEngine::Committed(committed) => {
                assert_eq!(committed.id, commit.id);
                committed.results.0
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lookup_tagged(&mut self, numbers: std::ops::Range<u64>, tag: Option<Tag>) -> ToEngine {
        let message = self.lookup_message(numbers, tag);
        self.ask(message)
    }

    pub(crate) fn lookup_message(&mut self, numbers: std::ops::Range<u64>, tag: Option<Tag>) -> Lookup {
        let tokens = self.register.tokens_per_block * self.register.blocks_per_chunk;
        let count = (numbers.end - numbers.start) as u32;
        Lookup {
            id: self.id(),
            keys: keys(numbers),
            end_tokens: (1..=count).map(|index| index * tokens).collect(),
            request: Some("r".into()),
            tag,
            prompt_tokens: Some(count * tokens + 3),
        }
    }

    /// Looks up until nothing is coming up any more.
    pub(crate) fn lookup_patiently(&mut self, numbers: std::ops::Range<u64>) -> ToEngine {
        let start = std::time::Instant::now();
        loop {
            match self.lookup(numbers.clone()) {
                ToEngine::Pending(_) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }

    pub(crate) fn lookup(&mut self, numbers: std::ops::Range<u64>) -> ToEngine {
        self.lookup_tagged(numbers, None)
    }

    pub(crate) fn lease(&mut self, numbers: std::ops::Range<u64>) -> Leased {
        match self.lookup(numbers) {
            ToEngine::Leased(leased) => leased,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn load(&mut self, lease: LeaseId, count: usize) -> ToEngine {
        let load = Load { id: self.id(), lease, first: 0, count: count as u32 };
        self.ask(load)
    }

    pub(crate) fn complete(&mut self, lease: LeaseId) -> ToEngine {
        let complete = Complete { id: self.id(), lease, ok: true, failed: None };
        self.ask(complete)
    }

    pub(crate) fn release(&mut self, lease: LeaseId) -> ToEngine {
        let release = Release { id: self.id(), lease };
        self.ask(release)
    }

    /// Whether every chunk of a lease reads as its number says.
    pub(crate) fn reads_right(&self, first: u64, slots: &[u32], generations: &[u64]) -> bool {
        (first..).zip(slots.iter().zip(generations)).all(|(number, (slot, generation))| {
            self.read(*slot, *generation).is_some_and(|bytes| bytes == content(number, self.chunk_bytes()))
        })
    }

    /// Looks up, loads, compares, completes and releases. Returns how many chunks were held.
    pub(crate) fn load_and_compare(&mut self, numbers: std::ops::Range<u64>) -> usize {
        let first = numbers.start;
        let leased = match self.lookup_patiently(numbers) {
            ToEngine::Leased(leased) => leased,
            ToEngine::Miss(_) => return 0,
            other => panic!("{other:?}"),
        };
        assert!(matches!(self.load(leased.lease, leased.slots.len()), ToEngine::Okay(_)));
        assert!(self.reads_right(first, &leased.slots, &leased.generations));
        assert!(matches!(self.complete(leased.lease), ToEngine::Okay(_)));
        assert!(matches!(self.release(leased.lease), ToEngine::Okay(_)));
        leased.slots.len()
    }
}
