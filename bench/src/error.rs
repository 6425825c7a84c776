//! What can go wrong in a replay, and the exit code that each kind leaves the process with.

use std::path::{Path, PathBuf};

/// The command line asks for something that does not exist or cannot work (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The trace's content is not what its format promises (`EX_DATAERR`).
pub const EXIT_DATA: u8 = 65;
/// A process could not be started, died, or requests failed.
pub const EXIT_FAILED: u8 = 1;

/// An error of a replay. Each says what failed, with which value, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is at fault.
    #[error("{0}")]
    Usage(String),
    /// A line of the trace is at fault.
    #[error("{}: line {line}: {reason}", path.display())]
    Trace {
        /// The trace file.
        path: PathBuf,
        /// Line number, counted from 1 in the unpacked text.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// "read", "write", "create".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A child process did not come up, or died while it was needed.
    #[error("{name} {what}; its logs are in {}, the last lines:\n{tail}", logs.display())]
    Process {
        /// "engine 2", "proxy".
        name: String,
        /// What happened to it.
        what: String,
        /// The run directory.
        logs: PathBuf,
        /// Last lines of its log.
        tail: String,
    },
    /// The replay itself could not go on.
    #[error("{0}")]
    Replay(String),
    /// The user or the system asked to stop.
    #[error("interrupted; all child processes were ended")]
    Interrupted,
}

impl Error {
    /// The exit code for this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Trace { .. } => EXIT_DATA,
            Self::File { .. } | Self::Process { .. } | Self::Replay(_) => EXIT_FAILED,
            // 128 + SIGINT, as shells report it.
            Self::Interrupted => 130,
        }
    }

    /// A function for `map_err` that names the file and the action.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }
}
