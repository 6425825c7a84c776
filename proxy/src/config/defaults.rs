//! Every default, written once, with its reason; and the range each value must lie in.
//!
//! `config/proxy.toml` repeats the defaults for its readers; a test holds the two together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{LogFormat, Policy, ToolsOrder};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every address: a proxy that only its own host can reach is the rarer wish.
pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);
/// Loopback: without a token everybody who reaches it may do everything.
pub(super) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// One per core: the work is parsing and hashing, and nothing in it blocks.
pub(super) const THREADS: u64 = 0;
/// What an operator acts on, without a line per request.
pub(super) const LOG: &str = "info";
/// A proxy is first started by a person at a terminal.
pub(super) const LOG_FORMAT: LogFormat = LogFormat::Text;
/// A line per request is for those who ask for it: metrics and the last decisions answer most questions.
pub(super) const ACCESS_LOG: bool = false;

/// An edit that is saved is meant; two looks at a file that rests keep half-written ones out.
pub(super) const RELOAD_ON_CHANGE: bool = true;

/// 100k tokens of text are about 400 kB; room for a few images in base64 beside a very long prompt.
pub(super) const MAX_BODY: u64 = 32 * MIB;
/// 32 bodies of the largest size, or some 2,600 of 100k tokens each; within what a small host has to spare.
pub(super) const MAX_BUFFERED: u64 = GIB;
/// Eight times the 8 KiB that common servers allow: some gateways send long tokens in headers.
pub(super) const MAX_HEADER: u64 = 64 * KIB;
/// Streams last minutes, so many are open at once; two descriptors each stays below the usual 65,536.
pub(super) const MAX_CONNECTIONS: u64 = 16_384;
/// As many as connections: HTTP/2 brings many requests on each, and what is beyond is better told at once.
pub(super) const MAX_IN_FLIGHT: u64 = 16_384;
/// The most requests an engine usually runs in one batch: beyond it connections would idle for good.
pub(super) const UPSTREAM_IDLE_PER_ENDPOINT: u64 = 256;

/// Two round trips; a slow line and a busy host may need seconds.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A head is one packet or a few; longer means a stalled or hostile client.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest body over a line of 5 Mbit/s.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Engines are near: more than a lost SYN and its first repeat (1 s) means that the endpoint is gone.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An unstreamed answer, and a very long prefill behind a queue, show their first byte after minutes. 600 s is
/// also what the OpenAI client libraries wait.
pub(super) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two tokens an engine may preempt a request and compute its prompt again: as long as a long prefill.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest answers (100k tokens at 30 a second) take about an hour; what runs on is nobody's any more.
pub(super) const TOTAL_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Longer than the 60 s after which common load balancers in front drop idle connections: the side that reuses a
/// connection must be the first to give it up, or its request meets a closing one.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// Most streams end within a minute; an orchestrator that waits longer before it kills may be matched here.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A fifth: enough for one engine of five that is gone, and little on top of an overload.
pub(super) const RETRY_BUDGET: f64 = 0.2;
/// A moment's worth of requests that meet an engine that has just gone.
pub(super) const RETRY_BURST: u64 = 32;
/// Doing the work twice costs an engine minutes, and a client that wants it can ask again itself.
pub(super) const RETRY_STARTED: bool = false;
/// Five in a row are no accident.
pub(super) const BREAKER_FAILURES: u64 = 5;
/// About the time in which health checks notice a dead engine.
pub(super) const BREAKER_OPEN: Duration = Duration::from_secs(5);
/// An engine that comes back after a long time is missed no longer than this.
pub(super) const BREAKER_OPEN_MAX: Duration = Duration::from_secs(60);

/// What this proxy is for.
pub(super) const POLICY: Policy = Policy::Larder;
/// A switch for bad days.
pub(super) const PASS_THROUGH: bool = false;
/// A trial before the first real use.
pub(super) const SHADOW: bool = false;
/// About 128 tokens: a few engine blocks, fine enough to place the end of a shared prefix.
pub(super) const RUN_BYTES: u64 = 512;
/// 500k tokens of KV cache are about 4,000 runs of text. Taking 64 bytes for each, an endpoint needs 256 kB, so this
/// leaves ample room for text that several endpoints held at some time.
pub(super) const INDEX: u64 = 256 * MIB;
/// There is no standard name; this one says what it is and collides with no header of HTTP.
pub(super) const SESSION_HEADER: &str = "x-session-id";
/// About what an 80 GB GPU holds beside an 8B model with grouped-query attention (128 KiB of KV a token).
pub(super) const DEFAULT_KV_TOKENS: u64 = 500_000;
/// The right order of magnitude for a mid-sized model on one current GPU; used only until it was measured.
pub(super) const DEFAULT_PREFILL_TOKENS_PER_S: f64 = 8_000.0;
/// Two chances after the first choice: when three endpoints refuse, the fault is rarely theirs.
pub(super) const MAX_ATTEMPTS: u64 = 3;
/// Load balancers in front cut idle connections after 60 to 100 s: half of the least.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(30);
/// Two for each of 2,000 endpoints; who comes later is told to come again.
pub(super) const MAX_HELD: u64 = 4_096;
/// 5,000 prompts of 100,000 tokens; `limits.max_buffered` usually binds first.
pub(super) const MAX_HELD_BYTES: u64 = 2 * GIB;
/// Engines run in real time.
pub(super) const TIME_SCALE: f64 = 1.0;

/// Some batches' worth of time: an engine that is barely up should not meet all that it missed at once.
pub(super) const SLOW_START: Duration = Duration::from_secs(10);

/// What a client waits at most for a node that gives nothing: less than a prefill of a thousand tokens takes.
pub(super) const STAGE_DEADLINE: Duration = Duration::from_millis(50);
/// Below this, a prefill (64 ms at the default speed) is over before a chunk could be staged and loaded.
pub(super) const STAGE_MIN_TOKENS: u64 = 512;
/// An 8B model's KV (128 KiB a token) over 25 GB/s, what a GPU on PCIe 4 copies from its host; a 70B model's (320 KiB)
/// over PCIe 5, nearly.
pub(super) const LINK_TOKENS_PER_S: u64 = 190_000;
/// Above, nothing is that quick; the decision takes everything below 100 for 100.
pub(super) const LINK_RANGE: RangeInclusive<u64> = 1..=1_000_000_000;

/// A dead endpoint is out within three of these, and a probe costs an engine nothing.
pub(super) const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// An engine whose event loop needs longer would serve nobody well.
pub(super) const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Served under this path by vLLM, SGLang, TensorRT-LLM and llama.cpp alike.
pub(super) const HEALTH_PATH: &str = "/health";
/// One lost probe is noise, and so may two be under load; three are not.
pub(super) const UNHEALTHY_AFTER: u64 = 3;
/// An engine answers only once its model is loaded: there is nothing to wait for after that.
pub(super) const HEALTHY_AFTER: u64 = 1;
/// Where vLLM and SGLang publish the size of their KV cache.
pub(super) const METRICS_PATH: &str = "/metrics";

/// The headers reveal endpoint names to clients, but without them nobody sees why a request was slow.
pub(super) const RESPONSE_HEADERS: bool = true;

/// What a crash forgets at most; writing takes a moment of one core.
pub(super) const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
/// As much as the index itself may take.
pub(super) const SNAPSHOT_MAX: u64 = 256 * MIB;
/// Keys are for the gateway, and what engines are told they may log.
pub(super) const FORWARD_KEYS: bool = false;

/// What most chat templates do.
pub(super) const TOOLS_ORDER: ToolsOrder = ToolsOrder::BeforeSystem;

// Ranges. The lower ends keep a slip (a missing unit, a zero) from making a proxy that refuses everything, the
// upper ends from making a limit that limits nothing.
pub(super) const THREADS_RANGE: RangeInclusive<u64> = 0..=1_024;
pub(super) const MAX_BODY_RANGE: RangeInclusive<u64> = KIB..=4 * GIB;
pub(super) const MAX_BUFFERED_RANGE: RangeInclusive<u64> = KIB..=1024 * GIB;
pub(super) const MAX_HEADER_RANGE: RangeInclusive<u64> = KIB..=MIB;
pub(super) const CONNECTIONS_RANGE: RangeInclusive<u64> = 1..=1_000_000;
/// One at a time is a wish that makes sense.
pub(super) const IN_FLIGHT_RANGE: RangeInclusive<u64> = 1..=1_000_000;
/// 0: no bound.
pub(super) const IN_FLIGHT_OR_NONE: RangeInclusive<u64> = 0..=1_000_000;
/// 0 keeps none: a new connection for every request.
pub(super) const IDLE_RANGE: RangeInclusive<u64> = 0..=65_536;
/// A day is longer than any request; zero would time everything out.
pub(super) const TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(86_400);
/// A drain of zero is a wish that makes sense: stop now.
pub(super) const DRAIN_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
/// Shorter runs make chains of thousands of elements, longer ones lose a prefix's end.
pub(super) const RUN_BYTES_RANGE: RangeInclusive<u64> = 64..=4_096;
pub(super) const INDEX_RANGE: RangeInclusive<u64> = MIB..=1024 * GIB;
pub(super) const KV_TOKENS_RANGE: RangeInclusive<u64> = 1..=1_000_000_000_000;
pub(super) const PREFILL_RANGE: RangeInclusive<f64> = 1.0..=1e9;
/// An hour is longer than any client waits; 0 holds nobody.
pub(super) const HOLD_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// Beyond, a microsecond of this process is a tenth of a second of the engines.
pub(super) const TIME_SCALE_RANGE: RangeInclusive<f64> = 0.001..=100_000.0;
pub(super) const HELD_RANGE: RangeInclusive<u64> = 1..=1_000_000;
pub(super) const RETRY_BUDGET_RANGE: RangeInclusive<f64> = 0.0..=1.0;
/// 0: nothing is ever retried.
pub(super) const RETRY_BURST_RANGE: RangeInclusive<u64> = 0..=1_000_000;
pub(super) const BREAKER_FAILURES_RANGE: RangeInclusive<u64> = 0..=1_000;
pub(super) const ATTEMPTS_RANGE: RangeInclusive<u64> = 1..=16;
pub(super) const PROBES_RANGE: RangeInclusive<u64> = 1..=1_000;
