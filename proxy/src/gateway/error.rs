//! Every refusal of the gateway, as the OpenAI API words it.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::BodyError;
use crate::keys::NoKey;
use crate::upstream::UpstreamError;

/// What a 401 asks for (RFC 6750, section 3).
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"larder\"");

/// Why the gateway itself answers, instead of an engine.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body was not taken.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The request shows no key that is known.
    #[error(transparent)]
    Key(#[from] NoKey),
    /// No pool serves the model.
    #[error("the model `{model}` is not served here; known models: {known}")]
    UnknownModel {
        /// The model that the request names.
        model: String,
        /// The models that are served, in words.
        known: String,
    },
    /// Several pools exist and nothing says which is meant.
    #[error("the request names no model; name one of: {known} ({why})")]
    NoModel {
        /// The models that are served, in words.
        known: String,
        /// Why none could be read.
        why: String,
    },
    /// A method that the path does not have.
    #[error("{method} is not a method of {path}; use {allowed}")]
    Method {
        /// The request's method.
        method: String,
        /// The request's path.
        path: &'static str,
        /// What the path has.
        allowed: &'static str,
    },
    /// It is not clear which host is meant.
    #[error("the request must have exactly one `host` header")]
    Host,
    /// CONNECT would make the gateway an open proxy.
    #[error("CONNECT is not served")]
    Connect,
    /// As many requests are in the proxy as may be.
    #[error("{limit} requests are in flight, the most there may be (limits.max_in_flight)")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// A path by which engines are administered.
    #[error("`{path}` is not served to clients; an operator can allow it (access.allow)")]
    Denied {
        /// The path.
        path: String,
    },
    /// No endpoint may be chosen.
    #[error("no endpoint of `{model}` can take the request: {why}")]
    NoEndpoint {
        /// The pool's model.
        model: String,
        /// Why each was passed over.
        why: String,
    },
    /// Every engine is busy and too many wait.
    #[error("`{model}`: {full}")]
    QueueFull {
        /// The pool's model.
        model: String,
        /// Seconds until it is worth asking again.
        retry_after_s: u32,
        /// The bound and what it holds.
        full: larder_routing::QueueFull,
    },
    /// The engine failed before its answer began.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

impl GatewayError {
    /// The status, `type` and `code` of the answer.
    fn terms(&self) -> (StatusCode, &'static str, &'static str) {
        const CLIENT: &str = "invalid_request_error";
        match self {
            Self::Body(BodyError::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, CLIENT, "body_too_large")
            }
            Self::Body(BodyError::Budget { .. }) => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "body_budget_exhausted")
            }
            Self::Body(BodyError::Slow { .. }) => (StatusCode::REQUEST_TIMEOUT, CLIENT, "body_timeout"),
            Self::Body(BodyError::Broken(_)) => (StatusCode::BAD_REQUEST, CLIENT, "body_unreadable"),
            Self::Key(_) => (StatusCode::UNAUTHORIZED, CLIENT, "invalid_api_key"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, CLIENT, "model_not_found"),
            Self::NoModel { .. } => (StatusCode::BAD_REQUEST, CLIENT, "model_missing"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, CLIENT, "method_not_allowed"),
            Self::Host => (StatusCode::BAD_REQUEST, CLIENT, "host_unclear"),
            Self::Connect => (StatusCode::METHOD_NOT_ALLOWED, CLIENT, "connect_refused"),
            Self::Denied { .. } => (StatusCode::FORBIDDEN, CLIENT, "path_denied"),
            Self::NoEndpoint { .. } => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "no_endpoint"),
            Self::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "overloaded"),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full"),
            Self::Upstream(UpstreamError::FirstByte { .. }) => {
                (StatusCode::GATEWAY_TIMEOUT, "server_error", "engine_timeout")
            }
            Self::Upstream(_) => (StatusCode::BAD_GATEWAY, "server_error", "engine_unreachable"),
        }
    }

    /// Seconds after which the same request may fare better, where waiting helps.
    fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::QueueFull { retry_after_s, .. } => Some(*retry_after_s),
            Self::NoEndpoint { .. } | Self::Overloaded { .. } | Self::Body(BodyError::Budget { .. }) => {
                Some(1)
            }
            _ => None,
        }
    }

    /// What the path allows instead (RFC 9110, section 15.5.6, wants it said).
    fn allowed(&self) -> Option<&'static str> {
        match self {
            Self::Method { allowed, .. } => Some(allowed),
            // No path allows it, every path something else.
            Self::Connect => Some("GET, POST"),
            _ => None,
        }
    }

    /// The answer to a request for `path`, in the form of its API: Anthropic's below `/v1/messages`, else OpenAI's.
    pub fn response_for(&self, path: &str) -> Response<Full<Bytes>> {
        if !path.starts_with("/v1/messages") {
            return self.response();
        }
        let (status, _, code) = self.terms();
        let error = serde_json::json!({"type": anthropic(status), "message": self.to_string(), "code": code});
        self.with_body(&serde_json::json!({"type": "error", "error": error}))
    }

    /// The answer in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let (_, kind, code) = self.terms();
        let param = matches!(self, Self::UnknownModel { .. } | Self::NoModel { .. }).then_some("model");
        self.with_body(&serde_json::json!({
            "error": {"message": self.to_string(), "type": kind, "param": param, "code": code}
        }))
    }

    fn with_body(&self, body: &serde_json::Value) -> Response<Full<Bytes>> {
        let status = self.terms().0;
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allowed) = self.allowed() {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        if matches!(self, Self::Key(_)) {
            response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    }
}

/// Anthropic's word for a status (<https://docs.anthropic.com/en/api/errors>).
fn anthropic(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
