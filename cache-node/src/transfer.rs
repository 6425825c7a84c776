//! The threads that touch chunks: copying in at commit, reading back before a lease. The store decides, these carry out.

pub mod disk;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::medium::memory::SharedMemory;
use crate::store::{Check, CopyId, Finding, Input, VerifyId};

/// The node's clock: time since it started, as the store counts it.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// Copy a chunk from a region into the slab.
#[derive(Debug)]
pub struct CopyJob {
    /// Which copy of the store's.
    pub copy: CopyId,
    /// The session's region; kept mapped until the copy is done, whatever becomes of the session.
    pub region: Arc<SharedMemory>,
    /// Where in the region, in bytes.
    pub from: u64,
    /// Where in the slab, in bytes.
    pub to: u64,
    /// How much.
    pub bytes: u64,
}

/// A verification, shared by the threads that work on it.
#[derive(Debug)]
struct Verification {
    verify: VerifyId,
    checks: Vec<Check>,
    stop_at: Duration,
    found: Mutex<Vec<Finding>>,
    parts_left: AtomicUsize,
}

#[derive(Debug)]
enum Job {
    Copy(CopyJob),
    /// Every `step`th check from `first`: the beginning of the prompt is verified first, whoever works on it.
    Verify {
        shared: Arc<Verification>,
        first: usize,
        step: usize,
    },
}

/// Jobs waiting. As many as the store gives out, which its limits bound.
#[derive(Debug, Default)]
struct Queue {
    /// First, since a request waits for them; stores wait for nobody.
    verifications: VecDeque<Job>,
    copies: VecDeque<Job>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    slab: Arc<SharedMemory>,
    clock: Clock,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// As many results as jobs were given out.
    results: UnboundedSender<Input>,
}

/// The pool of threads. Dropping it lets running jobs finish and joins the threads.
#[derive(Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Transfer {
    /// Starts `threads` threads (at least one) that work on `slab` and answer to `results`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(
        threads: usize,
        slab: Arc<SharedMemory>,
        clock: Clock,
        results: UnboundedSender<Input>,
    ) -> std::io::Result<Self> {
        let queue = Mutex::default();
        let shared = Arc::new(Shared { slab, clock, queue, changed: Condvar::new(), results });
        let start = |index| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("transfer-{index}")).spawn(move || shared.work())
        };
        let threads = (0..threads.max(1)).map(start).collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// Queues a copy.
    pub fn copy(&self, job: CopyJob) {
        self.shared.lock().copies.push_back(Job::Copy(job));
        self.shared.changed.notify_one();
    }

    /// Queues a verification, divided among the threads.
    pub fn verify(&self, verify: VerifyId, checks: Vec<Check>, stop_at: Duration) {
        let parts = self.threads.len().min(checks.len()).max(1);
        let found = Mutex::new(vec![Finding::Skipped; checks.len()]);
        let verification =
            Verification { verify, checks, stop_at, found, parts_left: AtomicUsize::new(parts) };
        let shared = Arc::new(verification);
        let part = |first| Job::Verify { shared: Arc::clone(&shared), first, step: parts };
        self.shared.lock().verifications.extend((0..parts).map(part));
        self.shared.changed.notify_all();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            let first = queue.verifications.pop_front();
            if let Some(job) = first.or_else(|| queue.copies.pop_front()) {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            let result = match job {
                Job::Copy(job) => {
                    let checksum = self.slab.copy_in(job.to, &job.region, job.from, job.bytes);
                    Some(Input::Copied { copy: job.copy, checksum })
                }
                Job::Verify { shared, first, step } => self.verify(&shared, first, step),
            };
            if let Some(result) = result {
                // If nobody listens the node is ending.
                let _ = self.results.send(result);
            }
        }
    }

    /// Works on a part; returns the result if it was the last one.
    fn verify(&self, shared: &Verification, first: usize, step: usize) -> Option<Input> {
        for index in (first..shared.checks.len()).step_by(step) {
            if self.clock.now() >= shared.stop_at {
                break;
            }
            let check = shared.checks[index];
            let good = self.slab.checksum(check.offset, check.bytes) == check.checksum;
            let mut found = shared.found.lock().unwrap_or_else(PoisonError::into_inner);
            found[index] = if good { Finding::Good } else { Finding::Bad };
        }
        let last = shared.parts_left.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then(|| {
            let found = shared.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Input::Verified { verify: shared.verify, found }
        })
    }
}

#[cfg(test)]
mod tests;
