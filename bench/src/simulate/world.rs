//! The event loop: sessions or arrivals send requests, a router places them, the cluster answers.

use super::cluster::{Cluster, ClusterSetup};
use super::router::{self, RouterSetup, Scene, Verdict};
use super::workload::Workload;
use crate::drive;
use crate::error::Error;
use crate::order::SplitMix;
use crate::scale::THINK_CAP_S;
use crate::trace::Format;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A router is not asked again at a time of its own choice before so many seconds have passed.
const WAKE_STEP_S: f64 = 1e-3;

/// What happens, at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A prefill is over.
    FirstToken(u32),
    /// An answer is complete.
    End(u32),
    /// What was fetched for it is there.
    Fetched(u32),
    /// A step of a replica is over.
    Step(u32),
    /// A request comes.
    Arrive(u32),
    /// The router asked to be woken.
    Wake,
}

/// What is to happen, by time and then by the order of planning.
#[derive(Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
}

impl Events {
    /// Plans `event` at `at`, which is never negative.
    pub(crate) fn push(&mut self, at: f64, event: Event) {
        // Floats that are not negative order like their bits.
        self.heap.push(Reverse((at.max(0.0).to_bits(), self.count, event)));
        self.count += 1;
    }

    /// Whether another request comes at this very time.
    fn another_comes(&self, now: f64) -> bool {
        let next = self.heap.peek();
        next.is_some_and(|Reverse((at, _, event))| *at == now.to_bits() && matches!(event, Event::Arrive(_)))
    }

    fn pop(&mut self) -> Option<(f64, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (f64::from_bits(at), event))
    }
}

/// One run of one router.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) cluster: ClusterSetup,
    pub(crate) router: RouterSetup,
    /// Sessions live at once (closed loop).
    pub(crate) live: usize,
    /// Seconds over which the first sessions begin (closed loop).
    pub(crate) starts_over_s: f64,
    /// Factor on arrival times (open loop).
    pub(crate) stretch: f64,
    /// Sessions start in the order of the workload and when those of a replay do, instead of in an order of the seed.
    pub(crate) as_given: bool,
}

/// What a run gave. Sums are over all requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) tokens: u64,
    pub(crate) local: u64,
    pub(crate) fetched: u64,
    pub(crate) uncached: Vec<u64>,
    pub(crate) gpu_s: f64,
    /// Ascending.
    pub(crate) ttfts: Vec<f64>,
    /// Requests completed, and the seconds they took: until the last session starts (closed loop), since later the
    /// cluster runs empty, or until the last answer (open loop).
    pub(crate) counted: u64,
    pub(crate) counted_s: f64,
    /// Answers that said to come again later.
    pub(crate) refused: u64,
    /// Most requests kept back at once.
    pub(crate) held_most: u64,
}

struct World<'a> {
    work: &'a Workload,
    setup: Setup,
    cluster: Cluster,
    router: Box<dyn router::Router>,
    events: Events,
    /// Sessions in the order of their starts, and how many have started.
    order: Vec<u32>,
    started: usize,
    arrived: Vec<f64>,
    wake: f64,
    /// The request before came at the same time as the one after it.
    together: bool,
    held: u64,
    outcome: Outcome,
}

/// Runs all requests of `work`.
///
/// # Errors
/// [`Error::Replay`] if requests are left without an answer, which
/// would be a defect of the router.
pub(crate) fn run(work: &Workload, setup: Setup) -> Result<Outcome, Error> {
    let cluster = Cluster::new(setup.cluster, work.jobs.len());
    let router = router::of(setup.router, Scene { work, cluster: &cluster, together: false });
    let mut order: Vec<u32> = (0..work.sessions.len() as u32).collect();
    let random = if setup.as_given {
        drive::starts(setup.router.seed)
    } else {
        let mut random = SplitMix::new(setup.router.seed);
        random.shuffle(&mut order);
        random
    };
    let mut world = World {
        work,
        setup,
        cluster,
        router,
        events: Events::default(),
        order,
        started: 0,
        arrived: vec![0.0; work.jobs.len()],
        wake: f64::INFINITY,
        together: false,
        held: 0,
        outcome: Outcome::default(),
    };
    world.begin(random);
    while let Some((now, event)) = world.events.pop() {
        world.handle(event, now);
    }
    world.outcome()
}

impl World<'_> {
    /// Live sessions are not in step: they begin at random times. Open loop: all arrivals are known.
    fn begin(&mut self, mut random: SplitMix) {
        match self.work.format {
            Format::Agentic => {
                for _ in 0..self.setup.live.min(self.order.len()) {
                    let at = random.unit() * self.setup.starts_over_s;
                    self.start_session(at);
                }
            }
            Format::Mooncake => {
                for (job, request) in self.work.jobs.iter().enumerate() {
                    self.arrived[job] = request.at_s * self.setup.stretch;
                    self.events.push(self.arrived[job], Event::Arrive(job as u32));
                }
            }
        }
    }

    fn start_session(&mut self, at: f64) {
        let Some(&session) = self.order.get(self.started) else { return };
        self.started += 1;
        if self.started == self.order.len() {
            self.outcome.counted_s = at;
            self.outcome.counted = self.outcome.requests;
        }
        self.come(self.work.sessions[session as usize].start, at);
    }

    fn come(&mut self, job: u32, at: f64) {
        self.arrived[job as usize] = at;
        self.events.push(at, Event::Arrive(job));
    }

    fn handle(&mut self, event: Event, now: f64) {
        match event {
            Event::Arrive(job) => self.arrive(job, now),
            Event::Step(replica) => self.cluster.step(self.work, replica as usize, now, &mut self.events),
            Event::Fetched(job) => {
                self.router.fetched(job, self.cluster.served(job), now);
                self.drain(now);
            }
            Event::FirstToken(job) => {
                self.cluster.first_token(self.work, job);
                self.outcome.ttfts.push(now - self.arrived[job as usize]);
                self.router.first_token(job, now);
                self.drain(now);
            }
            Event::End(job) => {
                self.cluster.end(self.work, job, now, &mut self.events);
                let scene = Scene { work: self.work, cluster: &self.cluster, together: false };
                self.router.finish(job, self.cluster.served(job), scene, now);
                self.drain(now);
                self.ended(job, now);
            }
            Event::Wake => {
                if now >= self.wake {
                    self.wake = f64::INFINITY;
                }
                self.drain(now);
            }
        }
    }

    /// Requests of one instant are all taken in before one that is held back may go.
    fn arrive(&mut self, job: u32, now: f64) {
        let more = self.events.another_comes(now);
        let together = more || self.together;
        self.together = more;
        let scene = Scene { work: self.work, cluster: &self.cluster, together };
        match self.router.submit(job, scene, now) {
            Verdict::Go(placed) => self.cluster.dispatch(self.work, job, placed, now, &mut self.events),
            Verdict::Held => {
                self.held += 1;
                self.outcome.held_most = self.outcome.held_most.max(self.held);
            }
            Verdict::Refused(retry_s) => {
                self.outcome.refused += 1;
                self.events.push(now + retry_s, Event::Arrive(job));
            }
        }
        if !more {
            self.drain(now);
        }
    }

    /// Sends on what the router lets go, and plans when to ask again.
    fn drain(&mut self, now: f64) {
        while let Some((job, placed)) = self.router.next(now) {
            self.held -= 1;
            self.cluster.dispatch(self.work, job, placed, now, &mut self.events);
        }
        if let Some(at) = self.router.wake(now) {
            // One planned wake is enough: it asks again. Time must go on whatever a router wants.
            let at = at.max(now + WAKE_STEP_S);
            if at < self.wake {
                self.wake = at;
                self.events.push(at, Event::Wake);
            }
        }
    }

    fn ended(&mut self, job: u32, now: f64) {
        let served = self.cluster.served(job);
        let request = &self.work.jobs[job as usize];
        self.outcome.requests += 1;
        self.outcome.tokens += request.tokens;
        self.outcome.local += served.local;
        self.outcome.fetched += served.fetched;
        if self.work.format == Format::Mooncake {
            self.outcome.counted = self.outcome.requests;
            self.outcome.counted_s = now;
        } else if job + 1 < self.work.sessions[request.session as usize].end {
            self.come(job + 1, now + self.work.jobs[job as usize + 1].think_s.min(THINK_CAP_S));
        } else {
            self.start_session(now);
        }
    }

    fn outcome(mut self) -> Result<Outcome, Error> {
        let expected = self.work.jobs.len() as u64;
        if self.outcome.requests != expected || self.outcome.ttfts.len() as u64 != expected {
            return Err(Error::Replay(format!(
                "policy {}: {} of {expected} requests were answered, {} are kept back for ever: a defect of the policy",
                self.setup.router.policy.name(),
                self.outcome.requests,
                self.held
            )));
        }
        self.outcome.ttfts.sort_unstable_by(f64::total_cmp);
        self.outcome.uncached = self.cluster.uncached().collect();
        self.outcome.gpu_s = self.cluster.gpu_s();
        Ok(self.outcome)
    }
}

#[cfg(test)]
mod tests;
