//! The node as a process, with fake engines that speak the real codec over real sockets and read and write the memory
//! they were handed.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers here run only in tests")]

mod control;
mod crashes;
mod disk;
mod engine;
mod faults;
mod gpu;
mod kills;
mod node;
mod openapi;
mod schema;
mod selftest;
mod serving;
