//! Segments as files, many reads and writes handed over at once through io_uring
//! (<https://man7.org/linux/man-pages/man7/io_uring.7.html>).
//!
//! One of the files of this package with `unsafe` in them: the kernel reads and writes buffers after the call that named
//! them has returned. What keeps it sound: a [`Flight`] is not gone, by unwinding neither, before every buffer that was
//! handed over through it was given back.

#![expect(unsafe_code, reason = "hands buffers to the kernel; see the module's documentation")]

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::files::Handles;
use super::{Files, Media, Read, ReadEnd, Write};

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

    /// A ring that nobody else uses, if one can be had.
    fn ring(&self) -> Option<IoUring> {
        let spare = self.rings.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.or_else(|| IoUring::new(DEPTH as u32).ok())
    }

    /// Gives a ring back.
    fn put_back(&self, ring: IoUring) {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
    }

    /// Does so many operations, begun in their order, none before all but the last `span` before it have ended.
    ///
    /// # Safety
    /// What the batch's entries point to must stay as it is, and nobody touch it, before the operation's end, and outlive
    /// this call.
    unsafe fn fly(&self, count: usize, span: usize, batch: &mut dyn Batch) {
        let mut ring = self.ring();
        let mut flight = ring.as_mut().map(Flight::new);
        let (mut ended, mut next) = (Ended::new(count), 0);
        while ended.first_open < count {
            if next < count && next < ended.first_open + span {
                let index = next;
                next += 1;
                let given = match batch.turn(index) {
                    Turn::Skip => true,
                    Turn::Plain => false,
                    Turn::Give(entry) => {
                        // SAFETY: the caller's promise; the flight is gone before this returns.
                        if flight.as_mut().is_some_and(|flight| unsafe { flight.push(entry, index) }) {
                            continue;
                        }
                        false
                    }
                };
                if !given {
                    batch.end(index, None);
                }
                ended.note(index);
                continue;
            }
            let under_way = flight.as_mut().and_then(|flight| (!flight.is_over()).then_some(flight));
            let answers = under_way.map(Flight::answers);
            // The ring has failed, or there is none: what it never took is done by plain calls.
            let answers = answers.map_or_else(
                || (0..next).filter(|index| !ended.ended[*index]).map(|index| (index, None)).collect(),
                |answers| answers.into_iter().map(|(index, bytes)| (index, Some(bytes))).collect::<Vec<_>>(),
            );
            for (index, bytes) in answers {
                batch.end(index, bytes);
                ended.note(index);
            }
        }
        let whole = flight.is_some_and(|flight| !flight.failed);
        ring.into_iter().filter(|_| whole).for_each(|ring| self.put_back(ring));
    }
}

/// Whether the kernel moved all bytes.
fn is_whole(moved: Option<i32>, bytes: usize) -> bool {
    moved.and_then(|moved| usize::try_from(moved).ok()) == Some(bytes)
}

/// Operations under way on one ring. Dropping it, by unwinding too, waits until the kernel has answered all of them.
struct Flight<'a> {
    ring: &'a mut IoUring,
    pushed: usize,
    answered: usize,
    /// The ring must not be used again.
    failed: bool,
}

impl<'a> Flight<'a> {
    fn new(ring: &'a mut IoUring) -> Self {
        Self { ring, pushed: 0, answered: 0, failed: false }
    }

    /// Hands an operation over. False if that cannot be done.
    ///
    /// # Safety
    /// What the entry points to must stay as it is, and nobody touch it, until it is answered or this is dropped.
    unsafe fn push(&mut self, entry: squeue::Entry, index: usize) -> bool {
        if self.failed {
            return false;
        }
        // SAFETY: the caller's promise.
        let full = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) }.is_err();
        if full {
            return false;
        }
        self.pushed += 1;
        let entered = self.ring.submit();
        self.note(entered);
        true
    }

    fn note(&mut self, entered: io::Result<usize>) {
        if let Err(error) = entered {
            let again = matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
            );
            self.failed |= !again;
            std::thread::yield_now();
        }
    }

    /// Whether nothing is under way. What was pushed and not taken by the kernel is never touched by it; after a failure it
    /// stays so.
    fn is_over(&mut self) -> bool {
        let not_given = if self.failed { self.ring.submission().len() } else { 0 };
        self.answered + not_given == self.pushed
    }

    /// Waits for an answer, and returns all there are: which operation, and what the kernel said.
    fn answers(&mut self) -> Vec<(usize, i32)> {
        let entered = if self.failed {
            self.ring.submitter().enter_getting_events()
        } else {
            self.ring.submit_and_wait(1)
        };
        self.note(entered);
        let answers: Vec<(usize, i32)> =
            self.ring.completion().map(|answer| (answer.user_data() as usize, answer.result())).collect();
        self.answered += answers.len();
        answers
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        while !self.is_over() {
            self.answers();
        }
    }
}

/// Which of so many operations have ended, and how far the first that has not.
struct Ended {
    ended: Vec<bool>,
    first_open: usize,
}

impl Ended {
    fn new(count: usize) -> Self {
        Self { ended: vec![false; count], first_open: 0 }
    }

    fn note(&mut self, index: usize) {
        self.ended[index] = true;
        let open = self.ended[self.first_open..].iter().position(|ended| !ended);
        self.first_open = open.map_or(self.ended.len(), |more| self.first_open + more);
    }
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

/// What becomes of an operation whose turn it is.
enum Turn {
    /// The ring has it.
    Give(squeue::Entry),
    /// It ends by plain calls.
    Plain,
    /// Nobody wants it; it has no end.
    Skip,
}

/// Operations of one call.
trait Batch {
    /// It is the turn of one.
    fn turn(&mut self, index: usize) -> Turn;

    /// One is over: how many bytes the kernel says that it moved; none if it never had it. What it did not move in one
    /// piece is done again by plain calls.
    fn end(&mut self, index: usize, bytes: Option<i32>);
}

/// Several writes. An `IoSlice` has the form of an iovec.
struct Writing<'a, 'b> {
    files: &'a Files,
    writes: &'a [Write<'b>],
    slices: Vec<[IoSlice<'a>; 2]>,
    /// Keeps files open until all is done.
    open: Vec<Arc<Handles>>,
    begin: &'a mut dyn FnMut(usize) -> bool,
    end: &'a mut dyn FnMut(usize, io::Result<()>),
}

impl Batch for Writing<'_, '_> {
    fn turn(&mut self, index: usize) -> Turn {
        if !(self.begin)(index) {
            return Turn::Skip;
        }
        let Write { segment, offset, parts } = &self.writes[index];
        let Ok(handles) = self.files.handles(*segment) else { return Turn::Plain };
        let places = parts.map(|part| (part.as_ptr(), part.len()));
        let file = Fd(handles.for_bytes(*offset, &places).as_raw_fd());
        self.open.push(handles);
        Turn::Give(opcode::Writev::new(file, self.slices[index].as_ptr().cast(), 2).offset(*offset).build())
    }

    fn end(&mut self, index: usize, bytes: Option<i32>) {
        let Write { segment, offset, parts } = &self.writes[index];
        let all = parts.iter().map(|part| part.len()).sum();
        let result = if is_whole(bytes, all) { Ok(()) } else { self.files.write(*segment, *offset, parts) };
        (self.end)(index, result);
    }
}

/// Several reads.
struct Reading<'a, 'b> {
    files: &'a Files,
    reads: &'a mut [Read<'b>],
    /// Keeps files open until all is done.
    open: Vec<Arc<Handles>>,
    end: &'a mut ReadEnd<'a>,
}

impl Batch for Reading<'_, '_> {
    fn turn(&mut self, index: usize) -> Turn {
        let Read { segment, offset, bytes } = &mut self.reads[index];
        let (start, length) = (bytes.as_mut_ptr(), bytes.len());
        let (Ok(handles), Ok(count)) = (self.files.handles(*segment), u32::try_from(length)) else {
            return Turn::Plain;
        };
        let file = Fd(handles.for_bytes(*offset, &[(start.cast_const(), length)]).as_raw_fd());
        self.open.push(handles);
        Turn::Give(opcode::Read::new(file, start, count).offset(*offset).build())
    }

    fn end(&mut self, index: usize, bytes: Option<i32>) {
        let read = &mut self.reads[index];
        let whole = is_whole(bytes, read.bytes.len());
        let result = if whole { Ok(()) } else { self.files.read(read.segment, read.offset, read.bytes) };
        (self.end)(index, read.bytes, result);
    }
}

impl Media for Uring {
    fn create(&self, segment: u64) -> io::Result<()> {
        self.files.create(segment)
    }

    fn reserve(&self, segment: u64, bytes: u64) -> io::Result<()> {
        self.files.reserve(segment, bytes)
    }

    fn write(&self, segment: u64, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.files.write(segment, offset, parts)
    }

    fn read(&self, segment: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.files.read(segment, offset, bytes)
    }

    fn write_many(
        &self,
        writes: &[Write<'_>],
        span: usize,
        begin: &mut dyn FnMut(usize) -> bool,
        end: &mut dyn FnMut(usize, io::Result<()>),
    ) {
        let slices = writes.iter().map(|write| write.parts.map(IoSlice::new)).collect();
        let open = Vec::with_capacity(writes.len());
        let mut writing = Writing { files: &self.files, writes, slices, open, begin, end };
        // SAFETY: the parts are borrowed for the whole call, and only read; the slices are moved with their vector alone.
        unsafe { self.fly(writes.len(), span.clamp(1, DEPTH), &mut writing) };
    }

    fn read_many(&self, reads: &mut [Read<'_>], end: &mut ReadEnd<'_>) {
        let count = reads.len();
        let mut reading = Reading { files: &self.files, reads, open: Vec::with_capacity(count), end };
        // SAFETY: the bytes are borrowed for the whole call, and touched at their end only.
        unsafe { self.fly(count, DEPTH, &mut reading) };
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
