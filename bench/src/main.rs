//! Replay of public traces through real processes, and micro benchmarks.
fn main() {}
