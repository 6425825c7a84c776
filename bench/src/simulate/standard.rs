//! The standard points: workloads of published router simulations on these traces, so that figures can be compared.

use super::point::{MODEL_BLOCK_TOKENS, Spec};
use super::workload::Workload;
use super::{Link, Model, PrefillKind, read};
use crate::cli::SimulateArgs;
use crate::error::Error;
use crate::trace::Format;

/// Agentic: replicas, share of the distinct blocks, live sessions.
const AGENTIC: [(usize, f64, usize); 10] = [
    (4, 0.1, 200),
    (4, 0.1, 145),
    (4, 0.3, 200),
    (16, 0.1, 200),
    (16, 0.1, 145),
    (16, 0.3, 200),
    (4, 0.1, 256),
    (16, 0.1, 256),
    (4, 0.1, 400),
    (16, 0.1, 400),
];
/// Open loop: replicas, share of the distinct blocks, load.
const OPEN: [(usize, f64, f64); 6] =
    [(4, 0.1, 0.6), (4, 0.3, 0.6), (16, 0.1, 0.6), (16, 0.3, 0.6), (4, 0.1, 0.85), (16, 0.1, 0.85)];
/// Agentic on 4 replicas with a model's figures: live sessions a replica, and the links of a warehouse.
const PHYSICAL: [(Model, u64, Option<Link>); 19] = [
    (Model::Llama70b, 4, None),
    (Model::Llama70b, 8, None),
    (Model::Llama70b, 10, None),
    (Model::Llama8b, 4, None),
    (Model::Llama8b, 8, None),
    (Model::Llama70b, 8, Some(Link::Own)),
    (Model::Llama70b, 16, Some(Link::Own)),
    (Model::Llama70b, 32, Some(Link::Own)),
    (Model::Llama8b, 8, Some(Link::Own)),
    (Model::Llama8b, 16, Some(Link::Own)),
    (Model::Llama8b, 32, Some(Link::Own)),
    (Model::Llama70b, 8, Some(Link::Shared)),
    (Model::Llama70b, 16, Some(Link::Shared)),
    (Model::Llama8b, 8, Some(Link::Shared)),
    (Model::Llama8b, 16, Some(Link::Shared)),
    (Model::Llama70b, 16, None),
    (Model::Llama70b, 32, None),
    (Model::Llama8b, 16, None),
    (Model::Llama8b, 32, None),
];
/// Warehouse of the physical points, in multiples of the cluster's KV; and the load of the open loop there.
const WAREHOUSE_X: f64 = 10.0;
const PHYSICAL_LOAD: f64 = 0.7;
const PHYSICAL_REPLICAS: usize = 4;
/// Length of the part of an open loop that is used, in seconds.
const OPEN_LENGTH_S: f64 = 1_800.0;

/// All points of the traces given, with their workloads.
pub(super) fn points(args: &SimulateArgs) -> Result<(Vec<Workload>, Vec<Spec>), Error> {
    if args.trace.len() != args.format.len() {
        return Err(Error::Usage("give one --format for each --trace, in the same order".into()));
    }
    let (mut works, mut specs) = (Vec::new(), Vec::new());
    for (path, &format) in args.trace.iter().zip(&args.format) {
        let length_s = args.to_s.unwrap_or(args.from_s + OPEN_LENGTH_S);
        let trace = read(args, path, format, Some(length_s))?;
        let work = works.len();
        works.push(Workload::new(&trace, args.block_tokens.unwrap_or(trace.block_tokens))?);
        match format {
            Format::Agentic => {
                works.push(Workload::new(&trace, MODEL_BLOCK_TOKENS.max(trace.block_tokens))?);
                let have = trace.sessions.len();
                specs.extend(agentic(args, work).filter(|spec| spec.live <= have));
            }
            Format::Mooncake => specs.extend(open(args, work)),
        }
    }
    Ok((works, specs))
}

fn base(args: &SimulateArgs, work: usize) -> Spec {
    Spec {
        work,
        endpoints: PHYSICAL_REPLICAS,
        capacity: args.capacity,
        live: 0,
        starts_over_s: args.starts_over_s,
        model: None,
        users: None,
        warehouse_x: None,
        link: Link::Own,
        rate: None,
        utilization: PHYSICAL_LOAD,
        decode_s: None,
        prefill: args.prefill,
        partial: args.partial_prefills as usize,
        memory: args.memory,
    }
}

fn agentic(args: &SimulateArgs, work: usize) -> impl Iterator<Item = Spec> {
    let (fine, coarse) = (base(args, work), base(args, work + 1));
    let plain = AGENTIC.map(|(endpoints, capacity, live)| Spec { endpoints, capacity, live, ..fine });
    let physical = PHYSICAL.map(|(model, users, link)| Spec {
        live: users as usize * PHYSICAL_REPLICAS,
        model: Some(model),
        users: Some(users),
        warehouse_x: link.map(|_| WAREHOUSE_X),
        link: link.unwrap_or(Link::Own),
        ..coarse
    });
    plain.into_iter().chain(physical).filter(modelled)
}

fn open(args: &SimulateArgs, work: usize) -> impl Iterator<Item = Spec> {
    let base = base(args, work);
    let plain =
        OPEN.map(|(endpoints, capacity, utilization)| Spec { endpoints, capacity, utilization, ..base });
    let physical = [Model::Llama70b, Model::Llama8b].map(|model| Spec {
        model: Some(model),
        warehouse_x: Some(WAREHOUSE_X),
        ..base
    });
    plain.into_iter().chain(physical).filter(modelled)
}

/// Chunked prefill is modelled without a warehouse only.
fn modelled(spec: &Spec) -> bool {
    spec.prefill == PrefillKind::Fcfs || spec.warehouse_x.is_none()
}
