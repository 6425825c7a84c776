//! From a request's head to the function that answers it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::{Busy, Control};
use super::format::Rejection;
use super::reply::{Abandoned, Cut, Reply};
use super::{BODY_BYTES_MAX, Server, debug, exposition, format, inference, raise};
use crate::fault::{Fault, Kind};

/// A request body, whole, and its name.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    pub(super) xxh3: u64,
    pub(super) trailers: Option<HeaderMap>,
}

/// A claimed length reserves at most this much memory before bytes arrive.
const RESERVE_MAX: usize = 4 << 20;

const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </mock>; rel=preload\r\n\r\n";

/// Answers one request.
///
/// # Errors
/// [`Abandoned`] closes the connection without an answer.
pub(super) async fn handle(
    server: Arc<Server>,
    busy: Busy,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Abandoned> {
    let (parts, body) = request.into_parts();
    let control = Arc::clone(&busy.0);
    let received = match receive(&parts, body).await? {
        Ok(received) => received,
        Err(too_large) => return Ok(too_large),
    };
    if parts.uri.path().starts_with("/debug/") {
        return Ok(debug::handle(&server, &parts, &received));
    }
    server.requests.fetch_add(1, Ordering::Relaxed);
    raise(&server.max_body_bytes, received.bytes.len());
    if !matches!(parts.uri.path(), "/health" | "/metrics") {
        server.log.lock().push(&parts, &received);
    }
    let fault = server.faults.lock().strike(parts.method == Method::POST);
    if let Some(fault) = &fault {
        match suffer(&server, &control, fault).await? {
            Some(response) => return Ok(finish(response, &parts, &received, busy)),
            None => tracing::debug!(?fault.kind, "request goes on under a fault"),
        }
    }
    let answer = answer(&server, &parts, &received, fault.as_ref());
    let mut response = finish(answer.await, &parts, &received, busy);
    if let Some(fault) = fault.filter(|fault| fault.chunks_before().is_some()) {
        let chunks = fault.chunks_before().unwrap_or(0);
        let (head, body) = response.into_parts();
        let (length, body) = body.cut(Cut::new(fault.kind, chunks, control, Arc::clone(&server)));
        response = Response::from_parts(head, body);
        if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    } else if parts.headers.contains_key("x-mock-early-hints") {
        control.send_before_response(EARLY_HINTS);
    }
    Ok(response)
}

/// What a fault does before the request is looked at; a response ends it here.
async fn suffer(
    server: &Server,
    control: &Control,
    fault: &Fault,
) -> Result<Option<Response<Reply>>, Abandoned> {
    if fault.chunks_before().is_some() {
        return Ok(None);
    }
    match fault.kind {
        Kind::Die => {
            server.die();
            std::future::pending().await
        }
        Kind::Hang => std::future::pending().await,
        Kind::ResetMidStream => {
            control.reset();
            Err(Abandoned)
        }
        Kind::Refuse => {
            if let Err(error) = server.refuse(fault) {
                tracing::warn!(error, "refuse fault dropped");
            }
            Ok(None)
        }
        Kind::Slow => {
            tokio::time::sleep(std::time::Duration::from_secs_f64(fault.delay_s)).await;
            Ok(None)
        }
        Kind::Status => {
            let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(Some(format::error(status, "InternalServerError", "ordered by a fault", None)))
        }
        Kind::None | Kind::LieCached => Ok(None),
    }
}

async fn answer(
    server: &Arc<Server>,
    parts: &Parts,
    received: &Received,
    fault: Option<&Fault>,
) -> Response<Reply> {
    let path = parts.uri.path();
    if !server.is_ready() {
        return format::error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "starting", None);
    }
    if path.starts_with("/v1/") && !authorized(server, &parts.headers) {
        return format::json(StatusCode::UNAUTHORIZED, &json!({"error": "Unauthorized"}));
    }
    match (&parts.method, path) {
        (&Method::GET, "/health") => Response::new(Reply::whole(Bytes::new())),
        (&Method::GET, "/metrics") => exposition::metrics(server),
        (&Method::GET, "/version") => {
            let version = concat!(env!("CARGO_PKG_VERSION"), "+mock");
            format::json(StatusCode::OK, &json!({"version": version}))
        }
        (&Method::GET, "/v1/models") => format::models(server),
        (&Method::POST, "/v1/chat/completions") => {
            or_rejection(inference::chat(server, parts, received, fault).await)
        }
        (&Method::POST, "/v1/completions") => {
            or_rejection(inference::completion(server, parts, received, fault).await)
        }
        (&Method::POST, "/tokenize") => or_rejection(inference::tokenize(server, received)),
        (&Method::POST, "/reset_prefix_cache") => {
            let reset = server.engine.reset_prefix_cache();
            format::json(StatusCode::OK, &json!({"reset": reset}))
        }
        _ if KNOWN_PATHS.contains(&path) => {
            format::json(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}))
        }
        _ if server.config.echo_unknown => format::json(
            StatusCode::OK,
            &json!({
                "method": parts.method.as_str(),
                "path": parts.uri.path_and_query().map_or("", |path| path.as_str()),
                "body_bytes": received.bytes.len(),
                "body_xxh3": format!("{:016x}", received.xxh3),
            }),
        ),
        _ => format::json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

fn or_rejection(answer: Result<Response<Reply>, Rejection>) -> Response<Reply> {
    answer.unwrap_or_else(|rejection| rejection.response())
}

const KNOWN_PATHS: [&str; 8] = [
    "/health",
    "/metrics",
    "/version",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/reset_prefix_cache",
];

fn authorized(server: &Server, headers: &HeaderMap) -> bool {
    let Some(key) = &server.config.api_key else { return true };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|given| given == key)
}

/// Names the body that was received, and arms what the request asked for by header.
fn finish(mut response: Response<Reply>, parts: &Parts, received: &Received, busy: Busy) -> Response<Reply> {
    let headers = response.headers_mut();
    let hash = HeaderValue::try_from(format!("{:016x}", received.xxh3));
    headers.insert("x-mock-body-xxh3", hash.expect("hexadecimal digits are a header value"));
    headers.insert("x-mock-body-bytes", HeaderValue::from(received.bytes.len()));
    if parts.headers.contains_key("x-mock-trailers") {
        const CHECKSUM: HeaderName = HeaderName::from_static("x-mock-trailer");
        headers.insert(http::header::TRAILER, HeaderValue::from_static("x-mock-trailer"));
        let mut trailers = HeaderMap::new();
        trailers.insert(CHECKSUM, HeaderValue::from_static("sent"));
        response.body_mut().set_trailers(trailers);
    }
    response.body_mut().set_busy(busy);
    response
}

/// Reads the body; a too large one is answered at once.
async fn receive(parts: &Parts, mut body: Incoming) -> Result<Result<Received, Response<Reply>>, Abandoned> {
    let claimed =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut trailers = None;
    let mut total = claimed.unwrap_or(0);
    let mut length = 0;
    while total <= BODY_BYTES_MAX && !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        match frame.map_err(|_| Abandoned)?.into_data() {
            Ok(data) => {
                length += data.len();
                total = total.max(length);
                if length == data.len() {
                    first = data;
                    continue;
                }
                if joined.is_empty() {
                    joined.reserve(claimed.unwrap_or(length).min(RESERVE_MAX).max(length));
                    joined.extend_from_slice(&first);
                }
                joined.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if total > BODY_BYTES_MAX {
        let message = format!("the body has {total} bytes or more, the limit is {BODY_BYTES_MAX}");
        return Ok(Err(format::error(StatusCode::PAYLOAD_TOO_LARGE, "BadRequestError", &message, None)));
    }
    let bytes = if joined.is_empty() { first } else { joined.freeze() };
    Ok(Ok(Received { xxh3: xxh3_64(&bytes), bytes, trailers }))
}
