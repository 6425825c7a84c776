//! Mapped memfds, physical memory, and addresses that are only taken.

#![expect(unsafe_code, reason = "maps memory that other processes map too")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

use crate::code::{Answer, INVALID_VALUE, OUT_OF_MEMORY};

/// Bytes of a page.
const PAGE: usize = 4096;

/// What new memory holds.
pub const POISON: u8 = 0xdb;

/// What tests write: bytes that depend on their place and a seed, none of them long the same (xorshift64), and none of
/// them the poison of new memory.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let byte = (state >> 32) as u8;
        if byte == POISON { 0 } else { byte }
    };
    (0..bytes).map(|_| next()).collect()
}

/// A mapped memfd, or addresses that are only taken.
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

    /// Puts a memfd in the place of memory of this process, whole pages of it, with what they hold.
    ///
    /// # Safety
    /// The pages are mapped readable and writable, nobody writes there meanwhile, and nobody needs them after this is
    /// dropped.
    pub(super) unsafe fn adopt(at: usize, bytes: usize) -> Answer<Self> {
        let start = at / PAGE * PAGE;
        let length = at.checked_add(bytes).ok_or(INVALID_VALUE)?.next_multiple_of(PAGE) - start;
        let (place, bytes) =
            (NonZeroUsize::new(start).ok_or(INVALID_VALUE)?, NonZeroUsize::new(length).ok_or(INVALID_VALUE)?);
        let fd = memfd_create("larder-emulator-adopted", MFdFlags::MFD_CLOEXEC).map_err(|_| OUT_OF_MEMORY)?;
        let file = File::from(fd);
        file.set_len(length as u64).map_err(|_| OUT_OF_MEMORY)?;
        for page in (0..length).step_by(PAGE) {
            // SAFETY: the caller's promise: these pages are readable, and nobody writes there.
            let held = unsafe { std::slice::from_raw_parts((start + page) as *const u8, PAGE) };
            // A large cache is empty at first, and stays without memory.
            if held.iter().any(|byte| *byte != 0) {
                file.write_all_at(held, page as u64).map_err(|_| OUT_OF_MEMORY)?;
            }
        }
        let fd = OwnedFd::from(file);
        let (protection, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED);
        // SAFETY: replaces pages by ones with the same bytes, of which the caller promised that they may be.
        let found = unsafe { mmap(Some(place), bytes, protection, flags, &fd, 0) };
        Ok(Self { start: found.map_err(|_| OUT_OF_MEMORY)?.cast(), bytes, fd })
    }

    fn map(fd: OwnedFd, bytes: usize) -> Answer<Self> {
        let bytes = NonZeroUsize::new(bytes).ok_or(INVALID_VALUE)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that is mapped can be replaced.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &fd, 0) };
        Ok(Self { start: start.map_err(|_| OUT_OF_MEMORY)?.cast(), bytes, fd })
    }

    /// Addresses that reach nothing.
    pub(super) fn reserve(bytes: usize) -> Answer<Self> {
        let fd =
            memfd_create("larder-emulator-reserved", MFdFlags::MFD_CLOEXEC).map_err(|_| OUT_OF_MEMORY)?;
        let bytes = NonZeroUsize::new(bytes).ok_or(INVALID_VALUE)?;
        // SAFETY: as in `map`.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_SHARED, &fd, 0) };
        Ok(Self { start: start.map_err(|_| OUT_OF_MEMORY)?.cast(), bytes, fd })
    }

    /// Puts memory into a part of reserved addresses; None: nothing, as before.
    pub(super) fn place(&self, at: usize, bytes: usize, memory: Option<&OwnedFd>) -> Answer {
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes()), "a part of the reservation");
        let (fd, protection) = match memory {
            Some(fd) => (fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE),
            None => (&self.fd, ProtFlags::PROT_NONE),
        };
        let bytes = NonZeroUsize::new(bytes).ok_or(INVALID_VALUE)?;
        let place = NonZeroUsize::new(self.start.as_ptr() as usize + at);
        // SAFETY: replaces only what lies in addresses that this reservation owns, which is reached by no reference.
        let placed =
            unsafe { mmap(place, bytes, protection, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED, fd, 0) };
        placed.map(|_| ()).map_err(|_| OUT_OF_MEMORY)
    }

    /// Fills it with [`POISON`].
    pub(super) fn poison(&self) {
        // SAFETY: the whole of the mapping, which nothing else knows yet.
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), POISON, self.bytes.get()) };
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

/// Bytes of which the sizes of physical memory are multiples: 2 MiB, as on every device so far.
pub(crate) const GRANULARITY: usize = 2 << 20;

/// Physical memory without an address (`cuMemCreate`), here or, by its descriptor, in other processes too.
pub(crate) struct Physical {
    pub(crate) fd: OwnedFd,
    pub(crate) bytes: usize,
    /// May be given to other processes as a descriptor.
    pub(crate) exportable: bool,
}

impl Physical {
    pub(crate) fn create(bytes: usize, exportable: bool) -> Answer<Self> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        // Poisoned through a mapping that is gone again; the bytes are the file's.
        let mapping = Mapping::create(bytes)?;
        mapping.poison();
        let fd = mapping.fd.try_clone().map_err(|_| OUT_OF_MEMORY)?;
        Ok(Self { fd, bytes, exportable })
    }

    /// What a descriptor of another process, or of this one, names.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> Answer<Self> {
        let file = File::from(fd.try_clone_to_owned().map_err(|_| INVALID_VALUE)?);
        let bytes = file.metadata().map_err(|_| INVALID_VALUE)?.len() as usize;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        Ok(Self { fd: file.into(), bytes, exportable: true })
    }
}
