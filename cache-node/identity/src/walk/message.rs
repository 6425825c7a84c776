//! Chat messages: members noted in any order, written in one.

use super::{Walker, marker};
use crate::json::{Cursor, KeySpace, Value, canonical};
use crate::{NoChain, Out, ToolsOrder};

/// Members of the message under way, each the last of its name.
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    role: Value,
    name: Value,
    tool_call_id: Value,
    reasoning_content: Value,
    reasoning: Value,
    content: Value,
    tool_calls: Value,
    /// The content is an array, whose elements are in the walker's `parts`.
    has_parts: bool,
    /// The tool calls are an array, whose elements are in the walker's `calls`.
    has_calls: bool,
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
        let message = self.read_message(&mut Value::Null)?;
        self.put_message(&message)
    }

    /// Notes the members of the object at the cursor; `kind` becomes its `type`.
    pub(super) fn read_message(&mut self, kind: &mut Value) -> Result<Message, NoChain> {
        self.cursor.at += 1;
        let mut message = Message::default();
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            match key.key(self.cursor.cpu, self.cursor.body, &mut space) {
                b"role" => self.cursor.read(&mut message.role)?,
                b"content" => {
                    message.has_parts = self.cursor.peek() == Some(b'[');
                    if message.has_parts {
                        self.read_parts()?
                    } else {
                        self.cursor.read(&mut message.content)?
                    }
                }
                b"tool_calls" => {
                    message.has_calls = self.cursor.peek() == Some(b'[');
                    if message.has_calls {
                        self.read_calls()?
                    } else {
                        self.cursor.read(&mut message.tool_calls)?
                    }
                }
                b"tool_call_id" => self.cursor.read(&mut message.tool_call_id)?,
                b"name" => self.cursor.read(&mut message.name)?,
                b"reasoning_content" => self.cursor.read(&mut message.reasoning_content)?,
                b"reasoning" => self.cursor.read(&mut message.reasoning)?,
                b"type" => self.cursor.read(kind)?,
                _ => self.cursor.skip()?,
            }
        }
        Ok(message)
    }

    pub(super) fn put_message(&mut self, message: &Message) -> Result<(), NoChain> {
        self.place_tools(message.role);
        self.put_byte(marker::MESSAGE);
        self.put_value(message.role)?;
        self.put_member(marker::NAME, message.name)?;
        self.put_member(marker::CALL_ID, message.tool_call_id)?;
        let reasoning = message.reasoning_content;
        self.put_member(marker::REASONING, if reasoning.is_null() { message.reasoning } else { reasoning })?;
        self.put_byte(marker::CONTENT);
        if message.has_parts {
            self.put_parts()?
        } else {
            self.put_value(message.content)?
        }
        if message.has_calls { self.put_calls() } else { self.put_member(marker::CALL, message.tool_calls) }
    }

    /// Opens the place of the tools if it is in front of this message. It starts on a run border, so that the runs
    /// behind it can be hashed before the tools are known: clients often send them last.
    fn place_tools(&mut self, role: Value) {
        if self.tools_at.is_some() {
            return;
        }
        let Cursor { body, cpu, .. } = self.cursor;
        let mut space = KeySpace::default();
        let by_user = role.text().is_some_and(|role| role.key(cpu, body, &mut space) == b"user");
        self.place_tools_before(by_user);
    }

    /// The same, for a message that is by the user or not.
    pub(super) fn place_tools_before(&mut self, by_user: bool) {
        if self.tools_at.is_some() {
            return;
        }
        match self.hasher.tools_order {
            ToolsOrder::BeforeSystem => self.tools_at = Some(0),
            ToolsOrder::FirstUserTurn => {
                if by_user {
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
