//! A trace made ready to be simulated many times: blocks become dense ids, prompts become chains of spans.
//!
//! An id stands for a block *and everything before it*, as in the prefix caches of engines. Ids are given in the order
//! of first appearance, so a prompt of 2,000 blocks is usually a handful of spans.

use super::cache::{IdMap, Span};
use crate::error::Error;
use crate::trace::{Format, Request, Trace};
use std::ops::Range;

/// Earlier prompts of a session that a new one is compared with before single blocks are looked up: a session and its
/// sub-agents alternate among few prompts.
const RECENT: usize = 8;
const NONE: u32 = u32::MAX;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its session: an index into [`Workload::sessions`].
    pub(crate) session: u32,
    /// Open loop: arrival, in seconds.
    pub(crate) at_s: f64,
    /// Closed loop: seconds after the answer before it, uncapped.
    pub(crate) think_s: f64,
    /// Prompt and answer, in tokens.
    pub(crate) tokens: u64,
    pub(crate) output: u64,
    /// Whole blocks of the prompt.
    pub(crate) blocks: u32,
    spans: Range<u32>,
}

/// See the module.
pub(crate) struct Workload {
    /// The trace's file name.
    pub(crate) name: String,
    pub(crate) format: Format,
    /// Tokens of a block here (a multiple of the trace's own).
    pub(crate) block_tokens: u64,
    /// Distinct block tokens of the trace, in its own blocks.
    pub(crate) unique_tokens: u64,
    pub(crate) jobs: Vec<Job>,
    /// Jobs of each session.
    pub(crate) sessions: Vec<Range<u32>>,
    spans: Vec<Span>,
}

impl Workload {
    /// Interns `trace` in blocks of `block_tokens`.
    ///
    /// # Errors
    /// [`Error::Usage`] if that is not a multiple of the trace's own block size.
    pub(crate) fn new(trace: &Trace, block_tokens: u64) -> Result<Self, Error> {
        if block_tokens == 0 || !block_tokens.is_multiple_of(trace.block_tokens) {
            return Err(Error::Usage(format!(
                "--block-tokens {block_tokens}: must be a multiple of the {} tokens of a block of {}",
                trace.block_tokens, trace.name
            )));
        }
        let group = block_tokens / trace.block_tokens;
        let mut workload = Self {
            name: trace.name.clone(),
            format: trace.format,
            block_tokens,
            unique_tokens: trace.unique_blocks() * trace.block_tokens,
            jobs: Vec::new(),
            sessions: Vec::new(),
            spans: Vec::new(),
        };
        let mut tree = Tree::default();
        let mut groups = Groups::default();
        for (number, session) in trace.sessions.iter().enumerate() {
            tree.enter(&session.scope);
            let begin = workload.jobs.len() as u32;
            for request in &session.requests {
                let fine = tree.chain(request, trace.block_tokens)?;
                let chain = if group == 1 { fine } else { groups.chain(&fine, group as usize) };
                workload.add(number as u32, request, &chain);
            }
            workload.sessions.push(begin..workload.jobs.len() as u32);
        }
        Ok(workload)
    }

    fn add(&mut self, session: u32, request: &Request, chain: &[Span]) {
        let begin = self.spans.len() as u32;
        self.spans.extend_from_slice(chain);
        self.jobs.push(Job {
            session,
            at_s: request.at_s,
            think_s: request.think_s,
            tokens: request.input_tokens,
            output: request.output_tokens,
            blocks: chain.iter().map(|&(_, len)| len).sum(),
            spans: begin..self.spans.len() as u32,
        });
    }

    /// The prompt's blocks.
    pub(crate) fn chain(&self, job: u32) -> &[Span] {
        let spans = &self.jobs[job as usize].spans;
        &self.spans[spans.start as usize..spans.end as usize]
    }

    /// Tokens that `held` leading blocks save a request: the last token is always computed, an answer needs its logits.
    pub(crate) fn saved(&self, job: u32, held: u64) -> u64 {
        (held * self.block_tokens).min(self.jobs[job as usize].tokens - 1)
    }
}

/// Adds `len` ids from `first` on to a chain, joining what continues.
pub(crate) fn push(chain: &mut Vec<Span>, first: u32, len: u32) {
    match chain.last_mut() {
        Some((start, count)) if *start + *count == first => *count += len,
        _ if len > 0 => chain.push((first, len)),
        _ => {}
    }
}

/// A prompt that was interned: the trace's ranges of ids, and its chain.
type Past = (Vec<(u64, u64)>, Vec<Span>);

/// The prefix tree of one scope; ids go on across scopes.
#[derive(Default)]
struct Tree {
    scope: String,
    /// By parent (`NONE` at the root) and the trace's id.
    children: IdMap<(u32, u64), u32>,
    recent: Vec<Past>,
    nodes: u32,
}

impl Tree {
    fn enter(&mut self, scope: &str) {
        self.recent.clear();
        if self.scope != scope {
            scope.clone_into(&mut self.scope);
            self.children.clear();
        }
    }

    fn chain(&mut self, request: &Request, block_tokens: u64) -> Result<Vec<Span>, Error> {
        let whole = (request.input_tokens / block_tokens).min(request.blocks.len());
        let ranges: Vec<(u64, u64)> = cut(request.blocks.ranges(), whole);
        let known = |(past, _): &Past| common(past, &ranges);
        let best = self.recent.iter().enumerate().max_by_key(|(_, past)| known(past));
        let (shared, mut chain) = match best {
            Some((_, past)) => (known(past), leading(&past.1, known(past))),
            None => (0, Vec::new()),
        };
        let mut parent = chain.last().map_or(NONE, |&(first, len)| first + len - 1);
        let ids = ranges.iter().flat_map(|&(start, len)| start..start + len);
        for id in ids.skip(shared as usize) {
            let next = self.nodes;
            let node = *self.children.entry((parent, id)).or_insert(next);
            if node == next {
                if next == NONE - 1 {
                    return Err(Error::Usage("the trace has more than 4 billion distinct blocks".into()));
                }
                self.nodes += 1;
            }
            push(&mut chain, node, 1);
            parent = node;
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push((ranges, chain.clone()));
        Ok(chain)
    }
}

/// The leading `count` ids of `ranges`.
fn cut(ranges: impl Iterator<Item = (u64, u64)>, count: u64) -> Vec<(u64, u64)> {
    let mut left = count;
    let mut kept = Vec::new();
    for (start, len) in ranges {
        let taken = len.min(left);
        if taken > 0 {
            kept.push((start, taken));
        }
        left -= taken;
    }
    kept
}

/// Ids that two lists of joined ranges begin with alike.
fn common(a: &[(u64, u64)], b: &[(u64, u64)]) -> u64 {
    let mut ids = 0;
    for (&(a_start, a_len), &(b_start, b_len)) in a.iter().zip(b) {
        if a_start != b_start {
            break;
        }
        ids += a_len.min(b_len);
        if a_len != b_len {
            break;
        }
    }
    ids
}

/// The leading `count` blocks of a chain.
pub(super) fn leading(chain: &[Span], count: u64) -> Vec<Span> {
    let mut left = count;
    let mut kept = Vec::new();
    for &(first, len) in chain {
        let taken = u64::from(len).min(left);
        if taken == 0 {
            break;
        }
        kept.push((first, taken as u32));
        left -= taken;
    }
    kept
}

/// Several blocks of the trace as one: the id of the last of them stands for all, made dense again.
#[derive(Default)]
struct Groups {
    of: Vec<u32>,
    count: u32,
}

impl Groups {
    fn chain(&mut self, fine: &[Span], group: usize) -> Vec<Span> {
        let mut chain = Vec::new();
        let ids = fine.iter().flat_map(|&(first, len)| first..first + len);
        for id in ids.skip(group - 1).step_by(group) {
            if self.of.len() <= id as usize {
                self.of.resize(id as usize + 1, NONE);
            }
            let place = &mut self.of[id as usize];
            if *place == NONE {
                *place = self.count;
                self.count += 1;
            }
            push(&mut chain, *place, 1);
        }
        chain
    }
}

#[cfg(test)]
pub(crate) mod tests;
