//! Endpoints that come, drain and go while the pool serves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder_routing::{Fleet, Now};

use super::{Endpoint, EndpointPlan, Guards, Pool};
use crate::metrics::Metrics;

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
            let (name, authority) = (&plan.name, plan.upstream.authority());
            let same = |e: &&Arc<Endpoint>| e.name == *name || e.upstream.authority() == authority;
            if let Some(taken) = endpoints.iter().find(same) {
                let (name, authority) = (taken.name.clone(), taken.upstream.authority().to_owned());
                return Err(NotAdded::Taken { name, authority });
            }
            if endpoints.len() >= ENDPOINTS_MAX {
                return Err(NotAdded::Full);
            }
            let added = enter(fleet, now, (plan, &self.model), (&self.metrics, self.guards));
            endpoints.push(Arc::clone(&added));
            self.endpoints.store(Arc::new(endpoints));
            tracing::info!(pool = self.model, endpoint = added.name, "endpoint added");
            Ok(added)
        })
    }

    /// Removes an endpoint with all that is known about it; requests there may still finish. Says whether there was
    /// one.
    pub fn remove(&self, name: &str) -> bool {
        self.change(|fleet, _| {
            let Some(gone) = self.endpoint_named(name) else { return false };
            gone.removed.store(true, Ordering::Relaxed);
            fleet.remove_endpoint(gone.id);
            let left = self.endpoints.load().iter().filter(|e| e.name != name).cloned().collect();
            self.endpoints.store(Arc::new(left));
            self.metrics.forget_endpoint(&self.model, name);
            tracing::info!(pool = self.model, endpoint = name, "endpoint removed");
            true
        })
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
    let counters = metrics.endpoint(model, &plan.name);
    Endpoint::new(id, plan, counters, guards)
}
