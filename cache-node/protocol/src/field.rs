//! How each field type travels, and the cap of each list.

use crate::code::{ErrorCode, MissReason, PageOrder, RefusedCode, RejectCode};
use crate::fault::Malformed;
use crate::id::{
    BlockKey, DeviceId, GpuHandle, KEY_BYTES_MAX, LeaseId, NodeId, StoreNamespace, Tag, WireSession,
};
use crate::msgpack::{Reader, Writer};

/// The longest list in a message. 65,536 chunks of 16 tokens are a context of a million tokens.
pub(crate) const LIST_LEN_MAX: usize = 65_536;

/// The longest string in a message, in bytes: names and reasons, never content.
pub(crate) const TEXT_BYTES_MAX: usize = 1024;

/// A value that can be a field of a message.
pub(crate) trait Field: Sized {
    /// Appends the value.
    fn put(&self, writer: &mut Writer);

    /// Reads the value.
    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The value of a field that is not there, for optional ones.
    fn absent() -> Option<Self> {
        None
    }

    /// Whether the field is left out of the encoding.
    fn is_absent(&self) -> bool {
        false
    }
}

impl Field for u64 {
    fn put(&self, writer: &mut Writer) {
        writer.uint(*self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.uint()
    }
}

macro_rules! narrow {
    ($($number:ident),*) => {$(
        impl Field for $number {
            fn put(&self, writer: &mut Writer) {
                writer.uint(u64::from(*self));
            }

            fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
                $number::try_from(reader.uint()?).map_err(|_| Malformed::Range(stringify!($number)))
            }
        }
    )*};
}
narrow!(u16, u32);

impl Field for bool {
    fn put(&self, writer: &mut Writer) {
        writer.bool(*self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.bool()
    }
}

impl Field for String {
    fn put(&self, writer: &mut Writer) {
        writer.str(cut(self, TEXT_BYTES_MAX));
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = reader.str()?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(Malformed::Limit { what: "string bytes", found: text.len(), max: TEXT_BYTES_MAX });
        }
        Ok(text.to_owned())
    }
}

/// The longest beginning of `text` within `bytes` that ends between characters. What this side says in prose
/// (reasons, messages) is cut rather than refused; what the other side says is never cut.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

macro_rules! wide {
    ($($id:ident),*) => {$(
        impl Field for $id {
            fn put(&self, writer: &mut Writer) {
                writer.bin(&self.to_bytes());
            }

            fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
                let bytes = reader.bin()?.try_into().map_err(|_| Malformed::Range("bin of 16 bytes"))?;
                Ok(Self::from_bytes(bytes))
            }
        }
    )*};
}
wide!(LeaseId, Tag, NodeId, StoreNamespace, WireSession, DeviceId);

macro_rules! word {
    ($($code:ident),*) => {$(
        impl Field for $code {
            fn put(&self, writer: &mut Writer) {
                writer.str(self.as_str());
            }

            fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
                String::get(reader).map(|word| Self::from_word(&word))
            }
        }
    )*};
}
word!(RejectCode, RefusedCode, MissReason, ErrorCode, PageOrder);

impl Field for GpuHandle {
    fn put(&self, writer: &mut Writer) {
        writer.bin(&self.0);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = reader.bin()?.try_into().map_err(|_| Malformed::Range("bin of 64 bytes"))?;
        Ok(Self(bytes))
    }
}

impl Field for BlockKey {
    fn put(&self, writer: &mut Writer) {
        writer.bin(self.as_bytes());
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = reader.bin()?;
        let limit = Malformed::Limit { what: "block key bytes", found: bytes.len(), max: KEY_BYTES_MAX };
        Self::new(bytes).ok_or(limit)
    }
}

/// A digest made elsewhere: 16..=64 bytes, opaque here.
impl Field for Vec<u8> {
    fn put(&self, writer: &mut Writer) {
        writer.bin(self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = reader.bin()?;
        match bytes.len() {
            16..=64 => Ok(bytes.to_vec()),
            _ => Err(Malformed::Range("digest of 16 to 64 bytes")),
        }
    }
}

/// Element types that come in lists; `u8` is not one, its vector is a digest.
pub(crate) trait Item: Field {}
impl Item for BlockKey {}
impl Item for GpuHandle {}
impl Item for u16 {}
impl Item for u32 {}
impl Item for u64 {}

impl<T: Item> Field for Vec<T> {
    fn put(&self, writer: &mut Writer) {
        debug_assert!(self.len() <= LIST_LEN_MAX, "the caller caps its lists");
        writer.array(self.len());
        self.iter().for_each(|item| item.put(writer));
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let items = reader.array()?;
        if items > LIST_LEN_MAX {
            return Err(Malformed::Limit { what: "list", found: items, max: LIST_LEN_MAX });
        }
        let mut list = Vec::with_capacity(items);
        for _ in 0..items {
            list.push(T::get(reader)?);
        }
        Ok(list)
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, writer: &mut Writer) {
        if let Some(value) = self {
            value.put(writer);
        }
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        if reader.nil()? { Ok(None) } else { T::get(reader).map(Some) }
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}
