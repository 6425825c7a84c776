//! The canonical form of a free JSON value, such as a tool schema.

use super::{Cursor, Span};
use crate::limits::JSON_DEPTH_MAX;
use crate::{NoChain, Out};

/// Writes the value in `span`, which holds nothing else, without white space and with its strings in canonical
/// spelling. Members stay in order and numbers as they are written.
///
/// What lies canonical in the body goes out in pieces as long as possible, so a compact value is one piece.
pub(crate) fn canonical<O: Out>(mut cursor: Cursor<'_>, span: Span, out: &mut O) -> Result<(), NoChain> {
    cursor.body = &cursor.body[..span.end];
    cursor.at = span.start;
    let mut writer = Writer { cursor, pending: span.start, out, objects: 0, depth: 0 };
    loop {
        writer.scalar_or_open()?;
        if !writer.close_until_next()? {
            break;
        }
    }
    writer.flush();
    if writer.cursor.at == span.end { Ok(()) } else { Err(writer.cursor.broken()) }
}

struct Writer<'a, 'o, O> {
    cursor: Cursor<'a>,
    /// From here to the cursor everything is canonical and not yet written.
    pending: usize,
    out: &'o mut O,
    /// One bit per open bracket, the innermost lowest: set for an object.
    objects: u128,
    depth: u32,
}

impl<O: Out> Writer<'_, '_, O> {
    fn flush(&mut self) {
        self.out.put(&self.cursor.body[self.pending..self.cursor.at]);
        self.pending = self.cursor.at;
    }

    #[inline]
    fn blank(&mut self) {
        if matches!(self.cursor.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.flush();
            self.cursor.blank();
            self.pending = self.cursor.at;
        }
    }

    fn string(&mut self) -> Result<(), NoChain> {
        let text = self.cursor.string()?;
        if text.special != text.end {
            let behind = self.cursor.at;
            self.cursor.at = text.start;
            self.flush();
            text.put(self.cursor.cpu, self.cursor.body, self.out)?;
            self.pending = text.end;
            self.cursor.at = behind;
        }
        Ok(())
    }

    fn key(&mut self) -> Result<(), NoChain> {
        self.string()?;
        self.blank();
        self.cursor.expect(b':')?;
        self.blank();
        Ok(())
    }

    /// Reads down to the first scalar or empty bracket.
    fn scalar_or_open(&mut self) -> Result<(), NoChain> {
        loop {
            let open = match self.cursor.peek() {
                Some(b'"') => return self.string(),
                Some(open @ (b'{' | b'[')) => open,
                _ if self.cursor.literal() => return Ok(()),
                _ => return Err(self.cursor.broken()),
            };
            if self.depth == JSON_DEPTH_MAX {
                return Err(NoChain::TooDeep { at: self.cursor.at, limit: JSON_DEPTH_MAX });
            }
            let object = open == b'{';
            self.objects = self.objects << 1 | u128::from(object);
            self.depth += 1;
            self.cursor.at += 1;
            self.blank();
            if self.cursor.peek() == Some(if object { b'}' } else { b']' }) {
                return Ok(());
            }
            if object {
                self.key()?;
            }
        }
    }

    /// Behind a value: closes brackets up to the next comma, and stands at the value behind it; false at the end.
    fn close_until_next(&mut self) -> Result<bool, NoChain> {
        while self.depth > 0 {
            self.blank();
            let object = self.objects & 1 == 1;
            match self.cursor.peek() {
                Some(b',') => {
                    self.cursor.at += 1;
                    self.blank();
                    if object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return Err(self.cursor.broken()),
            }
            self.cursor.at += 1;
            self.objects >>= 1;
            self.depth -= 1;
        }
        Ok(false)
    }
}
