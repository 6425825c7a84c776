//! The routing index beside kv-index (the SMG and sglang-router crate) and dynamo-kv-router, fed with the same events.
//!
//! [`fleet`] plays agentic sessions against endpoints with LRU caches and writes down who stored and who evicted what;
//! [`indexes`] puts each index behind one interface. `benches/index.rs` compares answers first, then memory, then time.

#[expect(dead_code, reason = "the crate's own files, of which a part is used here")]
#[path = "../../../proxy/routing/src"]
mod routing {
    pub(crate) mod index;
    pub(crate) mod random;
}
use routing::random;

pub mod fleet;
pub mod indexes;
