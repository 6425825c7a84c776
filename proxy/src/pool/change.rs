//! Endpoints that come, drain and go while the pool serves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder_routing::{Fleet, Now, Settings};

use super::{Endpoint, EndpointPlan, Guards, Pool};
use crate::config;
use crate::metrics::Metrics;
use crate::warehouse::CacheNode;

/// Most endpoints of one pool: what decisions are designed for.
pub const ENDPOINTS_MAX: usize = 2_000;

/// Why an endpoint was not added.
#[derive(Debug, thiserror::Error)]
pub enum NotAdded {
    /// Another has its name or its address.
    #[error("the pool has an endpoint `{name}` at {authority} already")]
    Taken {
        /// Its name.
        name: String,
        /// Its address.
        authority: String,
    },
    /// The pool is full.
    #[error("the pool has {ENDPOINTS_MAX} endpoints, the most it may have")]
    Full,
}

impl Pool {
    /// Its endpoint `name`.
    pub fn endpoint_named(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.load().iter().find(|e| e.name == name).cloned()
    }

    /// Adds an endpoint, which may be chosen from now on.
    ///
    /// # Errors
    /// See [`NotAdded`].
    pub fn add(&self, plan: EndpointPlan) -> Result<Arc<Endpoint>, NotAdded> {
        self.change(|fleet, now| {
            let mut endpoints = Vec::clone(&self.endpoints.load());
            fits(&endpoints, &plan.name, plan.upstream.authority())?;
            let added = self.enter(fleet, now, plan);
            endpoints.push(Arc::clone(&added));
            self.endpoints.store(Arc::new(endpoints));
            Ok(added)
        })
    }

    /// Removes an endpoint with all that is known about it; requests there may still finish. Says whether there was
    /// one.
    pub fn remove(&self, name: &str) -> bool {
        self.change(|fleet, _| {
            let Some(gone) = self.endpoint_named(name) else { return false };
            let left = self.endpoints.load().iter().filter(|e| e.name != name).cloned().collect();
            self.endpoints.store(Arc::new(left));
            self.leave(fleet, &gone);
            true
        })
    }

    /// Removes the endpoints named `gone` and adds `new` ones, in one step: no request meets a pool in between. Gives
    /// those that were added.
    ///
    /// # Errors
    /// See [`NotAdded`]; nothing has changed then.
    pub fn replace(
        &self,
        gone: &[&str],
        new: &[&config::Endpoint],
        plan: impl Fn(&config::Endpoint) -> EndpointPlan,
    ) -> Result<Vec<Arc<Endpoint>>, NotAdded> {
        self.change(|fleet, now| {
            self.can_replace(gone, new)?;
            let (leaving, mut endpoints): (Vec<_>, Vec<_>) =
                self.endpoints.load().iter().cloned().partition(|e| gone.contains(&e.name.as_str()));
            leaving.iter().for_each(|endpoint| self.leave(fleet, endpoint));
            let added: Vec<_> = new.iter().map(|new| self.enter(fleet, now, plan(new))).collect();
            endpoints.extend(added.iter().cloned());
            self.endpoints.store(Arc::new(endpoints));
            Ok(added)
        })
    }

    /// Whether [`Pool::replace`] would do it, as things are.
    ///
    /// # Errors
    /// See [`NotAdded`].
    pub fn can_replace(&self, gone: &[&str], new: &[&config::Endpoint]) -> Result<(), NotAdded> {
        let mut left = Vec::clone(&self.endpoints.load());
        left.retain(|endpoint| !gone.contains(&endpoint.name.as_str()));
        if left.len() + new.len() > ENDPOINTS_MAX {
            return Err(NotAdded::Full);
        }
        new.iter().try_for_each(|new| fits(&left, &new.name, &new.authority))
    }

    fn enter(&self, fleet: &mut Fleet, now: Now, plan: EndpointPlan) -> Arc<Endpoint> {
        let added = enter(fleet, now, (plan, &self.model), (&self.metrics, *self.guards.lock()));
        tracing::info!(pool = self.model, endpoint = added.name, "endpoint added");
        added
    }

    fn leave(&self, fleet: &mut Fleet, gone: &Endpoint) {
        gone.removed.store(true, Ordering::Relaxed);
        fleet.remove_endpoint(gone.id);
        self.metrics.forget_endpoint(&self.model, &gone.name);
        tracing::info!(pool = self.model, endpoint = gone.name, "endpoint removed");
    }

    /// Goes by other settings from now on. What was learned stays.
    pub fn retune(&self, settings: Settings, guards: Guards) {
        *self.guards.lock() = guards;
        self.retries.lock().set(guards.retry);
        self.endpoints.load().iter().for_each(|endpoint| endpoint.guard.set(guards.breaker));
        self.slow_start.store(super::by_load::millis(settings.slow_start_s), Ordering::Relaxed);
        self.change(|fleet, _| fleet.retune(settings));
    }

    /// Bounds the requests in flight at an endpoint; `None`: no bound.
    pub fn set_max_in_flight(&self, endpoint: &Endpoint, most: Option<u32>) {
        endpoint.max_in_flight.store(most.unwrap_or(u32::MAX), Ordering::Relaxed);
        self.change(|fleet, _| fleet.set_max_in_flight(endpoint.id, endpoint.bound_inside()));
    }

    /// Lets an endpoint finish what it has and take no more, or take requests again.
    pub fn drain(&self, endpoint: &Endpoint, draining: bool) {
        if endpoint.draining.swap(draining, Ordering::Relaxed) != draining {
            tracing::info!(
                pool = self.model,
                endpoint = endpoint.name,
                draining,
                "drain set by the operator"
            );
        }
        self.update_state(endpoint);
    }
}

/// Whether one more endpoint fits beside those that are there.
fn fits(endpoints: &[Arc<Endpoint>], name: &str, authority: &str) -> Result<(), NotAdded> {
    let same = |e: &&Arc<Endpoint>| e.name == name || e.upstream.authority() == authority;
    if let Some(taken) = endpoints.iter().find(same) {
        let (name, authority) = (taken.name.clone(), taken.upstream.authority().to_owned());
        return Err(NotAdded::Taken { name, authority });
    }
    if endpoints.len() >= ENDPOINTS_MAX { Err(NotAdded::Full) } else { Ok(()) }
}

/// Makes an endpoint known to the fleet.
pub(super) fn enter(
    fleet: &mut Fleet,
    now: Now,
    (plan, model): (EndpointPlan, &str),
    (metrics, guards): (&Metrics, Guards),
) -> Arc<Endpoint> {
    let id = fleet.add_endpoint(&plan.name, now);
    if let Some(tokens) = plan.kv_tokens {
        fleet.set_kv_tokens(id, tokens);
    }
    fleet.set_max_in_flight(id, plan.max_in_flight);
    fleet.set_link(id, plan.cache_node.as_ref().map(CacheNode::link).as_ref());
    let counters = metrics.endpoint(model, &plan.name);
    Endpoint::new(id, plan, counters, guards)
}
