//! Opening a lease: find what is held, pin it, have it verified, grant it.

use std::time::Duration;

use larder_protocol::code::MissReason;
use larder_protocol::control::{StageAnswer, StageReason};
use larder_protocol::message::{Grant, Leased, Lookup, Miss, Pending, ToEngine};
use larder_protocol::{BlockKey, LeaseId, StoreNamespace, Tag, Version};
use larder_tiering::Owner;

use super::disk::Raising;
use super::leases::{Lease, Pinned};
use super::{
    Check, ChunkName, ConnectionId, Finding, Output, SessionId, Store, Ticket, Verify, VerifyId, send,
};
use crate::recipe::PromptKeys;

/// Uses that may wait to be told to the order of eviction: that is kept out of a lookup's way.
const USED_MAX: usize = 64;

/// Chunks of one prompt that were used together, in its order.
#[derive(Debug)]
pub(super) struct UsedPath {
    slots: Vec<u32>,
    /// The number of the first one's use; the others' follow downwards.
    numbers: u64,
    now: Duration,
}

/// Who asked for a lease.
#[derive(Debug)]
pub(super) enum Asker {
    Lookup {
        connection: ConnectionId,
        id: u64,
        /// The engine can be told to ask again.
        may_wait: bool,
    },
    Stage {
        ticket: Ticket,
        tag: Tag,
        /// What the recipe names, held or not.
        named: usize,
        /// The request is not on its way to the engine before.
        needed_by: Duration,
        /// Tokens of each chunk's end.
        ends: Vec<(u32, BlockKey)>,
    },
}

/// A lease whose chunks are pinned and being verified.
#[derive(Debug)]
pub(super) struct Opening {
    session: SessionId,
    namespace: StoreNamespace,
    lease: LeaseId,
    pub(super) chunks: Vec<Pinned>,
    /// Which of `chunks` are being verified, in order.
    checked: Vec<usize>,
    asker: Asker,
    /// A limit cut the chunks short.
    cut: bool,
    tokens_per_chunk: u32,
}

/// The leading chunks that are held, pinned.
struct Held {
    chunks: Vec<Pinned>,
    bytes: u64,
    cut: bool,
}

impl Store {
    pub(super) fn lookup(
        &mut self,
        connection: ConnectionId,
        session_id: SessionId,
        lookup: Lookup,
        fresh: LeaseId,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let miss = |reason| send(connection, Miss { id: lookup.id, reason });
        let session = self.sessions.get(&session_id).expect("a connection's session exists");
        let Some(layout) = session.layout.clone().filter(|_| session.ready) else {
            return out.push(miss(MissReason::NotReady));
        };
        if let Some(tag) = lookup.tag {
            let keys = PromptKeys {
                namespace: layout.namespace,
                tokens_per_chunk: layout.tokens_per_chunk,
                keys: &lookup.keys,
                end_tokens: &lookup.end_tokens,
                prompt_tokens: lookup.prompt_tokens,
            };
            self.recipes.note_keys(tag, &keys);
        }
        let may_wait = self.connections.get(&connection).is_some_and(|it| it.version >= Version::V2);
        self.counts.lookups += 1;
        let asked = lookup.keys.len() as u64 * u64::from(layout.tokens_per_chunk);
        let opening = OpeningRequest {
            session: session_id,
            namespace: layout.namespace,
            tokens_per_chunk: layout.tokens_per_chunk,
            lease: fresh,
            owner: self.owner_of(lookup.tag),
            stop_at: now.saturating_add(self.settings.lookup_deadline),
            asker: Asker::Lookup { connection, id: lookup.id, may_wait },
        };
        self.counts.looked_up_tokens += asked;
        self.open(opening, &lookup.keys, u64::MAX, true, now, out);
    }

    /// Pins the leading held chunks and has them verified, or answers at once. What lies on disk behind them is brought
    /// up if it `may_raise`: a stage call waits for that, a lookup is told to ask again, if its engine understands.
    pub(super) fn open(
        &mut self,
        request: OpeningRequest,
        keys: &[BlockKey],
        bytes_max: u64,
        may_raise: bool,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let busy = self.leases.len() + self.openings.len() + self.waiting.len() >= self.settings.leases_max
            || self.openings.len() >= self.settings.verifications_max
            || self.leases.contains_key(&request.lease);
        let mut held = Held { chunks: Vec::new(), bytes: 0, cut: busy };
        if !busy {
            held = self.pin_leading(request.namespace, keys.iter(), bytes_max);
        }
        if may_raise && !held.cut && held.chunks.len() < keys.len() {
            let last = held.chunks.last().map(|pinned| pinned.slot);
            let (missing, left) = (&keys[held.chunks.len()..], bytes_max - held.bytes);
            let raising = self.raise(&request, missing, last, left, now, out);
            let waits = matches!(request.asker, Asker::Stage { .. } | Asker::Lookup { may_wait: true, .. });
            if raising.chunks > 0 && waits {
                held.chunks.iter().for_each(|pinned| self.arena.unpin(pinned.slot));
                return self.answer_later(request, keys, bytes_max, raising, out);
            }
        }
        if held.chunks.is_empty() {
            let none = if held.cut { Nothing::Busy } else { Nothing::NotHeld };
            return self.answer_nothing(request.asker, none, out);
        }
        let numbers = self.use_numbers(held.chunks.len());
        let slots = held.chunks.iter().map(|pinned| pinned.slot).collect();
        self.used.push(UsedPath { slots, numbers, now });
        if self.used.len() >= USED_MAX {
            self.settle_uses();
        }
        let (checked, checks) = self.checks(&held.chunks, now);
        let opening = Opening {
            session: request.session,
            namespace: request.namespace,
            lease: request.lease,
            chunks: held.chunks,
            checked,
            asker: request.asker,
            cut: held.cut,
            tokens_per_chunk: request.tokens_per_chunk,
        };
        if checks.is_empty() {
            return self.grant(opening, now, out);
        }
        let verify = VerifyId(self.number());
        self.openings.insert(verify, opening);
        out.push(Output::Verify { verify, checks, stop_at: request.stop_at });
    }

    /// Chunks are coming up: a stage call waits for them, an engine asks again.
    fn answer_later(
        &mut self,
        request: OpeningRequest,
        keys: &[BlockKey],
        bytes_max: u64,
        raising: Raising,
        out: &mut Vec<Output>,
    ) {
        match &request.asker {
            Asker::Stage { .. } => self.wait(request, keys, bytes_max, raising.loads),
            Asker::Lookup { connection, id, .. } => {
                self.counts.lookups_pending += 1;
                let pending = Pending { id: *id, chunks: raising.chunks, bytes: raising.bytes };
                out.push(send(*connection, pending));
            }
        }
    }

    /// Tells the order of eviction what was used. Before anything is evicted: what is pinned meanwhile stays anyway.
    pub(super) fn settle_uses(&mut self) {
        for UsedPath { slots, numbers, now } in std::mem::take(&mut self.used) {
            for (index, slot) in (0_u64..).zip(&slots) {
                self.arena.order.touch(*slot, numbers - index, now);
            }
            for pair in slots.windows(2) {
                self.arena.order.link(pair[1], pair[0]);
            }
        }
    }

    fn pin_leading<'a>(
        &mut self,
        namespace: StoreNamespace,
        keys: impl Iterator<Item = &'a BlockKey>,
        bytes_max: u64,
    ) -> Held {
        let mut held = Held { chunks: Vec::new(), bytes: 0, cut: false };
        for key in keys {
            let name = ChunkName { namespace, key: key.clone() };
            let Some(slot) = self.chunks.get(&name).copied().filter(|slot| self.arena.held(*slot).is_some())
            else {
                break;
            };
            let more = if self.arena.slot(slot).pins == 0 { self.arena.stride(slot) } else { 0 };
            let bytes = held.bytes + self.arena.held(slot).map_or(0, |held| held.bytes);
            if self.arena.pinned_bytes + more > self.settings.pinned_bytes_max || bytes > bytes_max {
                held.cut = true;
                break;
            }
            held.bytes = bytes;
            self.arena.pin(slot);
            held.chunks.push(Pinned { slot, generation: self.arena.generation(slot) });
        }
        held
    }

    /// Which of these chunks have to be read back, and how.
    fn checks(&self, chunks: &[Pinned], now: Duration) -> (Vec<usize>, Vec<Check>) {
        if self.settings.verify == Verify::Off {
            return (Vec::new(), Vec::new());
        }
        let fresh = |verified: Option<Duration>| {
            verified.is_some_and(|verified| now.saturating_sub(verified) < self.settings.verify_fresh)
        };
        let check = |(index, pinned): (usize, &Pinned)| {
            let held = self.arena.held(pinned.slot).filter(|held| !fresh(held.verified))?;
            let offset = self.arena.offset(pinned.slot);
            Some((index, Check { offset, bytes: held.bytes, checksum: held.checksum }))
        };
        chunks.iter().enumerate().filter_map(check).unzip()
    }

    pub(super) fn verified(
        &mut self,
        verify: VerifyId,
        found: &[Finding],
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(mut opening) = self.openings.remove(&verify) else { return };
        // Quarantined first, whoever asked and whether they are still there; only then is anything answered.
        let mut good = opening.chunks.len();
        let mut why = Nothing::NotHeld;
        for (place, index) in opening.checked.iter().enumerate().rev() {
            let pinned = opening.chunks[*index];
            let finding = found.get(place).copied().unwrap_or(Finding::Skipped);
            match finding {
                Finding::Good => self.mark_verified(pinned, now),
                Finding::Bad => self.quarantine(pinned),
                Finding::Skipped => {}
            }
            if finding != Finding::Good {
                good = *index;
                why = if finding == Finding::Bad { Nothing::Corrupt } else { Nothing::Deadline };
            }
        }
        self.publish_generations(out);
        // Another lease's verification may have quarantined a chunk meanwhile.
        let still =
            opening.chunks.iter().position(|pinned| self.arena.generation(pinned.slot) != pinned.generation);
        if let Some(index) = still.filter(|index| *index < good) {
            (good, why) = (index, Nothing::Corrupt);
        }
        let session = self.sessions.get(&opening.session);
        let layout = session.filter(|session| session.ready).and_then(|session| session.layout.as_ref());
        if layout.is_none_or(|layout| layout.namespace != opening.namespace) {
            (good, why) = (0, Nothing::NoSession);
        }
        opening.cut |= good < opening.chunks.len();
        for pinned in opening.chunks.split_off(good) {
            self.arena.unpin(pinned.slot);
        }
        if good == 0 {
            self.answer_nothing(opening.asker, why, out);
        } else {
            self.grant(opening, now, out);
        }
    }

    fn mark_verified(&mut self, pinned: Pinned, now: Duration) {
        if self.arena.generation(pinned.slot) == pinned.generation
            && let Some(held) = self.arena.held_mut(pinned.slot)
        {
            held.verified = Some(now);
        }
    }

    pub(super) fn quarantine(&mut self, pinned: Pinned) {
        if self.arena.generation(pinned.slot) != pinned.generation {
            return;
        }
        if let Some(name) = self.arena.quarantine(pinned.slot) {
            self.chunks.remove(&name);
            self.counts.corrupt_chunks += 1;
        }
    }

    /// Everything is pinned and verified: the lease begins.
    fn grant(&mut self, opening: Opening, now: Duration, out: &mut Vec<Output>) {
        let Opening { session, lease: id, chunks, asker, cut, tokens_per_chunk, .. } = opening;
        let slots: Vec<u32> = chunks.iter().map(|pinned| pinned.slot).collect();
        let generations: Vec<u64> = chunks.iter().map(|pinned| pinned.generation).collect();
        let tokens = chunks.len() as u64 * u64::from(tokens_per_chunk);
        let bytes = slots.iter().filter_map(|slot| self.arena.held(*slot)).map(|held| held.bytes).sum();
        let expires_ms = u32::try_from(self.settings.lease_ttl.as_millis()).unwrap_or(u32::MAX);
        let count = chunks.len();
        self.note_grant(&chunks);
        let lease = Lease {
            session,
            chunks,
            tokens,
            staged: matches!(asker, Asker::Stage { .. }),
            open_loads: 0,
            moving: 0,
            landing: false,
            landed: false,
            ever_loaded: false,
            ending: false,
            expires: now.saturating_add(self.settings.lease_ttl),
        };
        self.expiries.insert((lease.expires, id));
        self.leases.insert(id, lease);
        let holder = self.sessions.get_mut(&session).expect("only a live session is granted a lease");
        holder.leases.insert(id);
        match asker {
            Asker::Lookup { connection, id: request, .. } => {
                self.counts.lookup_hits += 1;
                self.counts.hit_tokens += tokens;
                let leased = Leased { id: request, lease: id, slots, generations, expires_ms };
                out.push(send(connection, leased));
            }
            Asker::Stage { ticket, tag, named, needed_by, ends } => {
                self.counts.staged += 1;
                self.counts.staged_tokens += tokens;
                let (end_tokens, keys) = ends.into_iter().take(count).unzip();
                let reason = match (count == named, cut) {
                    (true, _) => StageReason::Staged,
                    (false, true) => StageReason::Cut,
                    (false, false) => StageReason::Partial,
                };
                let answer = StageAnswer {
                    lease: Some(id),
                    tag: Some(tag),
                    tokens_ready: tokens,
                    chunks: count as u64,
                    bytes,
                    reason,
                };
                let grant = Grant { lease: id, tag, keys, end_tokens, slots, generations, expires_ms };
                let connection = holder.scheduler.expect("a ready session has a scheduler");
                out.push(Output::Grant { connection, message: ToEngine::from(grant), ticket, answer });
                self.land(id, needed_by, out);
            }
        }
    }

    pub(super) fn answer_nothing(&mut self, asker: Asker, why: Nothing, out: &mut Vec<Output>) {
        match asker {
            Asker::Lookup { connection, id, .. } => {
                self.counts.lookup_misses += 1;
                out.push(send(connection, Miss { id, reason: why.miss() }));
            }
            Asker::Stage { ticket, tag, .. } => {
                self.counts.staged_nothing += 1;
                out.push(Output::Answer { ticket, answer: nothing(tag, why.stage()) });
            }
        }
    }
}

/// What a lease is to be opened for.
#[derive(Debug)]
pub(super) struct OpeningRequest {
    pub(super) session: SessionId,
    pub(super) namespace: StoreNamespace,
    pub(super) tokens_per_chunk: u32,
    pub(super) lease: LeaseId,
    /// Whose prompt it is.
    pub(super) owner: Owner,
    pub(super) stop_at: Duration,
    pub(super) asker: Asker,
}

/// Why there is nothing to lease, in the words of both askers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    NotHeld,
    Corrupt,
    Busy,
    Deadline,
    NoSession,
}

impl Nothing {
    fn miss(self) -> MissReason {
        match self {
            Self::NotHeld => MissReason::NotHeld,
            Self::Corrupt => MissReason::Corrupt,
            Self::Busy => MissReason::Busy,
            Self::Deadline => MissReason::Deadline,
            Self::NoSession => MissReason::NotReady,
        }
    }

    fn stage(self) -> StageReason {
        match self {
            Self::NotHeld => StageReason::NotHeld,
            Self::Corrupt => StageReason::Corrupt,
            Self::Busy => StageReason::Busy,
            Self::Deadline => StageReason::Deadline,
            Self::NoSession => StageReason::NoEngine,
        }
    }
}

/// The answer when nothing was staged.
pub(super) fn nothing(tag: Tag, reason: StageReason) -> StageAnswer {
    StageAnswer { lease: None, tag: Some(tag), tokens_ready: 0, chunks: 0, bytes: 0, reason }
}
