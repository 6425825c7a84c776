//! How does an engine's answer reach the client: headers, trailers, bodies of every form?

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Framing};
use larder_tests::raw::{self, Raw};
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Engine, Proxy, chat, config, logged_values};

const GET: &str = "GET /x HTTP/1.1\r\nhost: x\r\n\r\n";

async fn world(answer: &str) -> (Scripted, Proxy) {
    let engine = Scripted::always(answer).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    (engine, proxy)
}

#[tokio::test]
async fn fields_of_one_hop_end_here_and_all_others_pass() {
    let (engine, proxy) = world(
        "HTTP/1.1 203 Whatever\r\nConnection: keep-alive, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\nServer: engine/1\r\n\
         Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Type: text/weird\r\nX-Request-Id: engines\r\n\
         X-Larder-Endpoint: forged\r\nX-Larder-Other: forged\r\nRetry-After: 7\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
    )
    .await;
    for framing in [Framing::Length, Framing::H2] {
        let request = Request::get("/x").header("x-request-id", "clients").body(Bytes::new()).unwrap();
        let answer = client::send(proxy.address, request, framing).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (203, &b"fine"[..]));
        for gone in ["connection", "x-named", "keep-alive", "proxy-connection", "upgrade", "x-larder-other"] {
            assert!(!answer.headers.contains_key(gone), "{framing:?}: {gone} in {:?}", answer.headers);
        }
        let all = |name: &str| {
            answer.headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
        assert_eq!(all("server"), ["engine/1"]);
        assert_eq!(all("content-type"), ["text/weird"]);
        assert_eq!(all("retry-after"), ["7"]);
        assert_eq!(all("x-request-id"), ["clients"]);
        assert_eq!(all("x-larder-endpoint"), [engine.address.to_string()]);
        assert_eq!(all("x-larder-matched-tokens"), ["0"]);
    }
}

#[tokio::test]
async fn own_headers_can_be_switched_off() {
    let engine =
        Scripted::always("HTTP/1.1 200 OK\r\nx-larder-endpoint: forged\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = Proxy::start_with(&config(&[engine.address], "[response]\nheaders = false")).await;
    let (head, _) = raw::ask(proxy.address, GET).await;
    assert_eq!(head.status, 200);
    assert!(!head.text.to_lowercase().contains("x-larder"), "{}", head.text);
}

#[tokio::test]
async fn trailers_pass_to_whoever_asked_for_them() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for framing in Framing::ALL {
        for stream in [false, true] {
            for te in [None, Some("trailers"), Some("deflate, trailers")] {
                let mut request = client::json_request("/v1/chat/completions", &chat("hello", 3, stream));
                request.headers_mut().insert("x-mock-trailers", "1".parse().unwrap());
                if let Some(te) = te {
                    // HTTP/2 allows no other value (RFC 9113, section 8.2.2).
                    let te = if matches!(framing, Framing::H2 | Framing::H2Length) { "trailers" } else { te };
                    request.headers_mut().insert("te", te.parse().unwrap());
                }
                let answer = client::send(proxy.address, request, framing).await;
                assert_eq!(answer.status, 200);
                let trailer = answer.trailers.as_ref().and_then(|t| t.get("x-mock-trailer"));
                if te.is_some() {
                    assert_eq!(
                        trailer.map(|v| v.as_bytes()),
                        Some(&b"sent"[..]),
                        "{framing:?} {stream} {te:?}"
                    );
                    assert_eq!(logged_values(&engine.last().await, "te"), ["trailers"]);
                } else if matches!(framing, Framing::Length | Framing::Chunked) {
                    // Whoever did not ask may not be able to read them (RFC 9110, section 6.5.1).
                    assert_eq!(trailer, None, "{framing:?} {stream}");
                }
            }
        }
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn heads_alone_keep_their_length_and_leave_the_connection_usable() {
    let engine = Scripted::start(|seen| {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\nx-a: 1\r\n\r\n".to_vec();
        if seen.head.starts_with("HEAD") { (answer, Then::Next) } else { (ok("body"), Then::Next) }
    })
    .await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let mut client = Raw::send(proxy.address, "HEAD /x HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.value("content-length"), head.value("x-a")), (200, "12345", "1"));
    client.write(GET).await.unwrap();
    assert_eq!(client.answer().await.unwrap().1, b"body");
    client.write("HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert!(head.value("content-length").parse::<usize>().unwrap() > 10);
    client.write(GET).await.unwrap();
    assert_eq!(client.answer().await.unwrap().1, b"body");
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn answers_without_a_body_end_at_once() {
    for status in [204, 304] {
        let (_engine, proxy) = world(&format!("HTTP/1.1 {status} x\r\netag: \"a\"\r\n\r\n")).await;
        let mut client = Raw::open(proxy.address).await;
        for _ in 0..2 {
            client.write(GET).await.unwrap();
            let head = client.head().await.unwrap();
            assert_eq!((head.status, head.value("etag")), (status, "\"a\""));
        }
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole() {
    let engine = Scripted::start(|_| (b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec(), Then::Close)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for framing in [Framing::Length, Framing::H2] {
        let request = Request::get("/x").body(Bytes::new()).unwrap();
        assert_eq!(client::send(proxy.address, request, framing).await.text(), "until the end");
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn http_1_0_gets_no_chunks() {
    let (_engine, proxy) =
        world("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n").await;
    let mut client = Raw::send(proxy.address, "GET /x HTTP/1.0\r\nhost: x\r\n\r\n").await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.value("transfer-encoding")), (200, ""), "{}", head.text);
    assert_eq!(client.to_end().await.0, b"fine");
}

#[tokio::test]
async fn garbage_instead_of_an_answer_is_a_bad_gateway() {
    for garbage in
        ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 banana\r\n\r\n", "HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
    {
        let (_engine, proxy) = world(garbage).await;
        let (head, body) = raw::ask(proxy.address, GET).await;
        assert_eq!(head.status, 502, "{garbage:?}");
        assert!(String::from_utf8_lossy(&body).contains("engine_unreachable"));
        proxy.becomes_idle().await;
    }
}
