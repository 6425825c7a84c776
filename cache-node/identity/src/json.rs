//! A cursor over a JSON body: it borrows, allocates nothing, and reads only what it is asked for.

use crate::{Cpu, NoChain, scan};

mod canonical;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use canonical::canonical;
pub(crate) use text::{KeySpace, Text};

/// A span of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn of(self, body: &[u8]) -> &[u8] {
        &body[self.start..self.end]
    }

    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }
}

/// A value as found in the body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Value {
    /// Also an absent member: the two mean the same everywhere in a request.
    #[default]
    Null,
    Text(Text),
    /// `true`, `false` or a number: canonical as it is written.
    Literal(Span),
    /// An object or array. Its brackets were counted and no more.
    Nested(Span),
}

impl Value {
    pub(crate) fn is_null(self) -> bool {
        matches!(self, Self::Null)
    }

    pub(crate) fn is_true(self, body: &[u8]) -> bool {
        matches!(self, Self::Literal(span) if span.of(body) == b"true")
    }

    pub(crate) fn text(self) -> Option<Text> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The value of a plain decimal integer.
    pub(crate) fn integer(self, body: &[u8]) -> Option<u64> {
        let Self::Literal(span) = self else { return None };
        std::str::from_utf8(span.of(body)).ok()?.parse().ok()
    }
}

/// A position in a body. Methods stop with [`NoChain::NotJson`] where the grammar is broken.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) at: usize,
    pub(crate) cpu: Cpu,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(body: &'a [u8], cpu: Cpu) -> Self {
        Self { body, at: 0, cpu }
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    #[cold]
    pub(crate) fn broken(&self) -> NoChain {
        NoChain::NotJson { at: self.at }
    }

    #[inline]
    pub(crate) fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Steps over `byte`.
    #[inline]
    pub(crate) fn expect(&mut self, byte: u8) -> Result<(), NoChain> {
        if self.peek() != Some(byte) {
            return Err(self.broken());
        }
        self.at += 1;
        Ok(())
    }

    /// Inside an object: the next key, with the cursor at its value; `None` behind the closing bracket.
    #[inline(always)]
    pub(crate) fn key(&mut self, first: &mut bool) -> Result<Option<Text>, NoChain> {
        if self.next(b'}', first)? {
            return Ok(None);
        }
        let key = self.string()?;
        self.blank();
        self.expect(b':')?;
        self.blank();
        Ok(Some(key))
    }

    /// Inside an array: whether there is another element, with the cursor at it, or behind the closing bracket.
    #[inline]
    pub(crate) fn element(&mut self, first: &mut bool) -> Result<bool, NoChain> {
        Ok(!self.next(b']', first)?)
    }

    #[inline]
    fn next(&mut self, close: u8, first: &mut bool) -> Result<bool, NoChain> {
        self.blank();
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(true);
        }
        if !std::mem::take(first) {
            self.expect(b',')?;
            self.blank();
        }
        Ok(false)
    }

    /// Reads a string; the cursor must be at its opening quote.
    // Inlined, as are its callers: returned through memory a result costs more than a short scan.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Result<Text, NoChain> {
        self.expect(b'"')?;
        let start = self.at;
        if let Some(end) = scan::short_string(self.body, start) {
            self.at = end + 1;
            return Ok(Text { start, special: end, end });
        }
        let found = scan::string(self.cpu, self.body, start);
        let (Some(end), Some(special)) = (found.end(), found.special()) else {
            return Err(NoChain::NotJson { at: start });
        };
        self.at = end + 1;
        Ok(Text { start, special, end })
    }

    /// Reads any value.
    pub(crate) fn value(&mut self) -> Result<Value, NoChain> {
        let mut value = Value::Null;
        self.read(&mut value)?;
        Ok(value)
    }

    /// Reads any value into its place: what is most often a string should not be returned through memory either.
    #[inline(always)]
    pub(crate) fn read(&mut self, place: &mut Value) -> Result<(), NoChain> {
        *place = if self.peek() == Some(b'"') { Value::Text(self.string()?) } else { self.other_value()? };
        Ok(())
    }

    #[inline(never)]
    fn other_value(&mut self) -> Result<Value, NoChain> {
        let start = self.at;
        match self.peek() {
            Some(b'{' | b'[') => {
                self.at = scan::nested(self.cpu, self.body, start).ok_or(self.broken())?;
                Ok(Value::Nested(Span { start, end: self.at }))
            }
            Some(b'n') if self.word(b"null") => Ok(Value::Null),
            _ if self.literal() => Ok(Value::Literal(Span { start, end: self.at })),
            _ => Err(self.broken()),
        }
    }

    /// Steps over any value with the least demands: what it holds is not looked at, a string may have any bytes.
    pub(crate) fn skip(&mut self) -> Result<(), NoChain> {
        let end = match self.peek() {
            Some(b'"') => scan::string(self.cpu, self.body, self.at + 1).end().map(|quote| quote + 1),
            Some(b'{' | b'[') => scan::nested(self.cpu, self.body, self.at),
            _ => self.literal().then_some(self.at),
        };
        self.at = end.ok_or(self.broken())?;
        Ok(())
    }

    /// Steps over `true`, `false`, `null` or a number; whether there was one.
    #[inline]
    #[must_use]
    pub(crate) fn literal(&mut self) -> bool {
        let found = literal(self.body, self.at);
        self.at = found.unwrap_or(self.at);
        found.is_some()
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let found = self.body[self.at..].starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }
}

/// The end of the literal or number at `at`.
#[inline]
fn literal(body: &[u8], at: usize) -> Option<usize> {
    let word = |word: &[u8]| body[at..].starts_with(word).then_some(at + word.len());
    match body.get(at)? {
        b't' => word(b"true"),
        b'f' => word(b"false"),
        b'n' => word(b"null"),
        _ => number(body, at),
    }
}

/// The end of the number at `at`.
#[inline]
fn number(body: &[u8], at: usize) -> Option<usize> {
    let start = at + usize::from(body[at] == b'-');
    let end = digits(body, start)?;
    if body[start] == b'0' && end - start > 1 {
        return None;
    }
    match body.get(end) {
        Some(b'.' | b'e' | b'E') => fraction(body, end),
        _ => Some(end),
    }
}

fn fraction(body: &[u8], mut at: usize) -> Option<usize> {
    if body.get(at) == Some(&b'.') {
        at = digits(body, at + 1)?;
    }
    if !matches!(body.get(at), Some(b'e' | b'E')) {
        return Some(at);
    }
    at += 1;
    digits(body, at + usize::from(matches!(body.get(at), Some(b'+' | b'-'))))
}

/// The end of the digits at `at`, of which there must be one.
#[inline]
fn digits(body: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while matches!(body.get(end), Some(b'0'..=b'9')) {
        end += 1;
    }
    (end > at).then_some(end)
}
