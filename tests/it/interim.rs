//! Do hints that come before an answer reach the clients that can read them, and no others?

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Framing};
use larder_tests::raw::{self, Raw};
use larder_tests::scripted::{Scripted, Then};
use larder_tests::world::{Engine, Proxy, chat, config};

fn post(version: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\ncontent-length: {}\r\nx-mock-early-hints: 1\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn early_hints_reach_http_1_1_before_the_answer() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for stream in [false, true] {
        let mut client = Raw::open(proxy.address).await;
        // Twice on one connection: the hint of one answer is not lost in the other.
        for _ in 0..2 {
            client.write(post("1.1", &chat("hello", 3, stream))).await.unwrap();
            let hint = client.head().await.unwrap();
            assert_eq!((hint.status, hint.value("link")), (103, "</mock>; rel=preload"), "{}", hint.text);
            let (head, body) = client.answer().await.unwrap();
            assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&body));
        }
    }
}

#[tokio::test]
async fn http_1_0_and_http_2_get_the_answer_alone() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut client = Raw::send(proxy.address, post("1.0", &chat("hello", 3, false))).await;
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 200, "{}", head.text);
    for framing in [Framing::H2, Framing::H2Length] {
        let mut request = client::json_request("/v1/chat/completions", &chat("hello", 3, false));
        request.headers_mut().insert("x-mock-early-hints", "1".parse().unwrap());
        assert_eq!(client::send(proxy.address, request, framing).await.status, 200);
    }
}

#[tokio::test]
async fn hints_are_cleaned_like_answers_and_continue_is_not_passed_on() {
    let script = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                  HTTP/1.1 103 Early Hints\r\nconnection: x-hop\r\nx-hop: 1\r\nx-larder-endpoint: forged\r\nlink: <a>\r\n\r\n\
                  HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let engine = Scripted::start(move |_| (script.as_bytes().to_vec(), Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let mut client = Raw::send(proxy.address, "GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut heads = Vec::new();
    let last = loop {
        let head = client.head().await.unwrap();
        if head.status >= 200 {
            break head;
        }
        heads.push(head);
    };
    assert_eq!(heads.iter().map(|head| head.status).collect::<Vec<_>>(), [102, 103]);
    assert_eq!(heads[1].values("link"), ["<a>"]);
    assert!(!heads[1].text.contains("x-hop") && !heads[1].text.contains("forged"), "{}", heads[1].text);
    assert_eq!(last.status, 200);
}

#[tokio::test]
async fn an_engine_cannot_switch_protocols_unasked() {
    let script =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw bytes";
    let engine = Scripted::start(move |_| (script.as_bytes().to_vec(), Then::Hang)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    // Only an upgrade to a websocket is passed on (see `paths`), and only in a GET.
    for asked in [
        "GET /x HTTP/1.1\r\n",
        "GET /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n",
        "POST /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
    ] {
        let (head, _) = raw::ask(proxy.address, format!("{asked}host: x\r\n\r\n")).await;
        assert!(head.status >= 500, "{asked}: {}", head.text);
    }
    proxy.becomes_idle().await;
    // HTTP/2 neither.
    let request = Request::get("/x").body(Bytes::new()).unwrap();
    let answer = client::send(proxy.address, request, Framing::H2).await;
    assert!(answer.status.is_server_error(), "{}", answer.status);
}
