//! What an endpoint has to do before it can turn to one more prompt.
//!
//! Prefills are taken to run one after the other in the order of routing. Each adds its seconds to a running end
//! time; first tokens correct it. When the end time has passed and first tokens are still owed, the endpoint is
//! slower than believed, and late by *t* it is expected to need another *t*: continuous, without a scale, and
//! what keeps a hung endpoint from drawing more.
//!
//! An endpoint that was seen to prefill several prompts at the same time is modelled so; see `sharing`.

mod sharing;

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::time::Now;
use sharing::Width;

/// Prompts that one look at a shared endpoint follows one by one.
const FLUID_MAX: usize = 64;

/// A prompt whose first token is owed.
#[derive(Debug)]
struct Owed {
    request: u32,
    uncached_tokens: u64,
    seconds: f64,
    streamed: bool,
    /// When what is fetched for it is there.
    ready: Now,
    routed_at: Now,
    /// Seconds of the endpoint's time that it had so far, as far as one can tell.
    got_s: f64,
    /// When one that was dispatched later had its first token first, and how many that one passed.
    passed: Option<(Now, usize)>,
}

impl Owed {
    /// Seconds that it still needs with `more_s` since; late by *t*, it is expected to need another *t*.
    fn left_s(&self, more_s: f64) -> f64 {
        (self.seconds - self.got_s - more_s).abs().min(self.seconds)
    }
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
    width: Width,
    /// `got_s` is right at this time.
    shared_at: Now,
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

    /// Seconds that a prompt of `own_s` will have waited when its prefill is done, if it comes now.
    pub(crate) fn wait_s(&self, own_s: f64, now: Now) -> f64 {
        if self.owed.is_empty() {
            return 0.0;
        }
        if self.width.get() > 1 {
            let mut left: Vec<f64> = self.left_at(now).collect();
            // Of very many, all but the last few are served before it in any case.
            let ahead_s: f64 = left.drain(..left.len().saturating_sub(FLUID_MAX)).sum();
            return ahead_s + sharing::wait_s(&mut left, self.width.get(), own_s);
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

    /// Whether a prompt of `own_s` should begin here now though the endpoint is not about to be free: if it works on
    /// several prompts and this one passes the others at little cost to them, or to see whether it does.
    pub(crate) fn lets_pass(&self, own_s: f64, now: Now) -> bool {
        match self.owed.len().cmp(&self.width.get()) {
            Ordering::Less => sharing::may_join(self.left_at(now), own_s),
            Ordering::Equal => self.width.wants_to_see(own_s, self.least_left_s(now)),
            Ordering::Greater => false,
        }
    }

    /// Seconds of work here.
    pub(crate) fn backlog_s(&self, now: Now) -> f64 {
        if self.width.get() > 1 { self.left_at(now).sum() } else { self.wait_s(0.0, now) }
    }

    /// How many prompts it is taken to work on together.
    pub(crate) fn width(&self) -> usize {
        self.width.get()
    }

    /// The least that one of those owed a first token still needs.
    fn least_left_s(&self, now: Now) -> f64 {
        self.left_at(now).fold(f64::INFINITY, f64::min)
    }

    /// Seconds that those owed a first token still need, in their order.
    fn left_at(&self, now: Now) -> impl Iterator<Item = f64> + Clone + '_ {
        let active = self.owed.len().min(self.width.get());
        let since = now.since(self.shared_at) / active.max(1) as f64;
        self.owed.iter().enumerate().map(move |(at, owed)| owed.left_s(if at < active { since } else { 0.0 }))
    }

    /// Brings `got_s` up to `now`.
    fn share(&mut self, now: Now) {
        let active = self.owed.len().min(self.width.get());
        let since = now.since(self.shared_at) / active.max(1) as f64;
        self.owed.iter_mut().take(active).for_each(|owed| owed.got_s += since);
        if now > self.shared_at {
            self.shared_at = now;
        }
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
        self.share(now);
        if self.owed.is_empty() {
            self.busy_until = now;
        }
        let full = self.owed.len() == self.width.get();
        self.width.dispatched(seconds, if full { self.least_left_s(now) } else { 0.0 });
        self.in_flight += 1;
        let from = later(self.busy_until, now);
        self.busy_until = later(from, ready).plus(seconds);
        self.owed.push_back(Owed {
            request,
            uncached_tokens,
            seconds,
            streamed,
            ready,
            routed_at: now,
            got_s: 0.0,
            passed: None,
        });
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
        self.share(now);
        self.learn_width(place, now);
        if self.width.get() > 1 {
            let got_s = self.owed[place].got_s;
            self.take(place, now);
            self.last_first_token = now;
            return alone.then_some(got_s);
        }
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

    /// What the order of first tokens says: the one at `place` has its own now.
    fn learn_width(&mut self, place: usize, now: Now) {
        let passed = self.owed.iter().take(place).filter(|owed| owed.streamed).count();
        if passed > 0 {
            let ahead = self.owed.iter_mut().take(place).filter(|owed| owed.streamed);
            ahead.for_each(|owed| {
                owed.passed = Some(owed.passed.map_or((now, passed), |(at, most)| (at, most.max(passed))))
            });
        }
        let done = &self.owed[place];
        if let Some((at, passed)) = done.passed {
            self.width.was_passed(passed, now.since(at), done.seconds);
        }
        let (seconds, width) = (done.seconds, self.width.get());
        let waited = |owed: &Owed| seconds.min(now.since(owed.routed_at) / width as f64);
        let behind: Vec<&Owed> = self.owed.iter().skip(place + 1).take(width - 1).collect();
        let stuck =
            behind.iter().rposition(|owed| owed.streamed && sharing::tells(owed.seconds, waited(owed)));
        if let Some(at) = stuck {
            self.width.was_not_passed(at + 1);
        }
    }

    /// Lets a request go, wherever it was.
    pub(crate) fn end(&mut self, request: u32, now: Now) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(place) = self.owed.iter().position(|owed| owed.request == request) {
            self.share(now);
            self.take(place, now);
        }
    }

    fn take(&mut self, place: usize, now: Now) {
        self.owed.remove(place);
        let before = self.busy_until;
        self.recompute(now);
        // The head has been worked on for a while; only when the head itself is done does the next begin now.
        if place > 0 && self.width.get() == 1 && before > now && before < self.busy_until {
            self.busy_until = before;
        }
    }

    fn recompute(&mut self, now: Now) {
        let shared = self.width.get() > 1;
        let seconds = |owed: &Owed| if shared { owed.left_s(0.0) } else { owed.seconds };
        let end = |from, owed: &Owed| later(from, owed.ready).plus(seconds(owed));
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
