//! Do the gateway and an engine ever read one message differently? Odd but legal spellings, against an engine that
//! keeps the very bytes: each is refused, or goes on in one plain spelling that has one meaning.

use larder_tests::raw::Raw;
use larder_tests::scripted::{Scripted, Seen, Then, ok};
use larder_tests::world::{Proxy, config};

/// What becomes of a request.
enum Outcome {
    /// The client gets this status, the engine nothing.
    Refused(u16),
    /// The engine sees this body, with its length and no other framing.
    Plain(&'static str),
}
use Outcome::{Plain, Refused};

fn post(fields: &str, body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nhost: x\r\n{fields}connection: close\r\n\r\n{body}")
}

fn cases() -> Vec<(&'static str, String, Outcome)> {
    let chunked = |body: &str| post("transfer-encoding: chunked\r\n", body);
    let length = "content-length: 3\r\n";
    vec![
        ("equal lengths twice", post(&length.repeat(2), "abc"), Plain("abc")),
        ("unequal lengths", post(&format!("{length}content-length: 4\r\n"), "abcd"), Refused(400)),
        ("a list of equal lengths", post("content-length: 3, 3\r\n", "abc"), Refused(400)),
        ("a length with zeros in front", post("content-length: 0003\r\n", "abc"), Plain("abc")),
        ("a chunk extension", chunked("3;a=b\r\nabc\r\n0\r\n\r\n"), Plain("abc")),
        ("a quoted chunk extension", chunked("3;a=\"b c\"\r\nabc\r\n0;z\r\n\r\n"), Plain("abc")),
        ("zeros in front of a chunk size", chunked("0003\r\nabc\r\n000\r\n\r\n"), Plain("abc")),
        ("chunk sizes in capitals", chunked("A\r\n0123456789\r\n0\r\n\r\n"), Plain("0123456789")),
        ("a trailer", chunked("3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"), Plain("abc")),
        ("a trailer that is a length", chunked("3\r\nabc\r\n0\r\ncontent-length: 9\r\n\r\n"), Plain("abc")),
        ("bare LF behind a chunk size", chunked("3\nabc\r\n0\r\n\r\n"), Refused(400)),
        ("bare LF behind a chunk", chunked("3\r\nabc\n0\r\n\r\n"), Refused(400)),
        ("bare CR behind a chunk", chunked("3\r\nabc\rX0\r\n\r\n"), Refused(400)),
        ("a chunk that is too long", chunked("2\r\nabc\r\n0\r\n\r\n"), Refused(400)),
        ("a folded field", post("x-a: 1\r\n\tb\r\ncontent-length: 3\r\n", "abc"), Refused(400)),
        ("a folded length", post("content-length:\r\n 3\r\n", "abc"), Refused(400)),
        (
            "a bare CR in a field",
            post("x-a: 1\rcontent-length: 9\r\ncontent-length: 3\r\n", "abc"),
            Refused(400),
        ),
        // Forbidden to senders (RFC 9112, section 6.1); hyper takes off one coding, so what the engine gets is plain.
        (
            "chunked twice",
            post("transfer-encoding: chunked, chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            Plain("abc"),
        ),
        ("a length that is signed", post("content-length: +3\r\n", "abc"), Refused(400)),
    ]
}

fn answers(seen: &Seen) -> (Vec<u8>, Then) {
    (ok(&seen.body.len().to_string()), Then::Next)
}

#[tokio::test]
async fn an_odd_spelling_is_refused_or_made_plain() {
    let engine = Scripted::start(answers).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for (what, request, outcome) in cases() {
        let before = engine.seen().len();
        let (answer, _) = Raw::send(proxy.address, request).await.to_end().await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match outcome {
            Refused(status) => {
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
                assert_eq!(engine.seen().len(), before, "{what}: {:?}", engine.seen().last());
            }
            Plain(body) => {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{what}: {answer}");
                assert!(answer.ends_with(&format!("\r\n\r\n{}", body.len())), "{what}: {answer}");
                let seen = engine.last();
                assert_eq!(engine.seen().len(), before + 1, "{what}");
                assert_eq!(String::from_utf8_lossy(&seen.body), body, "{what}");
                assert_eq!(seen.values("content-length"), [body.len().to_string()], "{what}: {}", seen.head);
                assert!(seen.values("transfer-encoding").is_empty(), "{what}: {}", seen.head);
                assert!(!seen.head.contains("x-t"), "{what}: {}", seen.head);
            }
        }
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
    }
    proxy.becomes_idle().await;
}

/// RFC 9112, section 2.2, lets a server take a bare LF for the end of a line, and hyper does. What goes on to the
/// engine has CRLF, so it cannot be read in two ways.
#[tokio::test]
async fn bare_line_feeds_in_a_head_go_on_as_crlf() {
    let engine = Scripted::start(answers).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let request = "POST /echo HTTP/1.1\nhost: x\nx-a: 1\ncontent-length: 3\nconnection: close\n\nabc";
    let (answer, _) = Raw::send(proxy.address, request).await.to_end().await;
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 200 ") {
        let seen = engine.last();
        assert_eq!((seen.values("x-a"), &*seen.body), (vec!["1"], &b"abc"[..]));
        assert_eq!(seen.head.matches('\n').count(), seen.head.matches("\r\n").count(), "{:?}", seen.head);
    } else {
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(engine.seen().is_empty());
    }
}

#[tokio::test]
async fn a_flood_of_fields_is_refused_and_costs_nothing() {
    let engine = Scripted::start(answers).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let many: String = (0..5_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let same = "cookie: a=b\r\n".repeat(5_000);
    let long = format!("x-long: {}\r\n", "y".repeat(1 << 20));
    for flood in [many, same, long] {
        let request = format!("GET /x HTTP/1.1\r\nhost: x\r\n{flood}\r\n");
        let mut client = Raw::open(proxy.address).await;
        // The gateway may close while this is still being written.
        let _ = client.write(&request).await;
        let (answer, _) = client.to_end().await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer:.200}");
    }
    assert!(engine.seen().is_empty());
    proxy.metric_becomes("larder_client_connections", &[], 0.0).await;
    // The negative control: some fields are fine.
    let few: String = (0..50).map(|n| format!("x-{n}: 1\r\n")).collect();
    let request = format!("GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{few}\r\n");
    let head = Raw::send(proxy.address, request).await.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(engine.last().values("x-49"), ["1"]);
}
