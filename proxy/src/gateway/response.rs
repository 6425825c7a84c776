//! The answer on its way to the client: passed through frame by frame, watched for its first token and its end.
//!
//! The load that a request puts on an endpoint is released when this body goes, on every path: read to its end,
//! broken off by the engine, or dropped because the client left (which also closes the engine's connection, and
//! so stops the generation).

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::last_event;
use crate::pool::InFlight;
use crate::upstream::Connection;
use crate::usage::UsageScanner;

/// How long the last words of a broken stream get to leave before its connection is cut: they must not be lost with it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Why an answer ended before its end.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Time limits of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait for its next piece.
    pub idle: Duration,
    /// Longest time from the request's head to its end.
    pub total: Duration,
}

/// An answer that passed a limit.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Late {
    /// Nothing came for too long.
    #[error("the engine sent nothing for {} s (timeouts.idle)", limit.as_secs_f64())]
    Stalled {
        /// The limit.
        limit: Duration,
    },
    /// It went on for too long.
    #[error("the answer took longer than {} s (timeouts.total)", limit.as_secs_f64())]
    TooLong {
        /// The limit.
        limit: Duration,
    },
}

/// What is known of an answer from its head.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// A stream of events.
    pub streamed: bool,
    /// Its status does not say that the engine refused or failed.
    pub good: bool,
    /// An event of the gateway's own may follow.
    pub events: bool,
    /// How that one tells an error.
    pub errors: last_event::Form,
}

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
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Engine(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            // Only once the guard has been settled: hyper does not ask for frames after this says yes.
            Self::Engine(body) => body.in_flight.is_none() && body.cut.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Engine(body) if body.form.events => SizeHint::default(),
            Self::Engine(body) => body.inner.size_hint(),
        }
    }
}

/// An engine's answer, with what it holds until its end.
pub struct EngineBody {
    inner: Incoming,
    in_flight: Option<InFlight>,
    connection: Option<Connection>,
    form: Form,
    clock: Clock,
    cut: Option<Cut>,
    started: bool,
    /// Whether the last byte so far ended a line, and the one before it too: the end of an event.
    line_ends: [bool; 2],
    usage: UsageScanner,
}

impl EngineBody {
    /// The answer `inner`, on `connection`, to the request that `in_flight` counts.
    pub fn new(
        inner: Incoming,
        in_flight: InFlight,
        connection: Connection,
        (form, limits): (Form, Limits),
    ) -> Box<Self> {
        let clock = Clock { limits, end: in_flight.arrived() + limits.total, waiting: None, timer: None };
        let mut body = Self {
            inner,
            in_flight: Some(in_flight),
            connection: Some(connection),
            form,
            clock,
            cut: None,
            started: false,
            line_ends: [true; 2],
            usage: UsageScanner::default(),
        };
        if body.inner.is_end_stream() {
            body.complete();
        }
        Box::new(body)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(cut) = &mut self.cut {
            ready!(cut.pause.as_mut().poll(cx));
            return Poll::Ready(cut.failure.take().map(Err));
        }
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let late = ready!(self.clock.poll(cx));
                return Poll::Ready(Some(self.fail(late.into())));
            }
        };
        self.clock.waiting = None;
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.see(data);
                }
                if self.inner.is_end_stream() {
                    self.complete();
                }
            }
            Some(Err(_)) => {}
            None => self.complete(),
        }
        Poll::Ready(frame.map(|frame| frame.or_else(|e| self.fail(e.into()))))
    }

    /// The answer ends here, before its end: the load goes, the engine's connection closes. A stream of events gets one
    /// more that says why; the client's connection is cut a moment later, so that no end looks clean.
    fn fail(&mut self, failure: Failure) -> Result<Frame<Bytes>, Failure> {
        self.connection = None;
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.broken(&*failure);
        }
        if !self.form.events {
            return Err(failure);
        }
        let event = self.last_event(&*failure);
        self.cut = Some(Cut { pause: Box::pin(tokio::time::sleep(LAST_WORDS)), failure: Some(failure) });
        Ok(Frame::data(event))
    }

    fn last_event(&self, failure: &(dyn Error + 'static)) -> Bytes {
        let (message, code) = match failure.downcast_ref::<Late>() {
            Some(late @ Late::Stalled { .. }) => (late.to_string(), "engine_stalled"),
            Some(late @ Late::TooLong { .. }) => (late.to_string(), "answer_too_long"),
            None => ("the engine broke off in the middle of its answer".to_owned(), "engine_lost"),
        };
        let event = self.form.errors.event(&message, code, self.usage.tail());
        // What came last may have stopped within an event.
        let open = if self.line_ends == [true; 2] { "" } else { "\n\n" };
        Bytes::from(format!("{open}{event}"))
    }

    fn see(&mut self, data: &Bytes) {
        self.usage.feed(data);
        for byte in data[data.len().saturating_sub(4)..].iter().filter(|byte| **byte != b'\r') {
            self.line_ends = [self.line_ends[1], *byte == b'\n'];
        }
        if !self.started && !data.is_empty() {
            self.started = true;
            if self.form.streamed
                && let Some(in_flight) = &self.in_flight
            {
                in_flight.first_token();
            }
        }
    }

    fn complete(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            if let Some(connection) = self.connection.take() {
                in_flight.endpoint().upstream.keep(connection, self.form.streamed);
            }
            if self.form.good {
                in_flight.completed(self.usage.finish());
            } else {
                in_flight.failed();
            }
        }
    }
}

/// A stream that was broken off and has said so.
struct Cut {
    pause: Pin<Box<Sleep>>,
    failure: Option<Failure>,
}

/// Watches the limits of an answer while its next piece does not come. A client that does not read costs no engine
/// its time: only waiting for the engine counts.
struct Clock {
    limits: Limits,
    end: Instant,
    waiting: Option<Instant>,
    /// Set again only when it fires, which may be early by then; most answers never wait so long.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Late> {
        let now = Instant::now();
        let stalled = *self.waiting.get_or_insert(now) + self.limits.idle;
        loop {
            let due = stalled.min(self.end);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if timer.deadline().into_std() > due {
                timer.as_mut().reset(due.into());
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.end {
                return Poll::Ready(Late::TooLong { limit: self.limits.total });
            }
            if now >= stalled {
                return Poll::Ready(Late::Stalled { limit: self.limits.idle });
            }
            timer.as_mut().reset(due.into());
        }
    }
}
