//! The store: what is held, leased and promised, as a pure state machine.
//!
//! [`Store::step`] takes one [`Input`] and the time, and returns what has to be done outside, in order. It is called
//! from one task only and never waits; copying and hashing happen elsewhere, while their slots are in state `Writing`
//! or pinned. The life of a chunk:
//!
//! ```text
//! commit -> Writing -(copied)-> Held -(evicted)-> Free
//!              ^                  |  <-> pinned by leases, verifications and writes to disk
//!    from disk +                  +-(checksum wrong)-> Quarantined
//! ```
//!
//! Who frees what: a lease holds its slots from its grant until it was released or has expired **and** no load of it
//! is open. An open load outlives expiry and connection; it ends with `complete`, or when every process of the session
//! that was given the slab is known dead. The invariants are named in [`invariants`](Store::check_invariants).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::RandomState;
use larder_protocol::message::ToEngine;
use larder_protocol::{LeaseId, NodeId, PinId, StoreNamespace};
use larder_tiering::pins::{Budgets, Pins};

use crate::recipe::Recipes;

mod arena;
mod commits;
mod counts;
mod damage;
mod disk;
mod invariants;
mod journal;
mod leases;
mod moves;
mod opening;
mod pinning;
mod port;
mod registration;
mod sessions;
mod stage;
mod tenants;

pub use arena::{ChunkName, HALF_LIFE, SLOTS_PER_EXTENT};
pub use counts::{Counts, DeviceStats, LinkStats, Stats};
pub use journal::{JOURNAL_AFTER, JournalOp};
pub use moves::{DeviceInput, DeviceOp, JobId, Pages};
pub use port::{
    Check, ConnectionId, CopyId, Damage, DiskInput, DiskOp, Finding, Input, Output, SessionId, Ticket,
    VerifyId,
};
pub use sessions::EngineStats;
pub use tenants::TENANTS_MAX;

use arena::Arena;
use commits::{Commit, CommitId, Copying};
use disk::{DiskTier, Touch, Waiting};
use journal::RecipeLog;
use leases::Lease;
use moves::Job;
use opening::{Opening, UsedPath};
use sessions::{Connection, Session};
use tenants::Tenants;

/// Slots are multiples of this: reads of whole pages, and the unit of the checksum's parts.
pub const STRIDE_UNIT_BYTES: u64 = 4096;

/// The smallest slot. Smaller chunks waste the rest; it bounds the generation table at 8 KiB for each extent.
pub const STRIDE_BYTES_MIN: u64 = 64 << 10;

/// When a chunk's checksum is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Before any lease on it, unless that was done within the freshness window.
    Lease,
    /// Never. Only for tests that show what checksums are for.
    Off,
}

/// The limits a store works within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This run of the node.
    pub node: NodeId,
    /// Bytes of one extent of the slab.
    pub extent_bytes: u64,
    /// Extents of the slab.
    pub extents: u32,
    /// Bytes of each session's writable region, at most.
    pub region_bytes: u64,
    /// How long an unstarted lease lasts.
    pub lease_ttl: Duration,
    /// How long a `lookup` may verify.
    pub lookup_deadline: Duration,
    /// How long a `stage` without a deadline of its own may verify.
    pub stage_deadline: Duration,
    /// Whether leases verify.
    pub verify: Verify,
    /// A chunk verified less than this ago is not read again for the next lease.
    pub verify_fresh: Duration,
    /// Whether block hashes that are not collision-resistant are accepted.
    pub single_tenant: bool,
    /// Sessions at one time.
    pub sessions_max: usize,
    /// Leases at one time, those being verified included.
    pub leases_max: usize,
    /// Verifications at one time.
    pub verifications_max: usize,
    /// Chunks being copied in at one time; more are refused.
    pub copies_max: usize,
    /// Bytes that leases may pin; a lease is cut short there.
    pub pinned_bytes_max: u64,
    /// What explicit pins may keep; as much of it as `pinned_bytes_max` leaves beside leases.
    pub pins: Budgets,
    /// How long a pin lasts at most.
    pub pin_ttl_max: Duration,
    /// Bytes of host memory of each tenant that has no quota of its own; none is no limit.
    pub tenant_bytes_max: Option<u64>,
    /// Tenants with a quota of their own.
    pub tenant_quotas: Vec<(String, u64)>,
    /// Bytes of recipes.
    pub recipe_bytes_max: usize,
    /// How long a connection may take to say hello.
    pub hello_timeout: Duration,
    /// Bytes of the disk tier that are read back a second to see whether they are right; 0 reads none.
    pub scrub_bytes_per_s: u64,
}

/// The store of one node.
#[derive(Debug)]
pub struct Store {
    settings: Settings,
    arena: Arena,
    /// Chunks held or being written.
    chunks: HashMap<ChunkName, u32, RandomState>,
    connections: HashMap<ConnectionId, Connection>,
    sessions: HashMap<SessionId, Session>,
    leases: HashMap<LeaseId, Lease>,
    /// Granted leases by the time they expire.
    expiries: BTreeSet<(Duration, LeaseId)>,
    openings: HashMap<VerifyId, Opening>,
    commits: HashMap<CommitId, Commit>,
    copies: HashMap<CopyId, Copying>,
    /// Fetches and saves under way.
    jobs: HashMap<JobId, Job>,
    /// Leases that have ended since it was last said, of whose chunks some may lie on GPUs.
    unlanded: Vec<LeaseId>,
    /// The disk tier, if there is one.
    disk: Option<DiskTier>,
    /// Stage calls that wait for chunks from disk.
    waiting: Vec<Waiting>,
    /// Uses of chunks that the disk tier has not been told of.
    touched: Vec<(Option<ChunkName>, Vec<Touch>)>,
    /// Uses of chunks that the order of eviction has not been told of.
    used: Vec<UsedPath>,
    recipes: Recipes,
    /// Where recipes are kept, if there is a disk tier.
    recipe_log: Option<RecipeLog>,
    pins: Pins<PinId, StoreNamespace>,
    tenants: Tenants,
    counts: Counts,
    /// The next number for sessions, jobs and the order of use.
    next: u64,
}

impl Store {
    /// An empty store.
    pub fn new(settings: Settings) -> Self {
        Self {
            arena: Arena::new(settings.extent_bytes, settings.extents),
            chunks: HashMap::default(),
            connections: HashMap::new(),
            sessions: HashMap::new(),
            leases: HashMap::new(),
            expiries: BTreeSet::new(),
            openings: HashMap::new(),
            commits: HashMap::new(),
            copies: HashMap::new(),
            jobs: HashMap::new(),
            unlanded: Vec::new(),
            disk: None,
            waiting: Vec::new(),
            touched: Vec::new(),
            used: Vec::new(),
            recipes: Recipes::new(settings.recipe_bytes_max),
            recipe_log: None,
            pins: Pins::new(settings.pins),
            tenants: Tenants::new(settings.tenant_bytes_max, &settings.tenant_quotas),
            counts: Counts::default(),
            next: 1,
            settings,
        }
    }

    /// Takes what happened and says what to do about it, in order. `now` counts from any fixed moment and never
    /// falls.
    pub fn step(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Accepted { connection, watched } => self.accepted(connection, watched, now),
            Input::Message { connection, message, fresh } => {
                self.message(connection, message, fresh, now, &mut out);
            }
            Input::Undecodable { connection, fault } => self.undecodable(connection, &fault, &mut out),
            Input::Unframed { connection, fault } => self.unframed(connection, &fault, &mut out),
            Input::Closed { connection } => self.closed(connection, &mut out),
            Input::ProcessDead { connection } => self.process_dead(connection, &mut out),
            Input::Copied { copy, checksum } => self.copied(copy, checksum, &mut out),
            Input::Verified { verify, found } => self.verified(verify, &found, now, &mut out),
            Input::Stage { ticket, request, fresh } => self.stage(ticket, &request, fresh, now, &mut out),
            Input::Probe { ticket, request } => self.probe(ticket, &request, &mut out),
            Input::Pin { ticket, request, fresh } => self.pin(ticket, &request, fresh, now, &mut out),
            Input::GiveBack { ticket, request } => self.give_back(ticket, request, &mut out),
            Input::SetQuota { ticket, request } => self.set_quota(ticket, &request, now, &mut out),
            Input::Disk(input) => self.disk_said(input, now, &mut out),
            Input::Device(input) => self.device_said(input, now, &mut out),
            Input::Recipes { found, last } => self.recipes_found(found, last, now),
            Input::Ending => self.write_recipes(true, now, &mut out),
            Input::Clear { ticket } => self.clear(ticket, now, &mut out),
            Input::Damage { ticket, damage } => self.damage(ticket, &damage, &mut out),
            Input::Tick => self.tick(now, &mut out),
        }
        self.note_new_recipes(now);
        self.publish_generations(&mut out);
        self.unland(&mut out);
        out
    }

    /// The next number; never given twice.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Numbers for the order of use of `count` chunks of one prompt: the first for the last of them, so that the
    /// beginning of a prompt, which more prompts share, is evicted last. The `i`th chunk's is the answer minus `i`.
    fn use_numbers(&mut self, count: usize) -> u64 {
        self.next += count as u64;
        self.next
    }

    /// Moves the arena's changes of generations into the outputs, before whatever follows.
    fn publish_generations(&mut self, out: &mut Vec<Output>) {
        let changes = self.arena.take_changes().into_iter();
        out.extend(changes.map(|(slot, generation)| Output::SetGeneration { slot, generation }));
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Output>) {
        while let Some((expires, lease)) = self.expiries.first().copied()
            && expires <= now
        {
            self.expiries.remove(&(expires, lease));
            self.expire(lease);
        }
        self.settle_uses();
        self.end_expired_pins(now);
        self.trim_all(now);
        self.tell_uses(now, out);
        self.write_recipes(false, now, out);
        self.end_waits(now, out);
        self.scrub(now, out);
        self.close_silent(now, out);
    }

    /// What the store holds and has done.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            counts: self.counts.clone(),
            slab_bytes: self.settings.extent_bytes * u64::from(self.settings.extents),
            free_extents: self.arena.pool.len() as u64,
            pinned_bytes: self.arena.pinned_bytes,
            leases: self.leases.len() as u64,
            verifications: self.openings.len() as u64,
            copies: self.copies.len() as u64,
            jobs: self.jobs.len() as u64,
            recipes: self.recipes.len() as u64,
            recipe_bytes: self.recipes.bytes() as u64,
            pins: self.pins.len() as u64,
            pin_bytes: self.pins.bytes(),
            tenants: self.tenants.len() as u64,
            disk: self.disk.as_ref().map(DiskTier::stats).unwrap_or_default(),
            ..Stats::default()
        };
        for (slot, found) in self.arena.slots() {
            match &found.state {
                arena::State::Free => {}
                arena::State::Writing(_) => stats.writing_slots += 1,
                arena::State::Quarantined => stats.quarantined_slots += 1,
                arena::State::Held(held) => {
                    stats.chunks += 1;
                    stats.held_bytes += held.bytes;
                    stats.held_slot_bytes += self.arena.stride(slot);
                }
            }
        }
        stats.open_loads = self.leases.values().map(|lease| u64::from(lease.open_loads)).sum();
        stats.orphaned_leases = self.orphaned_leases();
        stats.sessions = self.live_sessions() as u64;
        stats.engines = self.engines();
        stats
    }
}

fn send(connection: ConnectionId, message: impl Into<ToEngine>) -> Output {
    Output::Send { connection, message: message.into() }
}

#[cfg(test)]
mod tests;
