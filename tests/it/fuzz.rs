//! Can any bytes on a socket bring the process down? A bounded run of seeded mutations; every one that was seen to
//! fail once belongs into a test of its own.

use std::net::SocketAddr;
use std::time::Duration;

use larder_tests::client;
use larder_tests::scripted::{Scripted, Then};
use larder_tests::world::{Engine, Proxy, chat, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections a listener gets. More find more: the run is about 3 s.
const CLIENT_ROUNDS: u64 = 600;
const ADMIN_ROUNDS: u64 = 150;
/// Longest the server may hold on to a half-closed connection.
const CLOSE_MAX: Duration = Duration::from_secs(30);
/// Resident memory that a run may add: buffers and code pages, no leak of bodies.
const GROWTH_MAX_BYTES: u64 = 64 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Requests as they should be, to be spoilt.
fn seeds() -> Vec<Vec<u8>> {
    let body = chat("hello, this is a prompt", 3, true);
    let tools = r#"{"model":"mock","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"max_tokens":1}"#;
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // An HTTP/2 preface, an empty SETTINGS frame and HEADERS of a GET (RFC 9113, section 3.4).
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    h2.extend_from_slice(b"\0\0\x04\x01\x05\0\0\0\x01\x82\x84\x86\x01\0\0\0\x01\0\0\0\0\x01");
    let text = [
        post("/v1/chat/completions", &body),
        post("/v1/chat/completions", tools),
        post("/v1/completions", r#"{"model":"mock","prompt":[1,2,3],"max_tokens":1}"#),
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: a\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n".to_owned(),
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close, te\r\nte: trailers\r\n\r\nGET /y HTTP/1.0\r\n\r\n".to_owned(),
        "PUT http://a:1/b?c#d HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\na".to_owned(),
        "GET /metrics HTTP/1.1\r\nhost: x\r\nx-request-id: 1\r\nx-session-id: 2\r\nupgrade: h2c\r\n\r\n".to_owned(),
    ];
    text.into_iter().map(String::into_bytes).chain([h2]).collect()
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    const TOKENS: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\0",
        b": ",
        b"\xff\xff",
        b"4294967296",
        b"-1",
        b"{\"",
        b"\\u",
        b"[[[[[[[[",
        b"chunked",
        b"content-length: 5\r\n",
    ];
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            3 => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
            4 => {
                let piece = bytes[at..(at + random.below(60)).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            5 => bytes.extend_from_slice(&seeds[random.below(seeds.len())].clone()),
            _ => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = b"\r\n\0 :,;\"{}[]\\\xff09aZ"[at % 18]),
        }
    }
    bytes
}

/// Sends bytes, in two pieces at times, ends its half and waits for the other end.
async fn throw(address: SocketAddr, bytes: &[u8], cut: usize) {
    let mut stream = TcpStream::connect(address).await.expect("the listener still accepts");
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    // The server may have had enough before the end.
    let _ = stream.write_all(first).await;
    tokio::task::yield_now().await;
    let _ = stream.write_all(second).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(CLOSE_MAX, stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(bytes));
}

async fn storm(address: SocketAddr, rounds: u64, seed: u64) {
    let (mut random, seeds) = (Random(seed), seeds());
    for _ in 0..rounds {
        let bytes = mutate(&mut random, &seeds);
        let cut = if random.below(2) == 0 { bytes.len() } else { random.below(bytes.len()) };
        throw(address, &bytes, cut).await;
    }
}

#[tokio::test]
async fn no_bytes_of_a_client_end_the_process_or_fill_it() {
    let engine = Engine::start(&["--time-scale=1000", "--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    storm(proxy.address, CLIENT_ROUNDS / 10, 1).await;
    let before = proxy.program.resident_bytes();
    storm(proxy.address, CLIENT_ROUNDS, 2).await;
    storm(proxy.admin, ADMIN_ROUNDS, 3).await;
    let growth = proxy.program.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_MAX_BYTES, "{growth} bytes more resident");
    assert_eq!(client::chat(proxy.address, &chat("hello", 2, true)).await.status, 200);
    proxy.becomes_idle().await;
    proxy.metric_becomes("larder_client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn no_bytes_of_an_engine_end_the_process() {
    let answer = "HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
                  content-type: text/event-stream\r\ntrailer: x\r\nconnection: a, b\r\n\r\n\
                  1a\r\ndata: {\"usage\": {\"prompt_t\r\n20\r\nokens\": 5, \"completion_tokens\": 1}}\r\n0\r\nx: y\r\n\r\n";
    let plain = "HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n{\"usage\":{\"prompt_tokens\":5,\"prompt_tokens_details\":{\"cached\"";
    let seeds = [answer.as_bytes().to_vec(), plain.as_bytes().to_vec()];
    let random = std::sync::Mutex::new(Random(4));
    let engine = Scripted::start(move |_| {
        let mut random = random.lock().unwrap();
        (mutate(&mut random, &seeds), Then::Close)
    })
    .await;
    let proxy = Proxy::start_with(&config(
        &[engine.address],
        "[timeouts]\nfirst_byte = \"2s\"\n[health]\ninterval = \"1h\"",
    ))
    .await;
    let mut answered = 0;
    for n in 0..300 {
        let request = client::json_request("/v1/chat/completions", &chat("hello", 2, true));
        let asking = client::try_send(proxy.address, request, client::Framing::ALL[n % 4]);
        answered += usize::from(asking.await.is_ok());
    }
    assert!(answered > 100, "{answered} of 300 answered: the mutations leave nothing to parse");
    proxy.becomes_idle().await;
    assert_eq!(client::get(proxy.address, "/v1/models").await.status, 200);
}
