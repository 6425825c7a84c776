//! Registration: what an engine's chunks are, whether they can be served, and when its session serves.

use larder_protocol::code::{ErrorCode, RefusedCode};
use larder_protocol::message::{EpochSet, Refused, Register, Registered, Role};
use larder_protocol::{NamespaceParts, StoreNamespace, WireSession};

use super::sessions::{WORLD_MAX, error};
use super::{
    ConnectionId, Output, SLOTS_PER_EXTENT, STRIDE_BYTES_MIN, STRIDE_UNIT_BYTES, SessionId, Store, send,
};

/// Slots of a region at most; more would not be filled before the first are free again.
const REGION_SLOTS_MAX: u64 = 4096;

/// What an engine's chunks are.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) namespace: StoreNamespace,
    /// As registered, the id aside.
    pub(super) register: Register,
    pub(super) tokens_per_chunk: u32,
    pub(super) chunk_bytes: u64,
    pub(super) stride: u64,
    pub(super) region_slots: u32,
}

impl Store {
    pub(super) fn register(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        register: Register,
        out: &mut Vec<Output>,
    ) {
        let request = register.id;
        let layout = match self.layout_of(register) {
            Ok(layout) => layout,
            Err((code, message)) => return out.push(send(id, Refused { id: request, code, message })),
        };
        let session = self.sessions.get_mut(&session_id).expect("a connection's session exists");
        let connection = self.connections.get_mut(&id).expect("only a known connection registers");
        let known = session.layout.as_ref().is_none_or(|known| known.register == layout.register);
        let rank_fits = connection.role == Role::Scheduler
            || session.workers.range(..layout.register.world).any(|(_, worker)| *worker == id);
        if !known || !rank_fits {
            let message =
                "another connection of this session registered otherwise, or the rank is outside world";
            let refused = Refused { id: request, code: RefusedCode::Mismatch, message: message.to_owned() };
            return out.push(send(id, refused));
        }
        connection.registered = true;
        let worker = connection.role == Role::Worker;
        if worker {
            session.mapped.insert(id);
        }
        let message = Registered {
            id: request,
            namespace: layout.namespace,
            slab_bytes: self.settings.extent_bytes * u64::from(self.settings.extents),
            extent_bytes: self.settings.extent_bytes,
            slots_per_extent: SLOTS_PER_EXTENT,
            slot_stride: layout.stride,
            region_bytes: layout.stride * u64::from(layout.region_slots),
            region_stride: layout.stride,
            region_slots: layout.region_slots,
            lease_ttl_ms: u32::try_from(self.settings.lease_ttl.as_millis()).unwrap_or(u32::MAX),
            fds: if worker { 3 } else { 0 },
            // Numbers are not used twice in one run of a node, and the runs' ids are drawn far apart.
            session: Some(WireSession(self.settings.node.0.wrapping_add(u128::from(session_id.0)))),
        };
        let world = layout.register.world as usize;
        session.layout.get_or_insert(layout);
        let ranks = session.workers.values().filter(|worker| session.mapped.contains(worker)).count();
        let scheduler = session.scheduler.and_then(|scheduler| self.connections.get(&scheduler));
        session.ready = ranks == world && scheduler.is_some_and(|scheduler| scheduler.registered);
        out.push(Output::Register { connection: id, session: session_id, message });
    }

    /// The sizes of an engine's chunks, if they can be served.
    fn layout_of(&self, mut register: Register) -> Result<Layout, (RefusedCode, String)> {
        register.id = 0;
        if register.hash.starts_with("xxhash") && !self.settings.single_tenant {
            let text = format!(
                "block hash {:?} is not collision-resistant: use sha256_cbor, or set single_tenant = true",
                register.hash
            );
            return Err((RefusedCode::WeakHash, text));
        }
        let bad = |what: &str| (RefusedCode::BadLayout, format!("{what} is zero or too large"));
        if register.world == 0 || register.world > WORLD_MAX {
            return Err(bad("world"));
        }
        let tokens_per_chunk = register.tokens_per_block.checked_mul(register.blocks_per_chunk);
        let tokens_per_chunk =
            tokens_per_chunk.filter(|tokens| *tokens > 0).ok_or_else(|| bad("tokens of a chunk"))?;
        let chunk_bytes = register.part_bytes.checked_mul(u64::from(register.world));
        let chunk_bytes = chunk_bytes.filter(|bytes| *bytes > 0).ok_or_else(|| bad("part_bytes"))?;
        let extent = self.settings.extent_bytes;
        if chunk_bytes > extent {
            let text = format!(
                "a chunk of {chunk_bytes} bytes does not fit into {extent}: use fewer blocks_per_chunk"
            );
            return Err((RefusedCode::ChunkTooLarge, text));
        }
        let stride = chunk_bytes.next_multiple_of(STRIDE_UNIT_BYTES).max(STRIDE_BYTES_MIN);
        let region_slots = (self.settings.region_bytes / stride).clamp(1, REGION_SLOTS_MAX) as u32;
        let namespace = namespace_of(&register);
        Ok(Layout { namespace, register, tokens_per_chunk, chunk_bytes, stride, region_slots })
    }

    pub(super) fn set_epoch(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        request: u64,
        epoch: u64,
        out: &mut Vec<Output>,
    ) {
        let session = self.sessions.get_mut(&session_id).expect("a connection's session exists");
        let Some(layout) = &mut session.layout else {
            return out.push(error(id, Some(request), ErrorCode::NotRegistered, "register first".to_owned()));
        };
        layout.register.epoch = epoch;
        layout.namespace = namespace_of(&layout.register);
        let namespace = layout.namespace;
        let leases = session.leases.clone();
        leases.into_iter().for_each(|lease| self.end_unless_loading(lease));
        out.push(send(id, EpochSet { id: request, namespace }));
    }
}

fn namespace_of(register: &Register) -> StoreNamespace {
    NamespaceParts {
        weights: &register.weights,
        epoch: register.epoch,
        layout: &register.layout,
        hash: &register.hash,
        dtype: &register.dtype,
        tokens_per_block: register.tokens_per_block,
        blocks_per_chunk: register.blocks_per_chunk,
        part_bytes: register.part_bytes,
        world: register.world,
    }
    .digest()
}
