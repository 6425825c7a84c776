//! The path of a request: every phase is one call, and what there is to decide is decided elsewhere.
//!
//! pingora accepts the connections and owns the runtime; hyper speaks HTTP/1.1 and HTTP/2 (with prior knowledge)
//! over pingora's stream. pingora's own proxy chooses an upstream before it has read the body, which a choice by
//! prefix cannot do: see ARCHITECTURE.md, "Why not pingora-proxy".

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use hyper::body::Incoming;
use larder_identity::{Api, NoChain, PromptChain};
use pingora::apps::ServerApp;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::openai::{self, Call};
use crate::pool::Pool;

pub mod body;
pub mod connection;
pub mod error;
mod forward;
pub mod head;
pub mod interim;
pub mod models;
pub mod response;
pub mod splice;

use body::{BodyLimits, BodyPermit};
use error::GatewayError;
use response::GatewayBody;
use splice::Places;

/// Bodies above this size are hashed off the async workers' turn: at the slowest measured rate (0.6 GB/s, text all
/// in `\u` escapes) 1 MiB takes under 2 ms, and nothing should hold a worker longer.
const HASH_INLINE_MAX_BYTES: usize = 1 << 20;

/// What the gateway is told by the config.
pub struct Settings {
    /// Limits of request bodies.
    pub body: BodyLimits,
    /// Limits of client connections.
    pub connection: connection::Limits,
    /// Client connections at one time.
    pub max_connections: usize,
    /// Largest request head, bytes.
    pub max_header_bytes: usize,
    /// Header that names the client's session.
    pub session_header: HeaderName,
    /// Whether answers carry `x-larder-endpoint` and `x-larder-matched-tokens`.
    pub response_headers: bool,
    /// Endpoints tried for one request, as long as none has seen it.
    pub max_attempts: usize,
}

/// The gateway.
pub struct Gateway {
    settings: Settings,
    pools: Vec<Arc<Pool>>,
    transport: TransportConnector,
    metrics: Arc<Metrics>,
    drain: Arc<Drain>,
    ids: RequestIds,
    server: connection::Server,
}

/// A request whose head and body are in hand.
struct Whole {
    head: http::request::Parts,
    body: Bytes,
    /// Gives the body's bytes back to the budget.
    permit: BodyPermit,
    arrived: Instant,
}

/// What the body of a request says, as far as the choice needs it.
#[derive(Default)]
struct Prompt {
    model: Option<String>,
    chain: Option<PromptChain>,
    session: Option<String>,
    streamed: bool,
    /// Where the body can be changed.
    places: Places,
    /// Why there is no chain.
    why: Option<NoChain>,
}

impl Gateway {
    /// A gateway to `pools`.
    pub fn new(settings: Settings, pools: Vec<Arc<Pool>>, metrics: Arc<Metrics>, drain: Arc<Drain>) -> Self {
        let server = connection::Server::new(settings.connection, settings.max_header_bytes);
        let transport = TransportConnector::new(None);
        Self { settings, pools, transport, metrics, drain, ids: RequestIds::new(), server }
    }

    /// The pools it serves.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<GatewayBody> {
        let arrived = Instant::now();
        let (mut head, body) = request.into_parts();
        let id = head::request_id(&mut head.headers, || self.ids.next());
        let mut pool_name = "";
        let answer = self.answer(head, body, arrived, &mut pool_name).await;
        let mut response = answer.unwrap_or_else(|e| {
            tracing::debug!(id = ?id, error = %e, "refused");
            e.response().map(GatewayBody::from)
        });
        self.metrics.answered(pool_name, response.status().as_u16());
        response.headers_mut().insert(head::REQUEST_ID, id);
        response
    }

    async fn answer<'a>(
        &'a self,
        head: http::request::Parts,
        body: Incoming,
        arrived: Instant,
        pool_name: &mut &'a str,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        if head.method == http::Method::CONNECT {
            return Err(GatewayError::Connect);
        }
        if !head::has_one_host(&head) {
            return Err(GatewayError::Host);
        }
        let call = openai::classify(&head.method, head.uri.path());
        match call {
            Call::Models => return Ok(models::answer(&self.pools, &head)),
            Call::WrongMethod { path, allowed } => {
                return Err(GatewayError::Method { method: head.method.to_string(), path, allowed });
            }
            Call::Prompt(_) | Call::Other => {}
        }
        let (body, permit) = body::read(body, &self.settings.body).await?;
        let whole = Whole { head, body, permit, arrived };
        let read_at = Instant::now();
        let prompt = self.read_prompt(call, &whole);
        let pool = self.pool_for(&prompt)?;
        *pool_name = &pool.model;
        self.forward(whole, prompt, pool, read_at).await
    }

    /// Reads what the choice needs from the body, in one walk.
    fn read_prompt(&self, call: Call, whole: &Whole) -> Prompt {
        let api = match call {
            Call::Prompt(api) => api,
            // One pool needs no model to be found; a body that is none of ours is not looked at.
            _ if self.pools.len() == 1 || whole.body.is_empty() => return Prompt::default(),
            _ => Api::Completions,
        };
        // Pools differ only in how tools are rendered, so the first pool's walk finds the model, and the
        // chain is made again where the model's pool is another.
        let walk = |pool: &Pool| {
            let run = || to_prompt(pool.hasher.walk(api, b"", &whole.body));
            if whole.body.len() > HASH_INLINE_MAX_BYTES { tokio::task::block_in_place(run) } else { run() }
        };
        let Some(first) = self.pools.first() else { return Prompt::default() };
        let mut prompt = walk(first);
        if let Some(pool) = prompt.model.as_deref().and_then(|m| self.pool_of(m))
            && !Arc::ptr_eq(pool, first)
            && pool.tools_order != first.tools_order
        {
            prompt = walk(pool);
        }
        if !matches!(call, Call::Prompt(_)) {
            prompt.chain = None;
            prompt.why = None;
        }
        prompt
    }

    fn pool_of(&self, model: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|p| p.serves(model))
    }

    fn pool_for(&self, prompt: &Prompt) -> Result<&Arc<Pool>, GatewayError> {
        let known = || self.pools.iter().map(|p| p.model.as_str()).collect::<Vec<_>>().join(", ");
        match (&prompt.model, self.pools.as_slice()) {
            (Some(model), _) => self
                .pool_of(model)
                .ok_or_else(|| GatewayError::UnknownModel { model: model.clone(), known: known() }),
            // The engine says what is wrong with a body that names no model.
            (None, [only]) => Ok(only),
            (None, _) => Err(GatewayError::NoModel {
                known: known(),
                why: prompt.why.as_ref().map_or_else(|| "no body".to_owned(), ToString::to_string),
            }),
        }
    }
}

fn to_prompt(walk: larder_identity::Walk<'_>) -> Prompt {
    let envelope = walk.envelope;
    let places = Places {
        kv_transfer_params: envelope.kv_transfer_params,
        object: envelope.body_object,
        has_members: envelope.has_members,
        complete: envelope.complete,
    };
    let (chain, why) = match walk.prompt {
        Ok(chain) => (Some(chain), None),
        Err(why) => (None, Some(why)),
    };
    Prompt {
        model: envelope.model.map(Cow::into_owned),
        chain,
        session: envelope.session.map(Cow::into_owned),
        streamed: envelope.stream,
        places,
        why,
    }
}

#[async_trait]
impl ServerApp for Gateway {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        let running = self.drain.connection();
        if self.drain.connections() > self.settings.max_connections {
            tracing::warn!(
                limit = self.settings.max_connections,
                "limits.max_connections reached, connection closed"
            );
            return None;
        }
        let answer = |request| {
            let gateway = Arc::clone(self);
            async move { gateway.serve(request).await }
        };
        self.server.serve(stream, self.drain.watch(), answer).await;
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
