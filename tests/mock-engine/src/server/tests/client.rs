//! A client of a few lines that shares no code with the server: sockets, and its own reading of HTTP/1.1.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Config, Handle, serve};

/// A response, read to the end of its connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Everything before the body, interim responses included.
    pub(super) head: String,
    /// Without the chunked framing; trailers are in `rest`.
    pub(super) body: String,
    pub(super) rest: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines();
        let mut pairs = lines.filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The payloads of server-sent events.
    pub(super) fn events(&self) -> Vec<&str> {
        self.body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect()
    }

    pub(super) fn cached_tokens(&self) -> u64 {
        self.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    }
}

/// An engine under test.
pub(super) struct Mock {
    pub(super) address: SocketAddr,
    pub(super) handle: Handle,
}

/// A fast engine that reports cached tokens.
pub(super) fn config() -> Config {
    Config { time_scale: 1e4, enable_prompt_tokens_details: true, ..Config::default() }
}

impl Mock {
    pub(super) async fn start(config: Config) -> Self {
        let (address, handle) = serve(config).await.unwrap();
        Self { address, handle }
    }

    pub(super) async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: mock\r\ncontent-length: {length}\r\n{headers}\r\n");
        stream.write_all((head + body).as_bytes()).await.unwrap();
        stream
    }

    pub(super) async fn call(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let headers = format!("connection: close\r\n{headers}");
        read(&mut self.send(method, path, &headers, body).await).await.unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", "").await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, "", &body.to_string()).await
    }

    /// A chat of one user message.
    pub(super) async fn chat(&self, text: &str, max_tokens: u32) -> Answer {
        let body = json!({"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens});
        self.post("/v1/chat/completions", &body).await
    }

    pub(super) async fn fault(&self, fault: Value) {
        let answer = self.post("/debug/fault", &fault).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub(super) async fn stat(&self, name: &str) -> u64 {
        self.get("/debug/stats").await.json()[name].as_u64().unwrap()
    }

    /// Waits until a figure of `/debug/stats` has the value.
    pub(super) async fn until(&self, name: &str, value: u64) {
        const TRIES: u32 = 2000;
        for _ in 0..TRIES {
            if self.stat(name).await == value {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{name} never became {value}: {}", self.get("/debug/stats").await.body);
    }
}

/// Reads a response and, if its length isn't said, until the connection ends.
pub(super) async fn read(stream: &mut TcpStream) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8(bytes).unwrap();
    // The last head is the final response's: bodies of these tests contain no such line.
    let at = text.rfind("HTTP/1.1 ").unwrap_or_else(|| panic!("no response: {text:?}"));
    let end = at + text[at..].find("\r\n\r\n").expect("a complete head") + 4;
    let status = text[at + 9..at + 12].parse().unwrap();
    let (head, raw) = (text[..end].to_owned(), &text[end..]);
    let (body, rest) = match head.contains("transfer-encoding: chunked") {
        true => dechunk(raw),
        false => (raw.to_owned(), String::new()),
    };
    Ok(Answer { status, head, body, rest })
}

fn dechunk(mut raw: &str) -> (String, String) {
    let mut body = String::new();
    while let Some((size, after)) = raw.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, after.to_owned());
        }
        body.push_str(&after[..size]);
        raw = &after[size + 2..];
    }
    panic!("no last chunk after {body:?}");
}
