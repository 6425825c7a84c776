//! An upstream that costs next to nothing: it throws bodies away and answers every chat at once, or in 8 events 1 ms
//! apart. HTTP/1.1 with `content-length` only, which is what every proxy here sends. It says how long the prompt was
//! and that it knew none of it, as the engine of prompts that never repeat would.
//!
//! usage: answerer PORT

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest request head, and the size of a read.
const BUFFER_BYTES: usize = 64 << 10;
/// Where in a body `"stream":true` is looked for.
const PARAMETERS_BYTES: usize = 128;
const EVENTS: usize = 8;
const EVENT_PAUSE: Duration = Duration::from_millis(1);
const EVENT: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";
/// What its `/metrics` tells of the size of its cache: two of these hold a million runs of 512 bytes.
const METRICS: &str = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"60000000\"} 1.0\n";

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: answerer PORT");
        return ExitCode::from(64);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Err(error) = runtime.and_then(|runtime| runtime.block_on(listen(port)));
    eprintln!("answerer: {error}");
    ExitCode::FAILURE
}

async fn listen(port: u16) -> io::Result<Infallible> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A client that leaves is no news.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut held = 0;
    loop {
        let head = loop {
            if let Some(at) = buffer[..held].windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let read = stream.read(&mut buffer[held..]).await?;
            if read == 0 {
                return Ok(());
            }
            held += read;
        };
        let is_get = buffer.starts_with(b"GET ");
        let wants_metrics = buffer.starts_with(b"GET /metrics");
        let length = content_length(&buffer[..head]);
        let parameters = (head + PARAMETERS_BYTES.min(length)).min(BUFFER_BYTES);
        while held < parameters {
            held += nonzero(stream.read(&mut buffer[held..]).await?)?;
        }
        let streams = buffer[head..parameters].windows(13).any(|w| w == b"\"stream\":true");
        let mut left = (head + length).saturating_sub(held);
        while left > 0 {
            let most = left.min(BUFFER_BYTES);
            left -= nonzero(stream.read(&mut buffer[..most]).await?)?;
        }
        // Nobody here sends a request before the last one was answered.
        held = 0;
        match (is_get, wants_metrics, streams) {
            (true, true, _) => plain(&mut stream, METRICS).await?,
            (true, false, _) => {
                plain(&mut stream, "{\"object\":\"list\",\"data\":[{\"id\":\"mock\"}]}").await?
            }
            (false, _, true) => events(&mut stream).await?,
            (false, _, false) => plain(&mut stream, &answer(length)).await?,
        }
    }
}

fn nonzero(read: usize) -> io::Result<usize> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let line =
        head.lines().find(|line| line.len() > 15 && line[..15].eq_ignore_ascii_case("content-length:"));
    line.and_then(|line| line[15..].trim().parse().ok()).unwrap_or(0)
}

fn answer(length: usize) -> String {
    let tokens = length / 4;
    format!(
        "{{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\",\
         \"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"This is a short answer.\"}},\
         \"finish_reason\":\"stop\",\"logprobs\":null}}],\"usage\":{{\"prompt_tokens\":{tokens},\
         \"completion_tokens\":10,\"prompt_tokens_details\":{{\"cached_tokens\":0}}}}}}"
    )
}

async fn plain(stream: &mut TcpStream, body: &str) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await
}

async fn events(stream: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let event = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    stream.write_all(format!("{head}{event}").as_bytes()).await?;
    for _ in 1..EVENTS {
        tokio::time::sleep(EVENT_PAUSE).await;
        stream.write_all(event.as_bytes()).await?;
    }
    stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await
}
