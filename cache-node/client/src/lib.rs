//! Asks a cache node over its control API. Every call has a deadline, and losing the node costs at most a few of them:
//! after some failures in a row calls fail at once, until one try in a while is answered again.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! let node = larder_client::Client::new(larder_client::Settings::new("http://127.0.0.1:7700".parse()?));
//! # let request = serde_json::from_str("")?;
//! match node.stage(&request, Duration::from_millis(50)).await {
//!     Ok(answer) => println!("{} tokens are ready: {}", answer.tokens_ready, answer.reason),
//!     Err(error) => println!("forward without: {error}"),
//! }
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod address;
mod breaker;
mod connect;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use larder_protocol::control::{
    ControlError, PinAnswer, PinRequest, PinsAnswer, QuotaAnswer, QuotaRequest, QuotasAnswer, ReleaseAnswer,
    ReleaseRequest, StageAnswer, StageRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

pub use address::{Address, BadAddress};
pub use breaker::BreakerSettings;

use breaker::Breaker;
use connect::Connector;

/// The most bytes of an answer that are read. A stage answer takes about 200; stats of many engines a few thousand.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a connection may idle before it is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the node listens.
    pub address: Address,
    /// The bearer token, if the node wants one.
    pub token: Option<HeaderValue>,
    /// Connections kept for the next call.
    pub idle_connections_max: usize,
    /// When calls fail at once.
    pub breaker: BreakerSettings,
}

impl Settings {
    /// The defaults for a node at this address.
    pub fn new(address: Address) -> Self {
        Self { address, token: None, idle_connections_max: 32, breaker: BreakerSettings::default() }
    }

    /// With a bearer token; `None` if it has bytes that no header may have.
    #[must_use]
    pub fn with_token(self, token: &str) -> Option<Self> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Self { token: Some(value), ..self })
    }
}

/// Why a call gave no answer. Whichever it is, the request goes on without the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not tried: the last calls failed, and the next try is not due yet.
    #[error("cache node {address} failed {failures} times in a row; next try in {retry_in_ms} ms")]
    Failfast {
        /// The node.
        address: Address,
        /// Failures in a row.
        failures: u32,
        /// Milliseconds until the next try.
        retry_in_ms: u64,
    },
    /// No answer in time.
    #[error("cache node {address} did not answer within {deadline_ms} ms")]
    Deadline {
        /// The node.
        address: Address,
        /// The deadline.
        deadline_ms: u64,
    },
    /// The connection could not be made, or broke.
    #[error("cache node {address} cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        address: Address,
        /// What went wrong.
        reason: String,
    },
    /// It answered with an error. Not counted as a failure below 500: the node lives.
    #[error("cache node {address} answered {status}: {reason}")]
    Refused {
        /// The node.
        address: Address,
        /// The status.
        status: StatusCode,
        /// What it said.
        reason: String,
    },
    /// Its answer could not be read.
    #[error("cache node {address} gave an answer that cannot be read: {reason}")]
    BadAnswer {
        /// The node.
        address: Address,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// Whether it says that the node is ill, rather than that the question was wrong.
    fn is_failure(&self) -> bool {
        match self {
            Self::Failfast { .. } => false,
            Self::Deadline { .. } | Self::Unreachable { .. } | Self::BadAnswer { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
        }
    }
}

/// A client of one node. Shared by reference; calls do not wait for each other.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    pool: legacy::Client<Connector, Full<Bytes>>,
    breaker: Mutex<Breaker>,
}

impl Client {
    /// A client; connects on the first call.
    pub fn new(settings: Settings) -> Self {
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.idle_connections_max)
            .build(Connector::new(settings.address.clone()));
        let breaker = Mutex::new(Breaker::new(settings.breaker.clone()));
        Self { settings, pool, breaker }
    }

    /// Asks the node to stage the beginning of a prompt, and waits for it at most `deadline`, which the request is
    /// told as well unless it names a shorter one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stage(&self, request: &StageRequest, deadline: Duration) -> Result<StageAnswer, Error> {
        self.ask("/v1/stage", &within(request, deadline), deadline).await
    }

    /// Asks what staging would give; nothing is leased or verified.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lookup(&self, request: &StageRequest, deadline: Duration) -> Result<StageAnswer, Error> {
        self.ask("/v1/lookup", &within(request, deadline), deadline).await
    }

    /// Asks the node to keep the beginning of a prompt for a while.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pin(&self, request: &PinRequest, deadline: Duration) -> Result<PinAnswer, Error> {
        self.ask("/v1/pins", request, deadline).await
    }

    /// Every pin of the node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pins(&self, deadline: Duration) -> Result<PinsAnswer, Error> {
        self.see("/v1/pins", deadline).await
    }

    /// Gives a lease or a pin back before its time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release(
        &self,
        request: &ReleaseRequest,
        deadline: Duration,
    ) -> Result<ReleaseAnswer, Error> {
        self.ask("/v1/release", request, deadline).await
    }

    /// Sets what a tenant may hold.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_quota(&self, request: &QuotaRequest, deadline: Duration) -> Result<QuotaAnswer, Error> {
        self.ask("/v1/quotas", request, deadline).await
    }

    /// What tenants hold and may hold.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn quotas(&self, deadline: Duration) -> Result<QuotasAnswer, Error> {
        self.see("/v1/quotas", deadline).await
    }

    /// Whether the node answers. Goes through failfast like every call, and so is its try when one is due.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn health(&self, deadline: Duration) -> Result<(), Error> {
        self.call(Method::GET, "/healthz", Bytes::new(), deadline).await.map(drop)
    }

    /// Whether the next call would be tried.
    pub fn is_open(&self) -> bool {
        self.breaker().would_try(Instant::now())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, Error> {
        let body =
            serde_json::to_vec(request).expect("the requests have no maps with other keys than strings");
        let answer = self.call(Method::POST, path, body.into(), deadline).await?;
        serde_json::from_slice(&answer).map_err(|error| self.bad_answer(&error))
    }

    async fn see<T: DeserializeOwned>(&self, path: &str, deadline: Duration) -> Result<T, Error> {
        let answer = self.call(Method::GET, path, Bytes::new(), deadline).await?;
        serde_json::from_slice(&answer).map_err(|error| self.bad_answer(&error))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Error> {
        let address = || self.settings.address.clone();
        let attempt = self.breaker().begin(Instant::now()).map_err(|closed| Error::Failfast {
            address: address(),
            failures: closed.failures,
            retry_in_ms: millis(closed.retry_in),
        })?;
        // If this future is dropped half-way (the client went away), the attempt says nothing about the node.
        let guard = Abandoned { client: self, attempt: Some(attempt) };
        let late = || Error::Deadline { address: address(), deadline_ms: millis(deadline) };
        let answer = match timeout(deadline, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(late()),
        };
        let failed = answer.as_ref().is_err_and(Error::is_failure);
        guard.end(failed);
        answer
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Error> {
        let mut request = Request::builder().method(method).uri(self.settings.address.uri(path));
        if let Some(token) = &self.settings.token {
            request = request.header(AUTHORIZATION, token);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(&error))?;
        let response = self.pool.request(request).await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = collected.map_err(|error| self.bad_answer(&*error))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(bytes);
        }
        let reason =
            serde_json::from_slice::<ControlError>(&bytes).map_or_else(|_| String::new(), |body| body.error);
        Err(Error::Refused { address: self.settings.address.clone(), status, reason })
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Error {
        // The outer error says only "client error"; the reason is at the end of the chain.
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        Error::Unreachable { address: self.settings.address.clone(), reason }
    }

    fn bad_answer(&self, error: &dyn std::error::Error) -> Error {
        Error::BadAnswer { address: self.settings.address.clone(), reason: error.to_string() }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that has not ended yet.
struct Abandoned<'a> {
    client: &'a Client,
    attempt: Option<breaker::Attempt>,
}

impl Abandoned<'_> {
    fn end(mut self, failed: bool) {
        if let Some(attempt) = self.attempt.take() {
            self.client.breaker().end(attempt, failed, Instant::now());
        }
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.client.breaker().abandon(&attempt, Instant::now());
        }
    }
}

/// The request with a deadline the node can keep.
fn within(request: &StageRequest, deadline: Duration) -> StageRequest {
    let ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    StageRequest {
        deadline_ms: Some(request.deadline_ms.map_or(ms, |asked| asked.min(ms))),
        ..request.clone()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
