//! `GET /v1/models`: what all pools serve, in one list.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use serde_json::{Value, json};

use super::response::GatewayBody;
use crate::pool::Pool;

/// The merged list: the cards that the engines show, and a short card for a configured name that none shows.
pub fn answer(pools: &[Arc<Pool>]) -> Response<GatewayBody> {
    let body = json!({"object": "list", "data": merged(pools).into_values().collect::<Vec<_>>()});
    let mut response = Response::new(GatewayBody::from(Full::new(Bytes::from(body.to_string()))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn merged(pools: &[Arc<Pool>]) -> BTreeMap<String, Value> {
    let mut cards = BTreeMap::new();
    for pool in pools {
        for endpoint in pool.endpoints().iter() {
            for model in endpoint.models.load().iter() {
                cards.entry(model.id.clone()).or_insert_with(|| model.card.clone());
            }
        }
        for name in std::iter::once(&pool.model).chain(&pool.aliases) {
            cards.entry(name.clone()).or_insert_with(
                || json!({"id": name, "object": "model", "created": 0, "owned_by": "larder"}),
            );
        }
    }
    cards
}
