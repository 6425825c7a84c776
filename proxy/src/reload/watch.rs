//! Whether files have changed and rest again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells one state of a file from another. A rename onto it changes the inode, an edit in place the time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Absent: it cannot be seen.
    state: Option<(Option<SystemTime>, u64, u64)>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let state = std::fs::metadata(path).ok().map(|m| (m.modified().ok(), m.len(), m.ino()));
        Self { path: path.to_owned(), state }
    }
}

/// Files as they were last taken, and last seen.
pub(super) struct Watched {
    taken: Vec<Stamp>,
    seen: Vec<Stamp>,
}

impl Watched {
    pub(super) fn new(files: &[PathBuf]) -> Self {
        let now = stamps(files);
        Self { taken: now.clone(), seen: now }
    }

    /// Looks at the files: whether they differ from what was taken, and have not changed since the look before.
    pub(super) fn has_changed(&mut self, files: &[PathBuf]) -> bool {
        let now = stamps(files);
        let rests = now == self.seen;
        self.seen = now;
        rests && self.seen != self.taken
    }

    /// They are read now.
    pub(super) fn taken(&mut self, files: &[PathBuf]) {
        self.taken = stamps(files);
        self.seen.clone_from(&self.taken);
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_it_rests() {
        let path = std::env::temp_dir().join(format!("larder-watch-{}", std::process::id()));
        let files = [path.clone()];
        std::fs::write(&path, "a").unwrap();
        let mut watched = Watched::new(&files);
        assert!(!watched.has_changed(&files));
        std::fs::write(&path, "ab").unwrap();
        assert!(!watched.has_changed(&files), "it may still be written");
        std::fs::write(&path, "abc").unwrap();
        assert!(!watched.has_changed(&files));
        assert!(watched.has_changed(&files));
        watched.taken(&files);
        assert!(!watched.has_changed(&files));
        std::fs::remove_file(&path).unwrap();
        assert!(!watched.has_changed(&files));
        assert!(watched.has_changed(&files), "a file that is gone is told of as well");
    }
}
