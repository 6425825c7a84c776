//! The composition root: a config becomes pools, services and a running process.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use larder_identity::{HasherSettings, RunBytes, Secret, ToolsOrder};
use larder_routing::PolicyKind;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::background::background_service;
use pingora::services::{Service, listening};
use tokio::sync::watch;

use crate::admin::{Admin, AdminService};
use crate::config::{self, Config, LogFormat, Policy};
use crate::decisions::Decisions;
use crate::drain::{Drain, DrainSignals};
use crate::endpoints::{EndpointCalls, Planner};
use crate::gateway::body::{BodyBudget, BodyLimits};
use crate::gateway::deny::DenyList;
use crate::gateway::{self, Gateway};
use crate::health::{self, HealthChecks, SharedChecks};
use crate::logging;
use crate::metrics::Metrics;
use crate::pool::{EndpointPlan, Guards, Pool};
use crate::upstream::{self, Upstream};
use crate::warehouse::{self, CacheNode};
use crate::{breaker, retry};

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("{key} = \"{address}\": {source}; is another process listening there?")]
    Bind {
        /// The config key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that the config names could not be read.
    #[error("{key} = {path:?}: {source}")]
    File {
        /// The config key.
        key: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else that the config says cannot be done.
    #[error("{0}")]
    Other(String),
}

/// Runs the gateway until a signal ends it.
///
/// Prints `listening on http://ADDR` and `admin on http://ADDR` once both listeners are bound, so that whoever
/// started the process with port 0 knows where it is.
///
/// # Errors
/// See [`StartError`]; once the listeners are bound, none.
pub fn run(config: Config) -> Result<(), StartError> {
    logging::start(&config.log, config.log_format == LogFormat::Json).map_err(StartError::Other)?;
    let metrics = Arc::new(Metrics::new().map_err(|e| StartError::Other(e.to_string()))?);
    let drain = Drain::new(config.timeouts.drain);
    let budget = BodyBudget::new(config.limits.max_buffered_bytes);
    let pools = pools(&config, &metrics)?;
    pools.iter().for_each(|pool| pool.set_pass_through(config.routing.pass_through));
    let checks = Arc::new(HealthChecks::new(health_settings(&config), pools.clone()));
    let listener = bind("listen", config.listen)?;
    let admin_listener = bind("admin", config.admin)?;
    announce(&listener, &admin_listener);

    let decisions = Arc::new(Decisions::default());
    let gateway_settings = gateway_settings(&config, Arc::clone(&budget))?;
    let admin = Admin {
        pools: pools.clone(),
        metrics: Arc::clone(&metrics),
        drain: Arc::clone(&drain),
        endpoints: EndpointCalls::new(pools.clone(), Arc::clone(&checks), planner(&config, &metrics)?),
        decisions: Arc::clone(&decisions),
        body: gateway_settings.body.clone(),
        session_header: gateway_settings.session_header.clone(),
    };
    let gateway = Gateway::new(gateway_settings, pools, (metrics, decisions), Arc::clone(&drain));

    let conf = ServerConf { threads: config.worker_threads(), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.add_service(Prebound::new(gateway, listener, drain.watch()));
    server.add_service(background_service("admin", AdminService::new(admin, admin_listener)));
    server.add_service(background_service("health", SharedChecks(checks)));
    server.bootstrap();
    server.run(RunArgs { shutdown_signal: Box::new(DrainSignals(drain)) });
    Ok(())
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|source| StartError::Bind { key, address, source })
}

fn announce(listener: &TcpListener, admin: &TcpListener) {
    let mut out = std::io::stdout().lock();
    for (what, listener) in [("listening", listener), ("admin", admin)] {
        if let Ok(address) = listener.local_addr() {
            // Nobody reading is no reason not to serve.
            let _ = writeln!(out, "{what} on http://{address}");
        }
    }
    let _ = out.flush();
}

fn pools(config: &Config, metrics: &Arc<Metrics>) -> Result<Vec<Arc<Pool>>, StartError> {
    let secret = secret(config)?;
    let plan = planner(config, metrics)?;
    let seed = config.routing.seed.unwrap_or_else(rand::random);
    let policy = match config.routing.policy {
        Policy::Larder => PolicyKind::Larder,
        Policy::RoundRobin => PolicyKind::RoundRobin,
        Policy::SessionHash => PolicyKind::SessionHash,
        Policy::MinTtft => PolicyKind::MinTtft,
    };
    let run_bytes = RunBytes::try_from(config.routing.run_bytes)
        .map_err(|e| StartError::Other(format!("routing.run_bytes: {e}")))?;
    let pool = |pool: &config::Pool| {
        let mut hashing = HasherSettings::new(secret.clone());
        hashing.run_bytes = run_bytes;
        hashing.tools_order = match pool.tools_order {
            config::ToolsOrder::BeforeSystem => ToolsOrder::BeforeSystem,
            config::ToolsOrder::FirstUserTurn => ToolsOrder::FirstUserTurn,
        };
        let settings = larder_routing::Settings {
            policy,
            index_bytes: config.routing.index_bytes / config.pools.len().max(1),
            default_kv_tokens: config.routing.default_kv_tokens,
            default_prefill_tokens_per_s: config.routing.default_prefill_tokens_per_s,
            seed,
            hold_limit_s: config.routing.hold_limit.as_secs_f64(),
            max_held: config.routing.max_held,
            max_held_bytes: config.routing.max_held_bytes,
            ..larder_routing::Settings::default()
        };
        let plans = pool.endpoints.iter().map(|e| plan(&pool.model, e)).collect();
        let name = (pool.model.clone(), pool.aliases.clone());
        Pool::new(name, plans, hashing, (settings, guards(config)), Arc::clone(metrics))
    };
    Ok(config.pools.iter().map(pool).collect())
}

fn guards(config: &Config) -> Guards {
    let config::Breaker { failures, open, open_max } = config.breaker;
    Guards {
        breaker: breaker::Settings { failures, open, open_max },
        retry: retry::Settings { ratio: config.retry.budget, burst: config.retry.burst as f64 },
    }
}

/// What makes endpoints from what the config, or later a call, says of them.
fn planner(config: &Config, metrics: &Arc<Metrics>) -> Result<Planner, StartError> {
    let limits = upstream::Limits {
        connect: config.timeouts.connect,
        first_byte: config.timeouts.first_byte,
        idle: config.limits.upstream_idle_per_endpoint,
    };
    let token = token(config)?;
    let node_limits =
        warehouse::Limits { deadline: config.warehouse.deadline, min_tokens: config.warehouse.min_tokens };
    let metrics = Arc::clone(metrics);
    Ok(Box::new(move |model, endpoint| EndpointPlan {
        name: endpoint.name.clone(),
        upstream: Upstream::new(endpoint.authority.clone(), limits),
        kv_tokens: endpoint.kv_tokens,
        cache_node: cache_node(node_limits, (model, &endpoint.name), endpoint, token.as_deref(), &metrics),
    }))
}

fn cache_node(
    limits: warehouse::Limits,
    labels: (&str, &str),
    endpoint: &config::Endpoint,
    token: Option<&str>,
    metrics: &Metrics,
) -> Option<CacheNode> {
    let settings = larder_client::Settings::new(endpoint.cache_node.clone()?);
    let settings = match token {
        Some(token) => settings.with_token(token)?,
        None => settings,
    };
    let engine = format!("http://{}", endpoint.authority);
    Some(CacheNode::new(larder_client::Client::new(settings), engine, limits, metrics, labels))
}

/// The bearer token of the cache nodes, checked to be one that a header can carry.
fn token(config: &Config) -> Result<Option<String>, StartError> {
    let Some(path) = &config.warehouse.token_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|source| StartError::File {
        key: "warehouse.token_file",
        path: path.clone(),
        source,
    })?;
    let token = text.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let path = path.display();
        return Err(StartError::Other(format!(
            "warehouse.token_file = {path}: holds no token of printable ASCII"
        )));
    }
    Ok(Some(token))
}

fn secret(config: &Config) -> Result<Secret, StartError> {
    match &config.routing.secret_file {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|source| StartError::File {
                key: "routing.secret_file",
                path: path.clone(),
                source,
            })?;
            Ok(Secret::derive(bytes.trim_ascii_end()))
        }
        // Chains never leave this process then, so its secret need not either.
        None => Ok(Secret::derive(&rand::random::<[u8; 32]>())),
    }
}

fn health_settings(config: &Config) -> health::Settings {
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

fn gateway_settings(config: &Config, budget: Arc<BodyBudget>) -> Result<gateway::Settings, StartError> {
    Ok(gateway::Settings {
        body: BodyLimits { max_bytes: config.limits.max_body_bytes, max_time: config.timeouts.body, budget },
        connection: gateway::connection::Limits {
            header: config.timeouts.header,
            keepalive: config.timeouts.keepalive,
        },
        max_connections: config.limits.max_connections,
        max_header_bytes: config.limits.max_header_bytes,
        session_header: config
            .routing
            .session_header
            .parse()
            .map_err(|e| StartError::Other(format!("routing.session_header: {e}")))?,
        response_headers: config.response.headers,
        max_attempts: config.routing.max_attempts,
        retry_started: config.retry.may_have_started,
        answer: gateway::response::Limits { idle: config.timeouts.idle, total: config.timeouts.total },
        denied: DenyList::new(&config.access.deny, &config.access.allow),
        access_log: config.access_log,
    })
}

/// The gateway's listener: bound by us, so that port 0 can be told and a taken port is a plain error, served by
/// pingora, and closed when the drain begins instead of when pingora stops.
struct Prebound {
    inner: listening::Service<Gateway>,
    name: String,
    fds: ListenFds,
    ending: watch::Receiver<bool>,
}

impl Prebound {
    fn new(gateway: Gateway, listener: TcpListener, ending: watch::Receiver<bool>) -> Self {
        let name = listener.local_addr().map_or_else(|_| "0.0.0.0:0".to_owned(), |a| a.to_string());
        let mut fds = Fds::new();
        fds.add(name.clone(), listener.into_raw_fd());
        let mut inner = listening::Service::new("gateway".to_owned(), gateway);
        inner.add_tcp(&name);
        Self { inner, name, fds: Arc::new(parking_lot::Mutex::new(fds)), ending }
    }
}

#[async_trait]
impl Service for Prebound {
    async fn start_service(&mut self, _fds: Option<ListenFds>, _shutdown: ShutdownWatch, per_fd: usize) {
        let fds = Some(Arc::clone(&self.fds));
        Service::start_service(&mut self.inner, fds, self.ending.clone(), per_fd).await;
    }

    fn name(&self) -> &str {
        &self.name
    }
}
