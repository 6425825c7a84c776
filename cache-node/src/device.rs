//! The node's GPUs: KV between the node's pinned memory and pages that engines own.
//!
//! One thread has them all, so that no call of the driver ever waits in the task that owns the store. [`names`] reads what
//! an engine says of its pages, [`card`] is one GPU with its links, [`rank`] an engine's rank, [`landing`] and [`filling`] the device tier, [`worker`] the thread's loop.
//! Without a driver or a GPU the thread only says so: engines then copy for themselves, or compute.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use larder_kernels::{GpuError, PinnedRegion};
use tokio::sync::mpsc::UnboundedSender;

use crate::medium::memory::SharedMemory;
use crate::store::{DeviceOp, DeviceStats, Input, SessionId};

mod card;
mod filling;
mod landing;
mod names;
mod pinning;
mod rank;
mod worker;

/// How long what is on its way to and from GPUs may take at the end: 64 MiB take milliseconds.
const END_TIME: Duration = Duration::from_secs(2);
/// Between two looks at whether it has ended.
const END_LOOK: Duration = Duration::from_millis(1);

/// How GPUs are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Bytes of each GPU's memory that staging fills; 0: it stops at host memory.
    pub landing_bytes: u64,
    /// Whether what was brought there is read back and compared.
    pub verify: bool,
}

/// Memory that is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Memory {
    Slab,
    Region(SessionId),
}

/// What the thread is told.
#[derive(Debug)]
enum Command {
    Do(DeviceOp),
    /// A rank's pages, with what came with the message and what the rank saves to.
    Attach(DeviceOp, Vec<OwnedFd>, Arc<SharedMemory>),
    Pinned(Memory, Result<PinnedRegion, GpuError>),
    Quit,
}

/// The GPUs of this host, as far as there are any.
#[derive(Debug)]
pub struct Gpus {
    commands: Sender<Command>,
    stats: Arc<Mutex<DeviceStats>>,
    thread: Option<JoinHandle<()>>,
}

impl Gpus {
    /// Starts the thread, which looks for a driver first. It works on `slab` and answers to `results`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(
        settings: Settings,
        slab: Arc<SharedMemory>,
        results: UnboundedSender<Input>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let stats = Arc::new(Mutex::new(DeviceStats::default()));
        let (to_itself, shown) = (commands.clone(), Arc::clone(&stats));
        let thread = std::thread::Builder::new()
            .name("gpus".to_owned())
            .spawn(move || worker::work(settings, slab, &inbox, to_itself, results, &shown))?;
        Ok(Self { commands, stats, thread: Some(thread) })
    }

    /// Carries out what the store says.
    pub fn carry_out(&self, op: DeviceOp) {
        self.tell(Command::Do(op));
    }

    /// Opens a rank's pages: an [`DeviceOp::Attach`], with the descriptors that came for it and its session's region.
    pub fn attach(&self, op: DeviceOp, descriptors: Vec<OwnedFd>, region: Arc<SharedMemory>) {
        self.tell(Command::Attach(op, descriptors, region));
    }

    /// What there is, and how far each link is behind.
    pub fn stats(&self) -> DeviceStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, command: Command) {
        // The thread ends only when it is told to, or has panicked and said so.
        let _ = self.commands.send(command);
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        self.tell(Command::Quit);
        let begun = Instant::now();
        // What was given to a GPU is waited for, but not for a GPU that hangs: the thread keeps the memory mapped.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if begun.elapsed() > END_TIME {
                return tracing::error!("a GPU does not end what it was given; the process ends without it");
            }
            std::thread::sleep(END_LOOK);
        }
    }
}
