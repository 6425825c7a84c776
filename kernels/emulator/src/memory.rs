//! Device memory: memfds that are mapped here and, by their descriptors, in the processes that open their handles.
//!
//! A device pointer is the address of the mapping, so kernels can follow tables of pointers. Every access is held
//! against the live allocations; new memory is filled with [`POISON`], so that a copy that did not happen shows.

#![expect(
    unsafe_code,
    reason = "maps memory that other processes map too, and copies from addresses a caller gave"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

use crate::code::{Answer, INVALID_VALUE, OUT_OF_MEMORY};
use crate::ptx::run::Memory;

/// What new memory holds.
pub const POISON: u8 = 0xdb;

/// A mapped memfd.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    fd: OwnedFd,
}

// SAFETY: the mapping belongs to no thread; who accesses it orders the accesses by streams, as on a device.
unsafe impl Send for Mapping {}
// SAFETY: as above; accesses copy bytes and never make a reference to them.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn create(bytes: usize) -> Answer<Self> {
        let fd = memfd_create("larder-emulator", MFdFlags::MFD_CLOEXEC).map_err(|_| OUT_OF_MEMORY)?;
        ftruncate(&fd, i64::try_from(bytes).map_err(|_| OUT_OF_MEMORY)?).map_err(|_| OUT_OF_MEMORY)?;
        Self::map(fd, bytes)
    }

    /// Maps what another process made.
    pub(crate) fn open(pid: u32, fd: i32, bytes: usize) -> Answer<Self> {
        let file = File::options().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}"));
        let file = file.map_err(|_| INVALID_VALUE)?;
        let length = file.metadata().map_err(|_| INVALID_VALUE)?.len();
        if length != bytes as u64 {
            return Err(INVALID_VALUE);
        }
        Self::map(file.into(), bytes)
    }

    fn map(fd: OwnedFd, bytes: usize) -> Answer<Self> {
        let bytes = NonZeroUsize::new(bytes).ok_or(INVALID_VALUE)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that is mapped can be replaced.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &fd, 0) };
        Ok(Self { start: start.map_err(|_| OUT_OF_MEMORY)?.cast(), bytes, fd })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    pub(crate) fn descriptor(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The counter at a place of a page of counters.
    pub(crate) fn counter(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        assert!((index + 1) * 8 <= self.bytes(), "a counter inside the mapping");
        // SAFETY: in bounds (above), aligned (a mapping begins at a page), valid as long as the mapping; all
        // processes access it as an atomic only.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.start.as_ptr().cast::<u64>().add(index)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `map` and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// A piece of device memory.
pub(crate) struct Allocation {
    pub(crate) mapping: Mapping,
    /// Of another process.
    pub(crate) imported: bool,
}

/// All device memory that this process can reach, by address.
#[derive(Default)]
pub(crate) struct Device {
    allocations: BTreeMap<u64, Allocation>,
}

impl Device {
    pub(crate) fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        let mapping = Mapping::create(bytes)?;
        // SAFETY: the whole of a mapping that nothing else knows yet.
        unsafe { std::ptr::write_bytes(mapping.start.as_ptr(), POISON, bytes) };
        Ok(self.add(mapping, false))
    }

    pub(crate) fn add(&mut self, mapping: Mapping, imported: bool) -> u64 {
        let at = mapping.address();
        self.allocations.insert(at, Allocation { mapping, imported });
        at
    }

    /// Forgets and unmaps an allocation that begins at `at`.
    pub(crate) fn remove(&mut self, at: u64, imported: bool) -> Answer {
        match self.allocations.get(&at) {
            Some(allocation) if allocation.imported == imported => {
                self.allocations.remove(&at);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }

    /// The allocation in which `bytes` from `at` lie.
    pub(crate) fn find(&self, at: u64, bytes: usize) -> Option<&Allocation> {
        let (base, allocation) = self.allocations.range(..=at).next_back()?;
        let end = (at - base).checked_add(bytes as u64)?;
        (end <= allocation.mapping.bytes() as u64).then_some(allocation)
    }

    /// How many allocations there are: a test asks whether any was left.
    pub(crate) fn len(&self) -> usize {
        self.allocations.len()
    }

    /// Copies between any two addresses; which of them are device memory was checked when the copy was asked for, and
    /// is again here, since it may have been freed.
    pub(crate) fn copy(
        &self,
        to: u64,
        from: u64,
        bytes: usize,
        to_device: bool,
        from_device: bool,
    ) -> Answer {
        if (to_device && self.find(to, bytes).is_none()) || (from_device && self.find(from, bytes).is_none())
        {
            return Err(INVALID_VALUE);
        }
        // SAFETY: device addresses were checked just now, and stay while `self` is borrowed; for host addresses the
        // caller of the driver's function answers, as with a real driver.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
}

impl Memory for Device {
    fn load(&self, at: u64, into: &mut [u8]) -> bool {
        self.copy(into.as_mut_ptr() as u64, at, into.len(), false, true).is_ok()
    }

    fn store(&self, at: u64, bytes: &[u8]) -> bool {
        self.copy(at, bytes.as_ptr() as u64, bytes.len(), true, false).is_ok()
    }
}
