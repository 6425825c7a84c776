//! The request's way to an engine: choose, stage, send; and again elsewhere while no engine has seen it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use larder_identity::NoChain;

use super::error::GatewayError;
use super::interim::Interim;
use super::response::{EngineBody, Form, GatewayBody};
use super::splice::{RequestBody, splice};
use super::{Gateway, Prompt, Settings, Whole, head, last_event, upgrade};
use crate::pool::{AdmitError, InFlight, Pool, Wanted};
use crate::upstream::{Connection, SendFailed, UpstreamError};
use crate::warehouse::Staged;

const ENDPOINT: HeaderName = HeaderName::from_static("x-larder-endpoint");
const MATCHED_TOKENS: HeaderName = HeaderName::from_static("x-larder-matched-tokens");
const STAGED_TOKENS: HeaderName = HeaderName::from_static("x-larder-staged-tokens");

impl Gateway {
    pub(super) async fn forward(
        &self,
        whole: Whole,
        prompt: Prompt,
        pool: &Arc<Pool>,
        read_at: Instant,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        let Whole { head, body, permit, place, arrived, key, settings } = whole;
        let mut place = Some(place);
        if let Some(why) = &prompt.why {
            self.metrics.without_chain(&pool.model, why_label(why));
        }
        let session = prompt.session(&head.headers, &settings.session_header);
        let id = head.headers.get(&head::REQUEST_ID).cloned();
        let upgrading = upgrade::is_asked(&head);
        let mut exclude = prompt.model.as_deref().map(|m| pool.not_serving(m)).unwrap_or_default();
        let mut request = Request::from_parts(head, RequestBody::default());
        head::remove_own(request.headers_mut());
        let mut client_side = upgrading.then(|| upgrade::client_side(&mut request));
        if let Some(interim) = request.extensions_mut().remove::<Interim>() {
            hyper::ext::on_informational(&mut request, move |r| interim.push(r.status(), r.headers()));
        }
        pool.earn_retry();
        for attempt in 0..settings.max_attempts {
            let wanted = Wanted {
                prompt: prompt.chain.as_ref(),
                session,
                streamed: prompt.streamed,
                exclude: &exclude,
                id: id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            };
            let mut in_flight = self.choose(pool, &wanted, (attempt, arrived)).await?;
            let endpoint = Arc::clone(in_flight.endpoint());
            self.decisions.push(Arc::clone(in_flight.record()));
            if attempt == 0 {
                head::to_engine(&mut request, endpoint.upstream.authority());
                if upgrading {
                    upgrade::ask(request.headers_mut());
                }
                let overhead = read_at.elapsed().saturating_sub(in_flight.held());
                self.metrics.overhead.observe(overhead.as_secs_f64());
            }
            let staged = stage(&in_flight, &prompt, key.as_deref()).await;
            *request.body_mut() = with_lease(&body, &prompt, staged.as_ref());
            let again = settings.retry_started.then(|| copy_of(&request));
            match endpoint.upstream.send(&self.transport, request).await {
                Ok((response, connection)) => {
                    drop(permit);
                    in_flight.keep(place.take());
                    in_flight.answered(response.status());
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS
                        && let Some(client) = client_side.take()
                    {
                        return Ok(upgrade::join(response, client, in_flight, &self.drain));
                    }
                    let form = last_event::Form::of(prompt.api);
                    return Ok(to_client(response, (in_flight, connection), (&settings, form), staged));
                }
                Err(SendFailed { error, unsent }) => {
                    exclude.push(endpoint.id);
                    fail(in_flight, &error);
                    match unsent.map(|back| *back).or(again) {
                        Some(_) if attempt + 1 == settings.max_attempts => break,
                        Some(back) if pool.has_another(&exclude) && pool.may_retry() => request = back,
                        _ => return Err(error.into()),
                    }
                }
            }
        }
        Err(none_reached(pool, settings.max_attempts))
    }

    /// Chooses an endpoint that no breaker leaves alone; or one of those, since a breaker alone never leaves a pool
    /// empty.
    async fn choose(
        &self,
        pool: &Arc<Pool>,
        wanted: &Wanted<'_>,
        at: (usize, Instant),
    ) -> Result<InFlight, GatewayError> {
        let avoided = pool.with_ejected(wanted.exclude);
        let mut chosen = choose_among(pool, &Wanted { exclude: &avoided, ..*wanted }, at).await;
        if avoided.len() > wanted.exclude.len() && matches!(chosen, Err(AdmitError::NoEndpoint(_))) {
            chosen = Box::pin(choose_among(pool, wanted, at)).await;
            if chosen.is_ok() {
                self.metrics.all_ejected(&pool.model);
            }
        }
        chosen.map_err(|error| refused(&pool.model, error))
    }
}

fn none_reached(pool: &Pool, tried: usize) -> GatewayError {
    GatewayError::NoEndpoint {
        model: pool.model.clone(),
        why: format!("{tried} endpoints were tried and none could be reached"),
    }
}

/// A new request waits its turn. One that failed elsewhere has waited already; it does so again only where all that are
/// left have as many requests as they may have.
async fn choose_among(
    pool: &Arc<Pool>,
    wanted: &Wanted<'_>,
    (attempt, arrived): (usize, Instant),
) -> Result<InFlight, AdmitError> {
    if attempt == 0 {
        return pool.admit(wanted, arrived).await;
    }
    match pool.route(wanted, arrived) {
        Err(why) if why.full > 0 && !pool.passes_through() && !pool.is_shadow() => {
            pool.admit(wanted, arrived).await
        }
        routed => routed.map_err(AdmitError::from),
    }
}

/// The same request without its body.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

fn refused(model: &str, error: AdmitError) -> GatewayError {
    match error {
        AdmitError::NoEndpoint(why) => {
            GatewayError::NoEndpoint { model: model.to_owned(), why: why.to_string() }
        }
        AdmitError::Full(full) => GatewayError::QueueFull {
            model: model.to_owned(),
            retry_after_s: full.retry_after_s.ceil() as u32,
            full,
        },
    }
}

/// The label of a missing chain in metrics: which kind, without the place.
fn why_label(why: &NoChain) -> &'static str {
    match why {
        NoChain::NotJson { .. } => "not_json",
        NoChain::NoPrompt { .. } => "no_prompt",
        NoChain::Unsupported { .. } => "unsupported",
        NoChain::TooDeep { .. } => "too_deep",
        NoChain::TooLarge { .. } => "too_large",
        _ => "other",
    }
}

/// The endpoint failed the request before its answer began.
fn fail(mut in_flight: InFlight, error: &UpstreamError) {
    let endpoint = in_flight.endpoint();
    tracing::warn!(endpoint = endpoint.name, %error, "request failed");
    let metrics = &endpoint.metrics;
    match error {
        UpstreamError::Connect { .. } => metrics.connect_errors.inc(),
        UpstreamError::Exchange { .. } => metrics.exchange_errors.inc(),
        UpstreamError::FirstByte { .. } => metrics.timeouts.inc(),
    }
    in_flight.doubt();
    in_flight.judge(false);
    in_flight.failed();
}

/// Asks the endpoint's cache node, where it has one, for the prompt's beginning.
async fn stage(in_flight: &InFlight, prompt: &Prompt, tenant: Option<&str>) -> Option<Staged> {
    let node = in_flight.endpoint().cache_node.as_ref()?;
    let chain = prompt.chain.as_ref()?;
    // A body that cannot carry a lease gets none.
    if !(prompt.places.complete && in_flight.may_stage()) {
        in_flight.staged(0, false);
        return None;
    }
    let staged = Box::pin(node.prepare(chain, in_flight.missing_tokens(), tenant)).await;
    in_flight.staged(staged.tokens, staged.all);
    Some(staged)
}

fn with_lease(body: &Bytes, prompt: &Prompt, staged: Option<&Staged>) -> RequestBody {
    splice(body, &prompt.places, staged.map(Staged::params))
}

fn to_client(
    response: Response<Incoming>,
    (in_flight, connection): (InFlight, Connection),
    (settings, errors): (&Settings, last_event::Form),
    staged: Option<Staged>,
) -> Response<GatewayBody> {
    let (mut head, body) = response.into_parts();
    head::remove_hop_by_hop(&mut head.headers);
    head::remove_own(&mut head.headers);
    head.version = http::Version::HTTP_11;
    if settings.response_headers {
        head.headers.insert(ENDPOINT, in_flight.endpoint().header.clone());
        head.headers.insert(MATCHED_TOKENS, HeaderValue::from(in_flight.matched_tokens()));
        if let Some(staged) = staged {
            head.headers.insert(STAGED_TOKENS, HeaderValue::from(staged.tokens));
        }
    }
    if settings.access_log {
        head.extensions.insert(Arc::clone(in_flight.record()));
    }
    let streamed = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let form = Form {
        streamed,
        good: head.status < StatusCode::BAD_REQUEST,
        // Something can be said at the end only of a body that is open-ended and plain.
        events: streamed
            && !head.headers.contains_key(header::CONTENT_LENGTH)
            && !head.headers.contains_key(header::CONTENT_ENCODING),
        errors,
    };
    let body = EngineBody::new(body, in_flight, connection, (form, settings.answer));
    Response::from_parts(head, GatewayBody::Engine(body))
}
