//! Can a client hide a second request in a body, by framing that two parties read differently?

use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy};

/// What must never reach the engine as a request of its own.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n";

fn request(fields: &str, body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n{body}")
}

#[tokio::test]
async fn ambiguous_framing_is_refused_and_not_sent_on() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let bad = [
        request("content-length: 3\r\ncontent-length: 4", "abcd"),
        request("content-length: 3, 4", "abcd"),
        request("content-length: +3", "abc"),
        request("content-length: -3", "abc"),
        request("content-length: 0x3", "abc"),
        request("content-length: 3 3", "abc"),
        request("content-length:", "abc"),
        request("content-length: 99999999999999999999", "abc"),
        request("content-length : 3", "abc"),
        request("transfer-encoding: xchunked", "3\r\nabc\r\n0\r\n\r\n"),
        request("transfer-encoding: identity", "abc"),
        request("transfer-encoding: chunked, identity", "3\r\nabc\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked\r\ntransfer-encoding: gzip", "3\r\nabc\r\n0\r\n\r\n"),
        request("transfer-encoding : chunked", "3\r\nabc\r\n0\r\n\r\n"),
        request("transfer-encoding: \u{b}chunked", "3\r\nabc\r\n0\r\n\r\n"),
        request("x-a: 1\r\n folded: 2", ""),
        request("x a: 1", ""),
        "POST /echo HTTP/1.1 \r\nhost: x\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        "POST  /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        "POST /echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            .to_owned(),
        "POST /ec\u{0}ho HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "POST /echo HTTP/1.1\r\nhost: x\r\nx-a: b\u{0}c\r\n\r\n".to_owned(),
    ];
    for bytes in bad {
        let mut client = Raw::send(proxy.address, format!("{bytes}{HIDDEN}")).await;
        let head = client.head().await.unwrap_or_else(|e| panic!("{e} for {bytes:?}"));
        assert_eq!(head.status, 400, "{bytes:?}: {}", head.text);
        let (rest, _) = client.to_end().await;
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"), "{bytes:?}");
    }
    let requests = engine.requests().await;
    assert!(requests.is_empty(), "{requests:#?}");
}

#[tokio::test]
async fn broken_chunks_are_refused_and_not_sent_on() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let chunked = |body: &str| request("transfer-encoding: chunked", body);
    for bytes in [
        chunked("zz\r\nabc\r\n0\r\n\r\n"),
        chunked("3\r\nabcX0\r\n\r\n"),
        chunked("-3\r\nabc\r\n0\r\n\r\n"),
        chunked("0x3\r\nabc\r\n0\r\n\r\n"),
        chunked("ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        chunked("3\nabc\r\n0\r\n\r\n"),
        chunked("3\r\nabc\r\n0\r\nbad trailer\r\n\r\n"),
        chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(100_000))),
    ] {
        let mut client = Raw::send(proxy.address, format!("{bytes}{HIDDEN}")).await;
        let (answer, _) = client.to_end().await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{bytes:.80?}: {answer}");
    }
    let requests = engine.requests().await;
    assert!(requests.is_empty(), "{requests:#?}");
    proxy.becomes_idle().await;
}

/// RFC 9112, section 6.3: such a request is either refused, or taken by its chunks alone and its connection closed.
/// hyper does the second. Either way the engine sees one framing, and nothing that follows is taken for a request.
#[tokio::test]
async fn two_framings_in_one_request_hide_nothing() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\nconnection: keep-alive",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6",
    ] {
        // By its length the body would end before HIDDEN begins, by its chunks at once.
        let mut client = Raw::send(proxy.address, request(fields, &format!("0\r\n\r\n{HIDDEN}"))).await;
        let (answers, _) = client.to_end().await;
        let answers = String::from_utf8_lossy(&answers);
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{fields}: {answers}");
        if !answers.starts_with("HTTP/1.1 400") {
            assert!(answers.contains("connection: close"), "{fields}: {answers}");
            let seen = engine.last().await;
            assert_eq!((&seen["path"], &seen["body_bytes"]), (&"/echo".into(), &0.into()), "{fields}");
            assert_eq!(seen["framing"], "none", "{fields}: {seen}");
        }
    }
    assert!(engine.requests().await.iter().all(|request| request["path"] != "/hidden"));
}

#[tokio::test]
async fn a_request_says_one_host() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    // RFC 9112, section 3.2.
    for head in ["GET /x HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"] {
        let mut client = Raw::send(proxy.address, head).await;
        assert_eq!(client.head().await.unwrap().status, 400, "{head}");
    }
    assert!(engine.requests().await.is_empty());
}

/// The negative control: requests of this form do pass when nothing is wrong with them.
#[tokio::test]
async fn plain_framing_passes_and_the_next_request_is_seen() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for good in [
        request("content-length: 3", "abc"),
        request("content-length: 3\r\ncontent-length: 3", "abc"),
        request("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
        request("Transfer-Encoding: Chunked", "03\r\nabc\r\n0\r\n\r\n"),
    ] {
        let mut client = Raw::send(proxy.address, format!("{good}{HIDDEN}")).await;
        for path in ["/echo", "/hidden"] {
            let (head, body) = client.answer().await.unwrap();
            assert_eq!(head.status, 200, "{good:?}");
            assert!(String::from_utf8_lossy(&body).contains(path), "{good:?}");
        }
    }
    assert_eq!(engine.requests().await.len(), 8);
}
