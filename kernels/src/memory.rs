//! Memory on both sides that is ours: pinned host memory, and the slab on the device.

#![expect(unsafe_code, reason = "calls the driver with memory that it owns, or whose owner it keeps")]

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use cudarc::driver::sys::{CUdeviceptr, CUipcMemHandle};
use rustix::mm::{Advice, madvise};

use crate::device::Device;
use crate::error::GpuError;
use crate::imported::{KvHandle, KvPart, KvPieces};
use crate::virtual_memory::Mapped;

/// Bytes registered by one call: the driver's time for a call grows with it, and other calls wait.
const REGISTER_BYTES_MAX: usize = 64 << 30;
/// Threads that make pages present: clearing pages is bound by memory, which some threads fill.
const TOUCH_THREADS_MAX: usize = 16;
/// Bytes for which a thread is worth starting.
const TOUCH_BYTES_MIN: usize = 4 << 20;
/// `CU_MEMHOSTREGISTER_PORTABLE`: pinned for all contexts of the process.
const PORTABLE: u32 = 1;

/// Host memory that a device may copy from and to.
///
/// # Safety
/// The range is mapped as long as the value lives, and no Rust reference to its bytes is used while a copy writes
/// them, but to atomics.
pub unsafe trait HostMemory: Send + Sync {
    /// Where it begins and how many bytes it has.
    fn range(&self) -> (*mut u8, usize);
}

/// Host memory of its own, written and read byte for byte: for what is tested or small. A node has its slab.
///
/// It shares no page with anything else: pages are what a driver pins, and no page twice.
#[derive(Debug)]
pub struct HostBytes {
    bytes: Box<[AtomicU8]>,
    /// Where the first of our pages begins in `bytes`.
    first: usize,
    length: usize,
}

// SAFETY: a box stays where it is, and its bytes are atomics.
unsafe impl HostMemory for HostBytes {
    fn range(&self) -> (*mut u8, usize) {
        let own = self.own();
        (own.as_ptr().cast_mut().cast(), own.len())
    }
}

impl HostBytes {
    /// That many zeroes.
    pub fn new(bytes: usize) -> Arc<Self> {
        let page = rustix::param::page_size();
        // Up to a page before ours, and what our last page has behind our bytes.
        let all: Box<[AtomicU8]> = (0..bytes + 2 * page).map(|_| AtomicU8::new(0)).collect();
        let first = (all.as_ptr() as usize).next_multiple_of(page) - all.as_ptr() as usize;
        Arc::new(Self { bytes: all, first, length: bytes })
    }

    fn own(&self) -> &[AtomicU8] {
        &self.bytes[self.first..self.first + self.length]
    }

    /// Writes at a place; what would be beyond the end is left out.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let places = self.own().get(at..).unwrap_or_default();
        places.iter().zip(bytes).for_each(|(to, byte)| to.store(*byte, Relaxed));
    }

    /// Reads from a place; as far as there are bytes.
    pub fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        let places = self.own().get(at..).unwrap_or_default();
        places.iter().take(bytes).map(|byte| byte.load(Relaxed)).collect()
    }
}

/// Host memory that is pinned as long as this lives: copies from and to it run on their own.
pub struct PinnedRegion {
    device: Device,
    memory: Arc<dyn HostMemory>,
    /// Where the registered pieces begin.
    pieces: Vec<usize>,
}

impl std::fmt::Debug for PinnedRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedRegion({} bytes in {} pieces)", self.bytes(), self.pieces.len())
    }
}

impl PinnedRegion {
    /// Pins `memory`, in pieces of at most 64 GiB. Its pages are made present by several threads first, since the driver
    /// would do so one by one: seconds for each 10 GiB, and with its lock held. Still a matter of seconds, so call it on
    /// a thread of its own; the memory is used as before meanwhile, only not by copies.
    ///
    /// # Errors
    /// The driver's: already pinned, or more than the system lets this process lock. Nothing stays pinned then.
    pub fn register(device: &Device, memory: Arc<dyn HostMemory>) -> Result<Self, GpuError> {
        let (start, bytes) = memory.range();
        let mut region = Self { device: device.clone(), memory, pieces: Vec::new() };
        for at in (0..bytes).step_by(REGISTER_BYTES_MAX) {
            let piece = start.wrapping_add(at);
            let length = REGISTER_BYTES_MAX.min(bytes - at);
            touch(piece as usize, length);
            // SAFETY: inside the memory, which `region` keeps mapped until it is unregistered.
            unsafe { device.calls()?.cuMemHostRegister_v2(piece.cast::<c_void>(), length, PORTABLE) }?;
            region.pieces.push(piece as usize);
        }
        Ok(region)
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.memory.range().1
    }

    pub(crate) fn address(&self) -> usize {
        self.memory.range().0 as usize
    }
}

/// Makes pages present, changing no byte. What fails is left to the driver, which does the same or says why not.
fn touch(start: usize, bytes: usize) {
    let page = rustix::param::page_size();
    // Pages that are the memory's alone.
    let (first, end) = (start.next_multiple_of(page), (start + bytes) / page * page);
    let whole = end.saturating_sub(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(TOUCH_THREADS_MAX);
    let share = whole.div_ceil(threads).next_multiple_of(page).max(TOUCH_BYTES_MIN);
    std::thread::scope(|scope| {
        for at in (first..end).step_by(share) {
            let length = share.min(end - at);
            scope.spawn(move || {
                // SAFETY: populates mapped pages as a write would and leaves their bytes as they are; the caller keeps
                // them mapped. A kernel before 5.14 refuses.
                let _ = unsafe { madvise(at as *mut c_void, length, Advice::LinuxPopulateWrite) };
            });
        }
    });
}

impl Drop for PinnedRegion {
    fn drop(&mut self) {
        for piece in &self.pieces {
            // SAFETY: registered above; tickets keep the region while a copy uses it.
            let unregistered = self
                .device
                .calls()
                .and_then(|calls| unsafe { calls.cuMemHostUnregister(*piece as *mut c_void) });
            if unregistered.is_err() {
                // Still pinned for all we know, so it must stay mapped.
                std::mem::forget(Arc::clone(&self.memory));
            }
        }
    }
}

/// Memory on the device that is ours.
#[derive(Debug)]
pub struct LandingSlab {
    device: Device,
    memory: Memory,
    bytes: usize,
}

#[derive(Debug)]
enum Memory {
    Plain(CUdeviceptr),
    Mapped(Mapped),
}

impl LandingSlab {
    /// Allocates it in one piece, plainly and not from a pool, since only such memory can be opened by another process.
    ///
    /// # Errors
    /// The driver's: too little memory is free.
    pub fn create(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        let mut at = 0;
        // SAFETY: writes one address, which is freed with `self`.
        unsafe { device.calls()?.cuMemAlloc_v2(&mut at, bytes) }?;
        Ok(Self { device: device.clone(), memory: Memory::Plain(at), bytes })
    }

    /// Maps it from pieces of `piece_bytes` (rounded up to what the device can give), which can be handed to another
    /// process by descriptors.
    ///
    /// # Errors
    /// The driver's: too little memory is free.
    pub fn map(device: &Device, bytes: usize, piece_bytes: usize) -> Result<Self, GpuError> {
        let mapped = Mapped::create(device, bytes, piece_bytes)?;
        Ok(Self { device: device.clone(), memory: Memory::Mapped(mapped), bytes })
    }

    /// Its name for another process, which then reads and writes it as it likes.
    ///
    /// # Errors
    /// The driver's.
    pub fn export(&self) -> Result<KvPart, GpuError> {
        let (offset, bytes) = (0, self.bytes as u64);
        match &self.memory {
            Memory::Plain(at) => {
                let mut handle = CUipcMemHandle { reserved: [0; 64] };
                // SAFETY: writes one handle; the memory is ours.
                unsafe { self.device.calls()?.cuIpcGetMemHandle(&mut handle, *at) }?;
                let handle = handle.reserved.map(|byte| byte as u8);
                Ok(KvHandle { handle, offset, bytes }.into())
            }
            Memory::Mapped(mapped) => Ok(KvPieces { pieces: mapped.export()?, offset, bytes }.into()),
        }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> u64 {
        match &self.memory {
            Memory::Plain(at) => *at,
            Memory::Mapped(mapped) => mapped.address(),
        }
    }
}

impl Drop for LandingSlab {
    fn drop(&mut self) {
        if let Memory::Plain(at) = self.memory {
            // SAFETY: ours; tickets keep it while work uses it. A failure leaves it to the end of the process.
            let _ = self.device.calls().and_then(|calls| unsafe { calls.cuMemFree_v2(at) });
        }
    }
}

/// Refuses a range that is not inside a buffer.
pub(crate) fn within(call: &'static str, at: usize, bytes: usize, size: usize) -> Result<(), GpuError> {
    match at.checked_add(bytes) {
        Some(end) if end <= size => Ok(()),
        _ => Err(GpuError::refused(call, format!("{bytes} bytes at {at} of a buffer of {size}"))),
    }
}
