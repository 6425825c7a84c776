//! Reads the configuration again while requests run, on SIGHUP or when its file has changed.
//!
//! A configuration goes into force as a whole or not at all: it is read, checked and compared with what is running
//! before anything changes. Endpoints are changed by what the file says differently from before, so that one that was
//! added by a call stays, and one that was removed by a call does not come back by an edit somewhere else.

mod change;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use crate::assemble::{self, Files, Shared};
use crate::config::{self, Config};
use crate::drain::Drain;
use crate::gateway::Live;
use crate::health::HealthChecks;
use crate::metrics::Metrics;
use crate::plans::{self, Plans};
use crate::pool::Pool;
use change::PoolChange;
use watch::Watched;

/// Time between two looks at the files. A file must rest that long before it is read, so that half of one that is being
/// written is not.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The parts of the process that can be told something new.
pub struct Parts {
    /// What the gateway is told.
    pub live: Arc<Live>,
    /// What it shares with others.
    pub shared: Shared,
    /// All pools.
    pub pools: Vec<Arc<Pool>>,
    /// How endpoints are made.
    pub plans: Arc<Plans>,
    /// The checks of engines.
    pub checks: Arc<HealthChecks>,
    /// The end of the process.
    pub drain: Arc<Drain>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// What a reading changed.
#[derive(Debug, Default)]
struct Applied {
    added: usize,
    removed: usize,
    /// Keys whose change waits for a restart.
    restart: Vec<String>,
}

/// Reads the configuration again.
pub struct Reload(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// What is in force; where something needs a restart, as it was.
    current: Mutex<Config>,
    parts: Parts,
}

impl Reload {
    /// Of the file at `path`, whose content is in force as `config`.
    pub fn new(path: &std::path::Path, config: Config, parts: Parts) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), current: Mutex::new(config), parts }))
    }
}

impl Inner {
    /// Reads the file and puts it into force, or says all that is wrong with it.
    fn reload(&self, why: &str) {
        let result = self.try_reload();
        let applied = result.is_ok();
        match result {
            Ok(Applied { added, removed, restart }) => {
                tracing::info!(why, added, removed, "configuration read again and in force");
                if !restart.is_empty() {
                    let keys = restart.join(", ");
                    tracing::warn!(keys, "changed in the file, needs a restart");
                }
            }
            Err(faults) => {
                for fault in &faults {
                    tracing::error!(why, fault, "configuration refused");
                }
                tracing::error!(faults = faults.len(), "the old configuration stays in force");
            }
        }
        self.parts.metrics.reloaded(applied);
    }

    fn try_reload(&self) -> Result<Applied, Vec<String>> {
        let next = config::load(&self.path).map_err(|faults| {
            let file = self.path.display();
            faults.list().iter().map(|fault| format!("{file}: {fault}")).collect::<Vec<_>>()
        })?;
        let read = |config: &Config| {
            Files::read(config).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        // Also those that only a restart would take: what would not start then is refused now.
        read(&next)?;
        let mut current = self.current.lock();
        let (next, restart) = change::in_force(&current, next);
        let files = read(&next)?;
        let changes = change::pools(&current, &next);
        let settings = assemble::gateway(&next, &self.parts.shared, &files).map_err(|why| vec![why])?;
        let refused: Vec<String> = changes.iter().filter_map(|change| self.refused(change)).collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        // Nothing is refused from here on.
        self.parts.shared.set(&next);
        self.parts.live.store(Arc::new(settings));
        self.parts.drain.set_limit(next.timeouts.drain);
        self.parts.checks.set(assemble::health(&next));
        self.parts.plans.set(plans::Settings::new(&next, files.node_token.clone()));
        let mut applied = Applied { restart, ..Applied::default() };
        for change in &changes {
            self.apply(change, &mut applied);
        }
        self.retune(&current, &next);
        *current = next;
        Ok(applied)
    }

    fn pool(&self, model: &str) -> Option<&Arc<Pool>> {
        self.parts.pools.iter().find(|pool| pool.model == model)
    }

    /// Why the endpoints of a pool cannot be changed so, if they cannot.
    fn refused(&self, change: &PoolChange<'_>) -> Option<String> {
        let pool = self.pool(change.model)?;
        let new = change.new_to(pool);
        let why = pool.can_replace(&change.gone, &new).err()?;
        Some(format!("pool `{}`: {why}, by a call on the admin listener", change.model))
    }

    fn apply(&self, change: &PoolChange<'_>, applied: &mut Applied) {
        let Some(pool) = self.pool(change.model) else { return };
        let new = change.new_to(pool);
        let there = change.gone.iter().filter(|name| pool.endpoint_named(name).is_some()).count();
        match pool.replace(&change.gone, &new, |endpoint| self.parts.plans.plan(&pool.model, endpoint)) {
            Ok(added) => {
                applied.added += added.len();
                applied.removed += there;
                added.iter().for_each(|endpoint| self.parts.checks.watch(pool, endpoint));
            }
            // A call on the admin listener came in between.
            Err(why) => tracing::error!(pool = pool.model, %why, "endpoints not changed; reload again"),
        }
    }

    /// Tells the pools, and the endpoints that stay, what is new.
    fn retune(&self, old: &Config, new: &Config) {
        let settings = plans::Settings::new(new, None);
        for pool in &self.parts.pools {
            pool.retune(assemble::routing(new), assemble::guards(new));
            if old.routing.pass_through != new.routing.pass_through {
                pool.set_pass_through(new.routing.pass_through);
            }
            if old.routing.shadow != new.routing.shadow {
                pool.set_shadow(new.routing.shadow);
            }
            for endpoint in pool.endpoints().iter() {
                endpoint.upstream.set_limits(settings.limits(&pool.model));
                let told = |config: &Config| change::endpoint(config, &pool.model, &endpoint.name).cloned();
                let Some(told_now) = told(new) else { continue };
                pool.set_max_in_flight(endpoint, settings.max_in_flight(&told_now));
                if told(old).is_some_and(|before| before.kv_tokens != told_now.kv_tokens) {
                    let tokens = told_now.kv_tokens.unwrap_or(new.routing.default_kv_tokens);
                    pool.set_kv_tokens(endpoint, tokens);
                }
            }
        }
    }

    /// The files to look at.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        files.extend(Files::watched(&self.current.lock()));
        files
    }
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else {
            tracing::error!("SIGHUP cannot be watched; the configuration is not read again");
            return;
        };
        let mut watched = Watched::new(&self.0.files());
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ending = self.0.parts.drain.watch();
        loop {
            let why = tokio::select! {
                Some(()) = hangup.recv() => "SIGHUP",
                _ = look.tick() => {
                    let on = self.0.current.lock().reload_on_change;
                    if !watched.has_changed(&self.0.files()) || !on {
                        continue;
                    }
                    "its file has changed"
                }
                _ = ending.wait_for(|ending| *ending) => return,
                _ = shutdown.wait_for(|ending| *ending) => return,
            };
            watched.taken(&self.0.files());
            let inner = Arc::clone(&self.0);
            // A panic in it is logged by the hook, and the old configuration stays.
            let _ = tokio::task::spawn_blocking(move || inner.reload(why)).await;
        }
    }
}
