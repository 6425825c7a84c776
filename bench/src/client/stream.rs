//! Server-sent events of a streamed chat completion, scanned line by line for three things: first content, usage, end.

use memchr::{memchr, memmem};

/// Longest event line kept, in bytes. A chunk of a chat completion is some hundred bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// State of one answer.
#[derive(Default)]
pub(crate) struct Scanner {
    /// Bytes of a line that has not ended yet.
    partial: Vec<u8>,
    has_content: bool,
    usage: Option<Usage>,
    done: bool,
}

/// Token counts as the engine reports them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
}

#[derive(serde::Deserialize)]
struct Event {
    usage: Option<RawUsage>,
    error: Option<serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct RawUsage {
    prompt_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(serde::Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Scanner {
    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// A sentence, for an error event or a line without end.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(end) = memchr(b'\n', bytes) {
            if self.partial.is_empty() {
                self.line(&bytes[..end])?;
            } else {
                self.partial.extend_from_slice(&bytes[..end]);
                let line = std::mem::take(&mut self.partial);
                self.line(&line)?;
            }
            bytes = &bytes[end + 1..];
        }
        if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(format!("a line of the answer is longer than {LINE_BYTES_MAX} bytes"));
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        if !self.has_content {
            self.has_content = content(data);
        }
        // Most chunks have neither word, or `"usage":null`; only the others are parsed.
        let counts = memmem::find(data, b"\"prompt_tokens\"").is_some();
        if counts || memmem::find(data, b"\"error\"").is_some() {
            self.event(data)?;
        }
        Ok(())
    }

    fn event(&mut self, data: &[u8]) -> Result<(), String> {
        let event: Event = serde_json::from_slice(data)
            .map_err(|error| format!("an event of the answer cannot be read: {error}"))?;
        if let Some(error) = event.error {
            return Err(format!("the answer is an error: {error}"));
        }
        if let Some(usage) = event.usage {
            let details = usage.prompt_tokens_details;
            self.usage = Some(Usage {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: details.and_then(|details| details.cached_tokens).unwrap_or(0),
            });
        }
        Ok(())
    }

    /// Whether any content has arrived.
    pub(crate) fn has_content(&self) -> bool {
        self.has_content
    }

    /// The usage of a complete answer.
    ///
    /// # Errors
    /// A sentence saying what is missing.
    pub(crate) fn finish(self) -> Result<Usage, String> {
        if !self.done {
            return Err("the answer ended before [DONE]".into());
        }
        self.usage.ok_or_else(|| "the answer has no usage record".into())
    }
}

/// Whether a chunk carries text: the opening chunk of a chat answer has the role and an empty content.
fn content(data: &[u8]) -> bool {
    const KEY: &[u8] = b"\"content\":";
    memmem::find_iter(data, KEY).any(|at| {
        let value = data[at + KEY.len()..].trim_ascii_start();
        value.first() == Some(&b'"') && value.get(1) != Some(&b'"')
    })
}

#[cfg(test)]
mod tests;
