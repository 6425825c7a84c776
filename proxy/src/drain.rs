//! The end of the process: refuse new connections, let what runs finish, then go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::snapshot::Snapshots;

/// Whether the process is ending, and how many connections still run.
#[derive(Debug)]
pub struct Drain {
    ending: watch::Sender<bool>,
    connections: AtomicUsize,
    emptied: Notify,
    /// Milliseconds.
    limit: AtomicU64,
}

impl Drain {
    /// A drain that waits at most `limit` for what runs.
    pub fn new(limit: Duration) -> Arc<Self> {
        let (ending, _) = watch::channel(false);
        Arc::new(Self {
            ending,
            connections: AtomicUsize::new(0),
            emptied: Notify::new(),
            limit: AtomicU64::new(millis(limit)),
        })
    }

    /// Changes how long it waits.
    pub fn set_limit(&self, limit: Duration) {
        self.limit.store(millis(limit), Ordering::Relaxed);
    }

    /// Whether the process is ending.
    pub fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Turns to `true` once, when the process begins to end.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Counts a connection until the answer is dropped.
    pub fn connection(self: &Arc<Self>) -> Running {
        self.connections.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    async fn run(&self) {
        self.ending.send_replace(true);
        let running = self.connections();
        let limit = Duration::from_millis(self.limit.load(Ordering::Relaxed));
        tracing::info!(running, limit_s = limit.as_secs(), "draining");
        let empty = async {
            loop {
                let emptied = self.emptied.notified();
                if self.connections() == 0 {
                    return;
                }
                emptied.await;
            }
        };
        match tokio::time::timeout(limit, empty).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => {
                tracing::warn!(cut = self.connections(), "drain limit reached, cutting what still runs")
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One connection being served.
#[derive(Debug)]
pub struct Running(Arc<Drain>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

/// Tells pingora when to stop: after a drain on SIGTERM or SIGINT, at once on a second one.
pub struct DrainSignals {
    /// The drain.
    pub drain: Arc<Drain>,
    /// What is written at its end.
    pub snapshots: Option<Arc<Snapshots>>,
}

impl DrainSignals {
    async fn end(&self) {
        self.drain.run().await;
        if let Some(snapshots) = self.snapshots.clone() {
            let _ = tokio::task::spawn_blocking(move || snapshots.save()).await;
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for DrainSignals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be watched; stop the process with SIGKILL");
            return std::future::pending().await;
        };
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tokio::select! {
            () = self.end() => {}
            _ = term.recv() => tracing::warn!("second signal, not waiting"),
            _ = int.recv() => tracing::warn!("second signal, not waiting"),
        }
        // The drain has waited; nothing is left for pingora to wait for.
        ShutdownSignal::FastShutdown
    }
}
