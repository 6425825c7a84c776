//! Segments in memory, with the faults that disks have: for tests and simulations.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Media;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only so many bytes of a write arrive, and the system says so.
    Short(usize),
    /// Only so many bytes of a write arrive, and nobody says so.
    Torn(usize),
    /// EIO; nothing happens.
    Io,
    /// ENOSPC; nothing happens.
    Full,
    /// A write arrives, and then a bit of byte n of it flips.
    Flip(usize),
    /// The process ends after so many bytes of a write, or before the call if it is another one.
    Crash(usize),
}

/// A write that a loss of power may undo.
#[derive(Debug, Clone)]
struct Unsynced {
    offset: usize,
    before: Vec<u8>,
    length: usize,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Debug, Default)]
struct Inner {
    segments: BTreeMap<u64, Segment>,
    /// The faults of the calls that change something, by the number of calls from now.
    faults: BTreeMap<u64, Fault>,
    calls: u64,
    /// Reads fail.
    unreadable: bool,
    crashed: bool,
}

/// Segments in memory.
#[derive(Debug, Default)]
pub struct Fake(Mutex<Inner>);

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call that changes something after `calls` others goes wrong.
    pub fn fail(&self, calls: u64, fault: Fault) {
        let mut inner = self.lock();
        let at = inner.calls + calls;
        inner.faults.insert(at, fault);
    }

    /// From here on reads fail, or no longer do.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.lock().unreadable = unreadable;
    }

    /// Whether the process ended within a call; every call fails since.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// The process starts again; what had arrived is there.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.crashed = false;
        inner.faults.clear();
    }

    /// Power is lost: of what was written since each segment's last sync, each write is undone if `lost` says so, in the
    /// order of writes; and each block of a write on its own.
    pub fn lose_power(&self, mut lost: impl FnMut() -> bool) {
        const BLOCK: usize = 4096;
        for segment in self.lock().segments.values_mut() {
            for write in std::mem::take(&mut segment.unsynced) {
                for start in (0..write.length).step_by(BLOCK) {
                    if !lost() {
                        continue;
                    }
                    for at in start..(start + BLOCK).min(write.length) {
                        let old = write.before.get(at).copied().unwrap_or(0);
                        if let Some(byte) = segment.bytes.get_mut(write.offset + at) {
                            *byte = old;
                        }
                    }
                }
                let end = write.offset + write.length;
                if lost() && end == segment.bytes.len() {
                    segment.bytes.truncate(write.offset.max(end - write.length));
                }
            }
        }
    }

    /// A segment's bytes.
    pub fn bytes(&self, segment: u64) -> Option<Vec<u8>> {
        self.lock().segments.get(&segment).map(|segment| segment.bytes.clone())
    }

    /// Puts a segment's bytes there, whatever was before.
    pub fn set_bytes(&self, segment: u64, bytes: Vec<u8>) {
        self.lock().segments.insert(segment, Segment { bytes, unsynced: Vec::new() });
    }

    /// Flips a bit of a segment.
    pub fn flip(&self, segment: u64, byte: usize) {
        if let Some(segment) = self.lock().segments.get_mut(&segment) {
            segment.bytes.get_mut(byte).into_iter().for_each(|byte| *byte ^= 4);
        }
    }
}

impl Inner {
    /// The fault of a call that changes something.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        self.calls += 1;
        if self.crashed {
            return Err(errno(5));
        }
        let fault = self.faults.remove(&(self.calls - 1));
        match fault {
            Some(Fault::Io) => Err(errno(5)),
            Some(Fault::Full) => Err(errno(28)),
            _ => Ok(fault),
        }
    }

    /// Like [`Self::call`], for calls that are not writes: only a crash is left to them.
    fn other_call(&mut self) -> io::Result<()> {
        if let Some(Fault::Crash(_)) = self.call()? {
            self.crashed = true;
            return Err(errno(5));
        }
        Ok(())
    }

    fn segment(&mut self, segment: u64) -> io::Result<&mut Segment> {
        self.segments.get_mut(&segment).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Media for Fake {
    fn create(&self, segment: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.other_call()?;
        if inner.segments.contains_key(&segment) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.segments.insert(segment, Segment::default());
        Ok(())
    }

    fn write(&self, segment: u64, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut inner = self.lock();
        let fault = inner.call()?;
        let bytes = parts.concat();
        let (arrives, result) = match fault {
            Some(Fault::Torn(count)) => (count.min(bytes.len()), Ok(())),
            Some(Fault::Short(count)) => (count.min(bytes.len()), Err(io::ErrorKind::WriteZero.into())),
            Some(Fault::Crash(count)) => (count.min(bytes.len()), Err(errno(5))),
            _ => (bytes.len(), Ok(())),
        };
        inner.crashed |= matches!(fault, Some(Fault::Crash(_)));
        let file = inner.segment(segment)?;
        let (start, end) = (offset as usize, offset as usize + arrives);
        let before = file.bytes.get(start..end.min(file.bytes.len())).unwrap_or_default().to_vec();
        file.bytes.resize(file.bytes.len().max(end), 0);
        file.bytes[start..end].copy_from_slice(&bytes[..arrives]);
        file.unsynced.push(Unsynced { offset: start, before, length: arrives });
        if let Some(Fault::Flip(byte)) = fault {
            file.bytes[start + byte % arrives.max(1)] ^= 4;
        }
        result
    }

    fn read(&self, segment: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.unreadable || inner.crashed {
            return Err(errno(5));
        }
        let file = inner.segment(segment)?;
        let found = file.bytes.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        self.lock().segment(segment).map(|segment| segment.bytes.len() as u64)
    }

    fn truncate(&self, segment: u64, length: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.other_call()?;
        inner.segment(segment)?.bytes.resize(length as usize, 0);
        Ok(())
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.other_call()?;
        inner.segment(segment)?.unsynced.clear();
        Ok(())
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.other_call()?;
        inner.segments.remove(&segment);
        Ok(())
    }

    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.lock().segments.keys().copied().collect())
    }
}
