//! The composition root: a config becomes pools, services and a running process.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::background::background_service;
use pingora::services::{Service, listening};
use tokio::sync::watch;

use crate::admin::{Admin, AdminService};
use crate::assemble::{self, FileFault, Files, Shared};
use crate::config::{self, Config, LogFormat};
use crate::decisions::Decisions;
use crate::drain::{Drain, DrainSignals};
use crate::endpoints::EndpointCalls;
use crate::gateway::{Gateway, Live};
use crate::health::{HealthChecks, SharedChecks};
use crate::logging;
use crate::metrics::Metrics;
use crate::plans::{self, Plans};
use crate::pool::Pool;
use crate::reload::{Parts, Reload};
use crate::snapshot::{self, SnapshotService, Snapshots};

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
    /// Files that the config names cannot be used.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Files(Vec<FileFault>),
    /// Something else that the config says cannot be done.
    #[error("{0}")]
    Other(String),
}

/// Runs the gateway until a signal ends it; `path` is the file of `config`, and read again when it changes.
/// With `pass_through` requests go by load alone, whatever the file says of it.
///
/// Prints `listening on http://ADDR` and `admin on http://ADDR` once both listeners are bound, so that whoever
/// started the process with port 0 knows where it is.
///
/// # Errors
/// See [`StartError`]; once the listeners are bound, none.
pub fn run(path: &Path, config: Config, pass_through: bool) -> Result<(), StartError> {
    logging::start(&config.log, config.log_format == LogFormat::Json).map_err(StartError::Other)?;
    let metrics = Arc::new(Metrics::new().map_err(|e| StartError::Other(e.to_string()))?);
    let files = Files::read(&config).map_err(StartError::Files)?;
    let drain = Drain::new(config.timeouts.drain);
    let shared = Shared::new(&config);
    let node_token = files.node_token.clone();
    let plans = Arc::new(Plans::new(plans::Settings::new(&config, node_token), Arc::clone(&metrics)));
    let pools = pools(&config, &files, &plans, &metrics)?;
    for pool in &pools {
        pool.set_pass_through(config.routing.pass_through || pass_through);
        pool.set_shadow(config.routing.shadow);
    }
    let snapshots = config.snapshot.as_ref().map(|config::Snapshot { file, every, max_bytes }| {
        let settings = snapshot::Settings { file: file.clone(), every: *every, max_bytes: *max_bytes };
        Snapshots::new(settings, pools.clone())
    });
    if let Some(snapshots) = &snapshots {
        snapshots.load();
    }
    let checks = Arc::new(HealthChecks::new(assemble::health(&config), pools.clone()));
    let settings = assemble::gateway(&config, &shared, &files).map_err(StartError::Other)?;
    let live = Arc::new(Live::from_pointee(settings));
    let listener = bind("listen", config.listen)?;
    let admin_listener = bind("admin", config.admin)?;
    announce((&listener, config.tls.is_some()), &admin_listener);

    let decisions = Arc::new(Decisions::default());
    let admin = Admin {
        pools: pools.clone(),
        metrics: Arc::clone(&metrics),
        drain: Arc::clone(&drain),
        endpoints: EndpointCalls::new(pools.clone(), Arc::clone(&checks), Arc::clone(&plans)),
        decisions: Arc::clone(&decisions),
        gateway: Arc::clone(&live),
    };
    let threads = config.worker_threads();
    let parts = Parts {
        live: Arc::clone(&live),
        shared,
        pools: pools.clone(),
        plans,
        checks: Arc::clone(&checks),
        drain: Arc::clone(&drain),
        metrics: Arc::clone(&metrics),
    };
    let reload = Reload::new(path, config, parts);
    let gateway = Gateway::new(live, pools, (metrics, decisions), Arc::clone(&drain));

    let conf = ServerConf { threads, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.add_service(Prebound::new(gateway, listener, drain.watch()));
    server.add_service(background_service("admin", AdminService::new(admin, admin_listener)));
    server.add_service(background_service("health", SharedChecks(checks)));
    server.add_service(background_service("reload", reload));
    if let Some(snapshots) = &snapshots {
        let (snapshots, drain) = (Arc::clone(snapshots), Arc::clone(&drain));
        server.add_service(background_service("snapshot", SnapshotService { snapshots, drain }));
    }
    server.bootstrap();
    server.run(RunArgs { shutdown_signal: Box::new(DrainSignals { drain, snapshots }) });
    Ok(())
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|source| StartError::Bind { key, address, source })
}

fn announce((listener, tls): (&TcpListener, bool), admin: &TcpListener) {
    let mut out = std::io::stdout().lock();
    let scheme = if tls { "https" } else { "http" };
    for (what, scheme, listener) in [("listening", scheme, listener), ("admin", "http", admin)] {
        if let Ok(address) = listener.local_addr() {
            // Nobody reading is no reason not to serve.
            let _ = writeln!(out, "{what} on {scheme}://{address}");
        }
    }
    let _ = out.flush();
}

fn pools(
    config: &Config,
    files: &Files,
    plans: &Plans,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Arc<Pool>>, StartError> {
    let pool = |pool: &config::Pool| {
        let hashing = assemble::hashing(config, pool, &files.secret).map_err(StartError::Other)?;
        let plans = pool.endpoints.iter().map(|e| plans.plan(&pool.model, e)).collect();
        let name = (pool.model.clone(), pool.aliases.clone());
        let settings = (assemble::routing(config), assemble::guards(config), config.routing.time_scale);
        Ok(Pool::new(name, plans, hashing, settings, Arc::clone(metrics)))
    };
    config.pools.iter().map(pool).collect()
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
