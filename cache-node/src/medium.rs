//! Where chunks lie. Host memory shared with the engines, and segments on disk.

pub mod disk;
pub mod memory;
