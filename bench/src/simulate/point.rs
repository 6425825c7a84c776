//! What one figure is made of: every default of `simulate` is decided here.
//!
//! "Capacity 10 %" means that the *cluster* holds that share of the trace's distinct blocks. Closed loop: K sessions
//! live, think times up to 300 s, 625 * K / N prefill tokens/s a replica. Open loop: the rate is such that one pooled
//! cache of the cluster's size would run at the given load, answers included. With a model, rate and capacity are
//! physical, and it is the arrivals of an open loop that are stretched to that load.

use super::cache::Cache;
use super::cluster::{ClusterSetup, Prefill, WarehouseSetup};
use super::router::RouterSetup;
use super::workload::Workload;
use super::world::{self, Outcome, Setup};
use super::{Link, Memory, Model, Name, PrefillKind, View};
use crate::cli::SimulateArgs;
use crate::error::Error;
use crate::measure::{imbalance, percentile};
use crate::scale::{PREFILL_TOKENS_PER_S_AND_SESSION, STEP_S};
use crate::trace::Format;

/// Block size of simulations with a model, in tokens: fine enough for prompts of 100,000, and eight times quicker.
pub const MODEL_BLOCK_TOKENS: u64 = 512;
/// Bytes per second of a link to the warehouse.
const LINK_BYTES_PER_S: f64 = 20e9;

/// Physical figures of a model on its replica.
#[derive(Clone, Copy, Debug)]
struct Physical {
    kv_bytes_per_token: f64,
    prefill_tokens_per_s: f64,
    kv_tokens: u64,
    decode_s: f64,
}

impl Model {
    fn physical(self) -> Physical {
        match self {
            Self::Llama70b => Physical {
                kv_bytes_per_token: 320e3,
                prefill_tokens_per_s: 8_000.0,
                kv_tokens: 1_280_000,
                decode_s: 1.0 / 2_500.0,
            },
            Self::Llama8b => Physical {
                kv_bytes_per_token: 128e3,
                prefill_tokens_per_s: 40_000.0,
                kv_tokens: 437_000,
                decode_s: 1.0 / 4_000.0,
            },
        }
    }
}

/// A workload and a cluster; with a policy, a view and a seed it is a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Index of the workload.
    pub(crate) work: usize,
    pub(crate) endpoints: usize,
    /// Share of the distinct blocks; not used with a model.
    pub(crate) capacity: f64,
    /// Sessions live at once (closed loop), and the seconds over which the first begin.
    pub(crate) live: usize,
    pub(crate) starts_over_s: f64,
    pub(crate) model: Option<Model>,
    pub(crate) users: Option<u64>,
    pub(crate) warehouse_x: Option<f64>,
    pub(crate) link: Link,
    pub(crate) rate: Option<f64>,
    pub(crate) utilization: f64,
    pub(crate) decode_s: Option<f64>,
    pub(crate) prefill: PrefillKind,
    pub(crate) partial: usize,
    pub(crate) memory: Memory,
}

impl Spec {
    /// The point that the options describe.
    pub(super) fn single(args: &SimulateArgs, work: &Workload) -> Result<Self, Error> {
        if args.warehouse.is_some() && args.prefill == PrefillKind::Chunked {
            return Err(Error::Usage("--warehouse with --prefill chunked is not modelled; use fcfs".into()));
        }
        if work.format == Format::Mooncake && args.users.is_some() {
            return Err(Error::Usage("--users: an open loop has no live sessions; use --utilization".into()));
        }
        let live = args.users.map_or(args.sessions, |users| users * args.endpoints) as usize;
        if work.format == Format::Agentic && live > work.sessions.len() {
            return Err(Error::Usage(format!(
                "{live} live sessions: {} has only {}",
                work.name,
                work.sessions.len()
            )));
        }
        Ok(Self {
            work: 0,
            endpoints: args.endpoints as usize,
            capacity: args.capacity,
            live,
            starts_over_s: args.starts_over_s,
            model: args.model,
            users: args.users,
            warehouse_x: args.warehouse,
            link: args.link,
            rate: args.prefill_tokens_per_s,
            utilization: args.utilization,
            decode_s: args.decode_s,
            prefill: args.prefill,
            partial: args.partial_prefills as usize,
            memory: args.memory,
        })
    }

    /// "agentic.jsonl N4 10 % K200".
    pub(super) fn describe(&self, work: &Workload) -> String {
        let model = match self.model {
            Some(Model::Llama70b) => " 70B".to_owned(),
            Some(Model::Llama8b) => " 8B".to_owned(),
            None => format!(" {:.0} %", 100.0 * self.capacity),
        };
        let load = match (work.format, self.users) {
            (Format::Mooncake, _) => format!(" load {:.0} %", 100.0 * self.utilization),
            (_, Some(users)) => format!(" u{users}"),
            (_, None) => format!(" K{}", self.live),
        };
        let warehouse = self.warehouse_x.map_or(String::new(), |x| match self.link {
            Link::Own => format!(" W{x}"),
            Link::Shared => format!(" W{x} shared"),
        });
        format!("{} N{}{model}{load}{warehouse}", work.name, self.endpoints)
    }

    /// Blocks of one replica's cache.
    fn blocks(&self, work: &Workload) -> u64 {
        let tokens = match self.model {
            Some(model) => model.physical().kv_tokens as f64,
            None => self.capacity * work.unique_tokens as f64 / self.endpoints as f64,
        };
        ((tokens / work.block_tokens as f64).round() as u64).max(1)
    }

    /// GPU seconds of one generated token.
    fn decode_s(&self) -> f64 {
        self.decode_s.or(self.model.map(|model| model.physical().decode_s)).unwrap_or(0.0)
    }

    /// Prefill rate of one replica, and the factor on arrival times.
    fn rate(&self, work: &Workload) -> Result<(f64, f64), Error> {
        let physical = self.rate.or_else(|| self.model.map(|model| model.physical().prefill_tokens_per_s));
        match work.format {
            Format::Agentic => {
                let usual = PREFILL_TOKENS_PER_S_AND_SESSION * self.live as f64 / self.endpoints as f64;
                Ok((physical.unwrap_or(usual), 1.0))
            }
            Format::Mooncake => {
                let length_s = work.jobs.last().map_or(0.0, |job| job.at_s);
                let uncached = pooled_uncached(work, self.blocks(work) * self.endpoints as u64) as f64;
                let decode_s = self.decode_s() * work.jobs.iter().map(|job| job.output as f64).sum::<f64>();
                let busy = self.endpoints as f64 * self.utilization;
                let prefill_s = length_s * busy - decode_s;
                match (physical, self.model) {
                    (Some(rate), Some(_)) if length_s > 0.0 => {
                        Ok((rate, (uncached / rate + decode_s) / busy / length_s))
                    }
                    (Some(rate), _) => Ok((rate, 1.0)),
                    (None, _) if length_s > 0.0 && prefill_s <= 0.0 => Err(Error::Usage(format!(
                        "answers alone take {decode_s:.0} s of GPU time, more than --utilization {} of the trace's \
                         {length_s:.0} s leaves; give --prefill-tokens-per-s or a smaller --decode-s",
                        self.utilization
                    ))),
                    (None, _) if length_s > 0.0 => Ok((uncached / prefill_s, 1.0)),
                    (None, _) => Err(Error::Usage(
                        "all requests of the trace arrive at once; give --prefill-tokens-per-s".into(),
                    )),
                }
            }
        }
    }

    pub(super) fn setup(&self, work: &Workload, router: RouterSetup) -> Result<Setup, Error> {
        let (rate, stretch) = self.rate(work)?;
        let blocks = self.blocks(work);
        let cluster_blocks = blocks * self.endpoints as u64;
        let warehouse = self.model.zip(self.warehouse_x).map(|(model, x)| WarehouseSetup {
            blocks: (cluster_blocks as f64 * x).round() as u64,
            seconds_per_token: model.physical().kv_bytes_per_token / LINK_BYTES_PER_S,
            shared: self.link == Link::Shared,
        });
        let prefill = match self.prefill {
            PrefillKind::Fcfs => Prefill::Fcfs,
            PrefillKind::Chunked => Prefill::Chunked { step_s: STEP_S, partial: self.partial },
        };
        let cluster = ClusterSetup {
            replicas: self.endpoints,
            blocks: match router.policy {
                Name::PooledLru => cluster_blocks,
                Name::Infinite => u64::MAX,
                _ => blocks,
            },
            rate,
            decode_s: self.decode_s(),
            prefill,
            memory: self.memory,
            pooled: matches!(router.policy, Name::PooledLru | Name::Infinite),
            warehouse,
        };
        let (live, starts_over_s) = (self.live, self.starts_over_s);
        Ok(Setup { cluster, router, live, starts_over_s, stretch, as_given: false })
    }

    /// One run.
    pub(super) fn run(&self, work: &Workload, router: RouterSetup) -> Result<Figures, Error> {
        let outcome = world::run(work, self.setup(work, router)?)?;
        let bytes = self.model.map_or(0.0, |model| model.physical().kv_bytes_per_token);
        Ok(Figures::new(&outcome, bytes))
    }
}

/// Tokens that one pooled cache of `blocks` would not serve, requests in their order.
fn pooled_uncached(work: &Workload, blocks: u64) -> u64 {
    let mut cache = Cache::new(blocks);
    let mut uncached = 0;
    for (number, job) in work.jobs.iter().enumerate() {
        let chain = work.chain(number as u32);
        uncached += job.tokens - work.saved(number as u32, cache.held(chain));
        cache.touch(chain);
    }
    uncached
}

/// Figures of one run, or means over several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    pub(crate) hit_rate: f64,
    pub(crate) combined_hit_rate: f64,
    pub(crate) imbalance: f64,
    pub(crate) ttft_mean_s: f64,
    pub(crate) ttft_p50_s: f64,
    pub(crate) ttft_p99_s: f64,
    pub(crate) requests_per_s: f64,
    pub(crate) gpu_s_per_request: f64,
    pub(crate) bytes_moved: f64,
    pub(crate) refused: f64,
}

impl Figures {
    pub(super) fn new(outcome: &Outcome, kv_bytes_per_token: f64) -> Self {
        let share = |tokens: u64| tokens as f64 / outcome.tokens.max(1) as f64;
        let count = outcome.requests.max(1) as f64;
        Self {
            hit_rate: share(outcome.local),
            combined_hit_rate: share(outcome.local + outcome.fetched),
            imbalance: imbalance(&outcome.uncached).unwrap_or(1.0),
            ttft_mean_s: outcome.ttfts.iter().sum::<f64>() / count,
            ttft_p50_s: percentile(&outcome.ttfts, 0.5).unwrap_or(0.0),
            ttft_p99_s: percentile(&outcome.ttfts, 0.99).unwrap_or(0.0),
            requests_per_s: if outcome.counted_s > 0.0 {
                outcome.counted as f64 / outcome.counted_s
            } else {
                0.0
            },
            gpu_s_per_request: outcome.gpu_s / count,
            bytes_moved: outcome.fetched as f64 * kv_bytes_per_token,
            refused: outcome.refused as f64,
        }
    }

    fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Self {
            hit_rate: mean(|f| f.hit_rate),
            combined_hit_rate: mean(|f| f.combined_hit_rate),
            imbalance: mean(|f| f.imbalance),
            ttft_mean_s: mean(|f| f.ttft_mean_s),
            ttft_p50_s: mean(|f| f.ttft_p50_s),
            ttft_p99_s: mean(|f| f.ttft_p99_s),
            requests_per_s: mean(|f| f.requests_per_s),
            gpu_s_per_request: mean(|f| f.gpu_s_per_request),
            bytes_moved: mean(|f| f.bytes_moved),
            refused: mean(|f| f.refused),
        }
    }
}

/// One line of the results, with the names of the published JSON. Figures are means over the seeds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Point {
    /// File name of the trace.
    pub trace: String,
    /// Policy.
    pub policy: &'static str,
    /// What it knew of the caches.
    pub view: View,
    /// Replicas.
    pub endpoints: usize,
    /// Share of the distinct blocks that the cluster holds.
    pub capacity: f64,
    /// Sessions live at once; none in an open loop.
    pub sessions: Option<usize>,
    /// Model, if its physical figures were used.
    pub model: Option<Model>,
    /// Live sessions a replica, if given so.
    pub users: Option<u64>,
    /// Warehouse in multiples of the cluster's KV.
    pub warehouse_x: Option<f64>,
    /// Links to it.
    pub link: Option<Link>,
    /// How many orders of sessions.
    pub seeds: usize,
    /// Input tokens from the replica's own cache over input tokens.
    pub hit_rate: f64,
    /// The same with what came from the warehouse.
    pub combined_hit_rate: f64,
    /// Largest over mean of the replicas' computed tokens.
    pub imbalance: f64,
    /// Time to first token, mean, seconds.
    pub ttft_mean_s: f64,
    /// Median.
    pub ttft_p50_s: f64,
    /// 99th percentile, nearest rank.
    pub ttft_p99_s: f64,
    /// Completed requests per second of the cluster: until the last session starts (closed loop) or the last answer.
    pub requests_per_s: f64,
    /// GPU seconds of prefill and decode per request.
    pub gpu_s_per_request: f64,
    /// Bytes over all links.
    pub bytes_moved: f64,
    /// Answers that said to come again later (429).
    pub refused: f64,
    /// The setting in short, for people.
    #[serde(skip)]
    pub(crate) setting: String,
}

impl Point {
    pub(super) fn new(work: &Workload, spec: Spec, policy: Name, view: View, figures: &[Figures]) -> Self {
        let mean = Figures::mean(figures);
        let capacity = match spec.model {
            Some(_) => {
                let tokens = spec.blocks(work) * work.block_tokens * spec.endpoints as u64;
                tokens as f64 / work.unique_tokens as f64
            }
            None => spec.capacity,
        };
        Self {
            trace: work.name.clone(),
            policy: policy.name(),
            view,
            endpoints: spec.endpoints,
            capacity,
            sessions: (work.format == Format::Agentic).then_some(spec.live),
            model: spec.model,
            users: spec.users,
            warehouse_x: spec.warehouse_x,
            link: spec.warehouse_x.map(|_| spec.link),
            seeds: figures.len(),
            hit_rate: mean.hit_rate,
            combined_hit_rate: mean.combined_hit_rate,
            imbalance: mean.imbalance,
            ttft_mean_s: mean.ttft_mean_s,
            ttft_p50_s: mean.ttft_p50_s,
            ttft_p99_s: mean.ttft_p99_s,
            requests_per_s: mean.requests_per_s,
            gpu_s_per_request: mean.gpu_s_per_request,
            bytes_moved: mean.bytes_moved,
            refused: mean.refused,
            setting: spec.describe(work),
        }
    }
}

#[cfg(test)]
mod tests;
