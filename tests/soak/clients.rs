//! Clients that ask, read, compare and leave when they like.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_tests::client::{Connection, Exchange, Framing, json_request};
use larder_tests::world::{MODEL, chat_of, prose};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

use crate::ledger::{Ledger, Random};

/// Bytes of a conversation at which a new one begins.
const TALK_MAX_BYTES: usize = 24_000;
/// Requests that one connection serves at most.
const REQUESTS_PER_CONNECTION: u64 = 40;
/// What may be answered to a request that met a fault.
const REFUSALS: [u16; 5] = [429, 500, 502, 503, 504];

/// One client: a conversation after the other, over a connection after the other.
pub(crate) struct Client {
    random: Random,
    number: u64,
    sent: u64,
    talk: Vec<Value>,
    ledger: Arc<Ledger>,
}

/// When a client leaves.
#[derive(Clone, Copy)]
enum Patience {
    Whole,
    /// Before the answer began, after some milliseconds.
    Before(u64),
    /// After some pieces.
    Pieces(u64),
}

/// How an exchange went for the connection that it was on.
enum Ended {
    Usable,
    Closed,
}

impl Client {
    pub(crate) fn new(seed: u64, number: u64, ledger: Arc<Ledger>) -> Self {
        let random = Random::new(seed.wrapping_mul(1 << 32).wrapping_add(number));
        Self { random, number, sent: 0, talk: Vec::new(), ledger }
    }

    pub(crate) fn spawn(mut self, address: SocketAddr) -> JoinHandle<()> {
        tokio::spawn(async move { while self.connection(address).await {} })
    }

    /// Uses one connection; false when there is nothing left to send.
    async fn connection(&mut self, address: SocketAddr) -> bool {
        let framing = Framing::ALL[self.random.below(4) as usize];
        let mut connection = Connection::open(address, framing).await;
        for _ in 0..=self.random.below(REQUESTS_PER_CONNECTION) {
            if !self.ledger.take() {
                return false;
            }
            match self.ask(&mut connection).await {
                Ended::Usable => {}
                Ended::Closed => break,
            }
        }
        true
    }

    async fn ask(&mut self, connection: &mut Connection) -> Ended {
        let stream = self.random.below(2) == 0;
        let (path, body) = self.body(stream);
        let expected = format!("req-{:016x} len-{} ", xxh3_64(body.as_bytes()), body.len());
        let patience = match self.random.below(10) {
            0 => Patience::Before(self.random.below(30)),
            1 => Patience::Pieces(self.random.below(4)),
            _ => Patience::Whole,
        };
        let sending = connection.send(json_request(path, &body));
        let exchange = match patience {
            Patience::Before(ms) => match tokio::time::timeout(Duration::from_millis(ms), sending).await {
                Ok(exchange) => exchange,
                Err(_) => {
                    self.ledger.aborted.fetch_add(1, Ordering::Relaxed);
                    return Ended::Closed;
                }
            },
            _ => sending.await,
        };
        match exchange {
            Ok(exchange) if exchange.status == 200 => self.read(exchange, stream, &expected, patience).await,
            Ok(exchange) => self.refused(exchange).await,
            Err(_) => {
                // No answer at all: the proxy never does that to a whole request.
                self.ledger.complain(format!("client {}: no answer to {path}", self.number));
                Ended::Closed
            }
        }
    }

    /// The next turn of the conversation; each body is sent once only.
    fn body(&mut self, stream: bool) -> (&'static str, String) {
        let kind = self.random.below(20);
        let length = if kind == 0 { 120_000 } else { 200 + self.random.below(2_000) as usize };
        let text = format!("{} {} {}", self.number, self.sent, prose(length, self.random.next()));
        self.sent += 1;
        let max_tokens = 16 + self.random.below(32) as u32;
        if kind == 1 {
            let body = json!({"model": MODEL, "prompt": text, "max_tokens": max_tokens, "stream": stream});
            return ("/v1/completions", body.to_string());
        }
        let held: usize = self.talk.iter().map(|turn| turn["content"].as_str().map_or(0, str::len)).sum();
        if held > TALK_MAX_BYTES {
            self.talk.clear();
        }
        self.talk.push(json!({"role": "user", "content": text}));
        ("/v1/chat/completions", chat_of(&self.talk, max_tokens, stream))
    }

    async fn refused(&self, exchange: Exchange) -> Ended {
        let status = exchange.status.as_u16();
        if !REFUSALS.contains(&status) {
            self.ledger.complain(format!("client {}: status {status}", self.number));
        }
        match exchange.rest().await {
            Ok(_) => {
                self.ledger.refused.fetch_add(1, Ordering::Relaxed);
                Ended::Usable
            }
            Err(_) => {
                self.ledger.broken.fetch_add(1, Ordering::Relaxed);
                Ended::Closed
            }
        }
    }

    async fn read(
        &mut self,
        mut exchange: Exchange,
        stream: bool,
        expected: &str,
        patience: Patience,
    ) -> Ended {
        let hash = &expected[4..20];
        let named = exchange.headers.get("x-mock-body-xxh3").and_then(|value| value.to_str().ok());
        if named != Some(hash) {
            self.ledger
                .complain(format!("client {}: asked {expected}, the head says {named:?}", self.number));
        }
        let (mut body, mut pieces) = (Vec::new(), 0);
        loop {
            if matches!(patience, Patience::Pieces(most) if pieces == most) {
                self.ledger.aborted.fetch_add(1, Ordering::Relaxed);
                return Ended::Closed;
            }
            match exchange.piece().await {
                Some(Ok(piece)) => body.extend_from_slice(&piece),
                Some(Err(_)) => {
                    self.ledger.broken.fetch_add(1, Ordering::Relaxed);
                    return Ended::Closed;
                }
                None => break,
            }
            pieces += 1;
        }
        self.ledger.whole.fetch_add(1, Ordering::Relaxed);
        match answer_text(&body, stream) {
            Ok(text) if text.starts_with(expected) => {
                self.talk.push(json!({"role": "assistant", "content": text}));
            }
            Ok(text) => {
                self.ledger.complain(format!("client {}: asked {expected}, got {text:.60}", self.number));
            }
            Err(why) => {
                let end = String::from_utf8_lossy(&body[body.len().saturating_sub(200)..]).into_owned();
                self.ledger.complain(format!(
                    "client {}: a clean end of what is not whole ({why}): {end}",
                    self.number
                ));
            }
        }
        Ended::Usable
    }
}

/// The text of a whole answer.
fn answer_text(body: &[u8], stream: bool) -> Result<String, String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    let said = |choice: &Value, part: &str| {
        let said = &choice[part]["content"];
        said.as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    };
    if !stream {
        let answer: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        return Ok(said(&answer["choices"][0], "message"));
    }
    if !text.ends_with("data: [DONE]\n\n") {
        return Err("no [DONE]".to_owned());
    }
    let mut whole = String::new();
    for event in text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        if event != "[DONE]" {
            let event: Value = serde_json::from_str(event).map_err(|e| e.to_string())?;
            whole.push_str(&said(&event["choices"][0], "delta"));
        }
    }
    Ok(whole)
}
