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

/// All spellings: chat, completions and embeddings say `prompt_tokens`, responses `input_tokens`, both of the whole
/// prompt; Anthropic's messages say `input_tokens` of what was not cached, and the rest beside it.
#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    prompt_tokens_details: Option<RawDetails>,
    input_tokens_details: Option<RawDetails>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct RawDetails {
    cached_tokens: Option<u64>,
}

impl RawUsage {
    fn usage(self) -> Option<Usage> {
        let details = self.prompt_tokens_details.or(self.input_tokens_details);
        let cached_tokens = details.and_then(|details| details.cached_tokens);
        if let Some(prompt_tokens) = self.prompt_tokens {
            return Some(Usage { prompt_tokens, cached_tokens });
        }
        let beside = self.cache_read_input_tokens.unwrap_or(0);
        let created = self.cache_creation_input_tokens.unwrap_or(0);
        let prompt_tokens = self.input_tokens?.saturating_add(beside).saturating_add(created);
        Some(Usage { prompt_tokens, cached_tokens: cached_tokens.or(self.cache_read_input_tokens) })
    }
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

    /// The end of the answer so far.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The usage that the answer ended with, if it had one.
    pub fn finish(&self) -> Option<Usage> {
        let mut end = self.tail.len();
        while let Some(at) = memmem::rfind(&self.tail[..end], KEY) {
            let value = self.tail[at + KEY.len()..].trim_ascii_start();
            if value.first() == Some(&b'{') {
                let mut values = serde_json::Deserializer::from_slice(value).into_iter::<RawUsage>();
                // Anthropic's last event may tell only what was generated; an earlier one tells the prompt.
                if let Some(Ok(raw)) = values.next()
                    && let Some(usage) = raw.usage()
                {
                    return Some(usage);
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
