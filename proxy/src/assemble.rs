//! What the parts of the process are told by its configuration, and the files that the configuration names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_identity::{HasherSettings, RunBytes, Secret, ToolsOrder};
use larder_routing::PolicyKind;

use crate::config::{self, Config, Policy};
use crate::gateway::body::{BodyBudget, BodyLimits};
use crate::gateway::deny::DenyList;
use crate::gateway::places::Places;
use crate::gateway::{self, connection};
use crate::keys::Keys;
use crate::pool::Guards;
use crate::{breaker, health, retry, tls};

/// A file that the configuration names and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {path:?}: {reason}")]
pub struct FileFault {
    /// The key in the configuration.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What stands in the files that a configuration names.
#[derive(Clone, Debug)]
pub struct Files {
    /// The secret of prefix hashes; a random one where there is no file.
    pub secret: Secret,
    /// The bearer token of the cache nodes.
    pub node_token: Option<String>,
    /// The clients' keys.
    pub keys: Option<Keys>,
    /// The admin listener's token.
    pub admin_token: Option<Keys>,
    /// The certificate of the client listener.
    pub tls: Option<tls::Identity>,
}

impl Files {
    /// Reads all of them.
    ///
    /// # Errors
    /// Each file that cannot be used.
    pub fn read(config: &Config) -> Result<Self, Vec<FileFault>> {
        let mut faults = Vec::new();
        let secret =
            read(&mut faults, "routing.secret_file", config.routing.secret_file.as_deref(), |bytes| {
                Ok(Secret::derive(bytes.trim_ascii_end()))
            });
        let node_token =
            read(&mut faults, "warehouse.token_file", config.warehouse.token_file.as_deref(), token);
        let keys = read(&mut faults, "access.keys_file", config.access.keys_file.as_deref(), Keys::parse);
        let admin_token = config.access.admin_token_file.as_deref();
        let admin_token = read(&mut faults, "access.admin_token_file", admin_token, |bytes| {
            token(bytes).map(|token| Keys::one("admin", &token))
        });
        let tls = config.tls.as_ref().and_then(|tls| identity(&mut faults, tls));
        if !faults.is_empty() {
            return Err(faults);
        }
        // Chains never leave this process without a file, so its secret need not either.
        let secret = secret.unwrap_or_else(|| Secret::derive(&rand::random::<[u8; 32]>()));
        Ok(Self { secret, node_token, keys, admin_token, tls })
    }

    /// The paths of those that are looked at again while the process runs.
    pub fn watched(config: &Config) -> Vec<PathBuf> {
        let config::Access { keys_file, admin_token_file, .. } = &config.access;
        let tls = config.tls.iter().flat_map(|tls| [&tls.cert_file, &tls.key_file]);
        let others = [keys_file, admin_token_file, &config.warehouse.token_file];
        others.into_iter().flatten().chain(tls).cloned().collect()
    }
}

fn read<T>(
    faults: &mut Vec<FileFault>,
    key: &'static str,
    path: Option<&Path>,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Option<T> {
    let path = path?;
    let read = std::fs::read(path).map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes));
    read.map_err(|reason| faults.push(FileFault { key, path: path.to_owned(), reason })).ok()
}

fn identity(faults: &mut Vec<FileFault>, config: &config::Tls) -> Option<tls::Identity> {
    let bytes = |bytes: &[u8]| Ok(bytes.to_vec());
    let chain = read(faults, "tls.cert_file", Some(&config.cert_file), bytes);
    let key = read(faults, "tls.key_file", Some(&config.key_file), bytes);
    let made = tls::Identity::new(&chain?, &key?);
    made.map_err(|tls::BadIdentity { key, reason }| {
        let path = if key == "tls.key_file" { &config.key_file } else { &config.cert_file };
        faults.push(FileFault { key, path: path.clone(), reason });
    })
    .ok()
}

/// A bearer token, checked to be one that a header can carry.
fn token(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_or("", str::trim);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("holds no token of printable ASCII".to_owned());
    }
    Ok(text.to_owned())
}

/// How a pool's prompts are hashed.
///
/// # Errors
/// The value that cannot be used.
pub fn hashing(config: &Config, pool: &config::Pool, secret: &Secret) -> Result<HasherSettings, String> {
    let mut hashing = HasherSettings::new(secret.clone());
    hashing.run_bytes =
        RunBytes::try_from(config.routing.run_bytes).map_err(|e| format!("routing.run_bytes: {e}"))?;
    hashing.tools_order = match pool.tools_order {
        config::ToolsOrder::BeforeSystem => ToolsOrder::BeforeSystem,
        config::ToolsOrder::FirstUserTurn => ToolsOrder::FirstUserTurn,
    };
    Ok(hashing)
}

/// How a pool chooses.
pub fn routing(config: &Config) -> larder_routing::Settings {
    let routing = &config.routing;
    larder_routing::Settings {
        policy: match routing.policy {
            Policy::Larder => PolicyKind::Larder,
            Policy::RoundRobin => PolicyKind::RoundRobin,
            Policy::SessionHash => PolicyKind::SessionHash,
            Policy::MinTtft => PolicyKind::MinTtft,
        },
        index_bytes: routing.index_bytes / config.pools.len().max(1),
        default_kv_tokens: routing.default_kv_tokens,
        default_prefill_tokens_per_s: routing.default_prefill_tokens_per_s,
        min_fetch_tokens: config.warehouse.min_tokens,
        seed: routing.seed.unwrap_or_else(rand::random),
        hold_limit_s: routing.hold_limit.as_secs_f64(),
        max_held: routing.max_held,
        max_held_bytes: routing.max_held_bytes,
        slow_start_s: routing.slow_start.as_secs_f64(),
        ..larder_routing::Settings::default()
    }
}

/// What keeps requests from endpoints that fail.
pub fn guards(config: &Config) -> Guards {
    let config::Breaker { failures, open, open_max } = config.breaker;
    Guards {
        breaker: breaker::Settings { failures, open, open_max },
        retry: retry::Settings { ratio: config.retry.budget, burst: config.retry.burst as f64 },
    }
}

/// How engines are checked.
pub fn health(config: &Config) -> health::Settings {
    let h = &config.health;
    health::Settings {
        interval: h.interval,
        timeout: h.timeout,
        path: h.path.clone(),
        metrics_path: h.metrics_path.clone(),
        unhealthy_after: h.unhealthy_after,
        healthy_after: h.healthy_after,
    }
}

/// What the gateway shares with others, however often its settings change.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Bytes of request bodies.
    pub budget: Arc<BodyBudget>,
    /// Requests in the proxy.
    pub places: Arc<Places>,
}

impl Shared {
    /// With the limits of `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            budget: BodyBudget::new(config.limits.max_buffered_bytes),
            places: Places::new(config.limits.max_in_flight),
        }
    }

    /// Sets the limits of `config`.
    pub fn set(&self, config: &Config) {
        self.budget.set_limit(config.limits.max_buffered_bytes);
        self.places.set_limit(config.limits.max_in_flight);
    }
}

/// What the gateway is told.
///
/// # Errors
/// The value that cannot be used.
pub fn gateway(config: &Config, shared: &Shared, files: &Files) -> Result<gateway::Settings, String> {
    let limits = connection::Limits { header: config.timeouts.header, keepalive: config.timeouts.keepalive };
    let session_header = config.routing.session_header.parse();
    Ok(gateway::Settings {
        body: BodyLimits {
            max_bytes: config.limits.max_body_bytes,
            max_time: config.timeouts.body,
            budget: Arc::clone(&shared.budget),
        },
        server: connection::Server::new(limits, config.limits.max_header_bytes),
        max_connections: config.limits.max_connections,
        places: Arc::clone(&shared.places),
        session_header: session_header.map_err(|e| format!("routing.session_header: {e}"))?,
        response_headers: config.response.headers,
        max_attempts: config.routing.max_attempts,
        retry_started: config.retry.may_have_started,
        answer: gateway::response::Limits { idle: config.timeouts.idle, total: config.timeouts.total },
        denied: DenyList::new(&config.access.deny, &config.access.allow),
        access_log: config.access_log,
        keys: files.keys.clone(),
        forward_keys: config.access.forward_keys,
        admin_token: files.admin_token.clone(),
        tls: files.tls.as_ref().map(|identity| tls::Acceptor::new(identity, config.timeouts.handshake)),
    })
}
