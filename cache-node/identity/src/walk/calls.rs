//! Tool calls of an assistant message.

use super::{Walker, marker};
use crate::NoChain;
use crate::json::{KeySpace, Span, Value};

/// A tool call, as it is going to be written.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Function { id: Value, name: Value, arguments: Value },
    Json(Value),
}

impl Walker<'_, '_> {
    /// Notes the elements of the array at the cursor.
    #[inline(never)]
    pub(super) fn read_calls(&mut self) -> Result<(), NoChain> {
        self.calls.clear();
        self.cursor.at += 1;
        let mut first = true;
        while self.cursor.element(&mut first)? {
            self.budget.item()?;
            let call = match self.cursor.peek() {
                Some(b'{') => self.read_call()?,
                _ => Call::Json(self.cursor.value()?),
            };
            self.calls.push(call);
        }
        Ok(())
    }

    fn read_call(&mut self) -> Result<Call, NoChain> {
        let start = self.cursor.at;
        self.cursor.at += 1;
        let (mut id, mut function) = (Value::Null, None);
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            match key.key(self.cursor.cpu, self.cursor.body, &mut space) {
                b"id" => self.cursor.read(&mut id)?,
                b"function" => function = self.function()?,
                _ => self.cursor.skip()?,
            }
        }
        let whole = Value::Nested(Span { start, end: self.cursor.at });
        Ok(match function {
            Some((name, arguments)) => Call::Function { id, name, arguments },
            None => Call::Json(whole),
        })
    }

    /// Name and arguments; `None` if the value is no object.
    fn function(&mut self) -> Result<Option<(Value, Value)>, NoChain> {
        if self.cursor.peek() != Some(b'{') {
            return self.cursor.skip().map(|()| None);
        }
        self.cursor.at += 1;
        let (mut name, mut arguments) = (Value::Null, Value::Null);
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            match key.key(self.cursor.cpu, self.cursor.body, &mut space) {
                b"name" => self.cursor.read(&mut name)?,
                b"arguments" => self.cursor.read(&mut arguments)?,
                _ => self.cursor.skip()?,
            }
        }
        Ok(Some((name, arguments)))
    }

    pub(super) fn put_calls(&mut self) -> Result<(), NoChain> {
        for index in 0..self.calls.len() {
            self.put_byte(marker::CALL);
            match self.calls[index] {
                Call::Function { id, name, arguments } => {
                    self.put_value(name)?;
                    self.put_byte(marker::ARGUMENTS);
                    self.put_value(arguments)?;
                    self.put_member(marker::CALL_ID, id)?;
                }
                Call::Json(value) => self.put_json(value)?,
            }
        }
        Ok(())
    }
}
