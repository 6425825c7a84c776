//! A request that is on its way, and what becomes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder_routing::{Fetched, Outcome, Ticket};

use super::{Endpoint, Pool};
use crate::decisions::{Fate, Record};
use crate::gateway::places::Place;
use crate::gateway::response::Late;
use crate::usage::Usage;

/// A request that counts as an endpoint's load. However it goes, the load is released exactly once.
pub struct InFlight {
    pub(super) pool: Arc<Pool>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Whether its end tells the breaker if the endpoint is well again.
    pub(super) probe: bool,
    /// None where it was chosen without the fleet.
    pub(super) ticket: Option<Ticket>,
    pub(super) settled: bool,
    pub(super) arrived: Instant,
    pub(super) matched_tokens: u64,
    pub(super) missing_tokens: u64,
    pub(super) held: Duration,
    pub(super) has_prompt: bool,
    pub(super) place: Option<Place>,
    pub(super) record: Arc<Record>,
}

impl InFlight {
    /// Whether a cache node may be asked for what the endpoint lacks.
    pub fn may_stage(&self) -> bool {
        !self.pool.passes_through() && !self.pool.is_shadow()
    }

    /// Keeps its place among all requests until it goes.
    pub fn keep(&mut self, place: Option<Place>) {
        self.place = place;
    }

    /// The decision that sent it there.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Prompt tokens that the endpoint is expected to hold.
    pub fn matched_tokens(&self) -> u64 {
        self.matched_tokens
    }

    /// Prompt tokens that a cache node may be waited for: those that the endpoint is expected not to hold, unless it was
    /// weighed that computing them is quicker than what the node has.
    pub fn missing_tokens(&self) -> u64 {
        self.missing_tokens
    }

    /// When its request's head came.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// How long it was held back.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// So many tokens of the prompt's beginning were staged for the endpoint, and whether those are `all` that its node
    /// has.
    pub fn staged(&self, tokens: u64, all: bool) {
        self.endpoint.metrics.staged_tokens.inc_by(tokens);
        self.record.staged(tokens);
        if let Some(ticket) =
            self.ticket.as_ref().filter(|_| tokens > 0 || all || self.record.fetch_tokens > 0)
        {
            let fetched = Fetched { ready_tokens: tokens, moved_tokens: tokens, all };
            self.pool.change(|fleet, now| fleet.fetched(ticket, fetched, now));
        }
    }

    /// Where the request went.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The first token of a streamed answer came.
    pub fn first_token(&self) {
        self.pool.metrics.first_token(&self.pool.model, self.arrived.elapsed());
        if let Some(ticket) = &self.ticket {
            self.pool.change(|fleet, now| fleet.first_token(ticket, now));
        }
    }

    /// The answer came to its end.
    pub fn completed(mut self, usage: Option<Usage>) {
        self.judge(true);
        let m = &self.endpoint.metrics;
        match usage {
            Some(Usage { prompt_tokens, cached_tokens: Some(cached) }) => {
                m.prompt_tokens.inc_by(prompt_tokens);
                m.actual_cached_tokens.inc_by(cached);
                m.predicted_cached_tokens.inc_by(self.matched_tokens.min(prompt_tokens));
            }
            _ if self.has_prompt => m.usage_missing.inc(),
            _ => {}
        }
        if let Some(usage) = &usage {
            self.record.used(usage);
        }
        let usage = usage.map(|u| larder_routing::Usage {
            prompt_tokens: u.prompt_tokens,
            cached_tokens: u.cached_tokens,
        });
        self.settle(Outcome::Completed { usage }, Fate::Completed);
    }

    /// The engine answered with an error, or could not be reached: it did nothing for the prompt.
    pub fn failed(mut self) {
        self.settle(Outcome::FailedBeforeFirstByte, Fate::Failed);
    }

    /// The answer broke off.
    pub fn broken(mut self, error: &(dyn std::error::Error + 'static)) {
        let m = &self.endpoint.metrics;
        match error.downcast_ref() {
            Some(Late::Stalled { .. }) => m.stalled.inc(),
            Some(Late::TooLong { .. }) => m.too_long.inc(),
            None => m.broken_answers.inc(),
        }
        // A long answer is no fault of the endpoint.
        if !matches!(error.downcast_ref(), Some(Late::TooLong { .. })) {
            self.doubt();
            self.judge(false);
        }
        tracing::warn!(endpoint = self.endpoint.name, %error, "the answer broke off");
        self.settle(Outcome::Aborted, Fate::Broken);
    }

    fn settle(&mut self, outcome: Outcome, fate: Fate) {
        let ends = !std::mem::replace(&mut self.settled, true);
        if ends {
            self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.record.settle(fate);
            self.place = None;
            if std::mem::take(&mut self.probe) {
                self.endpoint.guard.probe_lost(self.pool.origin.elapsed());
            }
        }
        match self.ticket.take() {
            Some(ticket) => self.pool.settle(ticket, outcome, &self.endpoint),
            None if ends => self.pool.ended_outside(&self.endpoint),
            None => {}
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.settled {
            self.pool.metrics.client_aborts.inc();
            self.settle(Outcome::Aborted, Fate::Aborted);
        }
    }
}
