//! What a test may ask the engine about itself, under /debug.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::reply::Reply;
use super::routes::Received;
use super::{Server, format};
use crate::fault::Fault;

/// Requests remembered; older ones are forgotten.
const LOG_MAX: usize = 64;

/// The last requests outside /debug, /health and /metrics, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    method: Method,
    path: String,
    version: http::Version,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    body_bytes: usize,
    body_xxh3: u64,
}

impl RequestLog {
    pub(super) fn push(&mut self, parts: &Parts, received: &Received) {
        if self.entries.len() == LOG_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            method: parts.method.clone(),
            path: parts.uri.to_string(),
            version: parts.version,
            headers: parts.headers.clone(),
            trailers: received.trailers.clone(),
            body_bytes: received.bytes.len(),
            body_xxh3: received.xxh3,
        });
    }
}

impl Entry {
    fn to_json(&self) -> Value {
        let framing = if self.headers.contains_key(header::TRANSFER_ENCODING) {
            "chunked"
        } else if self.headers.contains_key(header::CONTENT_LENGTH) {
            "content-length"
        } else {
            "none"
        };
        json!({
            "method": self.method.as_str(),
            "path": self.path,
            "version": format!("{:?}", self.version),
            "headers": pairs(&self.headers),
            "trailers": self.trailers.as_ref().map(pairs),
            "framing": framing,
            "body_bytes": self.body_bytes,
            "body_xxh3": format!("{:016x}", self.body_xxh3),
        })
    }
}

/// `[name, value]` in order of first appearance, equal names together; names are lowercase, and bytes that are
/// no UTF-8 are replaced.
fn pairs(headers: &HeaderMap) -> Value {
    let pair = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
    };
    headers.iter().map(pair).collect()
}

/// Answers a request under /debug.
pub(super) fn handle(server: &Server, parts: &Parts, received: &Received) -> Response<Reply> {
    match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/debug/stats") => format::json(StatusCode::OK, &stats(server)),
        (&Method::GET, "/debug/last") => {
            let last = server.log.lock().entries.back().map(Entry::to_json);
            format::json(StatusCode::OK, &last.unwrap_or(Value::Null))
        }
        (&Method::GET, "/debug/requests") => {
            let all: Value = server.log.lock().entries.iter().map(Entry::to_json).collect();
            format::json(StatusCode::OK, &all)
        }
        (&Method::POST, "/debug/fault") => {
            let order = serde_json::from_slice::<Fault>(&received.bytes).map_err(|error| error.to_string());
            match order.and_then(|fault| server.order(fault)) {
                Ok(()) => format::json(StatusCode::OK, &json!({"ok": true})),
                Err(error) => format::error(
                    StatusCode::BAD_REQUEST,
                    "BadRequestError",
                    &format!("fault: {error}"),
                    None,
                ),
            }
        }
        _ => format::json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

fn stats(server: &Server) -> Value {
    let now = server.engine.snapshot();
    json!({
        "requests": server.requests.load(Ordering::Relaxed),
        "running": now.running,
        "waiting": now.waiting,
        "aborted": now.counters.aborted,
        "finished": now.counters.finished,
        "preemptions": now.counters.preemptions,
        "cached_tokens_total": now.counters.prefix_hits,
        "queried_tokens_total": now.counters.prefix_queries,
        "prompt_tokens_total": now.counters.prompt_tokens,
        "generation_tokens_total": now.counters.generation_tokens,
        "kv_blocks_used": now.blocks_used,
        "kv_blocks_total": now.blocks_total,
        "max_body_bytes": server.max_body_bytes.load(Ordering::Relaxed),
        "ready": server.is_ready(),
    })
}
