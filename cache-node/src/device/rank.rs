//! An engine's rank: its pages, open here, and the events by which both sides order their work.

use std::sync::Arc;

use larder_kernels::{Device, Event, EventHandle, GpuError, ImportedKv, Uuid};
use larder_protocol::GpuHandle;
use larder_protocol::message::Attach;

use super::names::Named;
use crate::store::SessionId;

/// Events of ours for a rank, used in turn: one that is recorded again before the engine has waited for it makes it wait
/// for a later transfer, never for an earlier one.
const EVENTS: u32 = 8;

#[derive(Debug)]
pub(super) struct Rank {
    pub(super) session: SessionId,
    /// Its number in the session: which part of a chunk is its.
    pub(super) number: u32,
    pub(super) device: Uuid,
    /// Names the link: bytes of a chunk's part.
    pub(super) part_bytes: usize,
    pub(super) chunk_blocks: usize,
    pub(super) kv: Arc<ImportedKv>,
    theirs: Vec<Arc<Event>>,
    ours: Vec<Event>,
    next: u32,
}

impl Rank {
    /// Opens a rank's pages and events.
    pub(super) fn open(
        device: &Device,
        (session, number): (SessionId, u32),
        attach: &Attach,
        named: Named,
    ) -> Result<Self, GpuError> {
        let open = |handle: &GpuHandle| Event::open(device, EventHandle(handle.0)).map(Arc::new);
        let theirs = attach.events.iter().map(open).collect::<Result<_, _>>()?;
        let ours = (0..EVENTS).map(|_| Event::create(device)).collect::<Result<_, _>>()?;
        let (part_bytes, chunk_blocks) =
            (named.layout.chunk_bytes() as usize, named.layout.chunk_blocks() as usize);
        let kv = Arc::new(ImportedKv::open(device, named.parts, named.layout)?);
        Ok(Self {
            session,
            number,
            device: named.device,
            part_bytes,
            chunk_blocks,
            kv,
            theirs,
            ours,
            next: 0,
        })
    }

    /// The names of our events.
    pub(super) fn handles(&self) -> Result<Vec<GpuHandle>, GpuError> {
        self.ours.iter().map(|event| event.export().map(|handle| GpuHandle(handle.0))).collect()
    }

    /// The engine's event of a number.
    pub(super) fn event(&self, number: u32) -> Option<&Arc<Event>> {
        self.theirs.get(number as usize)
    }

    /// Our event to record next, and its number.
    pub(super) fn next_event(&mut self) -> (u32, &Event) {
        let number = self.next % EVENTS;
        self.next = number + 1;
        (number, &self.ours[number as usize])
    }
}
