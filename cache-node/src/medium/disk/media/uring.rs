//! Segments as files, many reads and writes handed over at once through io_uring
//! (<https://man7.org/linux/man-pages/man7/io_uring.7.html>).
//!
//! One of the files of this package with `unsafe` in them: the kernel reads and writes buffers after the call that named
//! them has returned. What keeps it sound: [`run`] does not return, nor unwind, before every buffer it has handed over was
//! given back; nothing it calls in between can panic.

#![expect(unsafe_code, reason = "hands buffers to the kernel; see the module's documentation")]

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::files::Handles;
use super::{Files, Media, Read, Write};

/// Reads or writes under way in one call: enough to keep an NVMe drive busy with chunks of some hundred KiB.
const DEPTH: usize = 32;

/// Files, with an io_uring for what is moved in bulk; all else goes by plain calls.
pub struct Uring {
    files: Files,
    /// Rings nobody uses now: as many as threads have called at one time.
    rings: Mutex<Vec<IoUring>>,
}

impl Uring {
    /// Moves the bulk of these files through io_uring.
    ///
    /// # Errors
    /// What the system said to that: too old, or forbidden.
    pub fn over(files: Files) -> io::Result<Self> {
        Ok(Self { files, rings: Mutex::new(vec![IoUring::new(DEPTH as u32)?]) })
    }

    /// Whether the system allows it.
    ///
    /// # Errors
    /// What the system said: too old, or forbidden.
    pub fn allowed() -> io::Result<()> {
        IoUring::new(DEPTH as u32).map(drop)
    }

    /// Runs operations, at most [`DEPTH`]. Each one's result is what the kernel said; none if it was never asked.
    fn run(&self, entries: &[squeue::Entry]) -> Vec<Option<i32>> {
        let lock = || self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let Some(mut ring) = spare.or_else(|| IoUring::new(DEPTH as u32).ok()) else {
            return vec![None; entries.len()];
        };
        let (results, whole) = run(&mut ring, entries);
        if whole {
            lock().push(ring);
        }
        results
    }

    /// Runs operations of so many bytes each. What was not done in one piece has to be done again by plain calls.
    fn run_whole(&self, entries: Vec<Option<squeue::Entry>>, bytes: &[usize]) -> Vec<bool> {
        let given: Vec<usize> = (0..entries.len()).filter(|index| entries[*index].is_some()).collect();
        let entries: Vec<squeue::Entry> = entries.into_iter().flatten().collect();
        let mut whole = vec![false; bytes.len()];
        for (indexes, entries) in given.chunks(DEPTH).zip(entries.chunks(DEPTH)) {
            for (index, result) in indexes.iter().zip(self.run(entries)) {
                whole[*index] = result.is_some_and(|count| usize::try_from(count) == Ok(bytes[*index]));
            }
        }
        whole
    }
}

/// Runs operations and waits for all of them. False if the ring must not be used again.
fn run(ring: &mut IoUring, entries: &[squeue::Entry]) -> (Vec<Option<i32>>, bool) {
    let mut results = vec![None; entries.len()];
    let mut pushed = 0;
    for (entry, index) in entries.iter().zip(0_u64..) {
        // SAFETY: what the entry points to is borrowed by the caller, and this function returns only when the kernel has
        // answered it (or has never been given it, below).
        let full = unsafe { ring.submission().push(&entry.clone().user_data(index)) }.is_err();
        if full {
            break;
        }
        pushed += 1;
    }
    let (mut answered, mut failed) = (0, false);
    loop {
        let not_given = ring.submission().len();
        // What was pushed and not taken by the kernel is never touched by it; after a failure it stays so.
        if answered == pushed || (failed && answered + not_given == pushed) {
            break;
        }
        let wanted = if failed { 1 } else { pushed - answered };
        let entered =
            if failed { ring.submitter().enter_getting_events() } else { ring.submit_and_wait(wanted) };
        if let Err(error) = entered {
            let again = matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
            );
            failed |= !again;
            std::thread::yield_now();
        }
        for answer in ring.completion() {
            answered += 1;
            if let Some(result) = results.get_mut(answer.user_data() as usize) {
                *result = Some(answer.result());
            }
        }
    }
    (results, !failed)
}

trait EnterGettingEvents {
    /// Lets the kernel post what is done, without giving it anything.
    fn enter_getting_events(&self) -> io::Result<usize>;
}

impl EnterGettingEvents for io_uring::Submitter<'_> {
    fn enter_getting_events(&self) -> io::Result<usize> {
        // SAFETY: submits nothing and waits for nothing.
        unsafe { self.enter::<()>(0, 0, 1, None) }
    }
}

impl Media for Uring {
    fn create(&self, segment: u64) -> io::Result<()> {
        self.files.create(segment)
    }

    fn write(&self, segment: u64, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.files.write(segment, offset, parts)
    }

    fn read(&self, segment: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.files.read(segment, offset, bytes)
    }

    fn write_many(&self, writes: &[Write<'_>]) -> Vec<io::Result<()>> {
        let handles: Vec<Option<Arc<Handles>>> =
            writes.iter().map(|write| self.files.handles(write.segment).ok()).collect();
        // An `IoSlice` has the form of an iovec; these live until all is done.
        let slices: Vec<[IoSlice<'_>; 2]> =
            writes.iter().map(|write| write.parts.map(IoSlice::new)).collect();
        let entry = |index: usize| {
            let Write { offset, parts, .. } = &writes[index];
            let places = parts.map(|part| (part.as_ptr(), part.len()));
            let file = handles[index].as_ref()?.for_bytes(*offset, &places).as_raw_fd();
            let slices = slices[index].as_ptr().cast();
            Some(opcode::Writev::new(Fd(file), slices, 2).offset(*offset).build())
        };
        let bytes: Vec<usize> =
            writes.iter().map(|write| write.parts.iter().map(|part| part.len()).sum()).collect();
        let whole = self.run_whole((0..writes.len()).map(entry).collect(), &bytes);
        let again = |(write, whole): (&Write<'_>, bool)| match whole {
            true => Ok(()),
            false => self.files.write(write.segment, write.offset, &write.parts),
        };
        writes.iter().zip(whole).map(again).collect()
    }

    fn read_many(&self, reads: &mut [Read<'_>]) -> Vec<io::Result<()>> {
        let handles: Vec<Option<Arc<Handles>>> =
            reads.iter().map(|read| self.files.handles(read.segment).ok()).collect();
        let entry = |(read, handles): (&mut Read<'_>, &Option<Arc<Handles>>)| {
            let (start, length) = (read.bytes.as_mut_ptr(), read.bytes.len());
            let file = handles.as_ref()?.for_bytes(read.offset, &[(start.cast_const(), length)]).as_raw_fd();
            let length = u32::try_from(length).ok()?;
            Some(opcode::Read::new(Fd(file), start, length).offset(read.offset).build())
        };
        let entries = reads.iter_mut().zip(&handles).map(entry).collect();
        let bytes: Vec<usize> = reads.iter().map(|read| read.bytes.len()).collect();
        let whole = self.run_whole(entries, &bytes);
        let again = |(read, whole): (&mut Read<'_>, bool)| match whole {
            true => Ok(()),
            false => self.files.read(read.segment, read.offset, read.bytes),
        };
        reads.iter_mut().zip(whole).map(again).collect()
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        self.files.length(segment)
    }

    fn truncate(&self, segment: u64, length: u64) -> io::Result<()> {
        self.files.truncate(segment, length)
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        self.files.sync(segment)
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        self.files.remove(segment)
    }

    fn segments(&self) -> io::Result<Vec<u64>> {
        self.files.segments()
    }
}
