//! Rules without knowledge of caches.

use super::{Router, Scene, Verdict};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One replica after the other.
#[derive(Default)]
pub(super) struct RoundRobin {
    turn: usize,
}

impl Router for RoundRobin {
    fn submit(&mut self, _job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let to = self.turn % scene.cluster.setup().replicas;
        self.turn += 1;
        Verdict::at(to)
    }
}

/// Rendezvous hash of the session; where the trace has none, of the whole prompt.
pub(super) struct SessionHash;

impl Router for SessionHash {
    fn submit(&mut self, job: u32, scene: Scene<'_>, _now: f64) -> Verdict {
        let key = match scene.work.sessions.len() {
            1 => scene.work.chain(job).last().map_or(u64::from(job), |&(first, len)| u64::from(first + len)),
            _ => u64::from(scene.work.jobs[job as usize].session),
        };
        let weight = |replica: &usize| xxh3_64_with_seed(&key.to_le_bytes(), *replica as u64 + 1);
        Verdict::at((0..scene.cluster.setup().replicas).max_by_key(weight).unwrap_or(0))
    }
}

/// The replica that is free first, in turn where several are. All that a pooled cache leaves to choose.
#[derive(Default)]
pub(super) struct LeastWait {
    turn: usize,
}

impl Router for LeastWait {
    fn submit(&mut self, _job: u32, scene: Scene<'_>, now: f64) -> Verdict {
        let count = scene.cluster.setup().replicas;
        self.turn += 1;
        let wait = |replica: &usize| scene.cluster.backlog_s(*replica, now);
        let order = (0..count).map(|step| (self.turn + step) % count);
        Verdict::at(order.min_by(|a, b| wait(a).total_cmp(&wait(b))).unwrap_or(0))
    }
}
