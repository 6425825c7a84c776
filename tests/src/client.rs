//! A client that speaks HTTP in every framing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Longest a test waits for an answer.
pub const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Bytes of a frame where no length is known before: not a divisor of any size that is tested.
const FRAME_BYTES: usize = 10_007;

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// HTTP/1.1 with `content-length`.
    Length,
    /// HTTP/1.1, chunked.
    Chunked,
    /// HTTP/2 with prior knowledge and `content-length`.
    H2Length,
    /// HTTP/2 with prior knowledge, without a length.
    H2,
}

impl Framing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Length, Self::Chunked, Self::H2Length, Self::H2];
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// The body of a request.
type Body = BoxBody<Bytes, Infallible>;

/// A body in frames of `frame` bytes, with no length known before.
fn streamed(body: &Bytes, frame: usize) -> Body {
    let frames: Vec<_> =
        body.chunks(frame.max(1)).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    BodyExt::boxed(StreamBody::new(Frames(frames.into_iter())))
}

struct Frames(std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.next())
    }
}

/// A connection that sends requests in one framing.
pub struct Connection {
    sender: Sender,
    framing: Framing,
    address: SocketAddr,
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// If the server does not accept.
    pub async fn open(address: SocketAddr, framing: Framing) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.expect("the server accepts"));
        let sender = match framing {
            Framing::Length | Framing::Chunked => {
                let (sender, driver) = http1::handshake(io).await.expect("an HTTP/1.1 handshake");
                tokio::spawn(driver);
                Sender::H1(sender)
            }
            Framing::H2Length | Framing::H2 => {
                let (sender, driver) =
                    http2::handshake(TokioExecutor::new(), io).await.expect("an HTTP/2 handshake");
                tokio::spawn(driver);
                Sender::H2(sender)
            }
        };
        Self { sender, framing, address }
    }

    /// Sends a request and returns the answer's head, its body unread.
    ///
    /// # Errors
    /// There is no answer.
    ///
    /// # Panics
    /// If it takes more than a minute.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Exchange, hyper::Error> {
        let (mut head, body) = request.into_parts();
        let body = match self.framing {
            Framing::Length | Framing::H2Length => Full::new(body).boxed(),
            Framing::Chunked | Framing::H2 => streamed(&body, FRAME_BYTES),
        };
        let sending = async {
            match &mut self.sender {
                Sender::H1(sender) => {
                    if !head.headers.contains_key(header::HOST) {
                        let host = self.address.to_string().parse().expect("an address is a header value");
                        head.headers.insert(header::HOST, host);
                    }
                    sender.ready().await?;
                    sender.send_request(Request::from_parts(head, body)).await
                }
                Sender::H2(sender) => {
                    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
                    head.uri = format!("http://{}{path}", self.address).parse().expect("a URI");
                    sender.ready().await?;
                    sender.send_request(Request::from_parts(head, body)).await
                }
            }
        };
        let response = tokio::time::timeout(ANSWER_MAX, sending).await.expect("an answer in time")?;
        let (head, body) = response.into_parts();
        Ok(Exchange { status: head.status, headers: head.headers, body, connection: None })
    }
}

/// An answer whose body is still to be read. Dropping it is what a client does that leaves in the middle: an
/// HTTP/1.1 connection closes, an HTTP/2 stream is reset.
pub struct Exchange {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    /// Held for exchanges that have a connection of their own: it lives as long as the answer is read.
    connection: Option<Connection>,
}

impl Exchange {
    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// The body broke off.
    ///
    /// # Panics
    /// If it takes more than a minute.
    pub async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame =
                tokio::time::timeout(ANSWER_MAX, self.body.frame()).await.expect("a piece in time")?;
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_trailers)) => {}
                Err(broken) => return Some(Err(broken)),
            }
        }
    }

    /// All that is left.
    ///
    /// # Errors
    /// The body broke off.
    ///
    /// # Panics
    /// If it takes more than a minute.
    pub async fn rest(self) -> Result<Answer, hyper::Error> {
        let Self { status, headers, body, connection } = self;
        let collected = tokio::time::timeout(ANSWER_MAX, body.collect()).await.expect("a body in time")?;
        drop(connection);
        let trailers = collected.trailers().cloned();
        Ok(Answer { status, headers, trailers, body: collected.to_bytes() })
    }
}

/// Sends a request on a new connection and returns the answer's head, its body unread.
///
/// # Panics
/// If there is no answer.
pub async fn open(address: SocketAddr, request: Request<Bytes>, framing: Framing) -> Exchange {
    let mut connection = Connection::open(address, framing).await;
    let mut exchange = connection.send(request).await.expect("an answer");
    exchange.connection = Some(connection);
    exchange
}

/// Sends a request on a new connection and reads the whole answer.
///
/// # Errors
/// There is no answer, or it breaks off.
pub async fn try_send(
    address: SocketAddr,
    request: Request<Bytes>,
    framing: Framing,
) -> Result<Answer, hyper::Error> {
    let mut connection = Connection::open(address, framing).await;
    connection.send(request).await?.rest().await
}

/// Sends a request on a new connection and reads the whole answer.
///
/// # Panics
/// If there is no answer, or it breaks off.
pub async fn send(address: SocketAddr, request: Request<Bytes>, framing: Framing) -> Answer {
    try_send(address, request, framing).await.expect("a whole answer")
}

/// A POST of JSON.
pub async fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    send(address, json_request(path, body), Framing::Length).await
}

/// A POST of a chat.
pub async fn chat(address: SocketAddr, body: &str) -> Answer {
    post(address, "/v1/chat/completions", body).await
}

/// A POST of JSON, not sent yet.
pub fn json_request(path: &str, body: &str) -> Request<Bytes> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .expect("a request")
}

/// A GET.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, Request::get(path).body(Bytes::new()).expect("a request"), Framing::Length).await
}

/// A GET of JSON.
pub async fn get_json(address: SocketAddr, path: &str) -> serde_json::Value {
    get(address, path).await.json()
}

/// Asks until the answer has a status.
///
/// # Panics
/// If it does not within a minute.
pub async fn wait_for(address: SocketAddr, path: &str, status: StatusCode) {
    let mut last = None;
    for _ in 0..1200 {
        if TcpStream::connect(address).await.is_ok() {
            let request = Request::get(path).body(Bytes::new()).expect("a request");
            match try_send(address, request, Framing::Length).await {
                Ok(answer) if answer.status == status => return,
                Ok(answer) => last = Some(format!("{} {}", answer.status, answer.text())),
                Err(error) => last = Some(error.to_string()),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} at {address} never answered {status}; last: {last:?}");
}
