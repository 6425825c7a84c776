//! Other routers' published rules with their defaults (versions of late 2026), on the same inputs.
//!
//! What differs from the real ones: overlaps are counted in blocks instead of characters, updates are seen at once, and
//! engine metrics are never stale. All of it is in their favour.

use super::{Router, Scene, Verdict, told};
use crate::order::SplitMix;
use crate::simulate::View;
use crate::simulate::cache::Cache;
use xxhash_rust::xxh3::xxh3_64;

fn replicas(scene: Scene<'_>) -> std::ops::Range<usize> {
    0..scene.cluster.setup().replicas
}

fn smallest(replicas: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f64) -> usize {
    replicas.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0)
}

/// Points on the ring for each replica, and the bound of the load over its mean (KubeAI `PrefixHash` defaults).
const CHWBL_POINTS: u64 = 256;
const CHWBL_BOUND: f64 = 1.25;

/// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018) as in KubeAI: the key is the
/// first 100 characters of the prompt, here its first block.
pub(super) struct Chwbl {
    ring: Vec<(u64, usize)>,
}

impl Chwbl {
    pub(super) fn new(scene: Scene<'_>) -> Self {
        let point =
            |replica: usize, n: u64| (xxh3_64(&[replica as u64, n].map(u64::to_le_bytes).concat()), replica);
        let mut ring: Vec<_> =
            replicas(scene).flat_map(|replica| (0..CHWBL_POINTS).map(move |n| point(replica, n))).collect();
        ring.sort_unstable();
        Self { ring }
    }
}

impl Router for Chwbl {
    fn submit(&mut self, job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let count = scene.cluster.setup().replicas;
        let total: u64 = replicas(scene).map(|replica| scene.cluster.load(replica).in_flight).sum();
        let bound = CHWBL_BOUND * (total + 1) as f64 / count as f64;
        let first = scene.work.chain(job).first().map_or(0, |&(first, _)| first);
        let key = xxh3_64(&first.to_le_bytes());
        let begin = self.ring.partition_point(|&(point, _)| point < key);
        let walk = self.ring[begin..].iter().chain(&self.ring[..begin]).map(|&(_, replica)| replica);
        let fits = |&replica: &usize| scene.cluster.load(replica).in_flight as f64 <= bound;
        let own = self.ring.get(begin % self.ring.len()).map_or(0, |&(_, replica)| replica);
        Verdict::at(walk.clone().find(fits).unwrap_or(own))
    }
}

/// SGLang model gateway `cache_aware`, CLI defaults.
const SGLANG_CACHE_THRESHOLD: f64 = 0.3;
const SGLANG_BALANCE_ABS: u64 = 64;
const SGLANG_BALANCE_REL: f64 = 1.5;
/// `max-tree-size` in characters, at 4 characters a token.
const SGLANG_TREE_TOKENS: u64 = 67_108_864 / 4;

/// Least load if loads are out of balance; else the longest match of the router's own history if it covers more than
/// the threshold; else least load. Its tree is taken to be an LRU of `max-tree-size` for each replica.
pub(super) struct Sglang {
    trees: Vec<Cache>,
    routed: Vec<u64>,
}

impl Sglang {
    pub(super) fn new(scene: Scene<'_>) -> Self {
        let blocks = SGLANG_TREE_TOKENS / scene.work.block_tokens;
        let count = scene.cluster.setup().replicas;
        Self { trees: (0..count).map(|_| Cache::new(blocks)).collect(), routed: vec![0; count] }
    }
}

impl Router for Sglang {
    fn submit(&mut self, job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let load = |replica: usize| scene.cluster.load(replica).in_flight;
        let most = replicas(scene).map(load).max().unwrap_or(0);
        let least = replicas(scene).map(load).min().unwrap_or(0);
        let unbalanced = most - least > SGLANG_BALANCE_ABS && most as f64 > SGLANG_BALANCE_REL * least as f64;
        let chain = scene.work.chain(job);
        let held = |replica: usize| self.trees[replica].held(chain) * scene.work.block_tokens;
        let best = replicas(scene).min_by_key(|&replica| std::cmp::Reverse(held(replica))).unwrap_or(0);
        let share = held(best) as f64 / scene.work.jobs[job as usize].tokens as f64;
        let lightest = || replicas(scene).min_by_key(|&replica| (load(replica), self.routed[replica]));
        let to = if !unbalanced && share > SGLANG_CACHE_THRESHOLD { best } else { lightest().unwrap_or(0) };
        self.trees[to].touch(chain);
        self.routed[to] += 1;
        Verdict::at(to)
    }
}

/// Who holds what, for rules that listen to engine events: exact, or modelled with a wrong capacity.
struct Sight {
    models: Option<Vec<Cache>>,
}

impl Sight {
    fn new(view: View, scene: Scene<'_>) -> Self {
        let blocks = scene.cluster.setup().blocks;
        let model = |replica| Cache::new(told(view, replica, blocks));
        Self { models: (view == View::Estimated).then(|| replicas(scene).map(model).collect()) }
    }

    fn held(&self, replica: usize, job: u32, scene: Scene<'_>) -> u64 {
        let chain = scene.work.chain(job);
        self.models
            .as_ref()
            .map_or_else(|| scene.cluster.held(replica, chain), |models| models[replica].held(chain))
    }

    fn routed(&mut self, replica: usize, job: u32, scene: Scene<'_>) {
        if let Some(models) = &mut self.models {
            models[replica].touch(scene.work.chain(job));
        }
    }
}

/// Dynamo's default selector: `prefill blocks + decode blocks`, both as they would be with the request.
pub(super) struct Dynamo {
    sight: Sight,
    random: SplitMix,
}

impl Dynamo {
    pub(super) fn new(view: View, scene: Scene<'_>, seed: u64) -> Self {
        Self { sight: Sight::new(view, scene), random: SplitMix::new(seed) }
    }

    fn cost(&self, replica: usize, job: u32, scene: Scene<'_>) -> f64 {
        let request = &scene.work.jobs[job as usize];
        let load = scene.cluster.load(replica);
        let block = scene.work.block_tokens as f64;
        let overlap = self.sight.held(replica, job, scene) as f64;
        let prefill = (load.owed_tokens + request.tokens) as f64 / block - overlap;
        prefill.max(0.0) + (load.in_flight_blocks + u64::from(request.blocks)) as f64
    }
}

impl Router for Dynamo {
    fn submit(&mut self, job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let costs: Vec<f64> = replicas(scene).map(|replica| self.cost(replica, job, scene)).collect();
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let ties: Vec<usize> = replicas(scene).filter(|&replica| costs[replica] <= least).collect();
        let to = ties[self.random.below(ties.len())];
        self.sight.routed(to, job, scene);
        Verdict::at(to)
    }
}

/// llm-d's weights of the precise prefix sample: prefix, KV utilisation, queue.
const LLMD_PREFIX: f64 = 2.0;
const LLMD_KV: f64 = 1.0;
const LLMD_QUEUE: f64 = 1.0;

/// llm-d's weighted sum of scores in 0..=1, the highest wins.
pub(super) struct Llmd {
    sight: Sight,
}

impl Llmd {
    pub(super) fn new(view: View, scene: Scene<'_>) -> Self {
        Self { sight: Sight::new(view, scene) }
    }

    fn score(&self, replica: usize, job: u32, queues: (u64, u64), scene: Scene<'_>) -> f64 {
        let load = scene.cluster.load(replica);
        let blocks = u64::from(scene.work.jobs[job as usize].blocks).max(1);
        let prefix = self.sight.held(replica, job, scene) as f64 / blocks as f64;
        let used = (load.in_flight_blocks as f64 / scene.cluster.setup().blocks.max(1) as f64).min(1.0);
        let (least, most) = queues;
        let queue = if most == least { 1.0 } else { (most - load.owed) as f64 / (most - least) as f64 };
        LLMD_PREFIX * prefix + LLMD_KV * (1.0 - used) + LLMD_QUEUE * queue
    }
}

impl Router for Llmd {
    fn submit(&mut self, job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let queue = |replica| scene.cluster.load(replica).owed;
        let queues =
            (replicas(scene).map(queue).min().unwrap_or(0), replicas(scene).map(queue).max().unwrap_or(0));
        let to = smallest(replicas(scene), |replica| -self.score(replica, job, queues, scene));
        self.sight.routed(to, job, scene);
        Verdict::at(to)
    }
}
