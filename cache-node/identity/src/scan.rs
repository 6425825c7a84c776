//! The two scans that touch every byte: to the end of a string, and to the end of a nested value.

use crate::Cpu;

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(test)]
mod tests;

/// A byte of text that JSON in UTF-8 cannot have: a raw control (under 0x20) or one that UTF-8 never uses and that
/// the canonical form uses as a marker (0xF5 and above). Both wrap into one range when this is added.
const BAD_SHIFT: u8 = 0x100_u16.wrapping_sub(0xF5) as u8;
/// The last byte of that range: 0x1F after the shift.
const BAD_LAST: u8 = 0x1F + BAD_SHIFT;

/// What one pass over a string finds. Two words, so that it is returned in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    end: usize,
    special: usize,
}

impl Scanned {
    const OPEN: Self = Self { end: usize::MAX, special: usize::MAX };

    fn new(end: usize, special: Option<usize>, clean: bool) -> Self {
        Self { end, special: if clean { special.unwrap_or(end) } else { usize::MAX } }
    }

    /// The closing quote; `None` if the string is not closed.
    #[inline]
    pub(crate) fn end(self) -> Option<usize> {
        (self.end != usize::MAX).then_some(self.end)
    }

    /// The backslash of the first `\u` or `\/`, the escapes that have another spelling, else the end. `None` if the
    /// string is not closed or has a raw control or a marker byte.
    #[inline]
    pub(crate) fn special(self) -> Option<usize> {
        (self.special != usize::MAX).then_some(self.special)
    }
}

/// Scans the string whose first byte behind the opening quote is at `from`.
#[inline]
pub(crate) fn string(cpu: Cpu, body: &[u8], from: usize) -> Scanned {
    match cpu {
        Cpu::Portable => portable::string(body, from).unwrap_or(Scanned::OPEN),
        #[cfg(target_arch = "x86_64")]
        Cpu::Avx2(cpu) => avx2::string(cpu, body, from),
    }
}

/// The closing quote of a string that ends within the 8 bytes at `from` and has neither escape nor any byte outside
/// ASCII's printable range; `None` if the whole scan has to say. Most keys and roles are such strings, and a call of
/// the vector code costs more than they do.
#[inline]
pub(crate) fn short_string(body: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x80 * ONES;
    let word = u64::from_le_bytes(*body.get(from..)?.first_chunk()?);
    // Sets the high bit of each byte below `limit`; borrows can only add bits above the first true one, and the first
    // is all that is used.
    let below = |word: u64, limit: u64| word.wrapping_sub(limit * ONES) & !word & HIGHS;
    let quote = below(word ^ (u64::from(b'"') * ONES), 1);
    let stop = below(word ^ (u64::from(b'\\') * ONES), 1) | below(word, 0x20) | (word & HIGHS);
    let (quote, stop) = (quote.trailing_zeros(), stop.trailing_zeros());
    (quote < stop).then_some(from + quote as usize / 8)
}

/// The backslash of the next `\u` or `\/` in `text` at or behind `from`, or its end. `from` must not lie inside an
/// escape.
#[inline]
pub(crate) fn special(cpu: Cpu, text: &[u8], from: usize) -> usize {
    match cpu {
        Cpu::Portable => portable::special(text, from),
        #[cfg(target_arch = "x86_64")]
        Cpu::Avx2(cpu) => avx2::special(cpu, text, from),
    }
}

/// The offset behind the object or array whose opening bracket is at `from`; `None` if it is not closed.
///
/// Brackets are counted, not matched by kind: right for valid JSON, and bounded work at any depth for all else.
pub(crate) fn nested(cpu: Cpu, body: &[u8], from: usize) -> Option<usize> {
    match cpu {
        Cpu::Portable => portable::nested(body, from),
        #[cfg(target_arch = "x86_64")]
        Cpu::Avx2(cpu) => avx2::nested(cpu, body, from),
    }
}

/// Where the interesting bytes of a 64-byte block are, one bit each.
#[derive(Clone, Copy, Debug)]
struct Masks {
    quote: u64,
    backslash: u64,
    open: u64,
    close: u64,
}

/// Marks the bytes that a backslash escapes. `carry` says whether the block before ended in an escaping backslash.
///
/// In a sequence of backslashes every second one escapes; a subtraction carries through each sequence and finds where
/// it starts on an even or odd bit, without a branch (after simdjson, <https://github.com/simdjson/simdjson>).
#[inline(always)]
fn escaped(backslash: u64, carry: &mut u64) -> u64 {
    const ODD: u64 = 0xAAAA_AAAA_AAAA_AAAA;
    let potential = backslash & !*carry;
    let maybe = (potential << 1) | ODD;
    let series = maybe.wrapping_sub(potential) ^ ODD;
    let escaped = series ^ (backslash | *carry);
    *carry = (series & backslash) >> 63;
    escaped
}

/// Bit `i` is the parity of bits `0..=i`: set inside a string, with its opening quote and without its closing one.
#[inline(always)]
fn parity(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// The bracket count behind [`nested`], over whatever finds the masks of a block.
#[inline(always)]
fn nested_by(body: &[u8], from: usize, masks: impl Fn(&[u8; 64]) -> Masks) -> Option<usize> {
    let mut depth = 0_u64;
    let (mut carry, mut inside) = (0, 0);
    let mut at = from;
    loop {
        let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
        let found = rest.first_chunk().map_or_else(|| masks(&padded(rest)), &masks);
        let quotes = found.quote & !escaped(found.backslash, &mut carry);
        let in_string = parity(quotes) ^ inside;
        inside = ((in_string >> 63) as i64).wrapping_neg().cast_unsigned();
        let (opens, closes) = (found.open & !in_string, found.close & !in_string);
        if u64::from(closes.count_ones()) < depth {
            depth = depth + u64::from(opens.count_ones()) - u64::from(closes.count_ones());
        } else if let Some(bit) = balance(&mut depth, opens, closes) {
            return Some(at + bit + 1);
        }
        at += 64;
    }
}

/// Counts bracket by bracket; the bit at which the depth falls to zero, if it does.
#[inline]
fn balance(depth: &mut u64, opens: u64, closes: u64) -> Option<usize> {
    let mut brackets = opens | closes;
    while brackets != 0 {
        let bit = brackets.trailing_zeros() as usize;
        brackets &= brackets - 1;
        if opens >> bit & 1 == 1 {
            *depth += 1;
        } else {
            // Is never zero here: the first bracket opens, and the loop ends where zero is reached.
            *depth = depth.saturating_sub(1);
            if *depth == 0 {
                return Some(bit);
            }
        }
    }
    None
}

/// The last, short block of a scan, filled up with spaces: they are no byte that any scan looks for.
#[inline]
fn padded(rest: &[u8]) -> [u8; 64] {
    let mut block = [b' '; 64];
    let len = rest.len().min(64);
    block[..len].copy_from_slice(&rest[..len]);
    block
}
