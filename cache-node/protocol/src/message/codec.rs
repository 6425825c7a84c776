//! From structs to maps and back: the macro that writes both directions from one table.

use crate::fault::{DecodeFault, Malformed};
use crate::field::{Field, cut};
use crate::msgpack::{DEPTH_MAX, Reader};

/// The most fields in a message. Version 1 needs 14; newer peers may add some that are skipped here.
pub(crate) const FIELDS_MAX: usize = 64;

/// The named values of one message, each still undecoded.
pub(crate) struct Fields<'a> {
    pub(crate) kind: &'a str,
    values: Vec<(&'a str, Reader<'a>)>,
}

impl<'a> Fields<'a> {
    /// Finds the fields of a body.
    ///
    /// # Errors
    /// [`DecodeFault::Frame`] for anything that is not exactly one map of named values with a `kind`.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, DecodeFault> {
        Self::find(body).map_err(DecodeFault::Frame)
    }

    fn find(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let count = reader.map()?;
        if count > FIELDS_MAX {
            return Err(Malformed::Limit { what: "fields", found: count, max: FIELDS_MAX });
        }
        let mut values: Vec<(&str, Reader<'_>)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = reader.str()?;
            if values.iter().any(|(known, _)| *known == name) {
                return Err(Malformed::Twice(cut(name, 64).to_owned()));
            }
            values.push((name, reader));
            reader.skip(DEPTH_MAX)?;
        }
        if reader.remaining() > 0 {
            return Err(Malformed::Trailing(reader.remaining()));
        }
        let kind = values.iter().find(|(name, _)| *name == "kind").ok_or(Malformed::Missing("kind"))?;
        let kind = kind.1.clone().str()?;
        Ok(Self { kind, values })
    }

    /// Decodes one field.
    ///
    /// # Errors
    /// [`Malformed::Field`] naming it, or [`Malformed::Missing`].
    pub(crate) fn take<T: Field>(&self, field: &'static str) -> Result<T, Malformed> {
        let Some((_, reader)) = self.values.iter().find(|(name, _)| *name == field) else {
            return T::absent().ok_or(Malformed::Missing(field));
        };
        T::get(&mut reader.clone()).map_err(|fault| Malformed::Field { field, fault: Box::new(fault) })
    }

    /// The request id, if there is a readable one.
    pub(crate) fn id(&self) -> Option<u64> {
        self.take("id").ok()
    }

    pub(crate) fn unknown_kind(&self) -> DecodeFault {
        DecodeFault::UnknownKind { kind: cut(self.kind, 64).to_owned(), id: self.id() }
    }

    pub(crate) fn fault(&self, fault: Malformed) -> DecodeFault {
        DecodeFault::Message { kind: self.kind.to_owned(), id: self.id(), fault }
    }
}

/// Writes the structs of one direction, the enum over them, and both directions of the codec.
macro_rules! messages {
    (
        $(#[$enum_meta:meta])* enum $enum:ident;
        $(
            $(#[$meta:meta])*
            $kind:literal => $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }
        )*
    ) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $name {
                $($(#[$field_meta])* pub $field: $type,)*
            }

            impl From<$name> for $enum {
                fn from(message: $name) -> Self {
                    $enum::$name(message)
                }
            }
        )*

        $(#[$enum_meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is documented at its struct")]
        pub enum $enum {
            $($name($name),)*
        }

        impl $enum {
            /// The word that names this message on the wire.
            pub fn kind(&self) -> &'static str {
                match self {
                    $($enum::$name(_) => $kind,)*
                }
            }

            /// The body of the frame that carries this message.
            pub fn encode(&self) -> Vec<u8> {
                let mut writer = Writer::default();
                match self {
                    $($enum::$name(message) => {
                        let fields = [$(!message.$field.is_absent(),)*];
                        writer.map(1 + fields.iter().filter(|there| **there).count());
                        writer.str("kind");
                        writer.str($kind);
                        $(if !message.$field.is_absent() {
                            writer.str(stringify!($field));
                            message.$field.put(&mut writer);
                        })*
                    })*
                }
                writer.into_bytes()
            }

            /// The message in the body of a frame.
            ///
            /// # Errors
            /// [`DecodeFault`] for everything that is not a message of this direction in the form the README gives.
            pub fn decode(body: &[u8]) -> Result<Self, DecodeFault> {
                let fields = Fields::parse(body)?;
                let message = match fields.kind {
                    $($kind => (|| Ok($enum::$name($name { $($field: fields.take(stringify!($field))?,)* })))(),)*
                    _ => return Err(fields.unknown_kind()),
                };
                message
                    .and_then(|message| check(&message).map(|()| message))
                    .map_err(|fault| fields.fault(fault))
            }
        }
    };
}
pub(crate) use messages;
