//! The oracle: the same engine played step by step with flat lists, no memo and no skipping.

use crate::cache::BlockId;
use crate::cache::naive::{NaiveCache, ReleaseOrder};

use super::{Cost, Job, JobId, Limits};

/// What became of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) cached_tokens: Option<u32>,
    pub(super) first_token_at: Option<u64>,
    pub(super) finished_at: Option<u64>,
    pub(super) preemptions: u32,
}

struct Run {
    id: usize,
    job: Job,
    blocks: Vec<BlockId>,
    computed: u32,
    produced: u32,
    scheduled: u32,
}

/// Plays `jobs` (with their arrival times, ascending; ids are their places) to the end.
pub(super) fn play(limits: Limits, cost: Cost, jobs: &[(u64, Job)]) -> Vec<Fate> {
    let mut fates = vec![Fate::default(); jobs.len()];
    let caching = limits.prefix_caching;
    let mut cache = NaiveCache::new(limits.blocks, caching, ReleaseOrder::LastFirst);
    let (mut waiting, mut running): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
    let mut arrivals = jobs.iter().enumerate().peekable();
    let mut now = 0;
    loop {
        // A step that ends exactly when a job arrives is over before the job is seen, and the next has begun.
        while let Some((id, (_, job))) = arrivals.next_if(|(_, (at, _))| *at < now) {
            waiting.push(fresh(id, job));
        }
        if waiting.is_empty() && running.is_empty() {
            let Some((id, (at, job))) = arrivals.next() else { return fates };
            now = *at;
            waiting.push(fresh(id, job));
        }
        let prefill_s = schedule(limits, cost, &mut cache, &mut waiting, &mut running, &mut fates);
        now += cost.step_ns(prefill_s);
        for run in &mut running {
            run.computed += run.scheduled;
            if std::mem::take(&mut run.scheduled) > 0 && run.computed == tokens(run) {
                run.produced += 1;
                fates[run.id].first_token_at.get_or_insert(now);
            }
        }
        for run in running.extract_if(.., |run| run.produced == run.job.output_tokens) {
            cache.release(&run.blocks);
            fates[run.id].finished_at = Some(now);
        }
    }
}

fn fresh(id: usize, job: &Job) -> Run {
    Run { id, job: job.clone(), blocks: Vec::new(), computed: 0, produced: 0, scheduled: 0 }
}

fn tokens(run: &Run) -> u32 {
    run.job.prompt_tokens + run.produced
}

fn schedule(
    limits: Limits,
    cost: Cost,
    cache: &mut NaiveCache,
    waiting: &mut Vec<Run>,
    running: &mut Vec<Run>,
    fates: &mut [Fate],
) -> f64 {
    let (mut budget, mut prefill_s, mut preempted) = (limits.max_batched_tokens, 0.0, false);
    let mut at = 0;
    'requests: while at < running.len() && budget > 0 {
        let want = budget.min(tokens(&running[at]) - running[at].computed);
        let blocks = (running[at].computed + want).div_ceil(limits.block_tokens);
        let more = blocks.saturating_sub(running[at].blocks.len() as u32);
        let taken = loop {
            if let Some(taken) = cache.take(&[], more) {
                break taken;
            }
            let mut victim = running.pop().unwrap();
            preempted = true;
            fates[victim.id].preemptions += 1;
            cache.release(&victim.blocks);
            victim.blocks.clear();
            victim.computed = 0;
            waiting.insert(0, victim);
            if at == running.len() {
                break 'requests;
            }
        };
        running[at].blocks.extend(taken);
        prefill_s += charge(limits, cost, cache, &mut running[at], want);
        budget -= want;
        at += 1;
    }
    while !preempted && budget > 0 && !waiting.is_empty() && running.len() < limits.max_running as usize {
        let run = &waiting[0];
        let reusable = ((tokens(run) - 1) / limits.block_tokens) as usize;
        let found = cache.find(&run.job.hashes[..reusable.min(run.job.hashes.len())]);
        let hit = found.len() as u32 * limits.block_tokens;
        let want = budget.min(tokens(run) - hit);
        let blocks = (hit + want).div_ceil(limits.block_tokens) - found.len() as u32;
        let Some(taken) = cache.take(&found, blocks) else { break };
        let mut run = waiting.remove(0);
        run.blocks = taken;
        run.computed = hit;
        fates[run.id].cached_tokens.get_or_insert(hit);
        prefill_s += charge(limits, cost, cache, &mut run, want);
        budget -= want;
        running.push(run);
    }
    prefill_s
}

fn charge(limits: Limits, cost: Cost, cache: &mut NaiveCache, run: &mut Run, want: u32) -> f64 {
    run.scheduled = want;
    let last = if limits.cache_generated { u32::MAX } else { run.job.prompt_tokens };
    let full = (run.computed + want).min(last) / limits.block_tokens;
    for index in 0..(full as usize).min(run.job.hashes.len()) {
        cache.publish(run.blocks[index], run.job.hashes[index]);
    }
    let decodes = run.produced > 0 && want == 1;
    if decodes { 0.0 } else { cost.prefill_s(run.computed, want) }
}

/// The place of a job in [`play`]'s list.
pub(super) fn place(id: JobId) -> usize {
    id.0 as usize
}
