//! An honest imitation of a vLLM server: the same cache and scheduling rules, the same HTTP surface, no model.
//!
//! Honest means that nothing here knows the proxy under test: `cached_tokens`, queueing, preemption and times
//! follow from a paged block cache and a batching scheduler that see only what a real engine would see.
//! `cache`, `scheduler`, `content` and `render` are pure: time is an argument. `engine` puts the scheduler behind
//! a clock, `server` puts the engine behind HTTP. In the order a request meets them:

pub mod config;
mod server;

pub mod fault;
pub mod render;

pub mod content;

mod engine;

pub mod scheduler;

pub mod cache;

pub use config::Config;
pub use server::{BODY_BYTES_MAX, Handle, ServeError, serve};
