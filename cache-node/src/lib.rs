//! The cache node: one process per GPU host that keeps the KV its engines computed, outlives them, and hands it back.
//!
//! In the order a chunk meets them: [`engine_port`] reads an engine's frames, [`driver`] gives them to the [`store`]
//! one by one, [`transfer`] copies and verifies in [`medium`], [`control`] answers the proxy. [`store`] and
//! [`recipe`] are pure: values in, values out; everything else carries out what they say.

pub mod app;
pub mod check;
pub mod config;
pub mod control;
pub mod device;
pub mod driver;
pub mod engine_port;
pub mod logging;
pub mod medium;
pub mod metrics;
pub mod peer;
pub mod recipe;
pub mod selftest;
pub mod store;
pub mod transfer;
