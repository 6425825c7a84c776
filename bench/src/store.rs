//! `store`: what a cache node moves, beside what the machine can and beside Redis.
//!
//! A real node process, one client as an engine is one. In the order of [`command`]: [`host`] through the slab, [`disk`]
//! through the disk tier, [`redis`] the same chunks in Redis, [`small`] what is asked often, [`catalog`] what a million
//! chunks take. Each is measured between runs of its limit in the same process, on the same kind of pages or the same file
//! system; figures are medians.

mod catalog;
mod disk;
mod engine;
mod host;
mod mapped;
mod node;
mod redis;
mod small;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::error::Error;

/// Options of `store`.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where to put the node's files, on the file system to be measured [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Sizes of chunks in KiB, separated by commas
    #[arg(long, value_name = "KIB", value_delimiter = ',', default_value = "256,1024,4096",
          value_parser = clap::value_parser!(u64).range(4..=16_384))]
    pub chunk_kib: Vec<u64>,
    /// MiB moved in one pass
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(64..=1024))]
    pub pass_mib: u64,
    /// Passes of which the median is taken
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=99))]
    pub passes: u64,
    /// The node to start [default: larder-cache-node beside this program]
    #[arg(long, value_name = "FILE")]
    pub node_bin: Option<PathBuf>,
}

/// One figure beside its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// "host", "disk" or "redis".
    pub path: &'static str,
    /// "put" or "get".
    pub op: &'static str,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// 10^9 bytes a second.
    pub gb_per_s: f64,
    /// What the machine did of the same without a store, in the same run; none for Redis, whose limit is the host's.
    pub limit_gb_per_s: Option<f64>,
    /// CPU seconds of client and server for 10^9 bytes.
    pub cpu_s_per_gb: f64,
}

/// Everything measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Throughput.
    pub rows: Vec<Row>,
    /// A lookup of 2,000 held keys, from the question to the lease, in microseconds.
    pub lookup_2000_us_p50: f64,
    /// From a stage call to its grant at the engine, in microseconds.
    pub lease_visible_us_p50: f64,
    /// Memory a chunk on disk takes in a node.
    pub catalog_bytes_per_chunk: f64,
    /// Seconds to open a tier of a million chunks.
    pub open_million_s: f64,
}

/// What all parts need.
struct Bench<'a> {
    args: &'a StoreArgs,
    node: PathBuf,
    dir: PathBuf,
}

/// One pass: what it took.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pass {
    bytes: u64,
    wall: Duration,
    cpu: Duration,
}

impl Pass {
    /// Measures a pass; `cpu` says what client and server have used so far.
    fn of(
        bytes: u64,
        cpu: impl Fn() -> Duration,
        pass: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let (before, start) = (cpu(), Instant::now());
        pass()?;
        Ok(Self { bytes, wall: start.elapsed(), cpu: cpu().saturating_sub(before) })
    }

    fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.wall.as_secs_f64()
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn row(path: &'static str, op: &'static str, chunk_bytes: u64, passes: &[Pass], limits: &[Pass]) -> Row {
    let cpu: f64 = passes.iter().map(|pass| pass.cpu.as_secs_f64()).sum();
    let bytes: f64 = passes.iter().map(|pass| pass.bytes as f64).sum();
    Row {
        path,
        op,
        chunk_bytes,
        gb_per_s: median(passes.iter().map(Pass::gb_per_s)),
        limit_gb_per_s: (!limits.is_empty()).then(|| median(limits.iter().map(Pass::gb_per_s))),
        // Ticks of the CPU clock are coarse: all passes together.
        cpu_s_per_gb: cpu / (bytes / 1e9),
    }
}

/// An error of the system, as one of this program's.
fn io(error: impl std::fmt::Display) -> Error {
    Error::Replay(error.to_string())
}

/// CPU time of this process.
fn own_cpu() -> Duration {
    node::cpu_of(std::process::id())
}

/// Bytes that no two chunks share.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(word).take(bytes).collect()
}

/// Runs the command.
///
/// # Errors
/// What could not be started, moved or written.
pub fn command(args: &StoreArgs, out: &mut impl Write) -> Result<(), Error> {
    let beside = std::env::current_exe().map_err(io)?.with_file_name("larder-cache-node");
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = parent.join(format!("larder-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    let bench = Bench { args, node: args.node_bin.clone().unwrap_or(beside), dir: dir.clone() };
    let report = bench.run(out);
    let _ = std::fs::remove_dir_all(&dir);
    let report = report?;
    print(&report, out).map_err(io)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(io)?;
        std::fs::write(path, text + "\n").map_err(Error::file("write", path))?;
    }
    Ok(())
}

impl Bench<'_> {
    fn run(&self, out: &mut impl Write) -> Result<Report, Error> {
        let mut rows = Vec::new();
        for kib in &self.args.chunk_kib {
            rows.extend(self.host(kib << 10)?);
            rows.extend(self.disk(kib << 10)?);
            match self.redis(kib << 10)? {
                Some(more) => rows.extend(more),
                None => writeln!(out, "no redis-server here: its rows are left out").map_err(io)?,
            }
        }
        let (lookup_2000_us_p50, lease_visible_us_p50) = self.small()?;
        let (catalog_bytes_per_chunk, open_million_s) = self.catalog()?;
        Ok(Report { rows, lookup_2000_us_p50, lease_visible_us_p50, catalog_bytes_per_chunk, open_million_s })
    }

    /// A folder of its own for one part.
    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.dir.join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(folder)
    }

    fn start(&self, folder: &Path, lines: &str) -> Result<node::Node, Error> {
        node::Node::start(&self.node, folder, lines)
    }

    fn pass_bytes(&self) -> u64 {
        self.args.pass_mib << 20
    }

    fn redis(&self, chunk_bytes: u64) -> Result<Option<Vec<Row>>, Error> {
        let folder = self.folder("redis")?;
        let Some(server) = redis::Redis::start(&folder).map_err(io)? else { return Ok(None) };
        let count = (self.pass_bytes() / chunk_bytes) as usize;
        let bytes = count as u64 * chunk_bytes;
        let (chunk, mut back) = (noise(chunk_bytes as usize), vec![0; chunk_bytes as usize]);
        let cpu = || own_cpu() + server.cpu();
        let (mut puts, mut gets) = (Vec::new(), Vec::new());
        for _ in 0..self.args.passes {
            puts.push(Pass::of(bytes, cpu, || server.put(count, &chunk).map_err(io))?);
            gets.push(Pass::of(bytes, cpu, || server.get(count, &mut back).map_err(io))?);
        }
        if back != chunk {
            return Err(io("redis gave other bytes back"));
        }
        Ok(Some(vec![
            row("redis", "put", chunk_bytes, &puts, &[]),
            row("redis", "get", chunk_bytes, &gets, &[]),
        ]))
    }
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "path   op   chunk      GB/s   limit  ratio  CPU s/GB")?;
    for row in &report.rows {
        let limit = row
            .limit_gb_per_s
            .map_or("      -      -".to_owned(), |limit| format!("{limit:7.2} {:6.2}", row.gb_per_s / limit));
        writeln!(
            out,
            "{:6} {:4} {:5} KiB {:7.2} {limit} {:9.2}",
            row.path,
            row.op,
            row.chunk_bytes >> 10,
            row.gb_per_s,
            row.cpu_s_per_gb
        )?;
    }
    writeln!(out, "lookup of 2,000 keys      {:10.0} us (median)", report.lookup_2000_us_p50)?;
    writeln!(out, "stage call to grant       {:10.0} us (median)", report.lease_visible_us_p50)?;
    writeln!(out, "catalog                   {:10.0} bytes a chunk on disk", report.catalog_bytes_per_chunk)?;
    writeln!(out, "opening a million chunks  {:10.2} s", report.open_million_s)
}

#[cfg(test)]
mod tests;
