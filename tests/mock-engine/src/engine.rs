//! The scheduler behind a clock: requests go in from any task, one thread plays the steps as they come due.
//!
//! A thread and not a task, because a runtime's timers are a millisecond coarse, and with a large time scale a
//! millisecond is many steps. Progress is kept in one cell per request that overwrites itself, so a slow reader
//! costs no memory, and a thousand steps that end at the same real instant wake nobody a thousand times.

mod histogram;
mod progress;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub(crate) use histogram::{BOUNDS_S, Histogram};
pub(crate) use progress::{Progress, ProgressCell};

use crate::config::Plan;
use crate::scheduler::{Counters, Job, JobId, Refusal, Scheduler, Update};

/// Model time: real time since the start, times the scale.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    scale: f64,
}

impl Clock {
    fn now(&self) -> u64 {
        (self.start.elapsed().as_nanos() as f64 * self.scale) as u64
    }

    fn real(&self, model_ns: u64) -> Instant {
        // Rounded up, so that whoever wakes then finds the moment passed.
        let since_start = Duration::from_nanos(((model_ns as f64 / self.scale) as u64).saturating_add(1));
        self.start.checked_add(since_start).unwrap_or_else(|| Instant::now() + FAR)
    }
}

/// Stands for "never" where an instant would overflow.
const FAR: Duration = Duration::from_secs(86_400);

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Engine {
    inner: Mutex<Inner>,
    wake: Condvar,
    clock: Clock,
}

#[derive(Debug)]
struct Inner {
    scheduler: Scheduler,
    live: HashMap<JobId, Arc<ProgressCell>>,
    /// When the thread means to wake; none while it sleeps until notified.
    planned: Option<Instant>,
    stopped: bool,
    ttft: Histogram,
    updates: Vec<Update>,
    first_tokens: Vec<u64>,
}

/// A moment of the engine.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) blocks_used: u32,
    pub(crate) blocks_total: u32,
    pub(crate) counters: Counters,
    /// Real seconds, as a client of this process would measure them.
    pub(crate) ttft: Histogram,
}

/// A submitted request; dropping it before its end takes the request back.
#[derive(Debug)]
pub(crate) struct Ticket {
    engine: Arc<Engine>,
    id: JobId,
    cell: Arc<ProgressCell>,
}

impl Ticket {
    pub(crate) fn progress(&self) -> &ProgressCell {
        &self.cell
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.cell.get().finished {
            self.engine.abort(self.id);
        }
    }
}

impl Engine {
    /// An idle engine, and the thread that drives it until [`Engine::stop`].
    pub(crate) fn start(plan: &Plan, time_scale: f64) -> std::io::Result<Arc<Self>> {
        let engine = Arc::new(Self {
            inner: Mutex::new(Inner {
                scheduler: Scheduler::new(plan.limits, plan.cost),
                live: HashMap::new(),
                planned: None,
                stopped: false,
                ttft: Histogram::default(),
                updates: Vec::new(),
                first_tokens: Vec::new(),
            }),
            wake: Condvar::new(),
            clock: Clock { start: Instant::now(), scale: time_scale },
        });
        let driven = Arc::clone(&engine);
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || driven.drive())?;
        Ok(engine)
    }

    pub(crate) fn stop(&self) {
        self.inner.lock().stopped = true;
        self.wake.notify_all();
    }

    pub(crate) fn submit(self: &Arc<Self>, job: Job) -> Result<Ticket, Refusal> {
        let cell = Arc::new(ProgressCell::default());
        let mut inner = self.lock_advanced();
        let id = inner.scheduler.submit(self.clock.now(), job)?;
        inner.live.insert(id, Arc::clone(&cell));
        // With a large time scale the first steps may have ended already.
        inner.advance(&self.clock);
        self.replan(&inner);
        Ok(Ticket { engine: Arc::clone(self), id, cell })
    }

    pub(crate) fn reset_prefix_cache(&self) -> bool {
        self.lock_advanced().scheduler.reset_prefix_cache()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let inner = self.lock_advanced();
        let cache = inner.scheduler.cache();
        Snapshot {
            running: inner.scheduler.running(),
            waiting: inner.scheduler.waiting(),
            blocks_used: cache.used(),
            blocks_total: cache.total(),
            counters: *inner.scheduler.counters(),
            ttft: inner.ttft.clone(),
        }
    }

    fn abort(&self, id: JobId) {
        let mut inner = self.lock_advanced();
        inner.scheduler.abort(id);
        inner.live.remove(&id);
    }

    fn lock_advanced(&self) -> parking_lot::MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        inner.advance(&self.clock);
        inner
    }

    /// Wakes the thread if it would sleep past the next event.
    fn replan(&self, inner: &Inner) {
        let Some(wake) = inner.scheduler.next_wake() else { return };
        if inner.planned.is_none_or(|planned| self.clock.real(wake) < planned) {
            self.wake.notify_one();
        }
    }

    fn drive(&self) {
        let mut inner = self.inner.lock();
        while !inner.stopped {
            inner.advance(&self.clock);
            inner.planned = inner.scheduler.next_wake().map(|wake| self.clock.real(wake));
            match inner.planned {
                Some(due) => {
                    self.wake.wait_until(&mut inner, due);
                }
                None => self.wake.wait(&mut inner),
            }
        }
    }
}

impl Inner {
    fn advance(&mut self, clock: &Clock) {
        self.scheduler.advance(clock.now(), &mut self.updates);
        for update in self.updates.drain(..) {
            let progress = Progress {
                produced: update.produced,
                cached_tokens: update.cached_tokens,
                finished: update.finished,
            };
            if update.finished {
                if let Some(cell) = self.live.remove(&update.id) {
                    cell.set(progress);
                }
            } else if let Some(cell) = self.live.get(&update.id) {
                cell.set(progress);
            }
        }
        self.scheduler.drain_first_tokens(&mut self.first_tokens);
        for model_ns in self.first_tokens.drain(..) {
            self.ttft.observe(model_ns as f64 / 1e9 / clock.scale);
        }
    }
}
