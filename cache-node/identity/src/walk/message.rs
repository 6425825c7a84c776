//! Chat messages: members noted in any order, written in one.

use super::{Walker, marker};
use crate::json::{Cursor, KeySpace, Value, canonical};
use crate::{NoChain, Out, ToolsOrder};

/// Members of the message under way, each the last of its name.
#[derive(Clone, Copy, Default)]
struct Message {
    role: Value,
    name: Value,
    tool_call_id: Value,
    reasoning_content: Value,
    reasoning: Value,
    content: Content,
    calls: Content,
}

/// A member that is an array of elements with a form of their own, which are in the walker's list; or anything else.
#[derive(Clone, Copy)]
enum Content {
    Value(Value),
    Listed,
}

impl Default for Content {
    fn default() -> Self {
        Self::Value(Value::Null)
    }
}

impl Walker<'_, '_> {
    pub(super) fn messages(&mut self) -> Result<(), NoChain> {
        let start = self.cursor.at;
        if self.cursor.peek() != Some(b'[') {
            return match self.cursor.value()? {
                Value::Null => Err(NoChain::NoPrompt { key: "messages" }),
                _ => Err(NoChain::Unsupported { what: "messages", at: start }),
            };
        }
        self.cursor.at += 1;
        let mut first = true;
        while self.cursor.element(&mut first)? {
            self.budget.item()?;
            self.message()?;
        }
        if first { Err(NoChain::NoPrompt { key: "messages" }) } else { Ok(()) }
    }

    fn message(&mut self) -> Result<(), NoChain> {
        if self.cursor.peek() != Some(b'{') {
            return Err(NoChain::Unsupported { what: "message", at: self.cursor.at });
        }
        self.cursor.at += 1;
        self.parts.clear();
        self.calls.clear();
        let mut message = Message::default();
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            match key.key(self.cursor.cpu, self.cursor.body, &mut space) {
                b"role" => message.role = self.cursor.value()?,
                b"content" => {
                    self.parts.clear();
                    let listed = self.cursor.peek() == Some(b'[');
                    message.content = if listed { self.list_parts()? } else { self.plain()? };
                }
                b"tool_calls" => {
                    self.calls.clear();
                    let listed = self.cursor.peek() == Some(b'[');
                    message.calls = if listed { self.list_calls()? } else { self.plain()? };
                }
                b"tool_call_id" => message.tool_call_id = self.cursor.value()?,
                b"name" => message.name = self.cursor.value()?,
                b"reasoning_content" => message.reasoning_content = self.cursor.value()?,
                b"reasoning" => message.reasoning = self.cursor.value()?,
                _ => self.cursor.skip()?,
            }
        }
        self.put_message(&message)
    }

    fn plain(&mut self) -> Result<Content, NoChain> {
        self.cursor.value().map(Content::Value)
    }

    fn list_parts(&mut self) -> Result<Content, NoChain> {
        self.read_parts().map(|()| Content::Listed)
    }

    fn list_calls(&mut self) -> Result<Content, NoChain> {
        self.read_calls().map(|()| Content::Listed)
    }

    fn put_message(&mut self, message: &Message) -> Result<(), NoChain> {
        self.place_tools(message.role);
        self.put_byte(marker::MESSAGE);
        self.put_value(message.role)?;
        self.put_member(marker::NAME, message.name)?;
        self.put_member(marker::CALL_ID, message.tool_call_id)?;
        let reasoning = message.reasoning_content;
        self.put_member(marker::REASONING, if reasoning.is_null() { message.reasoning } else { reasoning })?;
        self.put_byte(marker::CONTENT);
        match message.content {
            Content::Value(value) => self.put_value(value)?,
            Content::Listed => self.put_parts()?,
        }
        match message.calls {
            Content::Value(value) => self.put_member(marker::CALL, value),
            Content::Listed => self.put_calls(),
        }
    }

    /// Opens the place of the tools if it is in front of this message. It starts on a run border, so that the runs
    /// behind it can be hashed before the tools are known: clients often send them last.
    fn place_tools(&mut self, role: Value) {
        if self.tools_at.is_some() {
            return;
        }
        match self.hasher.tools_order {
            ToolsOrder::BeforeSystem => self.tools_at = Some(0),
            ToolsOrder::FirstUserTurn => {
                let Cursor { body, cpu, .. } = self.cursor;
                let mut space = KeySpace::default();
                if role.text().is_some_and(|role| role.key(cpu, body, &mut space) == b"user") {
                    self.sink.pad(marker::PAD);
                    self.tools_at = Some(self.sink.runs());
                }
            }
        }
    }

    /// Writes a member that is left out when it is null.
    pub(super) fn put_member(&mut self, marker: u8, value: Value) -> Result<(), NoChain> {
        if value.is_null() {
            return Ok(());
        }
        self.put_byte(marker);
        self.put_value(value)
    }

    /// Writes text bare, anything else as JSON behind its marker, and null as nothing.
    pub(super) fn put_value(&mut self, value: Value) -> Result<(), NoChain> {
        let Cursor { body, cpu, .. } = self.cursor;
        let span = match value {
            Value::Null => return Ok(()),
            Value::Text(text) => return text.put(cpu, body, &mut self.sink),
            Value::Literal(span) | Value::Nested(span) => span,
        };
        self.budget.json(span.len())?;
        self.put_byte(marker::JSON);
        canonical(self.cursor, span, &mut self.sink)
    }

    /// Writes any value as JSON behind its marker, strings with their quotes.
    pub(super) fn put_json(&mut self, value: Value) -> Result<(), NoChain> {
        match value {
            Value::Null => {
                self.put_byte(marker::JSON);
                self.sink.put(b"null");
            }
            Value::Text(text) => {
                let Cursor { body, cpu, .. } = self.cursor;
                self.sink.put(&[marker::JSON, b'"']);
                text.put(cpu, body, &mut self.sink)?;
                self.put_byte(b'"');
            }
            Value::Literal(_) | Value::Nested(_) => return self.put_value(value),
        }
        Ok(())
    }
}
