//! What can be wrong with bytes from the other side. Every fault says what was found and what was allowed.

use thiserror::Error;

/// The byte stream cannot be cut into frames any more; the connection has to end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameFault {
    /// A frame's length prefix is 0.
    #[error("frame of 0 bytes")]
    Empty,
    /// A frame's length prefix is above the cap.
    #[error("frame of {bytes} bytes, at most {max} are allowed")]
    TooLong {
        /// The length the prefix named, in bytes.
        bytes: usize,
        /// [`crate::FRAME_BYTES_MAX`].
        max: usize,
    },
}

/// Why a frame's body is no message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The body ends inside a value.
    #[error("body ends inside a value")]
    Truncated,
    /// Bytes follow the map.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The body, or a value inside, is not of the form it must have.
    #[error("expected {expected}, found type byte 0x{found:02x}")]
    Form {
        /// What had to stand there.
        expected: &'static str,
        /// The msgpack type byte that did.
        found: u8,
    },
    /// A number outside its field's range, or a word a field does not know.
    #[error("{0} out of range")]
    Range(&'static str),
    /// A str that is not UTF-8.
    #[error("str is not UTF-8")]
    Utf8,
    /// More than a named limit allows.
    #[error("{what} of {found}, at most {max} are allowed")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// What was found.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Values nested deeper than [`crate::message::DEPTH_MAX`].
    #[error("nested too deep")]
    Depth,
    /// The same key twice in a message.
    #[error("field {0:?} comes twice")]
    Twice(String),
    /// A field the message must have is not there.
    #[error("field {0:?} is missing")]
    Missing(&'static str),
    /// Lists that belong together differ in length.
    #[error("lists {0} differ in length")]
    Lengths(&'static str),
    /// `end_tokens` does not increase strictly.
    #[error("end_tokens must increase strictly")]
    Order,
    /// A field that is right in form and wrong inside.
    #[error("field {field:?}: {fault}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        fault: Box<Malformed>,
    },
}

/// Why a body could not be decoded, and the request id to answer to where one could be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeFault {
    /// No msgpack map of named values: nothing after it can be trusted.
    #[error("bad frame: {0}")]
    Frame(Malformed),
    /// A message kind that this version does not know.
    #[error("unknown message kind {kind:?}")]
    UnknownKind {
        /// The kind, cut to 64 bytes.
        kind: String,
        /// The request id, if the message had one.
        id: Option<u64>,
    },
    /// A known kind with wrong fields.
    #[error("bad message {kind:?}: {fault}")]
    Message {
        /// The kind.
        kind: String,
        /// The request id, if the message had one.
        id: Option<u64>,
        /// What is wrong.
        fault: Malformed,
    },
}
