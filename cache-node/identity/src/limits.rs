//! Every bound of the walk, with its reason. Beyond one of them a body gets no chain
//! ([`NoChain::TooLarge`](crate::NoChain::TooLarge), [`NoChain::TooDeep`](crate::NoChain::TooDeep)): it is routed
//! without affinity and never refused.
//!
//! What is not bounded here (text, white space, members that are skipped) costs time linear in the body, so that the
//! caller's bound on the body size bounds it: the worst bytes found, members of one digit each, cost about 2.5 ns.

/// Nesting of a free JSON value (tool schema, arguments object, template arguments). The same as serde_json's and far
/// above any schema; keeps the stack of open brackets in one `u128`.
pub const JSON_DEPTH_MAX: u32 = 128;

/// Bytes of free JSON canonicalised in one body. Read token by token it costs 0.7 ns a byte, and 3.5 ns where every
/// token is a digit: 2 MiB is 7 ms at the very worst, and holds thousands of tools.
pub const JSON_BYTES_MAX: usize = 2 << 20;

/// Messages, content parts and tool calls of one body, together. About 50 ns each: 65,536 is about 3 ms, and
/// more turns than a 2-million-token context can hold usefully.
pub const ITEMS_MAX: usize = 1 << 16;

/// Token ids in a completion prompt. Two of the longest contexts served today.
pub const TOKENS_MAX: usize = 4 << 20;

/// Raw size of a tool list that is worth a place in the memo; a shorter one is canonicalised faster than looked up.
pub(crate) const MEMO_TOOLS_BYTES_MIN: usize = 512;

/// Raw size of a tool list that is kept in the memo. With the smallest run an entry is at most 32 KiB of hashes.
pub(crate) const MEMO_TOOLS_BYTES_MAX: usize = 256 << 10;

/// Independent locks of the memo: a lookup holds one for about 20 ns.
pub(crate) const MEMO_SHARDS: usize = 16;

/// Tool lists kept per shard, so at most 256 lists or 8 MiB in all; a deployment has tens of agents, not thousands.
pub(crate) const MEMO_WAYS: usize = 16;

/// Longest envelope key that is compared when it is written with `\u` escapes: no key we know is longer.
pub(crate) const KEY_BYTES_MAX: usize = 32;
