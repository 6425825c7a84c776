//! Who gets a request: the rules that are compared.

mod direct;
mod fleet;
mod peers;

use super::cluster::{Cluster, Served};
use super::workload::Workload;
use super::{Name, View};

/// What a router may look at.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) work: &'a Workload,
    pub(crate) cluster: &'a Cluster,
    /// The request is one of several that come at the same time.
    pub(crate) together: bool,
}

/// What becomes of a request that came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Now, and where.
    Go(Placed),
    /// Kept back; [`Router::next`] hands it out.
    Held,
    /// Turned away (429), to come again after so many seconds.
    Refused(f64),
}

impl Verdict {
    /// To a replica, which fetches whatever the warehouse has.
    fn at(to: usize) -> Self {
        Self::Go(Placed { to, reach: u64::MAX })
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The replica.
    pub(crate) to: usize,
    /// Tokens of the prompt's beginning that it may fetch, those it holds included.
    pub(crate) reach: u64,
}

/// A routing rule.
pub(crate) trait Router {
    /// A request came.
    fn submit(&mut self, job: u32, scene: Scene<'_>, now: f64) -> Verdict;

    /// One request that is to leave the queue now, with its replica.
    fn next(&mut self, _now: f64) -> Option<(u32, Placed)> {
        None
    }

    /// When [`Router::next`] is to be asked again at the latest.
    fn wake(&self, _now: f64) -> Option<f64> {
        None
    }

    /// What was to be fetched for a request is there, or its fetch could not bring all of it.
    fn fetched(&mut self, _job: u32, _served: Served, _now: f64) {}

    /// A first token came.
    fn first_token(&mut self, _job: u32, _now: f64) {}

    /// An answer is complete.
    fn finish(&mut self, _job: u32, _served: Served, _scene: Scene<'_>, _now: f64) {}
}

/// What a router is told about the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouterSetup {
    pub(crate) policy: Name,
    pub(crate) view: View,
    pub(crate) hold_limit_s: f64,
    /// Requests that the product holds back at most.
    pub(crate) max_held: usize,
    pub(crate) seed: u64,
}

/// Error of the capacity that a router is told in the estimated view, by replica in turn.
const TOLD: [f64; 3] = [0.8, 1.0, 1.2];

/// Blocks that a router believes a replica to hold at most.
fn told(view: View, replica: usize, blocks: u64) -> u64 {
    match view {
        View::Exact => blocks,
        View::Estimated => (blocks as f64 * TOLD[replica % TOLD.len()]).round() as u64,
    }
}

/// The router of a name.
pub(crate) fn of(setup: RouterSetup, scene: Scene<'_>) -> Box<dyn Router> {
    match setup.policy {
        Name::RoundRobin => Box::new(direct::RoundRobin::default()),
        Name::SessionHash => Box::new(direct::SessionHash),
        Name::PooledLru | Name::Infinite => Box::new(direct::LeastWait::default()),
        Name::Chwbl => Box::new(peers::Chwbl::new(scene)),
        Name::Sglang => Box::new(peers::Sglang::new(scene)),
        Name::Dynamo => Box::new(peers::Dynamo::new(setup.view, scene, setup.seed)),
        Name::Llmd => Box::new(peers::Llmd::new(setup.view, scene)),
        Name::Larder | Name::LarderPriceOnly | Name::MinTtft => {
            Box::new(fleet::FleetRouter::new(setup, scene))
        }
    }
}
