//! Where chunks lie. So far one medium: host memory shared with the engines.

pub mod memory;
