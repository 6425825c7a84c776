//! Which headers of a request reach the engine, and which end at the proxy?

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Framing};
use larder_tests::raw::{self, Raw};
use larder_tests::scripted::{Scripted, ok};
use larder_tests::world::{Proxy, config};

async fn world() -> (Scripted, Proxy) {
    let engine = Scripted::start(|_| (ok("fine"), larder_tests::scripted::Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    (engine, proxy)
}

#[tokio::test]
async fn fields_of_one_hop_end_here_and_all_others_pass() {
    let (engine, proxy) = world().await;
    let request = "POST /x?y=%2F HTTP/1.1\r\nHost: api.example:99\r\n\
        Connection: keep-alive, X-Named, close\r\nconnection: x-too\r\nX-Named: 1\r\nx-too: 1\r\n\
        Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n\
        TE: deflate\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\
        Authorization: Bearer secret\r\nX-Twice: a\r\nX-Twice: b\r\nAccept: */*\r\nX-Empty:\r\n\
        Proxy-Authenticate-Not: 1\r\nx-larder-endpoint: mine\r\nX-Larder-Anything: 1\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let (head, _) = raw::ask(proxy.address, request).await;
    assert_eq!(head.status, 200, "{}", head.text);
    let seen = engine.last();
    assert!(seen.head.starts_with("POST /x?y=%2F HTTP/1.1\r\n"), "{}", seen.head);
    for gone in [
        "connection",
        "x-named",
        "x-too",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
        "transfer-encoding",
        "x-larder-endpoint",
        "x-larder-anything",
    ] {
        assert!(seen.values(gone).is_empty(), "{gone} in {}", seen.head);
    }
    for (kept, values) in [
        ("host", &["api.example:99"][..]),
        ("authorization", &["Bearer secret"]),
        ("x-twice", &["a", "b"]),
        ("accept", &["*/*"]),
        ("x-empty", &[""]),
        ("proxy-authenticate-not", &["1"]),
        ("content-length", &["3"]),
        ("via", &["1.1 larder"]),
    ] {
        assert_eq!(seen.values(kept), values, "{kept} in {}", seen.head);
    }
    assert_eq!(seen.body, b"abc");
}

#[tokio::test]
async fn connection_cannot_name_away_what_says_where_and_how_long() {
    let (engine, proxy) = world().await;
    let request = "POST /x HTTP/1.1\r\nhost: here\r\nconnection: host, content-length, x-gone\r\nx-gone: 1\r\n\
                   content-length: 3\r\n\r\nabc";
    assert_eq!(raw::ask(proxy.address, request).await.0.status, 200);
    let seen = engine.last();
    assert_eq!(seen.values("host"), ["here"]);
    assert_eq!((seen.values("content-length"), &seen.body[..]), (vec!["3"], &b"abc"[..]));
    assert!(seen.values("x-gone").is_empty());
}

#[tokio::test]
async fn proxies_before_are_named_before() {
    let (engine, proxy) = world().await;
    let request = "GET /x HTTP/1.1\r\nhost: x\r\nvia: 2 first\r\nvia: 1.1 second\r\n\r\n";
    raw::ask(proxy.address, request).await;
    assert_eq!(engine.last().values("via"), ["2 first", "1.1 second", "1.1 larder"]);
}

#[tokio::test]
async fn request_ids_are_kept_or_made_and_told_to_both_sides() {
    let (engine, proxy) = world().await;
    let with = |id: &str| format!("GET /x HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
    let (head, _) = raw::ask(proxy.address, with("mine-1")).await;
    assert_eq!(
        (head.values("x-request-id"), engine.last().values("x-request-id")),
        (vec!["mine-1"], vec!["mine-1"])
    );
    let mut made = Vec::new();
    for request in
        ["GET /x HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), with(""), with(&"a".repeat(129)), with("\u{e9}")]
    {
        let (head, _) = raw::ask(proxy.address, &request).await;
        let id = head.value("x-request-id").to_owned();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id} for {request}");
        assert_eq!(engine.last().values("x-request-id"), [&id]);
        made.push(id);
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 4, "no id repeats");
    // Refusals carry it too.
    let (head, _) =
        raw::ask(proxy.address, "GET /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\n\r\n").await;
    assert_eq!((head.status, head.value("x-request-id")), (405, "r"));
}

#[tokio::test]
async fn absolute_targets_say_where_whatever_host_says() {
    let (engine, proxy) = world().await;
    let request = "GET http://real.example:81/a/b?c=d HTTP/1.1\r\nhost: other.example\r\n\r\n";
    assert_eq!(raw::ask(proxy.address, request).await.0.status, 200);
    let seen = engine.last();
    assert!(seen.head.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{}", seen.head);
    // RFC 9112, section 3.2.2.
    assert_eq!(seen.values("host"), ["real.example:81"]);
    // The gateway's own paths are known in this form too.
    let (head, body) = raw::ask(proxy.address, "GET http://x/v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(head.status, 200);
    assert!(String::from_utf8_lossy(&body).contains("\"list\""));
}

#[tokio::test]
async fn http_2_authorities_become_hosts() {
    let (engine, proxy) = world().await;
    for framing in [Framing::H2Length, Framing::H2] {
        let request = Request::get("/x").header("x-a", "1").body(Bytes::new()).unwrap();
        assert_eq!(client::send(proxy.address, request, framing).await.status, 200);
        assert_eq!(engine.last().values("host"), [proxy.address.to_string()]);
        assert_eq!(engine.last().values("x-a"), ["1"]);
    }
}

#[tokio::test]
async fn http_1_0_without_a_host_gets_the_engines() {
    let (engine, proxy) = world().await;
    let (head, body) = raw::ask(proxy.address, "GET /x HTTP/1.0\r\n\r\n").await;
    assert_eq!((head.status, &body[..]), (200, &b"fine"[..]));
    let seen = engine.last();
    assert!(seen.head.starts_with("GET /x HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.values("host"), [engine.address.to_string()]);
}

#[tokio::test]
async fn connect_is_refused_and_options_passes() {
    let (engine, proxy) = world().await;
    let (head, _) =
        raw::ask(proxy.address, "CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n")
            .await;
    assert_eq!(head.status, 405, "{}", head.text);
    assert!(engine.seen().is_empty());
    let (head, _) = raw::ask(proxy.address, "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(head.status, 200, "{}", head.text);
    assert!(engine.last().head.starts_with("OPTIONS * HTTP/1.1\r\n"), "{}", engine.last().head);
}

#[tokio::test]
async fn wrong_methods_of_known_paths_are_told_the_right_one() {
    let (engine, proxy) = world().await;
    for (request, allowed) in
        [("GET /v1/chat/completions", "POST"), ("PUT /v1/completions", "POST"), ("DELETE /v1/models", "GET")]
    {
        let (head, body) = raw::ask(proxy.address, format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        assert_eq!(head.status, 405, "{request}");
        // RFC 9110, section 15.5.6.
        assert!(head.value("allow").contains(allowed), "{request}: {}", head.text);
        assert!(String::from_utf8_lossy(&body).contains("method_not_allowed"));
    }
    assert!(engine.seen().is_empty());
}

#[tokio::test]
async fn many_headers_pass_in_order() {
    let (engine, proxy) = world().await;
    let fields: String = (0..80).map(|n| format!("x-many: {n}\r\n")).collect();
    let mut client = Raw::send(proxy.address, format!("GET /x HTTP/1.1\r\nhost: x\r\n{fields}\r\n")).await;
    assert_eq!(client.answer().await.unwrap().0.status, 200);
    let expected: Vec<String> = (0..80).map(|n| n.to_string()).collect();
    assert_eq!(engine.last().values("x-many"), expected);
}
