//! One client connection, from accept to close.
//!
//! hyper can limit the time for a request head, but it counts from the end of the previous request, so that it
//! would cut idle connections too, and it arms a timer for each request. Here one timer a connection looks after
//! it: it fires, sees what the connection is doing, and is set again.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

use super::interim::{ClientIo, Interim};
use super::resets::Resets;
use super::response::{Failure, GatewayBody};
use crate::access_log::{End, Entry, Watch};

/// Limits of a client connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time from the first byte of a request head to its last.
    pub header: Duration,
    /// Longest time between two requests.
    pub keepalive: Duration,
}

/// The codecs of both protocol versions, with their limits.
#[derive(Clone)]
pub struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    limits: Limits,
}

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Flow-control windows of HTTP/2: a prompt of 4 MB in the default windows of 64 KiB is sixty round trips.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

impl Server {
    /// A server with `limits`, and request heads of at most `max_header_bytes`.
    pub fn new(limits: Limits, max_header_bytes: usize) -> Self {
        let mut http1 = http1::Builder::new();
        http1.header_read_timeout(None).max_header_size(max_header_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Self { http1, http2, limits }
    }

    /// Serves the requests of one connection with `answer`, until the client goes, a limit is passed, or `ending`
    /// turns true and the last answer is out.
    pub async fn serve<S, F, R>(&self, mut stream: S, mut ending: watch::Receiver<bool>, answer: F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Request<Incoming>) -> R,
        R: Future<Output = Response<GatewayBody>> + Send + 'static,
    {
        let opening = tokio::time::timeout(self.limits.keepalive, read_opening(&mut stream));
        let first = tokio::select! {
            // A request that has come already is served, whatever else there is.
            biased;
            first = opening => match first {
                Ok(Ok(first)) => first,
                Ok(Err(_)) | Err(_) => return,
            },
            // One that has asked for nothing yet is not waited for.
            _ = ending.wait_for(|ending| *ending) => return,
        };
        let interim = Interim::default();
        let activity = Arc::new(Activity::new());
        let service = service_fn(|mut request: Request<Incoming>| {
            let mut active = activity.begin();
            let is_head = request.method() == Method::HEAD;
            if request.version() == Version::HTTP_11 {
                request.extensions_mut().insert(interim.clone());
            }
            // hyper moves what it is given here, twice, into room that each connection keeps: kilobytes, were it no box.
            let answering = Box::pin(answer(request));
            async move {
                let mut response = answering.await;
                let log = response.extensions_mut().remove::<Arc<Entry>>().map(Watch::new);
                // hyper asks for no frame of these.
                active.whole = is_head || response.body().is_end_stream();
                Ok::<_, Infallible>(response.map(|body| Watched { body, log, active }))
            }
        });
        let is_http2 = first == PREFACE;
        let io =
            WatchedIo { inner: TokioIo::new(stream), first: first.freeze(), activity: Arc::clone(&activity) };
        let watching = Watching { activity: &activity, limits: self.limits, ending };
        if is_http2 {
            let connection = self.http2.serve_connection(io, service);
            watching.run(connection, |connection| connection.graceful_shutdown()).await;
        } else {
            let io = ClientIo::new(io, interim.clone());
            let connection = self.http1.serve_connection(io, service).with_upgrades();
            watching.run(connection, |connection| connection.graceful_shutdown()).await;
        }
    }
}

/// Reads what tells the protocol version: the preface of HTTP/2, or the first bytes that are not it.
async fn read_opening(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<BytesMut> {
    let mut first = BytesMut::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let mut limited = stream.take((PREFACE.len() - first.len()) as u64);
        if limited.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    Ok(first)
}

/// Looks after a connection while its codec serves it.
struct Watching<'a> {
    activity: &'a Activity,
    limits: Limits,
    ending: watch::Receiver<bool>,
}

impl Watching<'_> {
    async fn run<C>(mut self, connection: C, finish: impl FnOnce(Pin<&mut C>))
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut finish = Some(finish);
        tokio::pin!(connection);
        let timer = tokio::time::sleep(self.limits.header.min(self.limits.keepalive));
        tokio::pin!(timer);
        loop {
            let calm = poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Pending if self.activity.resets.is_flood() => Poll::Ready(None),
                polled => polled.map(Some),
            });
            tokio::select! {
                ended = calm => {
                    let Some(ended) = ended else {
                        tracing::warn!("client connection closed: its client resets what it asks for");
                        return;
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "client connection ended");
                    }
                    return;
                }
                () = timer.as_mut() => match self.activity.look(self.limits) {
                    Look::Again(after) => timer.as_mut().reset(tokio::time::Instant::now() + after),
                    Look::Close(why) => {
                        tracing::debug!(why, "client connection closed");
                        return;
                    }
                },
                _ = self.ending.wait_for(|ending| *ending), if finish.is_some() => {
                    if let Some(finish) = finish.take() {
                        finish(connection.as_mut());
                    }
                }
            }
        }
    }
}

/// What a connection is doing. Times are milliseconds since its start, plus one; 0: not so.
#[derive(Debug)]
struct Activity {
    start: Instant,
    active: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    resets: Resets,
}

#[derive(Debug, PartialEq)]
enum Look {
    Again(Duration),
    Close(&'static str),
}

impl Activity {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            resets: Resets::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Bytes came: if no request is being answered, they begin one.
    fn read(&self) {
        if self.active.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A request's head is complete.
    fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        Active { activity: Arc::clone(self), begun: Instant::now(), whole: false }
    }

    fn look(&self, limits: Limits) -> Look {
        let shortest = limits.header.min(limits.keepalive);
        if self.active.load(Ordering::Relaxed) > 0 {
            return Look::Again(shortest);
        }
        let (since, limit, why) = match self.head_since.load(Ordering::Relaxed) {
            0 => (self.idle_since.load(Ordering::Relaxed), limits.keepalive, "idle"),
            head => (head, limits.header, "request head too slow"),
        };
        let elapsed = Duration::from_millis(self.now().saturating_sub(since));
        match limit.checked_sub(elapsed) {
            Some(left) if !left.is_zero() => Look::Again(left.min(shortest)),
            _ => Look::Close(why),
        }
    }
}

/// A request being answered.
#[derive(Debug)]
struct Active {
    activity: Arc<Activity>,
    begun: Instant,
    /// Whether its answer came to an end, a bad one or a good one; else its client left.
    whole: bool,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.activity.idle_since.store(self.activity.now(), Ordering::Relaxed);
        self.activity.active.fetch_sub(1, Ordering::Relaxed);
        self.activity.resets.ended(!self.whole, self.begun.elapsed());
    }
}

/// An answer's body that keeps its connection active to its end.
struct Watched {
    body: GatewayBody,
    log: Option<Watch>,
    active: Active,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(frame), Some(log)) = (&frame, self.log.as_mut()) {
            match frame {
                Some(Ok(frame)) => log.piece(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => log.ended(End::Broken),
                None => log.ended(End::Complete),
            }
        }
        // hyper asks for no further frame when this is the last.
        if self.body.is_end_stream() {
            self.active.whole = true;
            if let Some(log) = self.log.as_mut() {
                log.complete();
            }
        }
        self.active.whole |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that notes when bytes come.
struct WatchedIo<T> {
    inner: T,
    /// Read already, to be read first.
    first: Bytes,
    activity: Arc<Activity>,
}

impl<T: Read + Unpin> Read for WatchedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let len = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(len));
            self.activity.read();
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read {
            self.activity.read();
        }
        read
    }
}

impl<T: Write + Unpin> Write for WatchedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { header: Duration::from_secs(30), keepalive: Duration::from_secs(75) };

    fn aged(by: Duration) -> Activity {
        let mut activity = Activity::new();
        activity.start = Instant::now().checked_sub(by).unwrap();
        activity
    }

    #[test]
    fn an_idle_connection_is_closed_after_keepalive_only() {
        assert!(matches!(aged(Duration::from_secs(40)).look(LIMITS), Look::Again(_)));
        assert_eq!(aged(Duration::from_secs(76)).look(LIMITS), Look::Close("idle"));
    }

    #[test]
    fn a_slow_head_is_closed_after_the_header_limit() {
        let activity = aged(Duration::from_secs(31));
        activity.head_since.store(1, Ordering::Relaxed);
        assert_eq!(activity.look(LIMITS), Look::Close("request head too slow"));
    }

    #[test]
    fn a_long_answer_is_never_cut() {
        let activity = Arc::new(aged(Duration::from_secs(10_000)));
        let active = activity.begin();
        assert!(matches!(activity.look(LIMITS), Look::Again(_)));
        drop(active);
        assert!(matches!(activity.look(LIMITS), Look::Again(_)), "idle time counts from the answer's end");
    }
}
