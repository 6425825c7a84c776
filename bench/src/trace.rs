//! Public serving traces: what they say about requests, and nothing about how they are replayed.

pub mod agentic;
pub mod blocks;
pub mod lines;
pub mod mooncake;

use crate::error::Error;
pub use blocks::Blocks;
use std::collections::HashMap;
use std::path::Path;

/// Longest line accepted, in bytes of unpacked text. The longest session of the public agentic trace is 150 KB
/// range-coded and about 25 MB with every block id written out.
pub const LINE_BYTES_MAX: usize = 256 << 20;
/// Most requests held in memory; the public traces have 39,000 at most. One takes about 150 bytes.
pub const REQUESTS_MAX: usize = 10_000_000;
/// Largest input of one request, in tokens: above it the line is taken for damaged. Served contexts end near 10 M.
pub const INPUT_TOKENS_MAX: u64 = 64_000_000;

/// The two shapes of public traces that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Coding-agent sessions, one JSON a line (github.com/callanjfox/kv-cache-tester), replayed as a closed loop.
    Agentic,
    /// Requests with arrival times (github.com/kvcache-ai/Mooncake), replayed as an open loop.
    Mooncake,
}

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Open loop: arrival in seconds after the trace's start. Closed loop: 0, not used.
    pub at_s: f64,
    /// Closed loop: seconds between the previous answer of the session and this request, as recorded (uncapped).
    pub think_s: f64,
    /// Length of the prompt in tokens.
    pub input_tokens: u64,
    /// Length of the answer in tokens.
    pub output_tokens: u64,
    /// Prefix blocks of the prompt, in order. The last one may be cut by `input_tokens`.
    pub blocks: Blocks,
}

/// Requests that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Sent as the session header. Empty: the trace knows no sessions and no header is sent.
    pub id: String,
    /// Block ids mean the same content only within one scope. Empty: shared by the whole trace.
    pub scope: String,
    /// In order.
    pub requests: Vec<Request>,
}

/// A whole trace. Agentic: many sessions. Mooncake: one nameless session with all requests by arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The file's name without folders.
    pub name: String,
    /// How it is replayed.
    pub format: Format,
    /// Tokens of one block of the trace.
    pub block_tokens: u64,
    /// The content.
    pub sessions: Vec<Session>,
}

impl Trace {
    /// Reads `path` (plain, `.xz` or `.zst`; for agentic traces also a folder of `.json` files).
    /// `mooncake_block_tokens` is the block size of a Mooncake trace, which does not state it.
    ///
    /// # Errors
    /// [`Error::Usage`] if the file is not there, [`Error::Trace`] with the line number if it is malformed.
    pub fn read(path: &Path, format: Format, mooncake_block_tokens: u64) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::Usage(format!("--trace {}: no such file", path.display())));
        }
        let mut trace = match format {
            Format::Agentic => agentic::read(path)?,
            Format::Mooncake => mooncake::read(path, mooncake_block_tokens)?,
        };
        trace.name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if trace.requests().next().is_none() {
            return Err(Error::Trace {
                path: path.into(),
                line: 0,
                reason: "the trace has no requests".into(),
            });
        }
        Ok(trace)
    }

    /// All requests.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.sessions.iter().flat_map(|session| &session.requests)
    }

    /// Number of distinct blocks, each counted once in its scope.
    #[must_use]
    pub fn unique_blocks(&self) -> u64 {
        let mut scopes: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
        for session in &self.sessions {
            let ranges = scopes.entry(&session.scope).or_default();
            for request in &session.requests {
                ranges.extend(request.blocks.ranges());
            }
            blocks::merge(ranges);
        }
        scopes.values().flatten().map(|&(_, len)| len).sum()
    }
}

#[cfg(test)]
mod tests;
