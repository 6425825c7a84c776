//! Events: two counters in a page that processes can share, how often recorded and how often reached.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::code::Answer;
use crate::memory::Mapping;

const ISSUED: usize = 0;
const DONE: usize = 1;
const RECORDER: usize = 2;

/// Bytes of an event's page.
pub(crate) const BYTES: usize = 4096;

/// Between two looks at an event of which nobody can wake us, since it may be another process that reaches it.
const LOOK: Duration = Duration::from_micros(50);

pub(crate) struct Event {
    pub(crate) page: Mapping,
    /// May be exported.
    pub(crate) shared: bool,
}

impl Event {
    pub(crate) fn create(shared: bool) -> Answer<Self> {
        Ok(Self { page: Mapping::create(BYTES)?, shared })
    }

    /// Asked to be recorded: the number that its stream reaches.
    pub(crate) fn issue(&self) -> u64 {
        self.page.counter(RECORDER).store(u64::from(std::process::id()), SeqCst);
        self.page.counter(ISSUED).fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn reach(&self, number: u64) {
        self.page.counter(DONE).fetch_max(number, SeqCst);
    }

    pub(crate) fn issued(&self) -> u64 {
        self.page.counter(ISSUED).load(SeqCst)
    }

    pub(crate) fn reached(&self, number: u64) -> bool {
        self.page.counter(DONE).load(SeqCst) >= number
    }

    /// Waits until it was reached, or until the process that was to reach it has gone, or `stop` says so.
    pub(crate) fn wait(&self, number: u64, stop: impl Fn() -> bool) {
        while !self.reached(number) && !stop() {
            let recorder = self.page.counter(RECORDER).load(SeqCst);
            if !std::path::Path::new(&format!("/proc/{recorder}")).exists() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}
