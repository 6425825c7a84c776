//! Whether an endpoint still lives whose exchange just failed.
//!
//! A broken exchange frees its place, and whoever waits for that place would be sent into an engine that may be dying: a
//! port answers for an instant longer than its process works. So nobody who waits is sent there until a check was
//! answered ([`crate::health`]). New requests go by the breaker alone: one failure is no reason to turn away from a prefix.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Endpoint, InFlight, Pool};

/// Longest that one whose turn has come waits for a doubted endpoint, where all are: what a client hardly notices.
const BELIEVED_MAX: Duration = Duration::from_secs(1);

/// Whether it is in doubt.
pub(super) struct Doubt(watch::Sender<bool>);

impl Default for Doubt {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Endpoint {
    /// Whether those who wait are not sent there: its breaker is open, or nothing has shown yet that it lives.
    pub(super) fn is_avoided(&self) -> bool {
        !self.guard.is_closed() || *self.doubt.0.borrow()
    }

    /// Waits until it is in doubt.
    pub async fn becomes_doubted(&self) {
        // The sender lives as long as this does.
        let _ = self.doubt.0.subscribe().wait_for(|doubted| *doubted).await;
    }

    /// Waits until it is in no doubt, but not for long; for how long.
    pub(super) async fn is_believed(&self) -> Duration {
        if !*self.doubt.0.borrow() {
            return Duration::ZERO;
        }
        let begin = Instant::now();
        let mut doubt = self.doubt.0.subscribe();
        // Time is up, or it lives: it is asked either way, and says so itself.
        let _ = tokio::time::timeout(BELIEVED_MAX, doubt.wait_for(|doubted| !*doubted)).await;
        begin.elapsed()
    }
}

impl Pool {
    /// A check was answered: the endpoint lives.
    pub fn believe(&self, endpoint: &Endpoint) {
        endpoint.doubt.0.send_replace(false);
        self.change(|fleet, _| fleet.set_avoided(endpoint.id, endpoint.is_avoided()));
    }
}

impl InFlight {
    /// The exchange failed, so that its endpoint may be dying. To be said before the place is given back.
    pub fn doubt(&self) {
        if !self.endpoint.doubt.0.send_replace(true) {
            self.pool.change(|fleet, _| fleet.set_avoided(self.endpoint.id, true));
        }
    }
}
