//! One connection to an engine, and an answer that comes on it.
//!
//! hyper's codec is a future of its own beside request and answer, meant for a task of its own. Here whoever waits for the
//! connection drives it: a request then costs two wake-ups less, each of which may go to another core. Nobody drives one that
//! is kept: what arrived meanwhile, such as the engine's close, shows when it is looked at.
//!
//! What the driver gives to request and answer it gives while it is driven, so these are looked at right after, and with a
//! waker that does nothing: theirs would wake the task that runs already, for one more look at everything in it.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use pingora::protocols::Stream;

use crate::gateway::splice::RequestBody;

/// hyper's codec of one connection; its own type has no name.
type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// Why the codec did not answer; with the request, where nothing of it was sent.
pub(super) type NotSent = TrySendError<Request<RequestBody>>;

/// A connection. Dropped, it closes, which tells the engine to stop generating; kept with
/// [`super::Upstream::keep`], it serves the next request.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    /// None once it has ended.
    driver: Option<Driver>,
    /// The engine has announced that it closes it.
    pub(super) closing: bool,
    /// When its last answer ended, where that was a stream.
    pub(super) streamed_at: Option<Instant>,
}

/// A context that wakes nobody.
fn unheard() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Connection {
    /// Makes `stream` one.
    ///
    /// # Errors
    /// The codec's own.
    pub(super) async fn over(stream: Stream) -> Result<Self, hyper::Error> {
        let (sender, driver) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        let driver: Driver = Box::pin(driver.with_upgrades());
        Ok(Self { sender, driver: Some(driver), closing: false, streamed_at: None })
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to an engine ended");
            }
            self.driver = None;
        }
    }

    /// Whether the engine has closed it, as far as is known at this moment.
    pub(super) fn has_ended(&mut self) -> bool {
        self.drive(&mut unheard());
        self.driver.is_none() || self.sender.is_closed()
    }

    /// Waits until it has ended.
    pub(super) async fn ends(&mut self) {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            if self.driver.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether it can take a request, as far as is known at this moment.
    pub(super) fn is_ready(&mut self) -> bool {
        !self.has_ended() && self.sender.is_ready()
    }

    /// Waits until it can take a request. Says whether it can; else it has ended.
    pub(super) async fn becomes_ready(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(&mut unheard())
        })
        .await
        .is_ok()
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, NotSent> {
        let mut exchanging = std::pin::pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            self.drive(cx);
            exchanging.as_mut().poll(&mut unheard())
        })
        .await
    }

    /// Drives it to its end in the background: what follows is no HTTP any more.
    fn let_go(self) {
        if let Some(driver) = self.driver {
            tokio::spawn(async move {
                if let Err(error) = driver.await {
                    tracing::debug!(%error, "connection to an engine ended");
                }
            });
        }
    }
}

/// The body of an engine's answer, on the connection that brings it.
pub struct Answer {
    inner: Incoming,
    connection: Option<Connection>,
}

impl Answer {
    pub(super) fn new(inner: Incoming, connection: Connection) -> Self {
        Self { inner, connection: Some(connection) }
    }

    /// Leaves the connection to the protocol that it was upgraded to.
    pub fn let_go(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.let_go();
        }
    }

    /// Its connection, to be kept once the answer has been read to its end, or to be dropped.
    pub fn take_connection(&mut self) -> Option<Connection> {
        self.connection.take()
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(connection) = &mut this.connection else { return Pin::new(&mut this.inner).poll_frame(cx) };
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(&mut unheard()) {
            return Poll::Ready(frame);
        }
        connection.drive(cx);
        Pin::new(&mut this.inner).poll_frame(&mut unheard())
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
