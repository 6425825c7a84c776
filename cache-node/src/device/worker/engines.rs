//! Engines' ranks come and go: their pages are opened on a GPU, and the memory that they load from and save to is pinned.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use larder_kernels::{GpuError, Uuid};
use larder_protocol::GpuHandle;
use larder_protocol::code::RefusedCode;
use larder_protocol::message::Attach;

use super::Worker;
use crate::device::card::Card;
use crate::device::rank::Rank;
use crate::device::{Memory, names};
use crate::medium::memory::SharedMemory;
use crate::store::{ConnectionId, SessionId};

impl Worker {
    pub(super) fn attach(
        &mut self,
        connection: ConnectionId,
        rank: (SessionId, u32),
        (chunk_blocks, part_bytes): (u32, u64),
        attach: &Attach,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Vec<GpuHandle>, (RefusedCode, String)> {
        let bad = |text: String| (RefusedCode::BadPages, text);
        let refused = |error: GpuError| (RefusedCode::BadPages, error.to_string());
        if self.ranks.contains_key(&connection) {
            return Err(bad("this rank's pages are open already".to_owned()));
        }
        let named = names::read(attach, descriptors, chunk_blocks, part_bytes).map_err(bad)?;
        let card = self.card(named.device)?;
        let part_bytes = named.layout.chunk_bytes() as usize;
        card.link(part_bytes).map_err(bad)?;
        let rank = Rank::open(&card.device, rank, attach, named).map_err(refused)?;
        let handles = rank.handles().map_err(refused)?;
        tracing::info!(connection = connection.0, gpu = %rank.device, part_bytes, "an engine's pages are open");
        self.ranks.insert(connection, rank);
        Ok(handles)
    }

    /// The GPU with a UUID, opened if it is not yet.
    fn card(&mut self, uuid: Uuid) -> Result<&mut Card, (RefusedCode, String)> {
        let (none, settings) = (|text: String| (RefusedCode::NoGpu, text), self.settings);
        if !self.cards.contains_key(&uuid) {
            let driver = self.driver.as_ref().ok_or_else(|| none("this node has no GPU".to_owned()))?;
            let opened = driver
                .device(uuid)
                .and_then(|device| Card::open(device, settings))
                .map_err(|error| none(error.to_string()))?;
            self.cards.insert(uuid, opened);
        }
        let card = self.cards.get_mut(&uuid).expect("was found or put there");
        match card.lost {
            true => Err(none(format!("{uuid} is lost to this process; restart the node"))),
            false => Ok(card),
        }
    }

    pub(super) fn pin(&mut self, connection: ConnectionId, region: Arc<SharedMemory>) {
        let rank = &self.ranks[&connection];
        let device = &self.cards[&rank.device].device;
        self.pinning.begin(device, Memory::Slab, Arc::clone(&self.slab));
        self.pinning.begin(device, Memory::Region(rank.session), region);
    }

    /// Its pages are closed with the last transfer that uses them.
    pub(super) fn detach(&mut self, connection: ConnectionId) {
        let Some(rank) = self.ranks.remove(&connection) else { return };
        if let Some(link) =
            self.cards.get_mut(&rank.device).and_then(|card| card.links.get_mut(&rank.part_bytes))
        {
            link.forget(&rank.kv);
        }
        if !self.ranks.values().any(|other| other.session == rank.session) {
            self.pinning.forget(Memory::Region(rank.session));
        }
    }
}
