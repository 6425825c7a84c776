//! The input of a response: text, or items of which some are messages.

use super::{Walker, marker};
use crate::json::{Cursor, KeySpace, Span, Value};
use crate::{NoChain, Out};

impl Walker<'_, '_> {
    pub(super) fn items(&mut self) -> Result<(), NoChain> {
        let start = self.cursor.at;
        if self.cursor.peek() != Some(b'[') {
            return match self.cursor.value()? {
                Value::Null => Err(NoChain::NoPrompt { key: "input" }),
                text @ Value::Text(_) => self.put_user(text),
                _ => Err(NoChain::Unsupported { what: "input", at: start }),
            };
        }
        self.cursor.at += 1;
        let mut first = true;
        while self.cursor.element(&mut first)? {
            self.budget.item()?;
            self.item()?;
        }
        if first { Err(NoChain::NoPrompt { key: "input" }) } else { Ok(()) }
    }

    /// Bare text is a message of the user.
    fn put_user(&mut self, text: Value) -> Result<(), NoChain> {
        self.place_tools_before(true);
        self.put_byte(marker::MESSAGE);
        self.sink.put(b"user");
        self.put_byte(marker::CONTENT);
        self.put_value(text)
    }

    fn item(&mut self) -> Result<(), NoChain> {
        let start = self.cursor.at;
        if self.cursor.peek() != Some(b'{') {
            return Err(NoChain::Unsupported { what: "item", at: start });
        }
        let mut kind = Value::Null;
        let message = self.read_message(&mut kind)?;
        let Cursor { body, cpu, .. } = self.cursor;
        let mut space = KeySpace::default();
        let is_message = match kind {
            Value::Null => true,
            kind => kind.text().is_some_and(|kind| kind.key(cpu, body, &mut space) == b"message"),
        };
        if is_message {
            return self.put_message(&message);
        }
        // Calls, their outputs, reasoning: what it was matters, and only as a whole.
        self.place_tools_before(false);
        self.put_byte(marker::MESSAGE);
        self.put_json(Value::Nested(Span { start, end: self.cursor.at }))
    }
}
