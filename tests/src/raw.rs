//! HTTP/1.x by hand: for what no proper client sends, and for what must be seen on the wire.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::ANSWER_MAX;

/// The head of an answer.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// All of it, as it came, with the empty line.
    pub text: String,
}

impl Head {
    /// All values of a header, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.text.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    /// The first value of a header, or nothing.
    pub fn value(&self, name: &str) -> &str {
        self.values(name).first().copied().unwrap_or_default()
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By FIN: all was said.
    Closed,
    /// By RST or another error.
    Broken,
}

/// A connection.
#[derive(Debug)]
pub struct Raw {
    /// The socket.
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connects.
    ///
    /// # Panics
    /// If the server does not accept.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("a TCP option");
        Self { stream, buffer: Vec::new() }
    }

    /// Connects and writes.
    ///
    /// # Panics
    /// If the server does not accept.
    pub async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::open(address).await;
        raw.write(bytes).await.expect("a fresh connection takes bytes");
        raw
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Reads some more; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        let read = timeout(ANSWER_MAX, self.stream.read_buf(&mut self.buffer)).await;
        Ok(read.expect("bytes or an end in time")? > 0)
    }

    /// Reads a head.
    ///
    /// # Errors
    /// The connection ended before.
    ///
    /// # Panics
    /// If what came is no head, or nothing comes.
    pub async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let bytes: Vec<u8> = self.buffer.drain(..end + 4).collect();
                let text = String::from_utf8(bytes).expect("a head of text");
                let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
                return Ok(Head { status: status.unwrap_or_else(|| panic!("no status in {text:?}")), text });
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads the head and the body of one answer; interim ones are skipped.
    ///
    /// # Errors
    /// The connection ended before the answer did.
    pub async fn answer(&mut self) -> io::Result<(Head, Vec<u8>)> {
        let head = loop {
            let head = self.head().await?;
            if head.status >= 200 {
                break head;
            }
        };
        let body = if head.value("transfer-encoding").eq_ignore_ascii_case("chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk().await? {
                body.extend_from_slice(&chunk);
            }
            body
        } else {
            match head.value("content-length").parse() {
                Ok(length) => self.exactly(length).await?,
                Err(_) => self.to_end().await.0,
            }
        };
        Ok((head, body))
    }

    /// Reads one chunk of a chunked body; none at its end, trailers and all.
    ///
    /// # Errors
    /// The connection ended before.
    ///
    /// # Panics
    /// If the framing is wrong.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = self.line().await?;
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("chunk size {size:?}"));
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(None);
        }
        let mut chunk = self.exactly(size + 2).await?;
        assert_eq!(chunk.split_off(size), b"\r\n");
        Ok(Some(chunk))
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads this many bytes.
    ///
    /// # Errors
    /// The connection ended before.
    pub async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        self.exactly(length).await
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Reads to the end of the connection.
    pub async fn to_end(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            match self.more().await {
                Ok(true) => {}
                Ok(false) => break End::Closed,
                Err(_) => break End::Broken,
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }

    /// Whether nothing comes for `time`: for what must not happen, so a slow machine can only make it pass.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        self.buffer.is_empty() && timeout(time, self.stream.read_buf(&mut self.buffer)).await.is_err()
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Sends a request and reads the one answer.
///
/// # Panics
/// If there is none.
pub async fn ask(address: SocketAddr, bytes: impl AsRef<[u8]>) -> (Head, Vec<u8>) {
    Raw::send(address, bytes).await.answer().await.expect("an answer")
}
