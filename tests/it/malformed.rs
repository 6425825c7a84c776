//! What becomes of bodies that are no good? The gateway is no validator: what an engine has to judge reaches it as it
//! came, byte for byte, only without affinity; nothing of it can hurt the gateway.

use http::{Request, header};
use larder_tests::client::{self, Framing};
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Proxy, config};

const CHAT: &str = "/v1/chat/completions";

fn post(body: Vec<u8>) -> Request<bytes::Bytes> {
    Request::post(CHAT).header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

/// A body, and the reason that the metrics give for its missing chain; `None`: it has one.
fn bodies() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let content = |content: &[u8]| {
        [br#"{"model":"mock","messages":[{"role":"user","content":"#, content, b"}]}"].concat()
    };
    let nested = |open: &str, close: &str| {
        content(format!("{}1{}", open.repeat(10_000), close.repeat(10_000)).as_bytes())
    };
    vec![
        ("no bytes", Vec::new(), Some("not_json")),
        ("one byte", b"{".to_vec(), Some("not_json")),
        ("truncated", content(b"\"abc").split_off(0)[..60].to_vec(), Some("not_json")),
        ("two values", b"{} {}".to_vec(), Some("not_json")),
        ("no object", b"[1]".to_vec(), Some("not_json")),
        ("no prompt", br#"{"model":"mock"}"#.to_vec(), Some("no_prompt")),
        ("messages of another type", br#"{"messages":7}"#.to_vec(), Some("unsupported")),
        ("10,000 open brackets", vec![b'['; 10_000], Some("not_json")),
        ("10,000 levels, never closed", content(&[b'['; 10_000]), Some("not_json")),
        ("UTF-8 that ends early", content(b"\"\xe2\x82\""), None),
        ("bytes that are no UTF-8", content(b"\"\xc3\x28\""), None),
        ("a lone high surrogate", content(br#""\ud800""#), None),
        ("a lone low surrogate", content(br#""\udc00x""#), None),
        ("a null character", content(br#""\u0000""#), None),
        (
            "a key twice",
            br#"{"messages":[],"model":"other","model":"mock","messages":[{"role":"user","content":"x"}]}"#
                .to_vec(),
            None,
        ),
        ("100,000 messages", many(100_000), Some("too_large")),
        ("10,000 levels of lists", nested("[", "]"), Some("too_deep")),
        ("10,000 levels of objects", nested("{\"a\":", "}"), Some("too_deep")),
    ]
}

fn many(messages: usize) -> Vec<u8> {
    let turn = r#"{"role":"user","content":"x"}"#;
    let turns = vec![turn; messages].join(",");
    format!(r#"{{"model":"mock","messages":[{turns}]}}"#).into_bytes()
}

#[tokio::test]
async fn a_bad_body_reaches_the_engine_as_it_came_and_is_counted() {
    let engine = Scripted::start(|_| (ok("{}"), Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for (what, body, reason) in bodies() {
        let before = match reason {
            Some(reason) => proxy.metric("larder_no_chain_total", &[&format!("\"{reason}\"")]).await,
            None => proxy.metric("larder_no_chain_total", &[]).await,
        };
        for framing in [Framing::Length, Framing::Chunked] {
            let answer = client::send(proxy.address, post(body.clone()), framing).await;
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            assert!(engine.last().body == body, "{what}: the body was changed");
        }
        let after = match reason {
            Some(reason) => proxy.metric("larder_no_chain_total", &[&format!("\"{reason}\"")]).await - 2.0,
            None => proxy.metric("larder_no_chain_total", &[]).await,
        };
        assert_eq!(after, before, "{what}: {reason:?}");
    }
    proxy.becomes_idle().await;
}

/// With several pools the model decides, so a body that does not say it is the client's mistake.
#[tokio::test]
async fn where_the_model_decides_a_body_without_one_is_refused() {
    let engine = Scripted::start(|_| (ok("{}"), Then::Next)).await;
    let pools: [(&str, &[_]); 2] =
        [("model = \"mock\"", &[engine.address]), ("model = \"other\"", &[engine.address])];
    let proxy = Proxy::start_with(&larder_tests::world::config_of_pools(&pools, "")).await;
    for (body, status) in [
        (&b""[..], 400),
        (b"{", 400),
        (b"[]", 400),
        (br#"{"model":7}"#, 400),
        (br#"{"model":"nobody"}"#, 404),
        (br#"{"model":"mock"}"#, 200),
        // The last of two counts, as in the engines' own parsers.
        (br#"{"model":"nobody","model":"other"}"#, 200),
        (br#"{"model":"other","model":"nobody"}"#, 404),
    ] {
        let answer = client::send(proxy.address, post(body.to_vec()), Framing::Length).await;
        assert_eq!(answer.status, status, "{}: {}", String::from_utf8_lossy(body), answer.text());
    }
    assert_eq!(engine.seen().len(), 2);
}
