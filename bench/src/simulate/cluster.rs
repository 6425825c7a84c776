//! The engines: what a request finds in their caches, and when its first token comes.
//!
//! Default model, [`serial`]: each replica prefills one request after the other in the order of dispatch (FCFS) and
//! computes only what neither its cache nor the warehouse holds; decode, where modelled, takes GPU time after the
//! prefill, and its answer takes as long as that of a batch. [`chunked`] shares steps instead.
//!
//! Memory is vLLM's unless [`Memory`] says otherwise: what is cached is looked up when a prefill begins; blocks of
//! running requests cannot be evicted; what they leave grows old from their end.

mod chunked;
mod serial;

use super::Memory;
use super::cache::{Cache, Span};
use super::router::Placed;
use super::workload::Workload;
use super::world::Events;
use chunked::Chunked;
use serial::Serial;

/// Requests that decode together: a request's answer takes so many times its own share of GPU time (26 ms a token of a
/// 70B model at 2,500 tokens/s).
const DECODE_BATCH: f64 = 64.0;

/// The warehouse and its links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WarehouseSetup {
    /// Capacity in blocks.
    pub(crate) blocks: u64,
    /// Seconds that one token's KV takes on a link.
    pub(crate) seconds_per_token: f64,
    /// One link for all replicas instead of one each.
    pub(crate) shared: bool,
}

/// How a replica prefills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Prefill {
    /// One request after the other.
    Fcfs,
    /// In steps of at most `step_s` GPU seconds, shared evenly by up to `partial` prefills and all decodes.
    Chunked { step_s: f64, partial: usize },
}

/// What the cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ClusterSetup {
    pub(crate) replicas: usize,
    /// Cache of one replica, in blocks.
    pub(crate) blocks: u64,
    /// Prefill tokens per second of one replica.
    pub(crate) rate: f64,
    /// GPU seconds of one generated token; 0: answers end with their first token.
    pub(crate) decode_s: f64,
    pub(crate) prefill: Prefill,
    pub(crate) memory: Memory,
    /// All replicas use one cache of `blocks` (a reference, impossible for a router).
    pub(crate) pooled: bool,
    pub(crate) warehouse: Option<WarehouseSetup>,
}

/// What a request found, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Served {
    pub(crate) replica: u32,
    /// From the replica's cache.
    pub(crate) local: u64,
    /// From the warehouse.
    pub(crate) fetched: u64,
    /// Computed.
    pub(crate) uncached: u64,
    /// The warehouse had less than the request was to reach.
    pub(crate) short: bool,
}

/// Load of one replica as a router may count it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Dispatched and not finished.
    pub(crate) in_flight: u64,
    /// Their prompts' blocks.
    pub(crate) in_flight_blocks: u64,
    /// Of them, without a first token.
    pub(crate) owed: u64,
    /// Uncached tokens of these.
    pub(crate) owed_tokens: u64,
}

struct Replica {
    load: Load,
    uncached: u64,
    gpu_s: f64,
    serial: Serial,
    chunked: Chunked,
}

/// See the module.
pub(crate) struct Cluster {
    setup: ClusterSetup,
    replicas: Vec<Replica>,
    caches: Vec<Cache>,
    warehouse: Option<Cache>,
    link_free: Vec<f64>,
    served: Vec<Served>,
    /// Blocks that running requests found, by job (chunked).
    found: Vec<u32>,
}

impl Cluster {
    pub(crate) fn new(setup: ClusterSetup, jobs: usize) -> Self {
        let replica = |_| Replica {
            load: Load::default(),
            uncached: 0,
            gpu_s: 0.0,
            serial: Serial::default(),
            chunked: Chunked::default(),
        };
        let caches = if setup.pooled { 1 } else { setup.replicas };
        let links =
            if setup.warehouse.is_some_and(|warehouse| warehouse.shared) { 1 } else { setup.replicas };
        Self {
            replicas: (0..setup.replicas).map(replica).collect(),
            caches: (0..caches).map(|_| Cache::new(setup.blocks)).collect(),
            warehouse: setup.warehouse.map(|warehouse| Cache::new(warehouse.blocks)),
            link_free: vec![0.0; links],
            served: vec![Served::default(); jobs],
            found: vec![0; jobs],
            setup,
        }
    }

    pub(crate) fn setup(&self) -> &ClusterSetup {
        &self.setup
    }

    pub(crate) fn load(&self, replica: usize) -> Load {
        self.replicas[replica].load
    }

    /// Leading blocks of `chain` that a replica holds.
    pub(crate) fn held(&self, replica: usize, chain: &[Span]) -> u64 {
        self.caches[replica % self.caches.len()].held(chain)
    }

    /// Seconds of work ahead of a new request.
    pub(crate) fn backlog_s(&self, replica: usize, now: f64) -> f64 {
        match self.setup.prefill {
            Prefill::Fcfs => self.replicas[replica].serial.backlog_s(now),
            Prefill::Chunked { .. } => self.replicas[replica].chunked.backlog() / self.setup.rate,
        }
    }

    pub(crate) fn served(&self, job: u32) -> Served {
        self.served[job as usize]
    }

    /// Computed tokens of each replica.
    pub(crate) fn uncached(&self) -> impl Iterator<Item = u64> {
        self.replicas.iter().map(|replica| replica.uncached)
    }

    /// GPU seconds spent by all replicas.
    pub(crate) fn gpu_s(&self) -> f64 {
        self.replicas.iter().map(|replica| replica.gpu_s).sum()
    }

    /// A request reaches its replica.
    pub(crate) fn dispatch(
        &mut self,
        work: &Workload,
        job: u32,
        placed: Placed,
        now: f64,
        events: &mut Events,
    ) {
        let to = placed.to;
        let blocks = u64::from(work.jobs[job as usize].blocks);
        let load = &mut self.replicas[to].load;
        load.in_flight += 1;
        load.in_flight_blocks += blocks;
        load.owed += 1;
        let local = work.saved(job, self.held(to, work.chain(job)));
        let expected = work.jobs[job as usize].tokens - local;
        self.served[job as usize] =
            Served { replica: to as u32, local, uncached: expected, ..Served::default() };
        self.replicas[to].load.owed_tokens += expected;
        match self.setup.prefill {
            Prefill::Fcfs => self.wait_in_line(work, job, placed, now, events),
            Prefill::Chunked { .. } => self.wait_for_batch(work, job, to, now, events),
        }
    }

    /// A replica is done with its step, or with the prefill and decode at hand.
    pub(crate) fn step(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        match self.setup.prefill {
            Prefill::Fcfs => self.next_in_line(work, at, now, events),
            Prefill::Chunked { .. } => self.end_step(work, at, now, events),
        }
    }

    /// What is found and what is to be computed is known: the request begins to run.
    fn begin(&mut self, job: u32, served: Served) {
        let expected = self.served[job as usize].uncached;
        let replica = &mut self.replicas[served.replica as usize];
        replica.load.owed_tokens = replica.load.owed_tokens + served.uncached - expected;
        replica.uncached += served.uncached;
        replica.gpu_s += served.uncached as f64 / self.setup.rate;
        self.served[job as usize] = served;
    }

    fn cache(&mut self, replica: usize) -> &mut Cache {
        let count = self.caches.len();
        &mut self.caches[replica % count]
    }

    /// Whether a request may begin as far as memory goes.
    fn fits(&self, replica: usize, chain: &[Span]) -> bool {
        self.setup.memory != Memory::Admission || self.caches[replica % self.caches.len()].admits(chain)
    }

    /// A running request uses `chain`, until [`Cluster::let_go`].
    fn hold(&mut self, replica: usize, chain: &[Span]) {
        match self.setup.memory {
            Memory::Lru => self.cache(replica).touch(chain),
            Memory::Pinned | Memory::Admission => self.cache(replica).pin(chain),
        }
    }

    fn let_go(&mut self, replica: usize, chain: &[Span]) {
        if self.setup.memory != Memory::Lru {
            self.cache(replica).unpin(chain);
        }
    }

    /// Its prefill is over; the warehouse is written through.
    pub(crate) fn first_token(&mut self, work: &Workload, job: u32) {
        let served = self.served[job as usize];
        let load = &mut self.replicas[served.replica as usize].load;
        load.owed -= 1;
        load.owed_tokens -= served.uncached;
        if let Some(warehouse) = &mut self.warehouse {
            warehouse.touch(work.chain(job));
        }
    }

    /// Its answer is complete: its blocks may be evicted, which may be what others wait for.
    pub(crate) fn end(&mut self, work: &Workload, job: u32, now: f64, events: &mut Events) {
        let at = self.served[job as usize].replica as usize;
        let load = &mut self.replicas[at].load;
        load.in_flight -= 1;
        load.in_flight_blocks -= u64::from(work.jobs[job as usize].blocks);
        self.let_go(at, work.chain(job));
        let all = 0..self.replicas.len();
        for at in if self.setup.pooled { all } else { at..at + 1 } {
            match self.setup.prefill {
                Prefill::Fcfs => self.try_next(work, at, now, events),
                Prefill::Chunked { .. } => self.try_step(work, at, now, events),
            }
        }
    }
}
