//! The way to one engine: pingora's transport, hyper's HTTP/1.1 on top, idle connections kept.
//!
//! pingora connects (time limits, socket options, later TLS); hyper is the codec, so that head and body leave
//! in one vectored write and the many rules of HTTP/1.1 are kept by a library that many people test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::BasicPeer;

use crate::gateway::splice::RequestBody;

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

/// Longest a kept connection may take to be ready: its driver has one message to handle.
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
    /// Not used before.
    rested: Instant,
}

/// The connections to one engine.
pub struct Upstream {
    authority: String,
    limits: ArcSwap<Limits>,
    idle: Mutex<Vec<Idle>>,
    habit: Arc<Habit>,
}

/// What was learnt of how an engine ends connections.
#[derive(Debug)]
struct Habit {
    origin: Instant,
    closes_after_streams: AtomicBool,
}

impl Habit {
    /// Milliseconds since the start, never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// The engine closed a connection that rested since `rested_at`, 0 if it did not rest after a stream.
    fn closed(&self, rested_at: u64) {
        let age = Duration::from_millis(self.now().saturating_sub(rested_at));
        if rested_at > 0 && age < STREAM_CLOSE_MAX {
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
        Self {
            authority,
            limits: ArcSwap::from_pointee(limits),
            idle: Mutex::new(Vec::new()),
            habit: Arc::new(Habit { origin: Instant::now(), closes_after_streams: AtomicBool::new(false) }),
        }
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
    ) -> Result<(Response<Incoming>, Connection), SendFailed> {
        while let Some(mut kept) = self.take_idle().await {
            match self.exchange(&mut kept, request).await {
                Ok(response) => return Ok((response, kept)),
                Err(SendFailed { unsent: Some(back), .. }) => request = *back,
                Err(failed) => return Err(failed),
            }
        }
        // Boxed, since every request's future would have the room for what few do.
        match Box::pin(self.connect(transport)).await {
            Ok(mut connection) => {
                let response = self.exchange(&mut connection, request).await?;
                Ok((response, connection))
            }
            Err(error) => Err(SendFailed { error, unsent: Some(Box::new(request)) }),
        }
    }

    /// Keeps a connection whose answer, a stream of events or not, has been read to its end.
    pub fn keep(&self, connection: Connection, streamed: bool) {
        if connection.closing || connection.sender.is_closed() {
            return;
        }
        if streamed && self.habit.closes_after_streams.load(Ordering::Relaxed) {
            return;
        }
        let since = Instant::now();
        let mut rested = since;
        if streamed {
            rested += STREAM_REST;
            connection.rested_at.store(self.habit.now(), Ordering::Relaxed);
        }
        let mut idle = self.idle.lock();
        if idle.len() < self.limits.load().idle {
            idle.push(Idle { connection, since, rested });
        } else {
            // It is ours that closes it.
            connection.rested_at.store(0, Ordering::Relaxed);
        }
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let Idle { mut connection, .. } = self.youngest_rested()?;
            connection.rested_at.store(0, Ordering::Relaxed);
            // The last answer has been read to its end, so the codec is ready, or about to be, or closed. It stays
            // busy only where an engine answered without reading its request, and then it is no use.
            if connection.sender.is_ready() {
                return Some(connection);
            }
            if let Ok(Ok(())) = tokio::time::timeout(READY_MAX, connection.sender.ready()).await {
                return Some(connection);
            }
        }
    }

    fn youngest_rested(&self) -> Option<Idle> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let at = idle.iter().rposition(|kept| kept.rested <= now)?;
        if now.saturating_duration_since(idle[at].since) > IDLE_MAX {
            // Too old, so all before it are.
            idle.drain(..=at);
            return None;
        }
        Some(idle.remove(at))
    }

    async fn exchange(
        &self,
        connection: &mut Connection,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, SendFailed> {
        let authority = || self.authority.clone();
        let upgrading = request.headers().contains_key(http::header::UPGRADE);
        let limit = self.limits.load().first_byte;
        match tokio::time::timeout(limit, connection.sender.try_send_request(request)).await {
            // No upgrade was asked for, so what follows is no HTTP that could be passed on.
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrading => {
                let reason = "it switched protocols unasked".to_owned();
                let authority = authority();
                Err(SendFailed { error: UpstreamError::Exchange { authority, reason }, unsent: None })
            }
            Ok(Ok(response)) => {
                connection.closing = says_close(&response);
                Ok(response)
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
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())
        };
        let (sender, driver) = tokio::time::timeout(limit, connecting)
            .await
            .map_err(|_| fail(format!("no connection within {} ms", limit.as_millis())))?
            .map_err(fail)?;
        let rested_at = Arc::new(AtomicU64::new(0));
        let (habit, resting) = (Arc::clone(&self.habit), Arc::clone(&rested_at));
        tokio::spawn(async move {
            if let Err(e) = driver.with_upgrades().await {
                tracing::debug!(error = %e, "connection to an engine ended");
            }
            habit.closed(resting.load(Ordering::Relaxed));
        });
        Ok(Connection { sender, closing: false, rested_at })
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

/// A connection in use. Dropped, it closes, which tells the engine to stop generating; kept with
/// [`Upstream::keep`], it serves the next request.
pub struct Connection {
    sender: SendRequest<Body>,
    /// The engine has announced that it closes it.
    closing: bool,
    /// When it began to rest after a stream, in milliseconds of its [`Habit`]; 0: it does not.
    rested_at: Arc<AtomicU64>,
}
