//! What keeps requests from endpoints that fail: a breaker for each, and a budget of retries for all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_routing::EndpointId;
use parking_lot::Mutex;

use super::{Endpoint, InFlight, Pool};
use crate::breaker::{self, Breaker};
use crate::retry;

/// The settings of both.
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// When an endpoint is left alone.
    pub breaker: breaker::Settings,
    /// How much is asked again.
    pub retry: retry::Settings,
}

/// One endpoint's breaker.
pub(super) struct Guard {
    breaker: Mutex<Breaker>,
    /// Whether it is not closed, so that a decision among endpoints that are well takes no lock.
    suspect: AtomicBool,
}

impl Guard {
    pub(super) fn new(settings: breaker::Settings) -> Self {
        Self { breaker: Mutex::new(Breaker::new(settings)), suspect: AtomicBool::new(false) }
    }

    pub(super) fn set(&self, settings: breaker::Settings) {
        self.breaker.lock().set(settings);
    }

    pub(super) fn is_closed(&self) -> bool {
        !self.suspect.load(Ordering::Relaxed)
    }

    fn allows(&self, now: Duration) -> bool {
        self.is_closed() || self.breaker.lock().allows(now)
    }

    pub(super) fn begin(&self, now: Duration) -> bool {
        !self.is_closed() && self.breaker.lock().begin(now)
    }

    pub(super) fn probe_lost(&self, now: Duration) {
        self.breaker.lock().probe_lost(now);
    }

    /// Says whether the breaker opened or closed by it.
    fn judge(&self, good: bool, now: Duration, probe: bool) -> Option<bool> {
        let mut breaker = self.breaker.lock();
        let was_closed = breaker.is_closed();
        let opened = if good {
            breaker.success();
            false
        } else {
            breaker.failure(now, probe)
        };
        let closed = breaker.is_closed();
        self.suspect.store(!closed, Ordering::Relaxed);
        (opened || closed != was_closed).then_some(opened)
    }
}

impl Pool {
    /// `exclude`, and the endpoints that their breakers leave alone.
    pub fn with_ejected(&self, exclude: &[EndpointId]) -> Vec<EndpointId> {
        let now = self.origin.elapsed();
        let mut all = exclude.to_vec();
        all.extend(self.endpoints.load().iter().filter(|e| !e.guard.allows(now)).map(|e| e.id));
        all
    }

    /// Those who wait for an endpoint whose breaker opened are placed anew; one whose breaker closed starts slowly.
    fn avoid(&self, endpoint: &Endpoint, avoided: bool) {
        self.change(|fleet, now| {
            fleet.set_avoided(endpoint.id, endpoint.is_avoided());
            if !avoided {
                fleet.returned(endpoint.id, now);
            }
        });
        if !avoided {
            self.note_return(endpoint);
        }
    }

    /// A new request earns its share of the retry budget.
    pub fn earn_retry(&self) {
        self.retries.lock().request();
    }

    /// Whether a request may be asked again elsewhere; that is spent then.
    pub fn may_retry(&self) -> bool {
        let allowed = self.retries.lock().try_retry(self.origin.elapsed());
        self.metrics.retried(&self.model, allowed);
        allowed
    }
}

impl InFlight {
    /// The endpoint did well or failed, as far as this request shows.
    pub fn judge(&mut self, good: bool) {
        let probe = std::mem::take(&mut self.probe);
        let (pool, name) = (self.pool.model.as_str(), self.endpoint.name.as_str());
        let judged = self.endpoint.guard.judge(good, self.pool.origin.elapsed(), probe);
        if let Some(opened) = judged {
            self.pool.avoid(&self.endpoint, opened);
        }
        match judged {
            Some(true) => {
                self.endpoint.metrics.ejections.inc();
                tracing::warn!(pool, endpoint = name, "endpoint is left alone for a while: it fails");
            }
            Some(false) => tracing::info!(pool, endpoint = name, "endpoint answers again"),
            None => {}
        }
    }

    /// The head of the answer came with this status. A probe has shown enough by it; else the end decides.
    pub fn answered(&mut self, status: http::StatusCode) {
        // 501 says what the engine cannot do, not that it fails.
        if status.is_server_error() && status != http::StatusCode::NOT_IMPLEMENTED {
            self.judge(false);
        } else if self.probe {
            self.judge(true);
        }
    }
}
