//! A node's client as an engine is one: a scheduler's and a worker's connection, the slab and a region.

use std::collections::{HashSet, VecDeque};
use std::io::{self, IoSliceMut, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use larder_protocol::frame::frame;
use larder_protocol::message::{
    Commit, Complete, Hello, Leased, Load, Lookup, Register, Registered, Release, Role, ToNode, Verdict,
};
use larder_protocol::{BlockKey, FrameBuffer, Tag, ToEngine};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mapped::{Mapped, received};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 << 10;

struct Wire {
    stream: UnixStream,
    buffer: FrameBuffer,
    piece: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

impl Wire {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        Ok(Self { stream, buffer: FrameBuffer::new(), piece: vec![0; READ_BYTES], descriptors: Vec::new() })
    }

    fn say(&mut self, message: impl Into<ToNode>) -> io::Result<()> {
        self.stream.write_all(&frame(&message.into().encode()))
    }

    fn hear(&mut self) -> io::Result<ToEngine> {
        loop {
            if let Some(body) = self.buffer.next_body().map_err(|fault| bad(fault.to_string()))? {
                return ToEngine::decode(body).map_err(|fault| bad(fault.to_string()));
            }
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let count = {
                let mut pieces = [IoSliceMut::new(&mut self.piece)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        self.descriptors.extend(raw.into_iter().map(received));
                    }
                }
                message.bytes
            };
            if count == 0 {
                return Err(bad("the node has closed the connection"));
            }
            self.buffer.push(&self.piece[..count]);
        }
    }

    fn register(&mut self, role: Role, register: &Register) -> io::Result<Registered> {
        let hello = Hello {
            versions: vec![1, 2],
            role,
            rank: 0,
            engine: "bench".into(),
            endpoint: Some("http://bench".into()),
            software: None,
        };
        self.say(hello)?;
        self.hear()?;
        self.say(register.clone())?;
        match self.hear()? {
            ToEngine::Registered(registered) => Ok(registered),
            other => Err(bad(format!("not registered: {other:?}"))),
        }
    }
}

/// A connected engine of one rank.
pub(super) struct Engine {
    scheduler: Wire,
    _worker: Wire,
    slab: Mapped,
    region: Mapped,
    registered: Registered,
    chunk_bytes: u64,
    /// Answers that came before what was waited for: of releases, and of lookups.
    okays: u64,
    early: VecDeque<ToEngine>,
    /// Commits that ended before one that was waited for.
    ended: HashSet<u64>,
    next: u64,
}

/// The keys of these chunks.
pub(super) fn keys(numbers: Range<u64>) -> Vec<BlockKey> {
    numbers.filter_map(|number| BlockKey::new(&[&number.to_be_bytes()[..], &[0; 28]].concat())).collect()
}

/// Tokens of a chunk.
pub(super) const TOKENS: u32 = 256;

impl Engine {
    /// Connects, with chunks of this size.
    pub(super) fn connect(socket: &Path, chunk_bytes: u64) -> io::Result<Self> {
        let register = Register {
            id: 1,
            model: "bench".into(),
            hash: "sha256_cbor".into(),
            weights: vec![1; 32],
            epoch: chunk_bytes,
            layout: vec![2; 32],
            dtype: "bfloat16".into(),
            tokens_per_block: 16,
            blocks_per_chunk: TOKENS / 16,
            part_bytes: chunk_bytes,
            world: 1,
        };
        let mut worker = Wire::connect(socket)?;
        worker.register(Role::Worker, &register)?;
        let mut descriptors = worker.descriptors.drain(..);
        let (slab, _generations, region) = (descriptors.next(), descriptors.next(), descriptors.next());
        drop(descriptors);
        let handed = || bad("a worker is handed its memory");
        let slab = Mapped::new(slab.ok_or_else(handed)?, false)?;
        let region = Mapped::new(region.ok_or_else(handed)?, true)?;
        let mut scheduler = Wire::connect(socket)?;
        let registered = scheduler.register(Role::Scheduler, &register)?;
        Ok(Self {
            scheduler,
            _worker: worker,
            slab,
            region,
            registered,
            chunk_bytes,
            okays: 0,
            early: VecDeque::new(),
            ended: HashSet::new(),
            next: 1,
        })
    }

    pub(super) fn region_slots(&self) -> u64 {
        u64::from(self.registered.region_slots)
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The next answer; grants that came before it are left out.
    fn answer(&mut self) -> io::Result<ToEngine> {
        loop {
            match self.scheduler.hear()? {
                ToEngine::Grant(_) => {}
                other => return Ok(other),
            }
        }
    }

    /// Writes chunks into the region from a slot on, and has them stored. Returns what [`Self::committed`] waits for.
    pub(super) fn commit(&mut self, numbers: Range<u64>, from_slot: u64, chunks: &[u8]) -> io::Result<u64> {
        let count = numbers.end - numbers.start;
        for (index, chunk) in (0..count).zip(chunks.chunks_exact(self.chunk_bytes as usize)) {
            self.region.write((from_slot + index) * self.registered.region_stride, chunk);
        }
        let id = self.id();
        let commit = Commit {
            id,
            keys: keys(numbers),
            end_tokens: (1..=count as u32).map(|index| index * TOKENS).collect(),
            region_slots: (from_slot as u32..(from_slot + count) as u32).collect(),
            request: None,
            tag: None,
            prompt_tokens: None,
            parent: None,
        };
        self.scheduler.say(commit)?;
        Ok(id)
    }

    /// Waits for a commit. They end in any order.
    pub(super) fn committed(&mut self, id: u64) -> io::Result<()> {
        while !self.ended.remove(&id) {
            match self.answer()? {
                ToEngine::Committed(it) if it.results.0.iter().all(|it| *it == Verdict::Accepted) => {
                    self.ended.insert(it.id);
                }
                other => return Err(bad(format!("not stored: {other:?}"))),
            }
        }
        Ok(())
    }

    pub(super) fn ask_for(&mut self, numbers: Range<u64>, tag: Option<Tag>) -> io::Result<()> {
        let lookup = self.lookup(numbers, tag);
        self.say(lookup)
    }

    pub(super) fn say(&mut self, lookup: Lookup) -> io::Result<()> {
        self.scheduler.say(lookup)
    }

    /// A lookup of these chunks.
    pub(super) fn lookup(&mut self, numbers: Range<u64>, tag: Option<Tag>) -> Lookup {
        let count = (numbers.end - numbers.start) as u32;
        Lookup {
            id: self.id(),
            keys: keys(numbers),
            end_tokens: (1..=count).map(|index| index * TOKENS).collect(),
            request: None,
            tag,
            prompt_tokens: Some(count * TOKENS),
        }
    }

    /// The answer to [`Self::ask_for`]; none while chunks are coming up.
    pub(super) fn leased(&mut self) -> io::Result<Option<Leased>> {
        loop {
            let answer = match self.early.pop_front() {
                Some(answer) => answer,
                None => self.answer()?,
            };
            match answer {
                ToEngine::Leased(leased) => return Ok(Some(leased)),
                ToEngine::Pending(_) => return Ok(None),
                // A lookup is answered once its chunks are verified, and what was said later before.
                ToEngine::Okay(_) => self.okays += 1,
                other => return Err(bad(format!("not leased: {other:?}"))),
            }
        }
    }

    /// Waits for so many things to be done.
    fn done(&mut self, count: u64) -> io::Result<()> {
        while self.okays < count {
            match self.answer()? {
                ToEngine::Okay(_) => self.okays += 1,
                answer @ (ToEngine::Leased(_) | ToEngine::Pending(_)) => self.early.push_back(answer),
                other => return Err(bad(format!("not done: {other:?}"))),
            }
        }
        self.okays -= count;
        Ok(())
    }

    /// Copies the chunks of a lease out, and gives it back; the answers are taken by [`Self::given_back`].
    pub(super) fn copy_out(&mut self, leased: &Leased, to: &mut [u8]) -> io::Result<()> {
        let (lease, count) = (leased.lease, leased.slots.len() as u32);
        let id = self.id();
        self.scheduler.say(Load { id, lease, first: 0, count })?;
        // Slots that lie side by side are copied in one piece: a prompt stored at once mostly lies so.
        let adjoining =
            |one: &u32, other: &u32| *other == one + 1 && self.registered.slot_stride == self.chunk_bytes;
        let mut rest = to;
        for run in leased.slots.chunk_by(adjoining) {
            let offset = self.registered.slot_offset(run[0]).ok_or_else(|| bad("a slot outside the slab"))?;
            let bytes = run.len() * self.chunk_bytes as usize;
            let (piece, behind) =
                rest.split_at_mut_checked(bytes).ok_or_else(|| bad("no room for a lease"))?;
            self.slab.read(offset, piece);
            rest = behind;
        }
        let id = self.id();
        self.scheduler.say(Complete { id, lease, ok: true, failed: None })?;
        let id = self.id();
        self.scheduler.say(Release { id, lease })
    }

    /// Takes the three answers of [`Self::copy_out`].
    pub(super) fn given_back(&mut self) -> io::Result<()> {
        self.done(3)
    }

    /// Gives a lease back that nothing was copied of.
    pub(super) fn release(&mut self, leased: &Leased) -> io::Result<()> {
        let id = self.id();
        self.scheduler.say(Release { id, lease: leased.lease })?;
        self.done(1)
    }

    /// Waits until a grant has come.
    pub(super) fn grant(&mut self) -> io::Result<()> {
        loop {
            if let ToEngine::Grant(_) = self.scheduler.hear()? {
                return Ok(());
            }
        }
    }
}
