//! Requests that wait in the gateway for their turn at an engine.
//!
//! `larder-routing` decides who waits and who is next; here is what has a clock and a task: each waiting request
//! sleeps on a channel, and whatever changes the fleet hands out the decisions that became due. Between changes one
//! timer task per pool looks when the fleet says so; it lives only while somebody waits.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder_routing::{Decision, Fleet, HoldId, NoEndpoint, Now, Outcome, QueueFull, SubmitError, Submitted};
use parking_lot::MutexGuard;
use tokio::sync::oneshot;

use super::{InFlight, Pool, Wanted};

/// Longest that a request waits for the decision core, its lock included: a hundred times what a decision takes among
/// 512 endpoints. Later is worse than anywhere.
const DECISION_MAX: Duration = Duration::from_millis(2);
/// So often a request that was decided on is decided on anew, where others took its place without the core meanwhile.
const AGAIN_MAX: usize = 3;
/// The timer looks no more often than this, whatever it is told.
const LOOK_MIN: Duration = Duration::from_millis(1);

type Turn = Result<Decision, NoEndpoint>;

/// Those who wait, by the name that the fleet gave them.
#[derive(Default)]
pub(super) struct Waiting {
    turns: HashMap<HoldId, oneshot::Sender<Turn>>,
    /// Whether the timer task runs.
    timed: bool,
}

/// Requests that come while another one is taken in.
#[derive(Default)]
pub(super) struct Coming {
    count: AtomicUsize,
    /// Some were held whatever was free, so that the last of them shares out. Changed only under the fleet's lock.
    gathered: AtomicBool,
}

/// Why a request did not get an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// Nobody can take it.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    /// Too many wait already.
    #[error(transparent)]
    Full(#[from] QueueFull),
}

/// What the decision core made of a request.
enum Verdict {
    Settled(Result<Submitted, SubmitError>),
    /// It was too slow, or failed.
    Fallback(&'static str),
}

impl Pool {
    /// Chooses an endpoint for a new request; waits for its turn where the policy holds requests back. Dropping the
    /// future gives up the place.
    ///
    /// # Errors
    /// No endpoint may be chosen, or too many wait; says why.
    pub async fn admit(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        arrived: Instant,
    ) -> Result<InFlight, AdmitError> {
        if self.passes_through() {
            return Ok(self.by_load(wanted, arrived)?);
        }
        if self.is_shadow() {
            return Ok(self.route(wanted, arrived)?);
        }
        for _ in 0..AGAIN_MAX {
            match self.admit_once(wanted, arrived).await {
                // Others filled the endpoint up without the core: it knows of them now.
                Err(AdmitError::NoEndpoint(why)) if why.full > 0 => {}
                admitted => return admitted,
            }
        }
        self.admit_once(wanted, arrived).await
    }

    async fn admit_once(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        arrived: Instant,
    ) -> Result<InFlight, AdmitError> {
        let (verdict, turn) = self.submit(wanted);
        match verdict {
            Verdict::Settled(Ok(Submitted::Go(decision))) => Ok(self.in_flight(decision, wanted, arrived)?),
            Verdict::Settled(Ok(Submitted::Held(id))) => {
                let turn = turn.expect("a held request has a channel");
                let mut place = Place { pool: Arc::clone(self), id, turn };
                self.look();
                let decision = match (&mut place.turn).await {
                    Ok(turn) => turn?,
                    // The senders live as long as the pool, and so does this place; but a wait for ever is worse.
                    Err(_) => return self.fallback(wanted, arrived, "lost"),
                };
                self.metrics.held(&self.model, self.wall(decision.held_s).as_secs_f64());
                let mut in_flight = self.in_flight(decision, wanted, arrived)?;
                in_flight.held += in_flight.endpoint.is_believed().await;
                Ok(in_flight)
            }
            Verdict::Settled(Err(error)) => Err(self.refusal(error)),
            Verdict::Fallback(why) => self.fallback(wanted, arrived, why),
        }
    }

    /// Clients count by the wall.
    fn refusal(&self, error: SubmitError) -> AdmitError {
        match error {
            SubmitError::NoEndpoint(why) => AdmitError::NoEndpoint(why),
            SubmitError::Full(why) => {
                let retry_after_s = self.wall(why.retry_after_s).as_secs_f64().max(1.0);
                AdmitError::Full(QueueFull { retry_after_s, ..why })
            }
        }
    }

    /// Those who come while another is being taken in are taken in together, and the last of them hands out.
    fn submit(&self, wanted: &Wanted<'_>) -> (Verdict, Option<oneshot::Receiver<Turn>>) {
        let request = wanted.request();
        self.coming.count.fetch_add(1, Ordering::Relaxed);
        let fleet = self.fleet.try_lock_for(DECISION_MAX);
        let more = self.coming.count.fetch_sub(1, Ordering::Relaxed) > 1;
        let Some(mut fleet) = fleet else { return (Verdict::Fallback("slow"), None) };
        self.tell_of_outside(&mut fleet);
        let now = self.now();
        // The lock knows no poison; a core that panicked keeps what it had, and every ticket is still its own.
        let submitted = catch_unwind(AssertUnwindSafe(|| match more {
            true => fleet.submit_together(&request, now),
            false => fleet.submit(&request, now),
        }));
        let Ok(submitted) = submitted else { return (Verdict::Fallback("failed"), None) };
        let turn = match &submitted {
            Ok(Submitted::Held(id)) => {
                let (sender, receiver) = oneshot::channel();
                self.waiting.lock().turns.insert(*id, sender);
                Some(receiver)
            }
            _ => None,
        };
        // Should the last one find the core busy and be placed without it, the timer shares out.
        if more {
            self.coming.gathered.store(true, Ordering::Relaxed);
        } else if self.coming.gathered.swap(false, Ordering::Relaxed) {
            self.hand_out(&mut fleet, now);
        }
        (Verdict::Settled(submitted), turn)
    }

    /// The endpoint with the fewest requests in flight, without the decision core.
    fn fallback(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        arrived: Instant,
        why: &'static str,
    ) -> Result<InFlight, AdmitError> {
        tracing::warn!(pool = self.model, why, "the decision core did not decide: by least load");
        self.metrics.fell_back(&self.model, why);
        Ok(self.by_load(wanted, arrived)?)
    }

    /// Changes the fleet, then tells those whose turn has come by it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Fleet, Now) -> T) -> T {
        let mut fleet = self.fleet.lock();
        self.tell_of_outside(&mut fleet);
        let now = self.now();
        let result = change(&mut fleet, now);
        self.hand_out(&mut fleet, now);
        result
    }

    /// Hands out every decision that is due.
    fn hand_out(&self, fleet: &mut MutexGuard<'_, Fleet>, now: Now) {
        while let Some((id, turn)) = fleet.next_dispatch(now) {
            let sender = self.waiting.lock().turns.remove(&id);
            let unheard = match sender {
                Some(sender) => sender.send(turn).err(),
                None => Some(turn),
            };
            // Its client left a moment ago.
            if let Some(Ok(decision)) = unheard {
                fleet.finish(decision.ticket, Outcome::FailedBeforeFirstByte, now);
            }
        }
    }

    /// Somebody began to wait: makes sure that the timer runs.
    fn look(self: &Arc<Self>) {
        let starts = {
            let mut waiting = self.waiting.lock();
            !std::mem::replace(&mut waiting.timed, true)
        };
        if starts {
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                while let Some(pause) = pool.look_once() {
                    tokio::time::sleep(pause).await;
                }
            });
        }
    }

    /// Hands out what is due, and says how long until it is worth looking again. `None`: nobody waits.
    fn look_once(&self) -> Option<Duration> {
        let mut fleet = self.fleet.lock();
        self.tell_of_outside(&mut fleet);
        let now = self.now();
        self.hand_out(&mut fleet, now);
        let next = fleet.next_wake(now);
        let mut waiting = self.waiting.lock();
        let Some(next) = next.filter(|_| !waiting.turns.is_empty()) else {
            waiting.timed = false;
            return None;
        };
        Some(self.wall(next.since(now)).clamp(LOOK_MIN, LOOK_MAX))
    }

    /// Marks an endpoint as one that may be chosen or not; those who waited for it are placed anew.
    pub(super) fn update_state(&self, endpoint: &super::Endpoint) {
        self.change(|fleet, _| fleet.set_state(endpoint.id, endpoint.state()));
    }
}

/// The timer sleeps no longer than this: an engine may turn out to be free sooner than the fleet was told, and a new
/// request may be due before the one that it sleeps for.
const LOOK_MAX: Duration = Duration::from_millis(100);

/// A place in the queue: given up when it goes.
struct Place {
    pool: Arc<Pool>,
    id: HoldId,
    turn: oneshot::Receiver<Turn>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turn.close();
        // A turn that was given but not taken carries load.
        let unheard = self.turn.try_recv().ok();
        let (id, waiting) = (self.id, &self.pool.waiting);
        if waiting.lock().turns.remove(&id).is_some() || unheard.is_some() {
            self.pool.metrics.client_aborts.inc();
            self.pool.change(|fleet, now| {
                fleet.cancel(id);
                if let Some(Ok(decision)) = unheard {
                    fleet.finish(decision.ticket, Outcome::FailedBeforeFirstByte, now);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
