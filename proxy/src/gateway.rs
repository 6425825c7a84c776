//! The path of a request: every phase is one call, and what there is to decide is decided elsewhere.
//!
//! pingora accepts the connections and owns the runtime; hyper speaks HTTP/1.1 and HTTP/2 (with prior knowledge)
//! over pingora's stream. pingora's own proxy chooses an upstream before it has read the body, which a choice by
//! prefix cannot do: see ARCHITECTURE.md, "Why not pingora-proxy".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use hyper::body::Incoming;
use pingora::apps::ServerApp;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::access_log::{self, Entry};
use crate::decisions::{Decisions, Record};
use crate::drain::Drain;
use crate::keys::{self, Keys, NoKey};
use crate::metrics::Metrics;
use crate::openai::{self, Call};
use crate::pool::Pool;
use crate::tls;

pub mod body;
pub mod connection;
pub mod deny;
pub mod error;
mod forward;
pub mod head;
pub mod interim;
pub mod last_event;
pub mod models;
pub mod places;
pub mod prompt;
mod resets;
pub mod response;
pub mod splice;
mod upgrade;

use body::{BodyLimits, BodyPermit};
use deny::DenyList;
use error::GatewayError;
use places::{Place, Places};
use prompt::Prompt;
use response::GatewayBody;

/// What the gateway is told by the config.
pub struct Settings {
    /// Limits of request bodies.
    pub body: BodyLimits,
    /// The codecs of client connections, with their limits.
    pub server: connection::Server,
    /// Client connections at one time.
    pub max_connections: usize,
    /// Requests in the proxy at one time.
    pub places: Arc<Places>,
    /// Header that names the client's session.
    pub session_header: HeaderName,
    /// Whether answers carry `x-larder-endpoint` and `x-larder-matched-tokens`.
    pub response_headers: bool,
    /// Endpoints tried for one request, as long as none has seen it.
    pub max_attempts: usize,
    /// Whether a request is sent again that an engine may have started.
    pub retry_started: bool,
    /// Time limits of answers.
    pub answer: response::Limits,
    /// Paths that are not served to clients.
    pub denied: DenyList,
    /// Whether each request has a line in the log.
    pub access_log: bool,
    /// Who may ask. None: everybody.
    pub keys: Option<Keys>,
    /// Whether engines get to see the keys.
    pub forward_keys: bool,
    /// Who may use the admin listener, which is told so here. None: everybody who reaches it.
    pub admin_token: Option<Keys>,
    /// With what connections speak TLS. None: they do not.
    pub tls: Option<tls::Acceptor>,
}

impl Settings {
    /// The name of the key that a request shows, where one is needed; an engine gets to see none then.
    fn let_in(&self, head: &mut http::request::Parts) -> Result<Option<Arc<str>>, NoKey> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let named = keys.named(&head.headers);
        if !self.forward_keys {
            keys::remove(&mut head.headers);
        }
        let reads = head.method == http::Method::GET || head.method == http::Method::HEAD;
        match named {
            // Load balancers in front have no key.
            Err(_) if reads && head.uri.path() == OPEN_PATH => Ok(None),
            named => named.map(Some),
        }
    }
}

/// What may be asked for without a key.
const OPEN_PATH: &str = "/health";

/// The settings as they are now. A request goes by those of its beginning.
pub type Live = ArcSwap<Settings>;

/// The gateway.
pub struct Gateway {
    live: Arc<Live>,
    pools: Vec<Arc<Pool>>,
    transport: TransportConnector,
    metrics: Arc<Metrics>,
    decisions: Arc<Decisions>,
    drain: Arc<Drain>,
    ids: RequestIds,
}

/// A request whose head and body are in hand.
struct Whole {
    head: http::request::Parts,
    body: Bytes,
    /// Gives the body's bytes back to the budget.
    permit: BodyPermit,
    /// Its place among all requests.
    place: Place,
    arrived: Instant,
    /// The name of the key that it showed, which cache nodes know as its tenant.
    key: Option<Arc<str>>,
    settings: Arc<Settings>,
}

impl Gateway {
    /// A gateway to `pools`.
    pub fn new(
        live: Arc<Live>,
        pools: Vec<Arc<Pool>>,
        (metrics, decisions): (Arc<Metrics>, Arc<Decisions>),
        drain: Arc<Drain>,
    ) -> Self {
        let transport = TransportConnector::new(None);
        Self { live, pools, transport, metrics, decisions, drain, ids: RequestIds::new() }
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<GatewayBody> {
        let arrived = Instant::now();
        let settings = self.live.load_full();
        let (mut head, body) = request.into_parts();
        let id = head::request_id(&mut head.headers, || self.ids.next());
        let logged = settings.access_log.then(|| (head.method.clone(), access_log::path(&head.uri)));
        let messages = head.uri.path().starts_with("/v1/messages");
        let mut pool_name = "";
        let shown = settings.let_in(&mut head);
        let key = shown.as_ref().ok().cloned().flatten();
        let answer = match shown {
            Ok(_) => self.answer((head, body), (arrived, key.clone(), settings), &mut pool_name).await,
            Err(no_key) => {
                body::refuse(body);
                Err(no_key.into())
            }
        };
        let mut response = answer.unwrap_or_else(|e| {
            tracing::debug!(id = ?id, error = %e, "refused");
            e.response_for(if messages { "/v1/messages" } else { "" }).map(GatewayBody::from)
        });
        self.metrics.answered(pool_name, response.status().as_u16());
        if let Some((method, path)) = logged {
            let decision = response.extensions_mut().remove::<Arc<Record>>();
            let (pool, status) = (pool_name.to_owned(), response.status().as_u16());
            let entry = Entry { id: id.clone(), method, path, pool, key, status, arrived, decision };
            response.extensions_mut().insert(Arc::new(entry));
        }
        response.headers_mut().insert(head::REQUEST_ID, id);
        response
    }

    async fn answer<'a>(
        &'a self,
        (head, body): (http::request::Parts, Incoming),
        (arrived, key, settings): (Instant, Option<Arc<str>>, Arc<Settings>),
        pool_name: &mut &'a str,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        if head.method == http::Method::CONNECT {
            return Err(GatewayError::Connect);
        }
        if !head::has_one_host(&head) {
            return Err(GatewayError::Host);
        }
        if settings.denied.covers(head.uri.path()) {
            return Err(GatewayError::Denied { path: access_log::path(&head.uri) });
        }
        let call = openai::classify(&head.method, head.uri.path());
        match call {
            Call::Models => return Ok(models::answer(&self.pools)),
            Call::WrongMethod { path, allowed } => {
                return Err(GatewayError::Method { method: head.method.to_string(), path, allowed });
            }
            Call::Prompt(_) | Call::Other => {}
        }
        let place = match settings.places.take() {
            Ok(place) => place,
            Err(limit) => {
                body::refuse(body);
                return Err(GatewayError::Overloaded { limit });
            }
        };
        let (body, permit) = body::read(body, &settings.body).await?;
        let whole = Whole { head, body, permit, place, arrived, key, settings };
        let read_at = Instant::now();
        let prompt = Prompt::read(&self.pools, call, &whole.body);
        let pool = prompt.pool(&self.pools)?;
        *pool_name = &pool.model;
        self.forward(whole, prompt, pool, read_at).await
    }
}

#[async_trait]
impl ServerApp for Gateway {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        let running = self.drain.connection();
        let settings = self.live.load_full();
        if self.drain.connections() > settings.max_connections {
            tracing::warn!(
                limit = settings.max_connections,
                "limits.max_connections reached, connection closed"
            );
            return None;
        }
        let answer = |request| {
            let gateway = Arc::clone(self);
            async move { gateway.serve(request).await }
        };
        let mut ending = self.drain.watch();
        match &settings.tls {
            None => settings.server.serve(stream, ending, answer).await,
            Some(tls) => {
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    // Who has not got in yet has asked for nothing.
                    _ = ending.wait_for(|ending| *ending) => return None,
                };
                match shaken {
                    Ok(stream) => settings.server.serve(stream, ending, answer).await,
                    Err(error) => tracing::debug!(%error, "no TLS with a client"),
                }
            }
        }
        drop(running);
        None
    }
}

/// Makes request ids: random at the start, then counted, so that none repeats.
struct RequestIds {
    start: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        Self { start: rand::random(), next: AtomicU64::new(0) }
    }

    fn next(&self) -> u128 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        (u128::from(self.start) << 64) | u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

#[cfg(test)]
mod tests;
