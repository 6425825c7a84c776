//! Interim answers (1xx) of an engine, passed on to an HTTP/1.1 client (RFC 9110, section 15.2).
//!
//! hyper's server has no call to send one, so they are written beside it, into the same stream, at the one moment
//! when that is safe: hyper has flushed all it had (it says so by a flush that completes) and the answer's head is
//! still to come. `100 Continue` is not passed on: the gateway answers `Expect` itself, before it reads the body.
//! HTTP/2 clients get none: an interim answer is a hint, and no engine known sends one to them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;

use super::head;

/// Interim bytes that may wait for one client; more are dropped, as hints may be.
const WAITING_MAX_BYTES: usize = 16 << 10;

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    connection: Option<Waker>,
}

/// Where interim answers for one client connection are left.
#[derive(Clone, Default)]
pub struct Interim(Arc<Mutex<Waiting>>);

impl Interim {
    /// Leaves an interim answer to be written before the final one.
    pub fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut headers = headers.clone();
        head::remove_hop_by_hop(&mut headers);
        head::remove_own(&mut headers);
        let mut text = BytesMut::new();
        text.extend_from_slice(format!("HTTP/1.1 {} {}\r\n", status.as_u16(), reason(status)).as_bytes());
        for (name, value) in &headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        let mut waiting = self.0.lock();
        if waiting.bytes.len() + text.len() <= WAITING_MAX_BYTES {
            waiting.bytes.extend_from_slice(&text);
            if let Some(connection) = waiting.connection.take() {
                connection.wake();
            }
        }
    }

    /// What waits; if nothing does, `cx` is woken when something comes.
    fn take(&self, cx: &Context<'_>) -> Option<Bytes> {
        let mut waiting = self.0.lock();
        if waiting.bytes.is_empty() {
            if !waiting.connection.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                waiting.connection = Some(cx.waker().clone());
            }
            return None;
        }
        Some(waiting.bytes.split().freeze())
    }
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Interim")
}

/// A client's stream that also carries interim answers.
pub struct ClientIo<T> {
    inner: T,
    interim: Interim,
    /// Being written now: nothing else may come between.
    writing: Bytes,
    /// hyper has flushed all that it has written so far.
    flushed: bool,
}

impl<T: Write + Unpin> ClientIo<T> {
    /// Wraps `inner`; interim answers come from `interim`.
    pub fn new(inner: T, interim: Interim) -> Self {
        Self { inner, interim, writing: Bytes::new(), flushed: true }
    }

    /// Writes what waits, if the place in the stream is right.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flushed {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.writing.is_empty() {
                match self.interim.take(cx) {
                    Some(bytes) => self.writing = bytes,
                    None => return Poll::Ready(Ok(())),
                }
            }
            while !self.writing.is_empty() {
                let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.writing))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.writing.advance(written);
            }
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        }
    }
}

impl<T: Read + Unpin> Read for ClientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for ClientIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.flushed = false;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushed = true;
        self.poll_interim(cx)
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
        ready!(self.poll_interim(cx))?;
        self.flushed = false;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
