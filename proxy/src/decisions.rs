//! The last decisions with their terms, and what became of each: for `GET /v1/decisions` and the access log.
//!
//! They hold numbers and names that the operator gave, and the request's id. Nothing of a prompt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use larder_routing::{Decision, Would};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::usage::Usage;

/// Decisions that are kept: some seconds of a busy proxy, under half a megabyte.
pub const KEPT: usize = 1_024;

/// What became of a request after its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// Its answer is still on its way.
    InFlight,
    /// The whole answer came.
    Completed,
    /// The engine refused it, failed before its answer, or could not be reached.
    Failed,
    /// The answer broke off.
    Broken,
    /// The client left.
    Aborted,
}

impl Fate {
    const ALL: [Self; 5] = [Self::InFlight, Self::Completed, Self::Failed, Self::Broken, Self::Aborted];

    /// The word in logs and lists.
    pub fn label(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Broken => "broken",
            Self::Aborted => "aborted",
        }
    }
}

/// A token count that is not known (yet).
const UNKNOWN: u64 = u64::MAX;

fn known(count: &AtomicU64) -> Option<u64> {
    Some(count.load(Ordering::Relaxed)).filter(|n| *n != UNKNOWN)
}

/// One decision. Times are seconds, sizes tokens.
#[derive(Debug)]
pub struct Record {
    /// The request's id.
    pub id: Box<str>,
    /// The pool's model.
    pub pool: Box<str>,
    /// The chosen endpoint.
    pub endpoint: Arc<str>,
    /// Why it was chosen.
    pub reason: &'static str,
    /// Prompt tokens expected in its cache.
    pub matched_tokens: u64,
    /// Tokens the prompt is expected to have.
    pub prompt_tokens: u64,
    at: SystemTime,
    wait_s: f64,
    /// Prompt tokens that were to come from a cache node.
    pub fetch_tokens: u64,
    fetch_s: f64,
    link_wait_s: f64,
    warehoused_tokens: u64,
    miss_s: f64,
    cost_s: f64,
    price: f64,
    held_s: f64,
    candidates: usize,
    runner_up: Option<RunnerUp>,
    would: Option<Would>,
    fate: AtomicU8,
    staged_tokens: AtomicU64,
    actual_prompt_tokens: AtomicU64,
    actual_cached_tokens: AtomicU64,
}

#[derive(Debug)]
struct RunnerUp {
    endpoint: Arc<str>,
    cost_s: f64,
    matched_tokens: u64,
}

impl Record {
    /// The record of `decision` for the request `id`.
    pub fn new(id: &str, pool: &str, decision: &Decision) -> Arc<Self> {
        Arc::new(Self {
            matched_tokens: decision.matched_tokens,
            prompt_tokens: decision.prompt_tokens,
            wait_s: decision.wait_s,
            fetch_tokens: decision.fetch_tokens,
            fetch_s: decision.fetch_s,
            link_wait_s: decision.link_wait_s,
            warehoused_tokens: decision.warehoused_tokens,
            miss_s: decision.miss_s,
            cost_s: decision.cost_s,
            price: decision.price,
            held_s: decision.held_s,
            candidates: decision.candidates,
            runner_up: decision.runner_up.as_ref().map(|runner| RunnerUp {
                endpoint: Arc::clone(&runner.name),
                cost_s: runner.cost_s,
                matched_tokens: runner.matched_tokens,
            }),
            would: decision.would.clone(),
            ..Self::empty(id, pool, (Arc::clone(&decision.name), decision.reason.label()))
        })
    }

    /// The record of a choice by load alone, which has no terms.
    pub fn by_load(id: &str, pool: &str, (endpoint, reason): (&str, &'static str)) -> Arc<Self> {
        Arc::new(Self::empty(id, pool, (endpoint.into(), reason)))
    }

    /// A record without terms, of a request that begins now.
    fn empty(id: &str, pool: &str, (endpoint, reason): (Arc<str>, &'static str)) -> Self {
        Self {
            id: id.into(),
            pool: pool.into(),
            endpoint,
            reason,
            matched_tokens: 0,
            prompt_tokens: 0,
            at: SystemTime::now(),
            wait_s: 0.0,
            fetch_tokens: 0,
            fetch_s: 0.0,
            link_wait_s: 0.0,
            warehoused_tokens: 0,
            miss_s: 0.0,
            cost_s: 0.0,
            price: 0.0,
            held_s: 0.0,
            candidates: 0,
            runner_up: None,
            would: None,
            fate: AtomicU8::new(Fate::InFlight as u8),
            staged_tokens: AtomicU64::new(UNKNOWN),
            actual_prompt_tokens: AtomicU64::new(UNKNOWN),
            actual_cached_tokens: AtomicU64::new(UNKNOWN),
        }
    }

    /// Notes what became of the request.
    pub fn settle(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Relaxed);
    }

    /// Notes how many tokens of the prompt's beginning a cache node made ready.
    pub fn staged(&self, tokens: u64) {
        self.staged_tokens.store(tokens, Ordering::Relaxed);
    }

    /// Notes what the engine counted.
    pub fn used(&self, usage: &Usage) {
        self.actual_prompt_tokens.store(usage.prompt_tokens, Ordering::Relaxed);
        self.actual_cached_tokens.store(usage.cached_tokens.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// What became of the request so far.
    pub fn fate(&self) -> Fate {
        let fate = self.fate.load(Ordering::Relaxed);
        Fate::ALL.into_iter().find(|known| *known as u8 == fate).unwrap_or(Fate::InFlight)
    }

    /// Prompt tokens and, of these, cached ones, as the engine counted them.
    pub fn actual(&self) -> (Option<u64>, Option<u64>) {
        (known(&self.actual_prompt_tokens), known(&self.actual_cached_tokens))
    }

    fn json(&self) -> Value {
        let (prompt, cached) = self.actual();
        json!({
            "id": self.id,
            "unix_ms": self.at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
            "pool": self.pool,
            "endpoint": &*self.endpoint,
            "reason": self.reason,
            "matched_tokens": self.matched_tokens,
            "prompt_tokens": self.prompt_tokens,
            "wait_s": self.wait_s,
            "fetch_tokens": self.fetch_tokens,
            "fetch_s": self.fetch_s,
            "link_wait_s": self.link_wait_s,
            "warehoused_tokens": self.warehoused_tokens,
            "staged_tokens": known(&self.staged_tokens),
            "miss_s": self.miss_s,
            "cost_s": self.cost_s,
            "price": self.price,
            "held_s": self.held_s,
            "candidates": self.candidates,
            "runner_up": self.runner_up.as_ref().map(|runner| json!({
                "endpoint": &*runner.endpoint,
                "cost_s": runner.cost_s,
                "matched_tokens": runner.matched_tokens,
            })),
            "shadow": self.would.as_ref().map(|would| json!({
                "endpoint": &*would.name,
                "reason": would.reason.label(),
                "cost_s": would.cost_s,
                "matched_tokens": would.matched_tokens,
            })),
            "fate": self.fate().label(),
            "actual_prompt_tokens": prompt,
            "actual_cached_tokens": cached,
        })
    }
}

/// The last [`KEPT`] decisions of the process.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<VecDeque<Arc<Record>>>);

impl Decisions {
    /// Adds the newest; forgets the oldest where there are enough.
    pub fn push(&self, record: Arc<Record>) {
        let mut kept = self.0.lock();
        let oldest = if kept.len() == KEPT { kept.pop_front() } else { None };
        kept.push_back(record);
        drop(kept);
        drop(oldest);
    }

    /// The newest `count`, newest first: `{"decisions": [...]}`.
    pub fn json(&self, count: usize) -> Value {
        let newest: Vec<Arc<Record>> = self.0.lock().iter().rev().take(count).cloned().collect();
        json!({"decisions": newest.iter().map(|record| record.json()).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use larder_routing::{Fleet, Now, Outcome, RouteRequest, Settings};

    use super::*;

    fn record(id: &str) -> Arc<Record> {
        let mut fleet = Fleet::new(Settings::default());
        fleet.add_endpoint("a", Now::ZERO);
        let request = RouteRequest {
            chain: &[1],
            run_bytes: 512,
            prompt_bytes: 512,
            media: 0,
            session: None,
            streamed: false,
            exclude: &[],
        };
        let decision = fleet.route(&request, Now::ZERO).unwrap();
        let record = Record::new(id, "m", &decision);
        fleet.finish(decision.ticket, Outcome::Aborted, Now::ZERO);
        record
    }

    #[test]
    fn the_newest_are_kept_and_come_first() {
        let decisions = Decisions::default();
        for n in 0..KEPT + 3 {
            decisions.push(record(&n.to_string()));
        }
        let all = decisions.json(usize::MAX);
        let all = all["decisions"].as_array().unwrap();
        assert_eq!(all.len(), KEPT);
        assert_eq!((&all[0]["id"], &all[KEPT - 1]["id"]), (&json!("1026"), &json!("3")));
        assert_eq!(decisions.json(2)["decisions"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_became_of_it_is_told() {
        let record = record("x");
        assert_eq!(record.json()["fate"], "in_flight");
        assert_eq!(record.json()["actual_cached_tokens"], Value::Null);
        record.used(&Usage { prompt_tokens: 9, cached_tokens: Some(4) });
        record.settle(Fate::Completed);
        let json = record.json();
        assert_eq!((&json["fate"], &json["endpoint"]), (&json!("completed"), &json!("a")));
        assert_eq!((&json["actual_prompt_tokens"], &json["actual_cached_tokens"]), (&json!(9), &json!(4)));
        record.used(&Usage { prompt_tokens: 9, cached_tokens: None });
        assert_eq!(record.actual(), (Some(9), None));
    }
}
