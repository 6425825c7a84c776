//! What the node itself moves between its memory and an engine's pages in a GPU: who may ask, what it holds meanwhile.
//!
//! A fetch holds its lease as an open load does, but by itself: the chunks stay until the GPU is done with them, whatever
//! becomes of lease, connection and engine. Where nobody can say that it is done, they stay for good.

use std::time::Duration;

use larder_protocol::code::{ErrorCode, RefusedCode};
use larder_protocol::message::{Attach, Attached, Fetch, Moved, Moving, Refused, Save};
use larder_protocol::{GpuHandle, LeaseId};

use super::leases::Pinned;
use super::registration::Layout;
use super::sessions::error;
use super::{ConnectionId, Output, SessionId, Store, send};

/// Fetches and saves at one time: several for each rank of sixteen engines. One more is refused, and its engine computes.
const JOBS_MAX: usize = 4096;

/// A fetch or save given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What has to be done with GPUs.
#[derive(Debug, PartialEq)]
pub enum DeviceOp {
    /// Open a rank's pages. Answered by [`DeviceInput::Attached`].
    Attach {
        /// The rank's connection, which names it from here on.
        connection: ConnectionId,
        /// Whose region it saves to, and its number there.
        rank: (SessionId, u32),
        /// Blocks of a chunk, and bytes of the rank's part of it.
        part: (u32, u64),
        /// The pages.
        attach: Attach,
    },
    /// The rank has gone: nothing new of it begins, and its pages are closed when nothing of it moves any more.
    Detach {
        /// Which.
        connection: ConnectionId,
    },
    /// Copy into a rank's pages. Answered by [`DeviceInput::Begun`] and [`DeviceInput::Ended`], or the latter alone.
    Fetch {
        /// Which.
        job: JobId,
        /// Whose chunks.
        lease: LeaseId,
        /// The rank.
        connection: ConnectionId,
        /// Where its part of each chunk begins in the slab, in bytes.
        places: Vec<u64>,
        /// What is left out of the first, and where the rest goes.
        pages: Pages,
    },
    /// Bring a lease's chunks to the GPUs of all ranks, as far as there is room. Answered by [`DeviceInput::Landed`].
    Land {
        /// The lease, which pins them.
        lease: LeaseId,
        /// Whose GPUs.
        session: SessionId,
        /// Before this they are likely not asked for; what is needed sooner goes first.
        needed_by: Duration,
        /// Where each chunk begins in the slab, in bytes, in the order of loading.
        places: Vec<u64>,
    },
    /// The lease wants nothing of what has landed any more.
    Unland {
        /// Which.
        lease: LeaseId,
    },
    /// Copy out of a rank's pages. Answered as a fetch.
    Save {
        /// Which.
        job: JobId,
        /// The rank.
        connection: ConnectionId,
        /// Where its part of each chunk begins in its session's region, in bytes.
        places: Vec<u64>,
        /// Where the chunks come from.
        pages: Pages,
    },
}

/// Pages of a rank that chunks go to or come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// Blocks of the first chunk that are left out at its beginning.
    pub skip: u32,
    /// The rank's blocks, chunk after chunk.
    pub blocks: Vec<u32>,
    /// Which of the rank's events must be reached before.
    pub after: Option<u32>,
}

/// What happened with a GPU.
#[derive(Debug)]
pub enum DeviceInput {
    /// A rank's pages are open, or why not.
    Attached {
        /// The rank.
        connection: ConnectionId,
        /// Its request.
        id: u64,
        /// The node's events.
        result: Result<Vec<GpuHandle>, (RefusedCode, String)>,
    },
    /// All of a job was given to the GPU, and the event was recorded behind it.
    Begun {
        /// Which.
        job: JobId,
        /// Which event.
        event: u32,
    },
    /// Nothing reads a lease's chunks in order to bring them to a GPU any more.
    Landed {
        /// Which.
        lease: LeaseId,
    },
    /// A job is over.
    Ended {
        /// Which.
        job: JobId,
        /// What failed.
        result: Result<(), String>,
        /// Nothing of it moves any more.
        is_quiet: bool,
    },
}

/// A job given out.
#[derive(Debug)]
pub(super) struct Job {
    connection: ConnectionId,
    session: SessionId,
    id: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Fetch { lease: LeaseId, chunks: Vec<Pinned> },
    Save { region_slots: Vec<u32> },
}

/// A rank that may ask.
struct Rank {
    layout: Layout,
    number: u32,
}

impl Store {
    pub(super) fn attach(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        attach: Attach,
        out: &mut Vec<Output>,
    ) {
        let Some(rank) = self.rank(connection, session, attach.id, out) else { return };
        let found = self.connections.get_mut(&connection).expect("a message's connection is known");
        found.attached = true;
        out.push(Output::Device(DeviceOp::Attach {
            connection,
            rank: (session, rank.number),
            part: (rank.layout.register.blocks_per_chunk, rank.layout.register.part_bytes),
            attach,
        }));
    }

    pub(super) fn fetch(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        fetch: Fetch,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(rank) = self.rank(connection, session, fetch.id, out) else { return };
        let chunk_blocks = u64::from(rank.layout.register.blocks_per_chunk);
        let blocks = u64::from(fetch.skip) + fetch.blocks.len() as u64;
        if fetch.blocks.is_empty() || u64::from(fetch.skip) >= chunk_blocks {
            let text = format!("{} blocks, of which {} are left out", fetch.blocks.len(), fetch.skip);
            return out.push(error(connection, Some(fetch.id), ErrorCode::BadMessage, text));
        }
        let end = u64::from(fetch.first) + blocks.div_ceil(chunk_blocks);
        let found = self.leases.get_mut(&fetch.lease).filter(|lease| lease.session == session);
        let usable = found.filter(|lease| lease.open_loads > 0 || (!lease.ending && lease.expires > now));
        let chunks = usable.as_ref().and_then(|lease| lease.chunks.get(fetch.first as usize..end as usize));
        let arena = &self.arena;
        let whole = |chunks: &&[Pinned]| chunks.iter().all(|it| arena.generation(it.slot) == it.generation);
        let (Some(chunks), Some(lease)) = (chunks.filter(whole).map(<[Pinned]>::to_vec), usable) else {
            let text = format!("lease {} is unknown, ended, damaged, or shorter than {end}", fetch.lease);
            return out.push(error(connection, Some(fetch.id), ErrorCode::NoLease, text));
        };
        if self.jobs.len() >= JOBS_MAX {
            return out.push(too_many(connection, fetch.id));
        }
        lease.moving += 1;
        lease.ever_loaded = true;
        self.counts.fetches += 1;
        let part = u64::from(rank.number) * rank.layout.register.part_bytes;
        let places = chunks.iter().map(|pinned| self.arena.offset(pinned.slot) + part).collect();
        let (lease, what) = (fetch.lease, What::Fetch { lease: fetch.lease, chunks });
        let job = self.job(Job { connection, session, id: fetch.id, what });
        let pages = Pages { skip: fetch.skip, blocks: fetch.blocks, after: fetch.after };
        out.push(Output::Device(DeviceOp::Fetch { job, lease, connection, places, pages }));
    }

    pub(super) fn save(
        &mut self,
        connection: ConnectionId,
        session_id: SessionId,
        save: Save,
        out: &mut Vec<Output>,
    ) {
        let Some(rank) = self.rank(connection, session_id, save.id, out) else { return };
        let (layout, register) = (&rank.layout, &rank.layout.register);
        let session = self.sessions.get_mut(&session_id).expect("a rank's session exists");
        let mut taken = session.region_busy.clone();
        let fits = |slot: &u32| *slot < layout.region_slots && taken.insert(*slot);
        if !save.region_slots.iter().all(fits) {
            let text =
                format!("a region slot is not below {}, twice, or under a commit", layout.region_slots);
            return out.push(error(connection, Some(save.id), ErrorCode::BadRegionSlot, text));
        }
        let blocks = save.region_slots.len() as u64 * u64::from(register.blocks_per_chunk);
        if save.blocks.is_empty() || save.blocks.len() as u64 != blocks {
            let text = format!(
                "{} blocks for {} chunks of {}",
                save.blocks.len(),
                save.region_slots.len(),
                register.blocks_per_chunk
            );
            return out.push(error(connection, Some(save.id), ErrorCode::BadMessage, text));
        }
        if self.jobs.len() >= JOBS_MAX {
            return out.push(too_many(connection, save.id));
        }
        for slot in &save.region_slots {
            *session.region_saving.entry(*slot).or_default() += 1;
        }
        self.counts.saves += 1;
        let part = u64::from(rank.number) * register.part_bytes;
        let places = save.region_slots.iter().map(|slot| u64::from(*slot) * layout.stride + part).collect();
        let what = What::Save { region_slots: save.region_slots };
        let job = self.job(Job { connection, session: session_id, id: save.id, what });
        let pages = Pages { skip: 0, blocks: save.blocks, after: save.after };
        out.push(Output::Device(DeviceOp::Save { job, connection, places, pages }));
    }

    pub(super) fn device_said(&mut self, input: DeviceInput, now: Duration, out: &mut Vec<Output>) {
        match input {
            DeviceInput::Attached { connection, id, result: Ok(events) } => {
                out.push(send(connection, Attached { id, events }));
            }
            DeviceInput::Attached { connection, id, result: Err((code, message)) } => {
                out.push(send(connection, Refused { id, code, message }));
            }
            DeviceInput::Begun { job, event } => {
                let Some(found) = self.jobs.get(&job) else { return };
                out.push(send(found.connection, Moving { id: found.id, event }));
            }
            DeviceInput::Landed { lease } => self.landed(lease, now),
            DeviceInput::Ended { job, result, is_quiet } => self.job_ended(job, result, is_quiet, now, out),
        }
    }

    /// A staged lease's chunks go on to the GPUs, if its engine's pages are open.
    pub(super) fn land(&mut self, id: LeaseId, needed_by: Duration, out: &mut Vec<Output>) {
        let lease = self.leases.get_mut(&id).expect("was just granted");
        let session = self.sessions.get(&lease.session).expect("only a live session is granted a lease");
        let mut ranks = session.workers.values().filter_map(|worker| self.connections.get(worker));
        if !ranks.any(|rank| rank.attached) {
            return;
        }
        (lease.landing, lease.landed) = (true, true);
        let places = lease.chunks.iter().map(|pinned| self.arena.offset(pinned.slot)).collect();
        let session = lease.session;
        out.push(Output::Device(DeviceOp::Land { lease: id, session, needed_by, places }));
    }

    /// Says of which leases nothing is wanted on GPUs any more.
    pub(super) fn unland(&mut self, out: &mut Vec<Output>) {
        let unlanded = std::mem::take(&mut self.unlanded).into_iter();
        out.extend(unlanded.map(|lease| Output::Device(DeviceOp::Unland { lease })));
    }

    fn job_ended(
        &mut self,
        job: JobId,
        mut result: Result<(), String>,
        is_quiet: bool,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(Job { connection, session, id, what }) = self.jobs.remove(&job) else { return };
        match what {
            What::Fetch { lease, chunks } => {
                // Another lease's verification may have found one of them damaged meanwhile.
                if !chunks.iter().all(|pinned| self.arena.generation(pinned.slot) == pinned.generation) {
                    result = result.and(Err("a chunk was found damaged".to_owned()));
                }
                self.counts.failed_fetches += u64::from(result.is_err());
                if is_quiet {
                    self.fetched(lease, now);
                }
            }
            What::Save { region_slots } => {
                self.counts.failed_saves += u64::from(result.is_err());
                if let Some(session) = self.sessions.get_mut(&session).filter(|_| is_quiet) {
                    for slot in region_slots {
                        session.saved(slot);
                    }
                }
            }
        }
        if !is_quiet {
            self.counts.stuck_jobs += 1;
        }
        if self.connections.contains_key(&connection) {
            let (ok, message) = (result.is_ok(), result.err());
            out.push(send(connection, Moved { id, ok, quiet: is_quiet, message }));
        }
        self.bury(session, out);
    }

    /// The rank behind a connection, if it has registered; answers the request otherwise.
    fn rank(
        &self,
        connection: ConnectionId,
        session: SessionId,
        request: u64,
        out: &mut Vec<Output>,
    ) -> Option<Rank> {
        let registered = self.connections.get(&connection).is_some_and(|found| found.registered);
        let session = self.sessions.get(&session).filter(|_| registered);
        let rank = session.and_then(|session| {
            let (number, _) = session.workers.iter().find(|(_, worker)| **worker == connection)?;
            Some(Rank { layout: session.layout.clone()?, number: *number })
        });
        if rank.is_none() {
            out.push(error(connection, Some(request), ErrorCode::NotRegistered, "register first".to_owned()));
        }
        rank
    }

    fn job(&mut self, job: Job) -> JobId {
        let id = JobId(self.number());
        self.jobs.insert(id, job);
        id
    }
}

fn too_many(connection: ConnectionId, id: u64) -> Output {
    let message = Some(format!("{JOBS_MAX} fetches and saves are under way"));
    send(connection, Moved { id, ok: false, quiet: true, message })
}
