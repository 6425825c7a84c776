//! The configuration: what the file says (`raw`), the limits and defaults (`defaults`), and what the process runs with
//! ([`Config`], made by `validate`). `config/cache-node.toml` at the root of the repository documents every key.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_settings::{Faults, read, read_text};

use crate::device;
use crate::store::Verify;

mod defaults;
mod raw;
mod validate;

#[cfg(test)]
mod tests;

pub use defaults::EXTENT_BYTES;

/// A validated configuration: every value present, in range, and consistent with the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The unix socket that engines connect to.
    pub engine_socket: PathBuf,
    /// Its permissions.
    pub engine_socket_mode: u32,
    /// Where the proxy asks.
    pub control: Control,
    /// The file with the bearer token; required where `control` can be reached from other hosts.
    pub token_file: Option<PathBuf>,
    /// What is logged: directives of `tracing-subscriber`'s `EnvFilter`, not yet parsed.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Bytes of the host slab, a multiple of [`EXTENT_BYTES`].
    pub host_bytes: u64,
    /// Whether the pages of the slab are taken at the start, in the background.
    pub prefault: bool,
    /// Bytes of each engine's writable region, at most.
    pub region_bytes: u64,
    /// Bytes of recipes.
    pub recipe_bytes: u64,
    /// What explicit pins may keep.
    pub pins: Pins,
    /// What tenants may hold.
    pub quotas: Quotas,
    /// How long an unstarted lease lasts.
    pub lease_ttl: Duration,
    /// When checksums are compared.
    pub verify: Verify,
    /// How long a verified chunk is not read again.
    pub verify_fresh: Duration,
    /// How long a lookup may verify.
    pub lookup_deadline: Duration,
    /// How long a stage call may take at most, and takes where it names no deadline.
    pub stage_deadline: Duration,
    /// Whether weak block hashes are accepted.
    pub single_tenant: bool,
    /// Whether tests may damage what is held.
    pub debug_faults: bool,
    /// Threads that copy and verify; 0 stands for one a core, at most four.
    pub transfer_threads: usize,
    /// The disk tier, if there is one.
    pub disk: Option<Disk>,
    /// How GPUs are used.
    pub device: device::Settings,
    /// What engines and proxies may make the node hold.
    pub limits: Limits,
}

/// What explicit pins may keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The part of the host slab that all of them may keep, in percent.
    pub percent: u64,
    /// The part of the host slab that those of one namespace may keep, in percent.
    pub namespace_percent: u64,
    /// How long one lasts at most.
    pub ttl_max: Duration,
    /// Pins at one time.
    pub count: usize,
}

/// What tenants may hold in host memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Bytes of each that has no quota of its own; none is no limit.
    pub default_bytes: Option<u64>,
    /// Those that have one, with its bytes.
    pub tenants: Vec<(String, u64)>,
}

/// The disk tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// A directory of its own.
    pub path: PathBuf,
    /// Bytes of all segments.
    pub capacity_bytes: u64,
    /// Bytes of one segment; at most a quarter of the capacity.
    pub segment_bytes: u64,
    /// Bytes that may be written a second in the long run, for the drive's endurance.
    pub write_bytes_per_s: u64,
    /// The use at which a chunk is written.
    pub admit_uses: u32,
    /// Bytes that are read back a second to see whether they are right; 0 reads none.
    pub scrub_bytes_per_s: u64,
    /// How bytes are moved.
    pub io: DiskIo,
    /// Threads that read.
    pub readers: usize,
    /// Writes under way.
    pub writes: usize,
    /// Loads under way.
    pub loads: usize,
}

/// How bytes are moved to and from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskIo {
    /// io_uring where the system allows it, else plain calls.
    Auto,
    /// io_uring; refused at the start where the system does not allow it.
    Uring,
    /// Plain calls.
    Threads,
}

/// Where the control API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What engines and proxies may make the node hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Engines at one time.
    pub sessions: usize,
    /// Connections of engines at one time.
    pub connections: usize,
    /// Leases at one time.
    pub leases: usize,
    /// Verifications at one time.
    pub verifications: usize,
    /// Chunks being copied in at one time.
    pub copies: usize,
    /// The part of the host slab that leases may pin, in percent.
    pub pinned_percent: u64,
    /// Control requests worked on at one time; more are refused.
    pub control_requests: usize,
    /// Control connections at one time.
    pub control_connections: usize,
}

/// Loads and validates a configuration file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Faults> {
    parse(&read_text(path)?)
}

/// Validates a configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Config, Faults> {
    let (raw, mut report) = read(text, raw::RawConfig::read)?;
    let config = validate::validate(raw, &mut report);
    report.into_result(config)
}
