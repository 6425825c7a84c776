//! Block ids become text: the same id of the same scope is always the same bytes, and a prompt is its blocks in order.
//!
//! A public trace says which blocks two prompts share, not what is written in them. Each block is therefore exactly
//! `block_tokens * bytes_per_token` bytes of code-like ASCII that begin with a name made from the id's hash, so that
//! two prompts share as much text as they share blocks, and not a word more. The prompt is cut into chat messages at
//! fixed block positions: a later turn repeats the earlier messages byte for byte and continues the last one.

use crate::trace::{Request, Session};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of prompt text in one chat message, about. Small enough that a prompt looks like a conversation, large enough
/// that the chat template's own text (about 30 bytes a message) stays below one percent of the prompt.
const MESSAGE_BYTES: u64 = 4096;
/// Shortest block text. Below it a name has fewer than 24 bits and unrelated blocks would often be equal.
pub const BLOCK_BYTES_MIN: u64 = 4;
/// Bytes that a chat template may add to one message, generously; used to size an engine, not to build text.
pub const TEMPLATE_BYTES_PER_MESSAGE: u64 = 64;

/// What a block says after its name, starting anywhere in it. No quote, backslash or control character: one byte of
/// the body is one byte of the prompt.
const CODE: &[u8] = b" = read_config(path, limit=64); if (state.ready && queue.len() > 0) { return next(queue, now); } \
    for item in items: total += item.cost * weight; # keep the order of arrival; \
    fn merge(left: &Node, right: &Node) -> Option<Node> { let depth = left.depth.max(right.depth) + 1; None } \
    self.assertEqual(result, expected); class Session(Base): timeout = 30; retries = 3; \
    GET /v1/items?offset=120 200 OK 14 ms; commit 4f1c: fix the border case of an empty list; ";
/// 64 characters for names: six bits each.
const NAME: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$";
/// Characters of a 64-bit name.
const NAME_BYTES: usize = 11;

/// Makes the text of one replay.
#[derive(Clone, Debug)]
pub struct Prose {
    seed: u64,
    block_tokens: u64,
    block_bytes: u64,
    bytes_per_token: f64,
    message_blocks: u64,
}

impl Prose {
    /// Text for blocks of `block_tokens` tokens at `bytes_per_token`; `seed` varies the words.
    ///
    /// # Errors
    /// A sentence, if a block would be shorter than [`BLOCK_BYTES_MIN`].
    pub fn new(seed: u64, block_tokens: u64, bytes_per_token: f64) -> Result<Self, String> {
        let block_bytes = (block_tokens as f64 * bytes_per_token).round() as u64;
        if block_bytes < BLOCK_BYTES_MIN {
            return Err(format!(
                "{bytes_per_token} bytes per token make a block of {block_tokens} tokens {block_bytes} bytes long; \
                 at least {BLOCK_BYTES_MIN} are needed to tell blocks apart"
            ));
        }
        let message_blocks = (MESSAGE_BYTES / block_bytes).max(1);
        Ok(Self { seed, block_tokens, block_bytes, bytes_per_token, message_blocks })
    }

    /// Bytes of prompt text for `tokens` tokens.
    #[must_use]
    pub fn bytes(&self, tokens: u64) -> u64 {
        let rest = (tokens % self.block_tokens) as f64 * self.bytes_per_token;
        tokens / self.block_tokens * self.block_bytes + rest.round() as u64
    }

    /// Chat messages that `tokens` tokens are cut into.
    #[must_use]
    pub fn messages(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.block_tokens * self.message_blocks).max(1)
    }

    /// The body of a streamed chat request for request number `index` of `session`.
    #[must_use]
    pub fn body(&self, session: &Session, index: usize, model: &str, output_tokens: u64) -> Vec<u8> {
        let request = &session.requests[index];
        let bytes = self.bytes(request.input_tokens) as usize;
        let messages = self.messages(request.input_tokens) as usize;
        let mut body = Vec::with_capacity(bytes + messages * 40 + 256);
        body.extend_from_slice(format!("{{\"model\":\"{model}\",\"messages\":[").as_bytes());
        self.write_messages(session, index, request, &mut body);
        body.extend_from_slice(
            format!(
                "],\"max_tokens\":{output_tokens},\"ignore_eos\":true,\"temperature\":0,\"stream\":true,\
                 \"stream_options\":{{\"include_usage\":true}}}}"
            )
            .as_bytes(),
        );
        body
    }

    fn write_messages(&self, session: &Session, index: usize, request: &Request, body: &mut Vec<u8>) {
        let scope = xxh3_64_with_seed(session.scope.as_bytes(), self.seed);
        // The tokens after the last known block are this request's own.
        let own = xxh3_64_with_seed(session.id.as_bytes(), self.seed ^ (index as u64 + 1));
        let mut ids = request.blocks.iter();
        let mut left = self.bytes(request.input_tokens);
        let mut position = 0;
        while left > 0 {
            if position % self.message_blocks == 0 {
                body.extend_from_slice(message_start(position / self.message_blocks));
            }
            let take = left.min(self.block_bytes) as usize;
            match ids.next() {
                Some(id) => write_block(scope, id, take, self.block_bytes as usize, body),
                None => write_block(own, position, take, self.block_bytes as usize, body),
            }
            left -= take as u64;
            position += 1;
            if left == 0 || position % self.message_blocks == 0 {
                body.extend_from_slice(b"\"}");
            }
        }
    }
}

/// The role comes from the message's position alone, so that a later turn repeats it.
fn message_start(message: u64) -> &'static [u8] {
    match message {
        0 => b"{\"role\":\"system\",\"content\":\"",
        n if n % 2 == 1 => b",{\"role\":\"user\",\"content\":\"",
        _ => b",{\"role\":\"assistant\",\"content\":\"",
    }
}

/// The first `take` of the `block_bytes` bytes of a block.
fn write_block(scope: u64, id: u64, take: usize, block_bytes: usize, out: &mut Vec<u8>) {
    let hash = xxh3_64_with_seed(&id.to_le_bytes(), scope);
    let mut name = [0u8; NAME_BYTES];
    for (at, letter) in name.iter_mut().enumerate() {
        *letter = NAME[(hash >> (6 * at)) as usize & 63];
    }
    let end = out.len() + take;
    out.extend_from_slice(&name[..take.min(NAME_BYTES).min(block_bytes)]);
    // A long block goes around CODE more than once; each start depends on the hash only.
    let mut from = hash as usize % CODE.len();
    while out.len() < end {
        let piece = (end - out.len()).min(CODE.len() - from);
        out.extend_from_slice(&CODE[from..from + piece]);
        from = 0;
    }
}

#[cfg(test)]
mod tests;
