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
        let mut small = Small::new(out);
        let mut at = self.special;
        let mut copied_until = at + COPIED_BYTES;
        while at < self.end {
            if is_special(text, at) {
                at = put_special(text, at, &mut small)?;
                copied_until = at + COPIED_BYTES;
            } else if at < copied_until {
                at += small.put_plain(text, at);
            } else {
                small.flush();
                let plain = at;
                at = scan::special(cpu, text, at);
                small.out.put(&text[plain..at]);
            }
        }
        small.flush();
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

/// How far behind a special escape text is copied, in bytes, before it is handed on where it lies: such escapes come
/// in swarms, words of another script with a space between them, and a scan for each space costs more than a copy.
const COPIED_BYTES: usize = 32;

/// Gathers small pieces in front of an output.
struct Small<'o, O: Out> {
    out: &'o mut O,
    bytes: [u8; 256],
    len: usize,
}

impl<'o, O: Out> Small<'o, O> {
    fn new(out: &'o mut O) -> Self {
        Self { out, bytes: [0; 256], len: 0 }
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.out.put(&self.bytes[..self.len]);
        self.len = 0;
    }

    /// Room for eight more bytes, of which the caller counts those it wrote.
    #[inline]
    fn room(&mut self) -> &mut [u8; 8] {
        if self.len + 8 > self.bytes.len() {
            self.flush();
        }
        self.bytes[self.len..].first_chunk_mut().expect("flushed when there are fewer than eight left")
    }

    /// Copies from `at`, which is no special escape: up to the next backslash, or over one escape; how many bytes.
    #[inline]
    fn put_plain(&mut self, text: &[u8], at: usize) -> usize {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let Some(next) = text[at..].first_chunk::<8>() else {
            let len = if text[at] == b'\\' { 2 } else { 1 };
            let piece = &text[at..text.len().min(at + len)];
            self.put(piece);
            return piece.len();
        };
        *self.room() = *next;
        let word = u64::from_le_bytes(*next) ^ (u64::from(b'\\') * ONES);
        // The first true one of the marked bytes is exact, and a backslash in front is an escape of two bytes.
        let backslash = word.wrapping_sub(ONES) & !word & (0x80 * ONES);
        let plain = backslash.trailing_zeros() as usize / 8;
        let len = if plain == 0 { 2 } else { plain };
        self.len += len;
        len
    }
}

impl<O: Out> Out for Small<'_, O> {
    /// For pieces of up to eight bytes.
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

#[inline]
fn is_special(text: &[u8], at: usize) -> bool {
    matches!(text.get(at..at + 2), Some(br"\u" | br"\/"))
}

/// Writes the character of the special escape at `at`; the offset behind it.
#[inline]
fn put_special<O: Out>(text: &[u8], at: usize, out: &mut Small<'_, O>) -> Result<usize, NoChain> {
    if text.get(at + 1) == Some(&b'/') {
        out.put(b"/");
        return Ok(at + 2);
    }
    let (code, next) = code_point(text, at)?;
    if code >= 0x80 {
        put_utf8(code, out);
    } else {
        put_ascii(code as u8, out);
    }
    Ok(next)
}

fn put_ascii<O: Out>(code: u8, out: &mut Small<'_, O>) {
    match code {
        0x08 => out.put(br"\b"),
        0x09 => out.put(br"\t"),
        0x0A => out.put(br"\n"),
        0x0C => out.put(br"\f"),
        0x0D => out.put(br"\r"),
        0x22 => out.put(br#"\""#),
        0x5C => out.put(br"\\"),
        0x00..0x20 => {
            let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
            out.put(&[b'\\', b'u', b'0', b'0', digit(code >> 4), digit(code)]);
        }
        _ => out.put(&[code]),
    }
}

/// Writes the UTF-8 of a code point over 0x7F, extended to surrogates.
#[inline]
fn put_utf8<O: Out>(code: u32, out: &mut Small<'_, O>) {
    let more = |shift: u32| 0x80 | (code >> shift & 0x3F) as u8;
    let (bytes, len) = match code {
        0..0x800 => ([0xC0 | (code >> 6) as u8, more(0), 0, 0], 2),
        0x800..0x1_0000 => ([0xE0 | (code >> 12) as u8, more(6), more(0), 0], 3),
        _ => ([0xF0 | (code >> 18) as u8, more(12), more(6), more(0)], 4),
    };
    let [a, b, c, d] = bytes;
    *out.room() = [a, b, c, d, 0, 0, 0, 0];
    out.len += len;
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
