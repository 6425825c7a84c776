//! What bytes from outside must never do. Each function takes any bytes and panics when something is wrong; libFuzzer
//! looks for bytes that make it, and the corpus test replays those that are checked in.

use std::pin::pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body as _;
use larder_identity::{Api, ChainHasher, HasherSettings, Secret, Simd, ToolsOrder};
use larder_proxy::config;
use larder_proxy::gateway::splice::{Places, splice};
use serde_json::{Value, json};

const APIS: [Api; 5] = [Api::Chat, Api::Completions, Api::Embeddings, Api::Messages, Api::Responses];

/// A hasher with the CPU's instructions and one without, for each order of tools.
fn hashers() -> &'static [[ChainHasher; 2]; 2] {
    static HASHERS: OnceLock<[[ChainHasher; 2]; 2]> = OnceLock::new();
    HASHERS.get_or_init(|| {
        [ToolsOrder::BeforeSystem, ToolsOrder::FirstUserTurn].map(|order| {
            [Simd::Detect, Simd::Portable].map(|simd| {
                let mut settings = HasherSettings::new(Secret::derive(b"fuzz"));
                settings.tools_order = order;
                settings.simd = simd;
                ChainHasher::new(settings)
            })
        })
    })
}

/// A request body, behind a byte that says which API and which order of tools.
///
/// # Panics
/// If the walk depends on the CPU; if it reads another `model` or `stream` than a strict parser of JSON; or if what is
/// spliced in changes anything else, or leaves no JSON.
pub fn prompt(input: &[u8]) {
    let Some((choice, body)) = input.split_first() else { return };
    let api = APIS[usize::from(*choice) % APIS.len()];
    let [fast, plain] = &hashers()[usize::from(*choice / 8) % 2];
    let walk = fast.walk(api, b"", body);
    assert_eq!(walk, plain.walk(api, b"", body), "the CPU's instructions change what is read");
    if let Ok(chain) = &walk.prompt {
        assert!(chain.elements().len() as u64 <= chain.bytes() / 64 + 1, "more elements than runs");
    }
    let envelope = walk.envelope;
    let places = Places {
        kv_transfer_params: envelope.kv_transfer_params.clone(),
        object: envelope.body_object,
        has_members: envelope.has_members,
        complete: envelope.complete,
    };
    let own = json!({"lease": "x"});
    let spliced = whole(splice(&Bytes::copy_from_slice(body), &places, Some(own.clone())));
    let Ok(Value::Object(strict)) = serde_json::from_slice(body) else { return };
    assert!(envelope.complete, "not walked to its end");
    assert_eq!(envelope.model.as_deref(), strict.get("model").and_then(Value::as_str));
    assert_eq!(envelope.stream, strict.get("stream") == Some(&Value::Bool(true)));
    only_the_lease_is_new(strict, &spliced, own);
}

/// The spliced body is the old one with `kv_transfer_params.larder`, unless the client's cannot carry it.
fn only_the_lease_is_new(mut strict: serde_json::Map<String, Value>, spliced: &[u8], own: Value) {
    let mut expected = strict.remove("kv_transfer_params").unwrap_or(Value::Null);
    if expected.is_null() {
        expected = json!({});
    }
    if let Some(params) = expected.as_object_mut() {
        params.insert("larder".to_owned(), own);
    }
    strict.insert("kv_transfer_params".to_owned(), expected);
    let spliced: Value = serde_json::from_slice(spliced).expect("a spliced body is still JSON");
    assert_eq!(spliced, Value::Object(strict));
}

fn whole(body: larder_proxy::gateway::splice::RequestBody) -> Vec<u8> {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = Vec::new();
    while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) {
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    bytes
}

/// The text of a config, and its first line as the URL of an endpoint.
///
/// # Panics
/// If a fault is told in no words, or what is accepted cannot be used.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match config::parse(text) {
        Ok(config) => {
            assert!(config.worker_threads() > 0, "no worker");
            assert!(!config.pools.is_empty(), "no pool");
        }
        Err(faults) => assert!(!faults.to_string().trim().is_empty(), "a fault without words"),
    }
    let first = text.lines().next().unwrap_or_default();
    match config::Endpoint::new(first, None, (None, None), None) {
        Ok(endpoint) => assert!(endpoint.authority.contains(':'), "{:?} has no port", endpoint.authority),
        Err(fault) => assert!(!fault.trim().is_empty(), "a fault without words"),
    }
}

/// The negative control: a fault behind a condition that no chance finds and that feedback does, byte by byte.
///
/// # Panics
/// At the one input that it is about.
pub fn planted(input: &[u8]) {
    let mut met = 0;
    for (byte, wanted) in input.iter().zip(b"larder") {
        if byte != wanted {
            return;
        }
        met += 1;
    }
    assert!(met < 6, "found: the fuzzer follows what it covers");
}

#[cfg(test)]
mod tests;
