//! The admin calls that add, drain and remove endpoints while requests run.
//!
//! `docs/endpoints.md` describes them. What they change is not written to the configuration file: a restart goes by
//! the file.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin;
use crate::config;
use crate::health::HealthChecks;
use crate::plans::Plans;
use crate::pool::{Endpoint, Pool};

/// A call is a few short fields.
const CALL_MAX_BYTES: usize = 64 << 10;

/// Why a call changed nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Bad(String),
    #[error("no pool serves `{0}`; GET /v1/endpoints lists them")]
    NoPool(String),
    #[error("there are several pools: name one as `pool`")]
    WhichPool,
    #[error("the pool `{pool}` has no endpoint `{name}`; GET /v1/endpoints lists them")]
    NoEndpoint { pool: String, name: String },
    #[error("{0}")]
    Conflict(String),
    #[error("{method} is not served at {path}; GET, POST {root}; DELETE {root}/NAME; POST {root}/drain", root = EndpointCalls::PATH)]
    Method { method: Method, path: String },
}

impl CallError {
    fn terms(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Bad(_) => (StatusCode::BAD_REQUEST, "bad_call"),
            Self::WhichPool => (StatusCode::BAD_REQUEST, "pool_missing"),
            Self::NoPool(_) => (StatusCode::NOT_FOUND, "pool_not_found"),
            Self::NoEndpoint { .. } => (StatusCode::NOT_FOUND, "endpoint_not_found"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "endpoint_conflict"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    pool: Option<String>,
    url: String,
    name: Option<String>,
    kv_tokens: Option<u64>,
    max_in_flight: Option<u32>,
    cache_node: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    pool: Option<String>,
    name: String,
    #[serde(default = "yes")]
    drain: bool,
}

fn yes() -> bool {
    true
}

/// What the calls work on.
pub struct EndpointCalls {
    pools: Vec<Arc<Pool>>,
    checks: Arc<HealthChecks>,
    plans: Arc<Plans>,
}

impl EndpointCalls {
    /// Where all of them are.
    pub const PATH: &str = "/v1/endpoints";

    /// Calls that change `pools`; `plans` makes what an endpoint is made from.
    pub fn new(pools: Vec<Arc<Pool>>, checks: Arc<HealthChecks>, plans: Arc<Plans>) -> Self {
        Self { pools, checks, plans }
    }

    /// Whether `path` is one of them.
    pub fn serves(path: &str) -> bool {
        path.strip_prefix(Self::PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Carries out a call.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.call(request).await {
            Ok((status, value)) => {
                let mut response = admin::json(&value);
                *response.status_mut() = status;
                response
            }
            Err(error) => {
                let (status, code) = error.terms();
                let body = json!({"error": {"message": error.to_string(), "code": code}});
                let mut response = admin::json(&body);
                *response.status_mut() = status;
                response
            }
        }
    }

    async fn call(&self, request: Request<Incoming>) -> Result<(StatusCode, Value), CallError> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let below = path.strip_prefix(Self::PATH).unwrap_or_default().trim_start_matches('/');
        match (&head.method, below) {
            (&Method::GET | &Method::HEAD, "") => Ok((StatusCode::OK, self.list())),
            (&Method::POST, "") => self.add(read(body).await?),
            (&Method::POST, "drain") => self.drain(&read(body).await?),
            (&Method::DELETE, name) if !name.is_empty() => {
                let pool = head.uri.query().and_then(|query| query.strip_prefix("pool="));
                let decoded = |text: &str| percent_decoded(text).ok_or_else(|| not_text(text));
                self.remove(pool.map(decoded).transpose()?.as_deref(), &decoded(name)?)
            }
            _ => Err(CallError::Method { method: head.method.clone(), path: path.to_owned() }),
        }
    }

    fn pool(&self, model: Option<&str>) -> Result<&Arc<Pool>, CallError> {
        match (model, self.pools.as_slice()) {
            (Some(model), pools) => {
                let found = pools.iter().find(|p| p.model == model || p.aliases.iter().any(|a| a == model));
                found.ok_or_else(|| CallError::NoPool(model.to_owned()))
            }
            (None, [only]) => Ok(only),
            (None, _) => Err(CallError::WhichPool),
        }
    }

    fn list(&self) -> Value {
        let pool = |pool: &Arc<Pool>| {
            let endpoints: Vec<_> = pool.endpoints().iter().map(|e| show(e)).collect();
            json!({"pool": pool.model, "endpoints": endpoints})
        };
        json!({"pools": self.pools.iter().map(pool).collect::<Vec<_>>()})
    }

    fn add(&self, add: Add) -> Result<(StatusCode, Value), CallError> {
        let pool = self.pool(add.pool.as_deref())?;
        let bounds = (add.kv_tokens, add.max_in_flight);
        let endpoint = config::Endpoint::new(&add.url, add.name, bounds, add.cache_node.as_deref())
            .map_err(CallError::Bad)?;
        let added = pool.add(self.plans.plan(&pool.model, &endpoint));
        let added = added.map_err(|why| CallError::Conflict(why.to_string()))?;
        self.checks.watch(pool, &added);
        Ok((StatusCode::CREATED, show(&added)))
    }

    fn drain(&self, call: &Drain) -> Result<(StatusCode, Value), CallError> {
        let pool = self.pool(call.pool.as_deref())?;
        let Some(endpoint) = pool.endpoint_named(&call.name) else {
            return Err(CallError::NoEndpoint { pool: pool.model.clone(), name: call.name.clone() });
        };
        pool.drain(&endpoint, call.drain);
        Ok((StatusCode::OK, show(&endpoint)))
    }

    fn remove(&self, model: Option<&str>, name: &str) -> Result<(StatusCode, Value), CallError> {
        let pool = self.pool(model)?;
        if !pool.remove(name) {
            return Err(CallError::NoEndpoint { pool: pool.model.clone(), name: name.to_owned() });
        }
        Ok((StatusCode::OK, json!({"removed": name})))
    }
}

fn show(endpoint: &Endpoint) -> Value {
    json!({
        "name": endpoint.name,
        "url": format!("http://{}", endpoint.upstream.authority()),
        "healthy": endpoint.healthy.load(Relaxed),
        "draining": endpoint.draining.load(Relaxed),
        "in_flight": endpoint.in_flight(),
    })
}

async fn read<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T, CallError> {
    let body = Limited::new(body, CALL_MAX_BYTES).collect().await;
    let body = body.map_err(|e| CallError::Bad(format!("the body could not be read: {e}")))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| CallError::Bad(format!("the body is no such call: {e}")))
}

fn not_text(text: &str) -> CallError {
    CallError::Bad(format!("{text:?} is no percent-encoded UTF-8"))
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        // `from_str_radix` would take a sign.
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn percent_decoding() {
        let same = |text: &str, plain: Option<&str>| assert_eq!(percent_decoded(text).as_deref(), plain);
        same("10.0.0.1:80", Some("10.0.0.1:80"));
        same("%5B%3A%3A1%5d:80", Some("[::1]:80"));
        for bad in ["%", "%4", "%zz", "%+1", "%ff"] {
            same(bad, None);
        }
    }
}
