//! What APIs keep beside the messages and templates render in front of them: `system`, `instructions`.

use super::{Walker, marker};
use crate::json::Value;
use crate::sink::Sink;
use crate::{NoChain, Out};

impl Walker<'_, '_> {
    /// The runs of the front and its length; `None` if there is none. It is a system message padded to whole runs, so
    /// that the messages behind it can be hashed before it is known: clients send it first or last.
    pub(super) fn front_runs(&mut self) -> Result<Option<(Vec<u64>, u64)>, NoChain> {
        let front = self.front;
        if front.is_null() {
            return Ok(None);
        }
        let messages = std::mem::replace(&mut self.sink, Sink::new(&self.hasher.runs, 0));
        let put = self.put_front(front);
        self.sink.pad(marker::PAD);
        let front = std::mem::replace(&mut self.sink, messages);
        put.map(|()| Some(front.finish()))
    }

    fn put_front(&mut self, front: Value) -> Result<(), NoChain> {
        self.put_byte(marker::MESSAGE);
        self.sink.put(b"system");
        self.put_byte(marker::CONTENT);
        match front {
            Value::Nested(span) if self.cursor.body[span.start] == b'[' => {
                self.cursor.at = span.start;
                self.read_parts()?;
                self.put_parts()
            }
            value => self.put_value(value),
        }
    }
}
