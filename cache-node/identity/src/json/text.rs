//! Strings: their canonical spelling, and their value.

use std::borrow::Cow;

use crate::limits::KEY_BYTES_MAX;
use crate::{Cpu, NoChain, Out, scan};

/// A string of the body, between its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    pub(crate) start: usize,
    /// The first escape whose spelling is not canonical (`\u` or `\/`), else `end`.
    pub(crate) special: usize,
    pub(crate) end: usize,
}

impl Text {
    /// The string as it lies in the body.
    #[inline]
    pub(crate) fn raw(self, body: &[u8]) -> &[u8] {
        &body[self.start..self.end]
    }

    /// Writes the canonical spelling: raw UTF-8 but for `\" \\ \b \f \n \r \t` and other controls as `\u00xx`.
    ///
    /// A string without `\u` and `\/` is canonical as it lies in the body. A lone surrogate is written as the three
    /// bytes that UTF-8 would give its number (WTF-8): Python engines accept it, so such a session keeps its affinity.
    #[inline]
    pub(crate) fn put<O: Out>(self, cpu: Cpu, body: &[u8], out: &mut O) -> Result<(), NoChain> {
        out.put(&body[self.start..self.special]);
        if self.special == self.end { Ok(()) } else { self.put_specials(cpu, body, out) }
    }

    #[inline(never)]
    fn put_specials<O: Out>(self, cpu: Cpu, body: &[u8], out: &mut O) -> Result<(), NoChain> {
        let text = &body[..self.end];
        let mut at = self.special;
        // Here `at` is always the backslash of a special escape, or the end.
        while at < self.end {
            at = put_special(text, at, out)?;
            let plain = at;
            if !is_special(text, at) {
                at = scan::special(cpu, text, at);
                out.put(&text[plain..at]);
            }
        }
        Ok(())
    }

    /// The key as bytes, for comparison with keys that need no escape; empty if it is longer than any we know.
    #[inline]
    pub(crate) fn key<'b>(self, cpu: Cpu, body: &'b [u8], space: &'b mut KeySpace) -> &'b [u8] {
        if self.special == self.end {
            return self.raw(body);
        }
        space.len = 0;
        space.full = false;
        let whole = self.put(cpu, body, space).is_ok() && !space.full;
        if whole { &space.bytes[..space.len] } else { b"" }
    }

    /// The string's value; `None` if it is not UTF-8. A lone surrogate becomes U+FFFD.
    pub(crate) fn value(self, body: &[u8]) -> Option<Cow<'_, str>> {
        let raw = std::str::from_utf8(self.raw(body)).ok()?;
        if raw.contains('\\') { unescape(raw).map(Cow::Owned) } else { Some(Cow::Borrowed(raw)) }
    }
}

/// Room for one escaped key.
#[derive(Default)]
pub(crate) struct KeySpace {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
    full: bool,
}

impl Out for KeySpace {
    fn put(&mut self, bytes: &[u8]) {
        match self.bytes.get_mut(self.len..self.len + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.full = true,
        }
    }
}

#[inline]
fn is_special(text: &[u8], at: usize) -> bool {
    matches!(text.get(at..at + 2), Some(br"\u" | br"\/"))
}

/// Writes the character of the special escape at `at`; the offset behind it.
#[inline]
fn put_special<O: Out>(text: &[u8], at: usize, out: &mut O) -> Result<usize, NoChain> {
    if text.get(at + 1) == Some(&b'/') {
        out.put(b"/");
        return Ok(at + 2);
    }
    let (code, next) = code_point(text, at)?;
    match code {
        0x08 => out.put(br"\b"),
        0x09 => out.put(br"\t"),
        0x0A => out.put(br"\n"),
        0x0C => out.put(br"\f"),
        0x0D => out.put(br"\r"),
        0x22 => out.put(br#"\""#),
        0x5C => out.put(br"\\"),
        0x00..0x20 => {
            let digit = |nibble: u32| b"0123456789abcdef"[(nibble & 15) as usize];
            out.put(&[b'\\', b'u', b'0', b'0', digit(code >> 4), digit(code)]);
        }
        _ => put_utf8(code, out),
    }
    Ok(next)
}

/// UTF-8, extended to surrogates.
#[inline]
fn put_utf8<O: Out>(code: u32, out: &mut O) {
    let more = |shift: u32| 0x80 | (code >> shift & 0x3F) as u8;
    match code {
        0..0x80 => out.put(&[code as u8]),
        0x80..0x800 => out.put(&[0xC0 | (code >> 6) as u8, more(0)]),
        0x800..0x1_0000 => out.put(&[0xE0 | (code >> 12) as u8, more(6), more(0)]),
        _ => out.put(&[0xF0 | (code >> 18) as u8, more(12), more(6), more(0)]),
    }
}

/// The code point of the `\u` escape at `at`, with its other half if it is a surrogate pair; the offset behind it.
#[inline]
fn code_point(text: &[u8], at: usize) -> Result<(u32, usize), NoChain> {
    let code = unit(text, at).ok_or(NoChain::NotJson { at })?;
    if (0xD800..0xDC00).contains(&code)
        && let Some(low @ 0xDC00..0xE000) = unit(text, at + 6)
    {
        return Ok((0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00), at + 12));
    }
    Ok((code, at + 6))
}

/// The UTF-16 unit of a `\uXXXX` at `at`, if there is one.
#[inline]
fn unit(text: &[u8], at: usize) -> Option<u32> {
    let [b'\\', b'u', digits @ ..] = text.get(at..)?.first_chunk::<6>()? else { return None };
    let [a, b, c, d] = digits.map(|digit| i32::from(HEX[usize::from(digit)]));
    let code = a << 12 | b << 8 | c << 4 | d;
    u32::try_from(code).ok()
}

/// The value of a hexadecimal digit, or -1, which makes every number it is put into negative.
const HEX: [i8; 256] = {
    let mut table = [-1; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as i8;
        table[b"0123456789ABCDEF"[value] as usize] = value as i8;
        value += 1;
    }
    table
};

/// The value of a string with escapes; `None` if one is malformed.
fn unescape(raw: &str) -> Option<String> {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        value.push_str(plain);
        let kind = escape.chars().next()?;
        if kind == 'u' {
            let from = rest.len() - escape.len() - 1;
            let (code, next) = code_point(rest.as_bytes(), from).ok()?;
            value.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            rest = &rest[next..];
            continue;
        }
        value.push(match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            _ => return None,
        });
        rest = &escape[1..];
    }
    value.push_str(rest);
    Some(value)
}
