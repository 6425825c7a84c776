//! The control API: what the proxy and operators ask over HTTP. Answers come from the driver; nothing is decided here.
//!
//! Each request passes, in order: the load shed and the concurrency limit (503 when full), the timeout, the bearer
//! token, the route.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use crate::driver::Event;

mod routes;
mod token;

pub use routes::{ROUTES, Route, Routes};
pub use token::Token;

/// How long the whole of a control request may take. Stage calls have deadlines of their own, far below.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after a failed accept before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;
type Stack = BoxCloneSyncService<Request<Incoming>, Answer, BoxError>;

/// A bound listener of the control API.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// What the control API needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Requests worked on at one time.
    pub requests_max: usize,
    /// Connections at one time.
    pub connections_max: usize,
    /// How long a stage call may take at most.
    pub stage_deadline: Duration,
    /// Whether the debug routes exist.
    pub debug_faults: bool,
    /// The token every request must bring, if one is set.
    pub token: Option<Token>,
}

/// Serves until the task is dropped.
pub async fn serve(listener: Listener, settings: Settings, events: mpsc::Sender<Event>) {
    let permits = Arc::new(Semaphore::new(settings.connections_max));
    let stack = stack(settings, events);
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stack = stack.clone();
        let accepted = match &listener {
            Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, _)| {
                // Answers are small and awaited: they must not wait for more to be sent with them.
                let _ = stream.set_nodelay(true);
                drop(tokio::spawn(async move {
                    connection(stream, stack).await;
                    drop(permit)
                }));
            }),
            Listener::Unix(unix) => unix.accept().await.map(|(stream, _)| {
                drop(tokio::spawn(async move {
                    connection(stream, stack).await;
                    drop(permit)
                }));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "the control listener cannot accept");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn stack(settings: Settings, events: mpsc::Sender<Event>) -> Stack {
    let requests_max = settings.requests_max;
    let routes = Arc::new(Routes::new(settings, events));
    let service = ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(requests_max))
        .layer(TimeoutLayer::new(REQUEST_TIMEOUT))
        .service(service_fn(move |request: Request<Incoming>| {
            let routes = Arc::clone(&routes);
            async move { Ok::<_, BoxError>(routes.answer(request).await) }
        }));
    BoxCloneSyncService::new(service)
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, stack: Stack) {
    let service = hyper::service::service_fn(move |request| {
        let stack = stack.clone();
        async move {
            let answer = stack.oneshot(request).await.unwrap_or_else(|error| overloaded(&error));
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a control connection ended early");
    }
}

/// The layers above the routes fail only by refusing.
fn overloaded(error: &BoxError) -> Answer {
    let text = if error.is::<tower::load_shed::error::Overloaded>() {
        "too many control requests at once (limits.control_requests); try again"
    } else {
        "the request took too long"
    };
    routes::error(StatusCode::SERVICE_UNAVAILABLE, text)
}
