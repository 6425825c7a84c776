//! The prompt chain, and the reasons for not having one.

use crate::RunBytes;

/// Ordered hashes of a prompt's runs, each covering everything before it: two prompts share as many leading elements
/// as their canonical bytes share whole runs, if their namespaces are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptChain {
    pub(crate) elements: Vec<u64>,
    pub(crate) bytes: u64,
    pub(crate) run_bytes: RunBytes,
    pub(crate) media: u32,
    pub(crate) namespace: u64,
}

impl PromptChain {
    /// Element `i` stands for canonical bytes `0..(i + 1) * run_bytes`. Empty if the prompt is shorter than a run.
    #[must_use]
    pub fn elements(&self) -> &[u64] {
        &self.elements
    }

    /// The elements, without a copy.
    #[must_use]
    pub fn into_elements(self) -> Vec<u64> {
        self.elements
    }

    /// Canonical bytes of the prompt, with the tail that is shorter than a run: at least
    /// `elements().len() * run_bytes`, and at most that plus one run less one. Escapes count as they are written in
    /// canonical form, a medium counts a few bytes whatever its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The length of a run.
    #[must_use]
    pub fn run_bytes(&self) -> RunBytes {
        self.run_bytes
    }

    /// Images, audio, video and file parts: their tokens do not show in [`bytes`](Self::bytes).
    #[must_use]
    pub fn media(&self) -> u32 {
        self.media
    }

    /// Hash of the namespace, already part of every element. For a choice without shared state when the prompt is
    /// shorter than a run.
    #[must_use]
    pub fn namespace(&self) -> u64 {
        self.namespace
    }
}

/// Why a body has no prompt chain. It is routed without affinity; the engine answers for what is wrong with it.
///
/// `at` is a byte offset in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoChain {
    /// The body is not one JSON object in UTF-8, as far as the walk looks (it is no full validator).
    #[error("body is not valid JSON at byte {at}")]
    NotJson {
        /// Where the walk stopped.
        at: usize,
    },
    /// The prompt is absent, null or an empty array.
    #[error("body has no `{key}`")]
    NoPrompt {
        /// The key that holds the prompt of this API.
        key: &'static str,
    },
    /// The prompt has a type that this definition gives no canonical form.
    #[error("`{what}` at byte {at} has a type without canonical form")]
    Unsupported {
        /// The element in question.
        what: &'static str,
        /// Where it starts.
        at: usize,
    },
    /// Free JSON nests deeper than [`JSON_DEPTH_MAX`](crate::limits::JSON_DEPTH_MAX).
    #[error("JSON at byte {at} nests deeper than {limit}")]
    TooDeep {
        /// The bracket that is one too many.
        at: usize,
        /// The limit.
        limit: u32,
    },
    /// More of something than a body may make us canonicalise; see [`limits`](crate::limits).
    #[error("more than {limit} {what}")]
    TooLarge {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}
