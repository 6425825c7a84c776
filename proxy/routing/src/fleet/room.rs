//! Which endpoints have room for one more: their most requests in flight, their slow start, and those to be avoided.
//!
//! An endpoint without room is passed over while another can take the request. Where none can, new requests wait for it
//! in the queue, under every policy: a bound on what an engine gets is no reason to refuse somebody.

use super::Fleet;
use super::route::Choice;
use crate::endpoint::Endpoint;
use crate::hold::{Held, HoldId};
use crate::{Decision, EndpointId, EndpointState, NoEndpoint, Now, RouteRequest, ramp};

/// Requests that one look moves from endpoints without room to others: the next look moves more.
const RELIEFS: usize = 4;

/// What is needed to tell whether an endpoint has room, the same for all at one moment.
#[derive(Clone, Copy)]
pub(super) struct Room {
    now: Now,
    /// Requests in flight at each endpoint that is not starting slowly; `None` where there is nothing to compare with.
    mean_in_flight: Option<f64>,
}

impl Fleet {
    /// Bounds the requests in flight at an endpoint; `None`: no bound.
    pub fn set_max_in_flight(&mut self, id: EndpointId, most: Option<u32>) {
        if let Some(endpoint) = self.endpoint_mut(id) {
            endpoint.max_in_flight = most.unwrap_or(u32::MAX);
        }
    }

    /// An endpoint came back: its share of the load grows over [`Settings::slow_start_s`](crate::Settings) from now.
    pub fn returned(&mut self, id: EndpointId, now: Now) {
        let until = now.plus(self.settings.slow_start_s);
        let Some(endpoint) = self.endpoint_mut(id) else { return };
        endpoint.returned = Some(now);
        if self.ramping_until < until {
            self.ramping_until = until;
        }
    }

    /// An endpoint is to be avoided or not. Those who wait for an avoided one are placed anew, at others where there
    /// are any. New requests are the caller's to keep away, by [`RouteRequest::exclude`].
    pub fn set_avoided(&mut self, id: EndpointId, avoided: bool) {
        let Some(endpoint) = self.endpoint_mut(id) else { return };
        endpoint.avoided = avoided;
        if avoided {
            self.evict_queue(id);
        }
    }

    pub(super) fn avoided(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints().filter(|(_, endpoint)| endpoint.avoided).map(|(id, _)| id)
    }

    pub(super) fn room(&self, now: Now) -> Room {
        if now >= self.ramping_until {
            return Room { now, mean_in_flight: None };
        }
        let window = self.settings.slow_start_s;
        let steady = |e: &Endpoint| e.returned.is_none_or(|at| now.since(at) >= window);
        let others = self.endpoints().map(|(_, e)| e);
        let others = others.filter(|e| e.state == EndpointState::Available && !e.avoided && steady(e));
        let (count, sum) =
            others.fold((0u32, 0.0), |(count, sum), e| (count + 1, sum + f64::from(e.load.in_flight())));
        // A pool that comes back as a whole has nobody to spare anybody.
        Room { now, mean_in_flight: (count > 0).then(|| sum / f64::from(count)) }
    }

    pub(super) fn has_room(&self, endpoint: &Endpoint, room: &Room) -> bool {
        let in_flight = endpoint.load.in_flight();
        let ramp = |(at, mean)| ramp::cap(room.now.since(at), self.settings.slow_start_s, mean);
        in_flight < endpoint.max_in_flight
            && endpoint.returned.zip(room.mean_in_flight).and_then(ramp).is_none_or(|most| in_flight < most)
    }

    /// Sends a request where it was decided to go, if there is room.
    pub(super) fn go_if_room(
        &mut self,
        request: &RouteRequest<'_>,
        choice: Choice<'_>,
    ) -> Result<Decision, NoEndpoint> {
        let now = choice.pool.now;
        let slot = &self.slots[choice.chosen().slot as usize];
        if slot.endpoint.as_ref().is_some_and(|endpoint| self.has_room(endpoint, &self.room(now))) {
            return Ok(self.go(request, choice));
        }
        Err(self.no_endpoint(request.exclude, now))
    }

    /// Places somebody anew who waits for an endpoint without room while another could take him at once.
    pub(super) fn relieve(&mut self, now: Now) -> Option<(HoldId, Result<Decision, NoEndpoint>)> {
        let room = self.room(now);
        let full = |slot: &u32| {
            let endpoint = self.slots.get(*slot as usize).and_then(|slot| slot.endpoint.as_ref());
            endpoint.is_some_and(|endpoint| !self.has_room(endpoint, &room))
        };
        let full: Vec<u32> = self.holds.waited_for().filter(full).take(RELIEFS).collect();
        if full.is_empty() {
            return None;
        }
        let able = |(id, e): &(EndpointId, &Endpoint)| {
            e.state == EndpointState::Available && !e.avoided && self.is_idle(id.slot, &room, now)
        };
        let free: Vec<EndpointId> = self.endpoints().filter(able).map(|(id, _)| id).collect();
        for slot in full {
            let Some(key) = self.first_of(slot, now) else { continue };
            let can_go = |held: &Held| free.iter().any(|id| !held.exclude.contains(id));
            if !self.holds.get(key.id).is_some_and(can_go) {
                continue;
            }
            if let Some(result) = self.rehome(key.id, now) {
                return Some((key.id, result));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
