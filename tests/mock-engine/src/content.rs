//! The stand-in for a tokenizer: a token is a fixed number of bytes of the rendered prompt (possibly less than
//! one), a block is hashed over its bytes, and the answer's text is made so that its tokens cover its bytes
//! exactly. A later prompt that quotes the answer therefore finds the blocks the answer left in the cache.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::cache::BlockHash;

/// Bytes of one token id of a pre-tokenised prompt (little endian).
pub const TOKEN_ID_BYTES: usize = 4;

/// How a sequence of bytes is cut into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokeniser {
    block_tokens: u32,
    block_bytes: u32,
}

/// The settings contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "a block of {block_tokens} tokens of {bytes_per_token} bytes must be a whole number of bytes, from 1 to \
     {BLOCK_BYTES_MAX}; choose bytes-per-token as a multiple of 1/{block_tokens}"
)]
pub struct UnevenBlock {
    block_tokens: u32,
    bytes_per_token: f64,
}

/// A block of more bytes than this would hide whole prompts from the cache.
pub const BLOCK_BYTES_MAX: u32 = 1 << 20;

impl Tokeniser {
    /// Tokens of `bytes_per_token` bytes, hashed in blocks of `block_tokens`.
    ///
    /// # Errors
    /// [`UnevenBlock`] unless a block covers a whole number of bytes.
    pub fn new(block_tokens: u32, bytes_per_token: f64) -> Result<Self, UnevenBlock> {
        let block_bytes = f64::from(block_tokens) * bytes_per_token;
        let whole = block_bytes.fract() == 0.0 && (1.0..=f64::from(BLOCK_BYTES_MAX)).contains(&block_bytes);
        if !whole {
            return Err(UnevenBlock { block_tokens, bytes_per_token });
        }
        Ok(Self { block_tokens, block_bytes: block_bytes as u32 })
    }

    /// The same blocks for a prompt that came as token ids.
    pub fn for_token_ids(self) -> Self {
        Self { block_tokens: self.block_tokens, block_bytes: self.block_tokens * TOKEN_ID_BYTES as u32 }
    }

    /// Bytes that a full block covers.
    pub fn block_bytes(self) -> usize {
        self.block_bytes as usize
    }

    /// Tokens that `bytes` bytes make, rounded up.
    pub fn tokens_in(self, bytes: usize) -> u64 {
        (bytes as u64 * u64::from(self.block_tokens)).div_ceil(u64::from(self.block_bytes))
    }

    /// Bytes that `tokens` tokens cover, rounded down.
    pub fn bytes_of(self, tokens: u64) -> usize {
        (tokens * u64::from(self.block_bytes) / u64::from(self.block_tokens)) as usize
    }

    /// Hashes of the full blocks of `bytes`, each covering everything before it down to `root`.
    pub fn block_hashes(self, root: u64, bytes: &[u8]) -> Vec<BlockHash> {
        let mut parent = root;
        let blocks = bytes.chunks_exact(self.block_bytes());
        blocks
            .map(|block| {
                parent = xxh3_64_with_seed(block, parent);
                BlockHash(parent)
            })
            .collect()
    }

    /// Stand-in ids of the tokens of `bytes`, below 2^17; equal text gives equal ids.
    pub fn token_ids(self, bytes: &[u8]) -> Vec<u32> {
        const VOCABULARY_BITS: u32 = 17;
        (0..self.tokens_in(bytes.len()))
            .map(|token| {
                let from = self.bytes_of(token).min(bytes.len());
                let to = self.bytes_of(token + 1).clamp(from, bytes.len());
                (xxh3_64(&bytes[from..to]) >> (u64::BITS - VOCABULARY_BITS)) as u32
            })
            .collect()
    }
}

/// Where the hash chains of a namespace start: prompts of different models, adapters or salts share no block.
pub fn chain_root(model: &str, cache_salt: Option<&str>) -> u64 {
    xxh3_64_with_seed(cache_salt.unwrap_or("").as_bytes(), xxh3_64(model.as_bytes()))
}

/// The text of an answer and where each of its tokens ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    text: String,
    tokens: u32,
    tokeniser: Tokeniser,
}

impl Answer {
    /// The answer to a request body: `req-<xxh3 of the body> len-<its bytes> ` and then filler that depends on
    /// the body and `seed` only. ASCII without characters that JSON escapes.
    ///
    /// The text covers its tokens exactly, unless they are too few for the leading name: that is never cut.
    pub fn new(tokeniser: Tokeniser, tokens: u32, body_xxh3: u64, body_bytes: usize, seed: u64) -> Self {
        let bytes = tokeniser.bytes_of(u64::from(tokens));
        let mut text = String::with_capacity(bytes + FILLER_WORD_BYTES);
        write!(text, "req-{body_xxh3:016x} len-{body_bytes} ").expect("writing to a String cannot fail");
        if text.len() < bytes {
            push_filler(&mut text, bytes, body_xxh3 ^ seed);
        }
        Self { text, tokens, tokeniser }
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The part that the model counts: what exceeds the tokens' bytes has no KV.
    pub fn computed_text(&self) -> &str {
        &self.text[..self.cut(self.tokens)]
    }

    /// The text of token `index`, from 0; the last token carries what is left. Empty past the end.
    pub fn token_text(&self, index: u32) -> &str {
        let from = self.cut(index.min(self.tokens));
        match index + 1 {
            next if next < self.tokens => &self.text[from..self.cut(next)],
            next if next == self.tokens => &self.text[from..],
            _ => "",
        }
    }

    fn cut(&self, tokens: u32) -> usize {
        self.tokeniser.bytes_of(u64::from(tokens)).min(self.text.len())
    }
}

/// Seven letters and a space.
const FILLER_WORD_BYTES: usize = 8;

/// Appends words until `text` has `bytes` bytes. The generator is SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", 2014).
fn push_filler(text: &mut String, bytes: usize, seed: u64) {
    let mut state = seed;
    while text.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mut word = (mixed ^ (mixed >> 31)).to_le_bytes().map(|byte| char::from(b'a' + byte % 26));
        word[FILLER_WORD_BYTES - 1] = ' ';
        text.extend(word);
    }
    text.truncate(bytes);
}
