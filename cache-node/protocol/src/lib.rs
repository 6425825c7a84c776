//! The wire of the cache node, sans-IO: bytes in, messages out, and back. No socket, no clock, no randomness.
//!
//! [`frame`] cuts the byte stream, [`message`] says what a frame means, `msgpack` is the codec underneath.
//! [`id`] has the newtypes both sides pass around, [`namespace`] and [`checksum`] the two definitions that every
//! holder of KV must share, [`control`] the JSON of the HTTP control API. `README.md` is the contract for plugins
//! in other languages, and the golden bytes in the tests hold it.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod code;
pub mod control;
pub mod fault;
mod field;
pub mod frame;
pub mod id;
pub mod message;
mod msgpack;
pub mod namespace;
pub mod version;

#[cfg(test)]
mod golden;

pub use checksum::{Checksum, chunk_checksum};
pub use fault::{DecodeFault, FrameFault, Malformed};
pub use frame::{FRAME_BYTES_MAX, FrameBuffer};
pub use id::{BlockKey, DeviceId, GpuHandle, LeaseId, NodeId, PinId, StoreNamespace, Tag, WireSession};
pub use message::{ToEngine, ToNode};
pub use namespace::NamespaceParts;
pub use version::Version;
