//! The engine port: a unix socket, frames in, frames out. No decision is taken here.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::driver::{Arrival, Event};
use crate::store::ConnectionId;

pub mod connection;

/// How long to wait after a failed accept (out of descriptors, say) before the next.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// A bound socket file. Removed when dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing is lost if it stays: the next start removes a socket that nobody listens on.
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds a unix socket at `path` with these permissions. A socket file that a dead process left is replaced.
///
/// # Errors
/// `AddrInUse` if somebody listens there; `AlreadyExists` if the file is no socket; else what the system said.
pub fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is no socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        _ => {}
    }
    // Bound beside and moved into place: nobody can connect before the permissions are set, and the old file is
    // replaced in one step.
    let beside = path.with_added_extension(std::process::id().to_string());
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    let placed = fs::set_permissions(&beside, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok((listener, SocketFile { path: path.to_owned() }))
}

/// Accepts connections, at most `connections_max` at one time, until the driver is gone.
pub async fn serve(listener: UnixListener, events: mpsc::Sender<Event>, connections_max: usize) {
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut next = 0;
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream: UnixStream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the engine socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        next += 1;
        let id = ConnectionId(next);
        let (know, known) = oneshot::channel();
        let (peer, outbox, tasks) = connection::start(id, stream, events.clone(), permit, known);
        let arrival = Arrival { connection: id, peer, outbox, tasks };
        if events.send(Event::Accepted(arrival)).await.is_err() {
            return;
        }
        // The reader is gone only if the driver has closed the connection already.
        let _ = know.send(());
    }
}

#[cfg(test)]
mod tests;
