//! What keeps identities apart besides the prompt.

use super::{Walker, marker};
use crate::json::{Cursor, Text, Value, canonical};
use crate::{NoChain, Out};

/// The members that are part of the namespace.
#[derive(Clone, Copy, Default)]
pub(super) struct Namespace {
    pub(super) model: Value,
    pub(super) cache_salt: Value,
    pub(super) chat_template: Value,
    pub(super) chat_template_kwargs: Value,
    pub(super) reasoning_effort: Value,
    pub(super) documents: Value,
}

impl Walker<'_, '_> {
    /// Starts from the hash of `scope`; each member that is present links its number, then its hash.
    pub(super) fn namespace_hash(&mut self, scope: &[u8]) -> Result<u64, NoChain> {
        let Namespace { model, cache_salt, chat_template, chat_template_kwargs, reasoning_effort, documents } =
            self.namespace;
        let members = [model, cache_salt, chat_template, chat_template_kwargs, reasoning_effort, documents];
        let runs = &self.hasher.runs;
        let mut namespace = runs.hash(scope);
        for (number, member) in (1..).zip(members) {
            if !member.is_null() {
                namespace = runs.link(namespace, number);
                namespace = runs.link(namespace, self.hash_value(member)?);
            }
        }
        Ok(namespace)
    }

    /// The hash of a value's canonical form: text bare, anything else as JSON behind its marker.
    fn hash_value(&mut self, value: Value) -> Result<u64, NoChain> {
        let span = match value {
            Value::Text(text) => return self.hash_text(text),
            Value::Literal(span) | Value::Nested(span) => span,
            Value::Null => return Ok(0),
        };
        self.budget.json(span.len())?;
        let mut stream = self.hasher.runs.stream();
        stream.put(&[marker::JSON]);
        canonical(self.cursor, span, &mut stream)?;
        Ok(stream.finish())
    }

    /// The hash of a text's canonical spelling, in place where it lies canonical in the body.
    pub(super) fn hash_text(&self, text: Text) -> Result<u64, NoChain> {
        let Cursor { body, cpu, .. } = self.cursor;
        if text.special == text.end {
            return Ok(self.hasher.runs.hash(text.raw(body)));
        }
        let mut stream = self.hasher.runs.stream();
        text.put(cpu, body, &mut stream)?;
        Ok(stream.finish())
    }
}
