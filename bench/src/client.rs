//! The load generator's HTTP side: one connection pool, streamed answers scanned without parsing every chunk.

pub(crate) mod stream;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::{Client as Pooled, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use std::time::{Duration, Instant};
use stream::Scanner;

/// Longest small answer (statistics, metrics, error bodies) read, in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Bytes of an error body that are shown.
const ERROR_SHOWN_BYTES: usize = 300;
/// Wall time for one request. Under overload an answer may take minutes of trace time, which is seconds of wall time;
/// beyond this something hangs.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);
/// Wall time for a small answer.
const GET_LIMIT: Duration = Duration::from_secs(10);

/// A pool of HTTP/1.1 connections.
#[derive(Clone)]
pub(crate) struct Client {
    pooled: Pooled<HttpConnector, Full<Bytes>>,
}

/// What one answered request showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Wall time from sending until the first content arrived.
    pub(crate) ttft: Duration,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
}

impl Client {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { pooled: Pooled::builder(TokioExecutor::new()).build(connector) }
    }

    /// The body of a GET that was answered with 2xx.
    pub(crate) async fn get(&self, url: &str) -> Result<Bytes, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| format!("{url}: {error}"))?;
        let answer = async {
            let response = self.pooled.request(request).await.map_err(|error| format!("{url}: {error}"))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| format!("{url}: {error}"))?.to_bytes();
            if status.is_success() { Ok(body) } else { Err(format!("{url}: status {status}")) }
        };
        tokio::time::timeout(GET_LIMIT, answer).await.unwrap_or_else(|_| Err(format!("{url}: no answer")))
    }

    /// Sends a streamed chat request and reads its answer to the end.
    ///
    /// An answer counts only if it has status 200, content, a usage record and the closing `[DONE]`.
    pub(crate) async fn chat(
        &self,
        url: &str,
        session: &str,
        body: Vec<u8>,
        sent: Instant,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{url}/v1/chat/completions"))
            .header(header::CONTENT_TYPE, "application/json");
        if !session.is_empty() {
            request = request.header("x-session-id", session);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        let answer = async {
            let response = self.pooled.request(request).await.map_err(|error| with_causes(&error))?;
            let status = response.status();
            if status != http::StatusCode::OK {
                let text = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
                let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let shown = String::from_utf8_lossy(&text[..text.len().min(ERROR_SHOWN_BYTES)]).into_owned();
                return Err(format!("status {status}: {shown}"));
            }
            read_stream(response.into_body(), sent).await
        };
        tokio::time::timeout(REQUEST_LIMIT, answer)
            .await
            .unwrap_or_else(|_| Err(format!("no complete answer within {} s", REQUEST_LIMIT.as_secs())))
    }
}

async fn read_stream(mut body: hyper::body::Incoming, sent: Instant) -> Result<Answer, String> {
    let mut scanner = Scanner::default();
    let mut ttft = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| with_causes(&error))?;
        if let Ok(data) = frame.into_data() {
            scanner.feed(&data)?;
            if ttft.is_none() && scanner.has_content() {
                ttft = Some(sent.elapsed());
            }
        }
    }
    let usage = scanner.finish()?;
    let ttft = ttft.ok_or("the answer has no content")?;
    Ok(Answer { ttft, prompt_tokens: usage.prompt_tokens, cached_tokens: usage.cached_tokens })
}

/// hyper's own message says little ("client error (Connect)"); its causes say the rest.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
