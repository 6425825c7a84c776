//! Programs under test: built once, started on free ports, killed when dropped.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest a program may take to say where it listens: generous, since the machine may be busy building.
const START_MAX: Duration = Duration::from_secs(60);

/// Bytes of a program's log that are kept for a test to read.
const LOG_MAX_BYTES: usize = 4 << 20;

/// The root of the workspace.
///
/// # Panics
/// Never: this package lies in a folder of it.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in a folder of the workspace")
}

/// Where the built programs lie. Builds them the first time, so that no test ever runs against old ones.
///
/// # Panics
/// If they do not build.
fn bin_dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // The whole workspace, as `tests/run` does: a choice of packages would get other features of what they share,
        // and compile pingora once more.
        build.current_dir(workspace()).args(["build", "--quiet", "--workspace", "--bins"]);
        let exe = std::env::current_exe().expect("a test knows its own program");
        // TARGET/PROFILE/deps/it-HASH
        let dir =
            exe.parent().and_then(|deps| deps.parent()).expect("cargo's layout of test programs").to_owned();
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo can be started");
        assert!(status.success(), "the programs under test do not build");
        dir
    })
}

/// Runs a program to its end: for those that do not stay.
///
/// # Panics
/// If it cannot be started.
pub fn run(name: &str, args: &[&str]) -> Output {
    let path = bin_dir().join(name);
    Command::new(&path)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
    logging: Option<JoinHandle<()>>,
    name: String,
}

impl Program {
    /// Starts `name` with `args`. Its log is shown with the test's output, and kept.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, args: &[&str]) -> Self {
        let path = bin_dir().join(name);
        let mut child = Command::new(&path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (send, lines) = channel();
        let stdout = child.stdout.take().expect("piped above");
        std::thread::spawn(move || {
            each_line(stdout, |line| {
                // Nobody waits any more: the pipe is still emptied.
                let _ = send.send(line);
            });
        });
        let log: Arc<Mutex<String>> = Arc::default();
        let stderr = child.stderr.take().expect("piped above");
        let kept = Arc::clone(&log);
        let label = name.to_owned();
        let logging = std::thread::spawn(move || {
            each_line(stderr, |line| {
                eprintln!("{label}: {line}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() + line.len() < LOG_MAX_BYTES {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            });
        });
        Self { child, lines, log, logging: Some(logging), name: name.to_owned() }
    }

    /// Waits for the line `WHAT on http://ADDR` (or https) and returns the address.
    ///
    /// # Panics
    /// If the program does not say so in time.
    pub fn address(&self, what: &str) -> SocketAddr {
        let prefix = format!("{what} on ");
        let until = Instant::now() + START_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|e| panic!("{} did not say where it listens ({what}): {e}", self.name));
            if let Some((_scheme, address)) = line.strip_prefix(&prefix).and_then(|url| url.split_once("://"))
            {
                return address.trim().parse().expect("an address after `://`");
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its resident memory in bytes, from /proc.
    ///
    /// # Panics
    /// If it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kilobytes << 10
    }

    /// Sends a signal by name, as `kill -NAME` does.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.expect("kill can be started").success(), "kill -{name} {}", self.name);
    }

    /// Waits for the program's end, at most `limit`; its exit code, if it ended by itself in time.
    pub async fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    /// Ends it. A panic in it fails the test, whatever the test was about: no input may reach one.
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(logging) = self.logging.take() {
            let _ = logging.join();
        }
        let log = self.log();
        if !std::thread::panicking() {
            assert!(!log.contains("panicked at"), "{} panicked:\n{log}", self.name);
        }
    }
}

fn each_line(from: impl Read, mut take: impl FnMut(String)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        take(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}
