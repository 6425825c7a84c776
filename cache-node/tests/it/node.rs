//! A node process of its own, with what a test needs to ask and kill it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up; no test passes or fails by being faster.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    child: Child,
    pub(crate) directory: TempDir,
    pub(crate) address: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a node whose configuration has these lines before its tables.
pub(crate) fn start(lines: &str) -> Node {
    start_in(tempfile::tempdir().unwrap(), lines)
}

pub(crate) fn config(directory: &Path, lines: &str) -> PathBuf {
    let config = directory.join("node.toml");
    let size = if lines.contains("host") { "" } else { "host = { size = \"64MiB\" }\n" };
    let socket = directory.join("node.sock");
    let control = if lines.contains("control =") { "" } else { "control = \"127.0.0.1:0\"\n" };
    // Time enough on a machine that does much else: what is verified by the deadline must not decide a test.
    let deadline = if lines.contains("lookup_deadline") { "" } else { "lookup_deadline = \"10s\"\n" };
    let text = format!(
        "engine_socket = {socket:?}\n{control}{size}{deadline}region = {{ size = \"4MiB\" }}\n{lines}\n"
    );
    std::fs::write(&config, text).unwrap();
    config
}

pub(crate) fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-cache-node"));
    command.arg("--config").arg(config);
    command
}

pub(crate) fn start_in(directory: TempDir, lines: &str) -> Node {
    start_by(directory, lines, &[])
}

/// Starts a node through a program that ends by running what stands behind its own arguments.
pub(crate) fn start_by(directory: TempDir, lines: &str, program: &[&str]) -> Node {
    let config = config(directory.path(), lines);
    let node = command(&config);
    let mut command = match program {
        [] => node,
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(node.get_program()).args(node.get_args());
            command
        }
    };
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
    let socket = printed.next().unwrap().unwrap();
    assert_eq!(socket, format!("engine socket {}", directory.path().join("node.sock").display()));
    let address = printed.next().unwrap().unwrap().strip_prefix("control on ").unwrap().to_owned();
    Node { child, directory, address }
}

impl Node {
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("node.sock")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Kills the process and gives its directory back, socket file and all.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }

    /// One HTTP exchange: status and body.
    pub(crate) fn http(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        // A server that refuses early may close before all was written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.http("POST", path, "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        let (_, text) = self.http("GET", "/v1/stats", "", "");
        let stats: Value = serde_json::from_str(&text).unwrap();
        stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats}"))
    }

    /// Waits until a figure is no less than this.
    pub(crate) fn wait_for_least(&self, name: &str, least: u64) {
        let start = Instant::now();
        while self.stat(name) < least {
            assert!(start.elapsed() < PATIENCE, "{name} is {} and not {least}", self.stat(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a figure is what it should become.
    pub(crate) fn wait_for(&self, name: &str, value: u64) {
        let start = Instant::now();
        while self.stat(name) != value {
            assert!(start.elapsed() < PATIENCE, "{name} is {} and not {value}", self.stat(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
