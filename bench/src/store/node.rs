//! A node process to be measured, and what a process has used of the CPU.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Error;

/// How long anything of a node may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running node; dropping it kills it.
pub(super) struct Node {
    child: Child,
    pub(super) socket: PathBuf,
    pub(super) address: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::Replay(what.to_string())
}

impl Node {
    /// Starts a node in `dir` with these lines of configuration.
    pub(super) fn start(program: &Path, dir: &Path, lines: &str) -> Result<Self, Error> {
        let (config, socket) = (dir.join("node.toml"), dir.join("node.sock"));
        let text =
            format!("engine_socket = {socket:?}\ncontrol = \"127.0.0.1:0\"\nlog = \"warn\"\n{lines}\n");
        std::fs::write(&config, text).map_err(Error::file("write", &config))?;
        let child = Command::new(program).arg("--config").arg(&config).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(Error::file("start", program))?;
        let printed = child.stdout.take().ok_or_else(|| failed("a node without output"))?;
        let address = BufReader::new(printed).lines().map_while(Result::ok);
        let address =
            address.filter_map(|line| line.strip_prefix("control on http://").map(str::to_owned)).next();
        let address = address.ok_or_else(|| failed("the node did not start; its words are above"))?;
        Ok(Self { child, socket, address })
    }

    /// CPU time it has used.
    pub(super) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// Waits until so many bytes of shared memory have their pages: a node takes those of its slab after it has begun to
    /// serve, which costs a CPU second for some GB of them.
    pub(super) fn wait_for_pages(&self, bytes: u64) -> Result<(), Error> {
        wait("bytes of shared memory", || Ok(shared_bytes_of(self.child.id())), |value| value >= bytes)
    }

    /// One exchange with the control API.
    fn ask(&self, request: &str) -> Result<Value, Error> {
        let mut stream = TcpStream::connect(&self.address).map_err(failed)?;
        let head = "host: x\r\nconnection: close\r\ncontent-length: 0";
        stream.write_all(format!("{request} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).map_err(failed)
    }

    /// Has it forget everything. The pages of its slab stay taken, as in a node that has run for a while.
    pub(super) fn clear(&self) -> Result<(), Error> {
        let answer = self.ask("POST /v1/clear")?;
        match answer["kept_chunks"].as_u64() {
            Some(0) => Ok(()),
            _ => Err(failed(format!("the node does not forget everything: {answer}"))),
        }
    }

    /// A figure of its own.
    pub(super) fn stat(&self, name: &str) -> Result<u64, Error> {
        let stats = self.ask("GET /v1/stats")?;
        stats[name].as_u64().ok_or_else(|| failed(format!("the node counts no {name}")))
    }

    /// Waits until a figure is at least this.
    pub(super) fn wait_for(&self, name: &str, least: u64) -> Result<(), Error> {
        wait(name, || self.stat(name), |value| value >= least)
    }

    /// Waits until a figure is 0.
    pub(super) fn wait_for_none(&self, name: &str) -> Result<(), Error> {
        wait(name, || self.stat(name), |value| value == 0)
    }
}

/// Waits until what is read of a node is enough.
fn wait(
    name: &str,
    read: impl Fn() -> Result<u64, Error>,
    enough: impl Fn(u64) -> bool,
) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let value = read()?;
        if enough(value) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(failed(format!("the node's {name} stays at {value}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// CPU time a process has used, in user and system mode: fields 14 and 15 of `/proc/PID/stat` (proc_pid_stat(5)), in ticks
/// of a hundredth of a second, as on every Linux that Rust runs on.
pub(super) fn cpu_of(process: u32) -> Duration {
    const TICKS_PER_S: u64 = 100;
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in brackets, may have blanks in it.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_S)
}

/// Bytes of shared memory that a process has touched: `RssShmem` of `/proc/PID/status` (proc_pid_status(5)), in KiB.
fn shared_bytes_of(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssShmem:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
