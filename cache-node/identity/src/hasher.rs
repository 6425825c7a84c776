//! The entry point: settings in, walks out.

use std::fmt;

use crate::memo::ToolsMemo;
use crate::walk::Walker;
use crate::xxh3::RunHasher;
use crate::{Cpu, Envelope, HasherSettings, NoChain, PromptChain, ToolsOrder};

/// The API whose request body is walked: which key holds the prompt, and in what form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Api {
    /// OpenAI chat completions: `messages` and `tools`.
    Chat,
    /// OpenAI completions: `prompt`, as text or token ids.
    Completions,
    /// OpenAI embeddings: `input`, in the forms of a completion's `prompt`.
    Embeddings,
    /// Anthropic messages: `system`, `messages` and `tools`.
    Messages,
    /// OpenAI responses: `instructions`, `input` and `tools`. What `previous_response_id` stands for is not in the body,
    /// so it is not in the chain.
    Responses,
}

/// What one walk over a body gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<'a> {
    /// What routing needs besides the prompt, as far as the body could be read.
    pub envelope: Envelope<'a>,
    /// The prompt chain, or why there is none.
    pub prompt: Result<PromptChain, NoChain>,
}

/// Turns request bodies into envelopes and prompt chains. One per pool, shared by all threads.
pub struct ChainHasher {
    pub(crate) runs: RunHasher,
    pub(crate) tools_order: ToolsOrder,
    pub(crate) memo: ToolsMemo,
}

impl Api {
    /// The member that holds the prompt.
    pub(crate) fn prompt_key(self) -> &'static str {
        match self {
            Self::Chat | Self::Messages => "messages",
            Self::Completions => "prompt",
            Self::Embeddings | Self::Responses => "input",
        }
    }

    /// The member that stands in front of the prompt, where there is one.
    pub(crate) fn front_key(self) -> Option<&'static str> {
        match self {
            Self::Messages => Some("system"),
            Self::Responses => Some("instructions"),
            _ => None,
        }
    }

    /// Whether tools are part of the prompt.
    pub(crate) fn has_tools(self) -> bool {
        matches!(self, Self::Chat | Self::Messages | Self::Responses)
    }
}

impl ChainHasher {
    /// Prepares the hasher and looks up what the CPU can do.
    #[must_use]
    pub fn new(settings: HasherSettings) -> Self {
        let HasherSettings { secret, run_bytes, tools_order, simd } = settings;
        let runs = RunHasher::new(&secret, run_bytes, Cpu::select(simd));
        Self { runs, tools_order, memo: ToolsMemo::default() }
    }

    /// Reads `body` once. Never fails and never panics, whatever the bytes: what cannot be read has no chain.
    ///
    /// `scope` joins the namespace: bodies under different scopes (tenants, say) share no element.
    #[must_use]
    pub fn walk<'a>(&self, api: Api, scope: &[u8], body: &'a [u8]) -> Walk<'a> {
        Walker::new(self, api, body).run(scope)
    }
}

impl fmt::Debug for ChainHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainHasher")
            .field("run_bytes", &self.runs.run_bytes())
            .field("tools_order", &self.tools_order)
            .field("cpu", &self.runs.cpu())
            .finish_non_exhaustive()
    }
}
