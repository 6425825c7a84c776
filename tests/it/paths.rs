//! Which paths reach an engine? Administration does not, websockets and everything unknown do.

use http::StatusCode;
use larder_tests::client;
use larder_tests::raw::{End, Raw};
use larder_tests::scripted::{Scripted, Seen, Then, ok};
use larder_tests::world::{Proxy, config};

const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello";

fn websocket(path: &str, upgrade: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: {upgrade}\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
}

/// Grants the upgrade that it is asked for, then answers what comes as if it were HTTP: with the path in capitals.
fn grants(seen: &Seen) -> (Vec<u8>, Then) {
    match seen.values("upgrade").first() {
        Some(_) => (GRANTED.into(), Then::Next),
        None => (ok(&seen.head.split(' ').nth(1).unwrap_or_default().to_uppercase()), Then::Next),
    }
}

#[tokio::test]
async fn administration_is_refused_in_every_spelling_and_never_reaches_an_engine() {
    let engine = Scripted::start(|_| (ok("reached"), Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for target in [
        "/metrics",
        "/metrics/",
        "/reset_prefix_cache",
        "/reset_prefix_cache?device=gpu",
        "/sleep?level=2",
        "/wake_up",
        "/collective_rpc",
        "/update_weights",
        "/start_profile",
        "/flush_cache",
        "/update_weights_from_disk",
        "/slots/0?action=erase",
        "/v1/load_lora_adapter",
        "//sleep",
        "/./sleep",
        "/v1/../sleep",
        "/%73leep",
        "/v1%2F..%2Fsleep",
        "http://x/sleep",
        "http://x//sleep",
    ] {
        for method in ["GET", "POST", "PUT", "OPTIONS"] {
            let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
            let (head, body) = Raw::send(proxy.address, request).await.answer().await.unwrap();
            let body = String::from_utf8(body).unwrap();
            assert_eq!(head.status, 403, "{method} {target}: {body}");
            assert!(body.contains("\"code\":\"path_denied\""), "{body}");
        }
        let answer = Raw::send(proxy.address, websocket(target, "websocket")).await.head().await.unwrap();
        assert_eq!(answer.status, 403, "{target}");
    }
    assert!(engine.seen().is_empty(), "{:?}", engine.seen());
    assert_eq!(client::get(proxy.address, "/sleep").await.status, StatusCode::FORBIDDEN);
    assert!(proxy.metric("larder_requests_total", &["code=\"403\"", "pool=\"\""]).await > 80.0);
}

#[tokio::test]
async fn other_paths_pass_and_the_operator_has_the_last_word() {
    let engine = Scripted::start(|_| (ok("reached"), Then::Next)).await;
    let extra = "[access]\ndeny = [\"/v1/audio\"]\nallow = [\"/metrics\", \"/sleep\"]\n";
    let proxy = Proxy::start_with(&config(&[engine.address], extra)).await;
    for path in ["/tokenize", "/sleep", "/v1/rerank", "/%", "/v1/audio2", "/a/../b"] {
        let answer = client::get(proxy.address, path).await;
        assert_eq!((answer.status, &*answer.text()), (StatusCode::OK, "reached"), "{path}");
    }
    assert_eq!(engine.last().head.split(' ').nth(1), Some("/a/../b"), "a path is passed on as it came");
    assert_eq!(client::get(proxy.address, "/v1/audio/speech").await.status, StatusCode::FORBIDDEN);
    assert_eq!(client::get(proxy.address, "/wake_up").await.status, StatusCode::FORBIDDEN);
    assert_eq!(engine.seen().len(), 6);
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_both_ways_and_counts_as_load() {
    let engine = Scripted::start(grants).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let mut client = Raw::send(proxy.address, websocket("/v1/realtime", "WebSocket")).await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.value("upgrade")), (101, "websocket"), "{}", head.text);
    assert_eq!(head.value("connection").to_ascii_lowercase(), "upgrade");
    assert_eq!(head.value("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let asked = engine.last();
    assert_eq!((asked.values("upgrade"), asked.values("connection")), (vec!["websocket"], vec!["upgrade"]));
    assert_eq!(asked.values("sec-websocket-version"), ["13"]);
    assert_eq!(client.take(5).await.unwrap(), b"hello", "what came with the 101 is the tunnel's");
    // The engine's side of the tunnel speaks lines of text, to be seen.
    client.write("GET /ping HTTP/1.1\r\n\r\n").await.unwrap();
    let (_, body) = client.answer().await.unwrap();
    assert_eq!(body, b"/PING");
    assert!(engine.last().values("via").is_empty(), "bytes of a tunnel are not touched");
    assert_eq!(proxy.metric("larder_in_flight_requests", &[]).await, 1.0);
    assert_eq!(proxy.metric("larder_client_connections", &[]).await, 1.0);
    drop(client);
    proxy.becomes_idle().await;
    proxy.metric_becomes("larder_client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn only_websockets_are_passed_on() {
    let engine = Scripted::start(grants).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    // HTTP/2 in clear text would be a connection on which no path is looked at.
    for upgrade in ["h2c", "websocket, h2c", "TLS/1.3"] {
        let mut client = Raw::send(proxy.address, websocket("/x", upgrade)).await;
        let (head, body) = client.answer().await.unwrap();
        assert_eq!((head.status, &*body), (200, &b"/X"[..]), "{upgrade}");
        assert!(engine.last().values("upgrade").is_empty(), "{upgrade}");
        assert!(engine.last().values("connection").is_empty(), "{upgrade}");
    }
}

#[tokio::test]
async fn an_engine_that_does_not_grant_gives_a_plain_answer() {
    let engine = Scripted::always("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno").await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let mut client = Raw::send(proxy.address, websocket("/x", "websocket")).await;
    let (head, body) = client.answer().await.unwrap();
    assert_eq!((head.status, &*body), (426, &b"no"[..]));
    client.write("GET /y HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.unwrap().0.status, 426);
    assert_eq!(client.to_end().await.1, End::Closed);
    proxy.becomes_idle().await;
}
