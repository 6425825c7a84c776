//! The messages of the engine port. What each exchange means is in this package's README.

mod codec;
mod engine;
mod node;

pub use engine::{
    Attach, Commit, Complete, Epoch, Fetch, Goodbye, Hello, LAYER_WORDS, Load, Lookup, Offload, Register,
    Release, Role, Save, ToNode,
};
pub use node::{
    Attached, Committed, EpochSet, ErrorAnswer, Farewell, Grant, Leased, Miss, Moved, Moving, Offloading,
    Okay, Pending, Refused, Registered, Reject, ToEngine, Verdict, Verdicts, Welcome,
};

/// The longest list in a message.
pub const LIST_LEN_MAX: usize = crate::field::LIST_LEN_MAX;

/// The longest string in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = crate::field::TEXT_BYTES_MAX;

/// Descriptors that may wait on a connection for the `attach` that names them.
pub const DESCRIPTORS_MAX: usize = 4096;

/// The deepest nesting of values in a message.
pub const DEPTH_MAX: usize = crate::msgpack::DEPTH_MAX;

/// The most fields in a message, known or not.
pub const FIELDS_MAX: usize = codec::FIELDS_MAX;

#[cfg(test)]
mod tests;
