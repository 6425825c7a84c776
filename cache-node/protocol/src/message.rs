//! The messages of the engine port. What each exchange means is in this package's README.

mod codec;
mod engine;
mod node;

pub use engine::{
    Commit, Complete, Epoch, Goodbye, Hello, Load, Lookup, Offload, Register, Release, Role, ToNode,
};
pub use node::{
    Committed, EpochSet, ErrorAnswer, Farewell, Grant, Leased, Miss, Offloading, Okay, Pending, Refused,
    Registered, Reject, ToEngine, Verdict, Verdicts, Welcome,
};

/// The longest list in a message.
pub const LIST_LEN_MAX: usize = crate::field::LIST_LEN_MAX;

/// The longest string in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = crate::field::TEXT_BYTES_MAX;

/// The deepest nesting of values in a message.
pub const DEPTH_MAX: usize = crate::msgpack::DEPTH_MAX;

/// The most fields in a message, known or not.
pub const FIELDS_MAX: usize = codec::FIELDS_MAX;

#[cfg(test)]
mod tests;
