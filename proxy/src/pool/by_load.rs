//! The choice without the decision core: by load alone. It takes no lock, and keeps to the same bounds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use larder_routing::{Fleet, NoEndpoint, slow_start_most};

use super::{Endpoint, InFlight, Pool, Wanted};
use crate::decisions::Record;

/// The reason of such a choice.
const LEAST_LOAD: &str = "least_load";

/// What tells how many requests an endpoint may have, the same for all at one moment.
struct Room {
    now_ms: u64,
    window_ms: u64,
    /// Requests in flight at each endpoint that is not starting slowly.
    mean_in_flight: Option<f64>,
}

impl Room {
    fn of(endpoints: &[Arc<Endpoint>], now_ms: u64, window_ms: u64) -> Self {
        let mut room = Self { now_ms, window_ms, mean_in_flight: None };
        if endpoints.iter().any(|e| room.since(e).is_some()) {
            let steady = endpoints.iter().filter(|e| e.takes_requests() && room.since(e).is_none());
            let (count, sum) =
                steady.fold((0u32, 0.0), |(n, sum), e| (n + 1, sum + f64::from(e.in_flight())));
            room.mean_in_flight = (count > 0).then(|| sum / f64::from(count));
        }
        room
    }

    /// Milliseconds since an endpoint came back, while it starts slowly.
    fn since(&self, endpoint: &Endpoint) -> Option<u64> {
        let returned = endpoint.returned.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.now_ms.saturating_sub(returned)).filter(|since| *since < self.window_ms)
    }

    /// Requests that an endpoint may have in flight at most.
    fn most(&self, endpoint: &Endpoint) -> u32 {
        let most = endpoint.bound();
        let ramp = self
            .since(endpoint)
            .zip(self.mean_in_flight)
            .and_then(|(since, mean)| slow_start_most(since as f64 / 1e3, self.window_ms as f64 / 1e3, mean));
        ramp.map_or(most, |ramp| most.min(ramp))
    }
}

impl Endpoint {
    /// Most requests that it may have in flight.
    pub(super) fn bound(&self) -> u32 {
        self.max_in_flight.load(Ordering::Relaxed)
    }

    /// Counts one more request, if it has fewer than `most`.
    pub(super) fn begin_within(&self, most: u32) -> bool {
        let more = |now| (now < most).then_some(now + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Most requests that the fleet may have in flight there, beside those that it knows nothing of.
    pub(super) fn bound_inside(&self) -> Option<u32> {
        let bound = self.bound();
        (bound != u32::MAX).then(|| bound.saturating_sub(self.outside.load(Ordering::Relaxed)))
    }
}

impl Pool {
    /// Chooses the able endpoint with the fewest requests in flight.
    pub(super) fn by_load(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        arrived: Instant,
    ) -> Result<InFlight, NoEndpoint> {
        let endpoints = self.endpoints.load();
        let able = || endpoints.iter().filter(|e| e.takes_requests() && !wanted.exclude.contains(&e.id));
        let room = Room::of(&endpoints, self.millis(), self.slow_start.load(Ordering::Relaxed));
        loop {
            let with_room = able().filter(|e| e.in_flight() < room.most(e));
            let Some(endpoint) = with_room.min_by_key(|e| e.in_flight()) else { break };
            // Others may have taken its last place meanwhile.
            if endpoint.begin_within(room.most(endpoint)) {
                return Ok(self.sent_by_load(endpoint, wanted, arrived));
            }
        }
        let (known, full) = (endpoints.len(), able().count());
        let excluded = endpoints.iter().filter(|e| wanted.exclude.contains(&e.id)).count();
        let unavailable = known - full - excluded;
        let example = Some("chosen by load alone".to_owned());
        Err(NoEndpoint { known, draining: 0, unavailable, excluded, full, example })
    }

    fn sent_by_load(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        wanted: &Wanted<'_>,
        arrived: Instant,
    ) -> InFlight {
        self.metrics.decided(&self.model, LEAST_LOAD);
        let record = Record::by_load(wanted.id, &self.model, (&endpoint.name, LEAST_LOAD));
        endpoint.outside.fetch_add(1, Ordering::Relaxed);
        self.outside_changed.store(true, Ordering::Release);
        self.begin(Arc::clone(endpoint), wanted, arrived, record)
    }

    /// A request that was sent by load alone is over. Those who wait for its place are told, unless the fleet is to be
    /// left alone.
    pub(super) fn ended_outside(&self, endpoint: &Endpoint) {
        endpoint.outside.fetch_sub(1, Ordering::Relaxed);
        self.outside_changed.store(true, Ordering::Release);
        if endpoint.bound() != u32::MAX && !self.passes_through() {
            self.change(|_, _| ());
        }
    }

    /// Lets the fleet send less to endpoints that have requests which it knows nothing of, so that both together keep
    /// their bounds.
    pub(super) fn tell_of_outside(&self, fleet: &mut Fleet) {
        if self.outside_changed.swap(false, Ordering::Acquire) {
            for endpoint in self.endpoints.load().iter() {
                fleet.set_max_in_flight(endpoint.id, endpoint.bound_inside());
            }
        }
    }

    /// An endpoint came back: it starts slowly here too.
    pub(super) fn note_return(&self, endpoint: &Endpoint) {
        endpoint.returned.store(self.millis() + 1, Ordering::Relaxed);
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// Whole milliseconds of `seconds`; the cast saturates.
pub(super) fn millis(seconds: f64) -> u64 {
    (seconds * 1e3) as u64
}
