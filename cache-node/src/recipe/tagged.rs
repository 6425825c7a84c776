//! Prompts known by their tag: the proxy's half and the engine's half, until both are there, and then for as long as
//! more keys of the same prompt may come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use larder_protocol::{BlockKey, StoreNamespace, Tag};

use super::{KEY_BYTES, TaggedKeys};

/// Rough cost of a tagged prompt without its points and keys, in bytes.
const PROMPT_BYTES: usize = 256;

/// A prompt as the proxy knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptChain {
    /// One point for each whole run of the prompt's canonical bytes, each naming all runs up to it.
    pub points: Arc<[u64]>,
    /// Bytes of a run; at least 1.
    pub run_bytes: u32,
    /// Bytes of the whole canonical prompt.
    pub prompt_bytes: u64,
}

/// A part of a prompt as the engine knows it.
#[derive(Debug, Clone, Copy)]
pub struct PromptKeys<'a> {
    /// The engine's namespace.
    pub namespace: StoreNamespace,
    /// Tokens of one chunk.
    pub tokens_per_chunk: u32,
    /// Chunks of the prompt, not necessarily from its beginning.
    pub keys: &'a [BlockKey],
    /// How many tokens end with each.
    pub end_tokens: &'a [u32],
    /// Tokens of the whole prompt, if the engine said.
    pub prompt_tokens: Option<u32>,
}

#[derive(Debug, Default)]
struct Tagged {
    chain: Option<PromptChain>,
    tenant: Option<Box<str>>,
    namespace: Option<StoreNamespace>,
    tokens_per_chunk: u32,
    keys: BTreeMap<u32, BlockKey>,
    prompt_tokens: Option<u32>,
    used: u64,
    bytes: usize,
}

/// Tagged prompts within a budget of bytes; the least recently touched go first.
#[derive(Debug)]
pub(super) struct TaggedPrompts {
    bytes_max: usize,
    bytes: usize,
    prompts: HashMap<Tag, Tagged>,
    order: BTreeMap<u64, Tag>,
    /// Starts at 1: 0 is a prompt not yet in `order`.
    next: u64,
}

impl TaggedPrompts {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, prompts: HashMap::new(), order: BTreeMap::new(), next: 1 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn note_tenant(&mut self, tag: Tag, tenant: Option<&str>) {
        if let Some(tenant) = tenant {
            self.touch(tag).tenant = Some(tenant.into());
        }
    }

    pub(super) fn tenant(&self, tag: Tag) -> Option<&str> {
        self.prompts.get(&tag)?.tenant.as_deref()
    }

    /// Returns both halves if the other one is there already. A tag is used for one prompt: a second chain for it is
    /// taken instead of the first.
    pub(super) fn note_chain(&mut self, tag: Tag, chain: &PromptChain) -> Option<(PromptChain, TaggedKeys)> {
        let tagged = self.touch(tag);
        let changed = tagged.chain.as_ref() != Some(chain);
        tagged.chain = Some(chain.clone());
        let both = if changed { tagged.both() } else { None };
        self.weigh(tag);
        both
    }

    /// Returns both halves if the other one is there and these keys add to what was known.
    pub(super) fn note_keys(&mut self, tag: Tag, part: &PromptKeys<'_>) -> Option<(PromptChain, TaggedKeys)> {
        let tagged = self.touch(tag);
        if tagged.namespace != Some(part.namespace) {
            tagged.namespace = Some(part.namespace);
            tagged.tokens_per_chunk = part.tokens_per_chunk;
            tagged.keys.clear();
        }
        tagged.prompt_tokens = part.prompt_tokens.or(tagged.prompt_tokens);
        // Chunks that reach beyond the prompt belong to the answer, which the chain does not cover.
        let within = tagged.prompt_tokens.unwrap_or(u32::MAX);
        let mut grown = false;
        for (end, key) in part.end_tokens.iter().zip(part.keys).filter(|(end, _)| **end <= within) {
            grown |= tagged.keys.insert(*end, key.clone()).as_ref() != Some(key);
        }
        let both = if grown { tagged.both() } else { None };
        self.weigh(tag);
        both
    }

    fn touch(&mut self, tag: Tag) -> &mut Tagged {
        let used = self.next;
        self.next += 1;
        let tagged = self.prompts.entry(tag).or_default();
        self.order.remove(&tagged.used);
        tagged.used = used;
        self.order.insert(used, tag);
        tagged
    }

    /// Counts a prompt's bytes anew, and lets the oldest go while all are too many.
    fn weigh(&mut self, tag: Tag) {
        if let Some(tagged) = self.prompts.get_mut(&tag) {
            let points = tagged.chain.as_ref().map_or(0, |chain| chain.points.len());
            let bytes = PROMPT_BYTES + points * size_of::<u64>() + tagged.keys.len() * KEY_BYTES;
            self.bytes = self.bytes - tagged.bytes + bytes;
            tagged.bytes = bytes;
        }
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            if let Some(gone) = self.prompts.remove(&oldest) {
                self.bytes -= gone.bytes;
            }
        }
    }
}

impl Tagged {
    fn both(&self) -> Option<(PromptChain, TaggedKeys)> {
        let chain = self.chain.clone()?;
        let step = self.tokens_per_chunk;
        let expected = (1_u32..).map(|index| index.saturating_mul(step));
        let whole = self.keys.iter().zip(expected).take_while(|((end, _), expected)| *end == expected);
        let list = whole.map(|((end, key), _)| (*end, key.clone())).collect();
        Some((chain, TaggedKeys { namespace: self.namespace?, list, prompt_tokens: self.prompt_tokens }))
    }
}
