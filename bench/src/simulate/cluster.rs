//! The engines: what a request finds in their caches, and when its first token comes.
//!
//! Default model: each replica prefills one request after the other in the order of dispatch (FCFS) and computes only
//! what neither its cache nor the warehouse holds; decode, where modelled, takes GPU time after the prefill, and its
//! answer takes as long as that of a batch. Since nothing overtakes inside a replica, all times are known at dispatch.
//! [`chunked`] shares steps instead.

mod chunked;

use super::cache::{Cache, Span};
use super::workload::Workload;
use super::world::{Event, Events};
use chunked::Chunked;

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
    busy_until: f64,
    load: Load,
    uncached: u64,
    gpu_s: f64,
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
}

impl Cluster {
    pub(crate) fn new(setup: ClusterSetup, jobs: usize) -> Self {
        let replica = |_| Replica {
            busy_until: 0.0,
            load: Load::default(),
            uncached: 0,
            gpu_s: 0.0,
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
            Prefill::Fcfs => (self.replicas[replica].busy_until - now).max(0.0),
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
    pub(crate) fn dispatch(&mut self, work: &Workload, job: u32, to: usize, now: f64, events: &mut Events) {
        let blocks = u64::from(work.jobs[job as usize].blocks);
        let load = &mut self.replicas[to].load;
        load.in_flight += 1;
        load.in_flight_blocks += blocks;
        load.owed += 1;
        match self.setup.prefill {
            Prefill::Fcfs => self.serve(work, job, to, now, events),
            Prefill::Chunked { .. } => self.enqueue(work, job, to, now, events),
        }
        let owed = self.served[job as usize].uncached;
        self.replicas[to].load.owed_tokens += owed;
    }

    fn serve(&mut self, work: &Workload, job: u32, to: usize, now: f64, events: &mut Events) {
        let chain = work.chain(job);
        let tokens = work.jobs[job as usize].tokens;
        let local = work.saved(job, self.held(to, chain));
        let (fetched, there_at) = self.fetch(work, job, local, to, now);
        let uncached = tokens - local - fetched;
        let prefill_s = uncached as f64 / self.setup.rate;
        let decode_s = work.jobs[job as usize].output as f64 * self.setup.decode_s;
        let replica = &mut self.replicas[to];
        let first = replica.busy_until.max(now).max(there_at) + prefill_s;
        replica.busy_until = first + decode_s;
        replica.uncached += uncached;
        replica.gpu_s += prefill_s + decode_s;
        self.served[job as usize] = Served { replica: to as u32, local, fetched, uncached };
        // In the order of dispatch, which is the order of service.
        let cache = to % self.caches.len();
        self.caches[cache].touch(chain);
        events.push(first, Event::FirstToken(job));
        events.push(first + decode_s * DECODE_BATCH, Event::End(job));
    }

    /// Tokens that the warehouse adds to `local`, and when they are there. Links serve first come, first served.
    fn fetch(&mut self, work: &Workload, job: u32, local: u64, to: usize, now: f64) -> (u64, f64) {
        let (Some(setup), Some(warehouse)) = (self.setup.warehouse, &self.warehouse) else { return (0, now) };
        let more = work.saved(job, warehouse.held(work.chain(job))).saturating_sub(local);
        if more == 0 || setup.seconds_per_token >= 1.0 / self.setup.rate {
            return (0, now);
        }
        let link = to % self.link_free.len();
        self.link_free[link] = self.link_free[link].max(now) + more as f64 * setup.seconds_per_token;
        (more, self.link_free[link])
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

    /// Its answer is complete.
    pub(crate) fn end(&mut self, work: &Workload, job: u32) {
        let load = &mut self.replicas[self.served[job as usize].replica as usize].load;
        load.in_flight -= 1;
        load.in_flight_blocks -= u64::from(work.jobs[job as usize].blocks);
    }
}
