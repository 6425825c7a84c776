//! The part of msgpack that the engine port needs: a writer that always picks the shortest form, and a reader that
//! borrows, takes any width, and never allocates by a length it was merely told.
//!
//! Own code instead of a serde format because every list needs a cap *before* it is built, unknown fields must be
//! skipped without being built, and golden bytes must not move with a dependency. Format:
//! <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use crate::fault::Malformed;

/// Deepest nesting a reader follows; messages need 2.
pub(crate) const DEPTH_MAX: usize = 8;

/// Appends msgpack values.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A header of one of the families that come as 8/16/32-bit lengths. `short` is (base, count) of the fix form.
    fn header(&mut self, length: usize, short: Option<(u8, usize)>, forms: [Option<u8>; 3]) {
        let length32 = u32::try_from(length).expect("lists and strings of this crate are capped");
        match (short, forms) {
            (Some((base, count)), _) if length < count => self.bytes.push(base | length32 as u8),
            (_, [Some(form), ..]) if length < 1 << 8 => self.bytes.extend([form, length32 as u8]),
            (_, [_, Some(form), _]) if length < 1 << 16 => {
                self.bytes.push(form);
                self.bytes.extend((length32 as u16).to_be_bytes());
            }
            (_, [_, _, form]) => {
                self.bytes.push(form.expect("every family has a 32-bit form"));
                self.bytes.extend(length32.to_be_bytes());
            }
        }
    }

    pub(crate) fn map(&mut self, fields: usize) {
        self.header(fields, Some((0x80, 16)), [None, Some(0xde), Some(0xdf)]);
    }

    pub(crate) fn array(&mut self, items: usize) {
        self.header(items, Some((0x90, 16)), [None, Some(0xdc), Some(0xdd)]);
    }

    pub(crate) fn str(&mut self, text: &str) {
        self.header(text.len(), Some((0xa0, 32)), [Some(0xd9), Some(0xda), Some(0xdb)]);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn bin(&mut self, bytes: &[u8]) {
        self.header(bytes.len(), None, [Some(0xc4), Some(0xc5), Some(0xc6)]);
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0xc3 } else { 0xc2 });
    }

    pub(crate) fn uint(&mut self, value: u64) {
        match value {
            0..0x80 => self.bytes.push(value as u8),
            0x80..0x100 => self.bytes.extend([0xcc, value as u8]),
            0x100..0x1_0000 => {
                self.bytes.push(0xcd);
                self.bytes.extend((value as u16).to_be_bytes());
            }
            0x1_0000..0x1_0000_0000 => {
                self.bytes.push(0xce);
                self.bytes.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.bytes.push(0xcf);
                self.bytes.extend(value.to_be_bytes());
            }
        }
    }
}

/// Made only where it is needed: a lookup has thousands of values, and each unused fault would have to be dropped.
#[cold]
fn truncated() -> Malformed {
    Malformed::Truncated
}

/// Reads msgpack values from borrowed bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn peek(&self) -> Result<u8, Malformed> {
        self.rest.first().copied().ok_or_else(truncated)
    }

    /// A big-endian unsigned number of `width` bytes (1..=8).
    fn number(&mut self, width: usize) -> Result<u64, Malformed> {
        Ok(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// The length behind a header that `forms` describes: the fix form's (base, mask), then 8/16/32-bit forms.
    fn length(
        &mut self,
        expected: &'static str,
        short: Option<(u8, u8)>,
        forms: [Option<u8>; 3],
    ) -> Result<usize, Malformed> {
        let found = self.peek()?;
        let mut after = *self;
        after.take(1)?;
        let length = match short {
            Some((base, mask)) if found & !mask == base => u64::from(found & mask),
            _ => {
                let form = forms.iter().position(|form| *form == Some(found));
                let Some(form) = form else { return Err(Malformed::Form { expected, found }) };
                after.number(1 << form)?
            }
        };
        *self = after;
        // A 32-bit length always fits; platforms of 16 bits are not supported by anything above.
        Ok(length as usize)
    }

    /// The number of fields of a map.
    pub(crate) fn map(&mut self) -> Result<usize, Malformed> {
        self.length("map", Some((0x80, 0x0f)), [None, Some(0xde), Some(0xdf)])
    }

    /// The number of items of an array. Never more than bytes are left: a length alone allocates nothing.
    pub(crate) fn array(&mut self) -> Result<usize, Malformed> {
        let items = self.length("array", Some((0x90, 0x0f)), [None, Some(0xdc), Some(0xdd)])?;
        if items > self.remaining() {
            return Err(Malformed::Truncated);
        }
        Ok(items)
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, Malformed> {
        let length = self.length("str", Some((0xa0, 0x1f)), [Some(0xd9), Some(0xda), Some(0xdb)])?;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed::Utf8)
    }

    pub(crate) fn bin(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length("bin", None, [Some(0xc4), Some(0xc5), Some(0xc6)])?;
        self.take(length)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.peek()? {
            found @ (0xc2 | 0xc3) => {
                self.take(1)?;
                Ok(found == 0xc3)
            }
            found => Err(Malformed::Form { expected: "bool", found }),
        }
    }

    /// An unsigned number, also when it came in a signed form.
    pub(crate) fn uint(&mut self) -> Result<u64, Malformed> {
        let found = self.peek()?;
        let signed_width = match found {
            0..0x80 => {
                self.take(1)?;
                return Ok(u64::from(found));
            }
            0xcc..=0xcf => {
                self.take(1)?;
                return self.number(1 << (found - 0xcc));
            }
            0xd0..=0xd3 => 1 << (found - 0xd0),
            0xe0.. => return Err(Malformed::Range("negative number")),
            _ => return Err(Malformed::Form { expected: "unsigned integer", found }),
        };
        self.take(1)?;
        let value = self.number(signed_width)?;
        let negative = value >> (signed_width * 8 - 1) & 1 == 1;
        if negative { Err(Malformed::Range("negative number")) } else { Ok(value) }
    }

    /// Whether the next value is nil; it is read if so.
    pub(crate) fn nil(&mut self) -> Result<bool, Malformed> {
        let nil = self.peek()? == 0xc0;
        if nil {
            self.take(1)?;
        }
        Ok(nil)
    }

    /// Steps over one value of any type, extension types too.
    pub(crate) fn skip(&mut self, depth: usize) -> Result<(), Malformed> {
        if depth == 0 {
            return Err(Malformed::Depth);
        }
        let found = self.peek()?;
        match found {
            0x80..=0x8f | 0xde | 0xdf => {
                for _ in 0..self.map()? {
                    self.skip(depth - 1)?;
                    self.skip(depth - 1)?;
                }
                Ok(())
            }
            0x90..=0x9f | 0xdc | 0xdd => {
                for _ in 0..self.array()? {
                    self.skip(depth - 1)?;
                }
                Ok(())
            }
            0xa0..=0xbf | 0xd9..=0xdb => self.str_bytes(),
            0xc4..=0xc6 => self.bin().map(|_| ()),
            0xc7..=0xc9 => self.extension(found),
            _ => self.scalar(found),
        }
    }

    /// Steps over a str without asking that it be UTF-8.
    fn str_bytes(&mut self) -> Result<(), Malformed> {
        let length = self.length("str", Some((0xa0, 0x1f)), [Some(0xd9), Some(0xda), Some(0xdb)])?;
        self.take(length).map(|_| ())
    }

    fn extension(&mut self, form: u8) -> Result<(), Malformed> {
        self.take(1)?;
        let length = self.number(1 << (form - 0xc7))? as usize;
        self.take(length + 1).map(|_| ())
    }

    fn scalar(&mut self, found: u8) -> Result<(), Malformed> {
        let bytes = match found {
            0..0x80 | 0xc0 | 0xc2 | 0xc3 | 0xe0.. => 1,
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            // fixext: a type byte and 1, 2, 4, 8 or 16 bytes.
            0xd4..=0xd8 => 2 + (1 << (found - 0xd4)),
            _ => return Err(Malformed::Form { expected: "a value", found }),
        };
        self.take(bytes).map(|_| ())
    }
}

#[cfg(test)]
mod tests;
