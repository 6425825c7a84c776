//! Every default, written once, with its reason; and the range each value must lie in.
//!
//! `config/cache-node.toml` repeats the defaults for its readers; a test holds the two together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Bytes of one extent of the slab: large enough that a chunk of a 70B model on eight GPUs fits (128 tokens, 42 MB),
/// small enough that layouts can trade them.
pub const EXTENT_BYTES: u64 = 64 * MIB;

/// The engine's user is the node's user unless somebody says otherwise: whoever opens the socket can read all KV.
pub(super) const ENGINE_SOCKET_MODE: u32 = 0o600;
/// Loopback: the control API has no authentication of its own there.
pub(super) const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7700);
/// What an operator acts on, without a line per request.
pub(super) const LOG: &str = "info";
/// A store into pages that were never touched takes several times as long as into others, and an engine waits for it.
pub(super) const PREFAULT: bool = true;
/// A step's worth of new chunks of a large engine, so that stores do not wait for the copy of the step before.
pub(super) const REGION: u64 = 256 * MIB;
/// Some 400,000 chunk keys and 100,000 chain points.
pub(super) const RECIPES: u64 = 64 * MIB;
/// Longer than a request waits in a busy engine's queue; a lease that nobody starts blocks eviction that long.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(30);
/// A prefix that every request shares would else be read again by each of them.
pub(super) const VERIFY_FRESH: Duration = Duration::from_secs(1);
/// Below the 50 ms after which the plugin gives a lookup up.
pub(super) const LOOKUP_DEADLINE: Duration = Duration::from_millis(40);
/// A prompt worth waiting for longer would be recomputed in that time.
pub(super) const STAGE_DEADLINE: Duration = Duration::from_secs(2);
/// One a core, at most four: memory bandwidth is the limit, and engines need cores too.
pub(super) const TRANSFER_THREADS: u64 = 0;
/// Eight GPUs with an engine each, and as many that are being replaced.
pub(super) const SESSIONS: u64 = 16;
/// Sixteen sessions of eight ranks and a scheduler, and room for those that come back.
pub(super) const CONNECTIONS: u64 = 256;
/// Requests waiting in all engines of a host, several times over.
pub(super) const LEASES: u64 = 16_384;
/// More would only wait for each other's memory bandwidth, past every deadline.
pub(super) const VERIFICATIONS: u64 = 256;
/// About four regions full of small chunks.
pub(super) const COPIES: u64 = 4096;
/// A quarter is left to store into, whatever is staged.
pub(super) const PINNED_PERCENT: u64 = 75;
/// A third of what leases and pins may hold together, so that pins never starve leases.
pub(super) const PINS_PERCENT: u64 = 25;
/// As much as all: a node often serves one model only.
pub(super) const PINS_NAMESPACE_PERCENT: u64 = 25;
/// Longer than any hosted API sells.
pub(super) const PIN_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Each an answer's worth of bookkeeping.
pub(super) const PINS: u64 = 4096;
/// A stage call a request: far more than one host's engines take in.
pub(super) const CONTROL_REQUESTS: u64 = 512;
/// A few proxies with their pools.
pub(super) const CONTROL_CONNECTIONS: u64 = 1024;

/// Large enough that a TiB has 4096 of them to be opened at the start, small enough that giving one up costs little.
pub(super) const SEGMENT: u64 = 256 * MIB;
/// A drive of 3.84 TB written over three times a day, as drives for mixed use are made for, takes 133 MB a second.
pub(super) const WRITE_RATE: u64 = 128 * MIB;
/// What was used only once is used again less often than what was used twice.
pub(super) const ADMIT_USES: u64 = 2;
/// A TiB in a day and a half, a thousandth or less of what a drive reads.
pub(super) const SCRUB_RATE: u64 = 8 * MIB;
/// Enough to keep a drive busy with plain reads; with io_uring one of them does.
pub(super) const DISK_READERS: u64 = 8;
/// Writes under way: what one long prompt brings at once.
pub(super) const DISK_WRITES: u64 = 256;
/// Loads under way: what one long prompt needs at once.
pub(super) const DISK_LOADS: u64 = 2048;

/// Memory of a GPU is the engine's unless somebody gives some of it away.
pub(super) const LANDING: u64 = 0;

pub(super) const LANDING_RANGE: RangeInclusive<u64> = 0..=TIB;
pub(super) const CAPACITY_RANGE: RangeInclusive<u64> = 4 * MIB..=1024 * TIB;
pub(super) const SEGMENT_RANGE: RangeInclusive<u64> = MIB..=64 * GIB;
pub(super) const WRITE_RATE_RANGE: RangeInclusive<u64> = MIB..=TIB;
pub(super) const SCRUB_RATE_RANGE: RangeInclusive<u64> = 0..=TIB;
pub(super) const ADMIT_RANGE: RangeInclusive<u64> = 0..=1000;
pub(super) const DISK_READERS_RANGE: RangeInclusive<u64> = 1..=256;
pub(super) const DISK_JOBS_RANGE: RangeInclusive<u64> = 1..=65_536;
pub(super) const HOST_RANGE: RangeInclusive<u64> = EXTENT_BYTES..=64 * TIB;
pub(super) const REGION_RANGE: RangeInclusive<u64> = MIB..=64 * GIB;
pub(super) const RECIPES_RANGE: RangeInclusive<u64> = MIB..=64 * GIB;
pub(super) const LEASE_TTL_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
pub(super) const VERIFY_FRESH_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
pub(super) const LOOKUP_DEADLINE_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10);
pub(super) const STAGE_DEADLINE_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(60);
pub(super) const THREADS_RANGE: RangeInclusive<u64> = 0..=256;
pub(super) const SESSIONS_RANGE: RangeInclusive<u64> = 1..=1024;
pub(super) const CONNECTIONS_RANGE: RangeInclusive<u64> = 2..=65_536;
pub(super) const LEASES_RANGE: RangeInclusive<u64> = 1..=1 << 20;
pub(super) const VERIFICATIONS_RANGE: RangeInclusive<u64> = 1..=65_536;
pub(super) const COPIES_RANGE: RangeInclusive<u64> = 1..=1 << 20;
pub(super) const PINNED_RANGE: RangeInclusive<u64> = 1..=100;
pub(super) const PERCENT_RANGE: RangeInclusive<u64> = 0..=100;
pub(super) const PIN_TTL_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
pub(super) const PINS_RANGE: RangeInclusive<u64> = 1..=65_536;
pub(super) const QUOTA_RANGE: RangeInclusive<u64> = 0..=64 * TIB;
pub(super) const REQUESTS_RANGE: RangeInclusive<u64> = 1..=65_536;
