//! The configuration: what the file says (`raw`), the limits and defaults (`defaults`), and what the process
//! runs with ([`Config`], made by `validate`).
//!
//! Everything that can be wrong with a file is reported in one go, each fault with its line; unknown keys are
//! faults. `config/proxy.toml` at the root of the repository documents every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_settings::{Faults, read, read_text};

mod defaults;
mod endpoint_url;
mod raw;
mod validate;

#[cfg(test)]
mod tests;

/// A validated configuration: every value present, in range, and consistent with the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the admin plane (metrics, health, explanations) listens: a loopback address where it has no token.
    pub admin: SocketAddr,
    /// Worker threads as configured; 0 stands for one per core, see [`Config::worker_threads`].
    pub threads: usize,
    /// What is logged: directives of `tracing-subscriber`'s `EnvFilter`, not yet parsed.
    pub log: String,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Whether each request has a line in the log.
    pub access_log: bool,
    /// Whether the file is read again by itself when it changes.
    pub reload_on_change: bool,
    /// What a client may ask for.
    pub access: Access,
    /// With what the client listener speaks TLS. Absent: it does not.
    pub tls: Option<Tls>,
    /// Where the index is kept over a restart. Absent: nowhere.
    pub snapshot: Option<Snapshot>,
    /// What a client may make the proxy hold.
    pub limits: Limits,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// What is asked a second time.
    pub retry: Retry,
    /// When an endpoint that fails is left alone.
    pub breaker: Breaker,
    /// How an endpoint is chosen.
    pub routing: Routing,
    /// How cache nodes are asked.
    pub warehouse: Warehouse,
    /// How endpoints are probed.
    pub health: Health,
    /// What is added to responses.
    pub response: Response,
    /// The pools, at least one, in the order of the file.
    pub pools: Vec<Pool>,
}

impl Config {
    /// Worker threads to start: as configured, or one per core this process may use (1 if that is unknown).
    pub fn worker_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a client may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Paths not served to clients, beside the built-in list.
    pub deny: Vec<String>,
    /// Paths of either that are served all the same.
    pub allow: Vec<String>,
    /// The file with the clients' keys. Absent: none is needed.
    pub keys_file: Option<PathBuf>,
    /// Whether engines get to see the keys.
    pub forward_keys: bool,
    /// The file with the admin listener's token. Absent: none is needed.
    pub admin_token_file: Option<PathBuf>,
}

/// A certificate and its key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The file with the certificate and those between it and its root.
    pub cert_file: PathBuf,
    /// The file with its private key.
    pub key_file: PathBuf,
}

/// The index on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The file.
    pub file: PathBuf,
    /// Between two writings.
    pub every: Duration,
    /// Most bytes of the file.
    pub max_bytes: u64,
}

/// What a client may make the proxy hold. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body; a larger one is answered with 413.
    pub max_body_bytes: usize,
    /// All request bodies held at one time; at least `max_body_bytes`.
    pub max_buffered_bytes: usize,
    /// The largest request head.
    pub max_header_bytes: usize,
    /// Client connections open at one time.
    pub max_connections: usize,
    /// Requests in the proxy at one time; one more is answered with 503.
    pub max_in_flight: usize,
    /// Requests in flight at an endpoint that names no number of its own. Absent: no bound.
    pub max_in_flight_per_endpoint: Option<u32>,
    /// Idle connections kept to each endpoint.
    pub upstream_idle_per_endpoint: usize,
}

/// How long each step may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From a connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its head.
    pub header: Duration,
    /// From the end of the head to the end of the body.
    pub body: Duration,
    /// To connect to an endpoint.
    pub connect: Duration,
    /// From the forwarded request to the first byte of the endpoint's answer: a long prefill takes minutes.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// From the request's head to the end of its answer.
    pub total: Duration,
    /// How long a client connection may idle between requests.
    pub keepalive: Duration,
    /// How long requests in flight may take to finish after the process was told to stop.
    pub drain: Duration,
}

/// What is asked a second time.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Retries that each request earns.
    pub budget: f64,
    /// Retries that may be saved up.
    pub burst: u64,
    /// Whether a request is sent again that an engine may have started.
    pub may_have_started: bool,
}

/// When an endpoint that fails is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row that eject it; 0: never.
    pub failures: u32,
    /// How long it is left alone at first.
    pub open: Duration,
    /// How long at most, however often it fails again.
    pub open_max: Duration,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// The policy of every pool.
    pub policy: Policy,
    /// Whether the policy is switched off at the start.
    pub pass_through: bool,
    /// Whether the policy decides without being followed.
    pub shadow: bool,
    /// Bytes of prompt per element of a prompt chain: a power of two.
    pub run_bytes: usize,
    /// Memory for the index of who holds which prefix, in bytes, for all pools together.
    pub index_bytes: usize,
    /// The file with the secret that keys all prefix hashes. Absent: a random one for this process.
    pub secret_file: Option<PathBuf>,
    /// The request header that names a session, in lower case.
    pub session_header: String,
    /// Fixes the order of ties, for reproducible runs. Absent: random.
    pub seed: Option<u64>,
    /// Tokens of KV cache an endpoint is taken to have until it says so itself.
    pub default_kv_tokens: u64,
    /// Tokens a second an endpoint is taken to prefill until that was measured.
    pub default_prefill_tokens_per_s: f64,
    /// Endpoints tried for one request, the first included, while nothing was sent to the client.
    pub max_attempts: usize,
    /// Time after which a request that is held back goes before later ones, for a quarter of its endpoint's time. Zero:
    /// nobody is held.
    pub hold_limit: Duration,
    /// Requests held back at most, per pool.
    pub max_held: usize,
    /// Their prompt bytes at most, per pool.
    pub max_held_bytes: u64,
    /// How long an endpoint that came back takes to get its whole share of the load.
    pub slow_start: Duration,
    /// Seconds of the policy's clock for each second of the wall: 1, but for imitated engines that run faster than life.
    pub time_scale: f64,
}

/// The policies, by their names in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `larder`: the cost of waiting and of what others lose, both in seconds.
    Larder,
    /// `round_robin`: each endpoint in turn.
    RoundRobin,
    /// `session_hash`: the same session to the same endpoint.
    SessionHash,
    /// `min_ttft`: the soonest first token for this request alone.
    MinTtft,
}

impl Policy {
    /// Every policy and its name in the file.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("larder", Self::Larder),
        ("round_robin", Self::RoundRobin),
        ("session_hash", Self::SessionHash),
        ("min_ttft", Self::MinTtft),
    ];
}

/// How the cache nodes beside the endpoints are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warehouse {
    /// How long a request waits for a node to stage its prefix before it goes out without.
    pub deadline: Duration,
    /// Prompt tokens that an endpoint must lack for its node to be waited for.
    pub min_tokens: u64,
    /// KV tokens a second that an endpoint copies from its node at most.
    pub link_tokens_per_s: u64,
    /// The file with the bearer token of all nodes. Absent: they want none.
    pub token_file: Option<PathBuf>,
}

/// How endpoints are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Between two probes of an endpoint.
    pub interval: Duration,
    /// How long a probe may take before it counts as failed.
    pub timeout: Duration,
    /// The path probed on each endpoint; begins with `/`.
    pub path: String,
    /// Failed probes in a row after which an endpoint gets no requests.
    pub unhealthy_after: u32,
    /// Good probes in a row after which it gets requests again.
    pub healthy_after: u32,
    /// The path of the engine's metrics; begins with `/`. Absent: they are not read.
    pub metrics_path: Option<String>,
}

/// What is added to responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Whether `x-larder-endpoint` and `x-larder-matched-tokens` are set.
    pub headers: bool,
}

/// Endpoints that serve the same model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The model's name in requests; in no other pool, nor any alias.
    pub model: String,
    /// Further names of the same model.
    pub aliases: Vec<String>,
    /// Where the model's chat template renders the tools.
    pub tools_order: ToolsOrder,
    /// As [`Timeouts::first_byte`], for this model. Absent: that one.
    pub first_byte: Option<Duration>,
    /// At least one, in the order of the file; names and authorities are unique within the pool.
    pub endpoints: Vec<Endpoint>,
}

/// Where a chat template renders the tools, which decides what two prompts share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsOrder {
    /// `before_system`: ahead of everything, or inside the system message.
    BeforeSystem,
    /// `first_user_turn`: inside the first user message, as Llama 3 does.
    FirstUserTurn,
}

impl ToolsOrder {
    /// Every order and its name in the file.
    pub const NAMES: [(&'static str, Self); 2] =
        [("before_system", Self::BeforeSystem), ("first_user_turn", Self::FirstUserTurn)];
}

/// One engine instance, spoken to in HTTP/1.1 without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in logs, metrics and response headers: printable ASCII without blanks.
    pub name: String,
    /// Host name in lower case or IP address, an IPv6 one without brackets.
    pub host: String,
    /// Its port, never 0.
    pub port: u16,
    /// `host:port` as in a `Host` header, an IPv6 host in brackets.
    pub authority: String,
    /// Tokens its KV cache holds, where the operator knows better than `/metrics` and the default.
    pub kv_tokens: Option<u64>,
    /// Requests in flight at most. Absent: [`Limits::max_in_flight_per_endpoint`].
    pub max_in_flight: Option<u32>,
    /// The control API of the cache node on its host, where there is one.
    pub cache_node: Option<larder_client::Address>,
}

impl Endpoint {
    /// An endpoint that comes while the process runs, held to the same rules as those of the file.
    ///
    /// # Errors
    /// The value that is wrong, and what to write instead.
    pub fn new(
        url: &str,
        name: Option<String>,
        (kv_tokens, max_in_flight): (Option<u64>, Option<u32>),
        cache_node: Option<&str>,
    ) -> Result<Self, String> {
        validate::lone_endpoint(url, name, (kv_tokens, max_in_flight), cache_node)
    }
}

/// Reads and validates a file.
///
/// # Errors
/// Every fault of the file, or one if it cannot be read or is not TOML. Exit with
/// [`EX_USAGE`](larder_settings::EX_USAGE) then: a restart changes nothing.
pub fn load(path: &Path) -> Result<Config, Faults> {
    parse(&read_text(path)?).map_err(|faults| faults.in_file(path))
}

/// Validates the text of a file.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Config, Faults> {
    let (raw, mut report) = read(text, raw::RawConfig::read)?;
    let config = validate::validate(raw, &mut report);
    report.into_result(config)
}
