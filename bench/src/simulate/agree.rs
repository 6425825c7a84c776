//! The hit rate that the simulation gives for a replay: the same sessions in the same order, the same caches and rates.

use super::point::{Figures, Spec};
use super::router::RouterSetup;
use super::workload::Workload;
use super::world::{self, Setup};
use super::{Link, Memory, Name, PrefillKind, View};
use crate::cli::Policy;
use crate::error::Error;
use crate::plan::Plan;
use crate::scale::THINK_CAP_S;
use larder_routing::Settings;

/// The policy under its name here. A session's hash depends on the endpoints' names, which a replay draws anew.
fn name(policy: Policy) -> Option<Name> {
    match policy {
        Policy::Larder => Some(Name::Larder),
        Policy::RoundRobin => Some(Name::RoundRobin),
        Policy::MinTtft => Some(Name::MinTtft),
        Policy::SessionHash => None,
    }
}

/// Simulates what a plan replays under one policy. `None` for a policy that cannot be compared.
///
/// # Errors
/// [`Error::Usage`] if the plan's blocks cannot be simulated, [`Error::Replay`] for a defect of the policy.
pub(crate) fn simulated(plan: &Plan, policy: Policy) -> Result<Option<Figures>, Error> {
    let Some(policy) = name(policy) else { return Ok(None) };
    let scale = &plan.scale;
    let work = Workload::new(&plan.trace, scale.block_tokens)?;
    let tokens = scale.capacity.kv_tokens_per_engine * scale.engines;
    let spec = Spec {
        work: 0,
        endpoints: scale.engines as usize,
        capacity: tokens as f64 / work.unique_tokens as f64,
        live: scale.live_sessions,
        starts_over_s: THINK_CAP_S,
        model: None,
        users: None,
        warehouse_x: None,
        link: Link::Own,
        rate: Some(scale.prefill_tokens_per_s),
        utilization: 1.0,
        decode_s: None,
        prefill: PrefillKind::Fcfs,
        partial: 1,
        memory: Memory::Pinned,
    };
    let Settings { hold_limit_s, max_held, .. } = Settings::default();
    let router = RouterSetup { policy, view: View::Exact, hold_limit_s, max_held, seed: scale.seed };
    let outcome = world::run(&work, Setup { as_given: true, ..spec.setup(&work, router)? })?;
    Ok(Some(Figures::new(&outcome, 0.0)))
}
