//! What every test begins with: the emulator, a device, memory.

#![expect(unsafe_code, reason = "owns descriptors that came over a socket, and maps memory")]

use std::ffi::c_void;
use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use larder_emulator::noise;
use larder_emulator::{Controls, library};
pub(crate) use larder_kernels::HostBytes as Bytes;
use larder_kernels::{
    CopyStream, Device, Driver, Event, EventHandle, GpuError, HostMemory, ImportedKv, Kernels, LandingSlab,
    NoGpu, PinnedRegion, Ticket,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The emulator's knobs are the process's, so one test at a time turns them.
static TURN: Mutex<()> = Mutex::new(());

/// Whether the tests are to run on this machine's GPU and driver instead of the emulator.
pub(crate) fn on_gpu() -> bool {
    std::env::var_os("LARDER_REAL_CUDA").is_some_and(|value| value == "1")
}

/// The emulator, or the GPU, for one test alone.
pub(crate) struct Emulator {
    pub(crate) controls: Knobs,
    _turn: MutexGuard<'static, ()>,
}

/// The emulator's knobs; a GPU has none, so there nothing is held or slowed, and what was called or left is not known.
pub(crate) struct Knobs(Option<Controls>);

impl Knobs {
    pub(crate) fn hold(&self, held: bool) {
        self.0.iter().for_each(|controls| controls.hold(held));
    }

    pub(crate) fn slow(&self, bytes_per_second: u64) {
        self.0.iter().for_each(|controls| controls.slow(bytes_per_second));
    }

    /// How often a function was called; 0 where nobody counts.
    pub(crate) fn calls(&self, function: &str) -> u64 {
        self.0.as_ref().map_or(0, |controls| controls.calls(function))
    }

    /// Objects that were not freed; 0 where nobody counts.
    pub(crate) fn left(&self) -> u64 {
        self.0.as_ref().map_or(0, Controls::left)
    }

    fn only(&self) -> &Controls {
        self.0.as_ref().expect("the test runs on the emulator only")
    }

    pub(crate) fn lose(&self, code: u32) {
        self.only().lose(code);
    }

    pub(crate) fn fail(&self, function: &str, nth: u64, code: u32) {
        self.only().fail(function, nth, code);
    }
}

pub(crate) fn emulator() -> Emulator {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let controls = (!on_gpu()).then(|| Controls::of(&library().unwrap()).unwrap());
    Emulator { controls: Knobs(controls), _turn: turn }
}

/// The emulator, for a test that a GPU cannot do; None where the tests run on one.
pub(crate) fn only_emulator() -> Option<Emulator> {
    if on_gpu() {
        println!("skipped: needs the emulator's knobs");
        return None;
    }
    Some(emulator())
}

/// The last device: of the emulator the second, so that it is not found by chance.
pub(crate) fn device() -> Result<Device, GpuError> {
    let driver = if on_gpu() { Driver::load() } else { Driver::load_from(Some(&library().unwrap())) };
    let driver = driver.map_err(|no| match no {
        NoGpu::Refused(error) => error,
        other => panic!("{other}"),
    })?;
    let uuid = *driver.devices()?.last().expect("a driver that loads has a device");
    driver.device(uuid)
}

/// Memory of the kernel's that nobody has touched yet.
pub(crate) struct Untouched(NonNull<c_void>, NonZeroUsize);

// SAFETY: the mapping belongs to no thread, and nothing here reads or writes it.
unsafe impl Send for Untouched {}
// SAFETY: as above.
unsafe impl Sync for Untouched {}

// SAFETY: mapped as long as the value lives, and referred to by nothing.
unsafe impl HostMemory for Untouched {
    fn range(&self) -> (*mut u8, usize) {
        (self.0.as_ptr().cast(), self.1.get())
    }
}

impl Untouched {
    pub(crate) fn map(bytes: usize) -> Self {
        let bytes = NonZeroUsize::new(bytes).unwrap();
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: no address is asked for, so nothing that is mapped can be replaced.
        Self(unsafe { mmap_anonymous(None, bytes, protection, flags) }.unwrap(), bytes)
    }

    /// Bytes of it that are present, as the kernel says.
    pub(crate) fn present(&self) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", self.0.as_ptr() as usize);
        let own = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let present = own.skip(1).find_map(|line| line.strip_prefix("Rss:")).unwrap();
        present.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and referred to by nothing any more.
        unsafe { munmap(self.0, self.1.get()) }.unwrap();
    }
}

/// How long another process may take for an answer: a hang is a failure, and a busy machine is none.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of a first line: names of some allocations.
const LINE_MAX: usize = 16 << 10;

/// Sends a line, and descriptors with it.
pub(crate) fn send(to: &UnixStream, line: &str, descriptors: &[OwnedFd]) {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let line = format!("{line}\n");
    assert!(line.len() <= LINE_MAX);
    let parts = [IoSlice::new(line.as_bytes())];
    let sent = sendmsg::<()>(to.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None);
    assert_eq!(sent.unwrap(), line.len());
}

/// What [`send`] sent.
pub(crate) fn receive(from: &UnixStream) -> (String, Vec<OwnedFd>) {
    let (mut line, mut room) = (vec![0; LINE_MAX], nix::cmsg_space!([i32; 32]));
    let mut parts = [IoSliceMut::new(&mut line)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut room), flags).unwrap();
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just opened them for us.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let bytes = message.bytes;
    (String::from_utf8(line[..bytes].to_vec()).unwrap().trim().to_owned(), descriptors)
}

/// One side's things: host memory, a slab of the same size, a stream and the kernels.
pub(crate) struct Side {
    pub(crate) device: Device,
    pub(crate) kernels: Arc<Kernels>,
    pub(crate) stream: Arc<CopyStream>,
    pub(crate) bytes: Arc<Bytes>,
    pub(crate) host: Arc<PinnedRegion>,
    pub(crate) slab: Arc<LandingSlab>,
}

impl Side {
    pub(crate) fn new(bytes: usize) -> Result<Self, GpuError> {
        Self::over(Bytes::new(bytes))
    }

    /// With host memory that is there already.
    pub(crate) fn over(memory: Arc<Bytes>) -> Result<Self, GpuError> {
        let (device, bytes) = (device()?, memory.range().1);
        Ok(Self {
            kernels: Kernels::load(&device)?,
            stream: Arc::new(CopyStream::create(&device, 0)?),
            host: Arc::new(PinnedRegion::register(&device, Arc::clone(&memory) as _)?),
            slab: Arc::new(LandingSlab::create(&device, bytes)?),
            bytes: memory,
            device,
        })
    }

    /// Begins to load a chunk that lies at `at`, on a stream of its own, once the engine's event was reached.
    pub(crate) fn load_after(
        &self,
        written: EventHandle,
        kv: &Arc<ImportedKv>,
        (at, bytes): (usize, &[u8]),
        blocks: (&[u32], u32),
    ) -> Ticket {
        self.bytes.write(at, bytes);
        let stream = Arc::new(CopyStream::create(&self.device, 0).unwrap());
        stream.wait_for(&Event::open(&self.device, written).unwrap()).unwrap();
        Ticket::load(&self.kernels, &stream, (&self.host, at), (&self.slab, at), kv, blocks).unwrap()
    }
}
