//! The composition root: a config becomes memory, sockets, tasks, and a running process.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::NodeId;
use larder_tiering::disk;
use larder_tiering::pins::Budgets;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, Control, Disk, DiskIo, EXTENT_BYTES};
use crate::control::{self, Listener, Token};
use crate::driver::{DiskTier, Driver, EVENTS_MAX, Event, Shared, random_id};
use crate::engine_port::{self, SocketFile};
use crate::logging;
use crate::medium::disk::media::{Access, Files, Media, Uring};
use crate::medium::disk::recipes;
use crate::medium::memory::{Others, SharedMemory};
use crate::store::{HALF_LIFE, Input, SLOTS_PER_EXTENT, Settings, Verify};
use crate::transfer;
use crate::transfer::disk::{DiskParts, DiskThreads, FOUND_WAITING};

/// How long goodbyes may take to be written at the end.
const FAREWELL_TIME: Duration = Duration::from_millis(200);

/// Permissions of a control socket: the proxy may run as another user of the node's group.
const CONTROL_SOCKET_MODE: u32 = 0o660;

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log filter cannot be read.
    #[error("{0}")]
    Log(String),
    /// A file named in the config cannot be used.
    #[error("{key} = {path:?}: {reason}")]
    File {
        /// The config key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The control API cannot listen.
    #[error("control = \"{control}\": {source}")]
    Control {
        /// Where.
        control: Control,
        /// What the system said.
        source: io::Error,
    },
    /// The slab cannot be had.
    #[error("host.size: {bytes} bytes of shared memory cannot be made: {source}")]
    Memory {
        /// How much.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a thread, a runtime or a signal.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Runs the node until SIGTERM or SIGINT.
///
/// Prints `engine socket PATH` and `control on ADDRESS` to standard output once both listen, so that whoever started
/// the process with port 0 knows where it is.
///
/// # Errors
/// See [`StartError`]; once both listen, none.
pub fn run(config: Config) -> Result<(), StartError> {
    logging::start(&config.log, config.log_json).map_err(StartError::Log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), StartError> {
    // Before anything is printed: whoever reads the lines may send the signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = config.token_file.as_ref().map(|path| {
        Token::read(path).map_err(|reason| StartError::File { key: "token_file", path: path.clone(), reason })
    });
    let token = token.transpose()?;
    warn_of_dangers(&config);
    let shared = shared_memory(&config)?;
    if config.prefault {
        take_pages(&config, &shared.slab)?;
    }
    let (engines, _engine_file) = bind("engine_socket", &config.engine_socket, config.engine_socket_mode)?;
    let (listener, address, _control_file) = listen(&config.control).await?;
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let results = mpsc::unbounded_channel();
    let disk = config.disk.as_ref().map(|disk| disk_tier(disk, &config, &shared, &results.0)).transpose()?;
    let driver =
        Driver::new(settings(&config), shared, threads(&config), inbox, results, disk, config.device)?;
    let driver = tokio::spawn(driver.run());
    let port = tokio::spawn(engine_port::serve(engines, events.clone(), config.limits.connections));
    let control_settings = control::Settings {
        requests_max: config.limits.control_requests,
        connections_max: config.limits.control_connections,
        stage_deadline: config.stage_deadline,
        debug_faults: config.debug_faults,
        token,
    };
    let control = tokio::spawn(control::serve(listener, control_settings, events.clone()));
    announce(&config, &address)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending");
    control.abort();
    port.abort();
    let (reply, said) = oneshot::channel();
    if events.send(Event::End(reply)).await.is_ok() {
        let _ = said.await;
        tokio::time::sleep(FAREWELL_TIME).await;
    }
    driver.abort();
    Ok(())
}

fn warn_of_dangers(config: &Config) {
    if config.verify == Verify::Off {
        tracing::warn!("verify = \"off\": damaged KV will be handed to engines; only tests should run so");
    }
    if config.debug_faults {
        tracing::warn!("debug_faults = true: anyone who can ask the control API can damage what is held");
    }
}

/// Takes the slab's pages in the background, each thread every so many extents.
fn take_pages(config: &Config, slab: &Arc<SharedMemory>) -> io::Result<()> {
    let threads = threads(config);
    for first in 0..threads {
        let slab = Arc::clone(slab);
        std::thread::Builder::new().name("host-pages".to_owned()).spawn(move || {
            let start = std::time::Instant::now();
            for extent in (first as u64..slab.bytes() / EXTENT_BYTES).step_by(threads) {
                if let Err(error) = slab.populate(extent * EXTENT_BYTES, EXTENT_BYTES) {
                    return tracing::warn!(extent, %error, "pages of the host tier are taken only when they are used");
                }
            }
            tracing::debug!(seconds = start.elapsed().as_secs_f64(), "took pages of the host tier");
        })?;
    }
    Ok(())
}

fn shared_memory(config: &Config) -> Result<Shared, StartError> {
    let make = |name, bytes| {
        let memory = SharedMemory::create(name, bytes, Others::Read);
        memory.map(Arc::new).map_err(|source| StartError::Memory { bytes, source })
    };
    let slots = config.host_bytes / EXTENT_BYTES * u64::from(SLOTS_PER_EXTENT);
    Ok(Shared {
        slab: make("larder-slab", config.host_bytes)?,
        generations: make("larder-generations", slots * 8)?,
    })
}

/// Opens the disk tier. What earlier runs left there is told to the store while it serves.
fn disk_tier(
    disk: &Disk,
    config: &Config,
    shared: &Shared,
    results: &mpsc::UnboundedSender<Input>,
) -> Result<DiskTier, StartError> {
    let fail = |source: io::Error| StartError::File {
        key: "disk.path",
        path: disk.path.clone(),
        reason: source.to_string(),
    };
    let media = open_media(disk).map_err(fail)?;
    let length = |segment: &u64| Ok((*segment, media.length(*segment)?));
    let (earlier_recipes, segments): (Vec<u64>, Vec<u64>) =
        media.segments().map_err(fail)?.into_iter().partition(|number| *number >= recipes::FIRST);
    let earlier: io::Result<Vec<(u64, u64)>> = segments.iter().map(length).collect();
    let earlier = earlier.map_err(fail)?;
    let parts = DiskParts {
        media: Arc::clone(&media),
        slab: Arc::clone(&shared.slab),
        verify: config.verify,
        segment_bytes: disk.segment_bytes,
        results: results.clone(),
    };
    let threads = DiskThreads::start(&parts, disk.readers)?;
    let (tell, found) = mpsc::channel(FOUND_WAITING);
    let (to_find, recipes_to_find) = (earlier.clone(), earlier_recipes.clone());
    std::thread::Builder::new().name("disk-recover".to_owned()).spawn(move || {
        transfer::disk::tell_recipes(&*media, &recipes_to_find, &tell);
        transfer::disk::tell_found(&*media, &to_find, &tell);
    })?;
    let limits = disk::Limits {
        capacity_bytes: disk.capacity_bytes,
        segment_bytes: disk.segment_bytes,
        write_bytes_per_s: Some(disk.write_bytes_per_s),
        admit_uses: disk.admit_uses,
        writes_max: disk.writes,
        loads_max: disk.loads,
        half_life: HALF_LIFE,
    };
    Ok(DiskTier { limits, earlier, earlier_recipes, found, threads })
}

fn open_media(disk: &Disk) -> io::Result<Arc<dyn Media>> {
    let access = Files::access_of(&disk.path)?;
    if access == Access::Cached {
        tracing::warn!(path = %disk.path.display(), "no O_DIRECT here: what is on disk is held in the page cache again");
    }
    let files = Files::open(disk.path.clone(), access)?;
    match (disk.io, Uring::allowed()) {
        (DiskIo::Threads, _) => Ok(Arc::new(files)),
        (DiskIo::Auto | DiskIo::Uring, Ok(())) => Ok(Arc::new(Uring::over(files)?)),
        (DiskIo::Uring, Err(error)) => {
            Err(io::Error::other(format!("disk.io = \"uring\", but the system says: {error}")))
        }
        (DiskIo::Auto, Err(error)) => {
            tracing::info!(%error, "no io_uring here: the disk is read and written by plain calls");
            Ok(Arc::new(files))
        }
    }
}

fn bind(
    key: &'static str,
    path: &std::path::Path,
    mode: u32,
) -> Result<(tokio::net::UnixListener, SocketFile), StartError> {
    engine_port::bind(path, mode).map_err(|error| StartError::File {
        key,
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Binds the control listener; also says where it is, port 0 filled in.
async fn listen(control: &Control) -> Result<(Listener, Control, Option<SocketFile>), StartError> {
    match control {
        Control::Unix(path) => {
            let (listener, file) = bind("control", path, CONTROL_SOCKET_MODE)?;
            Ok((Listener::Unix(listener), control.clone(), Some(file)))
        }
        Control::Tcp(address) => {
            let fail = |source| StartError::Control { control: control.clone(), source };
            let listener = TcpListener::bind(address).await.map_err(fail)?;
            let bound = Control::Tcp(listener.local_addr().map_err(fail)?);
            Ok((Listener::Tcp(listener), bound, None))
        }
    }
}

fn announce(config: &Config, control: &Control) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "engine socket {}", config.engine_socket.display())?;
    writeln!(out, "control on {control}")?;
    out.flush()
}

fn threads(config: &Config) -> usize {
    const CORES_USED_MAX: usize = 4;
    match config.transfer_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(CORES_USED_MAX),
        threads => threads,
    }
}

/// The store's share of the configuration.
fn settings(config: &Config) -> Settings {
    const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
    let extents = config.host_bytes / EXTENT_BYTES;
    Settings {
        node: NodeId(random_id()),
        extent_bytes: EXTENT_BYTES,
        extents: u32::try_from(extents).expect("the range of host.size keeps extents within 2^20"),
        region_bytes: config.region_bytes,
        lease_ttl: config.lease_ttl,
        lookup_deadline: config.lookup_deadline,
        stage_deadline: config.stage_deadline,
        verify: config.verify,
        verify_fresh: config.verify_fresh,
        single_tenant: config.single_tenant,
        sessions_max: config.limits.sessions,
        leases_max: config.limits.leases,
        verifications_max: config.limits.verifications,
        copies_max: config.limits.copies,
        pinned_bytes_max: config.host_bytes / 100 * config.limits.pinned_percent,
        pins: Budgets {
            space_bytes_max: config.host_bytes / 100 * config.pins.namespace_percent,
            bytes_max: config.host_bytes / 100 * config.pins.percent,
            pins_max: config.pins.count,
        },
        pin_ttl_max: config.pins.ttl_max,
        tenant_bytes_max: config.quotas.default_bytes,
        tenant_quotas: config.quotas.tenants.clone(),
        recipe_bytes_max: usize::try_from(config.recipe_bytes).unwrap_or(usize::MAX),
        hello_timeout: HELLO_TIMEOUT,
        scrub_bytes_per_s: config.disk.as_ref().map_or(0, |disk| disk.scrub_bytes_per_s),
    }
}
