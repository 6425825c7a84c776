//! The routes: read, ask the driver, answer.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use larder_protocol::BlockKey;
use larder_protocol::control::{
    BODY_BYTES_MAX, CHAIN_LEN_MAX, ChainPoint, ControlError, PinRequest, QuotaRequest, ReleaseAnswer,
    ReleaseRequest, StageAnswer, StageReason, StageRequest, TENANT_BYTES_MAX,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Answer, Settings};
use crate::driver::Event;
use crate::metrics;
use crate::store::{Damage, Stats, TENANTS_MAX};

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Whether the node works.
    Health,
    /// Whether it serves, and how far it has found what earlier runs left.
    Ready,
    /// Figures for Prometheus.
    Metrics,
    /// The same as JSON.
    Stats,
    /// Make the beginning of a prompt ready.
    Stage,
    /// What that would give.
    Lookup,
    /// Keep the beginning of a prompt.
    Pin,
    /// What is kept.
    Pins,
    /// Give a lease or a pin back.
    Release,
    /// What a tenant may hold.
    SetQuota,
    /// What tenants hold.
    Quotas,
    /// Forget everything.
    Clear,
    /// Damage a chunk; only with `debug_faults`.
    Flip,
    /// Exchange two chunks; only with `debug_faults`.
    Swap,
}

/// Every route: what `docs/cache-node-openapi.json` describes.
pub const ROUTES: &[(Method, &str, Route)] = &[
    (Method::GET, "/healthz", Route::Health),
    (Method::GET, "/readyz", Route::Ready),
    (Method::GET, "/metrics", Route::Metrics),
    (Method::GET, "/v1/stats", Route::Stats),
    (Method::POST, "/v1/stage", Route::Stage),
    (Method::POST, "/v1/lookup", Route::Lookup),
    (Method::POST, "/v1/pins", Route::Pin),
    (Method::GET, "/v1/pins", Route::Pins),
    (Method::POST, "/v1/release", Route::Release),
    (Method::POST, "/v1/quotas", Route::SetQuota),
    (Method::GET, "/v1/quotas", Route::Quotas),
    (Method::POST, "/v1/clear", Route::Clear),
    (Method::POST, "/debug/flip", Route::Flip),
    (Method::POST, "/debug/swap", Route::Swap),
];

/// The control API's routes.
#[derive(Debug)]
pub struct Routes {
    settings: Settings,
    events: mpsc::Sender<Event>,
}

/// `POST /debug/flip`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flip {
    /// The chunk's key in hex; any chunk if left out.
    key: Option<String>,
    /// Which of these, in the order of slots.
    #[serde(default)]
    nth: usize,
    /// Which byte of the chunk. The fourth of a little-endian float32 has its sign and exponent.
    #[serde(default = "Flip::default_byte")]
    byte: u64,
    /// Which bit of it. The seventh of that byte is the exponent's highest: the value changes beyond all measure.
    #[serde(default = "Flip::default_bit")]
    bit: u8,
}

impl Flip {
    fn default_byte() -> u64 {
        3
    }

    fn default_bit() -> u8 {
        6
    }
}

/// `POST /debug/swap`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Swap {
    first: usize,
    second: usize,
}

impl Routes {
    /// Routes that ask the driver through `events`.
    pub fn new(settings: Settings, events: mpsc::Sender<Event>) -> Self {
        Self { settings, events }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let found = ROUTES.iter().find(|(method, at, _)| method == request.method() && *at == path);
        let route = found.map(|(.., route)| *route);
        let open = matches!(route, Some(Route::Health | Route::Ready));
        if !open && self.settings.token.as_ref().is_some_and(|token| !token.allows(request.headers())) {
            return error(StatusCode::UNAUTHORIZED, "authorization: Bearer TOKEN is required (token_file)");
        }
        let debug = self.settings.debug_faults;
        let answer = match route {
            Some(Route::Health) => self.stats().await.map(|_| text("ok")),
            Some(Route::Ready) => self.stats().await.map(|stats| text(&readiness(&stats))),
            Some(Route::Metrics) => self.stats().await.map(|stats| text(&metrics::render(&stats))),
            Some(Route::Stats) => self.stats().await.map(|stats| json(&metrics::json(&stats))),
            Some(Route::Stage) => self.stage(request).await,
            Some(Route::Lookup) => self.lookup(request).await,
            Some(Route::Pin) => self.pin(request).await,
            Some(Route::Pins) => self.ask(Event::Pins).await.map(|pins| json(&pins)),
            Some(Route::Release) => self.release(request).await,
            Some(Route::SetQuota) => self.set_quota(request).await,
            Some(Route::Quotas) => self.ask(Event::Quotas).await.map(|quotas| json(&quotas)),
            Some(Route::Clear) => self.clear().await,
            Some(Route::Flip) if debug => self.flip(request).await,
            Some(Route::Swap) if debug => self.swap(request).await,
            None | Some(Route::Flip | Route::Swap) => {
                Err((StatusCode::NOT_FOUND, format!("no {} {path} here", request.method())))
            }
        };
        answer.unwrap_or_else(|(status, text)| error(status, &text))
    }

    async fn stage(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let request = stage_request(request).await?;
        let asked = request.deadline_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let deadline = asked.unwrap_or(self.settings.stage_deadline).min(self.settings.stage_deadline);
        let late = nothing(&request, StageReason::Deadline);
        // A lease that is granted after this goes unused and expires; the engine may still find it by its tag.
        let answer = timeout(deadline, self.ask(|reply| Event::Stage(request, reply))).await;
        Ok(match answer {
            Err(_) => json(&late),
            Ok(Ok(answer)) => json(&answer),
            // The engine was lost before the grant was written.
            Ok(Err(_)) => json(&StageAnswer { reason: StageReason::NoEngine, ..late }),
        })
    }

    async fn lookup(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let request = stage_request(request).await?;
        let answer: StageAnswer = self.ask(|reply| Event::Probe(request, reply)).await?;
        Ok(json(&answer))
    }

    async fn pin(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let request: PinRequest = body(request).await?;
        check_chain(&request.chain, request.run_bytes)?;
        if request.ttl_ms == 0 {
            return Err((StatusCode::BAD_REQUEST, "ttl_ms must be at least 1".to_owned()));
        }
        let answer = self.ask(|reply| Event::Pin(request, reply)).await?;
        Ok(json(&answer))
    }

    async fn release(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let request: ReleaseRequest = body(request).await?;
        if request.lease.is_some() == request.pin.is_some() {
            return Err((StatusCode::BAD_REQUEST, "name either a lease or a pin".to_owned()));
        }
        let released = self.ask(|reply| Event::GiveBack(request, reply)).await?;
        Ok(json(&ReleaseAnswer { released }))
    }

    async fn set_quota(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let request: QuotaRequest = body(request).await?;
        check_tenant(&request.tenant)?;
        let full = || {
            let text = format!("{TENANTS_MAX} tenants are known, and each holds chunks or has a quota");
            (StatusCode::CONFLICT, text)
        };
        let answer = self.ask(|reply| Event::SetQuota(request, reply)).await?;
        Ok(json(&answer.ok_or_else(full)?))
    }

    async fn stats(&self) -> Result<Box<Stats>, Refusal> {
        self.ask(Event::Stats).await
    }

    async fn clear(&self) -> Result<Answer, Refusal> {
        let (chunks, kept) = self.ask(Event::Clear).await?;
        tracing::info!(chunks, kept, "everything was forgotten, as asked");
        Ok(json(&serde_json::json!({ "cleared_chunks": chunks, "kept_chunks": kept })))
    }

    async fn flip(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let Flip { key, nth, byte, bit } = body(request).await?;
        let key = key.map(|key| key_of(&key)).transpose()?;
        self.damage(Damage::Flip { key, nth, byte, bit }).await
    }

    async fn swap(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let Swap { first, second } = body(request).await?;
        self.damage(Damage::Swap { first, second }).await
    }

    async fn damage(&self, damage: Damage) -> Result<Answer, Refusal> {
        tracing::warn!(?damage, "damaging what is held, as asked (debug_faults)");
        let found = self.ask(|reply| Event::Damage(damage, reply)).await?;
        Ok(json(&serde_json::json!({ "damaged": found })))
    }

    /// Asks the driver.
    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Refusal> {
        let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the node is ending".to_owned());
        let (reply, answer) = oneshot::channel();
        self.events.send(event(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// Why a request is not answered as asked.
type Refusal = (StatusCode, String);

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let collected = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let bytes = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => (StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {BODY_BYTES_MAX} bytes")),
        None => (StatusCode::BAD_REQUEST, format!("the body ended early: {error}")),
    })?;
    let refuse = |error| (StatusCode::BAD_REQUEST, format!("not the JSON expected here: {error}"));
    serde_json::from_slice(&bytes.to_bytes()).map_err(refuse)
}

async fn stage_request(request: Request<Incoming>) -> Result<StageRequest, Refusal> {
    let request: StageRequest = body(request).await?;
    check_chain(&request.chain, request.run_bytes)?;
    request.tenant.as_deref().map_or(Ok(()), check_tenant)?;
    Ok(request)
}

fn check_chain(chain: &[ChainPoint], run_bytes: u32) -> Result<(), Refusal> {
    if chain.len() > CHAIN_LEN_MAX {
        let text = format!("chain of {} points, at most {CHAIN_LEN_MAX} are allowed", chain.len());
        return Err((StatusCode::BAD_REQUEST, text));
    }
    if run_bytes == 0 {
        return Err((StatusCode::BAD_REQUEST, "run_bytes must be at least 1".to_owned()));
    }
    Ok(())
}

fn check_tenant(tenant: &str) -> Result<(), Refusal> {
    if tenant.is_empty() || tenant.len() > TENANT_BYTES_MAX {
        let text = format!("a tenant's name has 1 to {TENANT_BYTES_MAX} bytes, this one {}", tenant.len());
        return Err((StatusCode::BAD_REQUEST, text));
    }
    Ok(())
}

fn key_of(hex: &str) -> Result<BlockKey, Refusal> {
    let byte =
        |index: usize| hex.get(index..index + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let refuse = || (StatusCode::BAD_REQUEST, format!("key {hex:?} is not 1 to 64 bytes in hex"));
    bytes.and_then(|bytes| BlockKey::new(&bytes)).ok_or_else(refuse)
}

/// The node serves from its start; what lies on disk is hit as it is found.
fn readiness(stats: &Stats) -> String {
    match stats.disk.unread_segments {
        0 => "ready".to_owned(),
        left => format!("ready; {left} segments of earlier runs are not read yet"),
    }
}

fn nothing(request: &StageRequest, reason: StageReason) -> StageAnswer {
    StageAnswer { lease: None, tag: request.tag, tokens_ready: 0, chunks: 0, bytes: 0, reason }
}

fn json(value: &impl serde::Serialize) -> Answer {
    let bytes =
        serde_json::to_vec(value).expect("the control types have no maps with other keys than strings");
    respond(StatusCode::OK, "application/json", bytes)
}

fn text(text: &str) -> Answer {
    respond(StatusCode::OK, "text/plain; version=0.0.4", text.as_bytes().to_vec())
}

/// An answer that is not 200, with its reason in JSON.
pub(super) fn error(status: StatusCode, text: &str) -> Answer {
    let body = serde_json::to_vec(&ControlError { error: text.to_owned() });
    respond(status, "application/json", body.unwrap_or_default())
}

fn respond(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
