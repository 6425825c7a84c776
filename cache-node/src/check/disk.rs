//! The disk tier's directory: whether it can be written, past the page cache and through io_uring, and has the room.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::{Finding, size};
use crate::config::{Disk, DiskIo};
use crate::medium::disk::media::{Access, Files, Uring};

pub(super) fn probe(disk: &Disk) -> Vec<Finding> {
    let (place, made) = match existing(&disk.path) {
        Ok(found) => found,
        Err(what) => return vec![Finding::bad("disk.path", what, "name a directory of its own")],
    };
    if let Err(error) = write(&place) {
        let what = format!("{} cannot be written: {error}", place.display());
        return vec![Finding::bad("disk.path", what, "let the node's user write there")];
    }
    let mut found = Vec::new();
    if !made {
        let what = format!("is not there yet, and will be made; {} was tried instead", place.display());
        found.push(Finding::good("disk.path", what));
    }
    found.push(direct(&place));
    found.push(uring(disk.io, Uring::allowed()));
    found.push(room(disk, &place));
    if statfs(&place).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC) {
        let what = "is memory (tmpfs): it neither survives a restart of the host nor adds room".to_owned();
        found.push(Finding::poor("disk.path", what, "name a directory on a local NVMe drive"));
    }
    found
}

/// The directory, or the nearest one above it that is there; and whether it is the directory itself.
fn existing(path: &Path) -> Result<(PathBuf, bool), String> {
    for place in path.ancestors() {
        match std::fs::metadata(place) {
            Ok(found) if found.is_dir() => return Ok((place.to_owned(), place == path)),
            Ok(_) => return Err(format!("{} is no directory", place.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{} cannot be seen: {error}", place.display())),
        }
    }
    Err(format!("{} is nowhere", path.display()))
}

/// Writes a small file, makes it durable, and removes it.
fn write(place: &Path) -> io::Result<()> {
    let path = place.join(format!("check-{}", std::process::id()));
    let written = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_data()
    });
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

fn direct(place: &Path) -> Finding {
    match Files::access_of(place) {
        Ok(Access::Direct) => Finding::good("disk.path", "takes O_DIRECT".to_owned()),
        Ok(Access::Cached) => {
            let what =
                "does not take O_DIRECT: what is on disk takes memory again, in the page cache".to_owned();
            Finding::poor("disk.path", what, "use ext4, XFS or another file system that takes it")
        }
        Err(error) => {
            let what = format!("no file can be made in {}: {error}", place.display());
            Finding::bad("disk.path", what, "let the node's user write there")
        }
    }
}

pub(super) fn uring(io: DiskIo, allowed: io::Result<()>) -> Finding {
    let change =
        "allow io_uring_setup (seccomp, sysctl kernel.io_uring_disabled=0), or set disk.io = \"threads\"";
    match (io, allowed) {
        (DiskIo::Threads, Ok(())) => {
            let what = "plain calls, as set; io_uring would be allowed".to_owned();
            Finding::poor("disk.io", what, "set disk.io = \"auto\" for many reads at once")
        }
        (DiskIo::Threads, Err(_)) => Finding::good("disk.io", "plain calls, as set".to_owned()),
        (DiskIo::Auto | DiskIo::Uring, Ok(())) => Finding::good("disk.io", "io_uring is allowed".to_owned()),
        (DiskIo::Auto, Err(error)) => {
            Finding::poor("disk.io", format!("io_uring is refused ({error}): plain calls"), change)
        }
        (DiskIo::Uring, Err(error)) => {
            Finding::bad("disk.io", format!("io_uring is refused ({error})"), change)
        }
    }
}

/// Whether the tier can grow to its capacity: what its segments take already counts as free.
fn room(disk: &Disk, place: &Path) -> Finding {
    let stat = match statvfs(place) {
        Ok(stat) => stat,
        Err(error) => {
            let what = format!("the room on {} is not known: {error}", place.display());
            return Finding::poor("disk.capacity", what, "see that it is mounted");
        }
    };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let entries = std::fs::read_dir(&disk.path).into_iter().flatten().flatten();
    let own: u64 = entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
    let left = free.saturating_add(own);
    let what = format!("{} of {} can be had", size(left), size(disk.capacity_bytes));
    if left < disk.capacity_bytes {
        let change =
            "make disk.capacity smaller or room there: on a full file system writing pauses again and again";
        return Finding::poor("disk.capacity", what, change);
    }
    Finding::good("disk.capacity", what)
}
