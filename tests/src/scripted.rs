//! An engine that answers with the very bytes that a test says, and keeps the very bytes that it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request line and the headers, with the empty line.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
    /// The connection's number, from 0, health checks' connections included.
    pub connection: usize,
    /// The request's number on its connection, from 0.
    pub place: usize,
    /// How many of the proxy's own checks had come before.
    pub checks: usize,
}

impl Seen {
    /// All values of a header, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }
}

/// What follows an answer.
#[derive(Clone, Debug)]
pub enum Then {
    /// The next request.
    Next,
    /// The connection is closed. What comes on it later is not read as requests.
    Close,
    /// The connection is closed, a few milliseconds later.
    CloseSoon,
    /// Nothing, the connection open.
    Hang,
    /// Nothing until it is told, then the connection is closed.
    CloseWhen(Arc<Notify>),
}

/// Long enough for the next request to be there before the close, if its sender does not wait.
const CLOSE_SOON: Duration = Duration::from_millis(4);

/// How often and how many times is looked whether a connection is closed: 20 s, for a busy machine.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const LOOKS_MAX: u32 = 10_000;

type Script = dyn Fn(&Seen) -> (Vec<u8>, Then) + Send + Sync;

/// The engine. Its listener closes with the test's runtime.
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

/// What one engine's connections share.
struct Shared {
    script: Box<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
    checks: AtomicUsize,
    closed: Arc<AtomicUsize>,
}

impl Scripted {
    /// Starts one that answers all but the proxy's own checks by `script`.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(script: impl Fn(&Seen) -> (Vec<u8>, Then) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let engine =
            Self { address, seen: Arc::default(), connections: Arc::default(), closed: Arc::default() };
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Arc::clone(&engine.seen),
            checks: AtomicUsize::new(0),
            closed: Arc::clone(&engine.closed),
        });
        let connections = Arc::clone(&engine.connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, number, Arc::clone(&shared)));
            }
        });
        engine
    }

    /// Waits until so many connections were closed by [`Then::Close`] and closed by the other side too, which knows of
    /// it then.
    ///
    /// # Panics
    /// If they are not.
    pub async fn closed(&self, count: usize) {
        for _ in 0..LOOKS_MAX {
            if self.closed.load(Ordering::Relaxed) >= count {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("{} connections are closed and {count} should be", self.closed.load(Ordering::Relaxed));
    }

    /// Starts one that gives the same answer to all.
    pub async fn always(answer: impl Into<String>) -> Self {
        let answer = answer.into().into_bytes();
        Self::start(move |_| (answer.clone(), Then::Next)).await
    }

    /// All requests so far but the proxy's own checks.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last request.
    ///
    /// # Panics
    /// If there was none.
    pub fn last(&self) -> Seen {
        self.seen().last().expect("a request has come").clone()
    }

    /// Connections so far, health checks' included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// An answer with a body, complete with its length.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn serve(mut stream: TcpStream, connection: usize, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    let mut place = 0;
    while let Some((head, body)) = read(&mut stream, &mut buffer).await {
        let (answer, then) = match check(&head) {
            Some(answer) => {
                shared.checks.fetch_add(1, Ordering::Relaxed);
                (answer, Then::Next)
            }
            None => {
                let checks = shared.checks.load(Ordering::Relaxed);
                let seen = Seen { head, body, connection, place, checks };
                shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
                (shared.script)(&seen)
            }
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
        place += 1;
        match then {
            Then::Next => {}
            Then::Close => {
                close(stream).await;
                shared.closed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Then::CloseSoon => {
                tokio::time::sleep(CLOSE_SOON).await;
                return;
            }
            Then::Hang => std::future::pending().await,
            Then::CloseWhen(told) => {
                told.notified().await;
                return;
            }
        }
    }
}

/// Closes a connection, and waits until the other side has done so too.
async fn close(mut stream: TcpStream) {
    let mut rest = [0; 1024];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}

/// The answer to the proxy's own checks.
fn check(head: &str) -> Option<Vec<u8>> {
    match head.split(' ').nth(1)? {
        "/health" => Some(ok("")),
        "/metrics" => Some(ok("")),
        "/v1/models" => Some(ok(r#"{"data":[]}"#)),
        _ => None,
    }
}

/// A request with `content-length` or without a body; none at the end of the connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        match buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(end) => break end + 4,
            None if stream.read_buf(buffer).await.ok()? == 0 => return None,
            None => {}
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
    });
    let whole = end + length.unwrap_or(0);
    while buffer.len() < whole {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end..whole].to_vec();
    buffer.drain(..whole);
    Some((head, body))
}
