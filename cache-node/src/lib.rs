//! The cache node: one process per GPU host that keeps the KV its engines computed, outlives them, and hands it back.

pub mod recipe;
pub mod store;
