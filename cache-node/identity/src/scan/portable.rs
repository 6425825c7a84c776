//! The scans without instructions beyond the build's own; `memchr` brings its own vector code where there is any.

use super::{BAD_LAST, BAD_SHIFT, Masks, Scanned, nested_by};

pub(super) fn string(body: &[u8], from: usize) -> Option<Scanned> {
    let mut special = None;
    let mut at = from;
    let end = loop {
        at += memchr::memchr2(b'"', b'\\', body.get(at..)?)?;
        if body[at] == b'"' {
            break at;
        }
        if special.is_none() && matches!(body.get(at + 1), Some(b'u' | b'/')) {
            special = Some(at);
        }
        at += 2;
    };
    let clean = body[from..end].iter().fold(u8::MAX, |least, &byte| least.min(byte.wrapping_add(BAD_SHIFT)));
    Some(Scanned::new(end, special, clean > BAD_LAST))
}

pub(super) fn special(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(rest) = text.get(at..)
        && let Some(next) = memchr::memchr(b'\\', rest)
    {
        at += next;
        if matches!(text.get(at + 1), Some(b'u' | b'/')) {
            return at;
        }
        at += 2;
    }
    text.len()
}

pub(super) fn nested(body: &[u8], from: usize) -> Option<usize> {
    nested_by(body, from, masks)
}

fn masks(block: &[u8; 64]) -> Masks {
    let bits = |pick: fn(u8) -> bool| {
        block.iter().enumerate().fold(0, |mask, (bit, &byte)| mask | (u64::from(pick(byte)) << bit))
    };
    Masks {
        quote: bits(|byte| byte == b'"'),
        backslash: bits(|byte| byte == b'\\'),
        open: bits(|byte| matches!(byte, b'{' | b'[')),
        close: bits(|byte| matches!(byte, b'}' | b']')),
    }
}
