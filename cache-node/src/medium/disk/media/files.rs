//! Segments as files, read and written by plain calls.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use larder_tiering::disk::BLOCK_BYTES;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};
use nix::sys::uio::pwritev;

use super::Media;

/// What the names of segment files end with.
const SUFFIX: &str = ".larder";

/// Locked by the process that uses the directory: two would cut off each other's segments.
const LOCK: &str = "lock";

/// Segments whose files are kept open: two descriptors each, far below the 1,024 that a process has by default. Opening one
/// anew costs some microseconds.
const OPEN_MAX: usize = 128;

/// Whether whole blocks go past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `O_DIRECT`: what is cached here already lies in the host tier, a second copy in the page cache would be waste.
    Direct,
    /// Through the page cache, where the file system knows nothing else.
    Cached,
}

/// A segment's file, opened for plain access and, where wanted, for direct access too.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) cached: File,
    pub(super) direct: Option<File>,
}

impl Handles {
    /// The file to move these bytes through: direct access needs whole blocks everywhere.
    pub(super) fn for_bytes(&self, offset: u64, parts: &[(*const u8, usize)]) -> &File {
        let whole = |number: usize| (number as u64).is_multiple_of(BLOCK_BYTES);
        let all = offset.is_multiple_of(BLOCK_BYTES)
            && parts.iter().all(|(start, length)| whole(start.addr()) && whole(*length));
        self.direct.as_ref().filter(|_| all).unwrap_or(&self.cached)
    }
}

/// Segments as files `NUMBER.larder` in a directory of their own.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    access: Access,
    /// Held for as long as this process uses the directory.
    _lock: Flock<File>,
    /// Open files, of [`OPEN_MAX`] segments at most.
    open: Mutex<HashMap<u64, Arc<Handles>>>,
    /// Segments made here whose names are not durable yet.
    unnamed: Mutex<HashSet<u64>>,
}

impl Files {
    /// The segments in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, or another process uses it.
    pub fn open(directory: PathBuf, access: Access) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(directory.join(LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => io::Error::other("another process uses this directory"),
            error => error.into(),
        })?;
        Ok(Self { directory, access, _lock: lock, open: Mutex::default(), unnamed: Mutex::default() })
    }

    /// Whether the file system of `directory` takes direct access.
    ///
    /// # Errors
    /// If no file can be made there at all.
    pub fn access_of(directory: &Path) -> io::Result<Access> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(format!("probe-{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        options.open(&path)?;
        let direct = options.custom_flags(OFlag::O_DIRECT.bits()).open(&path);
        std::fs::remove_file(&path)?;
        Ok(if direct.is_ok() { Access::Direct } else { Access::Cached })
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.directory.join(format!("{segment:016x}{SUFFIX}"))
    }

    pub(super) fn handles(&self, segment: u64) -> io::Result<Arc<Handles>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handles) = open.get(&segment) {
            return Ok(Arc::clone(handles));
        }
        let path = self.path(segment);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let cached = options.open(&path)?;
        let direct = match self.access {
            Access::Direct => Some(options.custom_flags(OFlag::O_DIRECT.bits()).open(&path)?),
            Access::Cached => None,
        };
        let handles = Arc::new(Handles { cached, direct });
        // Any one goes; whoever uses it now holds it open.
        if open.len() >= OPEN_MAX
            && let Some(other) = open.keys().next().copied()
        {
            open.remove(&other);
        }
        open.insert(segment, Arc::clone(&handles));
        Ok(handles)
    }
}

impl Media for Files {
    fn create(&self, segment: u64) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).open(self.path(segment))?;
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).insert(segment);
        Ok(())
    }

    fn reserve(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let length = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(fallocate(&self.handles(segment)?.cached, FallocateFlags::empty(), 0, length)?)
    }

    fn write(&self, segment: u64, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let handles = self.handles(segment)?;
        let places: Vec<(*const u8, usize)> = parts.iter().map(|part| (part.as_ptr(), part.len())).collect();
        let file = handles.for_bytes(offset, &places);
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let count = match pwritev(file, left, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            offset += count as u64;
            IoSlice::advance_slices(&mut left, count);
        }
        Ok(())
    }

    fn read(&self, segment: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let handles = self.handles(segment)?;
        handles.for_bytes(offset, &[(bytes.as_ptr(), bytes.len())]).read_exact_at(bytes, offset)
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        Ok(self.handles(segment)?.cached.metadata()?.len())
    }

    fn truncate(&self, segment: u64, length: u64) -> io::Result<()> {
        self.handles(segment)?.cached.set_len(length)
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        self.handles(segment)?.cached.sync_data()?;
        // The name itself must survive a loss of power as well: once, with the first of what it names.
        let unnamed = || self.unnamed.lock().unwrap_or_else(PoisonError::into_inner);
        if unnamed().contains(&segment) {
            File::open(&self.directory)?.sync_all()?;
            unnamed().remove(&segment);
        }
        Ok(())
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        std::fs::remove_file(self.path(segment))
    }

    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            found.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
        }
        found.sort_unstable();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_files_are_open_than_a_process_may_have() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path().join("kv"), Access::Cached).unwrap();
        let segments = 0..OPEN_MAX as u64 + 50;
        for segment in segments.clone() {
            files.create(segment).unwrap();
            files.write(segment, 0, &[&segment.to_le_bytes()]).unwrap();
        }
        for segment in segments {
            let mut bytes = [0; 8];
            files.read(segment, 0, &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), segment);
        }
        assert!(files.open.lock().unwrap().len() <= OPEN_MAX);
    }
}
