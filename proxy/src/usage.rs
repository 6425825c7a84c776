//! What the engine says it did, read from the end of its answer.
//!
//! `usage` is the last thing of an unstreamed answer and of the last event before `[DONE]` in a streamed one, so
//! only the tail of the answer is kept, and it is parsed once. The answer itself passes through untouched.

use memchr::memmem;
use serde::Deserialize;

/// Bytes of the answer's end that are kept. `usage` is about 200 bytes; what may follow it (`prompt_logprobs`,
/// `kv_transfer_params`) is short unless asked for, and then the usage is missed and counted as such.
const TAIL_BYTES: usize = 8 << 10;

/// Where a `usage` object begins. Inside a JSON string its quotes would be escaped, so generated text cannot
/// imitate it.
const KEY: &[u8] = b"\"usage\":";

/// Token counts as the engine reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of these, tokens served from the engine's cache; `None` where the engine does not say (vLLM says it with
    /// `--enable-prompt-tokens-details`).
    pub cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<RawDetails>,
}

#[derive(Deserialize)]
struct RawDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// Keeps the tail of an answer.
#[derive(Debug, Default)]
pub struct UsageScanner {
    tail: Vec<u8>,
}

impl UsageScanner {
    /// Takes the next bytes of the answer.
    pub fn feed(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL_BYTES)..];
        // Twice the tail before the old half is dropped, so that each byte is moved at most once more.
        if self.tail.len() + data.len() > 2 * TAIL_BYTES {
            let drop = (self.tail.len() + data.len() - TAIL_BYTES).min(self.tail.len());
            self.tail.drain(..drop);
        }
        self.tail.extend_from_slice(data);
    }

    /// The usage that the answer ended with, if it had one.
    pub fn finish(&self) -> Option<Usage> {
        let mut end = self.tail.len();
        while let Some(at) = memmem::rfind(&self.tail[..end], KEY) {
            let value = self.tail[at + KEY.len()..].trim_ascii_start();
            if value.first() == Some(&b'{') {
                let mut values = serde_json::Deserializer::from_slice(value).into_iter::<RawUsage>();
                if let Some(Ok(raw)) = values.next() {
                    return Some(Usage {
                        prompt_tokens: raw.prompt_tokens,
                        cached_tokens: raw.prompt_tokens_details.and_then(|d| d.cached_tokens),
                    });
                }
            }
            // `null` in the events of a stream before the last, or something else of that name.
            end = at;
        }
        None
    }
}

#[cfg(test)]
mod tests;
