//! From run hashes to chain elements.

use super::Walker;
use crate::{NoChain, PromptChain, ToolsOrder};

/// Elements that may be reserved and not used before the vector is cut to size: a body full of media reserves for
/// bytes that are hashed to a few.
const SPARE_ELEMENTS_MAX: usize = 64;

impl Walker<'_, '_> {
    /// Puts the tools in their place, links the runs and joins the namespace.
    ///
    /// All of it is left to the end because keys come in any order, and costs a few nanoseconds a run.
    pub(super) fn finish(mut self, scope: &[u8]) -> Result<PromptChain, NoChain> {
        self.prompt?;
        let namespace = self.namespace_hash(scope)?;
        let tools = if self.api.has_tools() { self.tools_runs()? } else { None };
        let front = self.front_runs()?;
        let (mut elements, mut bytes) = self.sink.finish();
        let mut tools_at = self.tools_at;
        if let Some((hashes, front_bytes)) = front {
            // Tools that stand before the system prompt stand before it here too.
            if self.hasher.tools_order == ToolsOrder::FirstUserTurn {
                tools_at = tools_at.map(|at| at + hashes.len());
            }
            elements.splice(0..0, hashes);
            bytes += front_bytes;
        }
        if let (Some(at), Some(tools)) = (tools_at, tools) {
            elements.splice(at..at, tools.hashes.iter().copied());
            bytes += tools.bytes;
        }
        let runs = &self.hasher.runs;
        let mut covered = 0;
        for element in &mut elements {
            covered = runs.link(covered, *element);
            *element = covered ^ namespace;
        }
        if elements.capacity() - elements.len() > elements.len() + SPARE_ELEMENTS_MAX {
            elements.shrink_to_fit();
        }
        Ok(PromptChain { elements, bytes, run_bytes: runs.run_bytes(), media: self.media, namespace })
    }
}
