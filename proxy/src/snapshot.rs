//! The index on disk, so that a restart does not forget who holds what.
//!
//! Written every while and at the end of a drain, beside its place and then renamed onto it: whatever ends the process, one
//! whole file is there. What is read back are hints like all others; a file that is damaged, foreign or of another time
//! is told of and left.

mod format;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_routing::ExportCursor;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::drain::Drain;
use crate::pool::Pool;
use format::{BadSnapshot, Identity, Writer};

/// Elements that are copied while a pool's lock is held: some tens of microseconds.
const STEP_ELEMENTS: usize = 4_096;

/// Where, how often, how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file.
    pub file: PathBuf,
    /// Time between two writings.
    pub every: Duration,
    /// Most bytes of the file: the least recently used is left out.
    pub max_bytes: u64,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
enum NotRead {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it has more than {0} bytes (snapshot.max_size)")]
    TooLarge(u64),
    #[error(transparent)]
    Bad(#[from] BadSnapshot),
}

/// The snapshots of all pools.
pub struct Snapshots {
    settings: Settings,
    pools: Vec<Arc<Pool>>,
    /// Held while one is written: there is one place to write beside.
    writing: Mutex<()>,
}

impl Snapshots {
    /// Of `pools`.
    pub fn new(settings: Settings, pools: Vec<Arc<Pool>>) -> Arc<Self> {
        Arc::new(Self { settings, pools, writing: Mutex::new(()) })
    }

    /// Tells the pools what the file says of their endpoints; without a usable file they begin with nothing.
    pub fn load(&self) {
        let file = self.settings.file.display();
        match self.try_load() {
            Ok((taken, left)) => {
                tracing::info!(%file, taken, left, "index read; elements of endpoints that are gone are left")
            }
            Err(NotRead::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
                tracing::info!(%file, "no snapshot of the index yet");
            }
            Err(why) => tracing::warn!(%file, %why, "snapshot of the index ignored"),
        }
    }

    /// Elements taken, and left since there is no such endpoint.
    fn try_load(&self) -> Result<(usize, usize), NotRead> {
        let most = self.settings.max_bytes;
        let mut bytes = Vec::new();
        File::open(&self.settings.file)?.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(NotRead::TooLarge(most));
        }
        let snapshot = format::parse(&bytes)?;
        let homes: Vec<_> = snapshot.endpoints.iter().map(|identity| self.home(identity)).collect();
        let (mut taken, mut left) = (0, 0);
        let mut elements = Vec::new();
        // The oldest first, so that the newest is the newest again.
        for (endpoint, bytes) in snapshot.held.iter().rev() {
            elements.clear();
            elements.extend(format::elements(bytes));
            match &homes[*endpoint] {
                Some((pool, endpoint)) => {
                    pool.remember_held(endpoint, &elements, pool.run_bytes);
                    taken += elements.len();
                }
                None => left += elements.len(),
            }
        }
        Ok((taken, left))
    }

    fn home(&self, identity: &Identity) -> Option<(&Arc<Pool>, Arc<crate::pool::Endpoint>)> {
        let pool = self.pools.iter().find(|pool| pool.model == identity.model)?;
        if (pool.fingerprint(), pool.run_bytes) != (identity.fingerprint, identity.run_bytes) {
            return None;
        }
        let endpoints = pool.endpoints();
        let endpoint = endpoints.iter().find(|e| e.upstream.authority() == identity.authority)?;
        Some((pool, Arc::clone(endpoint)))
    }

    /// Writes the file.
    pub fn save(&self) {
        let _writing = self.writing.lock();
        let (begun, file) = (Instant::now(), self.settings.file.display());
        match self.try_save() {
            Ok(bytes) => tracing::debug!(%file, bytes, ms = begun.elapsed().as_millis(), "index written"),
            Err(error) => tracing::warn!(%file, %error, "index not written; the file is as it was"),
        }
    }

    fn try_save(&self) -> io::Result<u64> {
        let path = &self.settings.file;
        let beside = beside(path);
        // Prompts cannot be told from it, but who shares what with whom can be guessed.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let mut writer = Writer::new(BufWriter::new(file), self.settings.max_bytes)?;
        let mut number = 0;
        for pool in &self.pools {
            write_pool(&mut writer, pool, &mut number)?;
        }
        let (mut out, bytes) = writer.finish()?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&beside, path)?;
        // The rename itself; a file system that cannot do it has done what it could.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(bytes)
    }
}

/// Where a file is written before it gets its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn write_pool<W: Write>(writer: &mut Writer<W>, pool: &Pool, number: &mut u32) -> io::Result<()> {
    let mut numbers = HashMap::new();
    for endpoint in pool.endpoints().iter() {
        writer.endpoint(&Identity {
            model: pool.model.clone(),
            authority: endpoint.upstream.authority().to_owned(),
            fingerprint: pool.fingerprint(),
            run_bytes: pool.run_bytes,
        })?;
        numbers.insert(endpoint.name.clone(), *number);
        *number += 1;
    }
    let mut next = Some(ExportCursor::START);
    let mut step = Step::default();
    while let Some(from) = next {
        step.clear();
        next = pool.export_index(from, STEP_ELEMENTS, |name, elements| {
            // One that came since is in the next snapshot.
            if let Some(number) = numbers.get(name) {
                step.pieces.push((*number, elements.len()));
                step.elements.extend_from_slice(elements);
            }
        });
        let mut at = 0;
        for (number, count) in &step.pieces {
            if !writer.held(*number, &step.elements[at..at + count])? {
                return Ok(());
            }
            at += count;
        }
    }
    Ok(())
}

/// What one step copied, so that nothing is written while a lock is held.
#[derive(Default)]
struct Step {
    pieces: Vec<(u32, usize)>,
    elements: Vec<u64>,
}

impl Step {
    fn clear(&mut self) {
        self.pieces.clear();
        self.elements.clear();
    }
}

/// Writes them as long as the process runs.
pub struct SnapshotService {
    /// The snapshots.
    pub snapshots: Arc<Snapshots>,
    /// The end of the process, which writes the last one itself.
    pub drain: Arc<Drain>,
}

#[async_trait]
impl BackgroundService for SnapshotService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut timer = tokio::time::interval(self.snapshots.settings.every);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.tick().await;
        let mut ending = self.drain.watch();
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                _ = ending.wait_for(|ending| *ending) => return,
                _ = shutdown.wait_for(|ending| *ending) => return,
            }
            let snapshots = Arc::clone(&self.snapshots);
            let _ = tokio::task::spawn_blocking(move || snapshots.save()).await;
        }
    }
}
