//! Websockets: an upgrade that a client asks for and an engine grants becomes a tunnel of bytes between them.
//!
//! Only `websocket` is passed on. An upgrade to `h2c` would open a connection to the engine on which no path is
//! looked at any more.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version, request};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::head;
use super::response::GatewayBody;
use crate::drain::Drain;
use crate::pool::InFlight;

const WEBSOCKET: &str = "websocket";

/// Whether a request asks for a websocket (RFC 6455, section 4.1).
pub(super) fn is_asked(head: &request::Parts) -> bool {
    let is = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && head.headers.get(header::UPGRADE).is_some_and(is)
        && head.headers.get_all(header::UPGRADE).iter().count() == 1
        && names_upgrade(&head.headers)
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Puts back what a hop's head must say to upgrade.
pub(super) fn ask(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Takes the client's side of the tunnel out of its request, before the head goes on to an engine.
pub(super) fn client_side<B>(request: &mut Request<B>) -> OnUpgrade {
    hyper::upgrade::on(request)
}

/// The client's answer to an engine's 101; the tunnel runs from then on, counted as load and as a connection.
pub(super) fn join(
    mut response: Response<Incoming>,
    client: OnUpgrade,
    in_flight: InFlight,
    drain: &Arc<Drain>,
) -> Response<GatewayBody> {
    let engine = hyper::upgrade::on(&mut response);
    head::remove_hop_by_hop(response.headers_mut());
    head::remove_own(response.headers_mut());
    ask(response.headers_mut());
    let running = drain.connection();
    tokio::spawn(async move {
        match tunnel(client, engine).await {
            Ok(()) => in_flight.completed(None),
            Err(error) => {
                tracing::debug!(%error, "websocket broke off");
                drop(in_flight);
            }
        }
        drop(running);
    });
    response.map(|_| GatewayBody::from(Full::default()))
}

async fn tunnel(
    client: OnUpgrade,
    engine: OnUpgrade,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (client, engine): (Upgraded, Upgraded) = tokio::try_join!(client, engine)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(engine)).await?;
    Ok(())
}
