//! What the node says to an engine's plugin.

use super::codec::{Fields, messages};
use super::engine::pairs;
use crate::code::{ErrorCode, MissReason, RefusedCode, RejectCode};
use crate::fault::{DecodeFault, Malformed};
use crate::field::{Field, LIST_LEN_MAX};
use crate::id::{BlockKey, GpuHandle, LeaseId, NodeId, StoreNamespace, Tag, WireSession};
use crate::msgpack::{Reader, Writer};

/// What the node says about one chunk of an `offload` or `commit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Offload: write it. Commit: stored.
    Accepted = 0,
    /// Held already, nothing to do.
    Held = 1,
    /// No room now. A result, not an error: the chunk is simply not stored.
    Refused = 2,
}

/// One verdict for each chunk asked about, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts(pub Vec<Verdict>);

impl Field for Verdicts {
    fn put(&self, writer: &mut Writer) {
        writer.array(self.0.len());
        self.0.iter().for_each(|verdict| writer.uint(*verdict as u64));
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let items = reader.array()?;
        if items > LIST_LEN_MAX {
            return Err(Malformed::Limit { what: "list", found: items, max: LIST_LEN_MAX });
        }
        let verdict = |_| match reader.uint()? {
            0 => Ok(Verdict::Accepted),
            1 => Ok(Verdict::Held),
            2 => Ok(Verdict::Refused),
            _ => Err(Malformed::Range("verdict")),
        };
        (0..items).map(verdict).collect::<Result<_, _>>().map(Self)
    }
}

messages! {
    /// A message from a node to an engine.
    enum ToEngine;

    /// The hello is accepted.
    "welcome" => Welcome {
        /// The version spoken from here on.
        version: u16,
        /// This run of the node.
        node: NodeId,
        /// The longest body of a frame.
        frame_bytes_max: u32,
        /// The longest list in a message.
        list_len_max: u32,
    }

    /// The hello is not accepted; the connection closes.
    "reject" => Reject {
        /// Why.
        code: RejectCode,
        /// For people: what was found and what to do.
        message: String,
    }

    /// The engine's chunks are known; a worker's carries three descriptors.
    "registered" => Registered {
        /// Request id.
        id: u64,
        /// The store namespace of this engine's chunks.
        namespace: StoreNamespace,
        /// Bytes of the slab.
        slab_bytes: u64,
        /// Bytes of one extent of the slab.
        extent_bytes: u64,
        /// Slot numbers that each extent takes up.
        slots_per_extent: u32,
        /// Bytes from one slot of this layout to the next.
        slot_stride: u64,
        /// Bytes of the writable region.
        region_bytes: u64,
        /// Bytes from one region slot to the next.
        region_stride: u64,
        /// Slots of the region.
        region_slots: u32,
        /// How long leases last, in milliseconds.
        lease_ttl_ms: u32,
        /// Descriptors on this frame: 3 for a worker, 0 for a scheduler.
        fds: u32,
        /// This session, alike on all its connections. Nodes older than the field leave it out.
        session: Option<WireSession>,
    }

    /// The engine cannot be served; it runs as if alone.
    "refused" => Refused {
        /// Request id.
        id: u64,
        /// Why.
        code: RefusedCode,
        /// For people: what was found and what to do.
        message: String,
    }

    /// A lease on the first `slots.len()` keys of a lookup.
    "lease" => Leased {
        /// Request id.
        id: u64,
        /// The lease.
        lease: LeaseId,
        /// Where each chunk lies.
        slots: Vec<u32>,
        /// The generation each slot must have before and after it is copied.
        generations: Vec<u64>,
        /// Milliseconds from receipt until an unstarted lease ends.
        expires_ms: u32,
    }

    /// Since version 2: what is held is coming up from a slower tier. Ask again: nobody is told when it is there.
    "pending" => Pending {
        /// Request id.
        id: u64,
        /// Chunks that are coming up.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
    }

    /// Nothing to lease.
    "miss" => Miss {
        /// Request id.
        id: u64,
        /// Why.
        reason: MissReason,
    }

    /// A lease that the proxy had staged, found by its tag.
    "grant" => Grant {
        /// The lease.
        lease: LeaseId,
        /// The request it was staged for.
        tag: Tag,
        /// What the node believes the prompt begins with.
        keys: Vec<BlockKey>,
        /// How many tokens end with each.
        end_tokens: Vec<u32>,
        /// Where each chunk lies.
        slots: Vec<u32>,
        /// The generation each slot must have before and after it is copied.
        generations: Vec<u64>,
        /// Milliseconds from receipt until an unstarted lease ends.
        expires_ms: u32,
    }

    /// Answers `offload`.
    "offloading" => Offloading {
        /// Request id.
        id: u64,
        /// For each key: 0 write it, 1 held, 2 refused.
        verdicts: Verdicts,
    }

    /// Answers `commit`: the region slots are the engine's again.
    "committed" => Committed {
        /// Request id.
        id: u64,
        /// For each key: 0 stored, 1 held, 2 refused.
        results: Verdicts,
    }

    /// Done.
    "ok" => Okay {
        /// Request id.
        id: u64,
    }

    /// Answers `epoch`.
    "epoch_set" => EpochSet {
        /// Request id.
        id: u64,
        /// The namespace from here on.
        namespace: StoreNamespace,
    }

    /// Since version 3: the pages are open here.
    "attached" => Attached {
        /// Request id.
        id: u64,
        /// Events of the node's that `moving` names by their place here.
        events: Vec<GpuHandle>,
    }

    /// Since version 3: all copies of a `fetch` or `save` were given to the GPU, and the event was recorded behind them.
    "moving" => Moving {
        /// Request id.
        id: u64,
        /// Which of the node's events.
        event: u32,
    }

    /// Since version 3: a `fetch` or `save` is over.
    "moved" => Moved {
        /// Request id.
        id: u64,
        /// Whether all of it was done; if not, some pages may have been written.
        ok: bool,
        /// Nothing of it moves any more. Where this is false nobody knows: what it writes must not be used again.
        quiet: bool,
        /// For people, if not `ok`: what failed.
        message: Option<String>,
    }

    /// A message could not be served.
    "error" => ErrorAnswer {
        /// Request id, where one could be read.
        id: Option<u64>,
        /// What kind of fault.
        code: ErrorCode,
        /// For people: what was found.
        message: String,
    }

    /// The node ends the session.
    "goodbye" => Farewell {
        /// Why, for the log.
        reason: String,
    }
}

impl Registered {
    /// Where a slot begins in the slab, in bytes; `None` if it does not lie in the slab.
    pub fn slot_offset(&self, slot: u32) -> Option<u64> {
        let per_extent = self.slots_per_extent.max(1);
        let (extent, index) = (u64::from(slot / per_extent), u64::from(slot % per_extent));
        let offset =
            extent.checked_mul(self.extent_bytes)?.checked_add(index.checked_mul(self.slot_stride)?)?;
        (offset.checked_add(self.slot_stride)? <= self.slab_bytes).then_some(offset)
    }
}

/// What no single field can say: lists that belong together.
fn check(message: &ToEngine) -> Result<(), Malformed> {
    match message {
        ToEngine::Leased(lease) if lease.slots.len() != lease.generations.len() => {
            Err(Malformed::Lengths("slots and generations"))
        }
        ToEngine::Grant(grant) => {
            if grant.slots.len() != grant.generations.len() || grant.slots.len() != grant.keys.len() {
                return Err(Malformed::Lengths("keys, slots and generations"));
            }
            pairs(&grant.keys, &grant.end_tokens, "keys and end_tokens")
        }
        _ => Ok(()),
    }
}
