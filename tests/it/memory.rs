//! Ten thousand long prompts, no two alike: does memory stay within what was promised?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_tests::world::{Proxy, config, prose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PROMPTS: u64 = 10_000;
/// And so many others, when these are done.
const MORE_PROMPTS: u64 = 2_000;
const PROMPT_BYTES: usize = 400_000;
const CLIENTS: u64 = 8;
const INDEX_BYTES: u64 = 32 << 20;
/// What the process may take beside its index and the bodies that are under way.
const BASE_BYTES: u64 = 64 << 20;
/// Between the middle and the end: what an allocator may keep in pieces.
const FLAT_BYTES: u64 = 8 << 20;
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n\
    {\"usage\":{\"prompt_tokens\":100000,\"completion_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";

/// Reads one request with `content-length`, keeps nothing of it.
async fn skim(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<bool> {
    let mut held = 0;
    let end = loop {
        let read = stream.read(&mut buffer[held..]).await?;
        if read == 0 {
            return Ok(false);
        }
        held += read;
        if let Some(end) = buffer[..held].windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut left = (end + length.unwrap_or(0usize)).saturating_sub(held);
    while left > 0 {
        let most = left.min(buffer.len());
        left -= stream.read(&mut buffer[..most]).await?.max(1);
    }
    Ok(true)
}

/// An engine that forgets what it reads.
async fn forgetful() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while skim(&mut stream, &mut buffer).await.unwrap_or(false) {
                    if stream.write_all(ANSWER.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn ask(address: std::net::SocketAddr, round: &'static str, left: Arc<AtomicU64>) {
    let text = prose(PROMPT_BYTES, 1);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = vec![0; 4096];
    loop {
        let one = |left: u64| left.checked_sub(1);
        let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one) else { return };
        // Other from its first word on, so that nothing of it is known.
        let body = format!(
            r#"{{"model":"mock","messages":[{{"role":"user","content":"{round}{number:08} {text}"}}]}}"#
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut held = 0;
        while !answer[..held].ends_with(b"}}}") {
            let read = stream.read(&mut answer[held..]).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer[..held]));
            held += read;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..held]));
    }
}

/// Sends so many prompts; resident bytes at most while the first half of them was sent, and at most in all.
async fn send(proxy: &Proxy, round: &'static str, prompts: u64) -> (u64, u64) {
    let left = Arc::new(AtomicU64::new(prompts));
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(ask(proxy.address, round, Arc::clone(&left)))).collect();
    let (mut most, mut half) = (0, 0);
    while left.load(Ordering::Relaxed) > 0 && !clients.iter().any(|client| client.is_finished()) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        most = most.max(proxy.program.resident_bytes());
        if half == 0 && left.load(Ordering::Relaxed) <= prompts / 2 {
            half = most;
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    (half, most)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_by_the_index_and_the_bodies_under_way_and_flat() {
    let engines = [forgetful().await, forgetful().await];
    // Engines so large that only the budget bounds what is remembered of them.
    let settings = format!("[routing]\nindex = {INDEX_BYTES}\ndefault_kv_tokens = 1000000000\n");
    let proxy = Proxy::start_with(&config(&engines, &settings)).await;
    let (half, most) = send(&proxy, "first", PROMPTS).await;
    println!("resident: {most} bytes at most, {half} in the first half");
    let under_way = CLIENTS * (PROMPT_BYTES as u64 + 1_000);
    assert!(most <= BASE_BYTES + INDEX_BYTES + under_way, "{most} bytes resident");
    assert!(most <= half + FLAT_BYTES, "{half} bytes for the first half, {most} for all");
    let indexed = proxy.metric("larder_index_bytes", &[]).await;
    assert!(indexed > INDEX_BYTES as f64 / 2.0, "the index is in use: {indexed} bytes");

    // And flat after: at rest nothing is under way, and others take nothing more.
    proxy.becomes_idle().await;
    let rest = proxy.program.resident_bytes();
    let (_, later) = send(&proxy, "then", MORE_PROMPTS).await;
    println!("resident: {rest} bytes at rest, {later} at most for {MORE_PROMPTS} more");
    assert!(rest <= BASE_BYTES + INDEX_BYTES, "{rest} bytes resident at rest");
    assert!(later <= most + FLAT_BYTES, "{most} bytes at most before, {later} after");
    proxy.becomes_idle().await;
}
