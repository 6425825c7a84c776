use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_protocol::control::StageReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;

/// What the made-up node does with each request.
#[derive(Clone, Copy)]
enum Manner {
    Answer(&'static str),
    Status(u16),
    Silent,
    HangUp,
}

/// A server that reads one request after another and treats them in this manner. Counts connections and requests.
struct FakeNode {
    address: Address,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

async fn serve_stream<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    mut stream: S,
    manner: Manner,
    requests: &AtomicUsize,
) {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let Ok(count) = stream.read(&mut piece).await else { return };
        if count == 0 {
            return;
        }
        read.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() < length.unwrap_or(0) {
            continue;
        }
        read.clear();
        requests.fetch_add(1, Ordering::SeqCst);
        let (status, body) = match manner {
            Manner::Answer(body) => (200, body),
            Manner::Status(status) => (status, r#"{"error":"because"}"#),
            Manner::Silent => std::future::pending().await,
            Manner::HangUp => return,
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn node(manner: Manner) -> FakeNode {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let node = FakeNode { address, connections: Arc::clone(&connections), requests: Arc::clone(&requests) };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let requests = Arc::clone(&requests);
            tokio::spawn(async move { serve_stream(stream, manner, &requests).await });
        }
    });
    node
}

fn request() -> StageRequest {
    StageRequest {
        tag: None,
        chain: Vec::new(),
        run_bytes: 512,
        prompt_bytes: 0,
        engine: None,
        deadline_ms: None,
        max_bytes: None,
        tenant: None,
    }
}

const ANSWER: &str = r#"{"lease":"0000000000000000000000000000000a","tag":null,"tokens_ready":64,"chunks":2,"bytes":9,"reason":"staged"}"#;

/// Long enough that no healthy exchange misses it on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn calls_share_a_connection() {
    let node = node(Manner::Answer(ANSWER)).await;
    let client = Client::new(Settings::new(node.address));
    for _ in 0..5 {
        let answer = client.stage(&request(), PATIENT).await.unwrap();
        assert_eq!((answer.tokens_ready, answer.reason), (64, StageReason::Staged));
    }
    client.health(PATIENT).await.unwrap();
    assert_eq!((node.connections.load(Ordering::SeqCst), node.requests.load(Ordering::SeqCst)), (1, 6));
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve_stream(stream, Manner::Answer(ANSWER), &AtomicUsize::new(0)).await;
    });
    let client = Client::new(Settings::new(format!("unix:{}", path.display()).parse().unwrap()));
    assert_eq!(client.lookup(&request(), PATIENT).await.unwrap().chunks, 2);
}

#[tokio::test]
async fn a_silent_node_costs_three_deadlines_and_then_nothing() {
    let node = node(Manner::Silent).await;
    let client = Client::new(Settings::new(node.address));
    for _ in 0..3 {
        let error = client.stage(&request(), Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { deadline_ms: 20, .. }), "{error}");
    }
    let error = client.stage(&request(), PATIENT).await.unwrap_err();
    assert!(matches!(error, Error::Failfast { failures: 3, .. }), "{error}");
    assert!(!client.is_open());
}

#[tokio::test]
async fn a_node_that_is_not_there_and_one_that_hangs_up_are_unreachable() {
    let gone: Address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
    };
    let error = Client::new(Settings::new(gone)).health(PATIENT).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    let node = node(Manner::HangUp).await;
    let error = Client::new(Settings::new(node.address)).health(PATIENT).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn refusals_of_the_question_do_not_count_against_the_node() {
    let bad = node(Manner::Status(400)).await;
    let client = Client::new(Settings::new(bad.address));
    for _ in 0..10 {
        let error = client.stage(&request(), PATIENT).await.unwrap_err();
        let Error::Refused { status, reason, .. } = &error else { panic!("{error}") };
        assert_eq!((status.as_u16(), &reason[..]), (400, "because"));
    }
    let ill = node(Manner::Status(503)).await;
    let client = Client::new(Settings::new(ill.address));
    for _ in 0..3 {
        client.stage(&request(), PATIENT).await.unwrap_err();
    }
    assert!(!client.is_open(), "but 503 does");
}

#[tokio::test]
async fn a_node_that_comes_back_is_found() {
    let node = node(Manner::Answer("{}")).await;
    let breaker = BreakerSettings { failures_max: 1, pause: Duration::ZERO, ..BreakerSettings::default() };
    let client = Client::new(Settings { breaker, ..Settings::new(node.address) });
    let error = client.stage(&request(), PATIENT).await.unwrap_err();
    assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
    client.health(PATIENT).await.unwrap();
    assert!(client.is_open());
}

#[test]
fn the_node_is_told_the_shorter_deadline() {
    let told =
        |asked, deadline| within(&StageRequest { deadline_ms: asked, ..request() }, deadline).deadline_ms;
    assert_eq!(told(None, Duration::from_millis(50)), Some(50));
    assert_eq!(told(Some(30), Duration::from_millis(50)), Some(30));
    assert_eq!(told(Some(80), Duration::from_millis(50)), Some(50));
}
