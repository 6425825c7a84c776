//! Links to warehouses: how fast they are, and what they have to carry before one more fetch.
//!
//! Fetches on one link are taken to run one after the other in the order of dispatch, as prefills at an endpoint do
//! (`load`). The same rule for what is late: late by *t*, another *t* is expected, up to what is owed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::estimate::bounded;
use crate::index::HolderId;
use crate::time::Now;

/// Fetches that the observed speed remembers, as an exponential window.
const WINDOW: f64 = 64.0;
/// Tokens at the configured speed that count as observed at the start: one long prompt.
const PRIOR_TOKENS: f64 = 32_768.0;
/// One observation moves the speed as if it lay at most this factor from it.
const CLIP: f64 = 8.0;
/// A link within this share of the mean of all is as fast as the mean: equal links must tie exactly, or the luckiest
/// estimate would draw every prompt that is fetched.
const SAME: f64 = 0.25;
/// Bounds of a token's seconds on a link: a billion down to 100 tokens per second.
const TOKEN_S: (f64, f64) = (1e-9, 1e-2);
/// What an unusable configured speed counts as, in tokens per second: an 8B model's KV (128 KiB a token) over
/// 100 Gbit/s.
const TOKENS_PER_S: f64 = 95_000.0;

/// A fetch that is not over.
#[derive(Debug)]
struct Owed {
    request: u32,
    seconds: f64,
    begun: Now,
}

/// Seconds per token, as the quotient of decayed sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    tokens: f64,
    seconds: f64,
    /// As configured.
    least_s: f64,
}

impl Speed {
    fn new(tokens_per_s: f64) -> Self {
        let token_s = 1.0 / bounded(tokens_per_s, TOKENS_PER_S, 1.0 / TOKEN_S.1, 1.0 / TOKEN_S.0);
        Speed { tokens: PRIOR_TOKENS, seconds: PRIOR_TOKENS * token_s, least_s: token_s }
    }

    /// Never less than configured: what is observed ends when KV is ready beside the engine, which then still has to
    /// copy it, and a fetch believed to be free would move sessions about for nothing.
    fn token_s(&self) -> f64 {
        bounded(self.seconds / self.tokens, 1.0 / TOKENS_PER_S, self.least_s, TOKEN_S.1)
    }

    fn observe(&mut self, tokens: f64, seconds: f64) {
        if !(tokens.is_finite() && tokens >= 1.0) {
            return;
        }
        let due = tokens * self.token_s();
        let keep = 1.0 - 1.0 / WINDOW;
        self.tokens = self.tokens * keep + tokens;
        self.seconds = self.seconds * keep + seconds.clamp(due / CLIP, due * CLIP);
    }

    /// The mean of these; `None` of none.
    pub(crate) fn mean_s(all: impl Iterator<Item = Speed>) -> Option<f64> {
        // Each with the same weight, however much it has carried.
        let (count, sum) = all.fold((0.0, 0.0), |(count, sum), link| (count + 1.0, sum + link.token_s()));
        (count > 0.0).then(|| sum / count)
    }
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    speed: Speed,
    owed: VecDeque<Owed>,
    free_at: Now,
    last_end: Now,
    /// Fetches since the link was last idle.
    busy_period: u32,
}

impl Link {
    /// An idle link of a speed that gives way to observations.
    pub(crate) fn new(tokens_per_s: f64) -> Self {
        Link {
            speed: Speed::new(tokens_per_s),
            owed: VecDeque::new(),
            free_at: Now::ZERO,
            last_end: Now::ZERO,
            busy_period: 0,
        }
    }

    pub(crate) fn speed(&self) -> Speed {
        self.speed
    }

    /// Seconds that one token's KV takes, given the mean of all links.
    pub(crate) fn token_s(&self, mean_s: f64) -> f64 {
        let own = self.speed.token_s();
        if (own - mean_s).abs() <= SAME * mean_s { mean_s } else { own }
    }

    /// Seconds until it can turn to one more fetch.
    pub(crate) fn wait_s(&self, now: Now) -> f64 {
        if self.owed.is_empty() {
            return 0.0;
        }
        let due = self.free_at.since(now);
        let owed: f64 = self.owed.iter().map(|owed| owed.seconds).sum();
        if due > 0.0 { due } else { now.since(self.free_at).min(owed) }
    }

    /// Takes a fetch in. Returns how many it found in its busy period.
    pub(crate) fn begin(&mut self, request: u32, seconds: f64, now: Now) -> u32 {
        if self.owed.is_empty() {
            (self.busy_period, self.free_at) = (0, now);
        }
        let from = if self.free_at > now { self.free_at } else { now };
        self.free_at = from.plus(seconds);
        self.owed.push_back(Owed { request, seconds, begun: now });
        let predecessors = self.busy_period;
        self.busy_period = self.busy_period.saturating_add(1);
        predecessors
    }

    /// A fetch is over and brought so many tokens; `None`: it was given up, which says nothing.
    pub(crate) fn end(&mut self, request: u32, tokens: Option<f64>, now: Now) {
        let Some(place) = self.owed.iter().position(|owed| owed.request == request) else { return };
        let Some(owed) = self.owed.remove(place) else { return };
        if let Some(tokens) = tokens {
            let began = if owed.begun > self.last_end { owed.begun } else { self.last_end };
            self.speed.observe(tokens, now.since(began));
            self.last_end = now;
        }
        self.free_at = now.plus(self.owed.iter().map(|owed| owed.seconds).sum());
    }
}

/// What a name stands for, while someone uses it.
#[derive(Debug)]
struct Named<T> {
    name: Arc<str>,
    users: u32,
    value: T,
}

/// Things that endpoints share by name. A place is reused once the last user has left it.
#[derive(Debug)]
pub(crate) struct Shared<T>(Vec<Option<Named<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Vec::new())
    }
}

impl<T> Shared<T> {
    /// The place of a name, with one user more.
    pub(crate) fn join(&mut self, name: &str, make: impl FnOnce() -> T) -> u32 {
        let known = self.0.iter().position(|named| named.as_ref().is_some_and(|named| &*named.name == name));
        let place = known.or_else(|| self.0.iter().position(Option::is_none)).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        let fresh = || Named { name: name.into(), users: 0, value: make() };
        self.0[place].get_or_insert_with(fresh).users += 1;
        place as u32
    }

    /// One user less; gives back what nobody uses any more.
    pub(crate) fn leave(&mut self, place: u32) -> Option<T> {
        let slot = self.0.get_mut(place as usize)?;
        let named = slot.as_mut()?;
        named.users -= 1;
        if named.users > 0 { None } else { slot.take().map(|named| named.value) }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten().map(|named| &named.value)
    }

    pub(crate) fn get(&self, place: u32) -> Option<&T> {
        self.0.get(place as usize)?.as_ref().map(|named| &named.value)
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.0.get_mut(place as usize)?.as_mut().map(|named| &mut named.value)
    }

    pub(crate) fn named(&mut self, name: &str) -> Option<&mut T> {
        let named = self.0.iter_mut().flatten().find(|named| &*named.name == name);
        named.map(|named| &mut named.value)
    }
}

/// A store of KV that several endpoints may read.
#[derive(Debug)]
pub(crate) struct Warehouse {
    /// What it is believed to hold, in the index.
    pub(crate) holder: HolderId,
    /// Its capacity in tokens, where it is known.
    pub(crate) tokens: Option<u64>,
}

/// By what an endpoint reads which warehouse: places in the fleet's two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) warehouse: u32,
    pub(crate) link: u32,
}

#[cfg(test)]
mod tests;
