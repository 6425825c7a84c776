//! Pinning host memory, which takes seconds for each 10 GiB: on a thread of its own, while the node serves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use larder_kernels::{Device, GpuError, PinnedRegion};

use super::{Command, Memory};
use crate::medium::memory::SharedMemory;

/// What is pinned, or about to be.
#[derive(Debug)]
pub(super) struct Pinning {
    tell: Sender<Command>,
    known: HashMap<Memory, State>,
}

#[derive(Debug)]
enum State {
    Pinning,
    Pinned(Arc<PinnedRegion>),
}

impl Pinning {
    pub(super) fn new(tell: Sender<Command>) -> Self {
        Self { tell, known: HashMap::new() }
    }

    /// Begins to pin memory that is not pinned yet; [`Command::Pinned`] tells the end.
    pub(super) fn begin(&mut self, device: &Device, memory: Memory, bytes: Arc<SharedMemory>) {
        if self.known.contains_key(&memory) {
            return;
        }
        let (device, tell) = (device.clone(), self.tell.clone());
        let pin = move || {
            let begun = Instant::now();
            let length = bytes.bytes();
            let result = PinnedRegion::register(&device, bytes);
            match &result {
                Ok(_) => tracing::info!(?memory, bytes = length, took = ?begun.elapsed(), "memory is pinned"),
                Err(error) => tracing::error!(
                    ?memory, bytes = length, %error,
                    "memory cannot be pinned (LimitMEMLOCK?): engines copy for themselves, or compute"
                ),
            }
            let _ = tell.send(Command::Pinned(memory, result));
        };
        match std::thread::Builder::new().name("pin".to_owned()).spawn(pin) {
            Ok(_) => drop(self.known.insert(memory, State::Pinning)),
            Err(error) => tracing::error!(?memory, %error, "no thread to pin memory with"),
        }
    }

    /// Pinning has ended. What failed is tried again when the next engine comes.
    pub(super) fn ended(&mut self, memory: Memory, result: Result<PinnedRegion, GpuError>) {
        // Otherwise it was given up meanwhile, since the engine has gone, or it failed.
        if let (Some(State::Pinning), Ok(region)) = (self.known.remove(&memory), result) {
            self.known.insert(memory, State::Pinned(Arc::new(region)));
        }
    }

    pub(super) fn get(&self, memory: Memory) -> Option<&Arc<PinnedRegion>> {
        match self.known.get(&memory)? {
            State::Pinning => None,
            State::Pinned(region) => Some(region),
        }
    }

    /// Nobody uses it any more but what is on its way.
    pub(super) fn forget(&mut self, memory: Memory) {
        self.known.remove(&memory);
    }

    pub(super) fn pinned_bytes(&self) -> u64 {
        let bytes = |state: &State| match state {
            State::Pinning => 0,
            State::Pinned(region) => region.bytes() as u64,
        };
        self.known.values().map(bytes).sum()
    }
}
