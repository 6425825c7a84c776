//! The process at the other end of a connection, and when it is dead.

#![expect(unsafe_code, reason = "registers a descriptor with the reactor, which asks for a promise about it")]

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// A process that can be waited for.
#[derive(Debug)]
pub struct Peer {
    pidfd: AsyncFd<OwnedFd>,
}

impl Peer {
    /// The process that connected this socket; `None` where the system cannot say (before Linux 6.5 for a process of
    /// another PID namespace). Must be called within a tokio runtime.
    pub fn of(stream: &UnixStream) -> Option<Self> {
        let pidfd = getsockopt(stream, sockopt::PeerPidfd).ok().or_else(|| by_number(stream))?;
        // SAFETY: an `OwnedFd` is open and names one file for as long as it lives, and the `AsyncFd` owns it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Some(Self { pidfd: pidfd.ok()? })
    }

    /// Waits until the process is dead: all of its threads have ended and none can touch memory any more.
    pub async fn dead(self) {
        // An error would mean that the descriptor is unusable; then nothing is known, and nothing may be said.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// By process number, for kernels without `SO_PEERPIDFD`. The number may have been reused if the process has died since
/// it connected; then its socket is closed, the connection ends, and what is watched is another, living process: slots
/// are kept too long, never too short.
fn by_number(stream: &UnixStream) -> Option<OwnedFd> {
    let credentials = getsockopt(&stream.as_fd(), sockopt::PeerCredentials).ok()?;
    let pid = rustix::process::Pid::from_raw(credentials.pid())?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}
