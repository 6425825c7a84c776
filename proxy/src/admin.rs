//! The admin listener: is the process alive, is it ready, what are its numbers, and why does it decide as it does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::net::TcpListener;
use tower::ServiceBuilder;

use crate::decisions::{self, Decisions};
use crate::drain::Drain;
use crate::endpoints::EndpointCalls;
use crate::explain::{self, NoExplanation};
use crate::gateway::Live;
use crate::gateway::body;
use crate::gateway::error::{CHALLENGE, GatewayError};
use crate::metrics::Metrics;
use crate::pool::Pool;

/// Admin calls served at once: a scraper and a person; more waits.
const CONCURRENT_MAX: usize = 16;
/// Longest an admin call may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a request's head.
const HEADER_MAX: Duration = Duration::from_secs(10);

/// What orchestrators ask for without a token.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// Every path and its method.
const PATHS: [(&str, &str); 7] = [
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/v1/decisions", "GET"),
    ("/v1/explain", "POST"),
    ("/v1/pass-through", "POST"),
    ("/v1/shadow", "POST"),
];

/// What the admin listener shows.
pub struct Admin {
    /// All pools.
    pub pools: Vec<Arc<Pool>>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the process ends.
    pub drain: Arc<Drain>,
    /// The last decisions.
    pub decisions: Arc<Decisions>,
    /// What the gateway is told: its limits are those of bodies to explain too.
    pub gateway: Arc<Live>,
    /// The calls that change endpoints.
    pub endpoints: EndpointCalls,
}

impl Admin {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(token) = &self.gateway.load().admin_token
            && !OPEN_PATHS.contains(&path)
            && let Err(no_key) = token.named(request.headers())
        {
            let mut response =
                text(StatusCode::UNAUTHORIZED, format!("{no_key} (access.admin_token_file)\n"));
            response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
            return response;
        }
        if EndpointCalls::serves(path) {
            return self.endpoints.answer(request).await;
        }
        let Some((_, method)) = PATHS.iter().find(|(known, _)| *known == path) else {
            let known = PATHS.map(|(path, _)| path).join(" ");
            return text(StatusCode::NOT_FOUND, format!("known paths: {known} {}\n", EndpointCalls::PATH));
        };
        // A HEAD is a GET whose body hyper leaves out.
        let asked = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
        if asked.as_str() != *method {
            let asked = request.method();
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{asked} is not served here; use {method}\n"),
            );
        }
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n".to_owned()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/metrics" => self.metrics_text(),
            "/v1/decisions" => self.last_decisions(request.uri().query()),
            "/v1/pass-through" => self.switch("pass-through", Pool::set_pass_through, request.uri().query()),
            "/v1/shadow" => self.switch("shadow", Pool::set_shadow, request.uri().query()),
            _ => self.explain(request).await,
        }
    }

    fn switch(&self, what: &str, set: fn(&Pool, bool), query: Option<&str>) -> Response<Full<Bytes>> {
        let on = match query {
            Some("on=true") => true,
            Some("on=false") => false,
            _ => return text(StatusCode::BAD_REQUEST, "the query must be on=true or on=false\n".to_owned()),
        };
        self.pools.iter().for_each(|pool| set(pool, on));
        text(StatusCode::OK, format!("{what}: {on}\n"))
    }

    fn last_decisions(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        match query.map(|query| query.strip_prefix("n=").and_then(|n| n.parse().ok())) {
            None => json(&self.decisions.json(decisions::KEPT)),
            Some(Some(count)) => json(&self.decisions.json(count)),
            Some(None) => text(StatusCode::BAD_REQUEST, "the query may be n=NUMBER\n".to_owned()),
        }
    }

    async fn explain(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let settings = self.gateway.load_full();
        let (body, permit) = match body::read(body, &settings.body).await {
            Ok(read) => read,
            Err(e) => return GatewayError::from(e).response(),
        };
        let asked = (head.uri.query(), &head.headers, &*body);
        let explained = explain::explain(&self.pools, &settings.session_header, asked);
        drop(permit);
        match explained {
            Ok(value) => json(&value),
            Err(NoExplanation::Refused(e)) => e.response(),
            Err(e) => text(StatusCode::BAD_REQUEST, format!("{e}\n")),
        }
    }

    /// Why no traffic should be sent here, if none should.
    fn not_ready(&self) -> Option<String> {
        if self.drain.is_ending() {
            return Some("draining".to_owned());
        }
        let endpoints: usize = self.pools.iter().map(|p| p.endpoints().len()).sum();
        let checked = |p: &Arc<Pool>| p.endpoints().iter().filter(|e| e.checked.load(Relaxed)).count();
        let checked: usize = self.pools.iter().map(checked).sum();
        if checked < endpoints {
            return Some(format!("{checked} of {endpoints} endpoints checked so far"));
        }
        let without = self.pools.iter().find(|p| !p.endpoints().iter().any(|e| e.takes_requests()))?;
        Some(format!("no endpoint of `{}` is healthy and takes requests", without.model))
    }

    fn metrics_text(&self) -> Response<Full<Bytes>> {
        for pool in &self.pools {
            pool.export();
        }
        self.metrics
            .buffered_body_bytes
            .set(i64::try_from(self.gateway.load().body.budget.used()).unwrap_or(i64::MAX));
        self.metrics.connections.set(i64::try_from(self.drain.connections()).unwrap_or(i64::MAX));
        let mut response = Response::new(Full::new(Bytes::from(self.metrics.text())));
        let form = HeaderValue::from_static("text/plain; version=0.0.4");
        response.headers_mut().insert(CONTENT_TYPE, form);
        response
    }
}

pub(crate) fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The admin listener as a service of the process.
pub struct AdminService {
    admin: Arc<Admin>,
    listener: Mutex<Option<std::net::TcpListener>>,
}

impl AdminService {
    /// Serves `admin` on a listener that is bound already and does not block.
    pub fn new(admin: Admin, listener: std::net::TcpListener) -> Self {
        Self { admin: Arc::new(admin), listener: Mutex::new(Some(listener)) }
    }

    async fn accept(&self, listener: TcpListener) {
        let admin = Arc::clone(&self.admin);
        let service = ServiceBuilder::new().concurrency_limit(CONCURRENT_MAX).service(tower::service_fn(
            move |request: Request<Incoming>| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(request).await) }
            },
        ));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "admin connection not accepted");
                    // Out of file descriptors, most likely: trying at once again would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_MAX);
                let serving = http.serve_connection(TokioIo::new(stream), service);
                // A scraper keeps its connection; one that hangs in a call is cut.
                let _ = tokio::time::timeout(CALL_MAX * 360, serving).await;
            });
        }
    }
}

#[async_trait]
impl BackgroundService for AdminService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(listener) = self.listener.lock().take() else { return };
        match TcpListener::from_std(listener) {
            Ok(listener) => tokio::select! {
                () = self.accept(listener) => {}
                _ = shutdown.wait_for(|ending| *ending) => {}
            },
            Err(e) => tracing::error!(error = %e, "admin listener cannot be used"),
        }
    }
}
