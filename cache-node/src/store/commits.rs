//! Offload and commit: from a session's region into the slab.

use std::time::Duration;

use larder_protocol::code::ErrorCode;
use larder_protocol::message::{Committed, Offload, Offloading, Verdict, Verdicts};
use larder_protocol::{Checksum, message};
use larder_tiering::{Entry, Owner};

use super::arena::{Held, Room, State};
use super::leases::Pinned;
use super::registration::Layout;
use super::sessions::error;
use super::{ChunkName, ConnectionId, CopyId, Output, SessionId, Store, send};
use crate::recipe::PromptKeys;

/// A commit that is being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CommitId(u64);

/// A commit some of whose chunks are still being copied.
#[derive(Debug)]
pub(super) struct Commit {
    connection: ConnectionId,
    session: SessionId,
    id: u64,
    results: Verdicts,
    region_slots: Vec<u32>,
    copying: usize,
    /// The chunk of the prompt before the first of these.
    before: Option<ChunkName>,
    /// Where the chunks will lie, if the first is its prompt's first or follows `before`, as far as there is no gap: what
    /// may go to disk.
    leading: Vec<Pinned>,
}

/// One chunk being copied in.
#[derive(Debug)]
pub(super) struct Copying {
    commit: CommitId,
    pub(super) slot: u32,
    name: ChunkName,
    bytes: u64,
    uses: u32,
}

impl Store {
    /// Says which chunks are worth writing to the region. Takes nothing: whoever commits first, stores.
    pub(super) fn offload(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        offload: &Offload,
        out: &mut Vec<Output>,
    ) {
        let Some(layout) = self.serving(connection, session, offload.id, out) else { return };
        let mut room = self.settings.copies_max.saturating_sub(self.copies.len());
        let mut verdicts = Vec::with_capacity(offload.keys.len());
        for key in &offload.keys {
            let name = ChunkName { namespace: layout.namespace, key: key.clone() };
            verdicts.push(match (self.chunks.contains_key(&name), room) {
                (true, _) => Verdict::Held,
                (false, 0) => Verdict::Refused,
                (false, _) => {
                    room -= 1;
                    Verdict::Accepted
                }
            });
        }
        out.push(send(connection, Offloading { id: offload.id, verdicts: Verdicts(verdicts) }));
    }

    pub(super) fn commit(
        &mut self,
        connection: ConnectionId,
        session_id: SessionId,
        commit: message::Commit,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(layout) = self.serving(connection, session_id, commit.id, out) else { return };
        let session = self.sessions.get_mut(&session_id).expect("it serves");
        let mut taken = session.region_busy.clone();
        let fits = |slot: &u32| {
            *slot < layout.region_slots && taken.insert(*slot) && !session.region_saving.contains_key(slot)
        };
        if !commit.region_slots.iter().all(fits) {
            let text = format!(
                "a region slot is not below {}, or under a commit or save already",
                layout.region_slots
            );
            return out.push(error(connection, Some(commit.id), ErrorCode::BadRegionSlot, text));
        }
        session.region_busy = taken;
        if let Some(tag) = commit.tag {
            let keys = PromptKeys {
                namespace: layout.namespace,
                tokens_per_chunk: layout.tokens_per_chunk,
                keys: &commit.keys,
                end_tokens: &commit.end_tokens,
                prompt_tokens: commit.prompt_tokens,
            };
            self.recipes.note_keys(tag, &keys);
        }
        self.begin(connection, session_id, &layout, commit, now, out);
    }

    /// Decides on each chunk and gives out the copies.
    fn begin(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        layout: &Layout,
        commit: message::Commit,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let id = CommitId(self.number());
        let numbers = self.use_numbers(commit.keys.len());
        let owner = self.owner_of(commit.tag);
        let mut results = Vec::with_capacity(commit.keys.len());
        let mut copying = 0;
        // The chunk before, or the nearest one there is: keys of one commit are of one prompt, in its order.
        let before = commit.parent.map(|key| ChunkName { namespace: layout.namespace, key });
        let mut parent = before.as_ref().and_then(|name| self.chunks.get(name).copied());
        let mut leading = Vec::new();
        let is_first = commit.end_tokens.first().is_some_and(|end| *end <= layout.tokens_per_chunk);
        let follows = is_first || before.is_some();
        let keys = commit.keys.into_iter().zip(commit.end_tokens).zip(&commit.region_slots);
        for (index, ((key, end), region_slot)) in (0_u64..).zip(keys) {
            let name = ChunkName { namespace: layout.namespace, key };
            let used = numbers - index;
            let verdict = match self.chunks.get(&name) {
                Some(slot) => {
                    self.arena.order.touch(*slot, used, now);
                    parent.into_iter().for_each(|parent| self.arena.order.link(*slot, parent));
                    parent = Some(*slot);
                    self.counts.held_already_chunks += 1;
                    Verdict::Held
                }
                None => match self.write_slot(&name, entry(layout, end, parent, owner), used, now) {
                    Some(slot) => {
                        copying += 1;
                        parent = Some(slot);
                        let uses = self.disk.as_ref().map_or(0, |disk| disk.remembered_uses(&name));
                        let copying = Copying { commit: id, slot, name, bytes: layout.chunk_bytes, uses };
                        self.copy(session, copying, u64::from(*region_slot) * layout.stride, out);
                        Verdict::Accepted
                    }
                    None => {
                        self.counts.refused_chunks += 1;
                        Verdict::Refused
                    }
                },
            };
            let gap = !follows || leading.len() as u64 != index || verdict == Verdict::Refused;
            // The next even generation is that of the chunk, once it is whole.
            let place = |slot| Pinned { slot, generation: self.arena.generation(slot).next_multiple_of(2) };
            leading.extend(parent.filter(|_| !gap).map(place));
            results.push(verdict);
        }
        let region_slots = commit.region_slots;
        let commit = Commit {
            connection,
            session,
            id: commit.id,
            results: Verdicts(results),
            region_slots,
            copying,
            before,
            leading,
        };
        if copying == 0 {
            return self.finish(commit, out);
        }
        self.commits.insert(id, commit);
    }

    /// A slot to copy a new chunk into, if one can be had.
    fn write_slot(&mut self, name: &ChunkName, entry: Entry, used: u64, now: Duration) -> Option<u32> {
        let room = self.copies.len() < self.settings.copies_max;
        room.then(|| self.take_slot(name, entry, used, now)).flatten()
    }

    /// A slot for a chunk that is not here, which others may have to leave.
    pub(super) fn take_slot(
        &mut self,
        name: &ChunkName,
        entry: Entry,
        used: u64,
        now: Duration,
    ) -> Option<u32> {
        self.settle_uses();
        let quota = self.quota_of(entry.owner);
        let Room { slot, evicted, for_quota, over_quota } =
            self.arena.allocate(name.clone(), entry, quota, used, now);
        self.counts.evicted_chunks += evicted.len() as u64;
        self.counts.quota_evicted_chunks += for_quota;
        self.counts.quota_refused_chunks += u64::from(over_quota);
        for gone in evicted {
            self.chunks.remove(&gone.name);
            self.left_host(gone, now);
        }
        let slot = slot?;
        self.chunks.insert(name.clone(), slot);
        Some(slot)
    }

    fn copy(&mut self, session: SessionId, copying: Copying, from: u64, out: &mut Vec<Output>) {
        // The slot's generation must be odd in the shared table before its first byte changes.
        self.publish_generations(out);
        let copy = CopyId(self.number());
        let to = self.arena.offset(copying.slot);
        out.push(Output::Copy { copy, session, from, to, bytes: copying.bytes });
        self.copies.insert(copy, copying);
    }

    pub(super) fn copied(&mut self, copy: CopyId, checksum: Checksum, out: &mut Vec<Output>) {
        let Some(done) = self.copies.remove(&copy) else { return };
        debug_assert!(matches!(self.arena.slot(done.slot).state, State::Writing(_)), "its slot waits for it");
        self.counts.stored_chunks += 1;
        self.counts.stored_bytes += done.bytes;
        let Copying { name, bytes, uses, .. } = done;
        let held = Held { name, bytes, checksum, verified: None, uses };
        self.arena.publish(done.slot, held);
        self.publish_generations(out);
        let commit = self.commits.get_mut(&done.commit).expect("its commit waits for it");
        commit.copying -= 1;
        if commit.copying == 0 {
            let commit = self.commits.remove(&done.commit).expect("was found above");
            self.finish(commit, out);
        }
    }

    fn finish(&mut self, commit: Commit, out: &mut Vec<Output>) {
        if let Some(session) = self.sessions.get_mut(&commit.session) {
            for slot in &commit.region_slots {
                session.region_busy.remove(slot);
            }
        }
        self.note_commit(commit.before, &commit.leading, &commit.results);
        let committed = Committed { id: commit.id, results: commit.results };
        out.push(send(commit.connection, committed));
    }

    /// The layout of a session that serves; answers the request otherwise.
    fn serving(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        request: u64,
        out: &mut Vec<Output>,
    ) -> Option<Layout> {
        let session = self.sessions.get(&session).filter(|session| session.ready);
        let layout = session.and_then(|session| session.layout.clone());
        if layout.is_none() {
            let text = "not all connections of this session have registered".to_owned();
            out.push(error(connection, Some(request), ErrorCode::NotRegistered, text));
        }
        layout
    }
}

fn entry(layout: &Layout, end: u32, parent: Option<u32>, owner: Owner) -> Entry {
    Entry { bytes: layout.stride, tokens: layout.tokens_per_chunk, end, parent, owner }
}
