//! Memory shared with engines: memfds that are mapped here, sealed, and passed on as descriptors.
//!
//! One of the two files of this package with `unsafe` in them (the other side of the boundary is another process, which
//! no borrow can describe). What keeps it sound: every access is bounds-checked here; the mapping lives as long as its
//! [`SharedMemory`]; the file can neither shrink nor grow (sealed), so no access can fault; and bytes that other
//! processes may write are never borrowed, only copied out.

#![expect(unsafe_code, reason = "maps memory that other processes map too; see the module's documentation")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use larder_kernels::HostMemory;
use larder_protocol::Checksum;
use larder_protocol::checksum::{ChunkHasher, PIECE_BYTES};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, munlock, munmap};
use nix::unistd::ftruncate;

/// Memory of a multiple of this many bytes may lie in reserved huge pages: whatever size these have on x86-64 by default,
/// 2 MiB, it is whole ones, and an extent of the slab is.
const HUGE_BYTES_MAX: u64 = 64 << 20;

/// What other processes may do with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Map it read-only: the file is sealed against writing after this process has mapped it.
    Read,
    /// Map it writable.
    Write,
}

/// What the memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Huge pages that were reserved beforehand (hugetlbfs).
    Reserved,
    /// Small pages that the kernel made huge, most of those taken so far at least.
    Transparent,
    /// Small pages: each takes an entry of the TLB, and a fault when it is first touched.
    Small,
}

/// A memfd, mapped here readable and writable.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    reserved: bool,
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    others: Others,
}

// SAFETY: the mapping is not tied to a thread, and every method takes `&self` and says below why concurrent calls are
// sound.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes and maps `bytes` of zeroes: of reserved huge pages where enough are free, else of small ones that the kernel
    /// may make huge. Pages are taken only when they are first written.
    ///
    /// # Errors
    /// What the system said: no memory, no address space, or no memfd of this size.
    pub fn create(name: &str, bytes: u64, others: Others) -> io::Result<Self> {
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let size = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let map = |flags: MFdFlags| {
            let fd = memfd_create(name, flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
            ftruncate(&fd, size)?;
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: no address is asked for, so nothing that is mapped can be replaced.
            let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, 0) }?;
            io::Result::Ok((fd, start.cast::<u8>()))
        };
        // Mapping reserves all of the pages, or fails: none can be missing later, when it is touched.
        let reserved =
            if bytes.is_multiple_of(HUGE_BYTES_MAX) { map(MFdFlags::MFD_HUGETLB).ok() } else { None };
        let is_reserved = reserved.is_some();
        let (fd, start) = reserved.map_or_else(|| map(MFdFlags::empty()), Ok)?;
        let memory = Self { fd, reserved: is_reserved, start, bytes: length, others };
        // Only now: the seal against future writes lets this mapping be.
        let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        if others == Others::Read {
            seals |= SealFlag::F_SEAL_FUTURE_WRITE;
        }
        fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
        // SAFETY: the range is this mapping; the advice changes no contents. Where the system has no huge pages for
        // shared memory it refuses, and small ones serve.
        let _ = unsafe { madvise(memory.start.cast(), length.get(), MmapAdvise::MADV_HUGEPAGE) };
        Ok(memory)
    }

    /// What it is made of, as far as it has been touched.
    pub fn pages(&self) -> Pages {
        if self.reserved {
            return Pages::Reserved;
        }
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let begins = format!("{:x}-", self.start.addr());
        let lines = maps.lines().skip_while(|line| !line.starts_with(&begins)).skip(1);
        let huge =
            lines.take_while(|line| line.split_whitespace().next().is_some_and(|it| it.ends_with(':')));
        let huge = huge.filter_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        let huge: u64 = huge.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum();
        if huge > 0 { Pages::Transparent } else { Pages::Small }
    }

    /// Takes the pages of these bytes, which stay as they are (`MADV_POPULATE_WRITE`, Linux 5.14): whoever writes there first
    /// need not wait for them.
    ///
    /// # Errors
    /// What the system said: too old, or no memory.
    pub fn populate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let start = self.at(offset, bytes);
        // SAFETY: the range was checked; the advice takes pages and changes no contents, whoever writes there meanwhile.
        unsafe { madvise(start.cast(), bytes as usize, MmapAdvise::MADV_POPULATE_WRITE) }?;
        Ok(())
    }

    /// Locks all of it in memory and lets it go again, to see whether that is allowed.
    ///
    /// # Errors
    /// What the system said.
    pub fn lock_and_unlock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping; locking changes no contents.
        unsafe {
            mlock(self.start.cast(), self.bytes.get())?;
            munlock(self.start.cast(), self.bytes.get())?;
        }
        Ok(())
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.get() as u64
    }

    /// The address of `bytes` at `offset`.
    ///
    /// # Panics
    /// If they do not lie within the memory: offsets come from this process's own arithmetic, and going on would be
    /// worse than stopping.
    fn at(&self, offset: u64, bytes: u64) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes()), "{bytes} bytes at {offset} of {}", self.bytes());
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.start.add(offset as usize) }
    }

    /// Copies a chunk from an engine's region into this memory and returns the checksum of what was written, in one
    /// pass. The caller has the target range for itself (a slot in state `Writing` belongs to one copy), and other
    /// processes cannot write here.
    pub fn copy_in(&self, to: u64, from: &SharedMemory, offset: u64, bytes: u64) -> Checksum {
        assert_eq!(self.others, Others::Read, "only memory that others cannot write is hashed where it lies");
        let mut hasher = ChunkHasher::with_capacity(bytes as usize);
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(PIECE_BYTES as u64);
            let (source, target) = (from.at(offset + done, piece), self.at(to + done, piece));
            // SAFETY: both ranges were checked and lie in different mappings. The engine may be writing the source
            // (it should not, between commit and committed): then the copy has a mixture of old and new bytes, which
            // the checksum, made of the copy, describes as it is.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), piece as usize) };
            // SAFETY: the target was written above and is this call's alone until it returns.
            hasher.piece(unsafe { std::slice::from_raw_parts(target.as_ptr(), piece as usize) });
            done += piece;
        }
        hasher.finish()
    }

    /// The checksum of a chunk that lies whole here. Its slot is pinned, so nothing writes it (but a test's
    /// [`Self::flip`]).
    pub fn checksum(&self, offset: u64, bytes: u64) -> Checksum {
        assert_eq!(self.others, Others::Read, "only memory that others cannot write is hashed where it lies");
        let start = self.at(offset, bytes);
        // SAFETY: the range was checked, and is not written while its slot is pinned.
        larder_protocol::chunk_checksum(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes as usize) })
    }

    /// Hands out bytes that nobody writes meanwhile: of slots that are pinned.
    pub fn with_bytes<T>(&self, ranges: &[(u64, u64)], use_bytes: impl FnOnce(&[&[u8]]) -> T) -> T {
        assert_eq!(self.others, Others::Read, "only memory that others cannot write is borrowed");
        let slice = |(offset, bytes): &(u64, u64)| {
            let start = self.at(*offset, *bytes);
            // SAFETY: the range was checked, and is not written while its slot is pinned.
            unsafe { std::slice::from_raw_parts(start.as_ptr(), *bytes as usize) }
        };
        let slices: Vec<&[u8]> = ranges.iter().map(slice).collect();
        use_bytes(&slices)
    }

    /// Hands out bytes to be filled. The caller has these ranges for itself (slots in state `Writing` belong to one copy),
    /// and other processes cannot write here.
    ///
    /// # Panics
    /// If two of them overlap.
    pub fn fill<T>(&self, ranges: &[(u64, u64)], fill: impl FnOnce(Vec<&mut [u8]>) -> T) -> T {
        assert_eq!(self.others, Others::Read, "only memory that others cannot write is borrowed");
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let apart = sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(apart, "slots do not overlap");
        let slice = |(offset, bytes): &(u64, u64)| {
            let start = self.at(*offset, *bytes);
            // SAFETY: the range was checked, is apart from the others, and is this call's alone until it returns.
            unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *bytes as usize) }
        };
        fill(ranges.iter().map(slice).collect())
    }

    /// Flips one bit, for tests of what checksums are for.
    pub fn flip(&self, offset: u64, bit: u8) {
        let byte = self.at(offset, 1);
        // SAFETY: within the mapping, and one byte is always aligned.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.fetch_xor(1 << (bit % 8), Ordering::SeqCst);
    }

    /// Sets the `index`th u64, in native byte order, before anything that this thread writes later.
    pub fn set(&self, index: u64, value: u64) {
        let cell = self.at(index * 8, 8).cast::<u64>();
        // SAFETY: within the mapping, which begins at a page, so index * 8 is aligned; other processes only read it.
        unsafe { AtomicU64::from_ptr(cell.as_ptr()) }.store(value, Ordering::Release);
        // A reader that sees bytes written after this must see the value: seqlocks need the store ordered before
        // later writes, which `Release` alone does not do.
        fence(Ordering::SeqCst);
    }
}

// SAFETY: mapped as long as the value lives, and sealed against shrinking. Copies of a GPU write only to regions, whose
// bytes are never borrowed; slots of the slab they only read, while leases pin these.
unsafe impl HostMemory for SharedMemory {
    fn range(&self) -> (*mut u8, usize) {
        (self.start.as_ptr(), self.bytes.get())
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `create` and nothing borrows from it beyond its methods. Other processes'
        // mappings are their own.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests;
