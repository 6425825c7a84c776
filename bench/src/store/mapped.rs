//! Memory that a node has handed to its engines, mapped as an engine would.
//!
//! The one file of this package with `unsafe` in it. What keeps it sound: every access is checked against the mapping's
//! length; the node has sealed its size; and no borrow of its bytes is ever given out, they are only copied.

#![expect(unsafe_code, reason = "maps memory that a node shares; see the module's documentation")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// A mapping of a node's memory.
#[derive(Debug)]
pub(super) struct Mapped {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    writable: bool,
}

// SAFETY: the mapping is not tied to a thread, and bytes are only copied.
unsafe impl Send for Mapped {}

/// Takes a descriptor that was just received over a socket.
pub(super) fn received(raw: RawFd) -> OwnedFd {
    // SAFETY: recvmsg has just installed it here, open and owned by nobody.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

impl Mapped {
    /// Maps all of a descriptor's memory.
    pub(super) fn new(fd: OwnedFd, writable: bool) -> io::Result<Self> {
        let length = std::fs::File::from(fd.try_clone()?).metadata()?.len();
        let bytes =
            usize::try_from(length).ok().and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let mut protection = ProtFlags::PROT_READ;
        if writable {
            protection |= ProtFlags::PROT_WRITE;
        }
        // SAFETY: no address is asked for, so nothing that is mapped can be replaced.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &fd, 0) }?.cast();
        // An engine pins what it maps for its GPU, which takes the pages once. Where the system is too old for the advice,
        // the first pass takes them.
        let advice = if writable { MmapAdvise::MADV_POPULATE_WRITE } else { MmapAdvise::MADV_POPULATE_READ };
        // SAFETY: the range is this mapping; the advice changes no contents.
        let _ = unsafe { madvise(start.cast(), bytes.get(), advice) };
        Ok(Self { start, bytes, writable })
    }

    fn at(&self, offset: u64, bytes: usize) -> NonNull<u8> {
        let end = (offset as usize).checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes.get()), "{bytes} bytes at {offset} lie outside");
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.start.add(offset as usize) }
    }

    /// Copies into it.
    pub(super) fn write(&self, offset: u64, from: &[u8]) {
        assert!(self.writable, "only a region is written to");
        let target = self.at(offset, from.len());
        // SAFETY: both ranges are whole, and a mapping of another process's memory is no slice of this one's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), target.as_ptr(), from.len()) };
    }

    /// Copies out of it.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        let source = self.at(offset, to.len());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), to.as_mut_ptr(), to.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrows from it.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}
