//! The files of the repository.

use std::process::Command;

use larder_tests::program::workspace;

/// A text file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// From the root of the workspace.
    pub(crate) path: String,
    /// What is in it.
    pub(crate) text: String,
}

/// All files that git knows and whose names end in one of `ends` (none: all), those of no text left out.
///
/// # Panics
/// If git does not know any: the rules must not pass for want of something to look at.
pub(crate) fn files(ends: &[&str]) -> Vec<File> {
    let listed = Command::new("git").current_dir(workspace()).args(["ls-files", "-z"]).output();
    let listed = listed.expect("git can be started");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("names of plain text");
    let wanted =
        |name: &&str| !name.is_empty() && (ends.is_empty() || ends.iter().any(|end| name.ends_with(end)));
    let files: Vec<File> = names
        .split('\0')
        .filter(wanted)
        // Deleted and not committed yet, or no text.
        .filter_map(|path| {
            Some(File { path: path.to_owned(), text: std::fs::read_to_string(workspace().join(path)).ok()? })
        })
        .collect();
    assert!(!files.is_empty(), "git lists no file that ends in {ends:?}");
    files
}

/// The text of one file.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
