//! What an endpoint has to do before it can turn to one more prompt.
//!
//! Prefills are taken to run one after the other in the order of routing. Each adds its seconds to a running end
//! time; first tokens correct it. When the end time has passed and first tokens are still owed, the endpoint is
//! slower than believed, and late by *t* it is expected to need another *t*: continuous, without a scale, and
//! what keeps a hung endpoint from drawing more.

use std::collections::VecDeque;

use crate::time::Now;

/// A prompt whose first token is owed.
#[derive(Debug)]
struct Owed {
    request: u32,
    uncached_tokens: u64,
    seconds: f64,
    streamed: bool,
    /// When what is fetched for it is there.
    ready: Now,
}

/// Requests in flight at one endpoint and the time they need.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: u32,
    /// In order of routing; at most one entry for each request in flight.
    owed: VecDeque<Owed>,
    busy_until: Now,
    last_first_token: Now,
    /// Requests placed here since the endpoint was last idle.
    busy_period: u32,
}

impl Load {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests past their prefill, as far as one can tell.
    pub(crate) fn decoding(&self) -> u32 {
        self.in_flight - self.owed.len() as u32
    }

    /// Uncached tokens of prompts whose first token is owed.
    pub(crate) fn uncached_tokens(&self) -> u64 {
        self.owed.iter().fold(0, |sum, owed| sum.saturating_add(owed.uncached_tokens))
    }

    /// Seconds until the endpoint can turn to another prompt.
    pub(crate) fn wait_s(&self, now: Now) -> f64 {
        if self.owed.is_empty() {
            return 0.0;
        }
        let due = self.busy_until.since(now);
        if due > 0.0 {
            return due;
        }
        // Unanswered only means late where a first token can be seen.
        let unseen: f64 = self.owed.iter().filter(|owed| owed.streamed).map(|owed| owed.seconds).sum();
        now.since(self.busy_until).min(unseen)
    }

    /// Seconds until its prefills are due to be over; 0 when they are, even if first tokens are owed.
    pub(crate) fn due_s(&self, now: Now) -> f64 {
        if self.owed.is_empty() { 0.0 } else { self.busy_until.since(now) }
    }

    /// Counts a request toward the busy period, which is a new one if nobody is here and nobody waits to come.
    /// Returns how many joined it before.
    pub(crate) fn join(&mut self, nobody_waits: bool, now: Now) -> u32 {
        self.settle_unseen(now);
        if self.owed.is_empty() && nobody_waits {
            self.busy_period = 0;
        }
        let predecessors = self.busy_period;
        self.busy_period = self.busy_period.saturating_add(1);
        predecessors
    }

    /// Takes a request in, whose prefill may begin at `ready`.
    pub(crate) fn begin(
        &mut self,
        request: u32,
        uncached_tokens: u64,
        seconds: f64,
        (streamed, ready): (bool, Now),
        now: Now,
    ) {
        self.settle_unseen(now);
        if self.owed.is_empty() {
            self.busy_until = now;
        }
        self.in_flight += 1;
        let from = later(self.busy_until, now);
        self.busy_until = later(from, ready).plus(seconds);
        self.owed.push_back(Owed { request, uncached_tokens, seconds, streamed, ready });
    }

    /// What was fetched for a request is there now, and so many tokens less than it was to be, which are to be
    /// computed in so many seconds (fewer than 0: more than it was to be).
    pub(crate) fn fetched(&mut self, request: u32, missing_tokens: f64, seconds: f64, now: Now) {
        let Some(place) = self.owed.iter().position(|owed| owed.request == request) else { return };
        let owed = &mut self.owed[place];
        let uncached = (owed.uncached_tokens as f64 + missing_tokens).max(0.0).round() as u64;
        let added = (owed.seconds + seconds).max(0.0) - owed.seconds;
        (owed.uncached_tokens, owed.seconds, owed.ready) = (uncached, owed.seconds + added, now);
        if place == 0 {
            self.recompute(now);
        } else {
            self.busy_until = Now::from_secs_f64(self.busy_until.as_secs_f64() + added);
        }
    }

    /// A first token was seen. Returns the seconds that the prefill took by itself, where that is known: not when
    /// an answer whose first token nobody sees was ahead of it.
    pub(crate) fn first_token(&mut self, request: u32, routed_at: Now, now: Now) -> Option<f64> {
        let place = self.owed.iter().position(|owed| owed.request == request)?;
        let began = if routed_at > self.last_first_token { routed_at } else { self.last_first_token };
        let alone = self.owed.iter().take(place).all(|owed| owed.streamed);
        self.take(place, now);
        if !alone {
            // First come, first served: what was ahead of it is done, seen or not.
            let mut ahead = place;
            self.owed.retain(|owed| {
                let drop = ahead > 0 && !owed.streamed;
                ahead = ahead.saturating_sub(1);
                !drop
            });
            self.recompute(now);
        }
        self.last_first_token = now;
        alone.then(|| now.since(began))
    }

    /// Lets a request go, wherever it was.
    pub(crate) fn end(&mut self, request: u32, now: Now) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(place) = self.owed.iter().position(|owed| owed.request == request) {
            self.take(place, now);
        }
    }

    fn take(&mut self, place: usize, now: Now) {
        self.owed.remove(place);
        let before = self.busy_until;
        self.recompute(now);
        // The head has been worked on for a while; only when the head itself is done does the next begin now.
        if place > 0 && before > now && before < self.busy_until {
            self.busy_until = before;
        }
    }

    fn recompute(&mut self, now: Now) {
        let end = |from, owed: &Owed| later(from, owed.ready).plus(owed.seconds);
        self.busy_until = self.owed.iter().fold(now, end);
        // A burst must not keep its memory for ever.
        if self.owed.capacity() > 64 && self.owed.len() < self.owed.capacity() / 4 {
            self.owed.shrink_to(self.owed.len() * 2);
        }
    }

    /// Prompts whose first token cannot be seen count as prefilled once everything should be.
    fn settle_unseen(&mut self, now: Now) {
        if self.busy_until <= now {
            self.owed.retain(|owed| owed.streamed);
        }
    }
}

fn later(a: Now, b: Now) -> Now {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests;
