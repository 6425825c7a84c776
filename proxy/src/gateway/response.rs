//! The answer on its way to the client: passed through frame by frame, watched for its first token and its end.
//!
//! The load that a request puts on an endpoint is released when this body goes, on every path: read to its end,
//! broken off by the engine, or dropped because the client left (which also closes the engine's connection, and
//! so stops the generation).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::pool::InFlight;
use crate::upstream::Connection;
use crate::usage::UsageScanner;

/// The body of every answer.
pub enum GatewayBody {
    /// The gateway's own words.
    Own(Full<Bytes>),
    /// An engine's answer.
    Engine(Box<EngineBody>),
}

impl From<Full<Bytes>> for GatewayBody {
    fn from(body: Full<Bytes>) -> Self {
        Self::Own(body)
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Engine(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            // Only once the guard has been settled: hyper does not ask for frames after this says yes.
            Self::Engine(body) => body.in_flight.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Engine(body) => body.inner.size_hint(),
        }
    }
}

/// An engine's answer, with what it holds until its end.
pub struct EngineBody {
    inner: Incoming,
    in_flight: Option<InFlight>,
    connection: Option<Connection>,
    streamed: bool,
    good: bool,
    started: bool,
    usage: UsageScanner,
}

impl EngineBody {
    /// The answer `inner`, on `connection`, to the request that `in_flight` counts; `good` unless its status says
    /// that the engine refused or failed.
    pub fn new(
        inner: Incoming,
        in_flight: InFlight,
        connection: Connection,
        (streamed, good): (bool, bool),
    ) -> Box<Self> {
        let mut body = Self {
            inner,
            in_flight: Some(in_flight),
            connection: Some(connection),
            streamed,
            good,
            started: false,
            usage: UsageScanner::default(),
        };
        if body.inner.is_end_stream() {
            body.complete();
        }
        Box::new(body)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.see(data);
                }
                if self.inner.is_end_stream() {
                    self.complete();
                }
            }
            Some(Err(e)) => {
                if let Some(in_flight) = self.in_flight.take() {
                    in_flight.broken(e);
                }
                self.connection = None;
            }
            None => self.complete(),
        }
        Poll::Ready(frame)
    }

    fn see(&mut self, data: &Bytes) {
        self.usage.feed(data);
        if !self.started && !data.is_empty() {
            self.started = true;
            if self.streamed
                && let Some(in_flight) = &self.in_flight
            {
                in_flight.first_token();
            }
        }
    }

    fn complete(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            if let Some(connection) = self.connection.take() {
                in_flight.endpoint().upstream.keep(connection);
            }
            if self.good {
                in_flight.completed(self.usage.finish());
            } else {
                in_flight.failed();
            }
        }
    }
}
