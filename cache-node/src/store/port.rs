//! What goes into the store and what comes out: all of it values.

use std::time::Duration;

use larder_protocol::control::{
    PinAnswer, PinRequest, QuotaAnswer, QuotaRequest, ReleaseRequest, StageAnswer, StageRequest,
};
use larder_protocol::message::{Registered, ToEngine, ToNode};
use larder_protocol::{BlockKey, Checksum, DecodeFault, FrameFault, LeaseId, PinId};

use larder_tiering::disk::{Chunk, Location};

use super::{ChunkName, DeviceInput, DeviceOp, JournalOp};
use crate::recipe::Kept;

/// One connection of the engine port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// One run of an engine with all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A verification given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyId(pub u64);

/// A copy given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyId(pub u64);

/// A question of the control API that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happens to the disk tier, with chunks by their names. Of these the store takes from outside what ends a job or
/// tells of earlier runs; the rest it says itself.
pub type DiskInput = larder_tiering::disk::Input<ChunkName>;

/// What the disk tier has done outside.
pub type DiskOp = larder_tiering::disk::Op<ChunkName>;

/// What happened outside.
#[derive(Debug)]
pub enum Input {
    /// A connection was accepted.
    Accepted {
        /// The connection.
        connection: ConnectionId,
        /// Whether [`Input::ProcessDead`] will come when its process ends. Where it will not, slots that a started
        /// load holds are kept for good if the connection is lost.
        watched: bool,
    },
    /// A message arrived.
    Message {
        /// From where.
        connection: ConnectionId,
        /// The message.
        message: ToNode,
        /// A fresh random id, in case the message opens a lease.
        fresh: LeaseId,
    },
    /// A frame arrived that is no message.
    Undecodable {
        /// From where.
        connection: ConnectionId,
        /// Why not.
        fault: DecodeFault,
    },
    /// The byte stream cannot be cut into frames.
    Unframed {
        /// From where.
        connection: ConnectionId,
        /// Why not.
        fault: FrameFault,
    },
    /// A connection was closed, by either side.
    Closed {
        /// The connection.
        connection: ConnectionId,
    },
    /// The process behind a connection has ended; nothing of it can touch the slab any more.
    ProcessDead {
        /// The connection.
        connection: ConnectionId,
    },
    /// A copy given out as [`Output::Copy`] is done.
    Copied {
        /// Which.
        copy: CopyId,
        /// The checksum of what was written.
        checksum: Checksum,
    },
    /// A verification given out as [`Output::Verify`] is done.
    Verified {
        /// Which.
        verify: VerifyId,
        /// One for each check, in order.
        found: Vec<Finding>,
    },
    /// The proxy asks to stage.
    Stage {
        /// Where the answer goes.
        ticket: Ticket,
        /// The request.
        request: StageRequest,
        /// A fresh random id for the lease.
        fresh: LeaseId,
    },
    /// The proxy asks what staging would give.
    Probe {
        /// Where the answer goes.
        ticket: Ticket,
        /// The request.
        request: StageRequest,
    },
    /// Somebody asks to keep the beginning of a prompt.
    Pin {
        /// Where the answer goes.
        ticket: Ticket,
        /// The request.
        request: PinRequest,
        /// A fresh random id for the pin.
        fresh: PinId,
    },
    /// Somebody gives a lease or a pin back.
    GiveBack {
        /// Where the answer goes.
        ticket: Ticket,
        /// The request.
        request: ReleaseRequest,
    },
    /// Somebody sets a tenant's quota.
    SetQuota {
        /// Where the answer goes.
        ticket: Ticket,
        /// The request.
        request: QuotaRequest,
    },
    /// Something of the disk tier happened outside.
    Disk(DiskInput),
    /// Something happened with a GPU.
    Device(DeviceInput),
    /// Recipes of earlier runs.
    Recipes {
        /// Some of them, in the order in which they were learnt.
        found: Vec<Kept>,
        /// There are no more.
        last: bool,
    },
    /// The node is about to end.
    Ending,
    /// Everything held is to be forgotten.
    Clear {
        /// Where the answer goes.
        ticket: Ticket,
    },
    /// A test damages what the store holds.
    Damage {
        /// Where the answer goes.
        ticket: Ticket,
        /// How.
        damage: Damage,
    },
    /// Time passed.
    Tick,
}

/// A fault made on purpose, for tests. Chunks are named by their place in the order of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// Flip one bit of a held chunk.
    Flip {
        /// The chunk's key; the `nth` held chunk if none.
        key: Option<BlockKey>,
        /// Which held chunk, in the order of slots.
        nth: usize,
        /// Which byte of the chunk.
        byte: u64,
        /// Which bit of the byte, 0..8.
        bit: u8,
    },
    /// Exchange the names of two held chunks of one namespace: each key then leads to the other's bytes, whose
    /// checksums are right. No checksum can see it, so a test that compares answers must.
    Swap {
        /// One, in the order of slots.
        first: usize,
        /// The other.
        second: usize,
    },
}

/// What reading a chunk back showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The checksum is right.
    Good,
    /// It is not.
    Bad,
    /// There was no time to look.
    Skipped,
}

/// One chunk to be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Where it begins in the slab, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What its checksum must be.
    pub checksum: Checksum,
}

/// What has to be done outside, in this order.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Write a slot's generation to the shared table, before anything that follows.
    SetGeneration {
        /// The slot's number.
        slot: u32,
        /// Its generation.
        generation: u64,
    },
    /// Send a message.
    Send {
        /// To where.
        connection: ConnectionId,
        /// The message.
        message: ToEngine,
    },
    /// Make the session's region if it has none, then send `registered`, to a worker with the descriptors.
    Register {
        /// To where.
        connection: ConnectionId,
        /// Whose region.
        session: SessionId,
        /// The message; `fds` says whether descriptors go with it.
        message: Registered,
    },
    /// Send a grant and, only once it is written to the socket, answer the proxy.
    Grant {
        /// To where.
        connection: ConnectionId,
        /// The grant.
        message: ToEngine,
        /// Which question.
        ticket: Ticket,
        /// Its answer.
        answer: StageAnswer,
    },
    /// Answer the proxy.
    Answer {
        /// Which question.
        ticket: Ticket,
        /// Its answer.
        answer: StageAnswer,
    },
    /// Close a connection once what was sent before is written.
    Close {
        /// The connection.
        connection: ConnectionId,
    },
    /// Nothing will be asked about this connection's process any more.
    Forget {
        /// The connection.
        connection: ConnectionId,
    },
    /// The session has ended: drop its region once no copy uses it.
    DropRegion {
        /// Whose.
        session: SessionId,
    },
    /// Copy a chunk from a region into the slab and hash it on the way.
    Copy {
        /// Answered by [`Input::Copied`].
        copy: CopyId,
        /// Whose region.
        session: SessionId,
        /// Where the chunk begins in the region, in bytes.
        from: u64,
        /// Where it goes in the slab, in bytes.
        to: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Read chunks back, in order, and compare their checksums.
    Verify {
        /// Answered by [`Input::Verified`].
        verify: VerifyId,
        /// The chunks.
        checks: Vec<Check>,
        /// Chunks not begun by then are skipped.
        stop_at: Duration,
    },
    /// Carry out what the disk tier decided. All but loads in this order; loads at any time.
    Disk {
        /// What to do.
        op: DiskOp,
        /// Where in the slab the chunk lies that is written, or goes that is loaded, in bytes.
        offset: u64,
    },
    /// Do something with a GPU.
    Device(DeviceOp),
    /// Keep recipes; in this order.
    Recipes(JournalOp),
    /// Read a chunk on disk and compare its checksum, when there is nothing better to do.
    Scrub {
        /// Its name.
        name: ChunkName,
        /// Where its record begins.
        at: Location,
        /// What it must be. Answered by `Scrubbed` of [`DiskInput`].
        chunk: Chunk,
    },
    /// Answer whoever asked for a pin.
    Pinned {
        /// Which question.
        ticket: Ticket,
        /// Its answer.
        answer: PinAnswer,
    },
    /// Answer whoever gave something back.
    Released {
        /// Which question.
        ticket: Ticket,
        /// Whether it was there.
        released: bool,
    },
    /// Answer whoever set a quota.
    QuotaSet {
        /// Which question.
        ticket: Ticket,
        /// Its answer; none if no more tenants can be known.
        answer: Option<QuotaAnswer>,
    },
    /// Answer whoever had everything forgotten.
    Cleared {
        /// Which question.
        ticket: Ticket,
        /// Chunks in host memory that were forgotten.
        chunks: u64,
        /// Chunks that stay since leases hold them, or they are just being written.
        kept: u64,
    },
    /// Carry out a [`Damage`] in the slab; `None` if it named nothing, or needs no write.
    Damaged {
        /// Where the answer goes.
        ticket: Ticket,
        /// Whether there was something to damage.
        found: bool,
        /// Flip this bit: byte offset in the slab, and bit.
        flip: Option<(u64, u8)>,
    },
}
