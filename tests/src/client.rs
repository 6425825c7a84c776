//! A client that speaks HTTP in every framing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Longest a test waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

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

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A body in frames of `frame` bytes, with no length known before.
fn streamed(body: Bytes, frame: usize) -> Body {
    let frames: Vec<_> =
        body.chunks(frame.max(1)).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    BodyExt::boxed(StreamBody::new(futures_iter(frames)))
}

fn futures_iter<T>(items: Vec<T>) -> impl futures_core::Stream<Item = T> {
    let mut items = items.into_iter();
    StreamIter(std::iter::from_fn(move || items.next()))
}

struct StreamIter<I>(I);

impl<I: Iterator + Unpin> futures_core::Stream for StreamIter<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

/// Sends a request in the given framing and returns the answer's head, its body unread.
///
/// # Panics
/// If there is no answer.
pub async fn open(address: SocketAddr, request: Request<Bytes>, framing: Framing) -> Response<Incoming> {
    let sending = async {
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        let io = TokioIo::new(stream);
        let request = request.map(|body| match framing {
            Framing::Length | Framing::H2Length => Full::new(body).boxed(),
            Framing::Chunked | Framing::H2 => streamed(body, 10_007),
        });
        match framing {
            Framing::Length | Framing::Chunked => {
                let (mut sender, driver) = hyper::client::conn::http1::handshake(io).await.expect("handshake");
                tokio::spawn(driver);
                let answer = sender.send_request(with_host(request, address)).await.expect("an answer");
                // The connection lives as long as the answer is read.
                std::mem::forget(sender);
                answer
            }
            Framing::H2Length | Framing::H2 => {
                let (mut sender, driver) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("handshake");
                tokio::spawn(driver);
                let (mut head, body) = request.into_parts();
                let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
                head.uri = format!("http://{address}{path}").parse().expect("a URI");
                sender.send_request(Request::from_parts(head, body)).await.expect("an answer")
            }
        }
    };
    tokio::time::timeout(ANSWER_MAX, sending).await.expect("an answer in time")
}

fn with_host(mut request: Request<Body>, address: SocketAddr) -> Request<Body> {
    if !request.headers().contains_key(header::HOST) {
        let host = address.to_string().parse().expect("an address is a header value");
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

/// Sends a request and reads the whole answer.
///
/// # Panics
/// If there is no answer, or it breaks off.
pub async fn send(address: SocketAddr, request: Request<Bytes>, framing: Framing) -> Answer {
    let response = open(address, request, framing).await;
    let (head, body) = response.into_parts();
    let collected = tokio::time::timeout(ANSWER_MAX, body.collect()).await.expect("a body in time").expect("a body");
    let trailers = collected.trailers().cloned();
    Answer { status: head.status, headers: head.headers, trailers, body: collected.to_bytes() }
}

/// A POST of JSON.
pub async fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    send(address, json_request(path, body), Framing::Length).await
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
        if let Ok(Ok(answer)) = tokio::spawn({
            let path = path.to_owned();
            async move { tokio::time::timeout(Duration::from_secs(5), get(address, &path)).await }
        })
        .await
        {
            if answer.status == status {
                return;
            }
            last = Some((answer.status, answer.text()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} at {address} never answered {status}; last: {last:?}");
}
