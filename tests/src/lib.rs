//! The harness of the integration tests: real processes on loopback, each on a port of its own, ended with the test.

pub mod client;
pub mod program;
pub mod raw;
pub mod scripted;
pub mod world;
