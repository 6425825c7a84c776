//! Programs under test: built once, started on free ports, killed when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest a program may take to say where it listens: generous, since the machine may be busy building.
const START_MAX: Duration = Duration::from_secs(60);

/// The programs that tests start, as packages of this workspace.
const PACKAGES: [&str; 2] = ["larder-proxy", "larder-mock-engine"];

/// Where the built programs lie. Builds them the first time, so that no test ever runs against old ones.
///
/// # Panics
/// If they do not build.
fn bin_dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.arg("build").arg("--quiet").arg("--bins");
        for package in PACKAGES {
            build.args(["-p", package]);
        }
        let exe = std::env::current_exe().expect("a test knows its own program");
        // TARGET/PROFILE/deps/it-HASH
        let dir = exe.parent().and_then(|deps| deps.parent()).expect("cargo's layout of test programs").to_owned();
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo can be started");
        assert!(status.success(), "the programs under test do not build");
        dir
    })
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    name: String,
}

impl Program {
    /// Starts `name` with `args`. Its log goes to the test's standard error.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, args: &[&str]) -> Self {
        let path = bin_dir().join(name);
        let mut child = Command::new(&path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let stdout = child.stdout.take().expect("piped above");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, name: name.to_owned() }
    }

    /// Waits for the line `WHAT on http://ADDR` and returns the address.
    ///
    /// # Panics
    /// If the program does not say so in time.
    pub fn address(&self, what: &str) -> SocketAddr {
        let prefix = format!("{what} on http://");
        let until = Instant::now() + START_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|e| panic!("{} did not say where it listens ({what}): {e}", self.name));
            if let Some(address) = line.strip_prefix(&prefix) {
                return address.trim().parse().expect("an address after `on http://`");
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
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
    pub fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
