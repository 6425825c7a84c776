//! The product's own policies: the very crate that the proxy runs, behind the queue's interface.
//!
//! Everything this program needs of the crate's API is in this file.

use super::{Placed, Router, RouterSetup, Scene, Verdict, told};
use crate::simulate::cluster::Served;
use crate::simulate::{Memory, Name};
use larder_routing::{
    Decision, EndpointId, Fetched, Fleet, HoldId, LinkSpec, Now, Outcome, PolicyKind, RouteRequest, Settings,
    SubmitError, Submitted, Ticket, Usage,
};
use std::collections::BTreeMap;

/// Bytes that stand for one token: what the crate is told and what prompts are measured by agree exactly.
const BYTES_PER_TOKEN: u64 = 4;
/// Room for every block of the public traces many times over: what is examined is the policy, not a small index.
const INDEX_BYTES: usize = 4 << 30;

/// The name of the one warehouse.
const WAREHOUSE: &str = "warehouse";

/// One fleet and the tickets of its requests.
pub(super) struct FleetRouter {
    fleet: Fleet,
    endpoints: Vec<EndpointId>,
    tickets: Vec<Option<Ticket>>,
    held: BTreeMap<HoldId, u32>,
    chain: Vec<u64>,
    /// Whether the fleet knows of the warehouse.
    links: bool,
}

impl FleetRouter {
    pub(super) fn new(setup: RouterSetup, scene: Scene<'_>) -> Self {
        let cluster = scene.cluster.setup();
        let (policy, hold_limit_s) = match setup.policy {
            Name::MinTtft => (PolicyKind::MinTtft, 0.0),
            Name::LarderPriceOnly => (PolicyKind::Larder, 0.0),
            _ => (PolicyKind::Larder, setup.hold_limit_s),
        };
        let mut fleet = Fleet::new(Settings {
            policy,
            index_bytes: INDEX_BYTES,
            default_prefill_tokens_per_s: cluster.rate,
            default_bytes_per_token: BYTES_PER_TOKEN as f64,
            hold_limit_s,
            min_fetch_tokens: 0,
            max_held: setup.max_held,
            pins_running: cluster.memory != Memory::Lru,
            waits_for_memory: cluster.memory == Memory::Admission,
            seed: setup.seed,
            ..Settings::default()
        });
        let mut endpoints = Vec::with_capacity(cluster.replicas);
        for replica in 0..cluster.replicas {
            let id = fleet.add_endpoint(&format!("replica {replica}"), Now::ZERO);
            fleet.set_kv_tokens(id, told(setup.view, replica, cluster.blocks) * scene.work.block_tokens);
            endpoints.push(id);
        }
        // `min_ttft` stays a rule that knows nothing of it.
        let links = cluster.warehouse.filter(|_| policy == PolicyKind::Larder);
        if let Some(warehouse) = links {
            for (replica, &id) in endpoints.iter().enumerate() {
                let link = if warehouse.shared { 0 } else { replica };
                let link = LinkSpec {
                    warehouse: WAREHOUSE.into(),
                    link: format!("link {link}").into(),
                    tokens_per_s: 1.0 / warehouse.seconds_per_token,
                };
                fleet.set_link(id, Some(&link));
            }
            fleet.set_warehouse_tokens(WAREHOUSE, warehouse.blocks * scene.work.block_tokens);
        }
        let links = links.is_some();
        let tickets = std::iter::repeat_with(|| None).take(scene.work.jobs.len()).collect();
        Self { fleet, endpoints, tickets, held: BTreeMap::new(), chain: Vec::new(), links }
    }

    fn go(&mut self, job: u32, decision: Decision) -> Placed {
        let to = self.replica(decision.endpoint);
        let reach = decision.matched_tokens + decision.fetch_tokens;
        // Without links the product does as the rules that it is compared with.
        let reach = if self.links { reach } else { u64::MAX };
        self.tickets[job as usize] = Some(decision.ticket);
        Placed { to, reach }
    }

    fn replica(&self, endpoint: EndpointId) -> usize {
        self.endpoints.iter().position(|&id| id == endpoint).expect("decisions name endpoints of this fleet")
    }
}

/// A chain element: an id stands for its block and all before it, so any scattering of ids is a prompt chain.
fn element(id: u32) -> u64 {
    let mut z = u64::from(id).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 31)
}

impl Router for FleetRouter {
    fn submit(&mut self, job: u32, scene: Scene<'_>, now: f64) -> Verdict {
        let request = &scene.work.jobs[job as usize];
        self.chain.clear();
        let spans = scene.work.chain(job).iter();
        self.chain.extend(spans.flat_map(|&(first, len)| (first..first + len).map(element)));
        let route = RouteRequest {
            chain: &self.chain,
            run_bytes: (scene.work.block_tokens * BYTES_PER_TOKEN) as u32,
            prompt_bytes: request.tokens * BYTES_PER_TOKEN,
            media: 0,
            session: Some(u64::from(request.session)),
            streamed: true,
            exclude: &[],
        };
        let now = Now::from_secs_f64(now);
        let submitted = if scene.together {
            self.fleet.submit_together(&route, now)
        } else {
            self.fleet.submit(&route, now)
        };
        match submitted {
            Ok(Submitted::Go(decision)) => Verdict::Go(self.go(job, decision)),
            Ok(Submitted::Held(id)) => {
                self.held.insert(id, job);
                Verdict::Held
            }
            Err(SubmitError::Full(full)) => Verdict::Refused(full.retry_after_s.ceil()),
            Err(SubmitError::NoEndpoint(why)) => unreachable!("all endpoints are available: {why}"),
        }
    }

    fn next(&mut self, now: f64) -> Option<(u32, Placed)> {
        let (id, decision) = self.fleet.next_dispatch(Now::from_secs_f64(now))?;
        let job = self.held.remove(&id).expect("the fleet names what it holds");
        let decision = decision.expect("endpoints are always there");
        Some((job, self.go(job, decision)))
    }

    fn wake(&self, now: f64) -> Option<f64> {
        if self.held.is_empty() {
            return None;
        }
        self.fleet.next_wake(Now::from_secs_f64(now)).map(Now::as_secs_f64)
    }

    fn fetched(&mut self, job: u32, served: Served, now: f64) {
        if let Some(ticket) = self.tickets[job as usize].as_ref().filter(|_| self.links) {
            let fetched = Fetched {
                ready_tokens: served.local + served.fetched,
                moved_tokens: served.fetched,
                all: served.short,
            };
            self.fleet.fetched(ticket, fetched, Now::from_secs_f64(now));
        }
    }

    fn first_token(&mut self, job: u32, now: f64) {
        if let Some(ticket) = &self.tickets[job as usize] {
            self.fleet.first_token(ticket, Now::from_secs_f64(now));
        }
    }

    fn finish(&mut self, job: u32, served: Served, scene: Scene<'_>, now: f64) {
        let Some(ticket) = self.tickets[job as usize].take() else { return };
        if served.fetched > 0 {
            self.fleet.staged(&ticket);
        }
        let usage = Usage {
            prompt_tokens: scene.work.jobs[job as usize].tokens,
            cached_tokens: Some(served.local + served.fetched),
        };
        self.fleet.finish(ticket, Outcome::Completed { usage: Some(usage) }, Now::from_secs_f64(now));
    }
}
