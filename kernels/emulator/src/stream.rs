//! Streams: a thread each, which does what it was given in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::event::Event;
use crate::memory::Copy;
use crate::ptx::Kernel;
use crate::ptx::run::{Grid, launch};
use crate::state::state;

/// Work of a stream.
pub(crate) enum Work {
    Copy(Copy),
    Launch { kernel: Arc<Kernel>, grid: Grid, parameters: Vec<u64> },
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    /// Something is being done that is no longer in `work`.
    busy: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Work came, was done, or the stream closes.
    changed: Condvar,
}

/// A stream; what it was given is still done after it is dropped, as with a real driver.
pub(crate) struct Stream {
    shared: Arc<Shared>,
}

impl Stream {
    pub(crate) fn create() -> Self {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        std::thread::spawn(move || serve(&own));
        Self { shared }
    }

    pub(crate) fn give(&self, work: Work) {
        self.shared.queue.lock().work.push_back(work);
        self.shared.changed.notify_all();
    }

    /// Waits until all that it was given is done.
    pub(crate) fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while queue.busy || !queue.work.is_empty() {
            self.shared.changed.wait(&mut queue);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

fn serve(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let work = loop {
            if let Some(work) = queue.work.pop_front() {
                queue.busy = true;
                break work;
            }
            if queue.closed {
                return;
            }
            shared.changed.wait(&mut queue);
        };
        drop(queue);
        perform(work);
        shared.queue.lock().busy = false;
        shared.changed.notify_all();
    }
}

fn perform(work: Work) {
    let state = state();
    let knobs = &state.knobs;
    knobs.look();
    while knobs.held.load(SeqCst) {
        std::thread::sleep(Duration::from_micros(100));
        knobs.look();
    }
    let lost = || knobs.lost.load(SeqCst) != 0;
    match work {
        // Nothing that waits for a lost device waits for ever.
        Work::Record(event, number) => event.reach(number),
        Work::Wait(event, number) => event.wait(number, lost),
        _ if lost() => {}
        Work::Copy(copy) => {
            let rate = knobs.bytes_per_second.load(SeqCst);
            if rate > 0 {
                std::thread::sleep(Duration::from_secs_f64(copy.bytes as f64 / rate as f64));
            }
            if let Err(code) = state.device.read().copy(copy) {
                knobs.lost.store(code, SeqCst);
            } else if knobs.flips() {
                state.device.read().spoil(copy);
            }
        }
        Work::Launch { kernel, grid, parameters } => {
            if let Err(fault) = launch(&kernel, grid, &parameters, &*state.device.read()) {
                *state.fault.lock() = fault.to_string();
                knobs.lost.store(fault.code, SeqCst);
            }
        }
    }
}
