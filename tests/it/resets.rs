//! HTTP/2 clients that reset what they asked for, as fast as they can or patiently: is what they cost bounded, and does
//! anybody else notice?

use std::net::SocketAddr;
use std::time::Duration;

use larder_tests::client::{self, Connection, Framing, json_request};
use larder_tests::world::{Engine, Proxy, chat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a client would like to reset; it gets nowhere near, which is the point.
const RESETS: u32 = 100_000;
/// The preface and an empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5).
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 0xb;
/// Longest a connection may stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What it may cost the gateway: memory for a connection, and far less time than 100,000 requests take.
const GROWTH_MAX_BYTES: u64 = 32 << 20;
const CPU_MAX: Duration = Duration::from_secs(5);

/// HEADERS of `POST /` without a body, then RST_STREAM with CANCEL.
fn ask_and_reset(stream: u32) -> Vec<u8> {
    let mut frames = b"\0\0\x06\x01\x05".to_vec();
    frames.extend_from_slice(&stream.to_be_bytes());
    frames.extend_from_slice(b"\x83\x84\x86\x01\x01x");
    frames.extend_from_slice(b"\0\0\x04\x03\0");
    frames.extend_from_slice(&stream.to_be_bytes());
    frames.extend_from_slice(&8u32.to_be_bytes());
    frames
}

/// The error codes of the GOAWAY frames among `bytes`.
fn goaways(mut bytes: &[u8]) -> Vec<u32> {
    let mut codes = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let kind = bytes[3];
        let Some(payload) = bytes.get(9..9 + length) else { break };
        if kind == GOAWAY {
            codes.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = &bytes[9 + length..];
    }
    codes
}

/// User and system time of a process so far.
fn cpu(proxy: &Proxy) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.program.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Ticks of 10 ms on Linux.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Sends pairs until the other end has had enough; how many it took, and what it said.
async fn flood(address: SocketAddr, pause_every: u32) -> (u32, Vec<u8>) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let said = tokio::spawn(async move {
        let mut said = Vec::new();
        let ended = timeout(SILENCE_MAX, reading.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "the connection stays open");
        said
    });
    writing.write_all(OPENING).await.unwrap();
    let mut sent = 0;
    while sent < RESETS && writing.write_all(&ask_and_reset(2 * sent + 1)).await.is_ok() {
        sent += 1;
        if sent.is_multiple_of(pause_every) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if said.is_finished() {
            break;
        }
    }
    (sent, said.await.unwrap())
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_and_nobody_else_notices() {
    let engine = Engine::start(&["--time-scale=1000", "--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut other = Connection::open(proxy.address, Framing::H2Length).await;
    let (memory, time) = (proxy.program.resident_bytes(), cpu(&proxy));
    let flooding = tokio::spawn(flood(proxy.address, u32::MAX));
    let request = || json_request("/v1/chat/completions", &chat("hello", 5, false));
    while !flooding.is_finished() {
        assert_eq!(other.send(request()).await.unwrap().rest().await.unwrap().status, 200);
    }
    let (sent, said) = flooding.await.unwrap();
    assert!(sent < RESETS, "all {sent} were taken");
    let codes = goaways(&said);
    assert!(codes.is_empty() || codes.contains(&ENHANCE_YOUR_CALM), "{codes:?}");
    let grown = proxy.program.resident_bytes().saturating_sub(memory);
    assert!(grown < GROWTH_MAX_BYTES, "{grown} bytes more resident");
    let spent = cpu(&proxy) - time;
    assert!(spent < CPU_MAX, "{spent:?}");
    assert_eq!(other.send(request()).await.unwrap().rest().await.unwrap().status, 200);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn a_patient_one_is_closed_too_and_leaves_nothing_behind() {
    let engine = Engine::start(&["--time-scale=1000", "--echo-unknown"]);
    engine.fault(serde_json::json!({"kind": "hang"})).await;
    let proxy = Proxy::start(&[&engine], "").await;
    // One at a time, each taken up before the next.
    let (sent, _) = flood(proxy.address, 1).await;
    assert!((500..5_000).contains(&sent), "closed after {sent}");
    proxy.becomes_idle().await;
    engine.fault(serde_json::json!({"kind": "none"})).await;
    assert_eq!(client::chat(proxy.address, &chat("hello", 5, false)).await.status, 200);
    proxy.metric_becomes("larder_client_connections", &[], 0.0).await;
}

/// The negative control: who leaves now and then is no flood.
#[tokio::test]
async fn a_client_that_leaves_one_in_five_keeps_its_connection() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut connection = Connection::open(proxy.address, Framing::H2Length).await;
    for n in 0..700 {
        let request = json_request("/v1/chat/completions", &chat(&format!("hello {n}"), 3, true));
        let exchange = connection.send(request).await.expect("the connection lives");
        if n % 5 != 0 {
            assert_eq!(exchange.rest().await.unwrap().status, 200);
        }
    }
    proxy.becomes_idle().await;
}
