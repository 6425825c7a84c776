//! Leases that were granted: their loads, and when each ends.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_protocol::LeaseId;
use larder_protocol::code::ErrorCode;
use larder_protocol::message::{Complete, Load, Okay, Release};

use super::disk::DiskTier;
use super::sessions::error;
use super::{ConnectionId, Output, SessionId, Store, send};

/// A slot that a lease holds, and the generation it had then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) slot: u32,
    pub(super) generation: u64,
}

/// A granted lease.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) session: SessionId,
    pub(super) chunks: Vec<Pinned>,
    pub(super) tokens: u64,
    pub(super) staged: bool,
    /// Loads begun and not completed.
    pub(super) open_loads: u32,
    /// Fetches under way: copies that the node itself makes.
    pub(super) moving: u32,
    /// Its chunks are being brought to GPUs.
    pub(super) landing: bool,
    /// Some of them may lie there for it.
    pub(super) landed: bool,
    pub(super) ever_loaded: bool,
    /// Released or expired: it ends with its last open load and fetch.
    pub(super) ending: bool,
    pub(super) expires: Duration,
}

impl Lease {
    /// Something still reads its chunks.
    fn is_read(&self) -> bool {
        self.open_loads > 0 || self.moving > 0 || self.landing
    }
}

impl Store {
    pub(super) fn load(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        load: &Load,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let found = self.leases.get_mut(&load.lease).filter(|lease| lease.session == session);
        let usable = found.filter(|lease| !lease.ending && lease.expires > now);
        let end = u64::from(load.first) + u64::from(load.count);
        let Some(lease) = usable.filter(|lease| load.count > 0 && end <= lease.chunks.len() as u64) else {
            let text = format!("lease {} is unknown, ended, or shorter than {end} chunks", load.lease);
            return out.push(error(connection, Some(load.id), ErrorCode::NoLease, text));
        };
        lease.open_loads += 1;
        lease.ever_loaded = true;
        self.counts.loads += 1;
        self.counts.loading_tokens += lease.tokens / lease.chunks.len() as u64 * u64::from(load.count);
        out.push(send(connection, Okay { id: load.id }));
    }

    pub(super) fn complete(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        complete: &Complete,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let found = self.leases.get_mut(&complete.lease).filter(|lease| lease.session == session);
        let Some(lease) = found.filter(|lease| lease.open_loads > 0) else {
            let text = format!("lease {} is unknown, ended, or has no load open", complete.lease);
            return out.push(error(connection, Some(complete.id), ErrorCode::NoLease, text));
        };
        lease.open_loads -= 1;
        let over = !lease.is_read() && (lease.ending || lease.expires <= now);
        let suspects: Vec<Pinned> = (complete.failed.iter().flatten())
            .filter_map(|index| lease.chunks.get(*index as usize).copied())
            .collect();
        if !complete.ok {
            self.counts.failed_loads += 1;
        }
        for pinned in suspects {
            if self.arena.generation(pinned.slot) == pinned.generation
                && let Some(held) = self.arena.held_mut(pinned.slot)
            {
                held.verified = None;
            }
        }
        if over {
            self.end(complete.lease);
        }
        out.push(send(connection, Okay { id: complete.id }));
    }

    pub(super) fn release(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        release: &Release,
        out: &mut Vec<Output>,
    ) {
        let found = self.leases.get(&release.lease).filter(|lease| lease.session == session && !lease.ending);
        if found.is_none() {
            let text = format!("lease {} is unknown or ended", release.lease);
            return out.push(error(connection, Some(release.id), ErrorCode::NoLease, text));
        }
        self.end_unless_loading(release.lease);
        out.push(send(connection, Okay { id: release.id }));
    }

    /// One of its fetches is over.
    pub(super) fn fetched(&mut self, id: LeaseId, now: Duration) {
        let lease = self.leases.get_mut(&id).expect("a fetch keeps its lease");
        lease.moving -= 1;
        if !lease.is_read() && (lease.ending || lease.expires <= now) {
            self.end(id);
        }
    }

    /// Its chunks are on GPUs as far as they come.
    pub(super) fn landed(&mut self, id: LeaseId, now: Duration) {
        let lease = self.leases.get_mut(&id).expect("what reads its chunks keeps a lease");
        lease.landing = false;
        let session = lease.session;
        if !lease.is_read() && (lease.ending || lease.expires <= now) {
            self.end(id);
        }
        self.bury(session, &mut Vec::new());
    }

    /// Its time is over: it ends, or if a load is open, with that.
    pub(super) fn expire(&mut self, id: LeaseId) {
        self.counts.expired_leases += 1;
        self.end_unless_loading(id);
    }

    pub(super) fn end_unless_loading(&mut self, id: LeaseId) {
        match self.leases.get_mut(&id) {
            Some(lease) if lease.is_read() => {
                lease.ending = true;
                if std::mem::take(&mut lease.landed) {
                    self.unlanded.push(id);
                }
            }
            Some(_) => self.end(id),
            None => {}
        }
    }

    /// Nothing of its session lives any more: open loads are over as well, but not what the node copies.
    pub(super) fn end_dead(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.open_loads = 0;
            self.end_unless_loading(id);
        }
    }

    fn end(&mut self, id: LeaseId) {
        let lease = self.leases.remove(&id).expect("only a known lease ends");
        debug_assert!(!lease.is_read(), "an open load and a fetch keep their lease");
        self.expiries.remove(&(lease.expires, id));
        if lease.landed {
            self.unlanded.push(id);
        }
        lease.chunks.iter().for_each(|pinned| self.arena.unpin(pinned.slot));
        if lease.staged && !lease.ever_loaded {
            self.counts.unused_staged_tokens += lease.tokens;
        }
        if let Some(session) = self.sessions.get_mut(&lease.session) {
            session.leases.remove(&id);
        }
    }

    /// How often each slot is held by leases, verifications, writes to disk and pins.
    pub(super) fn holds(&self) -> BTreeMap<u32, u32> {
        let leased = self.leases.values().flat_map(|lease| &lease.chunks);
        let opening = self.openings.values().flat_map(|opening| &opening.chunks);
        let written = self.disk.iter().flat_map(DiskTier::written);
        let mut holds = BTreeMap::new();
        let pinned = self.pins.iter().flat_map(|(_, pin)| pin.slots.iter().map(|(slot, _)| *slot));
        let slots = leased.chain(opening).chain(written).map(|pinned| pinned.slot).chain(pinned);
        slots.for_each(|slot| *holds.entry(slot).or_default() += 1);
        holds
    }
}
