//! The listener and what all its connections share.

mod connection;
mod debug;
mod exposition;
mod format;
mod inference;
mod reply;
mod routes;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::config::{BadConfig, Config, Plan};
use crate::engine::Engine;
use crate::fault::{Fault, Faults, Kind};

/// Larger request bodies are refused with 413: ten times the largest prompt anybody measures with.
pub const BODY_BYTES_MAX: usize = 64 << 20;

/// Orders to the listener that wait; more at once means a test has lost count.
const ORDERS_MAX: usize = 4;

/// How often and how long binding the port is tried again after a "refuse" fault.
const REBIND_TRIES: u32 = 100;
const REBIND_PAUSE: Duration = Duration::from_millis(50);

/// A pause after a failed accept (out of file descriptors), so that it isn't a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting can't work.
    #[error("bad configuration: {0}")]
    Config(#[from] BadConfig),
    /// The fault to start with can't work.
    #[error("bad fault: {0}")]
    Fault(String),
    /// The address can't be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// No thread for the engine.
    #[error("cannot start the engine thread: {0}")]
    Thread(std::io::Error),
}

/// What the connections are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Serve; each new number asks the connections of the one before to end when idle.
    Serving(u64),
    /// End now, by a reset when abrupt.
    Stopped { abrupt: bool },
}

/// State shared by all connections.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) plan: Plan,
    pub(crate) engine: Arc<Engine>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) log: Mutex<debug::RequestLog>,
    /// Requests received outside /debug.
    pub(crate) requests: AtomicU64,
    pub(crate) max_body_bytes: AtomicU64,
    started: Instant,
    refuse: mpsc::Sender<Duration>,
    phase: watch::Sender<Phase>,
}

impl Server {
    pub(crate) fn is_ready(&self) -> bool {
        self.started.elapsed() >= self.plan.ready_after
    }

    /// Puts a fault in force; "refuse" with nothing to wait for happens at once.
    pub(crate) fn order(&self, fault: Fault) -> Result<(), String> {
        fault.check()?;
        if fault.kind == Kind::Refuse && fault.after == 0 {
            self.faults.lock().set(Fault::default());
            return self.refuse(&fault);
        }
        self.faults.lock().set(fault);
        Ok(())
    }

    pub(crate) fn refuse(&self, fault: &Fault) -> Result<(), String> {
        let time = Duration::from_secs_f64(fault.delay_s);
        self.refuse.try_send(time).map_err(|_| "the listener has orders enough already".to_owned())
    }

    /// Ends like a killed process.
    pub(crate) fn die(&self) {
        if self.config.die_exits_process {
            std::process::exit(1);
        }
        self.stop(true);
    }

    fn stop(&self, abrupt: bool) {
        self.phase.send_replace(Phase::Stopped { abrupt });
        self.engine.stop();
    }
}

/// A running server; it stops when this is dropped.
pub struct Handle {
    server: Arc<Server>,
}

impl Handle {
    /// Ends the listener and all connections without waiting for answers under way.
    pub fn stop(&self) {
        self.server.stop(false);
    }

    /// Returns once the server has stopped, by [`Handle::stop`] or by the fault "die".
    pub async fn stopped(&self) {
        until_stopped(&mut self.server.phase.subscribe()).await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts an engine on the current tokio runtime; returns when it accepts connections.
///
/// # Errors
/// [`ServeError`]: bad settings, or an address that can't be had.
pub async fn serve(config: Config) -> Result<(SocketAddr, Handle), ServeError> {
    let plan = config.plan()?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| ServeError::Listen(listen, error))?;
    let address = listener.local_addr().map_err(|error| ServeError::Listen(listen, error))?;
    let engine = Engine::start(&plan, config.time_scale).map_err(ServeError::Thread)?;
    let (refuse, orders) = mpsc::channel(ORDERS_MAX);
    let fault = config.fault.clone();
    let server = Arc::new(Server {
        config,
        plan,
        engine,
        faults: Mutex::default(),
        log: Mutex::default(),
        requests: AtomicU64::new(0),
        max_body_bytes: AtomicU64::new(0),
        started: Instant::now(),
        refuse,
        phase: watch::Sender::new(Phase::Serving(0)),
    });
    let handle = Handle { server: Arc::clone(&server) };
    if let Some(fault) = fault {
        server.order(fault).map_err(ServeError::Fault)?;
    }
    tokio::spawn(accept_until_stopped(listener, address, server, orders));
    Ok((address, handle))
}

async fn accept_until_stopped(
    mut listener: TcpListener,
    address: SocketAddr,
    server: Arc<Server>,
    mut orders: mpsc::Receiver<Duration>,
) {
    let mut phase = server.phase.subscribe();
    let mut generation = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => spawn_connection(stream, &server),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = until_stopped(&mut phase) => return,
            Some(time) = orders.recv() => {
                drop(listener);
                generation += 1;
                server.phase.send_if_modified(|phase| {
                    let serving = matches!(phase, Phase::Serving(_));
                    if serving { *phase = Phase::Serving(generation); }
                    serving
                });
                tokio::time::sleep(time).await;
                match rebind(address).await {
                    Ok(again) => listener = again,
                    Err(error) => {
                        tracing::error!(%error, %address, "the port is gone, stopping");
                        return server.stop(true);
                    }
                }
            }
        }
    }
}

async fn until_stopped(phase: &mut watch::Receiver<Phase>) {
    // An error means that the server is gone, which is what is waited for.
    let _ = phase.wait_for(|phase| matches!(phase, Phase::Stopped { .. })).await;
}

async fn rebind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut tries = 1;
    loop {
        match TcpListener::bind(address).await {
            Err(_) if tries < REBIND_TRIES => tries += 1,
            result => return result,
        }
        tokio::time::sleep(REBIND_PAUSE).await;
    }
}

fn spawn_connection(stream: TcpStream, server: &Arc<Server>) {
    // Small chunks of a stream must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    tokio::spawn(connection::run(stream, Arc::clone(server), server.phase.subscribe()));
}

/// Raises `max` to `value`.
pub(crate) fn raise(max: &AtomicU64, value: usize) {
    max.fetch_max(value as u64, Ordering::Relaxed);
}
