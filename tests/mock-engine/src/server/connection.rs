//! One connection: hyper above, and below it a stream that can do what hyper won't, namely send interim
//! responses and reset the connection.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Phase, Server, routes};

/// What a request may ask of its connection.
#[derive(Debug)]
pub(crate) struct Control {
    /// Close by TCP reset, and soon.
    reset: AtomicBool,
    /// Bytes to send before the next response head.
    interim: Mutex<Bytes>,
    in_flight: AtomicUsize,
    idle_since: Mutex<Instant>,
}

impl Control {
    fn new() -> Self {
        Self {
            reset: AtomicBool::new(false),
            interim: Mutex::new(Bytes::new()),
            in_flight: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        }
    }

    /// From here on nothing more is sent, and closing sends RST.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Sends `head`, a complete interim response, before the next response.
    pub(crate) fn send_before_response(&self, head: &'static [u8]) {
        *self.interim.lock() = Bytes::from_static(head);
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }

    /// When the connection has been idle for `time`; none while a request is under way.
    fn idle_until(&self, time: Duration) -> Option<Instant> {
        (self.in_flight.load(Ordering::Relaxed) == 0).then(|| *self.idle_since.lock() + time)
    }
}

/// Marks its connection busy while it lives: from a request's head to the end of its response.
#[derive(Debug)]
pub(crate) struct Busy(pub(crate) Arc<Control>);

impl Busy {
    fn new(control: &Arc<Control>) -> Self {
        control.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(control))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends, is idle too long, or the server says so.
pub(super) async fn run(stream: TcpStream, server: Arc<Server>, mut phase: watch::Receiver<Phase>) {
    let control = Arc::new(Control::new());
    let io = TokioIo::new(Stream { tcp: stream, control: Arc::clone(&control) });
    let keep_alive = server.plan.keep_alive;
    let service = service_fn(|request| {
        let busy = Busy::new(&control);
        routes::handle(Arc::clone(&server), busy, request)
    });
    // Without a timer hyper cannot time heads out; a test's connection may stay silent as long as it likes.
    let connection = http1::Builder::new().header_read_timeout(None).serve_connection(io, service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            changed = phase.changed() => match changed.map(|()| *phase.borrow_and_update()) {
                Ok(Phase::Serving(_)) => connection.as_mut().graceful_shutdown(),
                Ok(Phase::Stopped { abrupt: true }) => return control.reset(),
                Ok(Phase::Stopped { abrupt: false }) | Err(_) => return,
            },
            never = idle(&control, keep_alive) => match never {
                Ok(()) => connection.as_mut().graceful_shutdown(),
                Err(never) => match never {},
            },
        }
    }
}

/// Returns once the connection has been idle for `keep_alive`; never without one.
async fn idle(control: &Control, keep_alive: Option<Duration>) -> Result<(), Infallible> {
    let Some(time) = keep_alive else { return std::future::pending().await };
    loop {
        match control.idle_until(time) {
            Some(due) if due <= Instant::now() => return Ok(()),
            Some(due) => tokio::time::sleep_until(due).await,
            None => tokio::time::sleep(time).await,
        }
    }
}

struct Stream {
    tcp: TcpStream,
    control: Arc<Control>,
}

impl Stream {
    /// Sends what must precede the response.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut interim = self.control.interim.lock();
        while interim.has_remaining() {
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(cx, &interim))?;
            interim.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.control.is_reset()
            && let Err(error) = self.tcp.set_zero_linger()
        {
            tracing::warn!(%error, "cannot reset the connection, closing it");
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.is_reset() {
            // A FIN first would let the client take a cut answer for a whole one.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
