//! Tool definitions: one canonical JSON value, padded to whole runs, remembered by the bytes it was read from.

use std::sync::Arc;

use super::{Walker, marker};
use crate::json::{Span, Value, canonical};
use crate::limits::{MEMO_TOOLS_BYTES_MAX, MEMO_TOOLS_BYTES_MIN};
use crate::memo::{MemoKey, ToolsRuns};
use crate::sink::Sink;
use crate::{NoChain, Out};

impl Walker<'_, '_> {
    /// The runs of the tools; `None` if there are none to render.
    pub(super) fn tools_runs(&mut self) -> Result<Option<Arc<ToolsRuns>>, NoChain> {
        let span = match self.tools {
            Value::Null => return Ok(None),
            Value::Nested(span) | Value::Literal(span) => span,
            // With its quotes, as JSON.
            Value::Text(text) => Span { start: text.start - 1, end: text.end + 1 },
        };
        let raw = span.of(self.cursor.body);
        if is_empty_array(raw) {
            return Ok(None);
        }
        // Spent on a hit too: a chain must not depend on what was seen before.
        self.budget.json(raw.len())?;
        if !(MEMO_TOOLS_BYTES_MIN..=MEMO_TOOLS_BYTES_MAX).contains(&raw.len()) {
            return self.hash_tools(span).map(|runs| Some(Arc::new(runs)));
        }
        let memo = &self.hasher.memo;
        let key = MemoKey { hash: self.hasher.runs.hash_wide(raw), len: raw.len() };
        if let Some(runs) = memo.get(key) {
            return Ok(Some(runs));
        }
        let runs = Arc::new(self.hash_tools(span)?);
        memo.insert(key, Arc::clone(&runs));
        Ok(Some(runs))
    }

    fn hash_tools(&self, span: Span) -> Result<ToolsRuns, NoChain> {
        let mut sink = Sink::new(&self.hasher.runs, span.len());
        sink.put(&[marker::JSON]);
        canonical(self.cursor, span, &mut sink)?;
        sink.pad(marker::PAD);
        let (hashes, bytes) = sink.finish();
        Ok(ToolsRuns { hashes, bytes })
    }
}

fn is_empty_array(raw: &[u8]) -> bool {
    match raw {
        [b'[', inner @ .., b']'] => inner.iter().all(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')),
        _ => false,
    }
}
