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
