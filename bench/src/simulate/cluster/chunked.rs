//! Chunked prefill with continuous batching: steps whose token budget all running requests share.
//!
//! A step gives every running request an even part of the budget; who needs less leaves the rest to the others. So a
//! request that is mostly cached is through after one step, beside a long one. Decodes take part with their GPU time as
//! tokens. Blocks enter the cache when their prefill is complete.

use super::{Cluster, DECODE_BATCH, Prefill, Served};
use crate::simulate::Memory;
use crate::simulate::workload::{Workload, leading};
use crate::simulate::world::{Event, Events};
use std::collections::VecDeque;

/// Below this many tokens nothing is left but rounding.
const ROUNDING: f64 = 1e-6;

#[derive(Clone, Copy)]
struct Part {
    job: u32,
    /// Tokens that remain, and that the current step gives.
    left: f64,
    given: f64,
    /// Decodes: when the answer is complete at the earliest.
    decode: Option<f64>,
}

/// One replica's batch.
#[derive(Default)]
pub(super) struct Chunked {
    waiting: VecDeque<(u32, u64)>,
    running: Vec<Part>,
    stepping: bool,
}

impl Chunked {
    /// Tokens of work here, with what waits counted as at its dispatch.
    pub(super) fn backlog(&self) -> f64 {
        let waiting: u64 = self.waiting.iter().map(|&(_, tokens)| tokens).sum();
        waiting as f64 + self.running.iter().map(|part| part.left).sum::<f64>()
    }

    fn prefills(&self) -> usize {
        self.running.iter().filter(|part| part.decode.is_none()).count()
    }

    /// Shares `budget` tokens; returns how many were given.
    fn share(&mut self, budget: f64) -> f64 {
        self.running.sort_by(|a, b| a.left.total_cmp(&b.left).then(a.job.cmp(&b.job)));
        let (mut budget_left, mut sharers) = (budget, self.running.len());
        for part in &mut self.running {
            part.given = part.left.min(budget_left / sharers as f64);
            budget_left -= part.given;
            sharers -= 1;
        }
        budget - budget_left
    }
}

impl Cluster {
    pub(super) fn wait_for_batch(
        &mut self,
        work: &Workload,
        job: u32,
        to: usize,
        now: f64,
        events: &mut Events,
    ) {
        let expected = self.served[job as usize].uncached;
        self.replicas[to].chunked.waiting.push_back((job, expected));
        self.try_step(work, to, now, events);
    }

    /// Begins a step if none is under way.
    pub(super) fn try_step(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        if !self.replicas[at].chunked.stepping {
            self.begin_step(work, at, now, events);
        }
    }

    /// The current step of a replica is over.
    pub(super) fn end_step(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        let batch = &mut self.replicas[at].chunked;
        batch.running.iter_mut().for_each(|part| part.left -= part.given);
        let ready = |part: &Part| part.left <= ROUNDING;
        let mut done: Vec<Part> = batch.running.iter().copied().filter(ready).collect();
        batch.running.retain(|part| !ready(part));
        done.sort_by_key(|part| part.job);
        for part in done {
            if let Some(earliest) = part.decode {
                events.push(now.max(earliest), Event::End(part.job));
                continue;
            }
            self.computed(work, part.job, at);
            events.push(now, Event::FirstToken(part.job));
            let decode_s = work.jobs[part.job as usize].output as f64 * self.setup.decode_s;
            if decode_s > 0.0 {
                self.replicas[at].gpu_s += decode_s;
                let left = decode_s * self.setup.rate;
                let decode = Some(now + decode_s * DECODE_BATCH);
                self.replicas[at].chunked.running.push(Part { job: part.job, left, given: 0.0, decode });
            } else {
                events.push(now, Event::End(part.job));
            }
        }
        self.begin_step(work, at, now, events);
    }

    fn begin_step(&mut self, work: &Workload, at: usize, now: f64, events: &mut Events) {
        let Prefill::Chunked { step_s, partial } = self.setup.prefill else { return };
        while self.replicas[at].chunked.prefills() < partial {
            let Some(&(job, _)) = self.replicas[at].chunked.waiting.front() else { break };
            if !self.fits(at, work.chain(job)) {
                break;
            }
            self.replicas[at].chunked.waiting.pop_front();
            self.admit(work, job, at);
        }
        let batch = &mut self.replicas[at].chunked;
        batch.stepping = !batch.running.is_empty();
        if batch.stepping {
            let given = batch.share(step_s * self.setup.rate);
            events.push(now + given / self.setup.rate, Event::Step(at as u32));
        }
    }

    /// What is cached counts when a request begins to run, not when it came.
    fn admit(&mut self, work: &Workload, job: u32, at: usize) {
        let chain = work.chain(job);
        let held = self.held(at, chain);
        let blocks = u64::from(work.jobs[job as usize].blocks);
        self.hold(at, &leading(chain, held));
        if self.setup.memory != Memory::Lru {
            self.cache(at).reserve(blocks - held);
        }
        self.found[job as usize] = held as u32;
        let local = work.saved(job, held);
        let uncached = work.jobs[job as usize].tokens - local;
        self.begin(job, Served { replica: at as u32, local, uncached, ..Served::default() });
        let part = Part { job, left: uncached as f64, given: 0.0, decode: None };
        self.replicas[at].chunked.running.push(part);
    }

    /// Its prefill is complete: its blocks can be found by others.
    fn computed(&mut self, work: &Workload, job: u32, at: usize) {
        let held = u64::from(self.found[job as usize]);
        let (chain, blocks) = (work.chain(job), u64::from(work.jobs[job as usize].blocks));
        if self.setup.memory != Memory::Lru {
            self.cache(at).unreserve(blocks - held);
        }
        self.hold(at, chain);
        self.let_go(at, &leading(chain, held));
    }
}
