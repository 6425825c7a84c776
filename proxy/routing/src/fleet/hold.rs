//! The hit-first queue: requests are held back until an engine is about to need them.
//!
//! A request that its endpoint cannot turn to yet waits here, ordered by `arrival + min(X * miss, bound)`: hits
//! overtake misses. Who has waited for `hold_limit` goes first, for a quarter of the endpoint's time. Under pressure that
//! keeps hot sessions hot, since their reuse interval is their think time and not think time plus queue. It binds
//! late: who is first is asked when the engine is about to be free, and an idle engine steals what it serves
//! cheaper than those who have it would, waiting included. A free engine never waits for anyone.

use super::room::Room;
use super::route::{Choice, Prompt};
use super::{Fleet, Pool};
use crate::endpoint::Endpoint;
use crate::hold::{Held, HoldId, Key};
use crate::policy::{Needed, Pick, Terms};
use crate::{Decision, EndpointId, NoEndpoint, Now, PolicyKind, Reason, RouteRequest};

/// How long before an engine is due to be free the next request is sent, in seconds: covers the way from proxy to
/// engine and the error of the estimate. Between 0 and 1 s the mean time to first token moves by 3 %.
const LOOK_AHEAD_S: f64 = 0.25;
/// With a warehouse, requests are sent earlier by so many mean fetches: the links must stay ahead of the engines. Without
/// it the mean time to first token is up to 1.45 times as long, with half of it 1.1 times.
const FETCHES_AHEAD: f64 = 4.0;
/// A place later than before by less than this, in seconds, is the same place.
const SAME_PLACE_S: f64 = 1e-3;
/// How often the first in a queue may turn out to need more than it did, and go back, before one is sent anyway.
const RECHECKS: usize = 3;
/// Price times work puts a request back by at most so many times the limit ...
const BEYOND: f64 = 10.0;
/// ... and by at most so many seconds, half of a client's usual patience (OpenAI's libraries: 600 s).
const OVERTAKEN_MAX_S: f64 = 300.0;
/// Held requests that are asked, in order, whether they fit beside what an endpoint works on.
const FIT_LOOKS: usize = 32;
/// What became of a request that was submitted.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "matched at once by its caller, and most go: a box would be paid for by all"
)]
pub enum Submitted {
    /// It goes now.
    Go(Decision),
    /// It waits; [`Fleet::next_dispatch`] will name it, unless [`Fleet::cancel`] comes first.
    Held(HoldId),
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// Nobody can take it.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    /// Too many are held back already.
    #[error(transparent)]
    Full(#[from] QueueFull),
}

/// The bound that a held request would have exceeded.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "every endpoint is busy and {held} requests with {bytes} prompt bytes wait already (at most {max_held} and \
     {max_bytes}); retry in about {retry_after_s:.0} s"
)]
pub struct QueueFull {
    /// Requests held.
    pub held: usize,
    /// Their prompt bytes.
    pub bytes: u64,
    /// [`Settings::max_held`](crate::Settings::max_held).
    pub max_held: usize,
    /// [`Settings::max_held_bytes`](crate::Settings::max_held_bytes).
    pub max_bytes: u64,
    /// Seconds until the endpoint that would have been chosen can turn to one more, 1 or more.
    pub retry_after_s: f64,
}

impl Fleet {
    /// Chooses an endpoint as [`Fleet::route`] does, and sends the request there now or holds it back.
    ///
    /// Call [`Fleet::next_dispatch`] after this, after every first token, end, cancellation and change of state, and
    /// at [`Fleet::next_wake`], each time until it gives nothing.
    ///
    /// # Errors
    /// [`SubmitError::NoEndpoint`] as for [`Fleet::route`]; [`SubmitError::Full`] when it would be held and the
    /// bounds of the queue are reached. Nothing has changed then.
    pub fn submit(&mut self, request: &RouteRequest<'_>, now: Now) -> Result<Submitted, SubmitError> {
        self.take_in(request, false, now)
    }

    /// [`Fleet::submit`] for one of several requests that come at the same instant: it is held even if an endpoint is
    /// free, so that [`Fleet::next_dispatch`], called once the last of them is taken in, chooses among them all and not
    /// the first of them is served first. Where nobody may be held, or no more, it goes as any other.
    ///
    /// # Errors
    /// As for [`Fleet::submit`].
    pub fn submit_together(
        &mut self,
        request: &RouteRequest<'_>,
        now: Now,
    ) -> Result<Submitted, SubmitError> {
        self.take_in(request, self.may_hold(), now)
    }

    fn take_in(
        &mut self,
        request: &RouteRequest<'_>,
        together: bool,
        now: Now,
    ) -> Result<Submitted, SubmitError> {
        self.decide(request, now, |fleet, choice| {
            let chosen = choice.chosen();
            let (held, bytes) = (fleet.holds.len(), fleet.holds.prompt_bytes());
            let (max_held, max_bytes) = (fleet.settings.max_held, fleet.settings.max_held_bytes);
            let full = held >= max_held || bytes.saturating_add(choice.prompt.bytes) > max_bytes;
            if (!together || full) && fleet.is_free((chosen.slot, chosen.needed()), &fleet.room(now), now) {
                return Ok(Submitted::Go(fleet.go(request, choice)));
            }
            if full {
                fleet.hold_refused += 1;
                let retry_after_s = chosen.wait_s.clamp(1.0, 600.0);
                return Err(QueueFull { held, bytes, max_held, max_bytes, retry_after_s }.into());
            }
            Ok(Submitted::Held(fleet.hold(request, &choice)))
        })?
    }

    /// The next held request whose time has come, and where it goes; `NoEndpoint` if its endpoint went and no other
    /// can take it. `None`: nobody's time has come.
    pub fn next_dispatch(&mut self, now: Now) -> Option<(HoldId, Result<Decision, NoEndpoint>)> {
        self.scratch.looked_up = None;
        if self.holds.len() == 0 {
            return None;
        }
        while let Some(id) = self.holds.homeless() {
            if let Some(result) = self.rehome(id, now) {
                return Some((id, result));
            }
        }
        let room = self.room(now);
        if let Some((id, slot)) = self.ready(&room, now) {
            return self.start(id, slot, None, now).map(|decision| (id, Ok(decision)));
        }
        if let Some(placed) = self.relieve(now) {
            return Some(placed);
        }
        let (id, slot) = self.best_steal(now)?;
        self.stolen += 1;
        self.start(id, slot, Some(Reason::Stolen), now).map(|decision| (id, Ok(decision)))
    }

    /// When [`Fleet::next_dispatch`] may have something without any other call before. `None`: not by time alone.
    pub fn next_wake(&self, now: Now) -> Option<Now> {
        let waits = self.holds.waited_for().filter_map(|slot| {
            let endpoint = self.slots.get(slot as usize)?.endpoint.as_ref()?;
            let fetch_s = self.holds.at(slot).next().map_or(0.0, |(_, held)| held.needs.fetch_s);
            Some(self.starts_s(endpoint, fetch_s, endpoint.load.due_s(now), now).max(0.0))
        });
        // Once an engine is due, only its first token says more: to look again is worth a quarter of a second.
        let least = waits.map(|wait| if wait > 0.0 { wait } else { LOOK_AHEAD_S }).reduce(f64::min)?;
        Some(now.plus(least))
    }

    /// Takes a held request out: its client left. Does nothing for one that was dispatched already.
    pub fn cancel(&mut self, id: HoldId) {
        self.retract(id);
        if self.holds.remove(id).is_some() {
            self.index.reserve(self.chain_bytes());
        }
    }

    /// Whether the fleet sees and places the whole load, so that holding requests back is worth something. Off while
    /// requests go to the endpoints past it: nobody is held then, and those who are go at once.
    pub fn set_view_is_whole(&mut self, whole: bool) {
        self.view_is_whole = whole;
    }

    pub(super) fn may_hold(&self) -> bool {
        self.settings.policy == PolicyKind::Larder && self.settings.hold_limit_s > 0.0 && self.view_is_whole
    }

    /// How much later arrivals may overtake a request that needs so many seconds of work.
    pub(super) fn overtaken_s(&self, pool: &Pool, service_s: f64) -> f64 {
        let limit_s = self.settings.hold_limit_s.max(0.0);
        (pool.rates.price() * service_s).min(limit_s.max((BEYOND * limit_s).min(OVERTAKEN_MAX_S)))
    }

    /// Who has waited longest of those who have waited for longer than the limit, if it is such a one's turn: as long
    /// as they have had no more than their share of the endpoint's time.
    fn overdue_at(&self, slot: u32, now: Now) -> Option<HoldId> {
        let (_, endpoint) = self.endpoint_at(slot)?;
        if endpoint.overdue_credit_s < 0.0 {
            return None;
        }
        let late = |held: &Held| now.since(held.arrived) > self.settings.hold_limit_s;
        let all = self.holds.at(slot).filter(|(_, held)| late(held));
        let first = all.min_by(|(_, a), (_, b)| a.arrived.as_secs_f64().total_cmp(&b.arrived.as_secs_f64()));
        first.map(|(key, _)| key.id)
    }

    /// Whether a request that comes now goes to the endpoint at once: nobody waits there whom it would pass without
    /// the endpoint letting it pass anyway.
    pub(super) fn is_free(&self, (slot, needed): (u32, Needed), room: &Room, now: Now) -> bool {
        let passes = self.width_at(slot) > 1 && !self.keeps_memory_free(slot, now);
        (passes || self.holds.is_empty_at(slot)) && self.can_start((slot, needed), room, now)
    }

    /// Whether an endpoint has nobody waiting for it and could take something.
    pub(super) fn is_idle(&self, slot: u32, room: &Room, now: Now) -> bool {
        self.holds.is_empty_at(slot) && self.can_start((slot, Needed::default()), room, now)
    }

    pub(super) fn width_at(&self, slot: u32) -> usize {
        self.endpoint_at(slot).map_or(1, |(_, endpoint)| endpoint.load.width())
    }

    /// Whether an endpoint has room; and whether it, or its link, is about to need a request that needs so much, or
    /// lets it pass, or is not one to hold requests back for.
    pub(super) fn can_start(&self, (slot, needed): (u32, Needed), room: &Room, now: Now) -> bool {
        let endpoint = self.slots.get(slot as usize).and_then(|slot| slot.endpoint.as_ref());
        let Needed { service_s, fetch_s, tokens } = needed;
        endpoint.is_none_or(|endpoint| {
            let due = || {
                let memory_s = self.memory_wait_s(endpoint, tokens);
                let backlog_s = endpoint.load.backlog_s(now).max(memory_s);
                self.starts_s(endpoint, fetch_s, backlog_s, now) <= 0.0
                    || (fetch_s <= 0.0 && memory_s <= 0.0 && endpoint.load.lets_pass(service_s, now))
            };
            self.has_room(endpoint, room) && (!self.may_hold() || !endpoint.foresight.holds() || due())
        })
    }

    /// The held request that is to go now because its endpoint takes it, and where. Of several the first of all, not of
    /// the endpoints' order: who waits for a shared link waits for the others' requests too.
    fn ready(&mut self, room: &Room, now: Now) -> Option<(HoldId, u32)> {
        for _ in 0..RECHECKS {
            let firsts =
                self.holds.waited_for().filter_map(|slot| Some((self.ready_at(slot, room, now)?, slot)));
            let (key, slot) = firsts.min()?;
            if let Some(id) = self.overdue_at(slot, now) {
                return Some((id, slot));
            }
            if self.width_at(slot) == 1 {
                return self.first_of(slot, now).map(|key| (key.id, slot));
            }
            let arrived = self.holds.get(key.id)?.arrived;
            let needed = self.needed_at(key.id, slot, now)?;
            if self.can_start((slot, needed), room, now) {
                return Some((key.id, slot));
            }
            // What was a hit is none any more.
            let due = arrived.plus(self.overtaken_s(&self.pool(now), needed.service_s));
            self.holds.put(key.id, slot, due, needed);
        }
        None
    }

    /// The request of an endpoint's queue that may go there, by what it needed at the last look: the first; at an
    /// endpoint that works on several prompts, the first that fits beside them.
    fn ready_at(&self, slot: u32, room: &Room, now: Now) -> Option<Key> {
        let passes = self.width_at(slot) > 1 && !self.keeps_memory_free(slot, now);
        let looks = if passes { FIT_LOOKS } else { 1 };
        let fits = |held: &Held| self.can_start((slot, held.needs), room, now);
        self.holds.at(slot).take(looks).find(|(_, held)| fits(held)).map(|(key, _)| key)
    }

    /// Seconds until a request is sent to an endpoint that is busy for another `wait_s`: so that its fetch is over
    /// when the engine turns to it, but no sooner than the link can turn to the fetch.
    fn starts_s(&self, endpoint: &Endpoint, fetch_s: f64, wait_s: f64, now: Now) -> f64 {
        let ahead_s = LOOK_AHEAD_S + FETCHES_AHEAD * self.price.mean_fetch_s();
        let link = endpoint.linked.and_then(|linked| self.links.get(linked.link));
        match link.filter(|_| fetch_s > 0.0) {
            Some(link) => link.wait_s(now).max(wait_s - fetch_s) - ahead_s,
            None => wait_s - ahead_s,
        }
    }

    fn hold(&mut self, request: &RouteRequest<'_>, choice: &Choice<'_>) -> HoldId {
        let (chosen, now) = (choice.chosen(), choice.pool.now);
        self.join(chosen.slot, now);
        self.held_total += 1;
        let held = Held {
            chain: choice.prompt.chain.to_vec(),
            run_bytes: request.run_bytes,
            prompt_bytes: choice.prompt.bytes,
            media: request.media,
            session: request.session,
            streamed: request.streamed,
            exclude: request.exclude.to_vec(),
            arrived: now,
            needs: chosen.needed_then(),
            matched: chosen.matched,
            coming: chosen.coming,
            announced: false,
            runner_up: self.runner_up(choice.terms, choice.pick.index),
            candidates: choice.terms.len(),
        };
        let due = now.plus(self.overtaken_s(&choice.pool, chosen.service_s()));
        let id = self.holds.insert(held, chosen.slot, due);
        self.announce(id);
        self.index.reserve(self.chain_bytes());
        self.index.keep_budget();
        id
    }

    /// Places a request anew whose endpoint went. `None`: it waits for another one now.
    pub(super) fn rehome(&mut self, id: HoldId, now: Now) -> Option<Result<Decision, NoEndpoint>> {
        self.retract(id);
        let held = self.holds.get(id)?.clone();
        let exclude: Vec<EndpointId> = held.exclude.iter().copied().chain(self.avoided()).collect();
        let away = RouteRequest { exclude: &exclude, ..held.request() };
        let decided = self.place_anew(id, &held, &away, now);
        // Where all are to be avoided, none is.
        let decided = decided.or_else(|_| self.place_anew(id, &held, &held.request(), now));
        match decided {
            Ok(went) => went.map(Ok),
            Err(nobody) => {
                self.cancel(id);
                Some(Err(nobody))
            }
        }
    }

    /// Sends a held request to what is best among `request`'s endpoints, or puts it into the queue there.
    fn place_anew(
        &mut self,
        id: HoldId,
        held: &Held,
        request: &RouteRequest<'_>,
        now: Now,
    ) -> Result<Option<Decision>, NoEndpoint> {
        self.decide(request, now, |fleet, choice| {
            let chosen = choice.chosen();
            if fleet.is_free((chosen.slot, chosen.needed()), &fleet.room(now), now) {
                fleet.holds.remove(id);
                return Some(held_since(held.arrived, fleet.go(&held.request(), choice), now));
            }
            fleet.join(chosen.slot, now);
            let due = held.arrived.plus(fleet.overtaken_s(&choice.pool, chosen.service_s()));
            fleet.holds.put(id, chosen.slot, due, chosen.needed_then());
            fleet.holds.found(id, chosen.matched, chosen.coming);
            fleet.announce(id);
            None
        })
    }

    /// The first in a queue, by what each needs now: a prefix that was evicted meanwhile makes a hit a miss, and it
    /// goes back to where a miss stands.
    pub(super) fn first_of(&mut self, slot: u32, now: Now) -> Option<Key> {
        for _ in 0..RECHECKS {
            let key = self.holds.first_at(slot)?;
            let arrived = self.holds.get(key.id)?.arrived;
            let needed = self.needed_at(key.id, slot, now)?;
            let due = arrived.plus(self.overtaken_s(&self.pool(now), needed.service_s));
            if due.since(key.due) <= SAME_PLACE_S {
                return Some(key);
            }
            self.holds.put(key.id, slot, due, needed);
        }
        self.holds.first_at(slot)
    }

    /// Seconds of work, and of these of fetch, that a held request needs at an endpoint, as things are.
    pub(super) fn needed_at(&mut self, id: HoldId, slot: u32, now: Now) -> Option<Needed> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let terms = self.holds.get(id).and_then(|held| {
            self.index.matches(&held.chain, &mut scratch.matched);
            let prompt = self.measure(&held.request());
            self.terms_at(slot, &self.pool(now), &prompt, &scratch.matched)
        });
        self.holds.found(id, terms.map_or(0, |terms| terms.matched), 0);
        let needed = terms.map(|terms| terms.needed());
        scratch.looked_up = needed.map(|_| id);
        self.scratch = scratch;
        needed
    }

    pub(super) fn terms_at(
        &self,
        slot: u32,
        pool: &Pool,
        prompt: &Prompt<'_>,
        matched: &[u32],
    ) -> Option<Terms> {
        let (id, endpoint) = self.endpoint_at(slot)?;
        Some(self.terms_of(id, endpoint, pool, prompt, matched))
    }

    pub(super) fn endpoint_at(&self, slot: u32) -> Option<(EndpointId, &Endpoint)> {
        let place = self.slots.get(slot as usize)?;
        Some((EndpointId { slot, generation: place.generation }, place.endpoint.as_ref()?))
    }

    /// Sends a held request to an endpoint.
    fn start(&mut self, id: HoldId, slot: u32, reason: Option<Reason>, now: Now) -> Option<Decision> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let known = scratch.looked_up.take() == Some(id);
        let terms = self.holds.get(id).and_then(|held| {
            if !known {
                self.index.matches(&held.chain, &mut scratch.matched);
            }
            debug_assert!(
                self.is_as_looked_up(held, &scratch.matched),
                "the index changed since {id:?} was asked"
            );
            self.terms_at(slot, &self.pool(now), &self.measure(&held.request()), &scratch.matched)
        });
        let seen = scratch.matched.get(self.ghost as usize).copied().unwrap_or(0);
        self.scratch = scratch;
        self.retract(id);
        let held = self.holds.remove(id)?;
        let (pool, prompt) = (self.pool(now), self.measure(&held.request()));
        let terms = [terms?];
        let late = now.since(held.arrived) > self.settings.hold_limit_s;
        let place = &mut self.slots[slot as usize];
        if let Some(endpoint) = place.endpoint.as_mut() {
            endpoint.ration(late, terms[0].service_s());
        }
        let reason = reason.unwrap_or(match (terms[0].matched, held.candidates) {
            (_, 1) => Reason::OnlyCandidate,
            _ if held.chain.is_empty() => Reason::NoAffinity,
            (0, _) => Reason::Cold,
            _ => Reason::PrefixHit,
        });
        let choice = Choice { prompt, terms: &terms, pick: Pick { index: 0, reason }, seen, pool };
        let decision = self.commit(&held.request(), choice);
        let decision = Decision { runner_up: held.runner_up, candidates: held.candidates, ..decision };
        Some(held_since(held.arrived, decision, now))
    }

    fn is_as_looked_up(&self, held: &Held, matched: &[u32]) -> bool {
        let mut now = Vec::new();
        self.index.matches(&held.chain, &mut now);
        now == matched
    }
}

fn held_since(arrived: Now, decision: Decision, now: Now) -> Decision {
    Decision { held_s: now.since(arrived), ..decision }
}

#[cfg(test)]
mod tests;
