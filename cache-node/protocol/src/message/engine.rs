//! What an engine's plugin says to the node.

use super::codec::{Fields, messages};
use crate::code::PageOrder;
use crate::fault::{DecodeFault, Malformed};
use crate::field::Field;
use crate::id::{BlockKey, DeviceId, GpuHandle, LeaseId, Tag};
use crate::msgpack::{Reader, Writer};

/// What a connection is in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that asks, and to which grants are pushed.
    Scheduler,
    /// One rank; it maps slab and region, and its process is watched.
    Worker,
}

impl Field for Role {
    fn put(&self, writer: &mut Writer) {
        writer.str(match self {
            Role::Scheduler => "scheduler",
            Role::Worker => "worker",
        });
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.str()? {
            "scheduler" => Ok(Role::Scheduler),
            "worker" => Ok(Role::Worker),
            _ => Err(Malformed::Range("role")),
        }
    }
}

messages! {
    /// A message from an engine to its node.
    enum ToNode;

    /// The first message of a connection.
    "hello" => Hello {
        /// Versions of the port that the plugin speaks.
        versions: Vec<u16>,
        /// What this connection is in its session.
        role: Role,
        /// The worker's rank; 0 for a scheduler.
        rank: u32,
        /// Names this run of the engine; equal on all connections of the session.
        engine: String,
        /// The name under which the proxy asks for this engine.
        endpoint: Option<String>,
        /// Plugin and engine with versions, for the log.
        software: Option<String>,
    }

    /// What the engine's chunks are. Digested into the namespace, all but `model`.
    "register" => Register {
        /// Request id.
        id: u64,
        /// The served model's name, for people.
        model: String,
        /// The engine's block hash algorithm.
        hash: String,
        /// Digest of the weights and all that acts like weights.
        weights: Vec<u8>,
        /// Raised whenever the weights changed in place.
        epoch: u64,
        /// Digest of how one rank's part of a chunk is laid out.
        layout: Vec<u8>,
        /// Element type of the KV cache.
        dtype: String,
        /// Tokens of one engine block.
        tokens_per_block: u32,
        /// Engine blocks of one chunk.
        blocks_per_chunk: u32,
        /// Bytes of one rank's part of a chunk.
        part_bytes: u64,
        /// Ranks; each has a worker connection.
        world: u32,
    }

    /// Asks for a lease on the longest held beginning of `keys`.
    "lookup" => Lookup {
        /// Request id.
        id: u64,
        /// The prompt's full chunks, in order.
        keys: Vec<BlockKey>,
        /// How many tokens of the prompt end with each chunk.
        end_tokens: Vec<u32>,
        /// The engine's name for the request, for the log.
        request: Option<String>,
        /// The proxy's name for the request.
        tag: Option<Tag>,
        /// Tokens of the whole prompt.
        prompt_tokens: Option<u32>,
    }

    /// Copying of a part of a lease begins.
    "load" => Load {
        /// Request id.
        id: u64,
        /// The lease.
        lease: LeaseId,
        /// First chunk of the lease that is copied.
        first: u32,
        /// How many.
        count: u32,
    }

    /// One load of a lease has ended; no process touches its slots any more.
    "complete" => Complete {
        /// Request id.
        id: u64,
        /// The lease.
        lease: LeaseId,
        /// Whether all chunks were copied whole.
        ok: bool,
        /// Chunks of the lease whose copy failed.
        failed: Option<Vec<u32>>,
    }

    /// The lease is not needed any more.
    "release" => Release {
        /// Request id.
        id: u64,
        /// The lease.
        lease: LeaseId,
    }

    /// Asks which keys are worth writing to the region.
    "offload" => Offload {
        /// Request id.
        id: u64,
        /// The chunks.
        keys: Vec<BlockKey>,
    }

    /// Chunks are whole in the region: store them.
    "commit" => Commit {
        /// Request id.
        id: u64,
        /// The chunks.
        keys: Vec<BlockKey>,
        /// How many tokens of the request end with each.
        end_tokens: Vec<u32>,
        /// Where in the region each lies.
        region_slots: Vec<u32>,
        /// The engine's name for the request, for the log.
        request: Option<String>,
        /// The proxy's name for the request.
        tag: Option<Tag>,
        /// Tokens of the whole prompt.
        prompt_tokens: Option<u32>,
        /// The chunk of the prompt before the first of these, committed earlier; none where they begin it.
        parent: Option<BlockKey>,
    }

    /// The weights changed in place; a new namespace begins.
    "epoch" => Epoch {
        /// Request id.
        id: u64,
        /// The new epoch.
        epoch: u64,
    }

    /// Since version 3, a worker's: this rank's KV cache lies in a GPU, and these are its pages. Descriptors of pieces
    /// are sent on frames up to this one.
    "attach" => Attach {
        /// Request id.
        id: u64,
        /// The GPU.
        device: DeviceId,
        /// How its memory orders pages.
        order: PageOrder,
        /// Blocks in the cache.
        blocks: u32,
        /// Five numbers for each layer: where block 0 begins in the cache, bytes from one block to the next, rows of a
        /// page, bytes of a row, bytes from one row to the next.
        layers: Vec<u64>,
        /// Bytes of each part of the cache, which is all parts, one after the other.
        part_bytes: Vec<u64>,
        /// Where each part begins in its allocation, in bytes.
        part_offsets: Vec<u64>,
        /// Of each part, how many pieces it is mapped from; 0 for a plain allocation, which has a handle.
        part_pieces: Vec<u32>,
        /// The driver's handles of the plain allocations, in the order of their parts.
        handles: Vec<GpuHandle>,
        /// Bytes of each piece, part by part; its descriptor is the next of those sent.
        piece_bytes: Vec<u64>,
        /// Events of the engine's that `fetch` and `save` name by their place here.
        events: Vec<GpuHandle>,
    }

    /// Since version 3, a worker's: copy this rank's part of leased chunks into its blocks.
    "fetch" => Fetch {
        /// Request id.
        id: u64,
        /// The lease.
        lease: LeaseId,
        /// First chunk of the lease.
        first: u32,
        /// Blocks of that chunk that are left out at its beginning.
        skip: u32,
        /// Where the blocks go, in order; they end within the lease's last chunk.
        blocks: Vec<u32>,
        /// The engine's event to be reached before a page is written.
        after: Option<u32>,
    }

    /// Since version 3, a worker's: copy its blocks into its part of region slots, to be committed then.
    "save" => Save {
        /// Request id.
        id: u64,
        /// Where in the region each chunk goes.
        region_slots: Vec<u32>,
        /// The blocks of all these chunks, in order.
        blocks: Vec<u32>,
        /// The engine's event to be reached before a page is read.
        after: Option<u32>,
    }

    /// The sender ends the session.
    "goodbye" => Goodbye {
        /// Why, for the log.
        reason: String,
    }
}

/// Numbers of a layer in `attach`.
pub const LAYER_WORDS: usize = 5;

/// What no single field can say: lists that belong together.
fn check(message: &ToNode) -> Result<(), Malformed> {
    match message {
        ToNode::Lookup(lookup) => pairs(&lookup.keys, &lookup.end_tokens, "keys and end_tokens"),
        ToNode::Commit(commit) => {
            if commit.region_slots.len() != commit.keys.len() {
                return Err(Malformed::Lengths("keys and region_slots"));
            }
            pairs(&commit.keys, &commit.end_tokens, "keys and end_tokens")
        }
        ToNode::Attach(attach) => attach.check(),
        _ => Ok(()),
    }
}

/// `end_tokens` goes with `keys` and increases strictly.
pub(super) fn pairs(keys: &[BlockKey], end_tokens: &[u32], what: &'static str) -> Result<(), Malformed> {
    if keys.len() != end_tokens.len() {
        return Err(Malformed::Lengths(what));
    }
    let increasing = end_tokens.first() != Some(&0) && end_tokens.is_sorted_by(|one, two| one < two);
    if increasing { Ok(()) } else { Err(Malformed::Order) }
}

impl Attach {
    fn check(&self) -> Result<(), Malformed> {
        let parts = self.part_bytes.len();
        if parts != self.part_offsets.len() || parts != self.part_pieces.len() {
            return Err(Malformed::Lengths("part_bytes, part_offsets and part_pieces"));
        }
        if !self.layers.len().is_multiple_of(LAYER_WORDS) {
            return Err(Malformed::Lengths("layers, five numbers each"));
        }
        let plain = self.part_pieces.iter().filter(|pieces| **pieces == 0).count();
        let pieces: u64 = self.part_pieces.iter().copied().map(u64::from).sum();
        if plain != self.handles.len() || pieces != self.piece_bytes.len() as u64 {
            return Err(Malformed::Lengths("part_pieces, handles and piece_bytes"));
        }
        Ok(())
    }
}
