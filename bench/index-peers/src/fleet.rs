//! Agentic sessions on a fleet of endpoints, as a list of events.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::io::{BufRead, BufReader};
use std::path::Path;

use hashlink::LruCache;
use kv_index::{ContentHash, SequenceHash, chain_prefix_hash};
use serde_json::Value;

/// Leading blocks that all sessions share: a system prompt with tools of 2,048 tokens. The trace's own blocks are local
/// to their sessions.
const SHARED_BLOCKS: u64 = 32;
/// Sessions begin within so many seconds, and think no longer than so many.
const STARTS_S: f64 = 7_200.0;
const THINK_CAP_S: f64 = 300.0;
/// Of ten requests, so many go where their session's last one went, the others anywhere.
const STAYS_OF_TEN: u64 = 7;

/// A prompt, block by block.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// What each block contains.
    pub contents: Vec<u64>,
    /// What each block contains, and everything before it.
    pub elements: Vec<u64>,
}

/// What one request does to the endpoint it went to.
pub struct Event {
    /// The endpoint.
    pub endpoint: u32,
    /// The request's chain, by number.
    pub chain: usize,
    /// Leading blocks that were there.
    pub held: usize,
    /// What was evicted for it, in order.
    pub removed: Vec<u64>,
}

/// A fleet's history.
pub struct History {
    /// All chains, in the order of their requests.
    pub chains: Vec<Chain>,
    /// One a request.
    pub events: Vec<Event>,
    /// Blocks that the endpoints hold in the end.
    pub entries: u64,
    /// Of these, distinct ones.
    pub distinct: u64,
}

/// SplitMix64, as published by Vigna.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        crate::random::finish(self.0)
    }
}

struct Turn {
    think_s: f64,
    contents: Vec<u64>,
}

/// Reads an agentic trace (see bench/traces) and makes every request a chain.
fn sessions(path: &Path) -> Vec<Vec<Turn>> {
    let file = std::fs::File::open(path).expect("the trace can be opened");
    let reader = BufReader::new(lzma_rust2::XzReader::new(file, true));
    let sessions = reader.lines().enumerate().map(|(number, line)| {
        let line: Value = serde_json::from_str(&line.expect("the trace is text")).expect("a line is JSON");
        let mut turns = Vec::new();
        flatten(number as u64 + 1, &line["requests"], &mut turns);
        turns
    });
    sessions.collect()
}

fn flatten(session: u64, entries: &Value, turns: &mut Vec<Turn>) {
    for entry in entries.as_array().into_iter().flatten() {
        if entry["requests"].is_array() {
            flatten(session, &entry["requests"], turns);
            continue;
        }
        let ranges = entry["hash_ranges"].as_array().into_iter().flatten();
        let ids = ranges.flat_map(|range| {
            let (first, count) = (range[0].as_u64().unwrap_or(0), range[1].as_u64().unwrap_or(0));
            first..first + count
        });
        let own = ids.enumerate().map(|(at, id)| {
            let scope = if (at as u64) < SHARED_BLOCKS { 0 } else { session };
            crate::random::finish(scope << 40 | (id + 1))
        });
        let think_s = entry["think_time"].as_f64().unwrap_or(0.0).min(THINK_CAP_S);
        turns.push(Turn { think_s, contents: own.collect() });
    }
}

fn chain(contents: Vec<u64>) -> Chain {
    let mut elements: Vec<u64> = Vec::with_capacity(contents.len());
    for &content in &contents {
        let element = match elements.last() {
            None => content,
            Some(&before) => chain_prefix_hash(SequenceHash(before), ContentHash(content)).0,
        };
        elements.push(element);
    }
    Chain { contents, elements }
}

/// Plays the first `share` of the requests of `path` on `endpoints` caches of `blocks` each.
pub fn play(path: &Path, endpoints: u32, blocks: usize, share: f64) -> History {
    let mut random = Random(1);
    let mut sessions = sessions(path);
    let total: usize = sessions.iter().map(Vec::len).sum();
    let mut due: BinaryHeap<Reverse<(u64, usize, usize)>> = BinaryHeap::new();
    for session in 0..sessions.len() {
        let start_s = random.next() as f64 / u64::MAX as f64 * STARTS_S;
        due.push(Reverse(((start_s * 1e6) as u64, session, 0)));
    }
    let mut caches: Vec<LruCache<u64, ()>> = (0..endpoints).map(|_| LruCache::new(usize::MAX)).collect();
    let mut last = vec![None; sessions.len()];
    let mut history = History { chains: Vec::new(), events: Vec::new(), entries: 0, distinct: 0 };
    while let Some(Reverse((at, session, turn))) = due.pop() {
        let Some(next) = sessions[session].get_mut(turn) else { continue };
        let chain = chain(std::mem::take(&mut next.contents));
        if let Some(after) = sessions[session].get(turn + 1) {
            due.push(Reverse((at + ((after.think_s + 2.0) * 1e6) as u64, session, turn + 1)));
        }
        let number = history.chains.len();
        if (number as f64) < share * total as f64 && !chain.elements.is_empty() {
            let stays = random.next() % 10 < STAYS_OF_TEN;
            let anywhere = (random.next() % u64::from(endpoints)) as u32;
            let endpoint = last[session].filter(|_| stays).unwrap_or(anywhere);
            last[session] = Some(endpoint);
            history.events.push(serve(&mut caches[endpoint as usize], (endpoint, number), &chain, blocks));
        }
        history.chains.push(chain);
    }
    history.entries = caches.iter().map(|cache| cache.len() as u64).sum();
    let all: BTreeSet<u64> = caches.iter().flat_map(|cache| cache.iter().map(|(&block, ())| block)).collect();
    history.distinct = all.len() as u64;
    history
}

/// Uses all blocks of a chain, the deepest least recently, then evicts what is too much.
fn serve(
    cache: &mut LruCache<u64, ()>,
    (endpoint, chain): (u32, usize),
    blocks_of: &Chain,
    blocks: usize,
) -> Event {
    let held = blocks_of.elements.iter().take_while(|block| cache.contains_key(*block)).count();
    for &block in blocks_of.elements.iter().rev() {
        cache.insert(block, ());
    }
    let excess = cache.len().saturating_sub(blocks);
    let removed = (0..excess).filter_map(|_| cache.remove_lru().map(|(block, ())| block)).collect();
    Event { endpoint, chain, held, removed }
}
