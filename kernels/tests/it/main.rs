//! The driver layer and the kernels on the emulator: one process, two processes, and every call failing once.

#![cfg(test)]

mod engine;
mod faults;
mod killed;
mod link;
mod one_process;
mod pages;
mod python;
mod soak;
mod two_processes;
mod world;
