//! One child process: its output goes to files, its address is read from there, its death is noticed.

use crate::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Wall time from start to the line with the address. A loaded two-core machine needs a second or two.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a process's output and health are looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// How long a killed process is waited for, so that it is gone and not a zombie when this program ends. SIGKILL takes
/// milliseconds; a process stuck in the kernel must not hold us.
const REAP_LIMIT: Duration = Duration::from_secs(1);
/// Log lines shown when a process fails.
const TAIL_LINES: usize = 20;
/// Bytes read from the end of a log for those lines.
const TAIL_BYTES: usize = 16 << 10;

/// A running child. Dropping it kills it and waits for its end.
pub(crate) struct Process {
    name: String,
    child: Child,
    address: String,
    dir: PathBuf,
}

impl Process {
    /// Starts `program`; standard output goes to `NAME.out`, standard error to `NAME.log` in `dir`.
    pub(crate) fn start(name: &str, program: &Path, args: &[String], dir: &Path) -> Result<Self, Error> {
        let file = |ending: &str| {
            let path = dir.join(format!("{name}.{ending}"));
            File::create(&path).map_err(Error::file("create", &path))
        };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file("out")?).stderr(file("log")?).kill_on_drop(true);
        // Ctrl-C reaches the whole foreground group; the children must outlive it until their drop, or their
        // deaths would be reported instead of the interruption.
        command.process_group(0);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        let child = command.spawn().map_err(Error::file("start", program))?;
        Ok(Self { name: name.into(), child, address: String::new(), dir: dir.into() })
    }

    /// Waits for a line of standard output that starts with `prefix`, and returns the rest of it. The first address
    /// asked for is the one [`Process::known_address`] gives.
    pub(crate) async fn address(&mut self, prefix: &str) -> Result<String, Error> {
        let out = self.dir.join(format!("{}.out", self.name));
        let started = tokio::time::Instant::now();
        while started.elapsed() < START_LIMIT {
            let text = std::fs::read_to_string(&out).map_err(Error::file("read", &out))?;
            // Only lines that are complete.
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(address) = complete.lines().find_map(|line| line.strip_prefix(prefix)) {
                let address = address.trim().trim_end_matches('/').to_owned();
                if self.address.is_empty() {
                    self.address.clone_from(&address);
                }
                return Ok(address);
            }
            if let Some(error) = self.has_died() {
                return Err(error);
            }
            tokio::time::sleep(POLL).await;
        }
        Err(self.failed(format!("did not print \"{prefix}\" within {} s", START_LIMIT.as_secs())))
    }

    /// The address read first, empty before.
    pub(crate) fn known_address(&self) -> &str {
        &self.address
    }

    /// An error if the process has ended.
    pub(crate) fn has_died(&mut self) -> Option<Error> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(self.failed(format!("ended on its own ({status})"))),
            Err(error) => Some(self.failed(format!("cannot be waited for: {error}"))),
        }
    }

    /// An error about this process with the end of its log.
    pub(crate) fn failed(&self, what: String) -> Error {
        let log = std::fs::read(self.dir.join(format!("{}.log", self.name))).unwrap_or_default();
        let text = String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL_BYTES)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        let tail = if tail.is_empty() { "(its log is empty)".into() } else { tail };
        Error::Process { name: self.name.clone(), what, logs: self.dir.clone(), tail }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.start_kill();
        let started = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < REAP_LIMIT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests;
