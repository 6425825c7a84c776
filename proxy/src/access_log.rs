//! One log line for each request, when its answer is over: who answered, why it went there, how long it took.
//!
//! The lines have the target `larder_proxy::access_log` and the level `info`. Nothing of a prompt or an answer goes
//! into them, nor the query of a target, in which clients put secrets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::decisions::Record;

/// Longest path that is written: what is longer names nothing we serve.
const PATH_MAX_BYTES: usize = 128;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it was handed to the client's connection.
    Complete,
    /// It broke off on the engine's side.
    Broken,
    /// The client left.
    Aborted,
}

/// What is known of a request when its answer begins.
#[derive(Debug)]
pub struct Entry {
    /// The request's id.
    pub id: HeaderValue,
    /// The method.
    pub method: http::Method,
    /// The path, see [`path`].
    pub path: String,
    /// The pool, or nothing.
    pub pool: String,
    /// The name of the key that was shown.
    pub key: Option<Arc<str>>,
    /// The answer's status.
    pub status: u16,
    /// When the head had come.
    pub arrived: Instant,
    /// Where it went and why, if it went anywhere.
    pub decision: Option<Arc<Record>>,
}

/// The path of a target as it is written: without the query, and cut.
pub fn path(uri: &http::Uri) -> String {
    let path = uri.path();
    let mut end = path.len().min(PATH_MAX_BYTES);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path[..end].to_owned()
}

/// Watches an answer, and writes its line when it goes.
#[derive(Debug)]
pub struct Watch {
    entry: Arc<Entry>,
    bytes: u64,
    first: Option<Duration>,
    end: End,
}

impl Watch {
    /// Watches the answer of `entry`.
    pub fn new(entry: Arc<Entry>) -> Self {
        Self { entry, bytes: 0, first: None, end: End::Aborted }
    }

    /// A piece of the answer goes out.
    pub fn piece(&mut self, bytes: usize) {
        if bytes > 0 && self.first.is_none() {
            self.first = Some(self.entry.arrived.elapsed());
        }
        self.bytes += bytes as u64;
    }

    /// The last piece has gone out.
    pub fn complete(&mut self) {
        if self.end == End::Aborted {
            self.end = End::Complete;
        }
    }

    /// The answer is over.
    pub fn ended(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Entry { id, method, path, pool, key, status, arrived, decision } = &*self.entry;
        let end = match self.end {
            End::Complete => "complete",
            End::Broken => "broken",
            End::Aborted => "aborted",
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let decision = decision.as_deref();
        let (_, cached) = decision.map(Record::actual).unwrap_or_default();
        tracing::info!(
            id = id.to_str().unwrap_or("-"),
            %method,
            path,
            pool,
            key = key.as_deref(),
            endpoint = decision.map(|d| &*d.endpoint),
            reason = decision.map(|d| d.reason),
            prompt_tokens = decision.map(|d| d.prompt_tokens),
            matched_tokens = decision.map(|d| d.matched_tokens),
            cached_tokens = cached,
            status,
            bytes = self.bytes,
            first_byte_ms = self.first.map(ms),
            ms = ms(arrived.elapsed()),
            end,
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_and_has_no_query() {
        assert_eq!(path(&http::Uri::from_static("http://u:p@h/a/b?key=secret")), "/a/b");
        let long = format!("/{}", "x".repeat(1_000)).parse().unwrap();
        assert_eq!(path(&long).len(), PATH_MAX_BYTES);
    }
}
