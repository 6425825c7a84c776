//! Completion prompts: text, token ids, or a batch of either.

use super::{Walker, marker};
use crate::json::{Cursor, Value};
use crate::limits::TOKENS_MAX;
use crate::{NoChain, Out};

/// Stands between the token prompts of a batch. It is no token id, so the words stay unambiguous.
const NEXT_PROMPT: u32 = u32::MAX;

impl Walker<'_, '_> {
    pub(super) fn completion(&mut self) -> Result<(), NoChain> {
        let mut ahead = self.cursor;
        match ahead.peek() {
            Some(b'n') => return ahead.value().and(Err(self.no_prompt())),
            Some(b'[') => ahead.at += 1,
            _ => return self.text_prompt(),
        }
        ahead.blank();
        match ahead.peek() {
            Some(b']') => Err(self.no_prompt()),
            Some(b'"') => self.batch(|walker, _| walker.text_prompt()),
            Some(b'[') => {
                self.open_tokens();
                let mut left = TOKENS_MAX;
                self.batch(|walker, index| {
                    if index > 0 {
                        walker.sink.put(&NEXT_PROMPT.to_le_bytes());
                    }
                    walker.tokens(&mut left)
                })
            }
            _ => {
                self.open_tokens();
                self.tokens(&mut { TOKENS_MAX })
            }
        }
    }

    fn no_prompt(&self) -> NoChain {
        NoChain::NoPrompt { key: self.api.prompt_key() }
    }

    fn batch(
        &mut self,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), NoChain>,
    ) -> Result<(), NoChain> {
        self.cursor.at += 1;
        let mut first = true;
        let mut index = 0;
        while self.cursor.element(&mut first)? {
            self.budget.item()?;
            each(self, index)?;
            index += 1;
        }
        Ok(())
    }

    fn text_prompt(&mut self) -> Result<(), NoChain> {
        let at = self.cursor.at;
        let value @ Value::Text(_) = self.cursor.value()? else {
            return Err(NoChain::Unsupported { what: "prompt", at });
        };
        self.put_byte(marker::CONTENT);
        self.put_value(value)
    }

    fn open_tokens(&mut self) {
        self.sink.put(&[marker::BINARY, b'T']);
    }

    /// Four bytes a token, about as many as its text would have.
    fn tokens(&mut self, left: &mut usize) -> Result<(), NoChain> {
        if self.cursor.peek() != Some(b'[') {
            return Err(NoChain::Unsupported { what: "prompt", at: self.cursor.at });
        }
        self.cursor.at += 1;
        let mut first = true;
        while self.cursor.element(&mut first)? {
            *left = left.checked_sub(1).ok_or(NoChain::TooLarge { what: "token ids", limit: TOKENS_MAX })?;
            let token = token(&mut self.cursor)?;
            self.sink.put(&token.to_le_bytes());
        }
        Ok(())
    }
}

/// Reads a token id: a plain decimal integer below [`NEXT_PROMPT`].
#[inline]
fn token(cursor: &mut Cursor<'_>) -> Result<u32, NoChain> {
    let at = cursor.at;
    let unsupported = NoChain::Unsupported { what: "token id", at };
    let mut token = 0_u32;
    while let Some(digit @ b'0'..=b'9') = cursor.peek() {
        token = token
            .checked_mul(10)
            .and_then(|token| token.checked_add(u32::from(digit - b'0')))
            .filter(|token| *token != NEXT_PROMPT)
            .ok_or(unsupported)?;
        cursor.at += 1;
    }
    let digits = cursor.at - at;
    let leading_zero = digits > 1 && cursor.body[at] == b'0';
    let whole = !matches!(cursor.peek(), Some(b'.' | b'e' | b'E'));
    if digits > 0 && whole && !leading_zero { Ok(token) } else { Err(unsupported) }
}
