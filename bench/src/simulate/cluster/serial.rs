//! One prefill after the other, first come, first served.

use super::{Cluster, DECODE_BATCH, Served};
use crate::simulate::Memory;
use crate::simulate::router::Placed;
use crate::simulate::workload::Workload;
use crate::simulate::world::{Event, Events};
use std::collections::VecDeque;

/// A request that was dispatched and has not begun.
struct Waiting {
    job: u32,
    /// Seconds that it will take, as of its dispatch.
    expected_s: f64,
    /// Leading tokens that it may fetch, and those that are here or come from the warehouse, and when they are all here.
    reach: u64,
    staged: u64,
    there_at: f64,
}

/// One replica's line.
#[derive(Default)]
pub(super) struct Serial {
    waiting: VecDeque<Waiting>,
    /// The request at hand is done; valid while `serving`.
    busy_until: f64,
    serving: bool,
}

impl Serial {
    /// Seconds until all that is here is done.
    pub(super) fn backlog_s(&self, now: f64) -> f64 {
        let free = if self.serving { self.busy_until.max(now) } else { now };
        self.waiting.iter().fold(free, |free, next| free.max(next.there_at) + next.expected_s) - now
    }
}

impl Cluster {
    pub(super) fn wait_in_line(
        &mut self,
        work: &Workload,
        job: u32,
        Placed { to, reach }: Placed,
        now: f64,
        events: &mut Events,
    ) {
        let local = self.served[job as usize].local;
        let (more, there_at) = self.fetch(work, job, local, Placed { to, reach }, now);
        if self.setup.memory == Memory::Lru {
            self.hold(to, work.chain(job));
        }
        let request = &work.jobs[job as usize];
        let staged = local + more;
        let expected_s =
            (request.tokens - staged) as f64 / self.setup.rate + request.output as f64 * self.setup.decode_s;
        let served = &mut self.served[job as usize];
        (served.fetched, served.uncached) = (more, served.uncached - more);
        served.short = staged < reach.min(request.tokens.saturating_sub(1));
        if more > 0 || served.short {
            events.push(there_at, Event::Fetched(job));
        }
        let replica = &mut self.replicas[to];
        replica.load.owed_tokens -= more;
        replica.serial.waiting.push_back(Waiting { job, expected_s, reach, staged, there_at });
        self.try_next(work, to, now, events);
    }

    /// The request at hand is done.
    pub(super) fn next_in_line(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        self.replicas[at].serial.serving = false;
        self.try_next(work, at, now, events);
    }

    /// Begins the next, if the GPU is free and its blocks fit.
    pub(super) fn try_next(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        let line = &self.replicas[at].serial;
        let Some(first) = line.waiting.front().filter(|_| !line.serving) else { return };
        let chain = work.chain(first.job);
        if !self.fits(at, chain) {
            return;
        }
        let line = &mut self.replicas[at].serial;
        let Some(Waiting { job, reach, staged, there_at, .. }) = line.waiting.pop_front() else { return };
        let looked_up = self.setup.memory != Memory::Lru;
        let Served { local: was_local, short, .. } = self.served[job as usize];
        let local = if looked_up { work.saved(job, self.held(at, chain)) } else { was_local };
        // What was here when it was dispatched, and was evicted since, comes from the warehouse as well.
        let (mut fetched, mut there_at) = (staged.saturating_sub(local), there_at);
        if local < was_local {
            let (more, then) = self.fetch(work, job, local, Placed { to: at, reach }, now);
            (fetched, there_at) = (more.min(fetched), then.max(there_at));
        }
        let request = &work.jobs[job as usize];
        let uncached = request.tokens - local - fetched;
        let decode_s = request.output as f64 * self.setup.decode_s;
        self.begin(job, Served { replica: at as u32, local, fetched, uncached, short });
        if looked_up {
            self.hold(at, chain);
        }
        let first = now.max(there_at) + uncached as f64 / self.setup.rate;
        let replica = &mut self.replicas[at];
        replica.gpu_s += decode_s;
        (replica.serial.serving, replica.serial.busy_until) = (true, first + decode_s);
        events.push(first, Event::FirstToken(job));
        events.push(first + decode_s, Event::Step(at as u32));
        events.push(first + decode_s * DECODE_BATCH, Event::End(job));
    }

    /// Tokens that the warehouse adds to `local`, and when they are there. Links serve first come, first served.
    fn fetch(&mut self, work: &Workload, job: u32, local: u64, placed: Placed, now: f64) -> (u64, f64) {
        let (Some(setup), Some(warehouse)) = (self.setup.warehouse, &self.warehouse) else { return (0, now) };
        let held = work.saved(job, warehouse.held(work.chain(job)));
        let more = held.min(placed.reach).saturating_sub(local);
        // Whoever says how far to fetch has weighed that it is worth it.
        let weighed = placed.reach < u64::MAX;
        if more == 0 || !weighed && setup.seconds_per_token >= 1.0 / self.setup.rate {
            return (0, now);
        }
        let link = placed.to % self.link_free.len();
        self.link_free[link] = self.link_free[link].max(now) + more as f64 * setup.seconds_per_token;
        (more, self.link_free[link])
    }
}
