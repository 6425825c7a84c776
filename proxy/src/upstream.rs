//! The way to one engine: pingora's transport, hyper's HTTP/1.1 on top, idle connections kept.
//!
//! pingora connects (time limits, socket options, later TLS); hyper is the codec, so that head and body leave
//! in one vectored write and the many rules of HTTP/1.1 are kept by a library that many people test.

mod connection;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::BasicPeer;

use crate::gateway::splice::RequestBody;
pub use connection::{Answer, Connection};

/// An idle connection older than this is not trusted with a request: engines' HTTP servers close idle
/// connections (uvicorn, under vLLM and SGLang, after 5 s by default), and a request that races with that
/// close is lost or must be sent twice.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// A connection rests for so long after a stream before it is used again: llama.cpp's server closes it then, and
/// announces it nowhere. What arrives in this time shows that, and no request is lost to it.
const STREAM_REST: Duration = Duration::from_millis(20);

/// An engine that closes a connection within this time of a stream does so as a habit: later streams' connections are
/// not kept. Idle connections are closed after seconds.
const STREAM_CLOSE_MAX: Duration = Duration::from_secs(1);

/// Longest a kept connection may take to be ready: it has the end of one message to handle.
const READY_MAX: Duration = Duration::from_millis(20);

/// The body of every request to an engine.
pub type Body = RequestBody;

/// Why an exchange with an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be had: the engine has seen nothing, so another may be asked.
    #[error("cannot connect to {authority}: {reason}")]
    Connect {
        /// `host:port` of the engine.
        authority: String,
        /// What the transport said.
        reason: String,
    },
    /// The request was, or may have been, sent: asking again could make an engine do the work twice.
    #[error("{authority} closed the exchange before its answer began: {reason}")]
    Exchange {
        /// `host:port` of the engine.
        authority: String,
        /// What the codec said.
        reason: String,
    },
    /// The engine did not begin its answer in time.
    #[error("{authority} sent no answer within {limit_ms} ms")]
    FirstByte {
        /// `host:port` of the engine.
        authority: String,
        /// The limit, milliseconds.
        limit_ms: u128,
    },
}

/// An exchange that did not start.
pub struct SendFailed {
    /// Why.
    pub error: UpstreamError,
    /// The request, where the engine surely saw nothing of it: another may be asked.
    pub unsent: Option<Box<Request<Body>>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// The connections to one engine.
pub struct Upstream {
    authority: String,
    limits: Arc<ArcSwap<Limits>>,
    kept: Arc<Kept>,
}

/// Connections without a request, the youngest last.
#[derive(Default)]
struct Kept {
    idle: Mutex<Vec<Idle>>,
    /// Learnt: the engine closes connections after streams.
    closes_after_streams: AtomicBool,
}

impl Kept {
    fn push(&self, connection: Connection, most: usize) {
        let mut idle = self.idle.lock();
        if idle.len() < most {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// The youngest one, if it is young enough.
    fn pop(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let youngest = idle.pop()?;
        if youngest.since.elapsed() > IDLE_MAX {
            // Too old, so all before it are.
            idle.clear();
            return None;
        }
        Some(youngest.connection)
    }

    /// The engine has closed a connection that had no request.
    fn closed(&self, connection: &Connection) {
        if connection.streamed_at.is_some_and(|at| at.elapsed() < STREAM_CLOSE_MAX) {
            self.closes_after_streams.store(true, Ordering::Relaxed);
        }
    }
}

/// The limits of an [`Upstream`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the head of the answer.
    pub first_byte: Duration,
    /// Most idle connections kept for one engine.
    pub idle: usize,
}

impl Upstream {
    /// The connections to the engine at `authority` (`host:port`); none is opened yet.
    pub fn new(authority: String, limits: Limits) -> Self {
        Self { authority, limits: Arc::new(ArcSwap::from_pointee(limits)), kept: Arc::default() }
    }

    /// Goes by other limits from the next request on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// `host:port` of the engine.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends `request` and waits for the head of the answer.
    ///
    /// A kept connection that proves closed before anything was written is replaced by a new one; nothing is
    /// ever sent twice.
    ///
    /// # Errors
    /// See [`SendFailed`]: it gives the request back where the engine surely saw nothing of it.
    pub async fn send(
        &self,
        transport: &TransportConnector,
        mut request: Request<Body>,
    ) -> Result<Response<Answer>, SendFailed> {
        while let Some(kept) = self.take_idle().await {
            match self.exchange(kept, request).await {
                Err(SendFailed { unsent: Some(back), .. }) => request = *back,
                answered => return answered,
            }
        }
        match self.connect(transport).await {
            Ok(connection) => self.exchange(connection, request).await,
            Err(error) => Err(SendFailed { error, unsent: Some(Box::new(request)) }),
        }
    }

    /// Keeps a connection whose answer, a stream of events or not, has been read to its end.
    pub fn keep(&self, mut connection: Connection, streamed: bool) {
        if connection.closing {
            return;
        }
        if !streamed {
            connection.streamed_at = None;
            self.kept.push(connection, self.limits.load().idle);
            return;
        }
        if self.kept.closes_after_streams.load(Ordering::Relaxed) {
            return;
        }
        connection.streamed_at = Some(Instant::now());
        let (kept, limits) = (Arc::clone(&self.kept), Arc::clone(&self.limits));
        tokio::spawn(async move {
            match tokio::time::timeout(STREAM_REST, connection.ends()).await {
                Ok(()) => kept.closed(&connection),
                Err(_) => kept.push(connection, limits.load().idle),
            }
        });
    }

    /// Closes the kept connections that are too old to be used or that the engine has closed.
    pub fn tend(&self) {
        self.kept.idle.lock().retain_mut(|idle| {
            let ended = idle.connection.has_ended();
            if ended {
                self.kept.closed(&idle.connection);
            }
            !ended && idle.since.elapsed() <= IDLE_MAX
        });
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.kept.pop()?;
            // The last answer has been read to its end, so the codec is ready, or about to be, or closed. It stays
            // busy only where an engine answered without reading its request, and then it is no use.
            if connection.is_ready() {
                return Some(connection);
            }
            match tokio::time::timeout(READY_MAX, connection.becomes_ready()).await {
                Ok(true) => return Some(connection),
                Ok(false) => self.kept.closed(&connection),
                Err(_) => {}
            }
        }
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        request: Request<Body>,
    ) -> Result<Response<Answer>, SendFailed> {
        let authority = || self.authority.clone();
        let upgrading = request.headers().contains_key(http::header::UPGRADE);
        let limit = self.limits.load().first_byte;
        match tokio::time::timeout(limit, connection.exchange(request)).await {
            // No upgrade was asked for, so what follows is no HTTP that could be passed on.
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrading => {
                let reason = "it switched protocols unasked".to_owned();
                let authority = authority();
                Err(SendFailed { error: UpstreamError::Exchange { authority, reason }, unsent: None })
            }
            Ok(Ok(response)) => {
                connection.closing = says_close(&response);
                let (head, body) = response.into_parts();
                Ok(Response::from_parts(head, Answer::new(body, connection)))
            }
            Ok(Err(mut e)) => {
                let (authority, reason) = (authority(), causes(e.error()));
                let unsent = e.take_message().map(Box::new);
                let error = match unsent {
                    Some(_) => UpstreamError::Connect { authority, reason },
                    None => UpstreamError::Exchange { authority, reason },
                };
                Err(SendFailed { error, unsent })
            }
            Err(_) => {
                let (authority, limit_ms) = (authority(), limit.as_millis());
                Err(SendFailed { error: UpstreamError::FirstByte { authority, limit_ms }, unsent: None })
            }
        }
    }

    async fn connect(&self, transport: &TransportConnector) -> Result<Connection, UpstreamError> {
        let fail = |reason: String| UpstreamError::Connect { authority: self.authority.clone(), reason };
        let limit = self.limits.load().connect;
        let connecting = async {
            let address = tokio::net::lookup_host(&self.authority)
                .await
                .map_err(|e| e.to_string())?
                .next()
                .ok_or_else(|| "the name has no address".to_owned())?;
            let mut peer = BasicPeer::new(&address.to_string());
            peer.options.connection_timeout = Some(limit);
            let stream = transport.new_stream(&peer).await.map_err(|e| e.to_string())?;
            Connection::over(stream).await.map_err(|e| e.to_string())
        };
        tokio::time::timeout(limit, connecting)
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {} ms", limit.as_millis())))
            .map_err(fail)
    }
}

/// Whether the engine says that it closes the connection after this answer.
fn says_close(response: &Response<Incoming>) -> bool {
    response
        .headers()
        .get(http::header::CONNECTION)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// An error and what caused it, in one line: hyper's own message alone hides the reason.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
